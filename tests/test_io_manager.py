"""The I/O manager under Trio: readiness, time, wake-ups, and starting and ending runs."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NoReturn

import pytest
import trio
import trio.testing
from support.descriptors import descriptor_limit, mapped_bytes, next_descriptor, open_descriptors
from support.pairs import PATIENCE, Pair, open_pair, open_trio_pair, pattern, receive_all, receive_exactly, until
from support.runs import host_run, ring_run, sleep_beside_readers, statistics
from support.servers import echo_until_broken
from support.sockets import fill, read_available, socket_pair
from trio.testing import MockClock, wait_all_tasks_blocked

import gain_trio
from gain_trio import Feature, RingOptions, RingUnavailable
from gain_trio._io_manager import UringIOManager
from gain_trio._io_manager._seam import current_io_manager
from gain_trio._kernel import PollEvent, uring

pytestmark = [pytest.mark.connections, pytest.mark.features, pytest.mark.driver]

Wait = Callable[[Any], Awaitable[None]]

both_directions = pytest.mark.parametrize("direction", ["readable", "writable"])


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A pair whose first end is neither readable nor writable."""
    with socket_pair() as pair:
        fill(pair[0])
        yield pair


def wait_for(direction: str) -> Wait:
    return trio.lowlevel.wait_readable if direction == "readable" else trio.lowlevel.wait_writable


def make_ready(direction: str, other: socket.socket) -> None:
    if direction == "readable":
        other.send(b"x")
    else:
        read_available(other)


# --- what a run is on ---


@pytest.mark.ring
async def test_statistics_count_what_is_there_and_what_has_been_done(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    before = statistics()
    assert before.backend == "io_uring"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.lowlevel.wait_readable, sockets[0])
        nursery.start_soon(trio.lowlevel.wait_writable, sockets[0])
        await wait_all_tasks_blocked()
        during = statistics()
        nursery.cancel_scope.cancel()
    assert during.tasks_waiting_read == before.tasks_waiting_read + 1
    assert during.tasks_waiting_write == before.tasks_waiting_write + 1
    assert during.operations_in_flight == before.operations_in_flight + 2
    assert during.submissions >= before.submissions + 2
    assert during.enter_calls > before.enter_calls
    await wait_all_tasks_blocked()
    after = statistics()
    assert (after.tasks_waiting_read, after.tasks_waiting_write) == (
        before.tasks_waiting_read,
        before.tasks_waiting_write,
    )
    assert after.operations_in_flight == before.operations_in_flight
    assert after.completions >= during.completions + 2, "the two polls"
    assert after.connections == 0
    assert after.buffers == after.buffers_free
    assert (after.buffers > 0) == (after.tier == "full")
    assert (after.overflows, after.starvations) == (0, 0)
    with pytest.raises(AttributeError):
        after.overflows = 1  # type: ignore[misc]


@pytest.mark.full_ring
async def test_statistics_count_connections_until_the_kernel_has_let_go(pair: Pair) -> None:
    client, served = pair
    assert statistics().connections == 2
    client.abort()
    await until(lambda: statistics().connections == 1)
    await served.aclose()
    await until(lambda: statistics().connections == 0)


@pytest.mark.full_ring
@pytest.mark.parametrize("in_place", [True, False])
def test_statistics_tell_how_tasks_were_woken(in_place: bool) -> None:
    async def main() -> None:
        client, served = await open_pair()
        async with client, served, trio.open_nursery() as nursery:
            nursery.start_soon(echo_until_broken, served)
            before = statistics()
            for _ in range(10):
                await client.send(b"x")
                assert await client.receive() == b"x"
            after = statistics()
            assert (after.resumed_in_place > before.resumed_in_place) is in_place
            assert (after.rescheduled > before.rescheduled) is not in_place
            nursery.cancel_scope.cancel()

    ring_run(main, in_place=in_place)


@pytest.mark.full_ring
@pytest.mark.parametrize("in_place", [True, False])
def test_a_wait_for_readiness_goes_through_trios_scheduler(in_place: bool) -> None:
    """Programs see the same order of tasks as on Trio's own manager."""

    async def main() -> None:
        reader, writer = socket.socketpair()

        with reader, writer:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.lowlevel.wait_readable, reader)
                await wait_all_tasks_blocked()
                before = statistics()
                writer.send(b"x")
            after = statistics()
        assert after.rescheduled == before.rescheduled + 1
        assert after.resumed_in_place == before.resumed_in_place

    ring_run(main, in_place=in_place)


@pytest.mark.full_ring
def test_the_operator_decides_how_tasks_are_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAIN_TRIO_RESUME_IN_PLACE", "yes")
    with pytest.raises(ValueError, match="GAIN_TRIO_RESUME_IN_PLACE must be 0 or 1, not 'yes'"):
        gain_trio.run(trio.sleep, 0)


@pytest.mark.ring
@pytest.mark.usefixtures("on_trios_own_manager", "no_descriptor_leak")
def test_backend_info_is_about_the_run_it_is_called_in_or_one_to_come() -> None:
    async def ask() -> gain_trio.BackendInfo:
        return gain_trio.backend_info()

    outside, inside, elsewhere = gain_trio.backend_info(), gain_trio.run(ask), trio.run(ask)
    assert (outside.backend, outside.running) == ("io_uring", False)
    assert (inside.backend, inside.running) == ("io_uring", True)
    assert (elsewhere.backend, elsewhere.running, elsewhere.features) == ("trio", True, ())
    assert "gain_trio.run" in elsewhere.reason
    assert outside.features == inside.features
    assert outside.tier == inside.tier


# --- readiness ---


@both_directions
async def test_a_wait_ends_when_the_descriptor_is_ready(
    sockets: tuple[socket.socket, socket.socket], direction: str
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for(direction), sockets[0])
        await wait_all_tasks_blocked()
        assert nursery.child_tasks
        make_ready(direction, sockets[1])
    await wait_for(direction)(sockets[0].fileno())  # it is ready still, and a number will do


async def test_one_task_may_wait_in_each_direction(sockets: tuple[socket.socket, socket.socket]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.lowlevel.wait_readable, sockets[0])
        nursery.start_soon(trio.lowlevel.wait_writable, sockets[0])
        await wait_all_tasks_blocked()
        make_ready("readable", sockets[1])
        await wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        make_ready("writable", sockets[1])


@both_directions
async def test_a_second_task_is_refused(sockets: tuple[socket.socket, socket.socket], direction: str) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for(direction), sockets[0])
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await wait_for(direction)(sockets[0])
        with pytest.raises(trio.BusyResourceError):
            await wait_for(direction)(sockets[0].fileno())
        make_ready(direction, sockets[1])  # the first one was not disturbed
    await wait_for(direction)(sockets[0])


@both_directions
async def test_a_cancelled_wait_leaves_the_descriptor_free(
    sockets: tuple[socket.socket, socket.socket], direction: str
) -> None:
    for _ in range(3):
        with trio.move_on_after(0):
            await wait_for(direction)(sockets[0])
            pytest.fail("not ready")
    make_ready(direction, sockets[1])
    await wait_for(direction)(sockets[0])


async def test_closing_wakes_both_directions_and_nobody_else(sockets: tuple[socket.socket, socket.socket]) -> None:
    closed = []

    async def wait(direction: str) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await wait_for(direction)(sockets[0])
        closed.append(direction)

    duplicate = sockets[0].dup()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, "readable")
        nursery.start_soon(wait, "writable")
        nursery.start_soon(trio.lowlevel.wait_readable, duplicate)  # the same socket by another number
        await wait_all_tasks_blocked()
        trio.lowlevel.notify_closing(sockets[0])
        sockets[0].close()
        await wait_all_tasks_blocked()
        assert sorted(closed) == ["readable", "writable"]
        assert len(nursery.child_tasks) == 1
        make_ready("readable", sockets[1])
    duplicate.close()


async def test_closing_a_descriptor_that_nobody_waits_for_does_nothing() -> None:
    trio.lowlevel.notify_closing(0)
    with socket_pair() as (one, _):
        trio.lowlevel.notify_closing(one)


async def test_a_number_can_be_used_again_after_closing() -> None:
    """The poll of the old socket must neither wake nor hinder the wait for the new one."""
    for _ in range(20):
        with socket_pair() as (one, other):
            number = one.fileno()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.lowlevel.wait_readable, number)
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            other.send(b"late")


async def test_after_closing_the_other_end_sees_the_end(sockets: tuple[socket.socket, socket.socket]) -> None:
    """A poll in flight holds the socket: it has to be gone for the peer to hear of the close."""
    one, other = sockets
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await trio.lowlevel.wait_readable(one)

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        trio.lowlevel.notify_closing(one)
        one.close()
    read_available(other)
    with trio.fail_after(PATIENCE):
        await trio.lowlevel.wait_readable(other)
    assert other.recv(1) == b""


@pytest.mark.ring
@both_directions
@pytest.mark.parametrize("path", [__file__, os.path.dirname(__file__), "/dev/null"])
async def test_what_cannot_be_waited_for_is_refused_as_by_trio(direction: str, path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(PermissionError):
            await wait_for(direction)(descriptor)
        with pytest.raises(PermissionError):  # the failure has left nothing behind
            await wait_for(direction)(descriptor)
    finally:
        os.close(descriptor)
    for number in (descriptor, -1):
        with pytest.raises(OSError, match="descriptor") as caught:
            await wait_for(direction)(number)
        assert caught.value.errno == errno.EBADF


@pytest.mark.ring
async def test_a_peer_that_half_closes_does_not_make_a_socket_writable(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    one, other = sockets
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.lowlevel.wait_writable, one)
        await wait_all_tasks_blocked()
        before = statistics()
        other.shutdown(socket.SHUT_WR)
        for _ in range(20):
            await wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        after = statistics()
        assert after.completions - before.completions <= 4, "it spins"
        assert after.submissions - before.submissions <= 4, "it spins"
        read_available(other)
    one.send(b"x")


@pytest.mark.ring
async def test_a_socket_that_is_half_closed_already_is_waited_for_quietly() -> None:
    with socket_pair() as (one, other):
        fill(one)
        other.shutdown(socket.SHUT_WR)
        before = statistics()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.wait_writable, one)
            for _ in range(20):
                await wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 1
            assert statistics().completions - before.completions <= 4, "it spins"
            other.close()  # an end, and an error for the writer
        with pytest.raises(BrokenPipeError):
            one.send(b"x")


async def test_a_half_closed_socket_that_is_closed_without_notice_ends_the_wait_and_not_the_run(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    one, other = sockets
    number, duplicate = one.fileno(), one.dup()
    failures = []

    async def wait() -> None:
        try:
            await trio.lowlevel.wait_writable(number)
        except OSError as error:
            failures.append(error.errno)

    with duplicate:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            one.close()
            other.shutdown(socket.SHUT_WR)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert failures in ([], [errno.EBADF])


async def test_all_kinds_of_things_can_be_waited_for() -> None:
    reader, writer = os.pipe()
    event = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        await trio.lowlevel.wait_writable(writer)
        os.write(writer, b"x")
        await trio.lowlevel.wait_readable(reader)
        os.read(reader, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.wait_readable, reader)
            nursery.start_soon(trio.lowlevel.wait_readable, event)
            await wait_all_tasks_blocked()
            os.eventfd_write(event, 1)
            os.close(writer)  # a hang-up
    finally:
        os.close(reader)
        os.close(event)


async def test_a_process_can_be_waited_for() -> None:
    finished = await trio.run_process(["/bin/sh", "-c", "read x; echo $x"], stdin=b"hello\n", capture_stdout=True)
    assert finished.stdout == b"hello\n"


# --- time, idleness and housekeeping ---


@pytest.mark.parametrize("submitted", [True, False])
def test_the_clock_jumps_although_polls_are_pending_and_cancelled_ones_are_acknowledged(submitted: bool) -> None:
    async def main() -> None:
        with contextlib.ExitStack() as stack:
            pairs = [stack.enter_context(socket_pair()) for _ in range(100)]
            async with trio.open_nursery() as nursery:
                for one, _ in pairs:
                    nursery.start_soon(trio.lowlevel.wait_readable, one)
                if submitted:
                    await wait_all_tasks_blocked()
                else:
                    await trio.lowlevel.checkpoint()
                start = trio.current_time()
                await trio.sleep(10_000)  # jumps with 100 polls pending
                nursery.cancel_scope.cancel()
            await trio.sleep(10_000)  # and with 200 completions on their way
            assert trio.current_time() - start == pytest.approx(20_000)

    started = time.monotonic()
    gain_trio.run(sleep_beside_readers, clock=MockClock(autojump_threshold=0))
    assert time.monotonic() - started < PATIENCE


def test_the_clock_does_not_jump_over_what_is_on_its_way() -> None:
    """Between one piece of a transfer and the next nothing has happened that a task would see, but nothing is idle."""

    async def main() -> None:
        peer, served = await open_trio_pair()
        start = trio.current_time()
        for _ in range(16):
            await served.send(bytes(5000))  # a piece each
        await served.aclose()
        assert trio.current_time() == start, "aclose() was done when its bound was over, not when all was sent"
        assert len(await receive_all(peer)) == 16 * 5000
        await peer.aclose()

    gain_trio.run(main, clock=MockClock(autojump_threshold=0))


@pytest.mark.full_ring
def test_the_clock_does_not_jump_over_receives_that_starve() -> None:
    async def main() -> None:
        pairs = [await open_pair() for _ in range(16)]
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            for client, served in pairs:
                await client.send(pattern(3000))
                nursery.start_soon(receive_exactly, served, 3000)
        assert trio.current_time() == start
        assert statistics().starvations > 0
        for client, served in pairs:
            client.abort()
            served.abort()

    ring = RingOptions(buffer_count=2, buffer_size=64)
    gain_trio.run(main, clock=MockClock(autojump_threshold=0), ring=ring)


@pytest.mark.ring
async def test_housekeeping_is_no_news(sockets: tuple[socket.socket, socket.socket]) -> None:
    """get_events() is falsy if and only if the time is over, as Trio's run loop requires."""
    manager = current_io_manager()
    assert isinstance(manager, UringIOManager)
    await wait_all_tasks_blocked()
    for _ in range(10):
        operation = manager.ring.poll(sockets[0].fileno(), PollEvent.IN, print)
        assert not manager.get_events(0)
        operation.cancel(abandon=True)
        assert not manager.get_events(0)
        before = statistics().operations_in_flight
    assert statistics().operations_in_flight == before, "its end and the cancel's were reaped"
    seen: list[int] = []
    manager.ring.nop(lambda result, _flags: seen.append(result))
    assert manager.get_events(10)
    manager.process_events([])
    assert seen == [0]
    assert not manager.get_events(0)
    manager.process_events([])


@pytest.mark.ring
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_wait_that_ends_with_its_manager_is_let_go_once(
    sockets: tuple[socket.socket, socket.socket], when: str
) -> None:
    """Closing reaps operations with and without a waiting task, cancelled before or after."""
    manager = UringIOManager()
    manager._bind()
    polls = [manager.proactor.poll({}, sockets[0].fileno(), PollEvent.IN, False)]

    async def wait() -> None:
        await polls[0]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert not manager.get_events(0)  # submits
        assert manager.ring.statistics().operations_in_flight == 2, "and the manager's own"
        if when == "after":
            manager.close()
        nursery.cancel_scope.cancel()
    manager.close()
    del wait, nursery
    gc.collect()
    ours_alone = [object()]  # in lists, both: a call with a variable may take a reference of its own, or none
    assert sys.getrefcount(polls[0]) == sys.getrefcount(ours_alone[0])


async def test_a_sleep_ends_in_time_while_nothing_happens() -> None:
    start = time.monotonic()
    await trio.sleep(0.01)
    assert time.monotonic() - start >= 0.009


@pytest.mark.parametrize("in_place", [True, False])
def test_a_busy_connection_starves_nobody(in_place: bool) -> None:
    """Its tasks may be stepped again and again without Trio's loop; the others must have their turn all the same."""

    async def main() -> None:
        client, served = await open_pair()
        turns = 0

        async def ping() -> None:
            nonlocal turns
            while True:
                await client.send(b"x")
                await client.receive()
                turns += 1

        with socket_pair() as (one, other):
            async with client, served, trio.open_nursery() as nursery:
                nursery.start_soon(echo_until_broken, served)
                nursery.start_soon(ping)
                await until(lambda: turns > 100)
                await trio.sleep(0.01)  # time passes
                await trio.to_thread.run_sync(time.sleep, 0)  # threads are heard
                with trio.move_on_after(0.01) as scope:  # deadlines are met
                    await trio.sleep_forever()
                assert scope.cancelled_caught
                async with trio.open_nursery() as others:  # readiness is noticed
                    others.start_soon(trio.lowlevel.wait_readable, one)
                    await trio.to_thread.run_sync(other.send, b"x")
                before = turns
                await until(lambda: turns > before + 100)
                nursery.cancel_scope.cancel()

    ring_run(main, in_place=in_place)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_deadline_that_a_busy_task_sets_is_met(in_place: bool) -> None:
    """The task was resumed without Trio's loop, which is still waiting for as long as was right before."""

    async def main() -> None:
        client, served = await open_pair()
        async with client, served, trio.open_nursery() as nursery:
            nursery.start_soon(echo_until_broken, served)
            for _ in range(100):
                await client.send(b"x")
                assert await client.receive() == b"x"
            with trio.move_on_after(0.01) as scope:
                await client.receive()
            assert scope.cancelled_caught
            nursery.cancel_scope.cancel()

    ring_run(main, in_place=in_place)


# --- wake-ups ---


async def test_a_thread_can_wake_the_run() -> None:
    token = trio.lowlevel.current_trio_token()
    woken = trio.Event()
    thread = threading.Thread(target=token.run_sync_soon, args=(woken.set,))
    await wait_all_tasks_blocked()
    thread.start()
    with trio.fail_after(PATIENCE):
        await woken.wait()
    thread.join()


@pytest.mark.ring
async def test_the_manager_can_be_woken_any_number_of_times_from_any_thread() -> None:
    manager = current_io_manager()
    assert isinstance(manager, UringIOManager)
    before = statistics().operations_in_flight
    for _ in range(20):
        for _ in range(10):
            manager.force_wakeup()
        await trio.to_thread.run_sync(manager.force_wakeup)
        await trio.lowlevel.checkpoint()
    await wait_all_tasks_blocked()
    assert statistics().operations_in_flight == before
    await trio.lowlevel.checkpoint()


async def test_work_goes_to_threads_and_back() -> None:
    async def back(number: int) -> int:
        await trio.lowlevel.checkpoint()
        return number + 1

    def there(number: int) -> int:
        return trio.from_thread.run(back, number) + trio.from_thread.run_sync(lambda: 1)

    results = []

    async def one(number: int) -> None:
        results.append(await trio.to_thread.run_sync(there, number))

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(one, number)
    assert sorted(results) == [number + 2 for number in range(50)]


# --- runs ---


@pytest.mark.usefixtures("no_descriptor_leak")
def test_a_run_returns_and_raises_what_its_function_does() -> None:
    async def returns(number: int) -> int:
        await trio.lowlevel.checkpoint()
        return number

    async def fails() -> NoReturn:
        client, _served = await open_pair()
        with contextlib.suppress(ValueError):
            await client.send(b"x")
        client.abort()
        _served.abort()
        raise LookupError("x")

    assert gain_trio.run(returns, 7) == 7
    with pytest.raises(LookupError, match="x"):
        gain_trio.run(fails)
    with pytest.raises(SystemExit):
        gain_trio.run(exits)


async def exits() -> NoReturn:
    raise SystemExit


@pytest.mark.usefixtures("no_descriptor_leak")
def test_a_run_passes_clock_and_instruments_on(backend: gain_trio.BackendInfo) -> None:
    class Watching(trio.abc.Instrument):
        def __init__(self) -> None:
            self.calls: list[str] = []

        def before_run(self) -> None:
            self.calls.append("before")

        def after_run(self) -> None:
            self.calls.append("after")

    async def main() -> float:
        assert gain_trio.backend_info().backend == backend.backend
        return trio.current_time()

    instrument = Watching()
    assert gain_trio.run(main, clock=MockClock(), instruments=[instrument]) == 0
    assert instrument.calls == ["before", "after"]


@pytest.mark.usefixtures("no_descriptor_leak")
def test_a_run_inside_a_run_is_refused_by_trio() -> None:
    async def main() -> None:
        before = open_descriptors()
        with pytest.raises(RuntimeError, match="inside"):
            gain_trio.run(trio.sleep, 0)
        assert open_descriptors() == before
        await trio.lowlevel.checkpoint()

    gain_trio.run(main)


@pytest.mark.usefixtures("no_descriptor_leak")
def test_what_is_no_async_function_is_refused_by_trio() -> None:
    with pytest.raises(TypeError):
        gain_trio.run(lambda: None)  # type: ignore[arg-type, return-value]


@pytest.mark.usefixtures("no_descriptor_leak")
def test_connections_that_are_left_open_end_with_their_run() -> None:
    async def main() -> list[Any]:
        client, served = await open_pair()
        return [client, served, socket.socket(fileno=os.dup(client.fileno()))]

    client, served, peer = gain_trio.run(main)
    assert client.fileno() == served.fileno() == -1
    with peer:
        peer.settimeout(PATIENCE)
        assert peer.recv(1) == b""

    async def later() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await client.receive()
        await served.aclose()

    gain_trio.run(later)


@pytest.mark.usefixtures("no_descriptor_leak")
def test_run_after_run_costs_nothing() -> None:
    async def main() -> None:
        client, served = await open_pair()
        async with client, served:
            await client.send(b"x")
            assert await served.receive() == b"x"

    def runs(times: int) -> None:
        for _ in range(times):
            gain_trio.run(main)

    runs(20)
    gc.collect()
    before, objects = mapped_bytes(), len(gc.get_objects())
    runs(50)
    gc.collect()
    assert len(gc.get_objects()) - objects < 50, "less than an object a run"
    assert mapped_bytes() - before < 50 << 20, "50 rings and their buffers would be more than 100 MiB"


# --- installing ---


async def ask() -> gain_trio.BackendInfo:
    return gain_trio.backend_info()


@pytest.mark.ring
@pytest.mark.usefixtures("on_trios_own_manager", "no_descriptor_leak")
def test_installed_every_run_of_trio_is_on_the_ring_until_it_is_uninstalled() -> None:
    trios_own = trio._core._run.TheIOManager
    assert trio.run(ask).backend == "trio"
    gain_trio.install()
    assert trio.run(ask).backend == "io_uring"
    gain_trio.uninstall()
    assert trio.run(ask).backend == "trio"
    assert trio._core._run.TheIOManager is trios_own


@pytest.mark.full_ring
@pytest.mark.usefixtures("on_trios_own_manager", "no_descriptor_leak")
def test_installing_again_changes_the_options_and_uninstalling_once_is_enough() -> None:
    async def buffers() -> int:
        return statistics().buffers

    gain_trio.install(RingOptions(buffer_count=2))
    assert trio.run(buffers) == 2
    gain_trio.install(RingOptions(buffer_count=8))
    assert trio.run(buffers) == 8
    gain_trio.install()
    default = trio.run(buffers)
    gain_trio.uninstall()
    assert trio.run(ask).backend == "trio"
    gain_trio.uninstall()
    assert trio.run(ask).backend == "trio"
    gain_trio.install()
    assert trio.run(buffers) == default
    gain_trio.uninstall()


@pytest.mark.ring
@pytest.mark.usefixtures("on_trios_own_manager", "no_descriptor_leak")
def test_without_a_ring_installing_changes_nothing() -> None:
    with descriptor_limit(next_descriptor()), pytest.raises(RingUnavailable, match="EMFILE"):
        gain_trio.install(backend="io_uring")
    assert trio.run(ask).backend == "trio"


# --- tier poll ---

on_tier_poll = pytest.mark.parametrize(
    "unwanted",
    [Feature.DEFER_TASKRUN, Feature.DEFER_TASKRUN | Feature.TASKRUN_FLAG, Feature(sum(Feature))],
    ids=["cooperative", "interrupting", "bare"],
)
"""The ways in which a ring without deferred work comes to its completions."""


async def wait_for_much_and_little() -> None:
    """Readiness, cancellation and closing, with the other end in this thread and in another."""
    assert statistics().tier == "poll"
    await wait_all_tasks_blocked()
    before = statistics().operations_in_flight
    with socket_pair() as (one, other), socket_pair() as (idle, _), trio.fail_after(PATIENCE):
        for number in range(20):
            thread = threading.Thread(target=other.send, args=(bytes([number]),))
            thread.start()
            await trio.lowlevel.wait_readable(one)
            assert one.recv(1) == bytes([number])
            thread.join()
        fill(one)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.wait_writable, one)
            await wait_all_tasks_blocked()
            read_available(other)
        with trio.move_on_after(0.001) as scope:
            await trio.lowlevel.wait_readable(idle)
        assert scope.cancelled_caught
        for turn in range(50):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.lowlevel.wait_readable, idle)
                nursery.start_soon(trio.lowlevel.wait_writable, idle)  # is ready at once, so its cancel comes too late
                if turn % 2:
                    await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            closed: list[type[BaseException]] = []

            async def wait_and_see() -> None:
                try:
                    await trio.lowlevel.wait_readable(idle)
                except trio.ClosedResourceError as error:
                    closed.append(type(error))

            nursery.start_soon(wait_and_see)
            await wait_all_tasks_blocked()
            trio.lowlevel.notify_closing(idle)
        assert closed == [trio.ClosedResourceError]
    manager = current_io_manager()
    assert isinstance(manager, UringIOManager)
    await wait_all_tasks_blocked()
    assert manager.ring.statistics().stale == 0
    assert statistics().operations_in_flight == before


@pytest.mark.ring
@on_tier_poll
@pytest.mark.usefixtures("no_descriptor_leak")
def test_a_ring_of_tier_poll_waits_for_readiness(unwanted: Feature) -> None:
    gain_trio.run(wait_for_much_and_little, backend="io_uring", ring=RingOptions(unwanted=unwanted))


@pytest.mark.ring
@on_tier_poll
@pytest.mark.usefixtures("no_descriptor_leak")
def test_a_guest_run_is_woken_on_a_ring_of_tier_poll(unwanted: Feature) -> None:
    """The wait is in a worker thread, and the work that makes completions is the host thread's."""
    host_run(wait_for_much_and_little, ring=RingOptions(unwanted=unwanted))


@pytest.mark.ring
@on_tier_poll
def test_the_clock_jumps_on_a_ring_of_tier_poll(unwanted: Feature) -> None:
    started = time.monotonic()
    ring = RingOptions(unwanted=unwanted)
    gain_trio.run(sleep_beside_readers, clock=MockClock(autojump_threshold=0), ring=ring)
    host_run(sleep_beside_readers, clock=MockClock(autojump_threshold=0), ring=ring)
    assert time.monotonic() - started < PATIENCE


@pytest.mark.ring
@pytest.mark.parametrize("unwanted", [Feature.SUBMIT_ALL, Feature(sum(Feature)) & ~Feature.MULTISHOT_ACCEPT])
def test_a_look_submits_everything_although_the_kernel_stops_at_what_it_refuses(unwanted: Feature) -> None:
    """get_events(0) must not come back empty with news left in the queue: the clock would jump over it."""

    async def main() -> None:
        manager = current_io_manager()
        assert isinstance(manager, UringIOManager)
        await wait_all_tasks_blocked()
        before = statistics().operations_in_flight
        ring, refused, done = manager.ring, [], []
        for _ in range(3):
            result = uring.lib.gt_operation_accept(ring._ring, 0, 0x40000000, ring._key)  # flags that there are not
            ring._start(result, lambda result, _flags: refused.append(result))
            ring.nop(lambda result, _flags: done.append(result))
        start = trio.current_time()
        await trio.sleep(1)
        assert trio.current_time() == start + 1
        assert (refused, done) == ([-errno.EINVAL] * 3, [0] * 3)
        assert statistics().operations_in_flight == before

    gain_trio.run(main, clock=MockClock(autojump_threshold=0), ring=RingOptions(unwanted=unwanted))

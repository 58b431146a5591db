"""Cancellation, deadlines, clocks and Ctrl-C, for tasks that are resumed in place."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
import traceback
from collections.abc import Generator
from typing import Any

import pytest
import trio
from support.pairs import PATIENCE, Pair, open_pair, until_queued
from support.two_ways import ask_ten, echo_ten, ping_pong, run_with_pair, woken_by
from trio.testing import MockClock, wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

pytestmark = [
    pytest.mark.connections,
    pytest.mark.features,
    pytest.mark.full_ring,
]  # a task that waits for a socket is never resumed in place


# --- cancellation ---


def test_a_cancellation_that_is_pending(resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        await woken_by(client, served)
        await client.send(b"kept")
        await until_queued(served, 4)
        for call in (
            served.receive,
            lambda: served.send(b"x"),
            served.flush,
            lambda: served.receive_into(bytearray(1)),
        ):
            with trio.CancelScope() as scope:
                scope.cancel()
                with pytest.raises(trio.Cancelled):
                    await call()
            assert not scope.cancelled_caught
        assert served.outbound_buffered == 0
        assert await served.receive() == b"kept"

    run_with_pair(body, resume_in_place)


def test_a_cancellation_that_is_shielded_from(resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            with trio.CancelScope(shield=True):
                await woken_by(client, served)
                await served.send(b"y")
            with pytest.raises(trio.Cancelled):
                await served.receive()
        assert await client.receive() == b"y"

    run_with_pair(body, resume_in_place)


def test_a_cancellation_while_it_waits(resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        await woken_by(client, served)
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:

                async def cancel() -> None:
                    await wait_all_tasks_blocked()
                    scope.cancel()

                nursery.start_soon(cancel)
                await served.receive()
        assert scope.cancelled_caught
        await woken_by(client, served, b"goes on")

    run_with_pair(body, resume_in_place)


def test_a_task_cancels_itself_after_it_was_woken(resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        with trio.CancelScope() as scope:
            await woken_by(client, served)
            scope.cancel()
            await served.receive()
        assert scope.cancelled_caught
        with trio.CancelScope() as scope:
            await woken_by(client, served)
            scope.cancel()
            await trio.sleep_forever()
        assert scope.cancelled_caught

    run_with_pair(body, resume_in_place)


def test_a_neighbour_of_the_same_tick_cancels(resume_in_place: bool) -> None:
    """Two connections have news.  The first task woken cancels the second, which has its bytes or leaves them queued."""

    async def main() -> None:
        pairs = [await open_pair() for _ in range(2)]
        scopes = [trio.CancelScope(), trio.CancelScope()]
        received: dict[int, bytes] = {}

        async def receive(number: int) -> None:
            with scopes[number]:
                received[number] = await pairs[number][1].receive()
                scopes[1 - number].cancel()

        for _ in range(20):
            received.clear()
            scopes = [trio.CancelScope(), trio.CancelScope()]
            async with trio.open_nursery() as nursery:
                for number in range(2):
                    nursery.start_soon(receive, number)
                await wait_all_tasks_blocked()
                for client, _served in pairs:
                    await client.send(b"news")
            assert received
            for number, (_client, served) in enumerate(pairs):
                if number in received:
                    assert received[number] == b"news"
                    assert served.inbound_buffered == 0
                else:
                    assert scopes[number].cancelled_caught
                    await until_queued(served, 4)
                    assert served.next() == b"news"
            if resume_in_place:
                assert len(received) == 1, "the second one's cancellation came before its step"
        for connection in (connection for pair in pairs for connection in pair):
            connection.abort()

    gain_trio.run(main, resume_in_place=resume_in_place)


def test_a_neighbour_of_the_same_tick_closes(resume_in_place: bool) -> None:
    """The task gets ClosedResourceError or its bytes."""

    async def main() -> None:
        for _ in range(20):
            pairs = [await open_pair() for _ in range(2)]
            outcomes: list[object] = []

            async def receive(number: int, pairs: list[Pair], outcomes: list[object]) -> None:
                try:
                    outcomes.append(await pairs[number][1].receive())
                except trio.ClosedResourceError as error:
                    outcomes.append(type(error))
                else:
                    pairs[1 - number][1].abort()

            async with trio.open_nursery() as nursery:
                for number in range(2):
                    nursery.start_soon(receive, number, pairs, outcomes)
                await wait_all_tasks_blocked()
                for client, _served in pairs:
                    await client.send(b"news")
            # A wake-up carries no bytes: on a closed connection there are none, however its task is woken.
            assert outcomes == [b"news", trio.ClosedResourceError]
            for connection in (connection for pair in pairs for connection in pair):
                connection.abort()

    gain_trio.run(main, resume_in_place=resume_in_place)


# --- deadlines ---


def test_a_task_is_cancelled_whose_call_the_program_has_ended(resume_in_place: bool) -> None:
    """What was parked by that call is nothing to the call that another task waits in by then."""
    got: list[bytes] = []
    calls: list[Any] = []
    scope = trio.CancelScope()

    async def waits_in_vain(served: Connection) -> None:
        calls.append(served.receive())
        with scope, pytest.raises(RuntimeError, match="cannot reuse"):
            await calls[0]

    async def waits(client: Connection) -> None:
        got.append(await client.receive())

    async def body(client: Connection, served: Connection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waits_in_vain, served)
            await wait_all_tasks_blocked()
            calls[0].close()
            nursery.start_soon(waits, client)
            await wait_all_tasks_blocked()
            scope.cancel()
            await wait_all_tasks_blocked()
            await served.send(b"x")

    run_with_pair(body, resume_in_place)
    assert got == [b"x"]


def test_a_deadline_while_it_waits(resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        await woken_by(client, served)
        with trio.move_on_after(0.01) as scope:
            await served.receive()
        assert scope.cancelled_caught
        with pytest.raises(trio.TooSlowError), trio.fail_after(0.01):
            await served.receive()
        await woken_by(client, served)

    run_with_pair(body, resume_in_place)


def test_a_deadline_set_by_a_woken_task(resume_in_place: bool) -> None:
    """Its own, of another task, and of a sleep: whatever it does, the wait that it was woken from knows."""

    async def body(client: Connection, served: Connection) -> None:
        scope = trio.CancelScope()
        woken = trio.Event()

        async def sleep() -> None:
            with scope:
                await trio.sleep_forever()
            woken.set()

        async def handler() -> None:
            await served.receive()
            scope.deadline = trio.current_time() + 0.01  # of another task, and the earliest of all
            await served.receive()
            with trio.move_on_after(0.01) as own:
                await served.receive()
            assert own.cancelled_caught
            await served.send(b"x")
            await served.receive()
            await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sleep)
            nursery.start_soon(handler)
            await wait_all_tasks_blocked()
            await client.send(b"x")
            await woken.wait()  # nothing but the deadline ends this
            await client.send(b"x")
            assert await client.receive() == b"x"
            await client.send(b"x")

    run_with_pair(body, resume_in_place)


def test_a_sleep_right_after_a_wake_up(resume_in_place: bool) -> None:
    """No other deadline, no other traffic."""

    async def body(client: Connection, served: Connection) -> None:
        for _ in range(3):
            await client.send(b"x")
            await served.receive()
            await trio.sleep(0.001)

    run_with_pair(body, resume_in_place)


def test_a_deadline_moved_by_a_woken_task(resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        scope = trio.CancelScope(deadline=trio.current_time() + 3600)

        async def move() -> None:
            await served.receive()
            scope.deadline = trio.current_time() + 0.01

        async with trio.open_nursery() as nursery:
            nursery.start_soon(move)
            await wait_all_tasks_blocked()
            await client.send(b"x")
            with scope:
                await client.receive()
            assert scope.cancelled_caught

    run_with_pair(body, resume_in_place)


def test_a_busy_connection_starves_nobody(resume_in_place: bool) -> None:
    """Two ends that answer each other for ever; deadlines, sleeps, threads and new tasks go on beside them."""

    async def body(client: Connection, served: Connection) -> None:
        exchanged = 0

        async def answer(connection: Connection) -> None:
            nonlocal exchanged
            async for data in connection:
                exchanged += 1
                await connection.send(data)

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer, client)
                nursery.start_soon(answer, served)
                await client.send(b"ball")
                for _ in range(5):
                    before = exchanged
                    await trio.sleep(0.005)
                    with trio.move_on_after(0.005) as scope:
                        await trio.sleep_forever()
                    assert scope.cancelled_caught
                    await trio.to_thread.run_sync(lambda: None)
                    event = trio.Event()
                    trio.lowlevel.current_trio_token().run_sync_soon(event.set)
                    await event.wait()
                    assert exchanged > before
                    for _ in range(10):
                        await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()

    run_with_pair(body, resume_in_place)


def test_many_deadlines_set_and_left_by_a_busy_connection(resume_in_place: bool) -> None:
    """Each receive has its scope, as programs do; the earliest deadline of all is still met."""

    async def body(client: Connection, served: Connection) -> None:
        async def answer(connection: Connection) -> None:
            while True:
                with trio.fail_after(3600):
                    data = await connection.receive()
                await connection.send(data)

        with trio.move_on_after(0.1) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer, client)
                nursery.start_soon(answer, served)
                await client.send(b"ball")
        assert scope.cancelled_caught
        heap: Any = trio.lowlevel.current_statistics()
        assert heap.seconds_to_next_deadline > 0

    run_with_pair(body, resume_in_place)


# --- clocks and idleness ---


def test_wait_all_tasks_blocked_after_traffic(resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo_ten, served)
            nursery.start_soon(ask_ten, client)
            await wait_all_tasks_blocked()
        await client.send(b"x")
        with trio.fail_after(PATIENCE):
            await wait_all_tasks_blocked(0.01)
        assert served.inbound_buffered == 1

    run_with_pair(body, resume_in_place)


def test_a_woken_task_waits_for_idleness(resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        for _ in range(3):
            await woken_by(client, served)
            await wait_all_tasks_blocked()  # no scope here: a deadline would end the wait as well

    run_with_pair(body, resume_in_place)


def test_the_clock_jumps_when_only_connections_wait(resume_in_place: bool) -> None:
    clock = MockClock(autojump_threshold=0)

    async def body(client: Connection, served: Connection) -> None:
        await ping_pong(client, served, 10)
        with trio.move_on_after(1000) as scope:
            await served.receive()
        assert scope.cancelled_caught
        assert trio.current_time() >= 1000
        before = trio.current_time()
        await woken_by(client, served)
        await trio.sleep(500)
        assert trio.current_time() - before == 500

    run_with_pair(body, resume_in_place, clock=clock)


def test_a_woken_task_moves_the_clock(resume_in_place: bool) -> None:
    """By hand: what is due then is delivered then, though nothing else happens."""
    clock = MockClock()

    async def body(client: Connection, served: Connection) -> None:
        async def jump() -> None:
            await served.receive()
            clock.jump(10)
            await served.receive()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(jump)
            await wait_all_tasks_blocked()
            await client.send(b"x")
            await trio.sleep(5)
            assert trio.current_time() == 10
            nursery.cancel_scope.cancel()

    run_with_pair(body, resume_in_place, clock=clock)


def test_a_woken_task_sets_the_clock_going(resume_in_place: bool) -> None:
    clock = MockClock()

    async def body(client: Connection, served: Connection) -> None:
        async def start() -> None:
            await served.receive()
            clock.autojump_threshold = 0
            await served.receive()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(start)
            await wait_all_tasks_blocked()
            await client.send(b"x")
            await trio.sleep(5)
            nursery.cancel_scope.cancel()

    run_with_pair(body, resume_in_place, clock=clock)


# --- KeyboardInterrupt ---


def interrupted(error: BaseException) -> bool:
    """Whether it is a KeyboardInterrupt, or groups of nothing else."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(interrupted, error.exceptions))
    return isinstance(error, KeyboardInterrupt)


@pytest.fixture
def default_interrupts() -> Generator[None, None, None]:
    """Ctrl-C as Python has it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_in_a_woken_task(default_interrupts: None, resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        await woken_by(client, served)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        await woken_by(client, served)
        raise_in_frame()

    def raise_in_frame() -> None:
        signal.raise_signal(signal.SIGINT)
        pytest.fail("not reached")

    with pytest.raises(BaseException) as caught:
        run_with_pair(body, resume_in_place)
    assert interrupted(caught.value)
    assert "raise_in_frame" in "".join(traceback.format_exception(caught.value))


def test_an_interrupt_in_a_protected_frame(default_interrupts: None, resume_in_place: bool) -> None:
    """The interrupt is pending then, and reaches the main task at its next checkpoint: this receive(), or a child's."""

    @trio.lowlevel.enable_ki_protection
    def raise_protected() -> None:
        signal.raise_signal(signal.SIGINT)

    async def body(client: Connection, served: Connection) -> None:
        await client.send(b"kept")
        await until_queued(served, 4)
        raise_protected()
        with pytest.raises(KeyboardInterrupt):
            await served.receive()
        assert served.peek() == b"kept"
        assert await served.receive() == b"kept"

        await woken_by(client, served)
        raise_protected()
        with pytest.raises(KeyboardInterrupt):
            await served.receive()

        await woken_by(client, served)
        raise_protected()
        with pytest.raises(KeyboardInterrupt):
            await trio.sleep_forever()

    run_with_pair(body, resume_in_place)


def test_an_interrupt_during_a_wait_reaches_the_main_task(default_interrupts: None, resume_in_place: bool) -> None:
    """And not the task that the wait wakes, whose step is the next code of Python's."""
    libc = ctypes.PyDLL(None)  # its functions keep the GIL, so the run has its event, and goes on when all is done
    waits = threading.Event()

    def wake_and_interrupt(descriptor: int) -> None:
        waits.wait()
        libc.write(descriptor, b"x", 1)
        libc["raise"](signal.SIGINT)

    async def body(client: Connection, served: Connection) -> None:
        received = []

        async def child() -> None:
            received.append(await served.receive())

        thread = threading.Thread(target=wake_and_interrupt, args=[client.fileno()])
        thread.start()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(child)
                await wait_all_tasks_blocked()
                waits.set()
                with pytest.raises(KeyboardInterrupt):
                    await trio.sleep_forever()
        finally:
            thread.join()
        assert received == [b"x"]

    run_with_pair(body, resume_in_place)


def test_an_interrupt_by_a_woken_child_reaches_the_main_task(default_interrupts: None, resume_in_place: bool) -> None:
    @trio.lowlevel.enable_ki_protection
    def raise_protected() -> None:
        signal.raise_signal(signal.SIGINT)

    async def body(client: Connection, served: Connection) -> None:
        async def child() -> None:
            await served.receive()
            raise_protected()
            await served.receive()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
            await wait_all_tasks_blocked()
            await client.send(b"x")
            with pytest.raises(KeyboardInterrupt):
                await client.receive()
            nursery.cancel_scope.cancel()

    run_with_pair(body, resume_in_place)


def test_an_interrupt_while_everything_waits(default_interrupts: None, resume_in_place: bool) -> None:
    def in_a_thread() -> None:
        trio.from_thread.run(wait_all_tasks_blocked)  # from here on only Trio's own code runs in the main thread
        signal.raise_signal(signal.SIGINT)

    async def body(client: Connection, served: Connection) -> None:
        await woken_by(client, served)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, in_a_thread)
            with pytest.raises(KeyboardInterrupt):
                await served.receive()
        await woken_by(client, served)

    run_with_pair(body, resume_in_place)

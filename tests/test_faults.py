"""Faults that a test must build, because a client cannot provoke them: tiny rings and pools, limits, resets, interrupts.

Whatever happens, no byte is lost or out of place, nothing spins, nothing leaks, and it is over when it is over.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import re
import resource
import signal
import socket
import sys
import types
import warnings
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio
import trio.testing
from support.descriptors import descriptor_limit, next_descriptor, open_descriptors
from support.pairs import (
    MEBIBYTE,
    PATIENCE,
    Pair,
    clog,
    open_pair,
    open_trio_pair,
    pattern,
    receive_all,
    receive_exactly,
    until,
    until_queued,
)
from support.runs import WaitCounter, bounded, ring_run, statistics, wait_released
from support.servers import echo_until_broken
from support.sockets import reset, socket_pair
from trio.testing import MockClock, wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection, Feature, Marks, Server
from gain_trio._server import _log_throttle

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

pytestmark = [pytest.mark.connections, pytest.mark.features, pytest.mark.usefixtures("no_descriptor_leak")]


@contextlib.asynccontextmanager
async def served_echo() -> AsyncIterator[Server]:
    """A server that echoes, for the length of the block."""
    async with trio.open_nursery() as nursery:
        server: Server = await nursery.start(gain_trio.serve, echo_until_broken, "tcp://127.0.0.1:0")
        yield server
        nursery.cancel_scope.cancel()


def url(server: Server) -> str:
    host, port, *_ = server.addresses[0]
    return f"tcp://{host}:{port}"


async def echo_over(connections: int, turns: int, length: int) -> None:
    """Echo over a number of connections at once, each with its own data, which must come back whole and in order."""

    async def client(address: str, index: int) -> None:
        message = pattern(length + index)[index:]
        async with await gain_trio.connect(address) as connection:
            for _ in range(turns):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(connection.send, message)
                    assert await receive_exactly(connection, length) == message

    async with served_echo() as server, trio.open_nursery() as nursery:
        for index in range(connections):
            nursery.start_soon(client, url(server), index)


# --- starvation, overflow, full queues ---


@pytest.mark.full_ring
@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("unwanted", [Feature(0), Feature.BUFFER_INCREMENT], ids=["incremental", "plain"])
def test_two_buffers_serve_many_connections_at_once(size: int, unwanted: Feature) -> None:
    async def main() -> None:
        await echo_over(connections=40, turns=3, length=20_000)
        assert statistics().starvations > 0
        assert statistics().buffers == 2

    ring_run(main, buffer_count=2, buffer_size=size, unwanted=unwanted)


@pytest.mark.full_ring
@pytest.mark.parametrize("in_place", [True, False])
def test_a_completion_queue_of_eight_loses_nothing(in_place: bool) -> None:
    async def main() -> None:
        await echo_over(connections=64, turns=5, length=2_000)
        assert statistics().overflows > 0

    ring_run(main, in_place=in_place, entries=8, completion_entries=8)


@pytest.mark.full_ring
def test_everything_tiny_at_once() -> None:
    async def main() -> None:
        await echo_over(connections=30, turns=2, length=5_000)
        assert statistics().starvations > 0

    ring_run(main, entries=1, completion_entries=1, buffer_count=1, buffer_size=100)


@pytest.mark.ring
def test_thousands_of_waits_are_cancelled_at_once_through_a_queue_of_four() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = 3_000 if most == resource.RLIM_INFINITY else min(3_000, most - 100)

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            one, other = stack.enter_context(socket_pair())
            await wait_all_tasks_blocked()
            base = statistics().operations_in_flight
            numbers = [stack.enter_context(one.dup()) for _ in range(count)]  # one socket by many numbers
            async with trio.open_nursery() as nursery:
                for number in numbers:
                    nursery.start_soon(trio.lowlevel.wait_readable, number)
                await wait_all_tasks_blocked()
                assert statistics().operations_in_flight == base + count
                nursery.cancel_scope.cancel()
            assert statistics().tasks_waiting_read == 1, "Trio's own"
            await until(lambda: statistics().operations_in_flight == base)
            other.send(b"x")
            await trio.lowlevel.wait_readable(numbers[0])

    with descriptor_limit(count + 100):
        ring_run(main, entries=4, completion_entries=4)


def test_hundreds_of_receives_are_cancelled_and_closed_at_once_through_a_queue_of_four() -> None:
    async def main() -> None:
        async with served_echo() as server:
            clients = [await gain_trio.connect(url(server)) for _ in range(200)]
            for _ in range(5):
                async with trio.open_nursery() as nursery:
                    for client in clients:
                        nursery.start_soon(client.receive)
                    await wait_all_tasks_blocked()
                    nursery.cancel_scope.cancel()
            for client in clients:  # the cancelled calls have left them in working order
                await client.send(b"x")
            for client in clients:
                assert await client.receive() == b"x"
            for client in clients:
                client.abort()
            await wait_released()

    ring_run(main, entries=4, completion_entries=4)


@pytest.mark.full_ring
def test_a_full_table_of_connections_is_said_and_waited_out(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with served_echo() as server:
            pairs = [await gain_trio.connect(url(server)) for _ in range(2)]
            await until(lambda: server.active_connections == 2)
            with pytest.raises(OSError, match="max_slots") as caught:
                await gain_trio.connect(url(server))
            assert caught.value.errno == errno.ENOSPC
            plain = await trio.open_tcp_stream(*server.addresses[0])  # accepted by the kernel, not by the server
            await plain.send_all(b"x")
            await until(lambda: "max_slots" in caplog.text)
            assert await trio.to_thread.run_sync(lambda: 1) == 1, "the run itself goes on"
            pairs[0].abort()
            assert await plain.receive_some() == b"x", "the connection that had to wait is served"
            await plain.aclose()
            pairs[1].abort()

    ring_run(main, max_slots=4)


# --- descriptors ---


def test_without_descriptors_a_server_says_so_once_waits_and_recovers(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with served_echo() as server:
            clients = [socket.socket() for _ in range(2)]
            spare = socket.socket()
            with contextlib.ExitStack() as stack:
                for client in [*clients, spare]:
                    stack.enter_context(client)
                    client.setblocking(False)
                with descriptor_limit(next_descriptor()):
                    for client in clients:
                        with contextlib.suppress(BlockingIOError):
                            client.connect(server.addresses[0])
                    await until(lambda: bool(caplog.records))
                    counter = WaitCounter()
                    trio.lowlevel.add_instrument(counter)
                    messages = len(caplog.records)
                    monkeypatch.setattr(_log_throttle, "LOG_INTERVAL", 10.0)
                    _log_throttle.log_throttle("accept")._next = trio.current_time() + 0.95
                    await trio.sleep(1.05)  # of Trio's mock clock, which jumps over every pause of the server
                    [line] = caplog.records[messages:]
                    found = re.search(r"\(([0-9]+) more times since the last such line\)$", line.getMessage())
                    assert found
                    pauses = int(found[1])
                    assert 8 <= pauses <= 12, "an attempt every 0.1 seconds"
                    assert counter.waits <= 10 * pauses + 10, "it spins"
                for client in clients:
                    peer = trio.socket.from_stdlib_socket(client.dup())
                    await peer.send(b"x")
                    assert await peer.recv(1) == b"x"
                    peer.close()

    with caplog.at_level(logging.ERROR, "gain_trio"):
        gain_trio.run(main, clock=MockClock(autojump_threshold=0.02))
    assert "EMFILE" in caplog.text
    assert "trying again in 0.1 seconds" in caplog.text


# --- the peer resets ---


async def expect_broken(call: Callable[[], Awaitable[object]]) -> None:
    """The call must find the connection broken, by the peer's doing."""
    with pytest.raises(trio.BrokenResourceError) as caught:
        await call()
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno in (errno.ECONNRESET, errno.EPIPE)


async def test_a_reset_wakes_a_parked_receive() -> None:
    peer, served = await open_trio_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_broken, served.receive)
        await wait_all_tasks_blocked()
        reset(peer)
    await expect_broken(served.receive)
    await served.aclose()


async def test_what_arrived_before_a_reset_can_be_taken() -> None:
    peer, served = await open_trio_pair()
    await peer.send_all(b"last words")
    await until_queued(served, 10)
    reset(peer)
    await wait_all_tasks_blocked()
    assert await served.receive(4) == b"last"
    assert await served.receive() == b" words"
    await expect_broken(served.receive)
    await served.aclose()


async def test_a_reset_wakes_a_parked_send_and_flush() -> None:
    peer, served = await open_trio_pair()

    async def send() -> None:
        await served.send(bytes(24 * MEBIBYTE))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_broken, send)
        await wait_all_tasks_blocked()
        reset(peer)
    await expect_broken(served.flush)
    await expect_broken(lambda: served.send(b"x"))
    await served.aclose()


async def test_a_reset_ends_a_flush() -> None:
    peer, served = await open_trio_pair()
    await clog(served)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_broken, served.flush)
        await wait_all_tasks_blocked()
        reset(peer)
    await served.aclose()


async def test_a_reset_ends_aclose() -> None:
    peer, served = await open_trio_pair()
    await clog(served)
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.aclose)
        await wait_all_tasks_blocked()
        assert nursery.child_tasks
        reset(peer)
    assert trio.current_time() - start < 4, "not by its bound"
    await wait_released()


async def test_a_reset_in_both_directions_at_once() -> None:
    peer, served = await open_trio_pair()

    async def send() -> None:
        await served.send(bytes(24 * MEBIBYTE))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_broken, send)
        nursery.start_soon(expect_broken, served.receive)
        await wait_all_tasks_blocked()
        reset(peer)
    served.abort()


# --- closing with operations pending ---


async def test_aborting_with_a_receive_pending_is_seen_at_once() -> None:
    peer, served = await open_trio_pair()
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await served.receive()

        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        served.abort()
    with trio.fail_after(PATIENCE), pytest.raises(trio.BrokenResourceError):
        await peer.receive_some()
    await peer.aclose()


async def test_closing_with_a_receive_pending_sends_the_end_at_once() -> None:
    peer, served = await open_trio_pair()
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await served.receive()

        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        await served.aclose()
    with trio.fail_after(PATIENCE):
        assert await peer.receive_some() == b""
    await peer.aclose()


async def test_aborting_with_receive_and_send_pending_resets_at_once() -> None:
    peer, served = await open_trio_pair()

    async def refused(call: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await call()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused, served.receive)
        nursery.start_soon(refused, lambda: served.send(bytes(24 * MEBIBYTE)))
        await wait_all_tasks_blocked()
        served.abort()
    with trio.fail_after(PATIENCE), pytest.raises(trio.BrokenResourceError):
        await receive_all(peer)
    await peer.aclose()
    await wait_released()


# --- KeyboardInterrupt ---


@pytest.mark.parametrize("connections", [1, 20])
def test_an_interrupt_in_a_handler_ends_the_run_and_everything_in_it(resume_in_place: bool, connections: int) -> None:
    """The interrupt comes in the middle of a batch: some handlers have been stepped, others not yet."""
    handled: list[bytes] = []
    peers: list[socket.socket] = []

    async def handler(connection: Connection) -> None:
        async for data in connection:
            handled.append(data)
            if len(handled) == (connections + 1) // 2:
                signal.raise_signal(signal.SIGINT)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            server: Server = await nursery.start(gain_trio.serve, handler, "tcp://127.0.0.1:0")
            peers.extend(socket.create_connection(server.addresses[0]) for _ in range(connections))
            await until(lambda: server.active_connections == connections)
            await wait_all_tasks_blocked()
            for peer in peers:
                peer.sendall(b"x")
            await trio.sleep_forever()

    with pytest.raises(BaseException) as caught:  # which, is what comes next
        ring_run(main, in_place=resume_in_place)
    assert leaves(caught.value) == [KeyboardInterrupt]
    for peer in peers:
        with peer:
            peer.settimeout(PATIENCE)
            with contextlib.suppress(ConnectionResetError):
                assert peer.recv(1) == b""


def leaves(error: BaseException) -> list[type[BaseException]]:
    """The exceptions in a group, or the one that is none."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [type(error)]


# The interrupt may come between making a call and awaiting it.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_an_interrupt_from_outside_ends_a_run_that_is_busy_with_one_connection(resume_in_place: bool) -> None:
    async def main() -> None:
        client, served = await open_pair()
        turns = 0
        async with client, served, trio.open_nursery() as nursery:
            nursery.start_soon(echo_until_broken, served)
            while True:
                await client.send(b"x")
                await client.receive()
                turns += 1
                if turns == 500:
                    trio.lowlevel.spawn_system_task(interrupt_from_a_thread)

    async def interrupt_from_a_thread() -> None:
        await trio.to_thread.run_sync(signal.raise_signal, signal.SIGINT)

    with pytest.raises(BaseException) as caught:  # which, is what comes next
        ring_run(main, in_place=resume_in_place)
    assert leaves(caught.value) == [KeyboardInterrupt]


@pytest.mark.full_ring
@pytest.mark.parametrize("kind", ["connection", "endpoint"])
def test_an_interrupt_does_not_close_a_descriptor_that_is_borrowed(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A call on the socket makes a socket object, which has no owner yet when it has been made."""

    class Interrupting(socket.socket):
        def __init__(self, *args: int, fileno: int) -> None:
            super().__init__(*args, fileno=fileno)
            signal.raise_signal(signal.SIGINT)

    async def main() -> None:
        if kind == "connection":
            client, served = await open_pair()
            borrow: Callable[[], object] = lambda: served.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)  # noqa: E731
            number, ends = served.fileno(), [client, served]
        else:
            endpoint = await gain_trio.open_datagram_endpoint("udp://127.0.0.1:0")
            borrow, number, ends = endpoint.statistics, endpoint.fileno(), [endpoint]
        before = os.fstat(number)
        try:
            with monkeypatch.context() as patched:
                patched.setattr(socket, "socket", Interrupting)
                borrow()
            await trio.lowlevel.checkpoint()
        except KeyboardInterrupt:
            interrupted.append(True)
        gc.collect()
        assert os.path.samestat(os.fstat(number), before)
        for end in ends:
            await end.aclose()

    interrupted: list[bool] = []
    gain_trio.run(bounded(main))
    assert interrupted


def test_a_flood_over_few_buffers_starves_nobody() -> None:
    """Decided by volume: the patient one gets its answers before the others have moved half a gigabyte."""
    flooded = pings = 0

    async def discard_or_answer(connection: Connection) -> None:
        nonlocal flooded
        while data := await connection.receive():
            if data == b"?":
                await connection.send(b"!")
            else:
                flooded += len(data)

    async def flood(address: str) -> None:
        async with await gain_trio.connect(address) as connection:
            while True:
                await connection.send(bytes(65536))

    async def main() -> None:
        nonlocal pings
        async with trio.open_nursery() as nursery:
            server = await nursery.start(gain_trio.serve, discard_or_answer, "tcp://127.0.0.1:0")
            address = url(server)
            async with await gain_trio.connect(address) as patient:
                for _ in range(8):
                    nursery.start_soon(flood, address)
                while pings < 20 and flooded < 1 << 29:
                    await patient.send(b"?")
                    assert await patient.receive() == b"!"
                    pings += 1
            nursery.cancel_scope.cancel()

    ring_run(main, buffer_count=2, buffer_size=4096)
    assert pings == 20, flooded


# --- leaks ---


def of_an_abc(thing: object) -> bool:
    """Whether an abstract base class has made it, which remembers each class that isinstance() asks it about."""
    callback = thing.__callback__ if isinstance(thing, weakref.ref) else thing
    return isinstance(callback, types.BuiltinFunctionType) and callback.__name__ == "_destroy"


def census() -> Counter[str]:
    """The collector's objects by type."""
    gc.collect()
    return Counter(type(thing).__qualname__ for thing in gc.get_objects() if not of_an_abc(thing))


SOAK = int(os.environ.get("GAIN_TRIO_SOAK", "2000"))
"""How many connections the next test makes; `make soak` has it make 100,000."""


@pytest.mark.slow
@pytest.mark.timeout(60 + SOAK // 100)
def test_thousands_of_connections_leave_nothing_behind(resume_in_place: bool) -> None:
    async def main() -> None:
        async with served_echo() as server:
            address = url(server)

            async def cycles(times: int) -> None:
                for turn in range(times):
                    connection = await gain_trio.connect(address)
                    await connection.send(b"x")
                    assert await connection.receive() == b"x"
                    if turn % 2:
                        await connection.aclose()
                    else:
                        connection.abort()
                await wait_released()
                await until(lambda: server.active_connections == 0)

            await cycles(200)
            objects, descriptors = census(), open_descriptors()
            references = [sys.getrefcount(thing) for thing in (None, trio.lowlevel.Abort.SUCCEEDED, Connection, b"")]
            await cycles(SOAK)
            again = [sys.getrefcount(thing) for thing in (None, trio.lowlevel.Abort.SUCCEEDED, Connection, b"")]
            grown = {name: count for name, count in (census() - objects).items() if count > 250}
            assert not grown
            assert open_descriptors() == descriptors
            assert all(abs(now - then) < 200 for then, now in zip(references, again, strict=True)), (references, again)

    gain_trio.run(bounded(main, 30 + SOAK / 100), resume_in_place=resume_in_place)


async def test_cancelled_and_refused_calls_leave_nothing_behind(pair: Pair) -> None:
    client, served = pair

    async def calls(times: int) -> None:
        for _ in range(times):
            with trio.move_on_after(0):
                await served.receive()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(served.receive)
                await wait_all_tasks_blocked()
                with contextlib.suppress(trio.BusyResourceError):
                    await served.receive()
                nursery.cancel_scope.cancel()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
                served.receive()  # made, and never awaited

    await calls(20)
    before = census()
    references = sys.getrefcount(served), sys.getrefcount(trio.lowlevel.Abort.SUCCEEDED)
    await calls(200)
    assert not {name: count for name, count in (census() - before).items() if count > 20}
    assert abs(sys.getrefcount(served) - references[0]) < 5
    assert abs(sys.getrefcount(trio.lowlevel.Abort.SUCCEEDED) - references[1]) < 20
    await client.send(b"x")
    assert await served.receive() == b"x"


def test_marks_bound_what_a_peer_that_floods_costs() -> None:
    async def main() -> None:
        peer, served = await open_trio_pair(marks=Marks(receive_high=10_000, receive_low=1_000))
        flood = pattern(2 * MEBIBYTE)
        async with peer, served, trio.open_nursery() as nursery:
            nursery.start_soon(peer.send_all, flood)
            await until(lambda: served.inbound_buffered >= 10_000)
            await wait_all_tasks_blocked()
            assert served.inbound_buffered <= 10_000 + 4 * 4096, "what it held, and what was on its way"
            assert await receive_exactly(served, len(flood)) == flood

    ring_run(main, buffer_count=4, buffer_size=4096)

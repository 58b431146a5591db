"""Large messages of TLS that are read where the kernel has put them: which task takes them, and how they lie there."""

from __future__ import annotations

import tracemalloc
from collections.abc import Awaitable, Callable

import pytest
import trio
from support.certificates import open_tls_pair
from support.pairs import Pair, open_pair, pattern, until
from support.runs import in_child, ring_run, statistics
from support.tls_pairs import TlsPair, encrypted
from trio.testing import wait_all_tasks_blocked

from gain_trio import Connection, Feature, UringStatistics

pytestmark = pytest.mark.connections

Pairs = tuple[TlsPair, Pair]
RECORD = 16384
SIZES = (4000, RECORD, RECORD + 1, 3 * RECORD, 100_000)


async def exchange(client: Connection, served: Connection) -> None:
    """What comes with the handshake is behind them then."""
    await client.send(b"first")
    assert await served.receive() == b"first"


async def received_of(connection: Connection, size: int) -> bytes:
    """Receive this number of bytes, by as many receives as that takes."""
    received = b""
    while len(received) < size:
        received += await connection.receive()
    return received


async def echo_all(client: Connection, served: Connection, size: int) -> None:
    """Echo a message of each size up to this one."""

    async def serve() -> None:
        while data := await served.receive():
            await served.send(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        for number in range(8):
            message = pattern(size + number)
            nursery.start_soon(client.send, message)
            assert await received_of(client, len(message)) == message
        nursery.cancel_scope.cancel()


@pytest.mark.full_ring
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("buffer_size", [2048, 4096, 16384, 20000, 65536])
@pytest.mark.parametrize("unwanted", [Feature(0), Feature.BUFFER_INCREMENT])
def test_a_message_may_lie_in_any_number_of_buffers(size: int, buffer_size: int, unwanted: Feature) -> None:
    async def main() -> None:
        client, served = await open_tls_pair()
        await echo_all(client, served, size)
        client.abort()
        served.abort()
        await until(lambda: statistics().connections == 0)
        assert statistics().buffers_free == statistics().buffers

    ring_run(main, buffer_count=16, buffer_size=buffer_size, unwanted=unwanted)


@pytest.mark.full_ring
async def test_a_large_message_is_not_copied_before_it_is_decrypted(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    await exchange(client, served)
    message = pattern(RECORD)
    sent = [encrypted(client, message) for _ in range(8)]  # of which one lies in two buffers
    peaks: list[int] = []

    async def receive() -> None:
        for _ in sent:
            assert await received_of(served, RECORD) == message
            peaks.append(tracemalloc.get_traced_memory()[1])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        tracemalloc.start()
        try:
            for number, data in enumerate(sent):
                await wait_all_tasks_blocked()
                tracemalloc.reset_peak()
                before, _ = tracemalloc.get_traced_memory()
                client._below._send_nowait(data)
                while len(peaks) == number:
                    await trio.lowlevel.checkpoint()
                peaks[number] -= before
        finally:
            tracemalloc.stop()
    assert max(peaks) < 1.5 * RECORD


# --- a task that does not read, though it is to be resumed ---


async def act_before(
    receive: Callable[[], Awaitable[object]], act: Callable[[], object], pairs: Pairs, size: int
) -> None:
    """Send a message over TLS to a task that waits for it, and have another task, which is resumed before that one, act."""
    (client, served), (plain_client, plain) = pairs
    await exchange(client, served)

    async def act_first() -> None:
        await plain.receive()
        act()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(act_first)
        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        await plain_client.send(b"x")
        client._below._send_nowait(encrypted(client, pattern(size)))  # both leave in one submission


@pytest.mark.parametrize("size", SIZES)
async def test_a_receive_that_is_cancelled_first_loses_nothing(tls_pair: TlsPair, pair: Pair, size: int) -> None:
    scope, received = trio.CancelScope(), [b""]

    async def receive() -> None:
        with scope:
            received.append(await tls_pair[1].receive())

    await act_before(receive, scope.cancel, (tls_pair, pair), size)
    await wait_all_tasks_blocked()  # it is copied
    got = b"".join(received)
    assert got + await received_of(tls_pair[1], size - len(got)) == pattern(size)


@pytest.mark.parametrize("size", SIZES)
async def test_a_connection_that_is_closed_first_gives_the_buffers_back(
    tls_pair: TlsPair, pair: Pair, size: int
) -> None:
    client, served = tls_pair

    async def receive() -> None:
        with pytest.raises(trio.ClosedResourceError):
            while True:
                await served.receive()

    await act_before(receive, served.abort, (tls_pair, pair), size)
    client.abort()
    io_statistics = trio.lowlevel.current_statistics().io_statistics
    if isinstance(io_statistics, UringStatistics):
        await until(lambda: statistics().connections == 2)
        await until(lambda: statistics().buffers_free == statistics().buffers)


@pytest.mark.full_ring
@pytest.mark.parametrize("size", SIZES)
async def test_a_child_that_is_forked_first_touches_no_buffer(tls_pair: TlsPair, pair: Pair, size: int) -> None:
    served, received = tls_pair[1], [b""]

    async def receive() -> None:
        received.append(await received_of(served, size))

    def in_the_child() -> None:
        for call in (lambda: served._below.next(1), served._below.peek, served.abort):
            with pytest.raises(RuntimeError, match="belongs to the parent"):
                call()

    await act_before(receive, lambda: in_child(in_the_child), (tls_pair, pair), size)
    assert b"".join(received) == pattern(size)


@pytest.mark.full_ring
@pytest.mark.parametrize("buffer_size", [10_000, 65536])
def test_others_may_look_at_what_waits_for_tls(buffer_size: int) -> None:
    """The connection below has the calls of every connection, and they find what has arrived."""
    seen = []

    async def main() -> None:
        tls_pair, pair, scope = await open_tls_pair(), await open_pair(), trio.CancelScope()
        served = tls_pair[1]

        async def receive() -> None:
            with scope:
                await served.receive()

        def look() -> None:
            seen.append((served._below.peek(), served._below.peek(5000)))
            scope.cancel()

        await act_before(receive, look, (tls_pair, pair), RECORD)
        await wait_all_tasks_blocked()  # it is copied
        [(everything, some)] = seen
        assert everything == served._below.peek()[: len(everything)]
        assert some == everything[:5000]
        assert await received_of(served, RECORD) == pattern(RECORD)
        for connection in (*tls_pair, *pair):
            connection.abort()

    # In place: Trio's scheduler takes the tasks of a batch in any order, and one that is scheduled reads all the same.
    ring_run(main, in_place=True, buffer_count=16, buffer_size=buffer_size)
    assert len(seen[0][0]) > RECORD

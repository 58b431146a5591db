"""Back-pressure in both directions: what a connection holds, and that the rest waits where it comes from."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
import trio
from support.pairs import (
    MEBIBYTE,
    QUIET,
    address_of,
    fill_kernel,
    open_pair,
    open_trio_pair,
    pattern,
    receive_all,
    receive_exactly,
    until,
)
from support.sockets import fill
from trio.testing import wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection, Marks, RingOptions

pytestmark = [pytest.mark.connections, pytest.mark.features]

RUN_BUFFERS = 2 * MEBIBYTE
"""What the run's receive buffers hold by default."""
MEMORY_NOISE = 24 * MEBIBYTE


def resident() -> int:
    """Bytes of memory that this process has in use."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    "marks",
    [
        {"receive_high": 0},
        {"receive_high": -1},
        {"receive_low": -1},
        {"receive_high": 10, "receive_low": 10},
        {"receive_high": 10, "receive_low": 11},
        {"send_high": 0},
        {"send_high": -1},
    ],
)
def test_marks_are_validated(marks: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="receive_low"):
        Marks(**marks)


@pytest.mark.parametrize("name", ["receive_high", "receive_low", "send_high"])
@pytest.mark.parametrize("value", [1.5, "1", None])
def test_marks_are_numbers(name: str, value: Any) -> None:
    with pytest.raises(TypeError):
        Marks(**{name: value})


def test_marks_are_values() -> None:
    assert Marks() == Marks(receive_high=256 * 1024, receive_low=192 * 1024, send_high=512 * 1024)
    with pytest.raises(AttributeError):
        Marks().send_high = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        Marks(1, 2, 3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("high", "low"), [(1, 0), (4096, 1024), (64 * 1024, 16 * 1024), (MEBIBYTE, MEBIBYTE - 64 * 1024)]
)
def test_the_low_mark_follows_the_high_one(high: int, low: int) -> None:
    assert Marks(receive_high=high).receive_low == low


@pytest.mark.memory
@pytest.mark.parametrize("marks", [None, Marks(receive_high=1, receive_low=0)], ids=["default", "smallest"])
async def test_a_peer_that_sends_for_ever_is_stopped(marks: Marks | None) -> None:
    total = 64 * MEBIBYTE
    client, served = await open_trio_pair(marks=marks)
    high = marks.receive_high if marks else Marks().receive_high
    piece = pattern(MEBIBYTE)
    before = resident()
    async with trio.open_nursery() as nursery:
        sent = 0

        async def send() -> None:
            nonlocal sent
            while sent < total:
                await client.send_all(piece)
                sent += len(piece)
            await client.send_eof()

        nursery.start_soon(send)
        await until(lambda: served.inbound_buffered >= high)
        await wait_all_tasks_blocked(QUIET)
        assert high <= served.inbound_buffered <= high + RUN_BUFFERS
        assert sent < total
        assert resident() - before < MEMORY_NOISE

        received = 0
        repeated = piece * ((high + RUN_BUFFERS) // len(piece) + 2)
        while data := await served.receive():
            start = received % len(piece)
            assert data == repeated[start : start + len(data)]
            received += len(data)
            assert served.inbound_buffered <= high + RUN_BUFFERS
        assert received == total
    assert resident() - before < MEMORY_NOISE
    await client.aclose()
    await served.aclose()


async def test_one_that_reads_slowly_receives_little_more_than_its_mark() -> None:
    """Its peer would see no progress for as long as the program takes to read what was received too much."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        served, _address = listener.accept()
        with peer:
            peer.setblocking(False)
            assert fill(peer) > 4 * Marks().receive_high
            async with Connection.from_socket(served) as connection:
                assert await connection.receive(1)
                await wait_all_tasks_blocked()
                assert connection.inbound_buffered <= 2 * Marks().receive_high


@pytest.mark.memory
async def test_a_peer_that_sends_single_bytes_costs_no_more() -> None:
    client, served = await open_trio_pair()
    sock = socket.socket(fileno=os.dup(client.socket.fileno()))
    before = resident()
    sent = 0
    with sock:
        for _ in range(300):
            try:
                for _ in range(1000):
                    sent += sock.send(bytes([sent % 251]))
            except BlockingIOError:
                break
            await trio.lowlevel.checkpoint()
    assert sent > Marks().receive_high / 10
    await wait_all_tasks_blocked()
    assert served.inbound_buffered <= Marks().receive_high + RUN_BUFFERS
    assert resident() - before < MEMORY_NOISE / 3
    await client.send_eof()
    assert await receive_all(served) == pattern(sent)
    await client.aclose()
    await served.aclose()


@pytest.mark.memory
@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("length", [1000, 100_000])
async def test_a_handler_that_sends_for_ever_is_stopped(kind: type[bytes | bytearray], length: int) -> None:
    total = 64 * MEBIBYTE
    client, served = await open_trio_pair()
    piece = kind(pattern(length))
    before = resident()
    async with trio.open_nursery() as nursery:
        sent = 0

        async def send() -> None:
            nonlocal sent
            while sent < total:
                await served.send(piece)
                sent += length

        nursery.start_soon(send)
        await wait_all_tasks_blocked(QUIET)
        assert sent < total
        assert Marks().send_high <= served.outbound_buffered <= Marks().send_high + length
        assert resident() - before < MEMORY_NOISE
        blocked_at = sent
        await receive_exactly(client, blocked_at)
        await wait_all_tasks_blocked(QUIET)
        assert sent > blocked_at
        nursery.cancel_scope.cancel()
    served.abort()
    await client.aclose()


async def test_a_large_bytearray_is_queued_piece_by_piece() -> None:
    client, served = await open_trio_pair()
    data = bytearray(pattern(16 * MEBIBYTE))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.send, data)
        await wait_all_tasks_blocked(QUIET)
        assert served.outbound_buffered <= Marks().send_high
        with pytest.raises(BufferError):
            data.clear()  # it is in use until send() returns
        assert await receive_exactly(client, len(data)) == data
    data.clear()
    await served.aclose()
    await client.aclose()


SMALL = Marks(receive_high=1, receive_low=0, send_high=1)


@pytest.mark.parametrize("kind", [bytes, bytearray])
async def test_the_smallest_marks_work(kind: type[bytes | bytearray]) -> None:
    client, served = await open_pair(marks=SMALL, client_marks=SMALL)
    data = pattern(20_000)

    async def echo() -> None:
        async for received in served:
            await served.send(received)
        await served.aclose()

    async def send() -> None:
        for start in range(0, len(data), 5000):
            await client.send(kind(data[start : start + 5000]))
        await client.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        nursery.start_soon(send)
        assert await receive_all(client) == data
    await client.aclose()


async def test_the_high_mark_of_sending_is_what_send_waits_for() -> None:
    """send() returns below the mark and waits at it, to the byte."""
    client, served = await open_trio_pair(marks=Marks(send_high=100))
    filled = await fill_kernel(served)
    await served.send(b"x" * 99)
    assert served.outbound_buffered == 99
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.send, b"y")
        await wait_all_tasks_blocked()
        assert served.outbound_buffered == 100
        assert nursery.child_tasks, "it waits"
        assert await receive_exactly(client, filled + 100) == bytes(filled) + b"x" * 99 + b"y"
    assert served.outbound_buffered < 100
    served.abort()
    await client.aclose()


async def test_receiving_goes_on_at_the_low_mark_and_not_before() -> None:
    client, served = await open_trio_pair(marks=Marks(receive_high=1000, receive_low=100))
    await client.send_all(bytes(1000))
    await until(lambda: served.inbound_buffered == 1000)
    await wait_all_tasks_blocked(QUIET)
    await client.send_all(b"x" * 500)
    await wait_all_tasks_blocked(QUIET)
    assert served.inbound_buffered == 1000
    assert len(served.next(899)) == 899
    await wait_all_tasks_blocked(QUIET)
    assert served.inbound_buffered == 101
    assert served.discard(1) == 1
    await until(lambda: served.inbound_buffered == 600)
    assert served.next() == bytes(100) + b"x" * 500
    await client.aclose()
    await served.aclose()


async def test_a_paused_connection_sees_the_end_and_errors_after_what_is_queued() -> None:
    client, served = await open_trio_pair(marks=Marks(receive_high=10, receive_low=0))
    await client.send_all(b"0123456789")
    await until(lambda: served.inbound_buffered == 10)
    await wait_all_tasks_blocked(QUIET)
    await client.send_all(b"more")
    await client.aclose()
    assert await served.receive(5) == b"01234"
    assert await receive_all(served) == b"56789more"
    await served.aclose()


async def test_a_clogged_connection_does_not_stop_others() -> None:
    clogged_client, clogged = await open_trio_pair()
    client, served = await open_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(clogged_client.send_all, bytes(32 * MEBIBYTE))
        await wait_all_tasks_blocked(QUIET)
        for _ in range(100):
            await client.send(b"ping")
            assert await served.receive() == b"ping"
        nursery.cancel_scope.cancel()
    for connection in (client, served, clogged):
        connection.abort()
    await clogged_client.aclose()


@pytest.mark.full_ring
@pytest.mark.parametrize("entries", [1, 4, 1024])
def test_a_tiny_ring_serves_many_connections(entries: int, resume_in_place: bool) -> None:
    """Two buffers of 64 bytes for all: receives starve and start again, and nothing is lost."""
    data = pattern(20_000)

    async def main() -> None:
        async def echo(connection: Connection) -> None:
            async for received in connection:
                await connection.send(received)

        async def exchange(address: str) -> None:
            connection = await gain_trio.connect(address)
            async with connection, trio.open_nursery() as nursery:

                async def send() -> None:
                    await connection.send(data)
                    await connection.send_eof()

                nursery.start_soon(send)
                assert await receive_all(connection) == data

        async with trio.open_nursery() as nursery:
            server = await nursery.start(gain_trio.serve, echo, "tcp://127.0.0.1:0")
            async with trio.open_nursery() as clients:
                for _ in range(8):
                    clients.start_soon(exchange, f"tcp://127.0.0.1:{server.addresses[0][1]}")
            nursery.cancel_scope.cancel()

    ring = RingOptions(entries=entries, completion_entries=max(entries, 8), buffer_count=2, buffer_size=64)
    gain_trio.run(main, ring=ring, resume_in_place=resume_in_place)


async def test_marks_of_a_connection_and_of_a_listener() -> None:
    [listener] = await gain_trio.open_listeners("tcp://127.0.0.1:0", marks=Marks(send_high=7))
    async with listener:
        client = await gain_trio.connect(address_of(listener), marks=Marks(send_high=3))
        served = await listener.accept()
    for connection, high in ((client, 3), (served, 7)):
        await fill_kernel(connection)
        await connection.send(b"x" * (high - 1))
        assert connection.outbound_buffered == high - 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.send, b"x")
            await wait_all_tasks_blocked()
            assert nursery.child_tasks, "it waits"
            nursery.cancel_scope.cancel()
    client.abort()
    served.abort()

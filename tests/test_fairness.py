"""Calls that are answered from memory let other tasks have a turn after a while, whatever they are."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from support.pairs import Pair, until
from support.runs import set_ring_slices

import gain_trio
from gain_trio import Connection, Marks
from gain_trio._http import http
from gain_trio._http._http_handler import PIECE
from gain_trio._transports import _time_slices
from gain_trio._transports._time_slices import SLICE_NS, TimeSlice
from gain_trio.callbacks import Config, EventHandler
from gain_trio.callbacks._event_server import callbacks_of
from gain_trio.callbacks._stream_driver import StreamDriver

pytestmark = pytest.mark.connections

LINES = 20_000
"""Empty ones: that many bytes, and far more than a turn's worth of calls."""


# --- a turn ---


class Clock:
    """A clock that advances by some nanoseconds at each reading, and counts the readings."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.looks = 0

    def __call__(self) -> int:
        self.looks += 1
        return self.looks * self.step


def calls_of_a_slice(time_slice: TimeSlice) -> int:
    calls = 1
    while not time_slice.is_over():
        calls += 1
    return calls


def test_the_usual_step_does_not_look_at_the_clock() -> None:
    clock = Clock(SLICE_NS)
    time_slice = TimeSlice(clock)
    for _ in range(100):
        time_slice.begin()
        assert not time_slice.is_over()
        assert not time_slice.is_over()
    assert not clock.looks


def test_a_turn_of_slow_calls_is_over_at_once() -> None:
    time_slice = TimeSlice(Clock(SLICE_NS))
    assert [calls_of_a_slice(time_slice) for _ in range(10)] == [4] * 10


def test_a_turn_of_fast_calls_seldom_looks_at_the_clock() -> None:
    now = 0
    looks = 0

    def clock() -> int:
        nonlocal looks
        looks += 1
        return now

    time_slice = TimeSlice(clock)
    calls = 0
    while not time_slice.is_over():
        now += 1000
        calls += 1
    assert SLICE_NS // 1000 <= calls <= SLICE_NS // 1000 + 64 + 3
    assert looks < 60


# --- connections ---

Call = Callable[[Connection], Awaitable[object]]

FROM_MEMORY: dict[str, Call] = {
    "receive": lambda connection: connection.receive(1),
    "receive_into": lambda connection: connection.receive_into(bytearray(1)),
    "receive_exactly": lambda connection: connection.receive_exactly(1),
    "receive_until": lambda connection: connection.receive_until(b"\n"),
    "receive_line": lambda connection: connection.receive_line(),
    "messages": lambda connection: connection.messages(functools.partial(connection.receive, 1)).__anext__(),
    "lines": lambda connection: connection.messages(connection.receive_line).__anext__(),
}


def look_without_time(time_slice: TimeSlice) -> bool:
    time_slice.begin()
    return True


@pytest.fixture
def no_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Turns are over as soon as the clock is looked at; on the ring at the second look, and once the test calls this."""
    monkeypatch.setattr(_time_slices.TimeSlice, "_look", look_without_time)

    return lambda: set_ring_slices(0)


async def turns_of_others(calls: int, call: Callable[[], Awaitable[object]]) -> int:
    """The number of turns that another task has while ``call`` is called repeatedly."""
    turns = 0
    done = False

    async def count() -> None:
        nonlocal turns
        while not done:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        await trio.lowlevel.checkpoint()
        before = turns
        for _ in range(calls):
            await call()
        counted = turns - before
        done = True
    return counted


@pytest.mark.parametrize("call", FROM_MEMORY.values(), ids=FROM_MEMORY.keys())
async def test_receiving_lets_others_have_a_turn(any_pair: Pair, call: Call, no_time: Callable[[], None]) -> None:
    connection, peer = any_pair
    no_time()
    await peer.send(b"\n" * 100)
    while connection.inbound_buffered < 100:
        await connection._fill(100)
    assert await turns_of_others(60, lambda: call(connection)) >= 10
    assert connection.inbound_buffered == 40


async def test_the_handler_http_lets_others_have_a_turn_behind_each_piece(any_pair: Pair) -> None:
    """Also with a clock: of calls that take long each, it would look at the clock only behind some."""
    connection, peer = any_pair
    head = b"POST / HTTP/1.1\r\nHost: here\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"1\r\nx\r\n" * (20 * PIECE // 6) + b"0\r\n\r\n"

    async def ask() -> None:
        await peer.send(head + chunks)
        while await peer.receive():
            pass
        await peer.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        assert await turns_of_others(1, lambda: http(connection)) >= 15
        await connection.aclose()


async def test_sending_lets_others_have_a_turn(any_pair: Pair, no_time: Callable[[], None]) -> None:
    connection, _peer = any_pair
    no_time()
    assert await turns_of_others(60, lambda: connection.send(b"x")) >= 10


async def test_a_turn_loses_nothing_when_it_is_cancelled(any_pair: Pair, no_time: Callable[[], None]) -> None:
    connection, peer = any_pair
    no_time()
    await peer.send(bytes(range(100)))
    while connection.inbound_buffered < 100:
        await connection._fill(100)
    received = bytearray()
    while len(received) < 100:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel, scope)
                while len(received) < 100:
                    received += await connection.receive(1)
    assert bytes(received) == bytes(range(100))


async def cancel(scope: trio.CancelScope) -> None:
    scope.cancel()


async def test_without_a_clock_a_step_from_memory_takes_no_turn(any_pair: Pair) -> None:
    """The usual one, of a message and its answer."""
    connection, peer = any_pair
    await peer.send(b"xy")
    while connection.inbound_buffered < 2:
        await connection._fill(2)

    async def step() -> None:
        await connection.receive(1)
        await connection.send(b"x")

    assert await turns_of_others(1, step) == 0


# --- datagrams ---


async def test_datagrams_let_others_have_a_turn(no_time: Callable[[], None]) -> None:
    no_time()
    async with (
        await gain_trio.open_datagram_endpoint("udp://127.0.0.1:0") as receiver,
        await gain_trio.open_datagram_endpoint("udp://127.0.0.1:0") as sender,
    ):
        assert await turns_of_others(60, lambda: sender.send(b"x", receiver.local_address)) >= 10
        await until(lambda: receiver.statistics().received == 60)
        assert await turns_of_others(60, receiver.receive) >= 10


# --- servers ---


async def test_an_established_connection_is_answered_before_a_flood_is_worked_off(no_time: Callable[[], None]) -> None:
    """Three peers each send thousands of empty lines, another one asks a question."""
    no_time()
    lines = 0

    async def handler(connection: Connection) -> None:
        nonlocal lines
        while (line := await connection.receive_line()) is not None:
            if line:
                await connection.send(line)
            lines += 1

    async with trio.open_nursery() as nursery:
        server = await nursery.start(gain_trio.serve, handler, "tcp://127.0.0.1:0")
        address = f"tcp://127.0.0.1:{server.addresses[0][1]}"
        async with await gain_trio.connect(address) as established:
            await established.send(b"hello\n")
            assert await established.receive() == b"hello"
            floods = [await gain_trio.connect(address) for _ in range(3)]
            for flood in floods:
                await flood.send(b"\n" * LINES)
            await established.send(b"again\n")
            assert await established.receive() == b"again"
            assert lines < LINES
            for flood in floods:
                flood.abort()
        nursery.cancel_scope.cancel()


async def test_connections_are_served_before_a_backlog_is_accepted(no_time: Callable[[], None]) -> None:
    no_time()
    accepted: list[int] = []
    server: gain_trio.Server | None = None

    async def handler(_connection: Connection) -> None:
        assert server is not None
        accepted.append(server.statistics().accepted)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        server = await nursery.start(gain_trio.serve, handler, "tcp://127.0.0.1:0")
        assert server is not None
        with contextlib.ExitStack() as stack:
            for _ in range(60):  # in one step, in which nothing is accepted
                stack.enter_context(socket.create_connection(server.addresses[0]))
            await until(lambda: len(accepted) == 60)
        nursery.cancel_scope.cancel()
    assert accepted[0] < 60


class Pieces:
    """A protocol that notes how much it is given, and how many turns others have had by then."""

    def __init__(self) -> None:
        self.pieces: list[int] = []

    def connection_made(self, transport: Any) -> None:
        transport.pause_reading()
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.pieces.append(len(data))

    def eof_received(self) -> None: ...

    def connection_lost(self, exc: Exception | None) -> None: ...


async def test_a_protocol_is_given_pieces(no_time: Callable[[], None]) -> None:
    no_time()
    protocol = Pieces()
    size = 200_000
    async with trio.open_nursery() as nursery:
        handler = gain_trio.asyncio_bridge.ProtocolHandler(lambda: protocol)  # type: ignore[arg-type,return-value]
        server = await nursery.start(gain_trio.serve, handler, "tcp://127.0.0.1:0")
        async with await gain_trio.connect(f"tcp://127.0.0.1:{server.addresses[0][1]}") as client:
            await client.send(bytes(size))
            await client.flush()
            await trio.testing.wait_all_tasks_blocked(0.05)
            protocol.transport.resume_reading()
            await until(lambda: sum(protocol.pieces) == size)
        nursery.cancel_scope.cancel()
    assert max(protocol.pieces) <= 65536


class Takes(EventHandler):
    """Takes what it is told of, and notes how much that is; after the first piece it waits."""

    def __init__(self) -> None:
        self.pieces: list[int] = []
        self.go_on = trio.Event()

    async def on_read(self, conn: gain_trio.callbacks.Conn, n: int) -> None:
        assert len(conn.next(n)) == n
        self.pieces.append(n)
        await self.go_on.wait()


@pytest.mark.parametrize("drains", [False, True])
async def test_callbacks_are_told_of_pieces(no_time: Callable[[], None], drains: bool) -> None:
    """The server calls back in pieces also when it drains and reports all that has arrived for the last time."""
    no_time()
    handler = Takes()
    async with trio.open_nursery() as nursery:
        driver = StreamDriver(callbacks_of(handler), Config(), Marks())
        server = await nursery.start(gain_trio.serve, driver, "tcp://127.0.0.1:0")
        async with await gain_trio.connect(f"tcp://127.0.0.1:{server.addresses[0][1]}") as client:
            await client.send(b"x")
            await until(lambda: bool(handler.pieces))
            with socket.socket(fileno=os.dup(client.fileno())) as sock:
                sock.setblocking(False)
                size = sock.send(bytes(200_000))
            assert size > 65536
            if drains:
                server._begin_to_drain(float("inf"))
            await trio.testing.wait_all_tasks_blocked(0.05)
            handler.go_on.set()
            await until(lambda: sum(handler.pieces) == size + 1)
        nursery.cancel_scope.cancel()
    assert max(handler.pieces) <= 65536

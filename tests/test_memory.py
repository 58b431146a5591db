"""gain_trio.testing: connections and servers without a socket, and the faults that a test orders."""

from __future__ import annotations

import errno
import functools
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from support.certificates import client_context, server_context
from support.descriptors import open_descriptors
from support.pairs import MEBIBYTE, pattern, receive_all
from support.servers import echo
from support.workers import raises_alone
from trio.testing import MockClock, check_half_closeable_stream, check_two_way_stream, wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection, IncompleteMessage, Marks, MessageTooLong, ProxyHeader
from gain_trio._transports._tls._tls_handshake import client_handshake
from gain_trio.testing import MemoryConnection, Route, connection_pair, serving

pytestmark = pytest.mark.one_backend

SMALL = Marks(receive_high=1000, receive_low=100, send_high=1000)
CALLS: dict[str, Callable[[Connection], Any]] = {
    "receive": lambda one: one.receive(),
    "receive_exactly": lambda one: one.receive_exactly(1),
    "receive_line": lambda one: one.receive_line(),
    "_wait_change": lambda one: one._wait_change(0),
    "flush": lambda one: one.flush(),
    "send": lambda one: one.send(bytes(MEBIBYTE)),
}


# --- the contract ---


async def make_pair() -> tuple[MemoryConnection, MemoryConnection]:
    return connection_pair()


async def make_clogged_pair() -> tuple[MemoryConnection, MemoryConnection]:
    """Two ends that read nothing, so that sends have to wait."""
    ends = connection_pair(marks=SMALL, peer_marks=SMALL)
    for end in ends:
        end._send_nowait(bytes(2000))
    return ends


async def test_trios_check_of_streams() -> None:
    await check_two_way_stream(make_pair, make_clogged_pair)


async def test_trios_check_of_half_closes() -> None:
    await check_half_closeable_stream(make_pair, make_clogged_pair)


async def test_it_has_no_descriptor() -> None:
    before = open_descriptors()
    async with serving(echo) as server:
        client = server.connect()
        await client.send(b"x")
        assert await client.receive() == b"x"
        assert client.fileno() == -1
        assert open_descriptors() == before


async def test_large_data_in_both_directions() -> None:
    one, other = connection_pair(marks=SMALL, peer_marks=SMALL)
    data = pattern(MEBIBYTE)

    async def send_all(connection: Connection) -> None:
        await connection.send(data)
        await connection.send_eof()

    async with trio.open_nursery() as nursery:
        for end in (one, other):
            nursery.start_soon(send_all, end)
        assert await other.receive_exactly(len(data)) == data
        assert await receive_all(one) == data
    assert one.bytes_sent == one.bytes_received == other.bytes_sent == MEBIBYTE


async def test_back_pressure_holds_little() -> None:
    one, other = connection_pair(marks=SMALL, peer_marks=SMALL)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(one.send, bytes(1500)))
        nursery.start_soon(wait_all_tasks_blocked)
    assert (other.inbound_buffered, one.outbound_buffered) == (1000, 500)
    with trio.move_on_after(0.01):
        await one.flush()
        pytest.fail("the peer has taken nothing")
    assert await other.receive() == bytes(1000)
    assert (other.inbound_buffered, one.outbound_buffered) == (500, 0)


async def test_messages() -> None:
    one, other = connection_pair()
    await one.send([b"a line\r\nand", b" more"])
    assert await other.receive_line() == b"a line"
    assert other.peek(3) == b"and"
    with pytest.raises(MessageTooLong):
        await other.receive_until(b"\n", max_bytes=5)
    assert other.discard(3) == 3
    await one.aclose()
    with pytest.raises(IncompleteMessage):
        await other.receive_exactly(100)
    assert other.next() == b" more"
    assert await other.receive_line() is None


async def test_a_message_larger_than_the_mark() -> None:
    one, other = connection_pair(marks=SMALL, peer_marks=SMALL)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.send, pattern(50_000))
        assert await other.receive_exactly(50_000) == pattern(50_000)


async def test_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(pattern(200_000))
    one, other = connection_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.send_file, tmp_path / "file")
        assert await other.receive_exactly(200_000) == pattern(200_000)


async def test_a_reset() -> None:
    one, other = connection_pair()
    await one.send(b"x")
    one.abort()
    assert await other.receive() == b"x", "what came before is received"
    with pytest.raises(trio.BrokenResourceError) as caught:
        await other.receive()
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ECONNRESET


@pytest.mark.parametrize("call", CALLS)
async def test_a_close_ends_calls(call: str) -> None:
    one, _other = connection_pair(marks=SMALL, peer_marks=SMALL)
    one.outgoing.room = 0
    one._send_nowait(bytes(10))
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await CALLS[call](one)

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        one.abort()


async def test_deadlines(autojump_clock: MockClock) -> None:
    one, other = connection_pair(marks=SMALL, peer_marks=SMALL)
    start = trio.current_time()
    one.read_deadline = start + 100
    with pytest.raises(trio.TooSlowError):
        await one.receive()
    one.write_deadline = start + 200
    with pytest.raises(trio.TooSlowError):
        await one.send(bytes(5000))
    assert trio.current_time() - start == pytest.approx(200)
    assert len(await other.receive_exactly(5000)) == 5000, "all of it was queued"


async def test_a_deadline_that_is_moved_meanwhile(autojump_clock: MockClock) -> None:
    one, _other = connection_pair()
    start = trio.current_time()
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(trio.TooSlowError):
                await one.receive()

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        one.set_deadline(start + 50)
    assert trio.current_time() - start == pytest.approx(50)


async def test_idleness_takes_no_time(autojump_clock: MockClock) -> None:
    one, _other = connection_pair()
    one.idle_timeout = 3600
    with pytest.raises(trio.BrokenResourceError) as caught:
        await one.receive()
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ETIMEDOUT
    assert one._was_idle


async def test_socket_options_are_remembered() -> None:
    one, _other = connection_pair()
    one.setsockopt(6, 1, 1)
    assert (one.getsockopt(6, 1), one.getsockopt(6, 2), one.getsockopt(1, 2, 4)) == (1, 0, bytes(4))
    with pytest.raises(RuntimeError, match="cannot be detached"):
        await one.detach()


# --- faults ---


async def test_a_reset_after_some_bytes() -> None:
    one, other = connection_pair()
    one.outgoing.reset_after = 5
    with pytest.raises(trio.BrokenResourceError):
        await one.send(b"0123456789")
        await one.send(b"x")
    assert await other.receive_exactly(5) == b"01234"
    for end in (one, other):
        with pytest.raises(trio.BrokenResourceError) as caught:
            await end.receive()
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.ECONNRESET


async def test_a_reset_now() -> None:
    one, other = connection_pair()
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await other.receive()

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        one.incoming.reset_after = 0


async def test_short_reads() -> None:
    one, other = connection_pair()
    other.incoming.largest_piece = 2
    await one.send(b"abcde")
    assert [await other.receive() for _ in range(3)] == [b"ab", b"cd", b"e"]
    await one.send(b"fghij")
    assert await other.receive_exactly(5) == b"fghij"


async def test_a_slow_peer(autojump_clock: MockClock) -> None:
    one, other = connection_pair(marks=SMALL, peer_marks=SMALL)
    one.outgoing.room = 3
    await one.send(b"abcdef")
    assert (one.bytes_sent, one.outbound_buffered, one.outgoing.room) == (3, 3, 0)
    one.outgoing.room += 1
    assert other.peek() == b"abcd"
    with trio.move_on_after(1):
        await one.flush()
        pytest.fail("two bytes are left")
    one.outgoing.room = None
    await one.flush()
    assert other.peek() == b"abcdef"
    assert one.outgoing.carried == 6


async def test_a_peer_that_takes_nothing_holds_no_close_up_for_long(autojump_clock: MockClock) -> None:
    one, other = connection_pair()
    one.outgoing.room = 0
    await one.send(b"x")
    start = trio.current_time()
    await one.aclose()
    assert trio.current_time() - start == pytest.approx(5, abs=1)
    with pytest.raises(trio.BrokenResourceError):
        await other.receive()


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("room", -1, ValueError, "room is at least 0"),
        ("largest_piece", 0, ValueError, "largest_piece is at least 1"),
        ("reset_after", 1.5, TypeError, "reset_after is a number of bytes"),
        ("reset_after", True, TypeError, "reset_after is a number of bytes"),
    ],
)
def test_faults_that_make_no_sense(name: str, value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        setattr(Route(lambda: None), name, value)


# --- servers ---


async def test_a_server_is_the_real_thing(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(connection: Connection) -> None:
        raise LookupError(await connection.receive_line())

    async with serving(fail, workers=2) as server:
        client = server.connect(source_address=("192.0.2.1", 7))
        await client.send(b"hello\n")
        assert await client.receive() == b""
        assert server.server.statistics().handler_errors == 1
        assert "192.0.2.1" in caplog.text
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_a_drain() -> None:
    async def handler(connection: Connection) -> None:
        async for line in connection.messages(connection.receive_line):
            await connection.send(line + b"\n")

    async with serving(handler) as server:
        client = server.connect()
        await client.send(b"hello\n")
        assert await client.receive_line() == b"hello"
        await server.server.drain(math.inf)
        assert await client.receive() == b""
        with pytest.raises(ConnectionRefusedError):
            server.connect()


async def test_a_limit() -> None:
    async with serving(echo, max_connections=1) as server:
        first, second = server.connect(), server.connect()
        await second.send(b"2")
        await wait_all_tasks_blocked()
        assert server.server.active_connections == 1
        await first.aclose()
        assert await second.receive() == b"2"


async def test_errors_of_accept(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(echo) as server:
        server.fail_accept(errno.EMFILE)
        client = server.connect()
        await client.send(b"x")
        assert await client.receive() == b"x"
    [record] = caplog.records
    assert "EMFILE (Too many open files); trying again" in record.getMessage()


async def test_an_error_of_accept_that_ends_the_server() -> None:
    with raises_alone(OSError, "Bad file descriptor"):
        async with serving(echo) as server:
            server.fail_accept(errno.EBADF)
            await trio.sleep_forever()


async def test_a_strict_server() -> None:
    async def fail(_connection: Connection) -> None:
        raise LookupError("the handler's own")

    with raises_alone(LookupError, "the handler's own"):
        async with serving(fail, strict=True) as server:
            server.connect()
            await trio.sleep_forever()


async def test_tls() -> None:
    async with serving(echo, ssl_context=server_context()) as server:
        plain = server.connect()
        client = await client_handshake(plain, client_context(), Marks(), "it", "localhost", https_compatible=False)
        await client.send(pattern(MEBIBYTE // 4))
        assert await client.receive_exactly(MEBIBYTE // 4) == pattern(MEBIBYTE // 4)
        await client.aclose()


async def test_the_proxy_protocol_and_limits_by_address() -> None:
    async def tell(connection: Connection) -> None:
        await connection.send(repr(connection.remote_address).encode())
        await connection.receive()

    async with serving(tell, proxy_protocol=True, max_connections_per_address=1) as server:
        first, second = server.connect(), server.connect()
        await first.send(ProxyHeader.of(("192.0.2.1", 5), ("192.0.2.2", 6)).encode())
        assert await first.receive() == b"('192.0.2.1', 5)"
        await second.send(ProxyHeader.of(("192.0.2.1", 7), ("192.0.2.2", 6)).encode())
        with pytest.raises(trio.BrokenResourceError):
            await second.receive()


async def test_callbacks_and_protocols() -> None:
    import asyncio

    class Shout(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(data.upper())

    async with serving(gain_trio.asyncio_bridge.ProtocolHandler(Shout)) as server:
        client = server.connect()
        for _ in range(3):
            await client.send(b"hello")
            assert await client.receive_exactly(5) == b"HELLO"
        await client.send_eof()
        assert await client.receive() == b""


@pytest.mark.parametrize(
    "option",
    [
        {"processes": 2},
        {"signals": True},
        {"metrics": "tcp://127.0.0.1:0"},
        {"mode": 0o600},
        {"keep_alive": 5},
        {"user": 0},
        {"architecture": "socket_sharding"},
    ],
    ids=str,
)
async def test_options_about_what_there_is_not(option: dict[str, Any]) -> None:
    [name] = option
    with pytest.raises(ValueError, match=f"{name} is about sockets, processes or signals.*leave it out"):
        async with serving(echo, **option):
            pass

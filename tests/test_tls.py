"""TLS: the contract of a connection once more, handshakes, and what is different."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import math
import random
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trustme
from certificates import (
    TLS_1_2,
    TLS_1_3,
    authority,
    client_context,
    open_tls_pair,
    server_context,
)
from pairs import (
    MEBIBYTE,
    PATIENCE,
    Pair,
    address_of,
    is_open,
    open_pair,
    pattern,
    receive_all,
    receive_exactly,
    until,
)
from trio.testing import MockClock, assert_checkpoints, check_two_way_stream, wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection, IncompleteMessage, Marks, MessageTooLong, Server
from gain_trio._transports._connection_base import CLOSE_TIMEOUT
from gain_trio._transports._tls_connection import TlsConnection
from gain_trio._transports._tls_traffic import CHUNK, CONTROL_ROOM, PIECE

TlsPair = tuple[TlsConnection, TlsConnection]
LOCAL = "tcp://127.0.0.1:0"
SMALL = Marks(receive_high=8192, receive_low=1024, send_high=8192)


@pytest.fixture(params=[TLS_1_2, TLS_1_3], ids=["TLSv1.2", "TLSv1.3"])
async def tls_pair(request: pytest.FixtureRequest) -> AsyncIterator[TlsPair]:
    client, served = await open_tls_pair(version=request.param)
    yield client, served
    client.abort()
    served.abort()


async def clog(connection: TlsConnection, size: int = PIECE) -> None:
    """Send whole pieces until the connection stays over its high mark.  What is cancelled here was sent whole: no tear."""

    async def send() -> None:
        while True:
            await connection.send(bytes(size))

    while connection.outbound_buffered < connection._marks.send_high:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await wait_all_tasks_blocked(0.05)  # the peer's kernel may make room by taking some over
            nursery.cancel_scope.cancel()
        await wait_all_tasks_blocked(0.05)


async def echo(connection: Connection) -> None:
    async for data in connection:
        await connection.send(data)


@asynccontextmanager
async def serving(handler: Callable[[Connection], Awaitable[object]], **options: Any) -> AsyncIterator[Server]:
    """A server with TLS for the length of a with statement."""
    options.setdefault("ssl_context", server_context())
    async with trio.open_nursery() as nursery:
        server = await nursery.start(lambda **status: gain_trio.serve(handler, LOCAL, **options, **status))
        assert isinstance(server, Server)
        yield server
        nursery.cancel_scope.cancel()


def where(server: Server, host: str = "127.0.0.1") -> str:
    return f"tcp://{host}:{server.addresses[0][1]}"


async def connect(server: Server, **options: Any) -> Connection:
    options.setdefault("ssl_context", client_context())
    return await gain_trio.connect(where(server), **options)


# --- it is one of Trio's streams ---
#
# Half-closing is not to be checked: neither trio.SSLStream nor Python's ssl can do it, and send_eof() says so.


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
async def test_trios_own_checks(version: ssl.TLSVersion) -> None:
    async def make() -> TlsPair:
        return await open_tls_pair(version=version)

    async def make_clogged() -> TlsPair:
        pair = await make()
        for connection in pair:
            await clog(connection)
        return pair

    with trio.fail_after(PATIENCE):
        await check_two_way_stream(make, make_clogged)


async def test_trios_own_checks_the_other_way_round() -> None:
    async def served_first() -> TlsPair:
        client, served = await open_tls_pair()
        return served, client

    with trio.fail_after(PATIENCE):
        await check_two_way_stream(served_first, None)


async def test_trios_own_checks_of_its_stream_on_our_connection() -> None:
    async def make() -> tuple[trio.SSLStream[Connection], trio.SSLStream[Connection]]:
        client, served = await open_pair()
        return (
            trio.SSLStream(client, client_context(), server_hostname="localhost"),
            trio.SSLStream(served, server_context(), server_side=True),
        )

    with trio.fail_after(PATIENCE):
        await check_two_way_stream(make, None)


# --- data ---


async def test_echo(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo, served)
        for data in (b"x", b"hello", bytearray(b"world"), memoryview(pattern(1000))):
            await client.send(data)
            assert await receive_exactly(client, len(data)) == bytes(data)
        await client.aclose()


@pytest.mark.parametrize("marks", [Marks(), SMALL], ids=["large marks", "small marks"])
@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
async def test_much_in_both_directions_in_bounded_memory(version: ssl.TLSVersion, marks: Marks) -> None:
    client, served = await open_tls_pair(marks=marks, client_marks=marks, version=version)
    data = pattern(4 * MEBIBYTE)
    most = 0

    async def send(connection: TlsConnection) -> None:
        await connection.send(data)
        await connection.flush()
        assert connection.outbound_buffered == 0

    async def receive(connection: TlsConnection) -> None:
        nonlocal most
        received = bytearray()
        while len(received) < len(data):
            received += await connection.receive()
            most = max(most, client.outbound_buffered, served.outbound_buffered)
        assert received == data

    async with client, served, trio.open_nursery() as nursery:
        for connection in (client, served):
            nursery.start_soon(send, connection)
            nursery.start_soon(receive, connection)
    assert most <= marks.send_high + CONTROL_ROOM


async def test_a_peer_that_sends_for_ever_is_stopped(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, bytes(64 * MEBIBYTE))
        assert await served.receive(1) == b"\0"
        await wait_all_tasks_blocked(0.1)
        assert nursery.child_tasks, "it waits"
        assert client.outbound_buffered <= Marks().send_high + CONTROL_ROOM
        assert served._below.inbound_buffered <= Marks().receive_high + 2 * MEBIBYTE
        assert served.inbound_buffered < CHUNK + 16384  # with the record that has begun before
        nursery.cancel_scope.cancel()


async def test_receive_at_most(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    await client.send(b"hello world")
    assert await served.receive(1) == b"h"
    assert served.inbound_buffered == 10
    assert served.peek() == b"ello world"
    assert served.peek(2) == b"el"
    assert await served.receive(4) == b"ello"
    buffer = bytearray(3)
    assert await served.receive_into(buffer) == 3
    assert buffer == b" wo"
    assert served.next(1) == b"r"
    assert served.discard() == 2
    assert served.next() == b""
    for max_bytes, error in ((0, ValueError), (-1, ValueError), ("1", TypeError), (1.5, TypeError)):
        with pytest.raises(error):
            await served.receive(max_bytes)  # type: ignore[arg-type]
    for method in (served.peek, served.next, served.discard):
        with pytest.raises(ValueError, match="number of bytes"):
            method(-1)
    for wrong, error in (
        (b"readonly", BufferError),
        (bytearray(), ValueError),
        (memoryview(bytearray(8))[::2], BufferError),
    ):
        with pytest.raises(error):
            await served.receive_into(wrong)
    with pytest.raises(BufferError):
        await served.send(memoryview(b"abcdef")[::2])
    with pytest.raises(TypeError):
        await served.send("text")  # type: ignore[arg-type]


async def test_the_end_of_the_stream_stays(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    await client.send(b"last")
    await client.aclose()
    assert [data async for data in served] == [b"last"]
    for _ in range(3):
        with assert_checkpoints():
            assert await served.receive() == b""
        with assert_checkpoints():
            assert await served.receive_some(1) == b""
        assert await served.receive_into(bytearray(1)) == 0
        assert await served.receive_line() is None


async def test_empty_sends_send_nothing(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    for empty in (b"", bytearray(), memoryview(b"")):
        with assert_checkpoints():
            await client.send(empty)
    assert client.outbound_buffered == 0
    await client.send(b"x")
    assert await served.receive() == b"x"


async def test_framing(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    message = pattern(300_000)  # more than the marks

    async def send() -> None:
        await client.send(b"first\r\nsec")
        await wait_all_tasks_blocked()
        await client.send(b"ond\n\nkey: value\r\n\r\n")
        await client.send(message)
        await client.send(b"too long without an end")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        assert await served.receive_line() == b"first"
        assert await served.receive_line() == b"second"
        assert await served.receive_line() == b""
        assert await served.receive_until(b"\r\n\r\n") == b"key: value\r\n\r\n"
        assert await served.receive_exactly(len(message)) == message
        assert await served.receive_exactly(0) == b""
        with pytest.raises(MessageTooLong):
            await served.receive_until(b"\n", max_bytes=5)
        assert await served.receive_exactly(8) == b"too long"
    await client.aclose()
    with pytest.raises(IncompleteMessage):
        await served.receive_line()
    with pytest.raises(IncompleteMessage) as caught:
        await served.receive_exactly(100)
    assert (caught.value.received, caught.value.expected) == (15, 100)
    assert served.next() == b" without an end"
    assert await served.receive_line() is None
    with pytest.raises(ValueError, match=">= 0"):
        await served.receive_exactly(-1)


async def handshake_by_hand(client: Connection) -> tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO]:
    """A client's, whose last message is left in the second buffer; the first one is of what comes."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            await client.send(outgoing.read())
            incoming.write(await client.receive())
        else:
            return tls, incoming, outgoing


async def test_what_comes_with_the_end_of_the_handshake() -> None:
    """A client's last message of the handshake and its first data in one segment."""

    async def handler(connection: Connection) -> None:
        assert await connection.receive_exactly(5) == b"early"
        await connection.send(b"got it")

    async with serving(handler) as server:
        async with await gain_trio.connect(where(server)) as client:
            tls, incoming, outgoing = await handshake_by_hand(client)
            tls.write(b"ear")
            tls.write(b"ly")
            await client.send(outgoing.read())
            answer = b""
            while not answer:
                incoming.write(await client.receive())
                with contextlib.suppress(ssl.SSLWantReadError):
                    answer = tls.read()
            assert answer == b"got it"


async def test_nothing_is_sent_to_a_client_that_does_not_expect_it() -> None:
    """A server's session tickets would have the kernel of a client that closes without reading them reset the connection."""
    received = trio.Event()

    async def handler(connection: Connection) -> None:
        assert connection.tls_version() == "TLSv1.3"
        assert await receive_exactly(connection, 1) == b"1"
        received.set()
        assert await receive_exactly(connection, 100_000) == pattern(100_000)
        assert await connection.receive() == b""

    async with serving(handler, strict=True) as server:
        async with await gain_trio.connect(where(server)) as client:
            tls, _incoming, outgoing = await handshake_by_hand(client)
            tls.write(b"1")
            await client.send(outgoing.read())
            await received.wait()
            await wait_all_tasks_blocked(0.05)
            assert client.inbound_buffered == 0
            tls.write(pattern(100_000))
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.unwrap()
            await client.send(outgoing.read())
        await until(lambda: server.active_connections == 0)
        assert server.statistics().broken == 0


async def test_tickets_come_with_the_first_data() -> None:
    async def handler(connection: Connection) -> None:
        await connection.receive()
        await connection.send(b"x")
        await connection.receive()

    ours = client_context()
    async with serving(handler) as server:
        async with await connect(server, ssl_context=ours) as client:
            await client.send(b"?")
            assert await client.receive() == b"x"
            assert isinstance(client, TlsConnection)
            session = client._engine.ssl_object.session
            assert session is not None
            assert session.has_ticket


# --- cancelling ---


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
async def test_randomly_cancelled_receives_lose_nothing(version: ssl.TLSVersion) -> None:
    client, served = await open_tls_pair(version=version, client_marks=SMALL)
    chance = random.Random(7)
    data = pattern(2 * MEBIBYTE)
    received = bytearray()

    async def send() -> None:
        position = 0
        while position < len(data):
            count = chance.choice((1, 100, 5000, 40_000))
            await client.send(data[position : position + count])
            position += count
            for _ in range(chance.randrange(3)):
                await trio.lowlevel.checkpoint()

    async def cancel(scope: trio.CancelScope) -> None:
        for _ in range(chance.randrange(6)):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    async with client, served, trio.open_nursery() as nursery:
        nursery.start_soon(send)
        cancelled = 0
        while len(received) < len(data):
            with trio.CancelScope() as scope:
                nursery.start_soon(cancel, scope)
                way = chance.randrange(3)
                if way == 0:
                    received += await served.receive(chance.choice((1, 10_000, None)))
                elif way == 1:
                    received += await served.receive_exactly(min(20_000, len(data) - len(received)))
                else:
                    await served._fill(1)
                    received += served.next(3000)
            cancelled += scope.cancelled_caught
    assert received == data
    assert cancelled > 10


async def test_a_receive_cancelled_before_it_runs_takes_nothing(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    await client.send(b"hello")
    for call in (served.receive, served.receive_some, served.receive_line, lambda: served.receive_into(bytearray(5))):
        with trio.CancelScope() as scope:
            scope.cancel()
            await call()
        assert scope.cancelled_caught
    assert await served.receive() == b"hello"


async def test_cancelled_small_sends_are_whole_or_nothing() -> None:
    client, served = await open_tls_pair(client_marks=SMALL)
    chance = random.Random(3)
    sent: list[int] = []

    async def receive() -> list[int]:
        found = []
        while (line := await served.receive_line()) is not None:
            found.append(int(line))
        return found

    async def send() -> None:
        cancelled = 0
        for number in range(3000):
            with trio.move_on_after(0 if chance.random() < 0.2 else math.inf) as scope:
                await client.send(b"%04000d\n" % number)
            cancelled += scope.cancelled_caught
            if not scope.cancelled_caught:
                sent.append(number)
        assert cancelled > 10
        await client.aclose()

    async with served, trio.open_nursery() as nursery:
        nursery.start_soon(send)
        found = await receive()
    assert found == sorted(set(found))
    assert set(sent) <= set(found)


@pytest.mark.parametrize("kind", [bytes, bytearray, lambda data: [data[:100], bytearray(data[100:])]])
async def test_a_send_that_is_too_slow_is_whole(tls_pair: TlsPair, mock_clock: MockClock, kind: Any) -> None:
    client, served = tls_pair
    data = pattern(16 * MEBIBYTE)
    client.write_deadline = trio.current_time() + 5

    async def send() -> None:
        with pytest.raises(trio.TooSlowError):
            await client.send(kind(data))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        assert await served.receive(1) == data[:1]
        await wait_all_tasks_blocked(0.05)
        mock_clock.jump(6)
    client.write_deadline = math.inf
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, b"the end")
        assert await receive_exactly(served, len(data) - 1) == data[1:]
        assert await receive_exactly(served, 7) == b"the end"


@pytest.mark.parametrize("error", [trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError])
async def test_a_send_that_fails_lets_go_of_the_buffer(
    tls_pair: TlsPair, mock_clock: MockClock, error: type[Exception]
) -> None:
    """Also while somebody looks at the error."""
    client, served = tls_pair
    client.write_deadline = trio.current_time() + 5
    data = bytearray(16 * MEBIBYTE)

    async def send() -> None:
        try:
            await client.send(data)
        except error:
            data.clear()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked(0.05)
        if error is trio.TooSlowError:
            mock_clock.jump(6)
        elif error is trio.BrokenResourceError:
            served.abort()
        else:
            client.abort()
    assert not data


@pytest.mark.parametrize("how", ["aclose", "abort", "close now"])
async def test_a_torn_send_never_looks_complete(tls_pair: TlsPair, how: str) -> None:
    client, served = tls_pair
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, bytes(64 * MEBIBYTE))
            await served.receive(1)
            await wait_all_tasks_blocked(0.05)
            scope.cancel()
    for call in (lambda: client.send(b"more"), client.flush, client.wait_send_all_might_not_block):
        with pytest.raises(trio.BrokenResourceError) as caught:
            await call()
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.ECANCELED
    await served.send(b"the other direction is alive")
    assert await client.receive() == b"the other direction is alive"
    if how == "aclose":
        await client.aclose()
    elif how == "abort":
        client.abort()
    else:
        client._close_now()
    with pytest.raises(trio.BrokenResourceError):
        await receive_all(served)


# --- one at a time ---


async def test_one_task_a_direction(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    await clog(client)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.receive)
        nursery.start_soon(client.flush)
        await wait_all_tasks_blocked()
        for call in (
            client.receive,
            client.receive_some,
            lambda: client._fill(1),
            lambda: client.receive_into(bytearray(1)),
        ):
            with pytest.raises(trio.BusyResourceError):
                await call()
        for call in (lambda: client.send(b"x"), client.flush, client.wait_send_all_might_not_block):
            with pytest.raises(trio.BusyResourceError):
                await call()
        nursery.cancel_scope.cancel()


# --- the end ---


async def test_aclose_flushes_and_ends_properly(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    data = pattern(MEBIBYTE)
    received = bytearray()

    async def receive() -> None:
        received.extend(await receive_all(served))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await client.send(data)
        await client.aclose()
        assert client.fileno() == -1
    assert received == data
    await client.aclose()
    await served.aclose()


async def test_a_cancelled_aclose_is_not_taken_for_the_end(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    await client.send(b"a part")
    await client.flush()
    with trio.CancelScope() as scope:
        scope.cancel()
        await client.aclose()
    assert scope.cancelled_caught
    assert await served.receive() == b"a part"
    with pytest.raises(trio.BrokenResourceError, match="close_notify") as caught:
        await served.receive()
    assert isinstance(caught.value.__cause__, ssl.SSLError)
    with pytest.raises(trio.BrokenResourceError, match="close_notify"):
        await served.receive()
    with pytest.raises(trio.BrokenResourceError, match="close_notify"):
        await served.send(b"x")


async def test_aclose_is_bounded_and_resets(autojump_clock: MockClock) -> None:
    client, served = await open_tls_pair()
    await clog(client)
    before = trio.current_time()
    await client.aclose()
    assert trio.current_time() - before == pytest.approx(CLOSE_TIMEOUT)
    with pytest.raises(trio.BrokenResourceError):
        await receive_all(served)
    served.abort()


async def test_aclose_with_something_unread_is_no_reset(tls_pair: TlsPair) -> None:
    """In TLS 1.3 a server sends what no client asked for (session tickets); a reset for that would cost it data."""
    client, served = tls_pair
    await served.send(b"unread")
    await client.send(b"data")
    await until(lambda: client._below.inbound_buffered > 0)
    await client.aclose()
    assert await served.receive() == b"data"
    assert await served.receive() == b""


async def test_abort_resets(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    await client.send(b"x")
    await client.flush()
    assert await served.receive() == b"x"
    client.abort()
    with pytest.raises(trio.BrokenResourceError) as caught:
        await served.receive()
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ECONNRESET
    await served.aclose()


async def test_a_stream_cut_off(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    await client.send(b"hello")
    await client._below.aclose()
    assert await served.receive() == b"hello"
    with pytest.raises(trio.BrokenResourceError, match="without TLS's close_notify"):
        await served.receive()
    assert served._close_soon()


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
async def test_https_compatible(version: ssl.TLSVersion) -> None:
    client, served = await open_tls_pair(version=version, https_compatible=True)
    await served.send(b"hello")
    await served._below.aclose()
    assert await client.receive() == b"hello"
    assert await client.receive() == b""
    assert await client.receive() == b""
    with pytest.raises(trio.BrokenResourceError) as caught:
        await client.send(b"x")
    assert isinstance(caught.value.__cause__, ssl.SSLEOFError)
    await client.aclose()
    served.abort()

    client, served = await open_tls_pair(version=version, https_compatible=True)
    await client.aclose()
    with pytest.raises(trio.BrokenResourceError, match="close_notify"):
        await served.receive()
    await served.aclose()


@pytest.mark.parametrize(
    "junk", [b"this is not TLS at all", b"\x17\x03\x03\x00\x20" + bytes(32)], ids=["text", "record"]
)
async def test_something_else_in_between(tls_pair: TlsPair, junk: bytes) -> None:
    client, served = tls_pair
    await client.send(b"good")
    await client._below.send(junk)
    assert await served.receive() == b"good"
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError) as caught:
            await served.receive()
        assert isinstance(caught.value.__cause__, ssl.SSLError)
        with pytest.raises(trio.BrokenResourceError):
            await served.send(b"x")
    await served.aclose()


async def test_a_reset_breaks_sending_and_what_was_received_stays(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    await client.send(b"last")
    await served._fill(4)
    client.abort()

    async def send() -> None:
        while True:
            await served.send(bytes(1000))

    for call in (send, send, served.flush):
        with pytest.raises(trio.BrokenResourceError) as caught:
            await call()
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno in {errno.ECONNRESET, errno.EPIPE}
    assert await served.receive() == b"last"
    assert served._close_soon()


@pytest.mark.parametrize("end", ["aclose", "abort", "close now"])
async def test_calls_in_progress_on_close(tls_pair: TlsPair, end: str) -> None:
    client, served = tls_pair
    await clog(client)
    refused = 0

    async def call(function: Callable[[], Awaitable[object]]) -> None:
        nonlocal refused
        with pytest.raises(trio.ClosedResourceError):
            await function()
        refused += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, client.receive)
        nursery.start_soon(call, client.flush)
        await wait_all_tasks_blocked()
        if end == "aclose":
            nursery.start_soon(client.aclose)
            await until(lambda: refused == 2)
            nursery.start_soon(receive_all, served)  # which ends properly: nothing was torn
        elif end == "abort":
            client.abort()
        else:
            client._close_now()
    assert refused == 2


async def test_calls_after_close(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    await served.send(b"unread")
    await client._fill(6)
    await client.aclose()
    for call in (
        client.receive,
        client.receive_some,
        lambda: client.receive_into(bytearray(1)),
        lambda: client._fill(1),
        lambda: client._fill(0),
        lambda: client.send(b"x"),
        lambda: client.send_all(b""),
        client.flush,
        client.wait_send_all_might_not_block,
    ):
        with pytest.raises(trio.ClosedResourceError):
            await call()
    for look in (client.peek, client.next, client.discard, lambda: client._find(b"x", 0)):
        with pytest.raises(trio.ClosedResourceError):
            look()
    for option in (lambda: client.setsockopt(0, 0, 0), lambda: client.getsockopt(0, 0)):
        with pytest.raises(trio.ClosedResourceError):
            option()
    assert client.inbound_buffered == client.outbound_buffered == 0
    assert client.fileno() == -1
    assert client._close_soon()
    client.abort()


async def test_send_eof_says_that_it_cannot(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    with assert_checkpoints(), pytest.raises(NotImplementedError, match="aclose"):
        await client.send_eof()
    await client.send(b"still open")
    assert await served.receive() == b"still open"


# --- what it says of itself ---


async def test_the_socket(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    assert client.local_address == served.remote_address
    assert client.remote_address == served.local_address
    assert is_open(client.fileno())
    assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert client.context is None
    client.context = "mine"
    assert client.context == "mine"
    assert repr(client).startswith("<gain_trio.Connection TLSv1.")
    await client.aclose()
    assert "closed" in repr(client)


async def test_tls(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    assert client.tls_version() == served.tls_version()
    assert client.tls_version() in {"TLSv1.2", "TLSv1.3"}
    assert client.cipher() == served.cipher()
    found = client.getpeercert()
    assert isinstance(found, dict)
    assert ("DNS", "localhost") in found["subjectAltName"]
    binary = client.getpeercert(binary_form=True)
    assert isinstance(binary, bytes)
    assert served.getpeercert() is None
    assert client.selected_alpn_protocol() is None


async def test_no_tls(pair: Pair) -> None:
    for connection in pair:
        assert connection.tls_version() is None
        assert connection.cipher() is None
        assert connection.getpeercert() is None
        assert connection.getpeercert(binary_form=True) is None
        assert connection.selected_alpn_protocol() is None


# --- what TLS itself sends and waits for ---


def tls_sends(connection: TlsConnection, data: bytes) -> None:
    """As if it were an answer of TLS's own: a task that receives sends those, whatever other tasks do meanwhile."""
    assert connection._engine.write(data) == len(data)
    connection._answered += connection._hand_down()


async def test_what_tls_sends_while_a_task_drains_keeps_its_place(tls_pair: TlsPair) -> None:
    """As a receiver's answer to a change of keys does."""
    client, served = tls_pair
    await clog(client)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.flush)
        await wait_all_tasks_blocked()
        for number in range(10):
            tls_sends(client, b"<%d>" % number)  # does not wait, and does not collide
        await served.send(b"the other direction")
        assert await client.receive() == b"the other direction"
        received = bytearray()
        while not received.endswith(b"<9>"):
            received += await served.receive()
        assert received.lstrip(b"\0") == b"".join(b"<%d>" % number for number in range(10))
    await client.send(b"and on it goes")
    assert await served.receive() == b"and on it goes"


async def test_a_cancelled_drain_leaves_nothing_behind_that_tls_had_to_send(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    await clog(client)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.flush)
        await wait_all_tasks_blocked()
        tls_sends(client, b"urgent")
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.aclose)
        assert (await receive_all(served)).lstrip(b"\0") == b"urgent"


async def test_a_peer_that_has_us_answer_for_ever_is_stopped(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    await clog(client)
    while client.outbound_buffered < Marks().send_high + CONTROL_ROOM:
        tls_sends(client, bytes(16384))
    received = []
    await served.send(b"more to answer")

    async def receive() -> None:
        received.append(await client.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await wait_all_tasks_blocked(0.05)
        assert not received
        while not received:
            assert await served.receive()
    assert received == [b"more to answer"]


async def test_much_sent_without_waiting_does_not_keep_it_from_receiving(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    served._send_nowait(bytes(16 * MEBIBYTE))
    assert served.outbound_buffered > Marks().send_high + CONTROL_ROOM
    await client.send(b"one")
    assert await served.receive() == b"one"
    await client.send(b"two")
    assert await served._wait_inbound() == 3


# --- a renegotiation ---


class Renegotiating:
    """An engine that has to hear of its peer before it encrypts."""

    def __init__(self, connection: TlsConnection) -> None:
        self._engine = connection._engine
        self.is_blocked = True
        self.is_patient = False
        """It is not enough to hear something."""
        connection._engine = self  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def write(self, data: bytes) -> int:
        return 0 if self.is_blocked else self._engine.write(data)

    def feed(self, data: bytes) -> None:
        self._engine.feed(data)
        self.is_blocked = self.is_patient


async def test_a_send_receives_in_a_renegotiation(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    Renegotiating(client)
    message = pattern(200_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, message)
        await wait_all_tasks_blocked(0.01)
        assert client.outbound_buffered == PIECE
        await served.send(b"go on")
        assert await receive_exactly(served, len(message)) == message
    assert client.outbound_buffered == 0
    assert client.inbound_buffered == 5
    assert await client.receive() == b"go on"


async def test_what_is_sent_without_waiting_in_a_renegotiation_is_kept(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    Renegotiating(client)
    for number in range(5):
        client._send_nowait(b"%d" % number)
    assert client.outbound_buffered == 5
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, b"cancelled before its turn")
            nursery.start_soon(client.receive)
            await wait_all_tasks_blocked(0.01)
            scope.cancel()
    await served.send(b"go on")
    assert await client.receive() == b"go on"
    await client.send(b"5")
    assert await receive_exactly(served, 6) == b"012345"


async def test_a_close_waits_for_a_renegotiation(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    Renegotiating(client)
    client._send_nowait(b"last")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.aclose)
        await wait_all_tasks_blocked(0.01)
        await served.send(b"go on")
        assert await receive_exactly(served, 4) == b"last"
        assert await served.receive() == b""


@pytest.mark.parametrize("call", ["receive", "_wait_inbound", "send", "flush"])
async def test_a_close_that_waits_for_a_renegotiation_refuses_calls_at_once(tls_pair: TlsPair, call: str) -> None:
    client, served = tls_pair
    engine = Renegotiating(client)
    engine.is_patient = True
    client._send_nowait(b"last")
    arguments = [b"nothing of this"] if call == "send" else []
    refused = []

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await getattr(client, call)(*arguments)
        refused.append(call)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked(0.01)
        nursery.start_soon(client.aclose)
        await until(lambda: bool(refused))
        with pytest.raises(trio.ClosedResourceError):
            client._send_nowait(b"too late")
        await served.send(bytes(MEBIBYTE))  # more than would be queued for a program
        await wait_all_tasks_blocked(0.01)
        engine.is_patient = False
        await served.send(b"go on")
        assert await receive_all(served) == b"last"


async def test_a_renegotiation_that_is_never_done_ends_in_a_reset(autojump_clock: MockClock) -> None:
    client, served = await open_tls_pair()
    Renegotiating(client)
    client._send_nowait(b"last")
    before = trio.current_time()
    await client.aclose()
    assert trio.current_time() - before == pytest.approx(CLOSE_TIMEOUT)
    with pytest.raises(trio.BrokenResourceError):
        await served.receive()
    served.abort()


async def test_a_renegotiation_with_a_peer_that_is_gone(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    Renegotiating(client).is_patient = True
    await served.aclose()
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError):
            await client.send(b"x")


async def test_a_send_in_a_renegotiation_does_not_fill_the_memory(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    engine = Renegotiating(client)
    engine.is_patient = True
    data = pattern(4 * MEBIBYTE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, b"answer")
        nursery.start_soon(served.send, data)
        await wait_all_tasks_blocked(0.1)
        assert Marks().receive_high <= client.inbound_buffered < Marks().receive_high + CHUNK + 16384
        engine.is_patient = False
        assert await client.receive_exactly(len(data)) == data
        assert await receive_exactly(served, 6) == b"answer"


@pytest.mark.parametrize("call", ["receive", "receive_some", "receive_line"])
async def test_a_deadline_of_the_connection_below_does_no_harm(tls_pair: TlsPair, call: str) -> None:
    client, served = tls_pair

    class Late:
        """The connection below, with a deadline that has passed."""

        def __init__(self, below: Connection) -> None:
            self._below = below

        def __getattr__(self, name: str) -> Any:
            return getattr(self._below, name)

        async def receive(self, _max_bytes: int) -> bytes:
            await trio.lowlevel.checkpoint()
            raise trio.TooSlowError

    below = served._below
    served._below = Late(below)  # type: ignore[assignment]
    for _ in range(2):
        with pytest.raises(trio.TooSlowError):
            await getattr(served, call)()
    served._below = below
    await client.send(b"not too late\n")
    assert await served.receive_line() == b"not too late"
    await served.send(b"nor this")
    assert await client.receive() == b"nor this"


async def have_it_answer_for_ever(connection: TlsConnection) -> None:
    """Its peer does not read, and there is so much to answer that nothing more is received before it does."""
    await clog(connection)
    while connection.outbound_buffered < Marks().send_high + CONTROL_ROOM:
        tls_sends(connection, bytes(16384))


@pytest.mark.parametrize("call", ["receive", "_wait_inbound"])
@pytest.mark.parametrize("busy", [False, True], ids=["alone", "behind a flush"])
async def test_the_read_deadline_holds_while_tls_has_to_answer(
    tls_pair: TlsPair, mock_clock: MockClock, call: str, busy: bool
) -> None:
    client, served = tls_pair
    await have_it_answer_for_ever(client)
    too_slow = []

    async def receive() -> None:
        try:
            await getattr(client, call)()
        except trio.TooSlowError as error:
            too_slow.append(str(error))

    async with trio.open_nursery() as nursery:
        if busy:
            nursery.start_soon(client.flush)
        client.write_deadline = trio.current_time() + 5 if not busy else math.inf
        for later in (False, True):  # it can be moved meanwhile
            client.read_deadline = math.inf if later else trio.current_time() + 20
            nursery.start_soon(receive)
            await wait_all_tasks_blocked(0.05)
            mock_clock.jump(10)  # the write deadline is none of a receive
            await wait_all_tasks_blocked(0.05)
            assert len(too_slow) == later
            client.read_deadline = trio.current_time() + 5
            mock_clock.jump(6)
            await wait_all_tasks_blocked(0.05)
        nursery.cancel_scope.cancel()
    assert too_slow == ["the connection's read deadline has passed"] * 2
    client.set_deadline(math.inf)
    await served.send(b"in time")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive_all, served)
        assert await client.receive() == b"in time"
        await client.aclose()


async def test_the_write_deadline_holds_behind_a_receiver_that_waits_for_room(
    tls_pair: TlsPair, mock_clock: MockClock
) -> None:
    client, _served = tls_pair
    await have_it_answer_for_ever(client)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.receive)
        await wait_all_tasks_blocked(0.05)
        client.write_deadline = trio.current_time() + 5
        late = []

        async def send() -> None:
            with pytest.raises(trio.TooSlowError, match="write deadline"):
                await client.send(b"nothing of this")
            late.append(trio.current_time())

        nursery.start_soon(send)
        await wait_all_tasks_blocked(0.05)
        mock_clock.jump(6)
        await wait_all_tasks_blocked(0.05)
        assert late
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("busy", [False, True], ids=["alone", "behind a receiver"])
async def test_the_write_deadline_and_no_other_holds_in_a_renegotiation(
    tls_pair: TlsPair, mock_clock: MockClock, busy: bool
) -> None:
    client, served = tls_pair
    Renegotiating(client)
    message = bytearray(pattern(200_000))
    client.read_deadline = math.inf if busy else trio.current_time() + 5
    client.write_deadline = trio.current_time() + 20
    late = []

    async def send() -> None:
        with pytest.raises(trio.TooSlowError, match="write deadline"):
            await client.send(message)
        late.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        if busy:
            nursery.start_soon(client.receive)
            await wait_all_tasks_blocked(0.01)
        nursery.start_soon(send)
        await wait_all_tasks_blocked(0.05)
        mock_clock.jump(10)
        await wait_all_tasks_blocked(0.05)
        assert not late
        mock_clock.jump(11)
        await wait_all_tasks_blocked(0.05)
        assert late
        nursery.cancel_scope.cancel()
    assert client.read_deadline < math.inf or busy
    client.set_deadline(math.inf)
    await served.send(b"go on")
    assert await client.receive() == b"go on"
    assert await receive_exactly(served, len(message)) == message


async def test_a_dropped_connection_warns_and_closes() -> None:
    client, served = await open_tls_pair()
    descriptor = client.fileno()
    with pytest.warns(ResourceWarning, match="unclosed"):
        del client
        gc.collect()
    await until(lambda: not is_open(descriptor))
    with pytest.raises(trio.BrokenResourceError):
        await served.receive()
    await served.aclose()


async def test_the_end_behind_data_is_found_at_once(tls_pair: TlsPair) -> None:
    """Whatever lies in one piece: bytes, close_notify and the end of what is below."""
    client, served = tls_pair
    await client.send(b"last")
    await client.aclose()
    await until(lambda: served._below.inbound_buffered > 4)
    await wait_all_tasks_blocked(0.01)
    assert await served.receive() == b"last"
    assert served._ended


# --- serve() and connect() ---


async def test_serve_and_connect() -> None:
    async with serving(echo, workers=2) as server:
        async with await connect(server) as client:
            assert isinstance(client, TlsConnection)
            await client.send(b"hello")
            assert await client.receive() == b"hello"
        await until(lambda: server.active_connections == 0)
        now = server.statistics()
        assert (now.accepted, now.handler_errors, now.broken, now.failed_handshakes) == (1, 0, 0, 0)


async def test_a_handler_that_returns_ends_the_stream_properly() -> None:
    async def handler(connection: Connection) -> None:
        await connection.send(pattern(3 * MEBIBYTE))

    async with serving(handler) as server, await connect(server) as client:
        assert await receive_all(client) == pattern(3 * MEBIBYTE)


async def test_marks_reach_the_connections() -> None:
    most: list[int] = []
    done = trio.Event()

    async def handler(connection: Connection) -> None:
        assert isinstance(connection, TlsConnection)
        await clog(connection, 4096)
        most.append(connection.outbound_buffered)
        done.set()

    async with serving(handler, marks=Marks(send_high=5000)) as server, await connect(server) as client:
        await done.wait()
        await receive_all(client)
    assert 5000 <= most[0] < 5000 + 2 * 5000


@pytest.mark.parametrize(("offered", "chosen"), [(["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1"), ([], None)])
async def test_alpn(offered: list[str], chosen: str | None) -> None:
    found: list[str | None] = []

    async def handler(connection: Connection) -> None:
        found.append(connection.selected_alpn_protocol())

    context = server_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    ours = client_context()
    if offered:
        ours.set_alpn_protocols(offered)
    async with serving(handler, ssl_context=context) as server, await connect(server, ssl_context=ours) as client:
        assert client.selected_alpn_protocol() == chosen
        assert await client.receive() == b""
    assert found == [chosen]


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
async def test_client_certificates(version: ssl.TLSVersion) -> None:
    async def handler(connection: Connection) -> None:
        found = connection.getpeercert()
        assert isinstance(found, dict)
        await connection.send(str(found["subjectAltName"]).encode())

    context = server_context(version)
    context.verify_mode = ssl.CERT_REQUIRED
    authority().configure_trust(context)
    async with serving(handler, ssl_context=context) as server:
        ours = client_context()
        authority().issue_cert("me@example.org").configure_cert(ours)
        async with await connect(server, ssl_context=ours) as client:
            assert b"me@example.org" in await client.receive()
        # Without one TLS 1.2 fails in the handshake; in TLS 1.3 the client's is done before the server can say so.
        with pytest.raises((ssl.SSLError, trio.BrokenResourceError)):
            async with await connect(server) as client:
                await client.receive()
        await until(lambda: server.statistics().failed_handshakes == 1)
        assert server.statistics().handler_errors == 0


async def test_the_name_to_be_proved() -> None:
    async with serving(echo) as server:
        async with await connect(server, server_hostname="localhost") as client:
            await client.send(b"x")
            assert await client.receive() == b"x"
        with pytest.raises(ssl.SSLCertVerificationError, match=r"does not prove that it is example\.org") as caught:
            await connect(server, server_hostname="example.org")
        assert f"tcp://127.0.0.1:{server.addresses[0][1]}" in str(caught.value)
        assert caught.value.verify_code
        await until(lambda: server.active_connections == 0)


@pytest.mark.parametrize(("host", "name"), [("[::1]", "[::1]"), ("127.0.0.1", "localhost")])
async def test_the_host_of_the_address_has_to_be_proved(host: str, name: str) -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            lambda **status: gain_trio.serve(echo, f"tcp://{host}:0", ssl_context=server_context(), **status)
        )
        address = f"tcp://{name}:{server.addresses[0][1]}"
        async with await gain_trio.connect(address, ssl_context=client_context()) as client:
            await client.send(b"x")
            assert await client.receive() == b"x"
        nursery.cancel_scope.cancel()


async def test_the_default_context_trusts_nobody_here() -> None:
    async with serving(echo) as server:
        with pytest.raises(ssl.SSLCertVerificationError, match=r"unable to get local issuer|self.signed"):
            await gain_trio.connect(where(server), ssl_context=True)
        with pytest.raises(OSError, match="certificate"):
            await gain_trio.connect(where(server), ssl_context=True)
        await until(lambda: server.statistics().failed_handshakes == 2)


async def test_connecting_to_what_has_no_tls() -> None:
    async def hello(connection: Connection) -> None:
        await connection.send(b"220 hello, this is plain text\r\n")
        await connection.receive()

    async def hang_up(connection: Connection) -> None:
        await connection.receive(1)

    async def reset(connection: Connection) -> None:
        await connection.receive()
        connection.abort()

    async with serving(hello, ssl_context=None) as server:
        with pytest.raises(ssl.SSLError, match=r"TLS handshake with tcp://127\.0\.0\.1:\d+ failed: .*WRONG_VERSION"):
            await connect(server)
    async with serving(hang_up, ssl_context=None) as server:
        with pytest.raises(OSError, match=r"TLS handshake with .* failed"):
            await connect(server)
    async with serving(reset, ssl_context=None) as server:
        with pytest.raises(OSError, match=r"TLS handshake with .* failed: .*reset") as caught:
            await connect(server)
        assert caught.value.errno == errno.ECONNRESET


async def test_the_peer_hears_why_a_handshake_has_failed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gain_trio")
    old = client_context()
    old.maximum_version = TLS_1_2
    async with serving(echo, ssl_context=server_context(TLS_1_3)) as server:
        with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
            await connect(server, ssl_context=old)
        with pytest.raises(ssl.SSLCertVerificationError):
            await connect(server, ssl_context=ssl.create_default_context())
        await until(lambda: server.statistics().failed_handshakes == 2)
    [_, record] = [record for record in caplog.records if record.name == "gain_trio"]
    assert "ALERT_UNKNOWN_CA" in record.getMessage()


async def test_a_cancelled_connect_leaves_nothing() -> None:
    [listener] = await gain_trio.open_listeners(LOCAL)
    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: gain_trio.connect(address_of(listener), ssl_context=client_context()))
        async with await listener.accept() as served:
            await served.receive_exactly(5)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await receive_all(served)  # to its end


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ssl_context": 1}, TypeError, "ssl.SSLContext"),
        ({"ssl_context": False}, TypeError, "ssl.SSLContext"),
        ({"ssl_context": server_context()}, ValueError, "one for servers"),
        ({"server_hostname": "localhost"}, ValueError, "ssl_context"),
        ({"https_compatible": True}, ValueError, "ssl_context"),
    ],
)
async def test_connect_refuses(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        await gain_trio.connect("tcp://127.0.0.1:1", **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ssl_context": True}, TypeError, "ssl.SSLContext"),
        ({"ssl_context": ssl.create_default_context()}, ValueError, "one for clients"),
        ({"ssl_context": server_context(), "handshake_timeout": 0}, ValueError, "handshake_timeout"),
        ({"ssl_context": server_context(), "handshake_timeout": math.nan}, ValueError, "handshake_timeout"),
    ],
)
async def test_serve_refuses(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        await gain_trio.serve(echo, LOCAL, **options)


# --- handshakes that fail ---


def reset(client: trio.SocketStream) -> None:
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.socket.close()


async def plain_text(client: trio.SocketStream) -> None:
    await client.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    with contextlib.suppress(trio.BrokenResourceError):
        await receive_all(client)


async def short_text(client: trio.SocketStream) -> None:
    await client.send_all(b"hi")


async def nothing(_client: trio.SocketStream) -> None:
    """Connects and hangs up."""


async def half_a_hello(client: trio.SocketStream) -> None:
    await client.send_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")


async def reset_at_once(client: trio.SocketStream) -> None:
    reset(client)


async def reset_in_the_middle(client: trio.SocketStream) -> None:
    await half_a_hello(client)
    reset(client)


async def wrong_authority(client: trio.SocketStream) -> None:
    context = ssl.create_default_context()
    trustme.CA().configure_trust(context)
    with pytest.raises(trio.BrokenResourceError):
        await trio.SSLStream(client, context, server_hostname="localhost").do_handshake()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "misbehave",
    [plain_text, short_text, nothing, half_a_hello, reset_at_once, reset_in_the_middle, wrong_authority],
)
async def test_a_failed_handshake_costs_nobody_else_anything(
    misbehave: Callable[[trio.SocketStream], Awaitable[None]], strict: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gain_trio")
    async with serving(echo, strict=strict) as server, await connect(server) as other:
        async with await trio.open_tcp_stream("127.0.0.1", server.addresses[0][1]) as client:
            await misbehave(client)
        await until(lambda: server.statistics().failed_handshakes == 1)
        await until(lambda: server.active_connections == 1)
        await other.send(b"hello")
        assert await other.receive() == b"hello"
        now = server.statistics()
        assert (now.accepted, now.handler_errors, now.broken) == (2, 0, 0)
    [record] = [record for record in caplog.records if record.name == "gain_trio"]
    assert record.levelno == logging.INFO
    assert record.exc_info is None
    message = record.getMessage()
    assert message.startswith("TLS handshake with ")
    assert "\n" not in message


async def test_silent_clients_run_out_of_time_and_others_are_served(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gain_trio")
    silent = []
    async with serving(echo, handshake_timeout=7) as server:
        for number in range(60):
            silent.append(await gain_trio.connect(where(server)))
            if number % 10 == 0:
                async with await connect(server) as client:
                    await client.send(b"hello")
                    assert await client.receive() == b"hello"
        kept = await connect(server)
        await until(lambda: server.active_connections == 61)
        mock_clock.jump(6.9)
        await wait_all_tasks_blocked()
        assert server.statistics().failed_handshakes == 0
        mock_clock.jump(0.2)
        await until(lambda: server.statistics().failed_handshakes == 60)
        for client in silent:
            assert await client.receive() == b""
            await client.aclose()
        await kept.send(b"still here")
        assert await kept.receive() == b"still here"
        await kept.aclose()
    assert {record.getMessage().partition("failed: ")[2] for record in caplog.records} == {
        "it was not done within 7 seconds"
    }


async def test_cancelling_the_server_in_the_middle_of_a_handshake() -> None:
    async with serving(echo) as server:
        client = await gain_trio.connect(where(server))
        await until(lambda: server.active_connections == 1)
    assert server.active_connections == 0
    assert await client.receive() == b""
    await client.aclose()


# --- many ---


def test_a_hundred_at_once_leave_nothing(no_descriptor_leak: None) -> None:
    data = pattern(100_000)

    async def exchange(server: Server) -> None:
        async with await connect(server) as client, trio.open_nursery() as nursery:
            nursery.start_soon(client.send, data)
            assert await client.receive_exactly(len(data)) == data

    async def main() -> None:
        with trio.fail_after(PATIENCE):
            async with serving(echo, workers=3) as server:
                async with trio.open_nursery() as clients:
                    for _ in range(100):
                        clients.start_soon(exchange, server)
                await until(lambda: server.active_connections == 0)
                now = server.statistics()
                assert (now.accepted, now.handler_errors, now.broken, now.failed_handshakes) == (100, 0, 0, 0)

    trio.run(main)


def test_the_end_of_the_run_closes_what_is_open(no_descriptor_leak: None) -> None:
    async def main() -> list[int]:
        left = await open_tls_pair()
        descriptors = [connection.fileno() for connection in left]
        assert all(map(is_open, descriptors))
        kept.extend(left)
        return descriptors

    kept: list[TlsConnection] = []
    descriptors = trio.run(main)
    assert not any(map(is_open, descriptors))

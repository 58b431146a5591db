"""TLS: the contract of a connection once more, and what is different."""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import random
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from support.certificates import TLS_1_2, TLS_1_3, client_context, open_tls_pair, server_context
from support.descriptors import is_open
from support.pairs import (
    MEBIBYTE,
    PATIENCE,
    Pair,
    open_pair,
    open_unix_pair,
    pattern,
    receive_all,
    receive_exactly,
    until,
)
from support.servers import echo
from support.tls_pairs import SMALL, TlsPair, clog, connect_tls, serving_tls, where
from trio.testing import MockClock, assert_checkpoints, check_two_way_stream, wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection, IncompleteMessage, Marks, MessageTooLong
from gain_trio._transports._peer_progress import STALL
from gain_trio._transports._tls._tls_connection import TlsConnection
from gain_trio._transports._tls._tls_traffic import CHUNK, CONTROL_ROOM

pytestmark = pytest.mark.connections

# --- it is one of Trio's streams ---
#
# Half-closing is not to be checked: neither trio.SSLStream nor Python's ssl can do it, and send_eof() says so.


@pytest.mark.slow
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


@pytest.mark.slow
async def test_trios_own_checks_the_other_way_round() -> None:
    async def served_first() -> TlsPair:
        client, served = await open_tls_pair()
        return served, client

    with trio.fail_after(PATIENCE):
        await check_two_way_stream(served_first, None)


@pytest.mark.slow
@pytest.mark.parametrize("over", ["TCP", "a Unix socket"])
async def test_trios_own_checks_of_its_stream_on_our_connection(over: str, tmp_path: Path) -> None:
    names = itertools.count()

    async def make() -> tuple[trio.SSLStream[Connection], trio.SSLStream[Connection]]:
        client, served = await (open_pair() if over == "TCP" else open_unix_pair(f"unix://{tmp_path}/{next(names)}"))
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

    async with serving_tls(handler) as server:
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

    async with serving_tls(handler, strict=True) as server:
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
    async with serving_tls(handler) as server:
        async with await connect_tls(server, ssl_context=ours) as client:
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
    """The connection releases the buffer even while other code has a reference to the error."""
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
    assert trio.current_time() - before == pytest.approx(STALL)
    with pytest.raises(trio.BrokenResourceError):
        await receive_all(served)
    served.abort()


async def test_aclose_with_something_unread_is_no_reset(tls_pair: TlsPair) -> None:
    """A server with TLS 1.3 sends unrequested session tickets; a reset because of them would lose the client's data."""
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


@pytest.mark.parametrize("how", ["abort", "_close_now"])
async def test_another_thread_is_refused_before_anything_has_changed(tls_pair: TlsPair, how: str) -> None:
    client, served = tls_pair
    await client.send(b"unread")

    def close() -> None:
        getattr(served, how)()

    with pytest.raises(RuntimeError, match="another thread"):
        await trio.to_thread.run_sync(close)
    assert await served.receive() == b"unread"
    await served.send(b"untouched")
    assert await client.receive() == b"untouched"
    close()
    with pytest.raises(trio.ClosedResourceError):
        await served.receive()


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
            nursery.start_soon(receive_all, served)  # which ends properly: no record was cut off
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

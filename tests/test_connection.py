"""A connection: receiving, sending, ending, and what can go wrong."""

from __future__ import annotations

import array
import contextlib
import copy
import errno
import gc
import os
import pickle
import random
import socket
import ssl
import struct
import threading
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trustme
from pairs import (
    MEBIBYTE,
    PATIENCE,
    Pair,
    clog,
    is_open,
    open_pair,
    open_trio_pair,
    pattern,
    receive_all,
    receive_exactly,
    until,
    until_queued,
)
from trio.testing import MockClock, assert_checkpoints, check_half_closeable_stream, wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection, Marks
from gain_trio._transports._connection_base import CLOSE_TIMEOUT


def reset(connection: trio.SocketStream) -> None:
    """End it with RST."""
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.socket.close()


# --- it is one of Trio's streams ---


async def open_clogged_pair() -> Pair:
    client, served = await open_pair()
    await clog(client)
    await clog(served)
    return client, served


async def test_trios_own_checks() -> None:
    with trio.fail_after(60):
        await check_half_closeable_stream(open_pair, open_clogged_pair)


async def test_trios_own_checks_the_other_way_round() -> None:
    async def served_first() -> Pair:
        client, served = await open_pair()
        return served, client

    with trio.fail_after(60):
        await check_half_closeable_stream(served_first, None)


async def test_tls(pair: Pair) -> None:
    authority = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    client = trio.SSLStream(pair[0], client_context, server_hostname="localhost")
    served = trio.SSLStream(pair[1], server_context, server_side=True)
    data = pattern(MEBIBYTE)

    async def echo() -> None:
        async for received in served:
            await served.send_all(received)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        nursery.start_soon(client.send_all, data)
        assert await receive_exactly(client, len(data)) == data
        await client.aclose()


# --- receiving ---


async def test_receive_returns_what_arrived(pair: Pair) -> None:
    client, served = pair
    await client.send(b"one")
    assert await served.receive() == b"one"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, b"two")
        assert await served.receive(None) == b"two"


async def test_receive_at_most(pair: Pair) -> None:
    client, served = pair
    await client.send(b"abcdef")
    await until_queued(served, 6)
    assert await served.receive(1) == b"a"
    assert await served.receive(max_bytes=2) == b"bc"
    assert await served.receive(100) == b"def"


@pytest.mark.parametrize(
    ("max_bytes", "error"),
    [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("1", TypeError), (1 << 70, OverflowError)],
)
@pytest.mark.parametrize("method", ["receive", "receive_some"])
async def test_receive_refuses(pair: Pair, method: str, max_bytes: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        await getattr(pair[1], method)(max_bytes)


async def test_receive_refuses_other_arguments(pair: Pair) -> None:
    receive: Callable[..., Awaitable[bytes]] = pair[1].receive
    for arguments, names in [((1, 2), {}), ((1,), {"max_bytes": 1}), ((), {"size": 1})]:
        with pytest.raises(TypeError, match=r"receive\(\)"):
            receive(*arguments, **names)


async def test_the_end_of_the_stream_stays(pair: Pair) -> None:
    client, served = pair
    await client.send(b"last")
    await client.aclose()
    assert await served.receive() == b"last"
    for _ in range(3):
        assert await served.receive() == b""
        assert await served.receive_some() == b""
        assert await served.receive_into(bytearray(1)) == 0


async def test_async_for(pair: Pair) -> None:
    client, served = pair
    data = pattern(300_000)
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            for start in range(0, len(data), 999):
                await client.send(data[start : start + 999])
            await client.send_eof()

        nursery.start_soon(send)
        assert b"".join([received async for received in served]) == data
    assert [received async for received in served] == []


@pytest.mark.parametrize("wait", [True, False], ids=["waits", "from memory"])
async def test_receive_into(pair: Pair, wait: bool) -> None:
    client, served = pair
    buffer = bytearray(8)

    async def send(data: bytes) -> None:
        if wait:
            await wait_all_tasks_blocked()
        await client.send(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, b"0123456789")
        if not wait:
            await until_queued(served, 10)
        assert await served.receive_into(buffer) == 8
    assert buffer == b"01234567"
    assert await served.receive_into(memoryview(buffer)[2:]) == 2
    assert buffer == b"01894567"
    buffer.clear()  # and it is no longer exported


async def test_receive_into_any_writable_buffer(pair: Pair) -> None:
    client, served = pair
    await client.send(struct.pack("=ii", 1, 2))
    await until_queued(served, 8)
    numbers = array.array("i", [0, 0, 7])
    assert await served.receive_into(numbers) == 8
    assert list(numbers) == [1, 2, 7]


@pytest.mark.parametrize(
    ("buffer", "error"),
    [
        (b"read-only", BufferError),
        (memoryview(b"read-only"), BufferError),
        (memoryview(bytearray(8))[::2], BufferError),
        ("text", TypeError),
        (None, TypeError),
        (bytearray(), ValueError),
    ],
)
async def test_receive_into_refuses(pair: Pair, buffer: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        await pair[1].receive_into(buffer)


async def test_a_buffer_is_pinned_while_received_into(pair: Pair) -> None:
    _client, served = pair
    buffer = bytearray(8)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.receive_into, buffer)
            await wait_all_tasks_blocked()
            with pytest.raises(BufferError):
                buffer.clear()
            scope.cancel()
    buffer.clear()


async def test_peek_next_discard(pair: Pair) -> None:
    client, served = pair
    assert (served.peek(), served.next(), served.discard(), served.inbound_buffered) == (b"", b"", 0, 0)
    assert (served.peek(5), served.next(5), served.discard(5)) == (b"", b"", 0)
    await client.send(b"0123456789")
    await until_queued(served, 10)
    assert served.peek() == served.peek(None) == served.peek(100) == b"0123456789"
    assert (served.peek(3), served.peek(0), served.next(0), served.discard(0)) == (b"012", b"", b"", 0)
    assert served.inbound_buffered == 10
    assert (served.next(2), served.discard(2), served.peek(2)) == (b"01", 2, b"45")
    assert served.inbound_buffered == 6
    assert await served.receive(1) == b"4"
    assert (served.discard(100), served.inbound_buffered) == (5, 0)
    await client.send(b"abc")
    await until_queued(served, 3)
    assert (served.next(100), served.next()) == (b"abc", b"")
    await client.send(b"def")
    await until_queued(served, 3)
    assert (served.next(), served.inbound_buffered) == (b"def", 0)


async def test_peek_next_discard_over_several_arrivals(pair: Pair) -> None:
    client, served = pair
    for number, piece in enumerate([b"ab", b"cd", b"ef"], 1):
        await client.send(piece)
        await until_queued(served, 2 * number)
    assert (served.peek(), served.next(3), served.peek(2), served.discard(1)) == (b"abcdef", b"abc", b"de", 1)
    await client.send(b"gh")
    await until_queued(served, 4)
    assert await served.receive() == b"efgh"


@pytest.mark.parametrize(("count", "error"), [(-1, ValueError), (1.5, TypeError), ("1", TypeError)])
@pytest.mark.parametrize("method", ["peek", "next", "discard"])
async def test_peek_next_discard_refuse(pair: Pair, method: str, count: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        getattr(pair[1], method)(count)
    with pytest.raises(TypeError):
        getattr(pair[1], method)(1, 2)


async def test_taking_what_a_parked_receive_was_woken_for(pair: Pair) -> None:
    """A sibling empties the queue between the waking of a task and its step: the task waits on."""
    client, served = pair
    received: list[bytes] = []

    async def receive() -> None:
        received.append(await served.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        taken = b""
        for number in range(20):
            await client.send(bytes([number]))
            while not taken.endswith(bytes([number])) and not received:
                taken += served.next()
                await trio.lowlevel.checkpoint()
            if received:
                break
        else:
            await client.send(b"x")
    assert len(received) == 1
    assert received[0]


# --- sending ---


@pytest.mark.parametrize(
    "data",
    [
        b"bytes",
        bytearray(b"bytearray"),
        memoryview(b"memoryview"),
        memoryview(bytearray(b"a writable one"))[2:],
        array.array("i", [1, 2, 3]),
        memoryview(array.array("d", [1.5, 2.5])),
        type("Bytes", (bytes,), {})(b"a subclass"),
    ],
    ids=lambda data: type(data).__name__,
)
@pytest.mark.parametrize("method", ["send", "send_all"])
async def test_send_takes_any_buffer(pair: Pair, method: str, data: Any) -> None:
    client, served = pair
    expected = memoryview(data).tobytes()
    assert await getattr(client, method)(data) is None
    assert await receive_exactly(served, len(expected)) == expected


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ("text", TypeError),
        (None, TypeError),
        (5, TypeError),
        ([1], TypeError),
        (memoryview(b"abcdef")[::2], BufferError),
    ],
)
@pytest.mark.parametrize("method", ["send", "send_all"])
async def test_send_refuses(pair: Pair, method: str, data: Any, error: type[Exception]) -> None:
    client, served = pair
    with pytest.raises(error):
        await getattr(client, method)(data)
    await client.send(b"fine")
    assert await served.receive() == b"fine"


async def test_the_caller_may_change_its_buffer(pair: Pair) -> None:
    client, served = pair
    expected = b""
    for length in (1, 100, 4096, 4097, 60_000):
        buffer = bytearray(pattern(length))
        expected += buffer
        await client.send(buffer)
        buffer[:] = bytes(length)
        buffer.clear()
    assert await receive_exactly(served, len(expected)) == expected


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_large_sends_to_a_slow_reader(pair: Pair, kind: Callable[[bytes], Any]) -> None:
    client, served = pair
    data = pattern(8 * MEBIBYTE)

    async def send() -> None:
        buffer = kind(data)
        await client.send(buffer)
        if isinstance(buffer, bytearray):
            buffer[:] = bytes(len(buffer))
        await client.send_eof()

    received = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while piece := await served.receive(20_011):
            received += piece
            await trio.lowlevel.checkpoint()
    assert received == data


async def test_small_and_large_sends_keep_their_order(pair: Pair) -> None:
    client, served = pair
    lengths = [1, 4096, 3, 70_000, 0, 5, 4095, 300_000, 4097, 2, 65_536, 65_535, 10] * 3
    pieces = [bytes([number % 251]) * length for number, length in enumerate(lengths)]

    async def send() -> None:
        for number, piece in enumerate(pieces):
            await client.send(piece if number % 3 else bytearray(piece))
        await client.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        assert await receive_all(served) == b"".join(pieces)


async def test_flush_and_outbound_buffered(pair: Pair) -> None:
    client, served = pair
    assert client.outbound_buffered == 0
    await client.flush()
    await client.send(b"small")
    assert client.outbound_buffered in (0, 5), "the kernel may have taken it already"
    await client.flush()
    assert client.outbound_buffered == 0
    assert await served.receive() == b"small"

    data = pattern(16 * MEBIBYTE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, data)
        await wait_all_tasks_blocked()
        assert client.outbound_buffered >= 256 * 1024
        assert await receive_exactly(served, len(data)) == data
    await client.flush()
    assert client.outbound_buffered == 0


async def test_flush_waits(pair: Pair) -> None:
    client, served = pair
    await clog(client)
    flushed = False

    async def flush() -> None:
        nonlocal flushed
        await client.flush()
        flushed = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flush)
        await wait_all_tasks_blocked()
        assert not flushed
        await receive_exactly(served, 24 * MEBIBYTE)


@pytest.mark.full_ring
async def test_sends_in_one_step_leave_together(pair: Pair) -> None:
    client, served = pair
    for _ in range(100):
        await client.send(b"x")
    assert client.outbound_buffered == 100
    assert await receive_exactly(served, 100) == b"x" * 100


async def test_an_empty_send_sends_nothing(pair: Pair) -> None:
    client, served = pair
    await client.send(b"")
    await client.send_all(bytearray())
    assert client.outbound_buffered == 0
    await client.send(b"x")
    assert await served.receive() == b"x"


async def test_a_send_that_is_not_awaited_does_nothing(pair: Pair) -> None:
    client, served = pair
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)  # where it is a coroutine
        client.send(b"not this")
        call = client.send(bytearray(b"nor this"))
        del call
    await client.send(b"this")
    await client.aclose()
    assert await receive_all(served) == b"this"


# --- calls as objects ---


async def test_a_call_is_awaited_once(pair: Pair) -> None:
    client, served = pair
    sending = client.send(b"once")
    await sending
    with pytest.raises(RuntimeError, match="cannot reuse"):
        await sending
    receiving = served.receive()
    assert await receiving == b"once"
    with pytest.raises(RuntimeError, match="cannot reuse"):
        await receiving


async def test_a_call_that_waits_is_not_awaited_by_another_task(pair: Pair) -> None:
    client, served = pair
    call = served.receive()
    received: list[bytes] = []

    async def await_it() -> None:
        received.append(await call)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(await_it)
        await wait_all_tasks_blocked()
        with trio.fail_after(5), pytest.raises(RuntimeError, match="awaited"):
            await call
        await client.send(b"for the first")
    assert received == [b"for the first"]


async def test_calls_as_tasks(pair: Pair) -> None:
    client, served = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.receive)
        nursery.start_soon(client.send, b"x")
    assert served.inbound_buffered == 0


async def test_one_receiver_at_a_time(pair: Pair) -> None:
    client, served = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.receive)
        await wait_all_tasks_blocked()
        for call in (served.receive, lambda: served.receive_into(bytearray(1)), served.receive_some):
            with pytest.raises(trio.BusyResourceError, match="receiving"):
                await call()
        await client.send(b"x")
    await client.send(b"y")
    assert await served.receive() == b"y"


async def test_one_sender_at_a_time(pair: Pair) -> None:
    client, served = pair
    await clog(client)
    first: list[Callable[[], Awaitable[None]]] = [
        lambda: client.send(b"x"),
        client.flush,
        client.wait_send_all_might_not_block,
    ]
    second = [*first, lambda: client.send_all(b"x"), client.send_eof]
    for blocked in first:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(blocked)
            await wait_all_tasks_blocked()
            for call in second:
                with pytest.raises(trio.BusyResourceError, match="sending"):
                    await call()
            nursery.cancel_scope.cancel()
    assert await receive_exactly(served, 24 * MEBIBYTE) == bytes(24 * MEBIBYTE)
    await client.aclose()
    assert await served.receive() == b""  # no send that was cancelled over the high mark has left anything


async def test_sends_cancelled_over_the_high_mark_queue_nothing(pair: Pair) -> None:
    client, _served = pair
    await clog(client)
    before = client.outbound_buffered
    for data in (b"x" * 100_000, b"x", bytearray(100)):
        for _ in range(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send, data)
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
    assert client.outbound_buffered == before


async def test_one_receives_while_another_sends(pair: Pair) -> None:
    client, served = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.receive)
        await wait_all_tasks_blocked()
        await served.send(b"the other direction")
        assert await client.receive() == b"the other direction"
        nursery.cancel_scope.cancel()


# --- half closing ---


async def test_send_eof(pair: Pair) -> None:
    client, served = pair
    await client.send(b"the end")
    for _ in range(3):
        with assert_checkpoints():
            await client.send_eof()
    for call in (client.send, client.send_all):
        for data in (b"more", b""):
            with pytest.raises(trio.ClosedResourceError, match="send_eof"):
                await call(data)
    assert await receive_all(served) == b"the end"
    await served.send(b"answer")
    assert await client.receive() == b"answer"
    await served.send_eof()
    assert await client.receive() == b""
    await client.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await client.send_eof()


async def test_send_eof_flushes(pair: Pair) -> None:
    client, served = pair
    data = pattern(4 * MEBIBYTE)
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            await client.send(data)
            await client.send_eof()
            assert client.outbound_buffered == 0

        nursery.start_soon(send)
        assert await receive_all(served) == data


async def test_a_cancelled_send_eof_is_none(pair: Pair) -> None:
    client, served = pair
    with trio.CancelScope() as scope:
        scope.cancel()
        await client.send_eof()
    assert scope.cancelled_caught
    await client.send(b"still open")
    assert await served.receive() == b"still open"


# --- closing ---


async def test_aclose_flushes() -> None:
    client, served = await open_pair()
    data = pattern(4 * MEBIBYTE)

    async def send() -> None:
        await client.send(data)
        await client.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        assert await receive_all(served) == data
    await served.aclose()


async def test_aclose_is_bounded_and_resets(autojump_clock: MockClock) -> None:
    client, served = await open_trio_pair()
    await clog(served)
    start = trio.current_time()
    await served.aclose()
    assert trio.current_time() - start == CLOSE_TIMEOUT
    with pytest.raises(trio.BrokenResourceError) as caught:
        await receive_all(client)
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    await client.aclose()


async def test_a_cancelled_aclose_with_unsent_data_resets() -> None:
    client, served = await open_trio_pair()
    await clog(served)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.aclose)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.ClosedResourceError):
            await served.receive()
        nursery.cancel_scope.cancel()
    with pytest.raises(trio.BrokenResourceError) as caught:
        await receive_all(client)
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    await client.aclose()


async def test_a_cancelled_aclose_with_nothing_unsent_ends_the_stream() -> None:
    client, served = await open_trio_pair()
    await served.send(b"all of it")
    await served.flush()
    with trio.CancelScope() as scope:
        scope.cancel()
        await served.aclose()
    assert scope.cancelled_caught
    assert await receive_all(client) == b"all of it"
    await client.aclose()


async def test_aclose_while_a_receive_is_in_flight_sends_fin() -> None:
    client, served = await open_trio_pair()
    await wait_all_tasks_blocked()
    await served.aclose()
    assert await receive_all(client) == b""
    await client.aclose()


async def test_abort_resets() -> None:
    client, served = await open_trio_pair()
    await served.send(b"dropped or not")
    served.abort()
    served.abort()
    with pytest.raises(trio.BrokenResourceError) as caught:
        await receive_all(client)
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    await served.aclose()
    await client.aclose()


async def test_abort_ends_a_flushing_aclose() -> None:
    client, served = await open_trio_pair()
    await clog(served)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.aclose)
        await wait_all_tasks_blocked()
        served.abort()
    with pytest.raises(trio.BrokenResourceError):
        await receive_all(client)
    await client.aclose()


async def test_a_second_aclose_does_not_disturb_the_first() -> None:
    client, served = await open_trio_pair()
    await clog(served)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.aclose)
        await wait_all_tasks_blocked()
        with assert_checkpoints():
            await served.aclose()
        assert len(await receive_all(client)) == 24 * MEBIBYTE
    await client.aclose()


@pytest.mark.parametrize("round_", range(8))
async def test_aclose_while_a_sender_waits(round_: int) -> None:
    """Trio steps the two in either order; the sender is told, and what it sent is flushed."""
    client, served = await open_trio_pair()
    failed = False

    async def send() -> None:
        nonlocal failed
        with pytest.raises(trio.ClosedResourceError):
            await served.send(bytes(24 * MEBIBYTE))
        failed = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        nursery.start_soon(served.aclose)
        assert len(await receive_all(client)) == 24 * MEBIBYTE
    assert failed
    await client.aclose()


async def test_calls_after_close(pair: Pair) -> None:
    client, _served = pair
    with assert_checkpoints():
        await client.aclose()
    with assert_checkpoints():
        await client.aclose()
    waiting: list[Callable[[], Awaitable[object]]] = [
        client.receive,
        client.receive_some,
        lambda: client.receive_into(bytearray(1)),
        lambda: client.send(b"x"),
        lambda: client.send(b""),
        lambda: client.send_all(b"x"),
        client.flush,
        client.wait_send_all_might_not_block,
        client.send_eof,
        client.__anext__,
    ]
    for call in waiting:
        with pytest.raises(trio.ClosedResourceError):
            await call()
    at_once: list[Callable[[], object]] = [
        client.peek,
        client.next,
        client.discard,
        lambda: client.remote_address,
        lambda: client.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE),
        lambda: client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    ]
    for ask in at_once:
        with pytest.raises(trio.ClosedResourceError):
            ask()
    assert (client.fileno(), client.inbound_buffered, client.outbound_buffered) == (-1, 0, 0)
    assert "closed" in repr(client)
    client.abort()


async def end_by_aclose(connection: Connection) -> None:
    await connection.aclose()


async def end_by_abort(connection: Connection) -> None:
    connection.abort()


@pytest.mark.parametrize("end", [end_by_aclose, end_by_abort])
async def test_calls_in_progress_on_close(pair: Pair, end: Callable[[Connection], Awaitable[None]]) -> None:
    client, served = pair
    await clog(client)
    ended = 0

    async def expect_closed(call: Callable[[], Awaitable[object]]) -> None:
        nonlocal ended
        with pytest.raises(trio.ClosedResourceError):
            await call()
        ended += 1

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_closed, client.receive)
            nursery.start_soon(expect_closed, client.flush)
            await wait_all_tasks_blocked()
            nursery.start_soon(end, client)
            await until(lambda: ended == 2)
            scope.cancel()
    assert ended == 2


@pytest.mark.parametrize("end", [end_by_aclose, end_by_abort])
async def test_a_call_right_after_close_finds_it_closed(
    pair: Pair, end: Callable[[Connection], Awaitable[None]]
) -> None:
    """Not busy, though the call that was in progress has not been told yet."""
    client, served = pair

    async def expect_closed() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await served.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_closed)
        await wait_all_tasks_blocked()
        served.abort()
        with pytest.raises(trio.ClosedResourceError):
            await served.receive()
        await end(client)


async def test_close_with_a_receive_from_memory_left(pair: Pair) -> None:
    client, served = pair
    await client.send(b"never taken")
    await until_queued(served, 5)
    call = served.receive()
    served.abort()
    with pytest.raises(trio.ClosedResourceError):
        await call
    assert served.inbound_buffered == 0


# --- errors from the world ---


async def test_a_reset_breaks_receiving(pair: Pair) -> None:
    client, served = pair
    client.abort()
    for call in (served.receive, served.receive_some, lambda: served.receive_into(bytearray(1))):
        with pytest.raises(trio.BrokenResourceError) as caught:
            await call()
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        assert caught.value.__cause__.errno == errno.ECONNRESET


async def test_what_arrived_before_a_reset_is_received(pair: Pair) -> None:
    client, served = pair
    await client.send(b"before")
    await until_queued(served, 6)
    client.abort()
    await wait_all_tasks_blocked()
    assert await served.receive(3) == b"bef"
    assert await served.receive() == b"ore"
    with pytest.raises(trio.BrokenResourceError):
        await served.receive()


async def test_a_reset_breaks_sending(pair: Pair) -> None:
    client, served = pair
    client.abort()
    with pytest.raises(trio.BrokenResourceError):
        await served.receive()
    with trio.fail_after(10), pytest.raises(trio.BrokenResourceError) as caught:
        while True:
            await served.send(b"x")
            await trio.lowlevel.checkpoint()
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno in (errno.EPIPE, errno.ECONNRESET)
    for call in (served.flush, served.wait_send_all_might_not_block, served.send_eof, lambda: served.send(b"")):
        with pytest.raises(trio.BrokenResourceError):
            await call()
    assert served.outbound_buffered == 0


@pytest.mark.parametrize("call", ["send", "flush", "wait_send_all_might_not_block", "send_eof"])
async def test_a_reset_wakes_a_sender(call: str) -> None:
    client, served = await open_trio_pair()
    await clog(served)
    async with trio.open_nursery() as nursery:

        async def expect_broken() -> None:
            with pytest.raises(trio.BrokenResourceError) as caught:
                await getattr(served, call)(*([b"x"] if call == "send" else []))
            assert isinstance(caught.value.__cause__, OSError)

        nursery.start_soon(expect_broken)
        await wait_all_tasks_blocked()
        reset(client)
    await served.aclose()


async def test_aclose_of_a_broken_connection(pair: Pair) -> None:
    client, served = pair
    await clog(served)
    client.abort()
    with trio.fail_after(CLOSE_TIMEOUT / 2):
        await served.aclose()


async def test_aclose_while_it_breaks() -> None:
    client, served = await open_trio_pair()
    await clog(served)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.aclose)
        await wait_all_tasks_blocked()
        reset(client)


async def test_errors_are_new_each_time(pair: Pair) -> None:
    """No traceback grows, and no context is carried over."""
    client, served = pair
    client.abort()
    errors = []
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError) as caught:
            await served.receive()
        errors.append(caught.value)
    assert errors[0] is not errors[1]
    assert errors[1].__context__ is None or isinstance(errors[1].__context__, OSError)


# --- the socket ---


async def test_addresses(pair: Pair) -> None:
    client, served = pair
    assert client.local_address == served.remote_address
    assert client.remote_address == served.local_address
    assert client.local_address[0] == "127.0.0.1"
    with socket.socket(fileno=os.dup(client.fileno())) as sock:
        assert sock.getsockname() == client.local_address
    assert client.local_address is client.local_address


async def test_remote_address_after_a_reset(pair: Pair) -> None:
    client, served = pair
    expected = client.remote_address
    client.abort()
    with pytest.raises(trio.BrokenResourceError):
        await served.receive()
    with pytest.raises(trio.BrokenResourceError) as caught:
        _ = served.remote_address
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOTCONN
    assert served.local_address == expected


async def test_an_address_that_was_asked_for_is_kept(pair: Pair) -> None:
    client, served = pair
    address, local = served.remote_address, served.local_address
    await served.aclose()
    assert (served.remote_address, served.local_address) == (address, local)


async def test_nodelay_is_on(pair: Pair) -> None:
    for connection in pair:
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_socket_options(pair: Pair) -> None:
    client, _served = pair
    client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 7))
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == struct.pack("ii", 1, 7)
    with pytest.raises(OSError, match=os.strerror(errno.ENOPROTOOPT)):
        client.getsockopt(socket.SOL_SOCKET, 12345)
    assert is_open(client.fileno())


async def test_fileno_stays_the_connections(pair: Pair) -> None:
    client, _served = pair
    descriptor = client.fileno()
    assert descriptor >= 0
    assert not os.get_inheritable(descriptor)
    assert str(descriptor) in repr(client)
    await client.aclose()
    assert client.fileno() == -1
    await until(lambda: not is_open(descriptor))


async def test_context(pair: Pair) -> None:
    client, served = pair
    assert client.context is None
    client.context = {"any": "thing"}
    assert client.context == {"any": "thing"}
    assert served.context is None
    await client.aclose()
    assert client.context == {"any": "thing"}


async def test_no_other_attributes(pair: Pair) -> None:
    with pytest.raises(AttributeError):
        pair[0].user_data = 1  # type: ignore[attr-defined]


# --- life ---


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
async def test_it_has_one_owner(pair: Pair, duplicate: Callable[[Connection], object]) -> None:
    client, served = pair
    with pytest.raises(TypeError, match="a connection cannot be copied or pickled"):
        duplicate(client)
    gc.collect()  # nothing is there that would close the descriptor
    await client.send(b"whole")
    assert await served.receive() == b"whole"


@pytest.mark.parametrize("used", [False, True])
async def test_a_dropped_connection_warns_and_closes(used: bool) -> None:
    client, served = await open_pair()
    descriptor = served.fileno()
    if used:
        await client.send(b"x")
        assert await served.receive() == b"x"
        await served.send(b"y")
        await served.flush()
    with pytest.warns(ResourceWarning, match=r"unclosed <gain_trio\.Connection"):
        del served
        await trio.lowlevel.checkpoint()  # a step that the connection's own news resumed holds it
        gc.collect()
    await until(lambda: not is_open(descriptor))
    assert await receive_all(client) == (b"y" if used else b"")
    await client.aclose()


async def test_a_dropped_connection_in_a_cycle_warns_and_closes() -> None:
    client, served = await open_pair()
    descriptor = served.fileno()
    served.context = [served]
    with pytest.warns(ResourceWarning, match="unclosed"):
        del served
        gc.collect()
    await until(lambda: not is_open(descriptor))
    await client.aclose()


@pytest.mark.full_ring  # what looks again is in C; over sockets such a call fails, too, but with another error
def test_one_that_is_closed_just_when_a_call_begins_to_wait() -> None:
    """A first deadline has the keeper's task spawned, and whoever hears of that may close the connection."""

    class Closer(trio.abc.Instrument):
        connection: Connection | None = None

        def task_spawned(self, _task: trio.lowlevel.Task) -> None:
            if self.connection is not None:
                self.connection.abort()

    closer = Closer()

    async def main() -> None:
        client, served = await open_pair()
        served.read_deadline = trio.current_time() + PATIENCE
        closer.connection = served
        async with client:
            with trio.fail_after(PATIENCE / 2), pytest.raises(trio.ClosedResourceError):
                await served.receive()

    trio.run(main, instruments=[closer])


async def test_a_closed_connection_is_dropped_in_silence(pair: Pair) -> None:
    client, served = await open_pair()
    await client.aclose()
    await served.receive()
    await served.aclose()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del client, served
        gc.collect()


def test_after_the_run_it_is_closed() -> None:
    async def main() -> tuple[Pair, Awaitable[bytes]]:
        pair = await open_pair()
        await pair[0].send(b"queued")
        await until_queued(pair[1], 6)
        return pair, pair[1].receive()

    (client, served), call = gain_trio.run(main)
    for connection in (client, served):
        assert (connection.fileno(), connection.inbound_buffered, connection.outbound_buffered) == (-1, 0, 0)
        for ask in (connection.peek, connection.next, connection.discard, lambda: client.remote_address):
            with pytest.raises(trio.ClosedResourceError):
                ask()
        connection.abort()

    async def in_another_run() -> None:
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: call,
            served.receive,
            served.receive_some,
            lambda: served.send(b"x"),
            served.flush,
            served.send_eof,
        ]
        for again in calls:
            with pytest.raises(trio.ClosedResourceError):
                await again()
        await served.aclose()

    gain_trio.run(in_another_run)


async def test_only_in_its_thread(pair: Pair) -> None:
    client, served = pair

    def in_a_thread() -> None:
        for ask in (served.peek, served.next, served.discard, served.abort):
            with pytest.raises(RuntimeError, match="another thread"):
                ask()
        with pytest.raises(RuntimeError, match="another thread"):
            served.receive().__await__().__next__()

    await trio.to_thread.run_sync(in_a_thread)
    await client.send(b"untouched")
    assert await served.receive() == b"untouched"


async def test_only_in_its_run(pair: Pair) -> None:
    _client, served = pair

    def in_a_thread() -> None:
        async def main() -> None:
            with pytest.raises(RuntimeError, match="another thread"):
                await served.receive()

        gain_trio.run(main)

    await trio.to_thread.run_sync(in_a_thread)


async def test_not_outside_a_task(pair: Pair) -> None:
    client, served = pair

    class Caller(trio.abc.Instrument):
        error: BaseException | None = None

        def before_io_wait(self, _timeout: float) -> None:
            trio.lowlevel.remove_instrument(self)
            try:
                served.receive().__await__().__next__()
            except RuntimeError as error:
                self.error = error

    caller = Caller()
    trio.lowlevel.add_instrument(caller)
    await until(lambda: caller.error is not None)
    assert "must be called from async context" in str(caller.error)
    await client.send(b"x")
    assert await served.receive() == b"x"


def test_many_connections_leave_nothing(no_descriptor_leak: None) -> None:
    async def main() -> None:
        for _ in range(20):
            pairs = [await open_pair() for _ in range(10)]
            for client, served in pairs:
                await client.send(b"x")
                await served.receive()
            for client, served in pairs:
                await client.aclose()
                served.abort()

    gain_trio.run(main)


def test_the_end_of_the_run_closes_what_is_open(no_descriptor_leak: None) -> None:
    kept: list[Connection] = []

    async def main() -> None:
        for _ in range(10):
            kept.extend(await open_pair())
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                for connection in kept[::2]:
                    nursery.start_soon(connection.receive)
                await wait_all_tasks_blocked()
                scope.cancel()

    gain_trio.run(main)
    assert all(connection.fileno() == -1 for connection in kept)


def test_connections_in_threads() -> None:
    def in_a_thread() -> None:
        async def main() -> None:
            client, served = await open_pair()
            async with client, served:
                for _ in range(100):
                    await client.send(b"ping")
                    assert await served.receive() == b"ping"

        try:
            gain_trio.run(main)
        except BaseException as error:
            errors.append(error)

    errors: list[BaseException] = []
    threads = [threading.Thread(target=in_a_thread) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


async def test_connect_refused() -> None:
    [listener] = await gain_trio.open_listeners("tcp://127.0.0.1:0")
    port = listener.local_address[1]
    await listener.aclose()
    with pytest.raises(OSError, match=str(port)):
        await gain_trio.connect(f"tcp://127.0.0.1:{port}")


def test_a_cancelled_connect_leaves_nothing(no_descriptor_leak: None) -> None:
    async def main() -> None:
        [listener] = await gain_trio.open_listeners("tcp://127.0.0.1:0")
        async with listener:
            with trio.CancelScope() as scope:
                scope.cancel()
                await gain_trio.connect(f"tcp://127.0.0.1:{listener.local_address[1]}")
            assert scope.cancelled_caught

    gain_trio.run(main)


# --- nothing is lost ---


async def test_a_cancelled_send_that_waits_keeps_the_order(pair: Pair) -> None:
    """What a cancelled send had queued arrives, whole pieces before what is sent afterwards."""
    client, served = pair
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, b"a" * (24 * MEBIBYTE))
            await wait_all_tasks_blocked()
            scope.cancel()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, b"b")
        received = await receive_exactly(served, 24 * MEBIBYTE + 1)
    assert received == b"a" * (24 * MEBIBYTE) + b"b"


async def test_a_send_cancelled_before_it_runs_sends_nothing(pair: Pair) -> None:
    client, served = pair
    for call in (client.send, client.send_all):
        with trio.CancelScope() as scope:
            scope.cancel()
            await call(b"not this")
        assert scope.cancelled_caught
    await client.send(b"this")
    await client.aclose()
    assert await receive_all(served) == b"this"


async def test_a_receive_cancelled_before_it_runs_takes_nothing(pair: Pair) -> None:
    client, served = pair
    await client.send(b"kept")
    await until_queued(served, 4)
    for call in (served.receive, served.receive_some, lambda: served.receive_into(bytearray(4))):
        with trio.CancelScope() as scope:
            scope.cancel()
            await call()
        assert scope.cancelled_caught
    assert await served.receive() == b"kept"


def test_randomly_cancelled_receives_lose_nothing(resume_in_place: bool) -> None:
    """10,000 of them, cancelled by a deadline, by a sibling, and by the sender in the step in which it sends."""
    attempts = 10_000
    random_ = random.Random(4711)
    numbers = b"".join(number.to_bytes(4, "big") for number in range(60_000))

    async def main() -> None:
        client, served = await open_pair()
        received = bytearray()
        scope = trio.CancelScope()
        cancelled = 0

        async def send() -> None:
            sent = 0
            while sent < len(numbers):
                length = random_.choice([1, 3, 4, 17, 200])
                await client.send(numbers[sent : sent + length])
                sent += length
                if random_.random() < 0.5:
                    await client.flush()
                if random_.random() < 0.3:
                    scope.cancel()
                for _ in range(random_.randrange(4)):
                    await trio.lowlevel.checkpoint()
            await client.aclose()

        async def cancel() -> None:
            while True:
                for _ in range(random_.randrange(1, 5)):
                    await trio.lowlevel.checkpoint()
                scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            nursery.start_soon(cancel)
            for _ in range(attempts):
                with trio.move_on_after(random_.choice([0, 1e-6, 2e-5, 1])) as scope:
                    kind = random_.randrange(3)
                    if kind == 0:
                        received += await served.receive(random_.choice([None, 1, 5]))
                    elif kind == 1:
                        received += await served.receive_some()
                    else:
                        buffer = bytearray(50)
                        received += buffer[: await served.receive_into(buffer)]
                cancelled += scope.cancelled_caught
            while data := await served.receive():
                received += data
            nursery.cancel_scope.cancel()
        assert received == numbers
        assert cancelled > attempts / 10
        await served.aclose()

    gain_trio.run(main, resume_in_place=resume_in_place)


def test_randomly_cancelled_sends_are_whole_or_nothing(resume_in_place: bool) -> None:
    """Of bytes objects, small and large, with a reader that is slow: what returned is there, nothing is there in part."""
    random_ = random.Random(4713)

    async def main() -> None:
        client, served = await open_pair(client_marks=Marks(send_high=20_000))
        scope = trio.CancelScope()
        outcomes: list[bool] = []  # of send number so and so: did it return?
        done = False

        async def send() -> None:
            nonlocal scope, done
            for number in range(1_000):
                length = random_.choice([8, 100, 5_000, 30_000, 200_000])
                message = struct.pack("=II", number, length) + bytes([number % 251]) * (length - 8)
                with trio.move_on_after(random_.choice([0, 1e-5, 1e-4, 1])) as scope:
                    await client.send(message)
                outcomes.append(not scope.cancelled_caught)
            done = True
            await client.aclose()

        async def cancel() -> None:
            while not done:
                for _ in range(random_.randrange(1, 20)):
                    await trio.lowlevel.checkpoint()
                scope.cancel()

        arrived: list[int] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            nursery.start_soon(cancel)
            while header := await served.receive(8):
                header += await receive_exactly(served, 8 - len(header))
                number, length = struct.unpack("=II", header)
                assert await receive_exactly(served, length - 8) == bytes([number % 251]) * (length - 8)
                arrived.append(number)
                for _ in range(random_.randrange(4)):
                    await trio.lowlevel.checkpoint()
        assert arrived == sorted(arrived)
        assert {number for number, returned in enumerate(outcomes) if returned} <= set(arrived)
        assert outcomes.count(False) > 50
        assert any(not outcomes[number] for number in arrived), "some were cancelled while their bytes were on the way"
        await served.aclose()

    gain_trio.run(main, resume_in_place=resume_in_place)


async def test_a_loop_of_calls_that_move_nothing_can_be_cancelled(pair: Pair) -> None:
    client, served = pair
    await client.send_eof()
    buffer = bytearray(1)

    async def for_ever(call: Callable[[], Awaitable[object]]) -> None:
        while True:
            await call()

    for call in (
        served.receive,
        lambda: served.receive_into(buffer),
        lambda: served.send(b""),
        lambda: served.send(buffer[:0]),
    ):
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(for_ever, call)
                for _ in range(10):  # the others get their turns
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()


@pytest.mark.parametrize("how", ["cancel", "aclose"])
async def test_a_torn_send_never_looks_complete(pair: Pair, how: str) -> None:
    client, served = pair
    data = bytearray(24 * MEBIBYTE)
    received = 0

    async def read_all() -> None:
        nonlocal received
        while piece := await served.receive():
            received += len(piece)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused_or_not, client.send, data)
        await wait_all_tasks_blocked()  # a part of it is queued, and the peer has read nothing yet
        if how == "cancel":
            nursery.cancel_scope.cancel()
        else:
            await client.aclose()
    if how == "cancel":
        with pytest.raises(trio.BrokenResourceError):
            await client.send(b"the rest, for all the peer knows")
        await client.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await read_all()
    assert received < len(data)


async def refused_or_not(send: Callable[[bytearray], Awaitable[None]], data: bytearray) -> None:
    with contextlib.suppress(trio.ClosedResourceError):
        await send(data)


# --- the end of the run ---


@pytest.mark.parametrize("size", [10, 24 * MEBIBYTE])
def test_what_is_unsent_at_the_end_of_the_run_is_never_taken_for_everything(size: int) -> None:
    """The peer gets all of it, or a reset."""
    sent = pattern(size)

    async def main() -> tuple[Connection, socket.socket]:
        [listener] = await gain_trio.open_listeners("tcp://127.0.0.1:0", marks=Marks(send_high=64 * MEBIBYTE))
        async with listener:
            peer = socket.create_connection(listener.local_address, timeout=PATIENCE)
            served = await listener.accept()
            await served.send(sent)
            return served, peer

    received = b""
    served, peer = trio.run(main)
    assert served.fileno() == -1
    with peer:
        try:
            while data := peer.recv(MEBIBYTE):
                received += data
        except ConnectionResetError:
            assert len(received) <= size
        else:
            assert received == sent

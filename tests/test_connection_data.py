"""Data over a connection: receiving, sending, and cancelled calls, which lose nothing."""

from __future__ import annotations

import array
import contextlib
import random
import struct
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from support.pairs import MEBIBYTE, Pair, clog, open_pair, pattern, receive_all, receive_exactly, until_queued
from support.runs import make_slices_endless
from trio.testing import wait_all_tasks_blocked

import gain_trio
from gain_trio import Marks

pytestmark = [pytest.mark.connections, pytest.mark.features]

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
async def test_sends_in_one_step_leave_together(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    client, served = pair
    make_slices_endless(monkeypatch)
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


# --- nothing is lost ---


async def test_a_cancelled_send_that_waits_keeps_the_order(pair: Pair) -> None:
    """The peer receives what a cancelled send has queued, in whole pieces, before later sends."""
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
    for call in (
        served.receive,
        served.receive_some,
        lambda: served.receive_into(bytearray(4)),
        served.__anext__,
        served.messages().__anext__,
    ):
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
        lambda: anext(served, b""),
        lambda: anext(served.messages(), b""),
        served.wait_data,
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

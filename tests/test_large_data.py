"""Much data: in pieces of every size, as lists of buffers, and to readers that are slow."""

from __future__ import annotations

import array
import hashlib
import math
import random

import pytest
import trio
from support.pairs import MEBIBYTE, Pair, open_pair, pattern, receive_all, receive_exactly, until
from trio.testing import MockClock, wait_all_tasks_blocked

from gain_trio import Marks

pytestmark = [pytest.mark.connections, pytest.mark.features]

KIBIBYTE = 1024
LARGE = 24 * MEBIBYTE
"""More than the kernel holds for a connection."""
RESETS = pytest.mark.parametrize("any_pair", ["TCP", "TLS"], indirect=True)
"""A Unix socket has no reset: its peer sees the end."""


@pytest.fixture
def pair(any_pair: Pair) -> Pair:
    """Every kind of connection."""
    return any_pair


# --- transfers ---


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_random_pieces_arrive_as_they_were_sent(pair: Pair, direction: str) -> None:
    source, target = pair if direction == "up" else pair[::-1]
    rng = random.Random(11)
    sent, received = hashlib.sha256(), hashlib.sha256()
    sizes = [rng.choice([1, 100, 4095, 4096, 65536, 300_000]) + rng.randrange(50) for _ in range(400)]

    async def send() -> None:
        for size in sizes:
            piece = rng.randbytes(size)
            sent.update(piece)
            await source.send(piece if size % 2 else bytearray(piece))
        await source.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        limits = random.Random(12)
        while data := await target.receive(limits.choice([None, 1, 1000, 65536, MEBIBYTE])):
            received.update(data)
    assert received.digest() == sent.digest()


@pytest.mark.parametrize("seed", range(5))
async def test_the_receive_queue_against_a_plain_one(pair: Pair, seed: int) -> None:
    """Large and small pieces arrive in every order, and are looked at and taken in every way."""
    client, served = pair
    rng = random.Random(seed)
    model = bytearray()
    for _ in range(150):
        piece = rng.randbytes(rng.choice([1, 10, 4095, 4096, 4097, 20_000, 70_000]))
        if len(model) + len(piece) < 200_000:
            await client.send(piece)
            model += piece
        wanted = rng.randrange(len(model) + 1)
        if not model:
            continue
        call = rng.randrange(7)
        if call == 0:
            await served._fill(wanted)
            assert served.peek(wanted) == model[:wanted]
            continue
        if call == 1:
            target = bytearray(max(wanted, 1))
            taken = await served.receive_into(target)
            assert target[:taken] == model[:taken]
        elif call == 2:
            assert await served.receive_exactly(wanted) == model[:wanted]
            taken = wanted
        elif call == 3:
            await served._fill(wanted)
            taken = served.discard(wanted)
            assert taken == wanted
        elif call == 4:
            await served._fill(len(model))
            needle = bytes(model[wanted : wanted + 3]) or b"none of it"
            start = rng.randrange(wanted + 1)
            assert served._find(needle, start) == model.find(needle, start)
            continue
        elif call == 5:
            await served._fill(len(model))
            assert served.next() == model
            taken = len(model)
        else:
            data = await served.receive(rng.choice([None, max(wanted, 1)]))
            taken = len(data)
            assert taken
            assert data == model[:taken]
        del model[:taken]


async def test_a_slow_reader_costs_bounded_memory() -> None:
    marks = Marks(receive_high=256 * KIBIBYTE, receive_low=64 * KIBIBYTE, send_high=256 * KIBIBYTE)
    client, served = await open_pair(marks=marks, client_marks=marks)
    sent = 0

    async def send() -> None:
        nonlocal sent
        for _ in range(64):
            await client.send([b"head", pattern(MEBIBYTE)])
            sent += 1
        await client.send_eof()

    async with client, served, trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked(0.05)
        assert sent < 64  # what the kernel holds, and the marks
        assert client.outbound_buffered <= 256 * KIBIBYTE + MEBIBYTE + 4  # the mark, and the message that went over it
        assert served.inbound_buffered <= 256 * KIBIBYTE + 2 * MEBIBYTE  # and the run's receive buffers
        for _ in range(64):
            assert await receive_exactly(served, MEBIBYTE + 4) == b"head" + pattern(MEBIBYTE)
        assert await served.receive() == b""


async def test_many_at_once_after_one_alone() -> None:
    """A single large transfer, then many connections at a time: the receive buffers follow, and nothing is lost."""
    pairs = [await open_pair() for _ in range(40)]

    async def transfer(number: int, total: int) -> None:
        client, served = pairs[number]

        async def send() -> None:
            for _ in range(total // MEBIBYTE):
                await client.send(pattern(MEBIBYTE))
            await client.send_eof()

        async with trio.open_nursery() as inner:
            inner.start_soon(send)
            digest = hashlib.sha256(await receive_all(served)).digest()
        assert digest == hashlib.sha256(pattern(MEBIBYTE) * (total // MEBIBYTE)).digest()

    await transfer(0, 48 * MEBIBYTE)
    async with trio.open_nursery() as nursery:
        for number in range(1, 40):
            nursery.start_soon(transfer, number, 2 * MEBIBYTE)
    for client, served in pairs:
        await client.aclose()
        await served.aclose()


# --- lists of buffers ---


def buffers(rng: random.Random) -> list[bytes | bytearray | memoryview]:
    parts: list[bytes | bytearray | memoryview] = []
    for _ in range(rng.randrange(100)):
        data = rng.randbytes(rng.choice([0, 1, 100, 4095, 4096, 5000, 100_000]))
        parts.append(rng.choice([bytes, bytearray, memoryview])(data))
    return parts


@pytest.mark.parametrize("kind", [list, tuple])
async def test_a_list_is_sent_in_order(pair: Pair, kind: type[list[bytes] | tuple[bytes, ...]]) -> None:
    client, served = pair
    rng = random.Random(3)
    expected = bytearray()

    async def send() -> None:
        for _ in range(30):
            parts = buffers(rng)
            expected.extend(b"".join(parts))
            await client.send(kind(parts))  # type: ignore[arg-type]
            for part in parts:
                if isinstance(part, bytearray):
                    part[:] = bytes(len(part))  # they may be changed afterwards
            expected.extend(b"single")
            await client.send_all([b"sin", bytearray(b"gle")])
        await client.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        received = await receive_all(served)
    assert received == expected


async def test_a_list_of_more_parts_than_a_call_takes(pair: Pair) -> None:
    client, served = pair
    parts = [bytes([number % 251]) * 4096 for number in range(3000)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, parts)
        assert await receive_exactly(served, 3000 * 4096) == b"".join(parts)


async def test_what_a_list_may_hold(pair: Pair) -> None:
    client, served = pair
    numbers = array.array("i", range(1000))
    await client.send([numbers, memoryview(numbers), memoryview(b"abcd").cast("B", (2, 2))])
    assert await receive_exactly(served, 8004) == numbers.tobytes() * 2 + b"abcd"
    for wrong in ([b"x", "text"], [None], [b"x", 3]):
        with pytest.raises(TypeError):
            await client.send(wrong)  # type: ignore[list-item]
    with pytest.raises(BufferError):
        await client.send([b"x", memoryview(b"abcdef")[::2]])
    with pytest.raises(TypeError):
        await client.send({b"x": 1})  # type: ignore[arg-type]
    await client.send([])
    await client.send([b"", bytearray()])
    await client.send([b"nothing of those", b" was sent"])
    assert await receive_exactly(served, 25) == b"nothing of those was sent"


async def test_buffers_of_a_list_are_held_only_while_it_is_sent(pair: Pair) -> None:
    client, served = pair
    buffer = bytearray(LARGE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, [b"head", buffer])
        await wait_all_tasks_blocked()
        with pytest.raises(BufferError):
            buffer.append(0)
        await receive_exactly(served, LARGE + 4)
    buffer.append(0)


@pytest.mark.parametrize("any_pair", ["TCP", "Unix"], indirect=True)  # TLS encrypts a piece at a time
async def test_a_cancelled_list_of_bytes_is_sent_whole(pair: Pair) -> None:
    client, served = pair
    parts = [pattern(LARGE), b"tail", pattern(100_000)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, parts)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, b"and more")
        expected = b"".join(parts) + b"and more"
        assert await receive_exactly(served, len(expected)) == expected


@RESETS
@pytest.mark.parametrize("how", ["cancel", "aclose"])
async def test_a_torn_list_never_looks_complete(pair: Pair, how: str) -> None:
    client, served = pair

    async def send() -> None:
        if how == "cancel":
            await client.send([b"head", bytearray(LARGE), b"tail"])
        else:
            with pytest.raises(trio.ClosedResourceError):
                await client.send([b"head", bytearray(LARGE), b"tail"])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        if how == "cancel":
            nursery.cancel_scope.cancel()
        else:
            await client.aclose()
    if how == "cancel":
        with pytest.raises(trio.BrokenResourceError):
            await client.send([b"the rest, for all the peer knows"])
        await client.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await receive_all(served)


async def test_a_list_waits_for_the_mark_and_is_not_begun_before() -> None:
    client, served = await open_pair(client_marks=Marks(send_high=KIBIBYTE))
    async with client, served:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, bytes(LARGE))
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        with trio.move_on_after(0.01) as scope:
            await client.send([b"never sent"])
        assert scope.cancelled_caught
        await receive_exactly(served, LARGE)
        await until(lambda: client.outbound_buffered == 0)
        await client.send([b"se", b"nt"])
        assert await receive_exactly(served, 4) == b"sent"


async def test_a_reset_breaks_a_list(pair: Pair) -> None:
    client, served = pair
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await client.send([b"head", bytes(LARGE), bytes(LARGE)])

        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        served.abort()


@pytest.mark.parametrize("any_pair", ["TCP", "Unix"], indirect=True)  # TLS encrypts a piece at a time
async def test_of_a_list_that_was_begun_and_is_too_slow_the_rest_is_sent(pair: Pair, autojump_clock: MockClock) -> None:
    client, served = pair
    changing = bytearray(pattern(LARGE))
    parts = [b"head", changing, b"x" * 100_000, b"", memoryview(b"view"), bytearray(b"y" * 10_000), b"tail"]
    expected = b"".join(parts)
    client.write_deadline = trio.current_time() + 5
    with pytest.raises(trio.TooSlowError):
        await client.send(parts)
    changing[:] = bytes(LARGE)  # it is the caller's again
    client.write_deadline = math.inf
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, b"and more")
        assert await receive_exactly(served, len(expected)) == expected
        assert await receive_exactly(served, 8) == b"and more"


@pytest.mark.full_ring
async def test_a_descriptor_is_not_given_away_while_something_is_sent_past_the_connection() -> None:
    client, served = await open_pair()
    client._hold_sends(True)  # type: ignore[attr-defined]  # as send_file() does
    with pytest.raises(trio.BusyResourceError):
        await client._detach()  # type: ignore[attr-defined]
    client._hold_sends(False)  # type: ignore[attr-defined]
    await client.send(b"sound")
    assert await served.receive() == b"sound"
    await client.aclose()
    await served.aclose()

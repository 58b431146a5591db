"""What an idle connection keeps of what it has sent and received: nothing."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from support.pairs import Pair, open_pair, pattern, receive_exactly, until_queued
from support.runs import ring_run

from gain_trio import Connection

pytestmark = [pytest.mark.connections, pytest.mark.full_ring, pytest.mark.usefixtures("no_descriptor_leak")]

FEW = 40
"""Connections of which each could keep something."""
MANY = 200
"""More connections than there are buffers kept for the next sends of any."""
MOST_BUFFERS, LARGEST_BUFFER = 128, 4096
"""How many of them, and of how many bytes, a run keeps at most."""
COPIED = 3000
"""Bytes of a message that is copied, and in a buffer of this size."""
ONE_CONNECTION = 1000
"""Bytes that a connection may take more or less for any other reason."""


@asynccontextmanager
async def pairs(count: int) -> AsyncIterator[list[Pair]]:
    """Open pairs of connections, each of which has sent a little."""
    async with AsyncExitStack() as stack:
        opened = []
        for _ in range(count):
            pair = await open_pair()
            for connection in pair:
                await stack.enter_async_context(connection)
            await exchange(pair, b"a little")
            opened.append(pair)
        yield opened


async def exchange(pair: Pair, message: bytes) -> None:
    client, served = pair
    await client.send(message)
    await client.flush()
    assert await receive_exactly(served, len(message)) == message


async def kept_behind(work: Callable[[], Awaitable[None]]) -> int:
    """How many bytes of memory there are more behind it."""
    before, _ = tracemalloc.get_traced_memory()
    await work()
    after, _ = tracemalloc.get_traced_memory()
    return after - before


@pytest.fixture(autouse=True)
def traced() -> Iterator[None]:
    """Count the memory from before a connection is opened: what is freed then counts, too."""
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


async def test_no_buffer_of_what_was_sent() -> None:
    message = pattern(COPIED)
    async with pairs(FEW) as opened:

        async def send_on_each() -> None:
            for pair in opened:
                await exchange(pair, message)

        assert await kept_behind(send_on_each) < FEW * ONE_CONNECTION


@pytest.mark.parametrize("size", [100, 2000])
async def test_no_buffer_of_what_arrived_in_pieces(size: int) -> None:
    piece = pattern(size)
    async with pairs(FEW) as opened:

        async def receive_on_each() -> None:
            for pair in opened:
                await queue_pieces(pair, piece)
                assert await receive_exactly(pair[1], 3 * size) == 3 * piece

        assert await kept_behind(receive_on_each) < FEW * ONE_CONNECTION


async def queue_pieces(pair: Pair, piece: bytes) -> None:
    """Queue three of them in the second connection, one behind the other in one buffer."""
    client, served = pair
    for number in (1, 2, 3):
        await client.send(piece)
        await until_queued(served, number * len(piece))


async def test_no_places_of_many_pieces_that_were_sent() -> None:
    pieces = [pattern(4096)] * 100  # not copied
    async with pairs(FEW) as opened:

        async def send_on(pair: Pair) -> None:
            client, served = pair
            await client.send(pieces)
            assert await receive_exactly(served, 4096 * len(pieces)) == b"".join(pieces)
            await client.flush()

        async def send_on_each() -> None:
            for pair in opened:
                await send_on(pair)

        for _ in range(FEW):
            await send_on(opened[0])  # large pieces: the run opens buffers for those
        assert await kept_behind(send_on_each) < FEW * ONE_CONNECTION


async def test_one_connection_keeps_no_more_than_one() -> None:
    parts = [pattern(COPIED), pattern(4096)] * FEW  # every other one is copied
    async with pairs(1) as [(client, served)]:

        async def send() -> None:
            await client.send(parts)
            assert await receive_exactly(served, sum(map(len, parts))) == b"".join(parts)
            await client.flush()

        for _ in range(FEW):
            await send()
        assert await kept_behind(send) < FEW * ONE_CONNECTION


async def send_on_all(opened: list[Pair], message: bytes) -> None:
    for client, _ in opened:
        await client.send(message)
    for client, served in opened:
        assert await receive_exactly(served, len(message)) == message
        await client.flush()


async def receive_on_all(opened: list[Pair], message: bytes) -> None:
    piece = message[: len(message) // 3]
    for pair in opened:
        await queue_pieces(pair, piece)
    for _, served in opened:
        assert await receive_exactly(served, 3 * len(piece)) == 3 * piece


@pytest.mark.parametrize("work", [send_on_all, receive_on_all])
async def test_the_buffers_for_any_connection_are_bounded(
    work: Callable[[list[Pair], bytes], Awaitable[None]],
) -> None:
    """Each of many connections has a buffer at the same time, and the run keeps some of them."""
    message = pattern(COPIED)
    async with pairs(MANY) as opened:
        kept = await kept_behind(lambda: work(opened, message))
        assert kept < MOST_BUFFERS * LARGEST_BUFFER + MANY * ONE_CONNECTION


def test_a_run_that_is_over_keeps_none() -> None:
    def kept_by_a_connection(message: bytes) -> int:
        """How many bytes are freed with a closed connection of a run that is over."""
        closed: list[Connection] = []

        async def main() -> None:
            async with pairs(MANY) as opened:
                await send_on_all(opened, message)
                closed.append(opened[0][0])

        ring_run(main)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        closed.clear()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        return before - after

    assert kept_by_a_connection(pattern(COPIED)) < kept_by_a_connection(b"a little") + FEW * ONE_CONNECTION

"""What an idle connection keeps of what it has sent and received: nothing."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from support.pairs import Pair, open_pair, pattern, receive_exactly, until_queued

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


async def test_no_buffer_of_what_arrived_in_pieces() -> None:
    piece = pattern(100)
    async with pairs(FEW) as opened:

        async def receive_on_each() -> None:
            for client, served in opened:
                for number in (1, 2, 3):
                    await client.send(piece)
                    await until_queued(served, number * len(piece))
                assert await receive_exactly(served, 3 * len(piece)) == 3 * piece

        assert await kept_behind(receive_on_each) < FEW * ONE_CONNECTION


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


async def test_the_buffers_for_any_connection_are_bounded() -> None:
    """Each of many connections has a buffer at the same time, and the run keeps some of them."""
    message = pattern(COPIED)
    async with pairs(MANY) as opened:

        async def send_on_all() -> None:
            for client, _ in opened:
                await client.send(message)
            for client, served in opened:
                assert await receive_exactly(served, COPIED) == message
                await client.flush()

        kept = await kept_behind(send_on_all)
        assert kept < MOST_BUFFERS * LARGEST_BUFFER + MANY * ONE_CONNECTION // 2
        assert await kept_behind(send_on_all) < FEW * ONE_CONNECTION

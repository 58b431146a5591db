"""Data that the kernel has received into bytes objects, which the program gets as they are."""

from __future__ import annotations

import os
import random
import socket
import tracemalloc

import pytest
import trio
from support.pairs import Pair, open_pair, pattern, receive_all, receive_exactly, until_queued
from support.runs import bounded, in_child, ring_run, statistics, wait_released
from trio.testing import wait_all_tasks_blocked

import gain_trio
from gain_trio import Marks
from gain_trio._io_manager import current_manager

pytestmark = [pytest.mark.connections, pytest.mark.full_ring, pytest.mark.usefixtures("no_descriptor_leak")]

PIECE = 16384
"""What fills most of such an object."""
ROOM = 20480
"""What one has room for."""
FEW = 40
"""More messages than it takes to see that they are large."""


async def exchange(pair: Pair, message: bytes) -> bytes:
    """What the second connection receives of a message that it waits for."""
    client, served = pair
    received: list[bytes] = []

    async def receive() -> None:
        received.append(await receive_exactly(served, len(message)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        await client.send(message)
    return received[0]


async def warm_up(pair: Pair) -> None:
    """Exchange large messages until they are not copied any more."""
    for _ in range(FEW):
        assert await exchange(pair, bytes(PIECE)) == bytes(PIECE)
    assert statistics().uncopied_pieces > 0


async def test_large_messages_are_not_copied_and_stay_what_they_are() -> None:
    """What the program keeps is not received into again."""
    pair = await open_pair()
    async with pair[0], pair[1]:
        messages = [pattern(PIECE + number)[number:] for number in range(200)]
        kept = [await exchange(pair, message) for message in messages]
        assert statistics().uncopied_pieces > len(messages) // 2
        assert kept == messages
        assert {type(data) for data in kept} == {bytes}
        assert [hash(data) for data in kept] == [hash(message) for message in messages]


async def test_small_messages_are_copied() -> None:
    pair = await open_pair()
    async with pair[0], pair[1]:
        for _ in range(FEW):
            await exchange(pair, b"small")
        assert statistics().uncopied_pieces == 0


async def test_a_connection_goes_back_to_the_shared_buffers() -> None:
    """Then a small message does not wait behind large ones for one of the few objects, and costs what it did."""
    pair = await open_pair()
    async with pair[0], pair[1]:
        await warm_up(pair)
        for number in range(FEW):
            message = b"%d" % number
            assert await exchange(pair, message) == message
        before = statistics().uncopied_pieces
        assert await exchange(pair, bytes(PIECE)) == bytes(PIECE)
        assert statistics().uncopied_pieces == before
        await warm_up(pair)
        assert statistics().uncopied_pieces > before


@pytest.mark.parametrize("seed", range(4))
async def test_messages_of_every_size_arrive_whole_and_in_order(seed: int) -> None:
    rng = random.Random(seed)
    pair = await open_pair()
    async with pair[0], pair[1]:
        for _ in range(30):
            size = rng.choice([1, 100, 15359, 15360, PIECE, ROOM - 1, ROOM, ROOM + 1, 3 * ROOM, 200_000])
            for _ in range(rng.choice([1, 3, 12])):
                message = rng.randbytes(size)
                assert await exchange(pair, message) == message
        assert statistics().uncopied_pieces > 0


@pytest.mark.parametrize("size", [ROOM + 520, 3 * ROOM + 2560])
async def test_the_small_end_of_a_large_message_has_nothing_copied(size: int) -> None:
    client, served = pair = await open_pair()
    async with client, served:
        await warm_up(pair)
        await client.send(pattern(size))
        await until_queued(served, size)
        pieces = [await served.receive() for _ in range(0, size, ROOM)]
        assert b"".join(pieces) == pattern(size)
        assert [len(piece) for piece in pieces] == [*[ROOM] * (size // ROOM), size % ROOM]


async def test_small_pieces_behind_large_ones_do_not_pile_up() -> None:
    """One may stand by itself.  More are put together, as ever: else a byte would occupy fifty."""
    client, served = pair = await open_pair()
    async with client, served:
        await warm_up(pair)
        await client.send(pattern(PIECE))
        await until_queued(served, PIECE)
        for number in range(100):
            await client.send(b"%02d" % number)
            await until_queued(served, PIECE + 2 * number + 2)
        expected = pattern(PIECE) + b"".join(b"%02d" % number for number in range(100))
        assert await served.receive() == expected


@pytest.mark.parametrize("limit", [None, 1, 1000, ROOM, 70_000])
async def test_a_stream_without_gaps(limit: int | None) -> None:
    """A sender that does not wait, and a reader that takes what it likes."""
    client, served = await open_pair()
    data = pattern(3_000_000 if limit != 1 else 100_000)

    async def send() -> None:
        await client.send(data)
        await client.aclose()

    async with served, trio.open_nursery() as nursery:
        nursery.start_soon(send)
        received = bytearray()
        while piece := await served.receive(limit):
            received += piece
        assert received == data


async def test_many_connections_share_the_objects() -> None:
    """More than there are objects, and each receives at once."""

    async def client(address: str, index: int) -> None:
        async with await gain_trio.connect(address) as connection:
            for turn in range(20):
                message = pattern(PIECE + index + turn)[index:]
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(connection.send, message)
                    assert await receive_exactly(connection, len(message)) == message

    async def echo(connection: gain_trio.Connection) -> None:
        while data := await connection.receive():
            await connection.send(data)

    async with trio.open_nursery() as nursery:
        server: gain_trio.Server = await nursery.start(gain_trio.serve, echo, "tcp://127.0.0.1:0")
        host, port, *_ = server.addresses[0]
        async with trio.open_nursery() as clients:
            for index in range(150):
                clients.start_soon(client, f"tcp://{host}:{port}", index)
        assert statistics().uncopied_pieces > 1000
        nursery.cancel_scope.cancel()


async def test_marks_bound_what_is_received_ahead() -> None:
    marks = Marks(receive_high=65536, receive_low=16384)
    client, served = pair = await open_pair(marks=marks)
    async with client, served:
        await warm_up(pair)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, pattern(4_000_000))
            await until_queued(served, 65536)
            await wait_all_tasks_blocked()
            assert len(served.peek()) < 65536 + 32 * ROOM  # the kernel fills 32 buffers before it looks around
            assert await receive_exactly(served, 4_000_000) == pattern(4_000_000)


@pytest.mark.parametrize("end", ["aclose", "abort"])
async def test_what_was_received_last_is_there_at_the_end(end: str) -> None:
    client, served = pair = await open_pair()
    async with served:
        await warm_up(pair)
        await client.send(pattern(PIECE * 3))
        if end == "aclose":
            await client.aclose()
            assert await receive_all(served) == pattern(PIECE * 3)
        else:
            await until_queued(served, PIECE * 3)
            client.abort()
            assert await served.receive_exactly(PIECE * 3) == pattern(PIECE * 3)
    await wait_released()


async def test_a_cancelled_receive_loses_nothing() -> None:
    client, served = pair = await open_pair()
    async with client, served:
        await warm_up(pair)
        for number in range(FEW):
            message = pattern(PIECE + number)
            with trio.CancelScope() as scope:
                scope.cancel()
                await served.receive_exactly(len(message))
            await client.send(message)
            assert await served.receive_exactly(len(message)) == message


@pytest.mark.parametrize("failing", [1, 2])
async def test_without_memory_for_another_object_a_piece_is_copied_or_breaks_the_connection(failing: int) -> None:
    """The copy is smaller, so there may be memory for it.  Nothing is lost in silence."""
    testcapi = pytest.importorskip("_testcapi")
    wait = current_manager("a test").proactor.wait
    client, served = pair = await open_pair()
    async with client, served:
        await warm_up(pair)
        await wait_all_tasks_blocked()
        before = statistics().uncopied_pieces
        message = pattern(PIECE)
        with socket.socket(fileno=os.dup(client.fileno())) as peer:
            assert peer.send(message) == PIECE
        testcapi.set_nomemory(0, failing)
        try:
            wait(0)
        finally:
            testcapi.remove_mem_hooks()
        assert statistics().uncopied_pieces == before
        if failing == 1:
            assert await served.receive() == message
        else:
            with pytest.raises(trio.BrokenResourceError):
                await served.receive()


def test_a_forked_child_leaves_them_alone() -> None:
    async def main() -> None:
        pair = await open_pair()
        async with pair[0], pair[1]:
            await warm_up(pair)
            in_child(lambda: None)
            for number in range(FEW):
                message = pattern(PIECE + number)
                assert await exchange(pair, message) == message

    gain_trio.run(bounded(main))


def test_who_asks_for_larger_buffers_gets_larger_pieces() -> None:
    async def main() -> None:
        pair = await open_pair()
        async with pair[0], pair[1]:
            for _ in range(FEW):
                await exchange(pair, bytes(PIECE))
            assert statistics().uncopied_pieces == 0

    ring_run(main, buffer_size=131072)


def test_a_run_gives_them_back() -> None:
    async def main() -> None:
        pair = await open_pair()
        async with pair[0], pair[1]:
            await warm_up(pair)

    ring_run(main)
    tracemalloc.start()
    try:
        ring_run(main)
        before, _ = tracemalloc.get_traced_memory()
        ring_run(main)
        after, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most - before > 64 * ROOM
    assert after - before < 64 * ROOM / 2

"""The ring holds the socket of a connection that sends often, and lets go of it before its descriptor is closed."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from support.descriptors import descriptor_limit, next_descriptor
from support.pairs import (
    PATIENCE,
    blocking,
    open_pair,
    open_trio_pair,
    open_unix_pair,
    pattern,
    receive_exactly,
    until,
)
from support.restricted import IO_URING_ENTER, refuse
from support.runs import in_child, ring_run, statistics, wait_released

import gain_trio
from gain_trio import Connection

pytestmark = [
    pytest.mark.connections,
    pytest.mark.features,
    pytest.mark.full_ring,
]

ENOUGH = 64
"""Sends after which a connection has a place in the table, where there is one."""


def registers() -> bool:
    return "registered_files" in gain_trio.backend_info().features


async def make_busy(served: Connection, client: trio.abc.ReceiveStream) -> None:
    for number in range(ENOUGH):
        await served.send(bytes([number]))
        assert await client.receive_some(1) == bytes([number])


async def test_only_a_connection_that_sends_often_has_a_place_in_the_table() -> None:
    client, served = await open_pair()
    async with client, served:
        for _ in range(4):
            await served.send(b"x")
            assert await receive_exactly(client, 1) == b"x"
        assert statistics().registered_files == 0
        await make_busy(served, client)
        assert statistics().registered_files == registers()
    await wait_released()
    assert statistics().registered_files == 0


@pytest.mark.parametrize("family", ["tcp", "unix"])
async def test_all_kinds_of_sends_arrive_from_a_busy_connection(family: str, tmp_path: Path) -> None:
    client, served = await (open_pair() if family == "tcp" else open_unix_pair(f"unix://{tmp_path}/socket"))
    large = pattern(3_000_000)  # more than the kernel has room for, and the client does not read yet
    async with client, served, trio.open_nursery() as nursery:
        await make_busy(served, client)
        nursery.start_soon(served.send, large)
        await trio.testing.wait_all_tasks_blocked()
        assert await receive_exactly(client, len(large)) == large
        nursery.start_soon(served.send, [b"head", large, b"tail"])
        assert await receive_exactly(client, len(large) + 8) == b"head" + large + b"tail"


async def close(served: Connection) -> None:
    await served.aclose()


async def abort(served: Connection) -> None:
    served.abort()


async def detach(served: Connection) -> None:
    taken, _ = await served.detach()
    taken.close()


@pytest.mark.parametrize("end", [close, abort, detach])
async def test_the_peer_of_a_busy_connection_sees_its_end(end: Callable[[Connection], Awaitable[None]]) -> None:
    client, served = await open_trio_pair()
    async with client, served:
        await make_busy(served, client)
        await end(served)
        with trio.fail_after(PATIENCE), contextlib.suppress(trio.BrokenResourceError):
            assert await client.receive_some() == b""
        await until(lambda: statistics().registered_files == 0)


async def test_a_socket_that_was_taken_away_ends_with_its_descriptor() -> None:
    """Also where the run does not go on meanwhile: its new owner may have nothing to do with it."""
    client, served = await open_trio_pair()
    async with client, served:
        await make_busy(served, client)
        taken, _ = await served.detach()
        with blocking(client) as peer:
            taken.close()
            assert peer.recv(1) == b""


async def test_a_busy_connection_whose_send_waits_for_room_can_be_closed() -> None:
    client, served = await open_trio_pair()
    async with client, served:
        await make_busy(served, client)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.send, bytes(16_000_000))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        with trio.fail_after(PATIENCE), contextlib.suppress(trio.BrokenResourceError):
            served.abort()
            while await client.receive_some():
                pass
    await wait_released()
    assert statistics().registered_files == 0


async def test_a_child_leaves_the_registered_files_of_its_parent_alone() -> None:
    def end_there() -> None:
        with pytest.raises(RuntimeError, match="belongs to the parent process"):
            served.abort()

    client, served = await open_trio_pair()
    async with client, served:
        await make_busy(served, client)
        in_child(end_there)
        await served.send(b"after")
        assert await client.receive_some(5) == b"after"
        assert statistics().registered_files == registers()


@pytest.mark.needs("registered_files")
@pytest.mark.parametrize("refused", [1, 4], ids=["once", "again with its close"])
def test_bytes_that_the_kernel_had_not_taken_do_not_go_to_the_next_in_the_table(refused: int) -> None:
    """The kernel is out of memory: it fails io_uring_enter(2) with EAGAIN while some sends are behind it."""

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            pairs = [await open_trio_pair() for _ in range(6)]
            for client, served in pairs:
                await stack.enter_async_context(client)
                await stack.enter_async_context(served)
            *senders, (heir_client, heir) = pairs
            sends = 0
            for number, (client, served) in enumerate(senders):
                while statistics().registered_files == number:
                    await served.send(b"x")
                    assert await client.receive_some(1) == b"x"
                    sends += 1
            for _ in range(sends // len(senders) - 1):  # with its next send it has a place
                await heir.send(b"x")
                assert await heir_client.receive_some(1) == b"x"

            # With the three cancels that its close begins with, a sender makes the 5 entries 8.
            refuse(IO_URING_ENTER, errno.EAGAIN, range(len(senders), len(senders) + refused))
            async with trio.open_nursery() as nursery:
                for number, (_client, served) in enumerate(senders):
                    nursery.start_soon(send, served, bytes([number]))
                await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()
                for client, _served in senders:
                    with blocking(client) as peer, pytest.raises(BlockingIOError):
                        peer.setblocking(False)
                        peer.recv(1)  # the kernel has not taken any of them
                senders[0][1].abort()
                await heir.send(b"heir")  # without a step of the run between the two
            assert await heir_client.receive_some() == b"heir"
            for number, (client, _served) in enumerate(senders[1:], 1):
                assert await client.receive_some() == bytes([number])
            with contextlib.suppress(trio.BrokenResourceError):
                assert await senders[0][0].receive_some() in {b"", bytes([0])}

    async def send(served: Connection, data: bytes) -> None:
        with contextlib.suppress(trio.ClosedResourceError):
            await served.send(data)

    in_child(lambda: ring_run(main))


def test_where_the_table_is_full_connections_do_without() -> None:
    async def main() -> None:
        with descriptor_limit(limit * 5):
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(limit + 8):
                    client, served = await open_trio_pair()
                    await stack.enter_async_context(client)
                    await stack.enter_async_context(served)
                    pairs.append((client, served))
                    await make_busy(served, client)
                full = statistics().registered_files
                assert full == (limit if registers() else 0)
                await pairs[0][1].aclose()
                await until(lambda: statistics().registered_files == full - registers())
                client, served = pairs[-1]
                await make_busy(served, client)
                assert statistics().registered_files == full, "it has tried again"
            await wait_released()
            assert statistics().registered_files == 0

    pairs: list[tuple[trio.SocketStream, Connection]] = []
    limit = next_descriptor() + 16  # the table is no larger than the limit of descriptors at the beginning of the run
    with descriptor_limit(limit):
        ring_run(main)

"""A call that runs out of memory, at whichever allocation, has moved nothing."""

from __future__ import annotations

import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from support.pairs import open_pair, until_queued

from gain_trio import Connection, open_datagram_endpoint

pytestmark = [pytest.mark.connections, pytest.mark.full_ring]

MESSAGE = b"m" * 300
"""Longer than the numbers that Python has ready made."""
MAY_NEED_NONE = sys.version_info >= (3, 14)
"""Whether an answer that is there may need no memory: numbers and tuples come from those that were in use before."""


async def answered(call: Awaitable[Any], failing: int) -> Any:
    """What a call answers from memory while the so-maniest allocation fails; MemoryError if it needed that one."""
    testcapi = pytest.importorskip("_testcapi")
    task: Any = trio.lowlevel.current_task()
    read = task._cancel_points  # a counter that a program has is not counted up in place, so that counting allocates
    testcapi.set_nomemory(failing, failing + 1)
    try:
        return await call
    finally:
        testcapi.remove_mem_hooks()
        del read


async def count_to_large_numbers() -> None:
    """So that counting a cancel point allocates, in `answered`."""
    for _ in range(300):
        await trio.lowlevel.checkpoint()


CALLS: dict[str, Callable[[Connection], Awaitable[Any]]] = {
    "whole": lambda served: served.receive(),
    "part": lambda served: served.receive(200),
    "into": lambda served: served.receive_into(bytearray(290)),
}


@pytest.mark.parametrize("name", CALLS)
async def test_receive(name: str) -> None:
    await count_to_large_numbers()
    client, served = await open_pair()
    async with client, served:
        failed = 0
        for failing in range(20):
            await client.send(MESSAGE)
            await until_queued(served, len(MESSAGE))
            try:
                await answered(CALLS[name](served), failing)
            except MemoryError:
                failed += 1
                assert served.peek() == MESSAGE
            served.discard()
        assert failed or (MAY_NEED_NONE and name != "part")


async def test_a_datagram() -> None:
    await count_to_large_numbers()
    async with await open_datagram_endpoint("udp://127.0.0.1:0") as endpoint:
        with socket.socket(type=socket.SOCK_DGRAM) as peer:
            failed = 0
            for failing in range(20):
                peer.sendto(MESSAGE, endpoint.local_address)
                await trio.testing.wait_all_tasks_blocked()
                try:
                    await answered(endpoint.receive(), failing)
                except MemoryError:
                    failed += 1
                    assert (await endpoint.receive())[0] == MESSAGE
            assert failed or MAY_NEED_NONE

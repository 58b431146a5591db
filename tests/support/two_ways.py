"""Runs whose tasks are woken in a given way, and tasks that several tests share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

import gain_trio
from gain_trio import Connection
from support.pairs import open_pair

T = TypeVar("T")


def run_with_pair(body: Callable[[Connection, Connection], Awaitable[T]], resume_in_place: bool, **options: Any) -> T:
    """Call ``body(client, served)`` in a run of its own, and check that its tasks are woken in the given way."""

    async def main() -> T:
        client, served = await open_pair()
        try:
            return await body(client, served)
        finally:
            client.abort()
            served.abort()

    return gain_trio.run(main, resume_in_place=resume_in_place, **options)


async def woken_by(client: Connection, served: Connection, data: bytes = b"x") -> None:
    """Wait for ``data`` and receive it: the caller continues in the step that the arrival has resumed.

    The send returns at once and its data leaves when the task waits; a nursery's end would be a checkpoint.
    """
    await client.send(data)
    assert await served.receive() == data


async def ping_pong(client: Connection, served: Connection, count: int) -> None:
    """Exchange messages of which each end always waits for the next."""

    async def echo() -> None:
        for _ in range(count):
            await served.send(await served.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        for number in range(count):
            await client.send(number.to_bytes(4, "big"))
            assert await client.receive() == number.to_bytes(4, "big")


async def echo_ten(served: Connection) -> None:
    for _ in range(10):
        await served.send(await served.receive())


async def ask_ten(client: Connection) -> None:
    for _ in range(10):
        await client.send(b"ping")
        assert await client.receive() == b"ping"

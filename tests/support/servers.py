"""Servers of streams for the duration of a with statement, and their commonest handler."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import trio

import gain_trio
from gain_trio import Connection, Server
from gain_trio.callbacks import EventServer

LOCAL = "tcp://127.0.0.1:0"


async def echo(connection: Connection) -> None:
    """Send back what arrives, until the end of the stream."""
    async for data in connection:
        await connection.send(data)


async def echo_until_broken(connection: Connection) -> None:
    """Send back what arrives, until the end of the stream or an abort by the peer, which is accepted."""
    with contextlib.suppress(trio.BrokenResourceError):
        async for data in connection:
            await connection.send(data)


@contextlib.asynccontextmanager
async def serving(
    handler: Callable[[Connection], Awaitable[object]], address: str | Sequence[str] = LOCAL, **options: Any
) -> AsyncIterator[Server]:
    """Serve for the duration of a with statement."""
    async with trio.open_nursery() as nursery:
        server = await nursery.start(lambda **status: gain_trio.serve(handler, address, **options, **status))
        assert isinstance(server, Server)
        yield server
        nursery.cancel_scope.cancel()


async def connect(server: Server | EventServer) -> Connection:
    """Open a client of a server on 127.0.0.1."""
    return await gain_trio.connect(f"tcp://127.0.0.1:{server.addresses[0][1]}")

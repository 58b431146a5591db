"""Pairs and a server for the tests of TLS."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from trio.testing import wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection, Marks, Server
from gain_trio._transports._tls._tls_connection import TlsConnection
from gain_trio._transports._tls._tls_traffic import PIECE
from support.certificates import client_context, server_context
from support.servers import serving

TlsPair = tuple[TlsConnection, TlsConnection]
SMALL = Marks(receive_high=8192, receive_low=1024, send_high=8192)


def encrypted(connection: TlsConnection, *messages: bytes) -> bytes:
    """The messages as the peer would get them, each in records of its own; they are not sent."""
    for message in messages:
        assert connection._engine.write(message) == len(message)
    return connection._engine.take_outgoing()


async def clog(connection: TlsConnection, size: int = PIECE) -> None:
    """Send whole pieces until the connection stays over its high mark.  A send cancelled here has sent all its bytes."""

    async def send() -> None:
        while True:
            await connection.send(bytes(size))

    while connection.outbound_buffered < connection._marks.send_high:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await wait_all_tasks_blocked(0.05)  # the peer's kernel may accept some, which makes room
            nursery.cancel_scope.cancel()
        await wait_all_tasks_blocked(0.05)


@asynccontextmanager
async def serving_tls(handler: Callable[[Connection], Awaitable[object]], **options: Any) -> AsyncIterator[Server]:
    """Serve with TLS for the duration of a with statement."""
    options.setdefault("ssl_context", server_context())
    async with serving(handler, **options) as server:
        yield server


def where(server: Server, host: str = "127.0.0.1") -> str:
    return f"tcp://{host}:{server.addresses[0][1]}"


async def connect_tls(server: Server, **options: Any) -> Connection:
    options.setdefault("ssl_context", client_context())
    return await gain_trio.connect(where(server), **options)

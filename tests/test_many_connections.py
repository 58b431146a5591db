"""A run of more connections than it has places for in the near caches: what their turns need is fetched ahead of them."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import trio
from support.pairs import receive_exactly
from support.servers import LOCAL, connect, echo_until_broken, serving

import gain_trio
from gain_trio import Connection, Server
from gain_trio.callbacks import Conn, EventHandler

pytestmark = pytest.mark.connections

CLIENTS = 160
"""With the server's ends 320 connections, of 256 from which on it is done (prefetch.h)."""
ROUNDS = 6


class Echo(EventHandler):
    """Sends back what arrives."""

    def on_read(self, conn: Conn, n: int) -> None:
        conn.write(conn.next(n))


@contextlib.asynccontextmanager
async def calling_back() -> Any:
    async with trio.open_nursery() as nursery:
        yield await nursery.start(lambda **status: gain_trio.callbacks.serve(Echo(), LOCAL, **status))
        nursery.cancel_scope.cancel()


async def exchange(client: Connection, message: bytes) -> None:
    await client.send(message)
    assert await receive_exactly(client, len(message)) == message


async def exchange_and_leave(server: Server) -> None:
    """All at once, round for round; in each some more have gone in the midst of their exchange, and others have come."""
    clients = [await connect(server) for _ in range(CLIENTS)]
    for number in range(ROUNDS):
        async with trio.open_nursery() as nursery:
            for index, client in enumerate(clients):
                nursery.start_soon(exchange, client, f"{number} {index}".encode())
        for index in range(number, CLIENTS, 8):
            await clients[index].send(b"unheard")
            clients[index].abort()
            clients[index] = await connect(server)
    for client in clients:
        await client.aclose()


@pytest.mark.parametrize("kind", ["task", "callbacks"])
async def test_many_connections_are_served_while_some_go(kind: str) -> None:
    async with serving(echo_until_broken) if kind == "task" else calling_back() as server:
        await exchange_and_leave(server)

"""A run of more connections than it has places for in the near caches: what their turns need is fetched ahead of them."""

from __future__ import annotations

import pytest
import trio
from support.event_runs import serving_events
from support.pairs import receive_exactly
from support.servers import connect, echo_until_broken, serving

from gain_trio import Connection, Server, UringStatistics
from gain_trio._command._event_handlers import EchoEvents
from gain_trio.callbacks import EventServer

pytestmark = pytest.mark.connections

CLIENTS = 160
"""With the server's ends 320 connections, of 256 from which on it is done (prefetch.h)."""
ROUNDS = 6


async def exchange(client: Connection, message: bytes) -> None:
    await client.send(message)
    assert await receive_exactly(client, len(message)) == message


async def exchange_and_leave(server: Server | EventServer) -> None:
    """All at once, round for round; in each some more have gone in the midst of their exchange, and others have come."""
    clients = [await connect(server) for _ in range(CLIENTS)]
    found: object = trio.lowlevel.current_statistics().io_statistics
    assert not isinstance(found, UringStatistics) or found.connections > 256
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
    async with serving(echo_until_broken) if kind == "task" else serving_events(EchoEvents()) as server:
        await exchange_and_leave(server)

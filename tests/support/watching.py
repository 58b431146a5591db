"""Clients of control sockets, and handlers that are slow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import trio
from trio.testing import wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection

from .pairs import PATIENCE

ASK = b'{"version": 1, "request": "snapshot"}\n'


async def watcher(path: Path) -> Connection:
    """Connect to a control socket."""
    return await gain_trio.connect(f"unix://{path}")


async def answer_to(client: Connection, request: bytes = ASK) -> Any:
    """Send a request, and return its answer."""
    with trio.fail_after(PATIENCE):
        await client.send(request)
        return json.loads(await client.receive_until(b"\n", max_bytes=1 << 20))


async def look(path: Path) -> Any:
    """Look at a server once."""
    async with await watcher(path) as client:
        return await answer_to(client)


async def look_until(path: Path, condition: Any) -> Any:
    """Look at a server until what there is to see satisfies a condition, and return it."""
    with trio.fail_after(3 * PATIENCE):
        while not condition(seen := await look(path)):
            await wait_all_tasks_blocked()
    return seen


def slow_handlers(seen: Any) -> list[Any]:
    """Those of all processes."""
    return [handler for process in seen["processes"] for handler in process["slow_handlers"]]


async def query_database() -> None:
    """Wait for something other than the peer."""
    await trio.sleep_forever()


async def slow(connection: Connection) -> None:
    """Answer a byte, and then wait for something other than the peer."""
    await connection.receive()
    await connection.send(b"x")
    await query_database()


async def slow_in_nursery(connection: Connection) -> None:
    """Wait for a child that waits for something other than the peer."""
    await connection.receive()
    await connection.send(b"x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(query_database)


async def steps() -> Any:
    """An asynchronous generator that waits."""
    yield 1
    await query_database()


async def slow_in_generator(connection: Connection) -> None:
    """Wait within an asynchronous generator."""
    await connection.receive()
    await connection.send(b"x")
    async for _step in steps():
        pass


class Untouchable:
    """An awaitable of the program's, whose attributes are not to be looked at."""

    def __init__(self) -> None:
        self._waiting = trio.sleep_forever().__await__()  # noqa: ASYNC105 - it is awaited by hand

    def __await__(self) -> Any:
        return self

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return next(self._waiting)

    def send(self, value: Any) -> Any:
        return self._waiting.send(value)

    def throw(self, *error: Any) -> Any:
        return self._waiting.throw(*error)

    def __getattr__(self, name: str) -> Any:
        raise LookupError(name)


async def slow_in_untouchable(connection: Connection) -> None:
    """Wait within an awaitable of the program's own."""
    await connection.receive()
    await connection.send(b"x")
    await Untouchable()


async def idle_in_messages(connection: Connection) -> None:
    """Wait for the next message."""
    async for data in connection.messages():
        await connection.send(data)


async def idle_in_a_child(connection: Connection) -> None:
    """Wait for the peer in one child, and for the end of the server in another."""
    await connection.send(await connection.receive())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.draining.wait)
        nursery.start_soon(connection.receive)


async def send_much(connection: Connection) -> None:
    """Send more than the peer reads."""
    await connection.receive()
    await connection.send(b"x")
    while True:
        await connection.send(bytes(1 << 20))


async def app(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI app that is slow below /slow."""
    if scope["path"].startswith("/slow"):
        await query_database()
    if scope["path"].startswith("/body"):
        await receive()
        await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def slow_datagram(_data: bytes, _address: Any, _endpoint: Any) -> None:
    """Wait for something other than the sender."""
    await query_database()

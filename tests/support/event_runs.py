"""Servers of callbacks in the run of a test, with clients that are tasks of it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio

import gain_trio
from gain_trio.callbacks import Conn, EventHandler, EventServer
from support.event_servers import AsyncRecorder, Recorder
from support.pairs import until
from support.servers import LOCAL

BOTH = pytest.mark.parametrize("make", [Recorder, AsyncRecorder])
THREADS = pytest.mark.parametrize("async_handler", [False, True], ids=["in the run", "in threads"])


@contextlib.asynccontextmanager
async def serving_events(handler: EventHandler, address: str = LOCAL, **options: Any) -> AsyncIterator[EventServer]:
    """Serve for the duration of a with statement."""
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            lambda task_status: gain_trio.callbacks.serve(handler, address, task_status=task_status, **options)
        )
        yield server
        nursery.cancel_scope.cancel()


async def dial(server: EventServer) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", server.addresses[0][1])


async def in_time(condition: Callable[[], bool]) -> None:
    """Wait for a condition, on a mock clock, which advances only when all tasks are blocked."""
    while not condition():  # noqa: ASYNC110 - the condition sets no event
        await trio.sleep(0.5)


async def called(recorder: Recorder, name: str, times: int = 1) -> None:
    await until(lambda: recorder.counts[name] >= times)


def write_back(conn: Conn, n: int) -> None:
    conn.write(conn.next(n))

"""Code for the tests of worker processes: which process serves a connection, and waiting for other processes."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

from gain_trio import Connection, Server
from gain_trio._server._processes._heartbeat import HeartbeatMonitor
from support.fork_server import server_process
from support.pairs import PATIENCE, receive_exactly
from support.servers import connect

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

ARCHITECTURES = ["reactor", "socket_sharding"]

watched: set[HeartbeatMonitor] = set()
"""The monitors that may find their process late, under the fixture ``no_process_is_late``."""


async def soon(condition: Callable[[], bool]) -> None:
    """Wait until a condition in another process holds, without taking the CPU from that process.

    It may take several processes to start one after the other, each some seconds on a machine that is busy.
    """
    with trio.fail_after(3 * PATIENCE):
        while not condition():  # noqa: ASYNC110 - another process sets no event here
            await trio.sleep(0.01)


async def process_of(client: trio.abc.Stream) -> int:
    """The process that serves a connection to tell_process."""
    await client.send_all(b"?")
    return int(await receive_exactly(client, 8))


def children() -> list[int]:
    """The processes that this one has started and that have not been waited for."""
    while True:
        try:
            lists = [Path(f"/proc/self/task/{task}/children").read_text() for task in os.listdir("/proc/self/task")]
        except (
            FileNotFoundError,
            ProcessLookupError,
        ):  # a thread has ended, and its children are another's now: read again
            continue
        return sorted({int(number) for text in lists for number in text.split()} - {server_process()})


def watch(server: Server, pid: int, worker_timeout: float | None = None) -> None:
    """Let the server find this process late, and hung after ``worker_timeout`` seconds: see ``no_process_is_late``."""
    supervisors = server._pool.supervisors  # type: ignore[attr-defined]
    [worker] = [worker for supervisor in supervisors for worker in supervisor.workers if worker.pid == pid]
    monitor = worker._heartbeats
    if worker_timeout is not None:
        monitor.timeout, monitor._most = worker_timeout, worker_timeout / monitor.interval
    watched.add(monitor)


@asynccontextmanager
async def clients_of(server: Server, count: int) -> AsyncIterator[list[Connection]]:
    """Open ``count`` connections, each with one answer of tell_process."""
    clients: list[Connection] = []
    try:
        for _ in range(count):
            clients.append(await connect(server))
            await process_of(clients[-1])
        yield clients
    finally:
        for client in clients:
            client.abort()


@contextmanager
def raises_alone(kind: type[BaseException], match: str = "") -> Iterator[None]:
    """Check that the block raises this exception and nothing else, in any nesting of groups."""
    with pytest.raises(BaseException) as caught:
        yield
    error = caught.value
    while isinstance(error, BaseExceptionGroup):
        [error] = error.exceptions
    assert isinstance(error, kind), error
    assert re.search(match, str(error)), error


class Exit:
    """A wait for the end of a process that may be another process's child."""

    def __init__(self, pid: int) -> None:
        self._descriptor = os.pidfd_open(pid)

    async def wait(self) -> None:
        """Wait until the process has ended."""
        try:
            with trio.fail_after(PATIENCE):
                await trio.lowlevel.wait_readable(self._descriptor)
        finally:
            os.close(self._descriptor)

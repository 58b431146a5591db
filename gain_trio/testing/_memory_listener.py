"""A listener without a socket: a test puts into it what a server is to accept."""

from __future__ import annotations

import errno
from collections import deque
from typing import Any, Final, final

import trio

from gain_trio._transports import Connection, Listener

from ._memory_connection import MemoryConnection

ADDRESS: Final = ("127.0.0.1", 80)
"""Where servers in memory listen."""


@final
class MemoryListener(Listener):
    """What a server accepts from."""

    def __init__(self) -> None:
        self._closed = False
        self._arrived: deque[MemoryConnection | OSError] = deque()
        self._changed = trio.Event()

    def put(self, arrived: MemoryConnection | OSError) -> None:
        """A connection to be accepted, or an error of accept(2).

        Raises:
          OSError: it listens no more.
        """
        if self._closed:
            raise OSError(errno.ECONNREFUSED, "the server in memory drains, or has stopped accepting")
        self._arrived.append(arrived)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def accept(self) -> Connection:
        """See :meth:`Listener.accept`."""
        await trio.lowlevel.checkpoint()
        while True:
            connection = self._accept_ready()
            if connection is not None:
                return connection
            await self._changed.wait()

    def _accept_ready(self) -> Connection | None:
        if self._arrived:
            arrived = self._arrived.popleft()
            if isinstance(arrived, OSError):
                raise arrived
            return arrived
        if self._closed:
            raise trio.ClosedResourceError("this listener was closed")
        return None

    async def _wait_acceptable(self) -> None:
        await trio.lowlevel.checkpoint()
        while not self._arrived and not self._closed:
            await self._changed.wait()

    def _stop(self) -> None:
        self._closed = True
        self._wake()

    def _close(self) -> None:
        self._stop()
        for arrived in self._arrived:
            if isinstance(arrived, MemoryConnection):
                arrived.abort()
        self._arrived.clear()

    async def aclose(self) -> None:
        """See :meth:`Listener.aclose`."""
        self._close()
        await trio.lowlevel.checkpoint()

    @property
    def local_address(self) -> Any:
        """An address that is nowhere."""
        return ADDRESS

    def fileno(self) -> int:
        """Always -1."""
        return -1

    @property
    def _is_released(self) -> bool:
        return True

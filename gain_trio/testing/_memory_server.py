"""A server without a socket, for tests of handlers: everything between accept and close is the real thing."""

from __future__ import annotations

import errno
import itertools
import os
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, final

import attrs
import trio

from gain_trio._server import Handler, Server, ServerConfig, check_handler, merged, serve_listeners
from gain_trio._transports import Connection, Listener, Marks

from ._connection_pair import connection_pair
from ._memory_connection import MemoryConnection

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from gain_trio._server import ServerOptions

ADDRESS: Final = ("127.0.0.1", 80)
_FIRST_PORT: Final = 49152
_OPTIONS: Final = frozenset(
    {
        "at_max_connections",
        "balancer",
        "close_timeout",
        "handshake_timeout",
        "idle_timeout",
        "lifespan",
        "marks",
        "max_connections",
        "max_connections_per_address",
        "proxy_protocol",
        "proxy_timeout",
        "ssl_context",
        "strict",
        "workers",
    }
)
"""The options that make sense without sockets, processes and signals."""


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
            raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
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


@final
class MemoryServer:
    """A server in memory; see :func:`serving`."""

    def __init__(self, listener: MemoryListener, server: Server, marks: Marks) -> None:
        self._listener = listener
        self._marks = marks
        self._ports = itertools.count(_FIRST_PORT)
        self.server = server
        """The server, with its statistics and :meth:`gain_trio.Server.drain`."""

    def connect(self, *, source_address: Any = None, marks: Marks | None = None) -> MemoryConnection:
        """Open a client of the server, which is accepted when the server's task runs.

        Args:
          source_address: the client's address as the handler sees it; by default 127.0.0.1 and a port for each client.
          marks: of the client.

        Raises:
          ConnectionRefusedError: the server drains, or has stopped accepting.
        """
        source = ("127.0.0.1", next(self._ports)) if source_address is None else source_address
        client, served = connection_pair(marks=marks, peer_marks=self._marks, addresses=(source, ADDRESS))
        self._listener.put(served)
        return client

    def fail_accept(self, number: int) -> None:
        """Have the server's next accept raise this errno, before it takes the clients that connect after this.

        ``errno.EMFILE`` and its like make the server log and wait 0.1 seconds; any other ends it.

        Raises:
          ConnectionRefusedError: the server drains, or has stopped accepting.
        """
        self._listener.put(OSError(number, os.strerror(number)))


@asynccontextmanager
async def serving(
    handler: Handler, *, config: ServerConfig | None = None, **options: Unpack[ServerOptions]
) -> AsyncIterator[MemoryServer]:
    """Serve ``handler`` without a socket, for the length of an ``async with`` block; cancel it at its end.

    The server is that of :func:`gain_trio.serve`: it accepts, chooses a consumer, limits, logs, counts and drains.  With
    ``strict=True`` an exception of the handler leaves the block, in an exception group.

    Args:
      handler: an async function of one :class:`gain_trio.Connection`.
      config, options: of :func:`gain_trio.serve`, but for those about sockets, processes, signals and metrics.

    Raises:
      ValueError, TypeError: see :func:`gain_trio.serve`; an option is about what there is not.
    """
    check_handler(handler)
    config = merged(config, **options)
    for field in attrs.fields(ServerConfig):
        if field.name not in _OPTIONS and getattr(config, field.name) != getattr(ServerConfig(), field.name):
            raise ValueError(
                f"{field.name} is about sockets, processes or signals, and a server in memory has none: leave it out"
            )
    listener = MemoryListener()
    async with trio.open_nursery() as nursery:

        async def serve(*, task_status: trio.TaskStatus[Server]) -> None:
            await serve_listeners(handler, [[]], config, listeners=[listener], task_status=task_status)

        server = await nursery.start(serve)
        yield MemoryServer(listener, server, config.marks or Marks())
        nursery.cancel_scope.cancel()

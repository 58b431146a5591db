"""Servers without a socket, for tests: everything between accept and close is the real thing.

Each function here calls the one that a program calls, with a listener in memory in place of the address.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, final

from gain_trio._server import Handler, OpenedListener, Server, ServerConfig, check_handler, merged, serve
from gain_trio._transports import Marks
from gain_trio.asgi import AsgiApp, AsgiConfig
from gain_trio.asgi import serve as serve_asgi
from gain_trio.callbacks import Config, EventHandler, EventServer
from gain_trio.callbacks import serve as serve_events

from ._connection_pair import connection_pair
from ._memory_connection import MemoryConnection
from ._memory_listener import ADDRESS, MemoryListener
from ._memory_options import check_config, check_event_config, options_of_servers
from ._started import started

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from gain_trio._server import ServerOptions
    from gain_trio.asgi import AsgiOptions

T = TypeVar("T")

_FIRST_PORT: Final = 49152


@final
class MemoryServer(Generic[T]):
    """A server in memory: of :func:`serving`, :func:`serving_callbacks` or :func:`serving_app`."""

    def __init__(self, listener: MemoryListener, server: T, marks: Marks) -> None:
        self._listener = listener
        self._marks = marks
        self._ports = itertools.count(_FIRST_PORT)
        self.server: T = server
        """The :class:`gain_trio.Server`, or of callbacks the :class:`gain_trio.callbacks.EventServer`: its statistics, and
        its end."""

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
) -> AsyncIterator[MemoryServer[Server]]:
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
    whole = merged(config, **options)
    check_config(whole)
    async with _listening(functools.partial(serve, handler, config=whole), whole) as server:
        yield server


@asynccontextmanager
async def serving_callbacks(
    event_handler: EventHandler, *, config: Config | None = None, **options: Any
) -> AsyncIterator[MemoryServer[EventServer]]:
    """Serve callbacks without a socket, for the length of an ``async with`` block; cancel the server at its end.

    The server is that of :func:`gain_trio.callbacks.serve`, and so are the callbacks' order, limits and errors.
    ``on_start`` has returned when the block begins.  The ``fd`` of each :class:`gain_trio.callbacks.Conn` is -1, and the
    options of its socket are remembered without effect.

    Args:
      event_handler: a :class:`gain_trio.callbacks.EventHandler`.
      config, options: of :func:`gain_trio.callbacks.serve`, but for those about sockets, processes, signals and metrics.

    Raises:
      ValueError, TypeError: see :class:`gain_trio.callbacks.EventServer`; an option is about what there is not.

    And what leaves ``on_start``.
    """
    described = EventServer(event_handler, config, **options)
    check_event_config(described._config)
    below = merged(None, **described._others)
    check_config(below)
    start = functools.partial(serve_events, event_handler, config=config, **options)
    async with _listening(start, below) as server:
        yield server


@asynccontextmanager
async def serving_app(
    app: AsgiApp | str,
    *,
    config: ServerConfig | None = None,
    asgi: AsgiConfig | None = None,
    **options: Unpack[AsgiOptions],
) -> AsyncIterator[MemoryServer[Server]]:
    """Serve an ASGI app without a socket, for the length of an ``async with`` block; cancel the server at its end.

    The server is that of :func:`gain_trio.asgi.serve`: clients send it HTTP and WebSockets, byte by byte.  The app's
    lifespan has begun when the block does, and has ended after it.  With ``strict=True`` an exception of the app leaves
    the block, in an exception group.

    Args:
      app: an ASGI 3 application, or its name, ``"package.module:app"``.
      config, asgi, options: of :func:`gain_trio.asgi.serve`, but for those about sockets, processes, signals and metrics.

    Raises:
      ValueError, TypeError: see :func:`gain_trio.asgi.serve`; an option is about what there is not.

    And what importing the app raises, and its lifespan at its start.
    """
    below = merged(config, **options_of_servers(options))
    check_config(below)
    start = functools.partial(serve_asgi, app, config=config, asgi=asgi, **options)
    async with _listening(start, below) as server:
        yield server


@asynccontextmanager
async def _listening(start: Callable[..., Any], config: ServerConfig) -> AsyncIterator[MemoryServer[Any]]:
    """Call ``start`` with a listener as its address, for the length of the block."""
    listener = MemoryListener()
    async with started(start, OpenedListener(listener)) as server:
        yield MemoryServer(listener, server, config.marks or Marks())

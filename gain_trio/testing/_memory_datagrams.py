"""A server of datagrams without a socket, for tests."""

from __future__ import annotations

import functools
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Generic, TypeVar, final

from gain_trio._server import (
    DatagramHandler,
    OpenedEndpoint,
    check_datagram_handler,
    serve_datagrams,
)
from gain_trio.callbacks import Config, EventHandler, EventServer
from gain_trio.callbacks import serve as serve_events

from ._memory_endpoint import MemoryEndpoint, Network
from ._memory_listener import ADDRESS
from ._memory_options import check_datagram_options, check_event_config
from ._started import started

T = TypeVar("T")

_FIRST_PORT: Final = 49152
_QUEUE_SIZE: Final = 1024
_QUEUE_BYTES: Final = 4 << 20


@final
class MemoryDatagramServer(Generic[T]):
    """A server of datagrams in memory; see :func:`serving_datagrams`."""

    def __init__(self, network: Network, server: T) -> None:
        self._network = network
        self._ports = itertools.count(_FIRST_PORT)
        self.server: T = server
        """The :class:`gain_trio.DatagramServer`, or of callbacks the :class:`gain_trio.callbacks.EventServer`."""

    def connect(self, *, source_address: Any = None) -> MemoryEndpoint:
        """Open a client: an endpoint that is connected to the server.

        Args:
          source_address: the client's address as the handler sees it; by default 127.0.0.1 and a port for each client.

        Raises:
          ValueError: an open endpoint has this address.
        """
        source = ("127.0.0.1", next(self._ports)) if source_address is None else source_address
        if source in self._network:
            raise ValueError(f"an endpoint has the address {source!r} already: close it first, or choose another one")
        return MemoryEndpoint(self._network, source, ADDRESS, queue_size=_QUEUE_SIZE, queue_bytes=_QUEUE_BYTES)


@asynccontextmanager
async def serving_datagrams(
    handler: DatagramHandler | EventHandler,
    *,
    config: Config | None = None,
    queue_size: int = _QUEUE_SIZE,
    queue_bytes: int = _QUEUE_BYTES,
    **options: Any,
) -> AsyncIterator[MemoryDatagramServer[Any]]:
    """Serve datagrams without a socket, for the length of an ``async with`` block; cancel the server at its end.

    The server is that of :func:`gain_trio.serve_datagrams`, or for an event handler that of
    :func:`gain_trio.callbacks.serve` on a ``udp://`` address.  With ``strict=True`` an exception of the handler leaves the
    block, in an exception group.

    Args:
      handler: an async function of the data, the source address and the endpoint; or an event handler.
      config: of an event handler.
      queue_size, queue_bytes: the bounds of the server's queue; what comes when it is full is dropped and counted.
      options: ``workers``, ``strict`` and ``lifespan``; of an event handler the fields of its config, too.

    Raises:
      ValueError, TypeError: the handler is none, or an option makes no sense or is about what there is not.

    And what leaves ``on_start``, and what the lifespan raises at its start.
    """
    if isinstance(handler, EventHandler):
        described = EventServer(handler, config, **options)
        check_event_config(described._config)
        check_datagram_options({name for name in described._others if name != "graceful_timeout"})
        start: Callable[..., Any] = functools.partial(serve_events, handler, config=config, **options)
    else:
        check_datagram_handler(handler)
        if config is not None:
            raise TypeError("config is of an event handler, and this is a function: leave it out")
        check_datagram_options(options)
        start = functools.partial(serve_datagrams, handler, **options)
    network: Network = {}
    endpoint = MemoryEndpoint(network, ADDRESS, None, queue_size=queue_size, queue_bytes=queue_bytes)
    async with started(start, OpenedEndpoint(endpoint)) as server:
        yield MemoryDatagramServer(network, server)

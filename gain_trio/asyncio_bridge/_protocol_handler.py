"""ProtocolHandler: a handler for serve() out of a class in the shape of asyncio.Protocol."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Final, cast, final

import trio

from gain_trio._callback_base import Pace
from gain_trio._server import AttendingHandler, why_not_called
from gain_trio._transports import Connection, shown

if TYPE_CHECKING:
    import asyncio

    from ._transport import ProtocolTransport

logger = logging.getLogger("gain_trio")

DEFAULT_WRITE_LIMIT = 16 * 1024 * 1024

_CALLBACKS: Final = (
    "connection_made",
    "connection_lost",
    "data_received",
    "eof_received",
    "get_buffer",
    "buffer_updated",
    "pause_writing",
    "resume_writing",
    "server_draining",
)
_MOST_CLASSES: Final = 64
"""The most protocol classes whose check is remembered."""


@functools.lru_cache(maxsize=_MOST_CLASSES)
def _check_callbacks(protocol: type) -> None:
    """Raise a TypeError if a callback is an ``async def``: asyncio calls it, and its coroutine would never run."""
    for name in _CALLBACKS:
        if inspect.iscoroutinefunction(getattr(protocol, name, None)):
            raise TypeError(
                f"{name}() of the protocol {protocol.__qualname__} is an async def, and a protocol is called without being "
                "awaited: make it a def, or serve an async function in place of the protocol"
            )


@final
class ProtocolHandler(AttendingHandler):
    """A handler for :func:`gain_trio.serve` that runs an :class:`asyncio.Protocol`, or an :class:`asyncio.BufferedProtocol`.

    ``serve(ProtocolHandler(MyProtocol), address)`` does what ``loop.create_server(MyProtocol, ...)`` does in asyncio:
    for each connection ``factory()`` makes a protocol, and then ``connection_made(transport)``,
    ``data_received(data)``, ``eof_received()``, ``connection_lost(exc)``, ``pause_writing()`` and ``resume_writing()``
    are called in the order, and with the meaning, that asyncio documents.  The protocol need not inherit from asyncio's
    classes.  ``connection_lost`` is called once for every ``connection_made``, also when the server is cancelled (with
    None: it was closed by this side).

    When the server drains (:meth:`gain_trio.Server.drain`, SIGTERM) idle connections are closed, as by
    ``transport.close()``, and busy ones when they become idle.  A connection is busy while something is unsent or
    undelivered, while nothing was written since the last bytes were delivered, until no byte has come or gone for a
    quarter of a second, and in the first second if its peer has sent nothing yet.  A protocol with a state of its own has
    a method ``server_draining()``, which is called once, when the server begins to drain.  If it returns true the protocol
    closes its transport itself, when it is done; ``graceful_timeout`` bounds that, too.

    There is no event loop: ``asyncio.get_running_loop()`` raises :exc:`RuntimeError` as anywhere in Trio, and so does, in
    the factory and in callbacks, whatever else needs one (``get_event_loop()``, tasks, futures, ``call_later``, streams)
    and would wait for ever.  The message names the call and what takes its place.  For that asyncio's event loop policy is
    wrapped in another one while protocols run.

    The transport is an :class:`asyncio.Transport`.  Its methods may be called from any task of the run, and from no
    other thread. Where it differs from asyncio's:

    - An exception that leaves ``connection_made``, ``data_received``, ``eof_received``, ``get_buffer`` or
      ``buffer_updated`` resets the connection and goes to ``connection_lost``, and then to the server, which logs and
      counts it.  (asyncio carries on after one in ``connection_made``.)  One that leaves ``pause_writing`` or
      ``resume_writing`` is logged, and that is all.
    - ``close()`` waits while the peer accepts bytes, for the connection's ``close_timeout`` at most.  When the peer accepts
      nothing for 5 seconds, or that time is over, the connection is reset, and ``connection_lost`` gets a
      :exc:`TimeoutError`.  In asyncio that may take for ever.
    - ``abort()`` resets the connection, so that the peer does not take a part for the whole.
    - With more than ``write_limit`` bytes that the kernel does not accept, the next write resets the connection, and
      ``connection_lost`` gets a :exc:`gain_trio.callbacks.SlowReader`.  asyncio's buffer has no limit.  A protocol that
      keeps to ``pause_writing()`` never gets there.
    - ``get_extra_info("socket")`` is not a socket, but has the methods of :class:`asyncio.trsock.TransportSocket`.

    Args:
      factory: makes a protocol: its class, or any function without arguments.
      write_limit: bytes.

    Raises:
      TypeError: the factory cannot be called, or takes arguments, or is a class with a callback that is an ``async def``.
      ValueError: ``write_limit`` is less than 1.
    """

    def __init__(self, factory: Callable[[], asyncio.BaseProtocol], *, write_limit: int = DEFAULT_WRITE_LIMIT) -> None:
        if not callable(factory):
            raise TypeError(
                f"the factory must be a protocol class, or a function that makes a protocol, not {factory!r}"
            )
        why = why_not_called(factory, ())
        if why is not None:
            raise TypeError(f"the factory must be a protocol class, or a function without arguments, and {why}")
        if isinstance(factory, type):
            _check_callbacks(factory)
        if write_limit < 1:
            raise ValueError(f"write_limit must be at least 1 byte, not {write_limit}")
        self._factory = factory
        self._write_limit = write_limit
        self._pace = Pace()
        # What the server's log calls it.
        self.__qualname__ = f"ProtocolHandler({getattr(factory, '__qualname__', None) or repr(factory)})"

        self._has_warned = False
        self._attended: set[trio.Event] = set()
        self._running: set[ProtocolTransport] = set()

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes: what is running here is not theirs."""
        return {**self.__dict__, "_attended": set(), "_running": set()}

    def __repr__(self) -> str:
        return f"<gain_trio.asyncio_bridge.{self.__qualname__}>"

    async def attend(self, draining: trio.Event) -> None:
        """Have the protocols of a server end when it drains."""
        self._attended.add(draining)
        try:
            await draining.wait()
        finally:
            self._attended.discard(draining)
        for transport in list(self._running):
            if transport.drains_with(draining):
                transport._drain()

    async def __call__(self, connection: Connection) -> None:
        """Run a protocol on ``connection`` until it is lost.

        Raises what the protocol raised, or :exc:`trio.BrokenResourceError` or :exc:`gain_trio.callbacks.SlowReader`: so the
        server learns how it ended.  Cancelling it closes the connection and calls ``connection_lost(None)``.
        """
        # asyncio takes longer to import than all the rest, and few programs want this.
        from ._no_loop import explain, loop_that_does_not_run, no_loop  # noqa: PLC0415
        from ._transport import ProtocolTransport  # noqa: PLC0415

        with no_loop:
            try:
                protocol = self._factory()
                _check_callbacks(cast("Hashable", type(protocol)))  # which mypy does not see of a class
                if not self._has_warned and (name := loop_that_does_not_run(protocol)) is not None:
                    self._has_warned = True
                    logger.warning(
                        "%s has an event loop of asyncio's (%s) that does not run: Trio runs this program, and what the "
                        "protocol schedules there never happens",
                        shown(type(protocol).__qualname__),
                        shown(name),
                    )
                await self._run(ProtocolTransport(connection, protocol, self._write_limit, self._pace), connection)
            except RuntimeError as error:
                explain(error)
                raise

    async def _run(self, transport: ProtocolTransport, connection: Connection) -> None:
        draining = connection.draining
        scope = None
        if draining not in self._attended:  # it drains already, or another handler has called this one
            scope = trio.CancelScope()
            trio.lowlevel.spawn_system_task(_watch, draining, transport, scope, name="gain_trio watch for a drain")
        self._running.add(transport)
        try:
            await transport.run()
        finally:
            self._running.discard(transport)
            if scope is not None:
                scope.cancel()


async def _watch(draining: trio.Event, transport: ProtocolTransport, scope: trio.CancelScope) -> None:
    """Have one transport drain with its server: a system task."""
    with scope:
        await draining.wait()
        transport._drain()

"""The callbacks, and what is found out about them once, when a server starts."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias, final

import attrs

from gain_trio._server import why_not_called

if TYPE_CHECKING:
    from ._conn import Conn
    from ._event_server import EventServer

Result: TypeAlias = "Awaitable[None] | None"
"""The result of a callback: None from a def, and an awaitable from an async def."""


class EventHandler:
    """The callbacks of a server.  Override those that you want; what is not overridden costs nothing.

    Each may be a ``def`` or an ``async def``.  The callbacks of one connection never run at the same time: the next begins
    when the last has ended, also when it waits.  Those of different connections interleave where an ``async def`` waits; a
    ``def`` that takes long holds up the whole server, but see ``Config.async_handler``.

    An exception that leaves a callback closes its connection (with a reset if something is unsent), is logged with its
    traceback, and is what ``on_close`` gets; the server goes on.  One that leaves ``on_start`` ends the server.
    """

    def on_start(self, server: EventServer) -> Result:
        """The server listens: ``server.addresses`` has where.

        Where connections are served by worker processes (``processes``, ``Config.cpu_affinity``) this is called in the
        server's process, and in none of them.  Their event handlers are copies, made by pickling before: what this one
        keeps in ``self`` is not there, and their callbacks cannot shut the server down.
        """

    def on_accept(self, conn: Conn) -> Result:
        """There is a new connection.  Not called for datagrams.

        Nothing has arrived yet that could be read, but it can be written, closed, and its socket's properties set.
        """

    def on_read(self, conn: Conn, n: int) -> Result:
        """``n`` bytes have arrived; ``conn.next(n)`` takes them.

        On a connection, bytes that the callback does not read stay queued, and the next call comes when more have arrived,
        with the number of the new ones.  That is 64 KiB at most, and about as many as this callback works off in a
        millisecond, so that other connections have their turn between two calls.  When as many are unread as the connection
        holds (``Marks.receive_high``), nothing more is received until some are read, and a warning is logged.  If the peer
        resets the connection meanwhile, it is over, as ever; but the end of the stream comes behind the bytes before it, and
        is not noticed until those are read.  So set ``idle_timeout`` where a peer could send a message larger than the mark,
        which the callback never reads, and go.

        On a datagram, ``n`` is all of it, which may be 0 bytes.  A write is one datagram to its sender.
        """

    def on_write(self, conn: Conn, n: int) -> Result:
        """The kernel has accepted ``n`` bytes of those that were written.

        Called once for bytes that the kernel accepts together: for all that a callback has written, as a rule, and several
        times where the kernel accepts them in parts.  The numbers add up to all that was written, unless the connection
        breaks.
        """

    def on_close(self, conn: Conn, err: BaseException | None) -> Result:
        """The connection is over.  Called once for each that was accepted.  Not called for datagrams.

        Args:
          conn: it is closed, and has its addresses and its context still.
          err: None when the peer or this program has ended it in good order; the :exc:`OSError` that it broke with
            (``ConnectionResetError`` after a reset, ``TimeoutError`` after ``idle_timeout``); :exc:`SlowReader`;
            :exc:`trio.TooSlowError` after a deadline; :exc:`ConnectionAbortedError` when the server was stopped with bytes
            unsent; otherwise what left a callback.

        When the server is being stopped, an ``async def`` has 5 seconds, and is cancelled then.
        """


@final
@attrs.frozen
class Callback:
    """One of them."""

    function: Callable[..., Any]
    is_async: bool
    is_overridden: bool

    async def __call__(self, *arguments: object) -> None:
        """Call it, and await it if it is to be awaited."""
        if self.is_async:
            await self.function(*arguments)
        else:
            self.function(*arguments)


@final
@attrs.frozen
class Callbacks:
    """All of a handler's."""

    handler: EventHandler
    on_start: Callback
    on_accept: Callback
    on_read: Callback
    on_write: Callback
    on_close: Callback

    @classmethod
    def of(cls, handler: EventHandler) -> Callbacks:
        """Find out what there is.

        Raises:
          TypeError: it is a class, it lacks a callback, or one of them is no function that can be called back, or takes
            other arguments.
        """
        if isinstance(handler, type):
            raise TypeError(
                f"the event handler is an object, and {handler.__name__} is a class: write {handler.__name__}()"
            )
        return cls(handler, *(_callback(handler, name, arguments) for name, arguments in _ARGUMENTS.items()))


_ARGUMENTS: Final = {
    "on_start": ("server",),
    "on_accept": ("conn",),
    "on_read": ("conn", "n"),
    "on_write": ("conn", "n"),
    "on_close": ("conn", "err"),
}
"""What the callbacks are called with."""


def _callback(handler: EventHandler, name: str, arguments: tuple[str, ...]) -> Callback:
    function = getattr(handler, name, None)
    if not callable(function):
        raise TypeError(f"the event handler {handler!r} has no {name}(); subclass gain_trio.callbacks.EventHandler")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise TypeError(f"{name}() of {handler!r} is a generator; a callback is a def or an async def without yield")
    why = why_not_called(function, arguments)
    if why is not None:
        raise TypeError(f"{name}() of {handler!r} must be a def {name}(self, {', '.join(arguments)}), and {why}")
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - of an object that is called it is what has to be looked at
    )
    is_overridden = getattr(function, "__func__", None) is not getattr(EventHandler, name)
    return Callback(function, is_async, is_overridden)

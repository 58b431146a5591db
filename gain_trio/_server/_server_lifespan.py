"""The lifespan of a serving process: what a program opens before the first connection, and closes after the last.

``serve(lifespan=...)`` takes a function that returns an async context manager.  The server enters it once in each process
that serves, and leaves it when nothing of the server is left there but the lifespan::

    listening sockets are open
    └─ lifespan                 entered before the first accept: while it waits, clients wait in the backlog
       └─ server nursery        acceptors, consumers, handlers; drained, cancelled or failed
    the lifespan is left        shielded, for a bounded time

*Why the lifespan is in the task of the server*, and not in one beside it: then it may hold a nursery or a cancel scope of
its own across its ``yield``.  An error in a task of that nursery cancels the server and propagates, as in every nursery; an
error of the server reaches the ``yield``; and a context variable that the lifespan sets is set for every handler.

*Why it is shielded from its first connection on.*  A cancellation reaches all tasks below a scope at once.  A pool of
connections, kept by a task in the lifespan's nursery, would end together with the handlers that still need it.  So the
scope around the lifespan is shielded as soon as it has been entered, and a task outside of it passes the cancellation on to
the server alone.  The lifespan is left when that has ended.  While the lifespan is being entered there is nothing to
protect, and a cancellation reaches it directly.

*Why handlers find its value by a context variable.*  Trio's own answer, an argument of the handler, works in one process.
But a worker process unpickles its handler before the lifespan has begun, and callbacks and protocols have signatures of
their own.  An attribute of the connection would be a slot in each of them, and a function without a connection at hand
could not see it.  A context variable is there in the handler, in the tasks and threads that it starts, in callbacks and in
protocols, and costs a connection nothing.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias, cast, final

import trio

from gain_trio._transports import shown

from ._failures import is_cancellation, leaves_of
from ._time_limits import LIFESPAN_GRACE

Lifespan: TypeAlias = Callable[[], AbstractAsyncContextManager[object]]
"""A function that returns a new async context manager, for one serving process."""

_NONE = object()
_value: ContextVar[object] = ContextVar("gain_trio.lifespan_value", default=_NONE)

logger = logging.getLogger("gain_trio")


def lifespan_value() -> Any:
    """The value of the server's ``lifespan``, for its handlers: what stands behind its ``yield``.

    It is found in a handler, a callback or a protocol, and in every task and thread that one of them starts.  It is the
    same object for all connections of a process, and each worker process has its own.

    Raises:
      RuntimeError: this is not called from a handler of a server with ``lifespan=``.
    """
    value = _value.get()
    if value is _NONE:
        raise RuntimeError(
            "there is a lifespan_value() in the handlers of a server that was given lifespan=, and this is called "
            "somewhere else"
        )
    return value


def check_lifespan(lifespan: object) -> None:
    """Check that ``lifespan`` can be a lifespan: a function without arguments that returns an async context manager.

    Raises:
      TypeError: it cannot; says why not, and what can.
    """
    if inspect.isasyncgenfunction(lifespan) or inspect.iscoroutinefunction(lifespan):
        raise TypeError(
            f"lifespan must return an async context manager, and {lifespan!r} does not: write "
            "@contextlib.asynccontextmanager above an async def with one yield"
        )
    if hasattr(type(lifespan), "__aenter__"):
        raise TypeError(
            f"lifespan is a function that returns an async context manager, for each process that serves, and {lifespan!r} "
            "is such a manager: give the function that makes it"
        )
    if not callable(lifespan):
        raise TypeError(f"lifespan is a function that returns an async context manager, or None, not {lifespan!r}")


def both(outer: Lifespan | None, inner: Lifespan | None) -> Lifespan | None:
    """One lifespan out of two, with the value of the outer one; or the one that there is."""
    if outer is None or inner is None:
        return outer or inner
    return _Nested(outer, inner)


@final
class _Nested:
    """A lifespan within another one."""

    def __init__(self, outer: Lifespan, inner: Lifespan) -> None:
        self._outer = outer
        self._inner = inner
        self.__qualname__ = _name_of(outer)

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[object]:
        async with _checked(self._outer) as value:
            token = _value.set(value)
            try:
                async with _checked(self._inner):
                    yield value
            finally:
                _value.reset(token)


def _name_of(lifespan: Lifespan) -> str:
    return getattr(lifespan, "__qualname__", None) or repr(lifespan)


def _checked(lifespan: Lifespan) -> AbstractAsyncContextManager[object]:
    """Its context manager."""
    manager: Any = lifespan()
    if not hasattr(type(manager), "__aenter__"):
        raise TypeError(f"the lifespan {_name_of(lifespan)} must return an async context manager, not {manager!r}")
    return cast("AbstractAsyncContextManager[object]", manager)


async def run_within(
    lifespan: Lifespan, serve: Callable[[], Awaitable[None]], end_of_drain: Callable[[], float]
) -> None:
    """Enter the lifespan, ``serve``, and leave the lifespan.

    Args:
      lifespan: makes the context manager.
      serve: runs the server.  Its cancellation is passed on to it; the lifespan is not cancelled with it.
      end_of_drain: returns the time on Trio's clock until which a server that drains may take, or ``-math.inf`` for one that
        does not drain.

    Raises:
      TypeError: ``lifespan`` returns something else.
      trio.TooSlowError: the lifespan was to be left, and took longer than it may.
      Everything that entering and leaving the lifespan, and ``serve``, raise.
    """
    failure: Exception | None = None
    life = _Life(lifespan, serve, end_of_drain)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(life.pass_cancellation_on, name="gain_trio lifespan")
            try:
                await life.run()
            except Exception as error:  # noqa: BLE001 - raised below, outside the nursery, which would make a group of it
                failure = error
            nursery.cancel_scope.cancel()
    except BaseException as error:
        if failure is None or not is_cancellation(error):
            raise
    if failure is not None:
        raise failure


@final
class _Life:
    """See the top of this module."""

    def __init__(
        self, lifespan: Lifespan, serve: Callable[[], Awaitable[None]], end_of_drain: Callable[[], float]
    ) -> None:
        self._lifespan = lifespan
        self._name = _name_of(lifespan)
        self._serve = serve
        self._end_of_drain = end_of_drain
        self._around = trio.CancelScope()  # of the lifespan, with all that it opens
        self._serving = trio.CancelScope()
        self._was_cancelled = False
        self._is_over = False  # the server is, and the lifespan is being left
        self._failure: BaseException | None = None  # of the server

    async def pass_cancellation_on(self) -> None:
        """Wait until cancelled, and cancel the server."""
        try:
            await trio.sleep_forever()
        finally:
            self._was_cancelled = True
            self._serving.cancel()
            if self._is_over:
                self._limit_exit()

    async def run(self) -> None:
        """Enter the lifespan, run the server, and leave the lifespan."""
        try:
            with self._around:
                await self._live()
        except Exception as error:
            # Nurseries put the server's own errors into new groups, so the exceptions in them are compared.
            own = set(map(id, leaves_of(error))) - set(map(id, leaves_of(self._failure)))
            if self._is_over and own:
                logger.error("the lifespan %s failed: %s", shown(self._name), shown(error), exc_info=error)
            raise
        if self._around.cancelled_caught:
            text = f"the lifespan {self._name} was to be left, took too long, and was cancelled"
            logger.error("%s", shown(text))
            raise trio.TooSlowError(text)

    async def _live(self) -> None:
        async with _checked(self._lifespan) as value:
            self._around.shield = True
            token = _value.set(value)
            try:
                with self._serving:
                    await self._serve()
            except BaseException as error:
                self._failure = error
                raise
            finally:
                _value.reset(token)
                self._is_over = True
                self._around.deadline = math.inf
                self._limit_exit()

    def _limit_exit(self) -> None:
        """Set how long leaving the lifespan may take from now on."""
        limit = trio.current_time() + LIFESPAN_GRACE
        if not self._was_cancelled:
            limit = max(limit, self._end_of_drain())
        self._around.deadline = min(self._around.deadline, limit)

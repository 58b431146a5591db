"""A consumer: the task whose nursery the handlers of its connections live in."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import final

import trio

from gain_trio._transports import Connection, ProxyProtocolError
from gain_trio._transports._tls import HandshakeError

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

Handler = Callable[[Connection], Awaitable[object]]
"""What serves one connection: an async function."""
Prepare = Callable[[Connection], Awaitable[Connection]]
"""What makes of an accepted connection the one that the handler gets, in the connection's own task."""

logger = logging.getLogger("gain_trio")


def _is_only(kind: type[BaseException], error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.split(kind)[1] is None
    return isinstance(error, kind)


def _peer(connection: Connection) -> object:
    """Its address; what is gone may not have one any more."""
    try:
        return connection.remote_address
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return "a client that is gone"


@final
class Consumer:
    """Runs handlers.

    What a handler raises ends its connection and nothing else: it is logged with its traceback and counted.  Only
    ``trio.BrokenResourceError`` and ``trio.TooSlowError`` are no errors of the program's, but the peer's or the network's:
    they get a line at level info, and counts of their own.  With ``strict`` it propagates, and so do in any case a
    cancellation and everything that is no :exc:`Exception` (``KeyboardInterrupt``, ``SystemExit``).  A group is taken apart
    accordingly.

    Before the handler the steps of ``prepare`` have their turn, in the connection's task.  A connection that one of them
    refuses gets a line and is counted, and never propagates: it is the peer's doing, or the operator's.
    """

    def __init__(
        self, handler: Handler, *, strict: bool, idle_timeout: float = math.inf, prepare: Sequence[Prepare] = ()
    ) -> None:
        self._handler = handler
        self._idle_timeout = idle_timeout
        self._prepare = prepare
        self._strict = strict
        self._nursery: trio.Nursery | None = None
        self._name = getattr(handler, "__qualname__", None) or repr(handler)
        self.connections = 0
        """How many it has been handed."""
        self.active = 0
        """How many of them are open."""
        self.handler_errors = 0
        self.broken = 0
        """How many handlers ended because a connection broke."""
        self.too_slow = 0
        """How many handlers ended because a deadline had passed."""
        self.idle = 0
        """How many connections moved no byte for too long."""
        self.refused = 0
        """How many connections were closed before a handler had them."""
        self.failed_handshakes = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the nursery, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def hand_off(self, connection: Connection) -> None:
        """Take a connection over and start its handler."""
        assert self._nursery is not None
        try:
            self._nursery.start_soon(self._serve, connection, name=self._name)
        except BaseException:
            connection._close_now()
            raise
        self.connections += 1
        self.active += 1

    async def _serve(self, connection: Connection) -> None:
        try:
            if self._idle_timeout != math.inf:
                connection.idle_timeout = self._idle_timeout
            for prepare in self._prepare:
                prepared = await self._prepared(prepare, connection)
                if prepared is None:
                    return
                connection = prepared
            await self._handler(connection)
            if not connection._close_soon():
                await connection.aclose()
        except Exception as error:
            self._failed(connection, error)
            if self._strict:
                raise
        except BaseExceptionGroup as group:
            errors, others = group.split(Exception)
            if errors is not None:
                self._failed(connection, errors)
            if self._strict or others is None:
                raise
            raise others from None
        finally:
            self.active -= 1
            self.idle += connection._was_idle
            connection._close_now()

    async def _prepared(self, prepare: Prepare, connection: Connection) -> Connection | None:
        """What a step makes of the connection.  None: it is of no use, and that is the peer's doing, or the operator's."""
        try:
            return await prepare(connection)
        except HandshakeError as error:
            self.failed_handshakes += 1
            logger.info("TLS handshake with %s failed: %s", _peer(connection), error)
        except ProxyProtocolError as error:
            self.refused += 1
            logger.warning("connection %r is refused: %s", connection, error)
            connection.abort()
        except trio.BrokenResourceError as error:
            self.refused += 1
            logger.info("connection %r is refused: %s", connection, error)
        return None

    def _failed(self, connection: Connection, error: BaseException) -> None:
        # The network's doing, or the peer's, who must not be able to fill the log with tracebacks, is a line.
        if _is_only(trio.BrokenResourceError, error):
            self.broken += 1
            logger.info("connection %r of handler %s broke: %s", connection, self._name, error.__cause__ or error)
            return
        if _is_only(trio.TooSlowError, error):
            self.too_slow += 1
            logger.info("connection %r of handler %s was too slow: %s", connection, self._name, error)
            return
        self.handler_errors += 1
        logger.error("handler %s failed; its connection %r is closed", self._name, connection, exc_info=error)

"""An acceptor: the task that takes connections from a listener and hands them to consumers."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import final

import trio

from gain_trio._transports import RESOURCE_ERRNOS, Connection, Listener, TimeSlice, shown

from ._connection_limit import ConnectionLimit
from ._dispatcher import Dispatcher
from ._log_throttle import log_throttle, since_last
from ._time_limits import RESOURCE_PAUSE

logger = logging.getLogger("gain_trio")


@final
class Acceptor:
    """Serves one listener.

    With ``limit`` the listener is one that takes nothing ahead (``exact_listener``).
    """

    def __init__(
        self, listener: Listener, dispatcher: Dispatcher, limit: ConnectionLimit | None, ended: Callable[[], object]
    ) -> None:
        self._listener = listener
        self._dispatcher = dispatcher
        self._limit = limit
        self._ended = ended  # called when it is over
        self.is_stopped = False
        """Whether it accepts no more."""
        self.is_over = False
        """Whether it has handed off its last connection."""

    def stop(self) -> None:
        """Listen no more; what has been accepted is handed off still.  Again: nothing."""
        if not self.is_stopped:
            self.is_stopped = True
            self._listener._stop()
            if self._limit is not None:
                self._limit.wake()

    async def run(self) -> None:
        """Accept and hand off, until cancelled or stopped.

        Only what accepting says is a matter of retrying: what a balancer raises propagates, be it an OSError.
        """
        hand_off = self._dispatcher.hand_off
        time_slice = TimeSlice()
        while not self.is_over:
            try:
                connection = await self._wait()
                time_slice.begin()
                while connection is not None:
                    hand_off(connection)
                    if (
                        time_slice.is_over()
                    ):  # a backlog of thousands is no reason to keep those waiting that are served already
                        await trio.lowlevel.checkpoint()
                    connection = self._next()
            except _AcceptError as trouble:
                await self._recover(trouble.cause)

    async def _wait(self) -> Connection | None:
        """A connection, or None where it is worth while to try again."""
        try:
            if self._limit is None:
                return await self._listener.accept()
            await self._limit.wait()
            await self._listener._wait_acceptable()
        except (trio.ClosedResourceError, OSError) as error:
            raise _AcceptError(error) from error
        return self._next()

    def _next(self) -> Connection | None:
        """A connection that is here already, if there is a place for it.  None: there is not."""
        limit = self._limit
        if limit is not None and not limit.take():
            return None
        connection = None
        try:
            connection = self._listener._accept_ready()
        except (trio.ClosedResourceError, OSError) as error:
            raise _AcceptError(error) from error
        finally:
            if limit is not None and connection is None:
                limit.give_back()
        return connection

    async def _recover(self, error: Exception) -> None:
        if isinstance(error, trio.ClosedResourceError) and self.is_stopped:
            self.is_over = True
            self._ended()
        elif isinstance(error, OSError) and error.errno in RESOURCE_ERRNOS:
            count = log_throttle("accept").count()
            if count is not None:
                logger.error(
                    "cannot accept connections on %s: %s (%s); trying again in %s seconds%s",
                    shown(self._listener.local_address),
                    shown(errno.errorcode[error.errno]),
                    error.strerror,
                    RESOURCE_PAUSE,
                    shown(since_last(count)),
                )
            await trio.sleep(RESOURCE_PAUSE)
        else:
            raise error from None


@final
class _AcceptError(Exception):
    """What accepting raised."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(cause)
        self.cause = cause

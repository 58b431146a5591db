"""The end of a drain whose time is up: what has not ended is counted, named in one line of the log, and cut off.

A cancel scope with a deadline would cut off just the same, but could not count: when its tasks run again, some have ended
already, and whether the deadline has ended them or an operator's second signal cannot be seen any more.  So a task waits for
the time, counts, and cancels the scope in the same step.  A cancellation from outside ends this task, too, and counts as
nothing: the program or its operator has asked for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import final

import trio

from gain_trio._transports import shown

logger = logging.getLogger("gain_trio")


@final
class DrainLimit:
    """The time that connections have when their server drains: no limit until :meth:`shorten` sets one."""

    def __init__(self) -> None:
        self.cut_off = 0
        """How many had not ended when the time was up."""
        self._scope = trio.CancelScope()  # whose deadline is the limit
        self._began: float | None = None

    @property
    def deadline(self) -> float:
        """The end of the time, on Trio's clock."""
        return self._scope.deadline

    def begin(self) -> None:
        """Note that the drain has been asked for.  Again: nothing."""
        if self._began is None:
            self._began = trio.current_time()

    def shorten(self, timeout: float) -> None:
        """Leave ``timeout`` seconds from now, or what is left of an earlier limit if that is less."""
        self.begin()
        self._scope.deadline = min(self._scope.deadline, trio.current_time() + timeout)

    async def enforce(
        self,
        server: object,
        in_progress: Callable[[], int],
        cancel: Callable[[], object],
        *,
        what: str = "connections",
    ) -> None:
        """Wait until the time is up, log how many have not ended, and cancel them.

        Args:
          server: for the log.
          in_progress: counts what has not ended.
          cancel: cuts it off.
          what: it is, in the plural.
        """
        with self._scope:
            await trio.sleep_forever()
        self.cut_off = in_progress()
        if self.cut_off:
            assert self._began is not None
            logger.warning(
                "%s cuts off %d %s, which have not ended within the %g seconds that they had (graceful_timeout): a longer "
                "one helps, and so do handlers that use messages() or connection.draining",
                shown(server),
                self.cut_off,
                shown(what),
                round(self._scope.deadline - self._began, 3),
            )
        cancel()

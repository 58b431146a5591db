"""Whether a worker process has sent a message lately.

A task in the worker's Trio run sends a :class:`~._control_messages.Heartbeat` every :func:`interval` seconds.  A handler
that blocks the event loop, an endless computation and a stopped process all hold the heartbeats up.  Any message counts as
one, because all messages come from tasks of that run.

The server counts its own ticks between two messages and not the seconds: a server that was stopped itself (SIGSTOP, a
machine that slept) wakes with heartbeats unread, and must not take its workers for hung.
"""

from __future__ import annotations

import math
from typing import Final, final

from gain_trio._server._time_limits import LATE

SHORTEST: Final = 0.02
"""Seconds between two heartbeats, at least."""


def interval(timeout: float | None) -> float:
    """Seconds between two heartbeats, and between two ticks of the server: a third of what makes a process late."""
    return max((LATE if timeout is None else min(LATE, timeout / 3)) / 3, SHORTEST)


@final
class HeartbeatMonitor:
    """Counts the ticks since the last message of one worker process.

    Args:
      timeout: seconds without a message after which it counts as hung; None for never.
    """

    def __init__(self, timeout: float | None) -> None:
        self.interval = interval(timeout)
        self.timeout = timeout
        self._most = math.inf if timeout is None else timeout / self.interval
        self._ticks = 0  # since the last message

    @property
    def is_late(self) -> bool:
        """Whether two heartbeats or more are missing."""
        return self._ticks >= 3

    @property
    def is_hung(self) -> bool:
        """Whether the time is up."""
        return self._ticks > self._most

    def tick(self) -> None:
        """An interval has passed."""
        self._ticks += 1

    def reset(self) -> None:
        """A message has come."""
        self._ticks = 0

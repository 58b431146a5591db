"""The time that a task goes on without the scheduler, where its calls are answered from memory.

Such calls do not go through the scheduler, and 512 KiB of empty lines are half a million of them: seconds, in which no other
task runs.  So a task that has gone on like that for about a millisecond passes a checkpoint with its next call, before that
one moves anything.  On the ring the compiled half does it (``worklists.c``); this is for what is made of Python.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import final

SLICE_NS = 1_000_000
"""Nanoseconds of a time slice."""
_UNTIMED = 3
"""The usual step has two calls (a receive, a send), and ends before the clock is looked at."""
_MOST = 64


@final
class TimeSlice:
    """The current time slice of a run, or of a loop."""

    __slots__ = ("_began", "_clock", "_left", "_timed", "length")

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self.length = SLICE_NS
        self._began = 0
        self._left = _UNTIMED  # calls until the clock is looked at
        self._timed = 0  # those that the time since _began is for, 0: it has not been looked at

    def begin(self) -> None:
        """A task has waited, or has passed a checkpoint."""
        self._left = _UNTIMED
        self._timed = 0

    def is_over(self) -> bool:
        """Before a call answers from memory: whether it is to pass a checkpoint first.  Then another slice begins."""
        self._left -= 1
        return self._left <= 0 and self._look()

    def _look(self) -> bool:
        """Look at the clock again after as many calls as half of the time that is left is good for."""
        now = self._clock()
        more = 1
        if not self._timed:
            self._began = now
        else:
            elapsed = now - self._began
            if elapsed >= self.length:
                self.begin()
                return True
            more = min(max((self.length - elapsed) // 2 // (elapsed // self._timed + 1), 1), _MOST)
        self._left = more
        self._timed += more
        return False

"""Lines of the log about something that happens again and again: the first one at once, then one a minute, with a count."""

from __future__ import annotations

from typing import final

import trio

from ._time_limits import LOG_INTERVAL


@final
class LogThrottle:
    """Says whether a line is due."""

    def __init__(self) -> None:
        self._next = -float("inf")
        self._left_out = 0

    def count(self) -> int | None:
        """It has happened once more.  None: no line is due; otherwise how often it has happened since the last line."""
        now = trio.current_time()
        if now < self._next:
            self._left_out += 1
            return None
        self._next = now + LOG_INTERVAL
        left_out, self._left_out = self._left_out, 0
        return left_out


def since_last(count: int) -> str:
    """What a line says at its end."""
    return f" ({count} more times since the last such line)" if count else ""


_by_subject: trio.lowlevel.RunVar[dict[str, LogThrottle]] = trio.lowlevel.RunVar("gain_trio log throttles")


def log_throttle(subject: str) -> LogThrottle:
    """The one of this run for a subject.

    A process that is out of descriptors is so for all its listeners, and one line says it.
    """
    try:
        by_subject = _by_subject.get()
    except LookupError:
        by_subject = {}
        _by_subject.set(by_subject)
    return by_subject.setdefault(subject, LogThrottle())

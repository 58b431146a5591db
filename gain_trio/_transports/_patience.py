"""Whether a peer goes on taking what is sent to it, and how long a close waits for one that does.

What the kernel has taken is known at once, but it takes in pieces: it reports room when a third of its buffer is free (TCP,
sk_stream_is_writeable()), which a buffer of some megabytes and a peer of 100 kB/s make once in ten seconds.  In between the
peer's progress is seen in the kernel: TCP says how much the peer has not acknowledged, a Unix socket how much the peer has
not received (SIOCOUTQ, tcp(7) and unix(7)).  One system call reads it, and only a caller that is about to give up on the
peer makes it, so the usual send pays nothing.

That number changes while the peer takes bytes, so two looks that differ have progress between them.  When it was, a look
cannot say; it counts for the time of the look before.  A peer that takes nothing at all is then given up at the very end of
the time that it has, and one that takes something in every pause between two looks never is.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Awaitable, Callable
from typing import Protocol, final

import trio

if sys.platform == "linux":
    import fcntl
    import termios

STALL = 5.0
"""Seconds that a close waits for a peer that takes nothing."""
DEFAULT_CLOSE_TIMEOUT = 60.0
"""Seconds that a close waits for a peer that goes on taking bytes."""
_LOOKS = 10
"""In the time of a stall."""

_INT = struct.Struct("i")


def unacknowledged(descriptor: int) -> int | None:
    """Bytes that the kernel has taken for a stream socket and its peer has not.  None where the system does not say.

    On a Unix socket the kernel counts its own overhead for each piece with them.
    """
    if sys.platform != "linux" or descriptor < 0:
        return None
    try:
        answer = fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(_INT.size))  # the same number as SIOCOUTQ
    except OSError:  # it is closed, or no socket of such a kind
        return None
    count: int = _INT.unpack(answer)[0]
    return count


class Sends(Protocol):
    """What is asked of a connection."""

    @property
    def bytes_sent(self) -> int:
        """Bytes that the kernel has taken."""

    @property
    def close_timeout(self) -> float:
        """Seconds that a close waits for a peer that goes on taking bytes."""

    def _unacknowledged(self) -> int | None:
        """See :func:`unacknowledged`."""


@final
class Patience:
    """How long a close goes on waiting for its peer: for ``close_timeout`` while bytes move, for STALL without.

    With ``seconds`` it waits for so long, whether bytes move or not.
    """

    def __init__(self, connection: Sends, seconds: float | None = None) -> None:
        self._connection = connection
        now = trio.current_time()
        self._stall = STALL if seconds is None else math.inf
        self._end = now + (connection.close_timeout if seconds is None else seconds)
        self._looked_at = self._moved_at = now
        self._seen = self._look()

    def _look(self) -> tuple[int, int | None]:
        return self._connection.bytes_sent, self._connection._unacknowledged()

    @property
    def next_look(self) -> float:
        """When :meth:`is_over` is to be called, on Trio's clock."""
        return min(self._end, self._moved_at + self._stall, self._looked_at + self._stall / _LOOKS)

    def is_over(self) -> bool:
        """Whether there is no reason to wait any longer."""
        now = trio.current_time()
        seen = self._look()
        if seen != self._seen:
            self._seen = seen
            self._moved_at = self._looked_at
        self._looked_at = now
        return now >= self._end or now >= self._moved_at + self._stall

    async def wait(self, flush: Callable[[], Awaitable[None]]) -> bool:
        """Await ``flush()``, which loses nothing when it is cancelled, while there is reason to.

        Returns whether it has returned.
        """
        while True:
            with trio.CancelScope(deadline=self.next_look) as scope:
                await flush()
                return True
            if scope.cancelled_caught and self.is_over():
                return False


@final
class Movement:
    """When a connection has moved a byte last, as far as its peer's taking of bytes is concerned.

    ``timeout`` is divided: a connection with nothing on its way is looked at twice in that time, and one whose peer has
    something to take sixteen times.
    """

    __slots__ = ("_acknowledged", "_looked_at", "_moved_at")

    def __init__(self) -> None:
        self._moved_at = self._looked_at = -math.inf
        self._acknowledged: int | None = None  # at the last look, if something was on its way

    def look(self, now: float, active_at: float, sent: int, left: int | None) -> float:
        """Take a look, and return when a byte was moved last.

        Args:
          now: the time.
          active_at: when the connection has sent or received a byte last.
          sent: how many bytes the kernel has taken.
          left: how many of them the peer has not; None where that is not known.
        """
        # With the last byte the transfer is over; that its acknowledgement comes late is no movement.
        acknowledged = sent - left if left else None
        if None not in (acknowledged, self._acknowledged) and acknowledged != self._acknowledged:
            self._moved_at = self._looked_at
        self._acknowledged = acknowledged
        self._looked_at = now
        return max(active_at, self._moved_at)

    def next_look(self, now: float, moved_at: float, timeout: float) -> float:
        """When to look again; the end of the time at the latest."""
        end = moved_at + timeout
        if self._acknowledged is not None:
            return min(end, now + timeout / 16)
        half = moved_at + timeout / 2
        return half if half > now else end

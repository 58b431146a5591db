"""The progress of a peer that bytes are sent to, and the time that a close waits for it.

The kernel accepts bytes in pieces: it reports room when a third of its buffer is free (TCP, sk_stream_is_writeable()), which
happens once in ten seconds with a buffer of some megabytes and a peer of 100 kB/s.  In between the kernel shows the peer's
progress: TCP reports how many bytes the peer has not acknowledged, a Unix socket how many the peer has not received
(SIOCOUTQ, tcp(7) and unix(7)).  One system call reads the number, and only a caller that is about to give up on the peer
makes it, so the usual send pays nothing.

The number changes while the peer accepts bytes, so there is progress between two looks that differ.  A look does not show
the time of the progress; it counts for the time of the look before.  So a close gives up on a peer that accepts nothing at
the very end of its time, and never on one that accepts something in every pause between two looks.
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
"""Seconds that a close waits for a peer that accepts nothing."""
DEFAULT_CLOSE_TIMEOUT = 60.0
"""Seconds that a close waits for a peer that still accepts bytes."""
_LOOKS = 10
"""In the time of a stall."""

_INT = struct.Struct("i")


def unacknowledged(descriptor: int) -> int | None:
    """Bytes of a stream socket that the kernel has accepted and the peer has not.  None where the system does not report it.

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


class HasSendProgress(Protocol):
    """A connection whose peer's progress can be watched."""

    @property
    def bytes_sent(self) -> int:
        """Bytes that the kernel has accepted."""

    @property
    def close_timeout(self) -> float:
        """Seconds that a close waits for a peer that still accepts bytes."""

    def _unacknowledged(self) -> int | None:
        """See :func:`unacknowledged`."""


@final
class CloseWait:
    """The wait of a close for its peer: for ``close_timeout`` while bytes move, for STALL without.

    With ``seconds`` it waits for that time, whether bytes move or not.
    """

    def __init__(self, connection: HasSendProgress, seconds: float | None = None) -> None:
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
        """Whether the close should give up."""
        now = trio.current_time()
        seen = self._look()
        if seen != self._seen:
            self._seen = seen
            self._moved_at = self._looked_at
        self._looked_at = now
        return now >= self._end or now >= self._moved_at + self._stall

    async def wait(self, flush: Callable[[], Awaitable[None]]) -> bool:
        """Await ``flush()``, which loses nothing when it is cancelled, until :meth:`is_over`.

        Returns whether ``flush()`` has returned.
        """
        while True:
            with trio.CancelScope(deadline=self.next_look) as scope:
                await flush()
                return True
            if scope.cancelled_caught and self.is_over():
                return False


@final
class PeerProgress:
    """The time at which a connection has moved a byte last, bytes that its peer has accepted included.

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
          sent: the number of bytes that the kernel has accepted.
          left: the number of those that the peer has not; None where that is unknown.
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

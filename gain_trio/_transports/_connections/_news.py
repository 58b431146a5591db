"""What a connection without a ring has to tell a server of callbacks; ``_ffi/fastpath/events.c`` says what is told when."""

from __future__ import annotations

from typing import final

from ._callback_connection import END, STALLED, WRITTEN
from ._marks import Marks

MOST_TOLD = 65536
"""Bytes that are told of at a time, so that others have a turn between two callbacks."""


@final
class News:
    """Of one connection, from the moment somebody wants to hear of them.

    Args:
      marks: of the connection.
      queued: bytes that are in its queue already, and of which nobody was told.
    """

    __slots__ = (
        "_marks",
        "is_over",
        "is_paused",
        "progressed",
        "stall_told",
        "tells_resets",
        "tells_written",
        "untold",
        "written",
        "written_told",
    )

    def __init__(self, marks: Marks, queued: int) -> None:
        self._marks = marks
        self.untold = queued
        """Bytes that were not told of; the program may have taken some of them."""
        self.tells_written = False
        self.written = 0
        """Bytes that the kernel has taken since somebody asked."""
        self.progressed = False
        """It has taken bytes that may be none of the program's: TLS sends some of its own, and whole pieces."""
        self.tells_resets = False
        """The socket's error is told while the queue is full, too."""
        self.written_told = False
        """The last that was told was that the kernel has taken bytes."""
        self.is_over = False
        """The program wants to hear no more."""
        self.is_paused = False
        """The queue was at its high mark, and has not been at its low one since."""
        self.stall_told = False

    def sent(self, count: int) -> bool:
        """The kernel has taken so many bytes.  Returns whether somebody wants to know."""
        if self.tells_written:
            self.written += count
        return self.tells_written

    def before_errors(self, queued: int, *, after_peer: bool = False) -> int | None:
        """What is to be told before an error or the end of the stream is; ``queued`` bytes are in the queue.

        With ``after_peer``, that bytes were written has to wait for what the peer has to say.
        """
        if (self.written or self.progressed) and not after_peer:
            return WRITTEN
        if self.is_over:
            return END
        untold = min(self.untold, queued)
        told = min(untold, MOST_TOLD)
        self.untold = untold - told
        return told or None

    def after_errors(self, queued: int) -> int | None:
        """What is to be told when there was neither."""
        self.is_paused = queued >= self._marks.receive_high or (self.is_paused and queued > self._marks.receive_low)
        if not self.is_paused:
            self.stall_told = False
        elif not self.stall_told:
            self.stall_told = True
            return STALLED
        return None

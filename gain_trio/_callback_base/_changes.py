"""What to call back, out of what has changed on a connection.

A connection has one wait for its task: until something has changed (``_wait_change``).  It reports bytes that have arrived,
the end of the stream, a full queue, and on request that the kernel has taken bytes; it raises an error.  What that means to
callbacks is decided here, once for connections on the ring, over sockets and with TLS:

    the connection's answer          what is next
    CHANGED, and bytes were sent     WRITTEN, while it is watched: the kernel has taken bytes
    CHANGED otherwise                END, if the program has ended it; else to wait again
    n > 0                            n: bytes have arrived, and stay queued
    ENDED                            END: the peer has ended the stream
    FULL                             STALLED: nothing more arrives until the program takes some of the queue

The connection answers CHANGED before it reports bytes.  So after :meth:`Changes.end` no byte is reported any more, and a
program that writes whenever the kernel has taken its last bytes is in step with the kernel.
"""

from __future__ import annotations

from typing import Final, final

import trio

from gain_trio._transports import CHANGED, ENDED, WATCH_RESETS, WATCH_SENT, Connection, TlsConnection

END: Final = 0
"""The peer or the program has ended it: nothing more will be reported but WRITTEN."""
WRITTEN: Final = -1
"""The kernel has taken bytes; :meth:`Changes.take_written` counts them."""
STALLED: Final = -2
"""The queue is full.  It is reported once a pause."""


@final
class Changes:
    """The changes of one connection, for the task that calls back.

    Args:
      connection: what is waited for.
      watches_resets: raise an error of the socket also while the queue is full, before what is in it is taken.
    """

    __slots__ = ("_connection", "_is_over", "_sent", "_written", "watched")

    def __init__(self, connection: Connection, *, watches_resets: bool = False) -> None:
        self._connection = connection
        self.watched = WATCH_RESETS if watches_resets else 0
        """The argument of the connection's wait."""
        self._sent = 0  # what the connection had sent when that was reported last
        self._written = 0  # how many of those bytes were the program's
        self._is_over = False

    async def next(self) -> int:
        """Wait for the next change.

        Returns:
          How many bytes have arrived that were not reported before, less those that were taken already; or :data:`END`,
          :data:`WRITTEN` or :data:`STALLED`.

        Raises what the connection's wait raises.  Cancelling it loses nothing.
        """
        while True:
            if self._is_over:
                await trio.lowlevel.checkpoint()
                change = CHANGED
            else:
                change = await self._connection._wait_change(self.watched)
            found = self.meaning(change)
            if found is not None:
                return found

    def meaning(self, change: int) -> int | None:
        """What :meth:`next` returns after this answer of the connection; None: it waits again."""
        if change > 0:
            return change
        if change == CHANGED:
            if self.watched & WATCH_SENT and self._connection.bytes_sent != self._sent:
                self._sent = self._connection.bytes_sent
                return WRITTEN
            return END if self._is_over else None
        return END if change == ENDED else STALLED

    # --- the program's end of it ---

    @property
    def is_over(self) -> bool:
        """Whether the program has ended it."""
        return self._is_over

    def end(self) -> None:
        """Have :meth:`next` return :data:`END`, at once and ever after; also the call in progress."""
        self._is_over = True
        self._connection._note_change()

    def resume(self) -> None:
        """Take :meth:`end` back: what has arrived meanwhile is reported, and the peer's end again.

        Raises:
          trio.ClosedResourceError: the connection is closed.
        """
        self._check_open()
        self._is_over = False

    def _check_open(self) -> None:
        if self._connection._is_closed:
            raise trio.ClosedResourceError("this connection was closed")

    # --- what the kernel has taken ---

    @property
    def watches_written(self) -> bool:
        """Whether it is reported that the kernel has taken bytes."""
        return bool(self.watched & WATCH_SENT)

    def watch_written(self, wanted: bool, /) -> None:
        """Report when the kernel has taken bytes, whenever they were sent, or do not.  Counting begins at 0.

        With TLS that is reported of all bytes on the wire, so :meth:`take_written` may have none to count.

        Raises:
          trio.ClosedResourceError: the connection is closed.
        """
        self._check_open()
        is_watched = self.watches_written
        if wanted:
            self.watched |= WATCH_SENT
        else:
            self.watched &= ~WATCH_SENT
        self.take_written()
        if wanted and not is_watched:
            self._connection._note_change()  # a wait in progress does not watch it

    def take_written(self) -> int:
        """How many of the program's bytes the kernel has taken since this was asked last, while that is watched.

        With TLS those that were sent since :meth:`watch_written` count, as soon as a piece of them has left.
        """
        if not self.watched & WATCH_SENT:
            return 0
        connection = self._connection
        self._sent = connection.bytes_sent
        before = self._written
        self._written = connection.payload_sent() if isinstance(connection, TlsConnection) else self._sent
        return self._written - before

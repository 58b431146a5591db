"""Reading from memory that belongs to a conn: a datagram, or data that was moved there for another thread to read."""

from __future__ import annotations

import abc
import threading

from gain_trio._transports import Inbound, head_of, without_head

from ._conn import Conn
from ._event_errors import ConnectionClosed, ShortBuffer


class InboxReading(Conn):
    """A conn that stores itself what has arrived.  A lock makes its calls atomic for any thread."""

    __slots__ = ()

    _inbox: Inbound
    """Both are slots of the subclass that is made."""
    _lock: threading.Lock | threading.RLock

    @abc.abstractmethod
    def _check_readable(self) -> None:
        """Raise :exc:`ConnectionClosed` if the connection is closed."""

    @abc.abstractmethod
    def _taken(self, left: int) -> None:
        """A thread has read some bytes, and ``left`` bytes stay unread."""

    def next(self, n: int = -1, /) -> bytes:
        """See :meth:`Conn.next`."""
        with self._lock:
            self._check_readable()
            if n > len(self._inbox):
                raise ShortBuffer(f"{n} bytes were asked for, and {len(self._inbox)} have arrived")
            return self._take(n if n > 0 else len(self._inbox))

    def _take(self, count: int) -> bytes:
        data = head_of(self._inbox, count)
        self._inbox = without_head(self._inbox, count)  # type: ignore[misc]  # a slot of the class that is made
        self._taken(len(self._inbox))
        return data

    def peek(self, n: int = -1, /) -> bytes:
        """See :meth:`Conn.peek`."""
        with self._lock:
            self._check_readable()
            return head_of(self._inbox, n if n > 0 else len(self._inbox))

    def discard(self, n: int, /) -> int:
        """See :meth:`Conn.discard`."""
        with self._lock:
            self._check_readable()
            return len(self._take(n if n >= 0 else len(self._inbox)))

    @property
    def inbound_buffered(self) -> int:
        """See :attr:`Conn.inbound_buffered`."""
        with self._lock:
            try:
                self._check_readable()
            except ConnectionClosed:
                return 0
            return len(self._inbox)

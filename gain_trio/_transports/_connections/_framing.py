"""Messages out of a stream of bytes: of a known length, up to a separator, or a line.

All of it stands on two calls of the connection below.  ``_fill`` waits until a number of bytes are queued and takes none
of them, ``_find`` looks for a separator in the queue.  Bytes leave the queue when the message is whole, in the step that
returns it, and not before.  So a call that is cancelled, that meets the end of the stream, or whose message is too long has
taken nothing, and another call can go on from there.

The time is linear in what arrives, however small the pieces.  A wait for a length is woken once, by the connection.  A
search goes on where the last one ended, less what may be the beginning of a separator.  And a message taken from the queue
leaves the others where they are.
"""

from __future__ import annotations

import abc
from collections.abc import Coroutine
from typing import Any, Protocol, final

DEFAULT_MAX_BYTES = 65536


@final
class IncompleteMessage(EOFError):
    """The stream ended in the middle of a message, or before one that had to come.

    The part that did arrive is still queued: :meth:`Connection.next` takes it.

    Attributes:
      received (int): how many bytes of it there are.
      expected (int | None): how many it should have had; None when a separator was waited for.
    """

    received: int
    expected: int | None

    def __init__(self, received: int, expected: int | None = None) -> None:
        super().__init__(received, expected)
        self.received = received
        self.expected = expected

    def __str__(self) -> str:
        if self.expected is None:
            return f"the stream ended after {self.received} bytes of a message, without its separator"
        return f"the stream ended after {self.received} of {self.expected} bytes of a message"


@final
class MessageTooLong(ValueError):
    """A message has more bytes than allowed, its separator among them.

    Its beginning is still queued: :meth:`Connection.discard` drops it, though how much more of it will come is not known.

    Attributes:
      limit (int): how many were allowed.
    """

    limit: int

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return f"a message is longer than {self.limit} bytes"


class Framing(Protocol):
    """The calls that return whole messages, of everything that has a queue: a connection has them by their names.

    While one of them waits, no other task may take from the queue, by ``next`` or ``discard``: it would take a part of
    the message.
    """

    __slots__ = ()

    # --- what a connection brings ---

    @abc.abstractmethod
    def _fill(self, count: int, /) -> Coroutine[Any, Any, int]:
        """Wait until ``count`` bytes are queued or the stream has ended, and return how many are queued.

        While it waits, receiving is not stopped before that many are there, whatever the marks say.  It is a cancellation
        point, and takes nothing from the queue.  It is a schedule point when it waits, for a count of 0, and when it
        reports the end of the stream once more.

        Raises what :meth:`Connection.receive` raises, :exc:`trio.BrokenResourceError` only if less than ``count`` is
        queued.
        """

    @abc.abstractmethod
    def _find(self, separator: bytes, start: int, /) -> int:
        """Where in the queue ``separator`` begins, at ``start`` or after it; -1 if it is not there."""

    @abc.abstractmethod
    def next(self, count: int | None = None, /) -> bytes:
        """See :meth:`Connection.next`."""

    @abc.abstractmethod
    def _take_exactly(self, count: int, /) -> bytes | None:
        """Take exactly ``count`` bytes from the queue (-1: all); or take none and return None, if fewer are queued."""

    # --- what a program calls ---

    async def receive_exactly(self, count: int) -> bytes:
        """Wait for ``count`` bytes and return them.

        All of them are held in memory, whatever the :class:`Marks` say; check a count that the peer has chosen.

        Raises:
          ValueError: ``count`` is negative.
          IncompleteMessage: the stream ended before; what arrived stays queued.

        And what :meth:`Connection.receive` raises.  Like it this is always a cancellation point, and loses nothing when it
        is cancelled.
        """
        queued = await self._fill(count)
        message = self._take_exactly(count)
        if message is None:
            raise IncompleteMessage(queued, count)
        return message

    async def receive_until(self, separator: bytes, *, max_bytes: int = DEFAULT_MAX_BYTES) -> bytes:
        """Wait for ``separator`` and return what comes before it, and the separator itself.

        As with :meth:`asyncio.StreamReader.readuntil` the separator is the end of what is returned.

        Args:
          separator: at least one byte.
          max_bytes: how long the message may be, with its separator.  If that is more than the high mark, more is held.

        Raises:
          ValueError: ``separator`` is empty or longer than ``max_bytes``.
          IncompleteMessage: the stream ended before; what arrived stays queued.
          MessageTooLong: there is no separator within ``max_bytes``; what arrived stays queued.

        And what :meth:`Connection.receive` raises.  Like it this is always a cancellation point, and loses nothing when it
        is cancelled.
        """
        length = await self._measure(separator, max_bytes)
        if not length:
            raise IncompleteMessage(0)
        return self.next(length)

    async def receive_line(self, *, max_bytes: int = DEFAULT_MAX_BYTES) -> bytes | None:
        r"""Wait for a line and return it without its ending, which is ``\n`` or ``\r\n``.

        An empty line is ``b""``, and the end of the stream is None::

            while (line := await connection.receive_line()) is not None:
                ...

        Args:
          max_bytes: how long a line may be, with its ending.  If that is more than the high mark, more is held.

        Returns:
          The line; None when the stream has ended and nothing is queued, then and ever after.

        Raises:
          ValueError: ``max_bytes`` is less than 1.
          IncompleteMessage: the stream ended in the middle of a line; what arrived stays queued.
          MessageTooLong: there is no ``\n`` within ``max_bytes``; what arrived stays queued.

        And what :meth:`Connection.receive` raises.  Like it this is always a cancellation point, and loses nothing when it
        is cancelled.
        """
        length = await self._measure(b"\n", max_bytes)
        if not length:
            return None
        line = self.next(length)
        return line[:-2] if line.endswith(b"\r\n") else line[:-1]

    async def _measure(self, separator: bytes, max_bytes: int) -> int:
        """Wait for ``separator``: how long the queue's first message is with it, 0 at the end of the stream."""
        if not isinstance(separator, bytes):
            raise TypeError(f"a separator is bytes, not {separator!r}")
        size = len(separator)
        if not 1 <= size <= max_bytes:
            raise ValueError(f"need 1 <= len(separator) <= max_bytes, not {size} and {max_bytes}")
        wanted = size
        searched = 0
        while True:
            queued = await self._fill(wanted)
            found = self._find(separator, searched)
            if found >= 0:
                break
            if queued >= max_bytes:
                raise MessageTooLong(max_bytes)
            if queued < wanted:
                if queued:
                    raise IncompleteMessage(queued)
                return 0
            searched = queued - size + 1
            wanted = queued + 1  # more than there is, so each turn of this loop waits
        if found + size > max_bytes:
            raise MessageTooLong(max_bytes)
        return found + size

"""The wait of code that is called back: answers, and what it watches on request; also in ``_ffi/fastpath/fastpath.h``."""

from __future__ import annotations

import abc
from collections.abc import Coroutine
from typing import Any, Final, Protocol

CHANGED: Final = 0
"""The kernel has taken bytes (with WATCH_SENT), or ``_note_change()`` was called."""
ENDED: Final = -1
"""The peer has ended the stream, and all bytes that came before were reported.  It is every answer from then on."""
FULL: Final = -2
"""The queue is at its high mark, and nothing more comes before the program takes some of it.  It is one answer a pause."""

WATCH_SENT: Final = 1
"""Answer also when the kernel has taken bytes."""
WATCH_RESETS: Final = 2
"""Raise the socket's error also while the queue is full, before the program has taken what is in it.

A program that may never take it asks for this: it would not learn that the peer has reset the connection.
"""

MOST_SEEN: Final = 65536
"""The most bytes that one answer reports, so that other tasks have a turn between two answers."""


class ChangeWait(Protocol):
    """The wait for a change, of every connection.

    Code that is called back does not wait in ``receive()`` and ``send()``, but looks at the connection whenever something
    has changed.
    """

    __slots__ = ()

    @abc.abstractmethod
    def _wait_change(self, watched: int, /) -> Coroutine[Any, Any, int]:
        """Wait until something has changed since the last answer.  It is a receiving call, and takes nothing.

        Args:
          watched: :data:`WATCH_SENT` and :data:`WATCH_RESETS`, both or neither.

        Returns:
          How many bytes have arrived that no answer has reported before and that are still queued, at most
          :data:`MOST_SEEN`; or :data:`CHANGED`, before such bytes; or :data:`ENDED` or :data:`FULL`, after them.

        Raises:
          trio.BusyResourceError, trio.ClosedResourceError, trio.TooSlowError: see :meth:`receive`.
          trio.BrokenResourceError: it broke, in either direction; all that arrived before was reported, unless the
            queue is at its high mark: then the kernel's bytes are reported when the program has taken some, and this is
            raised again after them.

        Cancelling it loses nothing.
        """

    @abc.abstractmethod
    def _note_change(self) -> None:
        """Have :meth:`_wait_change` return :data:`CHANGED`: the call in progress, otherwise the next one."""

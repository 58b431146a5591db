"""What servers of callbacks call on a connection beside its contract: their calls must not wait."""

from __future__ import annotations

import abc
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from ._connection import Connection

if TYPE_CHECKING:
    from typing_extensions import Buffer

END, WRITTEN, STALLED = 0, -1, -2
"""What :meth:`CallbackConnection._wait_inbound` returns beside numbers of bytes: nothing more will come; the kernel has
taken bytes; nothing more comes until some of the queue is taken, which it returns once."""


class CallbackConnection(Connection):
    """A connection as servers of callbacks see it: every implementation of :class:`Connection` has these calls.

    It is a type and no base class: the contract has none of this, and an implementation inherits from the contract alone.
    """

    __slots__ = ()

    @abc.abstractmethod
    def _wait_inbound(self) -> Coroutine[Any, Any, int]:
        """Wait for news, in place of :meth:`receive`; takes nothing from the queue.

        Returns:
          How many bytes have arrived that this has not told of before, less what was taken of them already;
          :data:`END`, :data:`WRITTEN` or :data:`STALLED`.

        Raises:
          trio.BusyResourceError, trio.ClosedResourceError, trio.TooSlowError: see :meth:`receive`.
          trio.BrokenResourceError: it broke, in either direction; all that arrived before was told, unless the queue is at
            its high mark: then what the kernel has is told once some is taken, and the error again after it.

        Cancelling it loses nothing.
        """

    @abc.abstractmethod
    def _end_inbound(self) -> None:
        """Have :meth:`_wait_inbound` return :data:`END`, at once and ever after; also the call in progress."""

    @abc.abstractmethod
    def _resume_inbound(self) -> None:
        """Take :meth:`_end_inbound` back: what has arrived meanwhile is told, and the peer's end again.

        Raises:
          trio.ClosedResourceError: the connection is closed.
        """

    @abc.abstractmethod
    def _take_exactly(self, count: int, /) -> bytes | None:
        """Exactly ``count`` bytes of the queue, or all of it for a count of 0 or less; None if fewer are queued."""

    @abc.abstractmethod
    def _send_nowait(self, data: Buffer, /) -> int:
        """Queue all of ``data`` after what was sent before, however much is queued.

        Returns:
          How much is outbound now.

        Raises:
          trio.ClosedResourceError, trio.BrokenResourceError: see :meth:`send`.
          trio.BusyResourceError: another task is in :meth:`send`.
        """

    @abc.abstractmethod
    def _push(self) -> int:
        """Offer the kernel what is outbound, now, and return how much of it the kernel has not taken.

        The kernel reports room when a good part of its buffer is free, and takes bytes as soon as there is any room.  And on
        the ring, what a task sends in one step is offered when the step is over.  A caller that would give up on the
        peer because too much is outbound asks this first.  An error of the send is kept for the next call that sends.

        Raises:
          trio.ClosedResourceError: the connection is closed.
        """

    @abc.abstractmethod
    def _tell_written(self, wanted: bool, /) -> None:
        """Have :meth:`_wait_inbound` tell when the kernel has taken bytes, or not.  Counting begins at 0.

        That is told of all bytes, whenever they were sent.  Of a TLS connection :meth:`_take_written` counts those of the
        program that were sent since, as soon as a piece of them has left, so it may have none to count.
        """

    @abc.abstractmethod
    def _tell_resets(self) -> None:
        """Have :meth:`_wait_inbound` raise the socket's error also while the queue is full, before what is in it is taken.

        For who may never take it, and would not hear of a peer that has reset the connection.
        """

    @abc.abstractmethod
    def _take_written(self) -> int:
        """How many bytes the kernel has taken since this was asked last, while :meth:`_tell_written`."""

"""The receiving half of a connection over a socket; the essay is in ``_socket_connection.py``."""

from __future__ import annotations

import errno
import math
import time
from typing import Protocol, final

import trio

from gain_trio._io_manager import broken_by
from gain_trio._transports._connections import NOTHING, Inbound, Marks, head_of, joined, without_head

from ._socket_base import SocketOwner, as_size, closed_error, current_thread, kept
from ._socket_sending import SocketSender

CHUNK = 65536
"""The most bytes that one receive brings, but for:"""
LARGE_CHUNK = 4 * CHUNK
"""The most of one after a receive that brought as much as CHUNK: a large transfer, and what a Unix socket holds.  Not of
all, because Python makes room for so much before it knows how little has come."""
QUICK = 0.05
"""Seconds between two receives of CHUNK, at most, of a program that gets LARGE_CHUNK next."""
PAGE = 4096
"""A queue is filled by no less at a time, though it may have its high mark in the middle: small marks are no small calls."""


class QueueObserver(Protocol):
    """What a connection has for code that is called back: it wants to know what happens to the queue."""

    unseen: int
    """Bytes that have arrived, and were not reported; the program may have taken some of them."""

    def wake(self, connection: SocketOwner, /) -> None:
        """Have the task that waits for a change look again."""

    def note_room(self) -> None:
        """The queue is at its low mark."""


class ReceivingOwner(SocketOwner, Protocol):
    """The connection as its receiving half sees it."""

    @property
    def _sender(self) -> SocketSender:
        """The sending half, which may have got the socket's error."""

    @property
    def _changes(self) -> QueueObserver | None:
        """What was made for the first ``_wait_change()``."""


@final
class SocketReceiver:
    """Receives, and the queue of what was received and not taken: a part of one connection, see :class:`SocketOwner`.

    Args:
      marks: of the connection.
      reads_ahead: whether a call may receive more bytes than it returns.
    """

    __slots__ = (
        "_marks",
        "_reads_ahead",
        "chunk",
        "deadline",
        "end_told",
        "ended",
        "error",
        "filled_at",
        "inbound",
        "is_busy",
        "is_dry",
        "is_kernel_dry",
        "is_late",
        "is_paused",
        "looked_at",
        "socket_error",
    )

    def __init__(self, marks: Marks, *, reads_ahead: bool) -> None:
        self._marks = marks
        self._reads_ahead = reads_ahead
        self.inbound: Inbound = NOTHING
        self.chunk = CHUNK  # to be asked for next
        self.filled_at = -math.inf  # the last receive of CHUNK or more, on the real clock
        self.is_dry = False  # nothing is queued, and the kernel had nothing left when it was asked last
        self.is_kernel_dry = False  # the second half of it, while something is queued
        self.ended = False
        self.end_told = False
        self.error: OSError | None = None
        self.is_busy = False  # a call of this direction is in progress
        self.is_late = False  # it was woken because its deadline has passed
        self.deadline = self.looked_at = math.inf  # when the keeper of deadlines comes
        self.socket_error: OSError | None = None  # read while the queue was full; the receive raises it, too
        self.is_paused = False  # the queue was at its high mark, and has not been at its low one since

    async def receive(self, connection: ReceivingOwner, max_bytes: int | None) -> bytes:  # noqa: C901  # taken apart it costs a call a message
        """See :meth:`Connection.receive`."""
        size = self.chunk if max_bytes is None else self._size_for(max_bytes)
        if connection._is_closed or self.is_busy or current_thread() != connection._run.thread:
            connection._refuse("receiving")
        self.is_busy = True
        self.is_late = False
        try:
            if not self.is_dry:
                await self.begin(connection)
            while True:
                if self.is_dry:
                    if self.deadline < self.looked_at:
                        self.watch_deadline(connection)
                    await trio.lowlevel.wait_readable(connection._descriptor)
                    connection._has_waited()
                if connection._is_closed:
                    raise closed_error(connection)
                data = self.inbound or self.read(connection, size)
                if data:
                    return self._take(connection, data, max_bytes)
                self.check_dry()
                if not self.is_dry:
                    return b""
        except trio.ClosedResourceError:
            self._check_late(connection)
            return self._read_late(connection, size, max_bytes)
        except OSError as error:  # from the wait: this is no descriptor any more, or none that can be waited for
            raise broken_by(error) from error
        finally:
            self.is_busy = False

    def _read_late(self, connection: ReceivingOwner, size: int, max_bytes: int | None) -> bytes:
        """The deadline has passed: what has come at the last moment is the answer, or the error, all the same."""
        data = self.read(connection, size)
        if data:
            return self._take(connection, data, max_bytes)
        self.check_dry()
        return b""

    async def begin(self, connection: ReceivingOwner) -> None:
        """The cancellation point of a receive that may be answered at once."""
        if self.end_told:
            await trio.lowlevel.checkpoint()
        else:
            await connection._pass(self._marks.receive_high)

    def _size_for(self, max_bytes: int) -> int:
        """How much to ask of the kernel for a receive of so much: what is too much for it is queued."""
        if as_size(max_bytes) < 1:
            raise ValueError("max_bytes must be >= 1, or None")
        size = min(CHUNK, max(max_bytes, self._marks.receive_high, PAGE))
        return size if self._reads_ahead else min(size, max_bytes)

    def read(self, connection: ReceivingOwner, size: int) -> bytes:
        """What the kernel has.  Nothing: for now if the connection is dry then, otherwise for good."""
        if self.ended or self.error is not None:
            return b""
        try:
            data = connection._socket.recv(size)
        except (BlockingIOError, InterruptedError):
            self.is_dry = True
            return b""
        except OSError as error:
            self.is_dry = False
            self.error = kept(error)
            return b""
        if data:
            self.is_dry = len(data) < size
            self.chunk = CHUNK if len(data) < CHUNK else self._next_chunk()
            connection.bytes_received += len(data)
            if connection._is_timed:
                connection._active_at = trio.current_time()
            return data
        self.is_dry = False
        # A socket reports its error once.  Another call has got it, so to the receive a reset looks like the end.
        if connection._sender.error is not None and connection._sender.error.errno != errno.EPIPE:
            self.error = connection._sender.error
        elif self.socket_error is not None:
            self.error = self.socket_error
        else:
            self.ended = True
        return b""

    def _next_chunk(self) -> int:
        """After a receive of CHUNK or more.  A program that works off each for long lets its peer move nothing meanwhile."""
        now, before = time.monotonic(), self.filled_at
        self.filled_at = now
        return LARGE_CHUNK if now - before < QUICK else CHUNK

    def _take(self, connection: ReceivingOwner, data: Inbound, max_bytes: int | None) -> bytes:
        """Of ``data``, which is all that is here, as much as may be; the rest stays, or becomes, the queue."""
        if max_bytes is None or len(data) <= max_bytes:
            connection._unwaited += len(data)
            self.inbound = NOTHING
            if self.is_kernel_dry:
                self._emptied()
            return bytes(data)  # of bytes this is the object itself
        if connection._changes is not None and not self.inbound:  # it is fresh
            connection._changes.unseen += len(data)
        connection._unwaited += max_bytes
        self.is_dry = False
        head = head_of(data, max_bytes)
        self.inbound = without_head(data, max_bytes)
        return head

    def check_dry(self) -> None:
        """The queue is empty: raise an error, or that it is too late; otherwise, if not dry, the end was reported."""
        if self.is_dry:
            if self.is_late:
                raise trio.TooSlowError("the connection's read deadline has passed")
        elif self.error is not None:
            raise broken_by(kept(self.error))
        else:
            self.end_told = True

    async def receive_some(self, connection: ReceivingOwner, max_bytes: int | None) -> bytes:
        """:meth:`Connection.receive` as a full checkpoint."""
        if self.inbound or self.ended or self.error is not None or connection._is_closed or self.is_busy:
            await trio.lowlevel.checkpoint()
        elif not self.is_dry:
            self.is_dry = True  # so that it waits, which is a full checkpoint, and finds out what there is
        return await self.receive(connection, max_bytes)

    async def fill(self, connection: ReceivingOwner, count: int, /) -> int:
        """See :meth:`Framing._fill`."""
        if as_size(count) < 0:
            raise ValueError("the number of bytes to wait for must be >= 0")
        if connection._is_closed or self.is_busy or current_thread() != connection._run.thread:
            connection._refuse("receiving")
        self.is_busy = True
        self.is_late = False
        try:
            if not count or (self.end_told and len(self.inbound) < count):
                await trio.lowlevel.checkpoint()
            else:
                await connection._pass(self._marks.receive_high)
            while len(self.inbound) < count and await self._read_more(connection, count - len(self.inbound)):
                pass
            return len(self.inbound)
        except OSError as error:
            raise broken_by(error) from error
        finally:
            self.end()

    async def _read_more(self, connection: ReceivingOwner, wanted: int) -> bool:
        """Queue what there is next, waiting for it; False at the end of the stream."""
        await self.wait_until_wet(connection)
        data = self.read(connection, self._size_for(wanted))
        if data:
            self.enqueue(connection, data)
            return True
        self.check_dry()
        return self.is_dry

    async def wait_until_wet(self, connection: ReceivingOwner) -> None:
        """Wait for the socket to become readable, if it had nothing left."""
        if self.is_dry:
            if self.deadline < self.looked_at:
                self.watch_deadline(connection)
            try:
                await trio.lowlevel.wait_readable(connection._descriptor)
            except trio.ClosedResourceError:
                self._check_late(connection)
            connection._has_waited()
        if connection._is_closed:
            raise closed_error(connection)

    def end(self) -> None:
        """The call in progress is over.  It may have left bytes in the queue."""
        self.is_busy = False
        if self.inbound:
            self.is_kernel_dry = self.is_dry
            self.is_dry = False

    def fail(self, error: OSError) -> None:
        """Keep the error for the calls that receive."""
        self.error = error
        self.is_dry = False

    # --- deadline ---

    def set_deadline(self, connection: ReceivingOwner, deadline: float) -> None:
        """Move the deadline, also of the call in progress."""
        self.deadline = deadline
        if self.is_busy and not connection._is_closed and deadline < self.looked_at:
            self.watch_deadline(connection)

    def watch_deadline(self, connection: ReceivingOwner) -> None:
        """The call in progress has a deadline that the keeper does not know of."""
        connection._watch(False, self.deadline)
        self.looked_at = self.deadline

    def _check_late(self, connection: ReceivingOwner) -> None:
        """The wait was ended by notify_closing(): by a close, or because the deadline has passed."""
        if connection._is_closed or not self.is_late:
            raise closed_error(connection) from None

    def deadline_passed(self, connection: ReceivingOwner, now: float) -> float:
        """See :meth:`Connection._deadline_passed`."""
        self.looked_at = math.inf
        if self.is_busy and not connection._is_closed:
            if self.deadline > now:
                self.looked_at = self.deadline
            else:
                self.is_late = True
                # Ends the wait; the writer, if there is one, waits again.
                trio.lowlevel.notify_closing(connection._descriptor)
                if connection._changes is not None:
                    connection._changes.wake(connection)
        return self.looked_at

    # --- what has been received, without waiting ---

    def find(self, connection: ReceivingOwner, separator: bytes, start: int) -> int:
        """See :meth:`Framing._find`."""
        if connection._is_closed:
            raise closed_error(connection)
        return self.inbound.find(separator, start)

    def pump(self, connection: ReceivingOwner) -> None:
        """Move what the kernel has into the queue, up to the high mark.

        Not while a task waits to receive: the bytes are its, and nothing would wake it for those that are in the queue.
        """
        connection._check_thread()
        if connection._is_closed:
            raise closed_error(connection)
        high = self._marks.receive_high
        if self.is_busy or (self.is_paused and self.check_full()):
            return
        while len(self.inbound) < high:
            data = self.read(connection, min(CHUNK, max(high - len(self.inbound), PAGE)))
            if not data:
                break
            self.enqueue(connection, data)
            if self.is_dry:
                break
        self.check_full()
        if self.inbound:
            self.is_dry = False

    def check_full(self) -> bool:
        """Whether the queue was at its high mark, and has not been at its low one since."""
        queued = len(self.inbound)
        self.is_paused = queued >= self._marks.receive_high or (self.is_paused and queued > self._marks.receive_low)
        return self.is_paused

    def _counted(self, connection: ReceivingOwner, name: str, count: int | None) -> int:
        """``count`` bytes, or all there are for None, of a queue that is up to date, or long enough as it is."""
        if count is None:
            self.pump(connection)
            return len(self.inbound)
        count = as_size(count)
        if count < 0:
            raise ValueError(f"{name}() takes a number of bytes >= 0, or None")
        if connection._is_closed or count > len(self.inbound) or current_thread() != connection._run.thread:
            self.pump(connection)
        return min(count, len(self.inbound))

    def peek(self, connection: ReceivingOwner, count: int | None) -> bytes:
        """See :meth:`Connection.peek`."""
        count = self._counted(connection, "peek", count)  # which may move the queue
        return head_of(self.inbound, count)

    def next(self, connection: ReceivingOwner, count: int | None) -> bytes:
        """See :meth:`Connection.next`."""
        count = self._counted(connection, "next", count)
        return self._dequeue(connection, count)

    def discard(self, connection: ReceivingOwner, count: int | None) -> int:
        """See :meth:`Connection.discard`."""
        count = self._counted(connection, "discard", count)
        connection._unwaited += count
        self.inbound = without_head(self.inbound, count)
        self._let_go_on(connection)
        return count

    def buffered(self, connection: ReceivingOwner) -> int:
        """See :attr:`Connection.inbound_buffered`."""
        if not connection._is_closed:
            self.pump(connection)
        return len(self.inbound)

    # --- taking ---

    def _dequeue(self, connection: ReceivingOwner, count: int) -> bytes:
        """Remove ``count`` bytes, which are queued."""
        connection._unwaited += count
        taken = head_of(self.inbound, count)
        self.inbound = without_head(self.inbound, count)
        if not self.inbound and self.is_kernel_dry:
            self._emptied()
        self._let_go_on(connection)
        return taken

    def _emptied(self) -> None:
        """The queue was emptied, and the kernel had nothing left when it was filled."""
        self.is_kernel_dry = False
        self.is_dry = not self.ended and self.error is None

    def _let_go_on(self, connection: ReceivingOwner) -> None:
        """Some of the queue was taken."""
        if connection._changes is not None and len(self.inbound) <= self._marks.receive_low:
            connection._changes.note_room()

    def take_exactly(self, connection: ReceivingOwner, count: int, /) -> bytes | None:
        """See :meth:`Connection._take_exactly`."""
        count = as_size(count)
        if connection._is_closed or current_thread() != connection._run.thread:
            connection._check_thread()
            raise closed_error(connection)
        queued = len(self.inbound)
        if count > queued:
            self.pump(connection)
            queued = len(self.inbound)
        return None if count > queued else self._dequeue(connection, count if count >= 0 else queued)

    def enqueue(self, connection: ReceivingOwner, data: bytes) -> None:
        """What was received, and not taken at once."""
        self.inbound = joined(self.inbound, data)
        if connection._changes is not None:
            connection._changes.unseen += len(data)

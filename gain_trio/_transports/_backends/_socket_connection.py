"""A connection over a socket, in a run whose I/O manager waits for readiness: Trio's own, or a ring that can do no more.

It keeps the contract of :class:`Connection` to the letter, but not by doing what the ring does.

*The kernel's buffers are the queues.*  The ring has to receive ahead, into buffers it was given; here bytes are received
only in a call.  A peer that sends too much fills the kernel's receive buffer and is stopped by TCP.  Only the calls that do
not wait (``peek``, ``next``, ``discard``, ``inbound_buffered``) move bytes into a queue here, up to the high mark, and
``receive`` empties that first.  The end of the stream, or an error, that is found behind the bytes is kept until they have
been read.  While a task waits in ``receive`` the bytes are that task's, and these calls leave them to it.

*A task steps once a message.*  Trio's sockets try, wait, try again, and pass a checkpoint after every success.  A receive
that returned less than it had room for has emptied the kernel's buffer, so the next one waits at once: no failing system
call, and other tasks run.  A send that the kernel accepts at once does not go through the scheduler.  Two counters keep
that fair: ``_unwaited``, the bytes moved since a task of this connection last waited, in either direction, and the run's
``time_slice``, the time for which calls were answered like that: from the mark on, or after about a millisecond, the next
call passes a checkpoint *before* it moves anything, so that a cancellation there loses nothing.  For the same economy this
is a plain non-blocking ``socket.socket`` with ``trio.lowlevel.wait_readable``: what ``trio.socket`` is made of, without the
layers of Python in between.

*Sends finish after the call.*  Bytes that the kernel does not accept at once are queued, and a system task, the writer,
drains the queue and ends when it is empty.  It outlives the task that sent, because a ``bytes`` object is sent whole even if
that task is cancelled, and while something is queued only the writer sends, so the order stays.  Three things end it: an
empty queue, an error, a close (which empties the queue).  An error is kept, and raised by the sender's this or next call.

*The run's end closes what is open*, as on the ring, by another system task, one for all connections of a run.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import warnings
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import trio

from gain_trio._io_manager import broken_by
from gain_trio._transports._addresses import reset_on_close
from gain_trio._transports._connections import (
    NOTHING,
    Connection,
    ConnectionDeadlines,
    Inbound,
    Marks,
    ProxyHeader,
    checked_deadline,
    head_of,
    joined,
    whole_of,
    without_head,
)
from gain_trio._transports._peer_progress import DEFAULT_CLOSE_TIMEOUT, unacknowledged

from ._socket_base import as_size, closed_error, current_socket_run, current_thread, kept
from ._socket_changes import SocketChanges
from ._socket_sending import SocketSender

if TYPE_CHECKING:
    from typing_extensions import Buffer

CHUNK = 65536
"""The most bytes that one receive brings, but for:"""
LARGE_CHUNK = 4 * CHUNK
"""The most of one after a receive that brought as much as CHUNK: a large transfer, and what a Unix socket holds.  Not of
all, because Python makes room for so much before it knows how little has come."""
PAGE = 4096
"""A queue is filled by no less at a time, though it may have its high mark in the middle: small marks are no small calls."""


class SocketConnection(Connection):
    """See :class:`Connection`.  Owns the socket, which must be non-blocking."""

    __slots__ = (
        "__weakref__",
        "_active_at",
        "_between",
        "_changes",
        "_chunk",
        "_close_timeout",
        "_deadlines_kept",
        "_descriptor",
        "_drain_deadline",
        "_drain_deadline",
        "_draining",
        "_drains",
        "_end_told",
        "_ended",
        "_flushing",
        "_inbound",
        "_is_closed",
        "_is_dry",
        "_is_kernel_dry",
        "_is_timed",
        "_late_receiving",
        "_local_address",
        "_marks",
        "_paused",
        "_proxy_header",
        "_proxy_header_size",
        "_read_deadline",
        "_read_looked_at",
        "_receive_error",
        "_receiving",
        "_remote_address",
        "_run",
        "_sender",
        "_socket",
        "_socket_error",
        "_transfer",
        "_unwaited",
        "bytes_received",
        "bytes_sent",
        "context",
    )

    context: Any
    bytes_received: int
    bytes_sent: int
    _is_closed: bool
    _active_at: float

    def __init__(self, sock: socket.socket, marks: Marks) -> None:
        self._run = current_socket_run()
        self._marks = marks
        self._socket = sock
        self._descriptor = sock.fileno()  # -1 once it has been closed; one that is_closed may still be flushed
        self._is_closed = False
        self._close_timeout = DEFAULT_CLOSE_TIMEOUT
        self._deadlines_kept: ConnectionDeadlines | None = None
        self._is_timed = False
        self._active_at = 0.0
        self._read_deadline = math.inf
        self._read_looked_at = math.inf  # when the keeper of deadlines comes
        self._unwaited = 0  # bytes moved in either direction since a task of this connection last waited
        self._local_address: Any = None
        self._remote_address: Any = None
        self._proxy_header: ProxyHeader | None = None
        self._transfer: trio.CancelScope | None = None
        self._draining: trio.Event | None = None
        self._between = self._drains = False
        self._drain_deadline = None
        self._proxy_header_size = 0
        self.bytes_received = self.bytes_sent = 0
        self.context = None
        self._sender = SocketSender()
        self._inbound: Inbound = NOTHING
        self._chunk = CHUNK  # to be asked for next
        self._is_dry = False  # nothing is queued, and the kernel had nothing left when it was asked last
        self._is_kernel_dry = False  # the second half of it, while something is queued
        self._ended = False
        self._end_told = False
        self._receive_error: OSError | None = None
        self._receiving = False  # a call of this direction is in progress
        self._late_receiving = False  # it was woken because its deadline has passed
        self._changes: SocketChanges | None = None  # made for the first _wait_change()
        self._flushing = False  # the call of the sending direction has nothing to send
        self._socket_error: OSError | None = None  # read while the queue was full; the receive raises it, too
        self._paused = False  # the queue was at its high mark, and has not been at its low one since
        self._run.connections.add(self)

    def __del__(self) -> None:
        """Dropped without being closed.  Like a socket: say so, and close.  Maybe in another thread, and after the run."""
        if getattr(self, "_receiving", None) is None or self._descriptor < 0:
            return
        if (
            not self._run.thread
        ):  # the child of a fork: its copy goes, and the parent's is left alone, linger option included
            self._socket.close()
            return
        try:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
        finally:
            self._is_closed = True
            self._release(reset=self._is_send_incomplete)

    def __repr__(self) -> str:
        return self._described("closed" if self._is_closed else f"fd={self._descriptor}")

    def _refuse(self, verb: str) -> NoReturn:
        """A call that cannot even begin."""
        self._check_thread()
        if self._is_closed:
            raise closed_error()
        raise trio.BusyResourceError(f"another task is already {verb} on this connection")

    def _check_thread(self) -> None:
        if current_thread() == self._run.thread or self._descriptor < 0:
            return
        if not self._run.thread:
            raise RuntimeError("this run belongs to the parent process: after a fork, only exec or os._exit can follow")
        raise RuntimeError("this connection belongs to a run in another thread; use trio.from_thread.run()")

    def _timed(self, wanted: bool, /) -> None:
        """See :meth:`Connection._timed`."""
        self._is_timed = wanted
        self._active_at = trio.current_time()

    def _has_waited(self) -> None:
        """Other tasks have had a turn."""
        self._unwaited = 0
        self._run.time_slice.begin()

    def _unacknowledged(self) -> int | None:
        """See :meth:`Connection._unacknowledged`."""
        return unacknowledged(self._descriptor)

    def _has_sent(self, count: int, /) -> None:
        """Count ``count`` bytes that the kernel has accepted."""
        self.bytes_sent += count
        self._unwaited += count
        if self._is_timed:
            self._active_at = trio.current_time()
        if self._changes is not None:
            self._changes.note_sent(self)

    async def _pass(self, mark: int) -> None:
        """A cancellation point, before anything is moved.

        It is a schedule point, too, after much was moved without one, or for long.
        """
        if self._unwaited < mark and not self._run.time_slice.is_over():
            await trio.lowlevel.checkpoint_if_cancelled()
            return
        await self._yield()

    async def _yield(self) -> None:
        await trio.lowlevel.checkpoint()
        self._has_waited()
        if self._is_closed:
            raise closed_error()

    # --- receiving ---

    async def receive(self, max_bytes: int | None = None) -> bytes:  # noqa: C901  # taken apart it costs a call a message
        """See :meth:`Connection.receive`."""
        size = self._chunk if max_bytes is None else self._size_for(max_bytes)
        if self._is_closed or self._receiving or current_thread() != self._run.thread:
            self._refuse("receiving")
        self._receiving = True
        self._late_receiving = False
        try:
            if not self._is_dry:
                await self._before_receiving()
            while True:
                if self._is_dry:
                    if self._read_deadline < self._read_looked_at:
                        self._watch_receiving()
                    await trio.lowlevel.wait_readable(self._descriptor)
                    self._has_waited()
                if self._is_closed:
                    raise closed_error()
                data = self._inbound or self._read(size)
                if data:
                    return self._take(data, max_bytes)
                self._check_dry()
                if not self._is_dry:
                    return b""
        except trio.ClosedResourceError:
            self._check_late()
            return self._read_late(size, max_bytes)
        except OSError as error:  # from the wait: this is no descriptor any more, or none that can be waited for
            raise broken_by(error) from error
        finally:
            self._receiving = False

    def _read_late(self, size: int, max_bytes: int | None) -> bytes:
        """The deadline has passed: what has come at the last moment is the answer, or the error, all the same."""
        data = self._read(size)
        if data:
            return self._take(data, max_bytes)
        self._check_dry()
        return b""

    def _watch_receiving(self) -> None:
        """The call in progress has a deadline that the keeper does not know of."""
        self._watch(False, self._read_deadline)
        self._read_looked_at = self._read_deadline

    def _check_late(self) -> None:
        """The wait was ended by notify_closing(): by a close, or because the deadline has passed."""
        if self._is_closed or not self._late_receiving:
            raise closed_error() from None

    @property
    def read_deadline(self) -> float:
        """See :attr:`Connection.read_deadline`."""
        return self._read_deadline

    @read_deadline.setter
    def read_deadline(self, deadline: float) -> None:
        self._read_deadline = checked_deadline(deadline)
        if self._receiving and not self._is_closed and self._read_deadline < self._read_looked_at:
            self._watch_receiving()

    def _deadline_passed(self, sending: bool, now: float, /) -> float:
        """See :meth:`Connection._deadline_passed`."""
        if sending:
            return self._sender.deadline_passed(self, now)
        self._read_looked_at = math.inf
        if self._receiving and not self._is_closed:
            if self._read_deadline > now:
                self._read_looked_at = self._read_deadline
            else:
                self._late_receiving = True
                trio.lowlevel.notify_closing(
                    self._descriptor
                )  # ends the wait; the writer, if there is one, waits again
                if self._changes is not None:
                    self._changes.wake(self)
        return self._read_looked_at

    def _break(self, number: int, /) -> None:
        """See :meth:`Connection._break`."""
        if self._is_closed:
            return
        error = OSError(number, os.strerror(number))
        self._sender.is_incomplete = self._is_send_incomplete or self.outbound_buffered > 0
        self._receive_error = error
        self._is_dry = False
        self._send_failed(error)
        with contextlib.suppress(OSError):  # one that is not connected any more needs no telling
            self._socket.shutdown(socket.SHUT_RDWR)

    async def _before_receiving(self) -> None:
        """The cancellation point of a receive that may be answered at once."""
        if self._end_told:
            await trio.lowlevel.checkpoint()
        else:
            await self._pass(self._marks.receive_high)

    def _size_for(self, max_bytes: int) -> int:
        """How much to ask of the kernel for a receive of so much: what is too much for it is queued."""
        if as_size(max_bytes) < 1:
            raise ValueError("max_bytes must be >= 1, or None")
        return min(CHUNK, max(max_bytes, self._marks.receive_high, PAGE))

    def _read(self, size: int) -> bytes:
        """What the kernel has.  Nothing: for now if the connection is dry then, otherwise for good."""
        if self._ended or self._receive_error is not None:
            return b""
        try:
            data = self._socket.recv(size)
        except (BlockingIOError, InterruptedError):
            self._is_dry = True
            return b""
        except OSError as error:
            self._is_dry = False
            self._receive_error = kept(error)
            return b""
        if data:
            self._is_dry = len(data) < size
            self._chunk = LARGE_CHUNK if len(data) >= CHUNK else CHUNK
            self.bytes_received += len(data)
            if self._is_timed:
                self._active_at = trio.current_time()
            return data
        self._is_dry = False
        # A socket reports its error once.  Another call has got it, so to the receive a reset looks like the end.
        if self._sender.error is not None and self._sender.error.errno != errno.EPIPE:
            self._receive_error = self._sender.error
        elif self._socket_error is not None:
            self._receive_error = self._socket_error
        else:
            self._ended = True
        return b""

    def _take(self, data: Inbound, max_bytes: int | None) -> bytes:
        """Of ``data``, which is all that is here, as much as may be; the rest stays, or becomes, the queue."""
        if max_bytes is None or len(data) <= max_bytes:
            self._unwaited += len(data)
            self._inbound = NOTHING
            if self._is_kernel_dry:
                self._emptied()
            return bytes(data)  # of bytes this is the object itself
        if self._changes is not None and not self._inbound:  # it is fresh
            self._changes.unseen += len(data)
        self._unwaited += max_bytes
        self._is_dry = False
        head = head_of(data, max_bytes)
        self._inbound = without_head(data, max_bytes)
        return head

    def _check_dry(self) -> None:
        """The queue is empty: raise an error, or that it is too late; otherwise, if not dry, the end was reported."""
        if self._is_dry:
            if self._late_receiving:
                raise trio.TooSlowError("the connection's read deadline has passed")
        elif self._receive_error is not None:
            raise broken_by(kept(self._receive_error))
        else:
            self._end_told = True

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """:meth:`Connection.receive` as a full checkpoint."""
        if self._inbound or self._ended or self._receive_error is not None or self._is_closed or self._receiving:
            await trio.lowlevel.checkpoint()
        elif not self._is_dry:
            self._is_dry = True  # so that it waits, which is a full checkpoint, and finds out what there is
        return await self.receive(max_bytes)

    async def _fill(self, count: int, /) -> int:
        """See :meth:`Framing._fill`."""
        if as_size(count) < 0:
            raise ValueError("the number of bytes to wait for must be >= 0")
        if self._is_closed or self._receiving or current_thread() != self._run.thread:
            self._refuse("receiving")
        self._receiving = True
        self._late_receiving = False
        try:
            if not count or (self._end_told and len(self._inbound) < count):
                await trio.lowlevel.checkpoint()
            else:
                await self._pass(self._marks.receive_high)
            while len(self._inbound) < count and await self._read_more(count - len(self._inbound)):
                pass
            return len(self._inbound)
        except OSError as error:
            raise broken_by(error) from error
        finally:
            self._receiving = False
            if self._inbound:
                self._is_kernel_dry = self._is_dry
                self._is_dry = False

    async def _read_more(self, wanted: int) -> bool:
        """Queue what there is next, waiting for it; False at the end of the stream."""
        await self._wait_until_wet()
        data = self._read(self._size_for(wanted))
        if data:
            self._enqueue_inbound(data)
            return True
        self._check_dry()
        return self._is_dry

    async def _wait_until_wet(self) -> None:
        """Wait for the socket to become readable, if it had nothing left."""
        if self._is_dry:
            if self._read_deadline < self._read_looked_at:
                self._watch_receiving()
            try:
                await trio.lowlevel.wait_readable(self._descriptor)
            except trio.ClosedResourceError:
                self._check_late()
            self._has_waited()
        if self._is_closed:
            raise closed_error()

    # --- what has been received, without waiting ---

    def _find(self, separator: bytes, start: int, /) -> int:
        """See :meth:`Framing._find`."""
        if self._is_closed:
            raise closed_error()
        return self._inbound.find(separator, start)

    def _pump(self) -> None:
        """Move what the kernel has into the queue, up to the high mark.

        Not while a task waits to receive: the bytes are its, and nothing would wake it for those that are in the queue.
        """
        self._check_thread()
        if self._is_closed:
            raise closed_error()
        high = self._marks.receive_high
        if self._receiving or (self._paused and self._is_full()):
            return
        while len(self._inbound) < high:
            data = self._read(min(CHUNK, max(high - len(self._inbound), PAGE)))
            if not data:
                break
            self._enqueue_inbound(data)
            if self._is_dry:
                break
        self._is_full()
        if self._inbound:
            self._is_dry = False

    def _is_full(self) -> bool:
        """Whether the queue was at its high mark, and has not been at its low one since."""
        queued = len(self._inbound)
        self._paused = queued >= self._marks.receive_high or (self._paused and queued > self._marks.receive_low)
        return self._paused

    def _counted(self, name: str, count: int | None) -> int:
        """``count`` bytes, or all there are for None, of a queue that is up to date, or long enough as it is."""
        if count is None:
            self._pump()
            return len(self._inbound)
        count = as_size(count)
        if count < 0:
            raise ValueError(f"{name}() takes a number of bytes >= 0, or None")
        if self._is_closed or count > len(self._inbound) or current_thread() != self._run.thread:
            self._pump()
        return min(count, len(self._inbound))

    def peek(self, count: int | None = None, /) -> bytes:
        """See :meth:`Connection.peek`."""
        count = self._counted("peek", count)  # which may move the queue
        return head_of(self._inbound, count)

    def next(self, count: int | None = None, /) -> bytes:
        """See :meth:`Connection.next`."""
        count = self._counted("next", count)
        return self._dequeue(count)

    def discard(self, count: int | None = None, /) -> int:
        """See :meth:`Connection.discard`."""
        count = self._counted("discard", count)
        self._unwaited += count
        self._inbound = without_head(self._inbound, count)
        self._let_go_on()
        return count

    @property
    def inbound_buffered(self) -> int:
        """See :attr:`Connection.inbound_buffered`."""
        if not self._is_closed:
            self._pump()
        return len(self._inbound)

    # --- taking ---

    def _dequeue(self, count: int) -> bytes:
        """Remove ``count`` bytes, which are queued."""
        self._unwaited += count
        taken = head_of(self._inbound, count)
        self._inbound = without_head(self._inbound, count)
        if not self._inbound and self._is_kernel_dry:
            self._emptied()
        self._let_go_on()
        return taken

    def _emptied(self) -> None:
        """The queue was emptied, and the kernel had nothing left when it was filled."""
        self._is_kernel_dry = False
        self._is_dry = not self._ended and self._receive_error is None

    def _let_go_on(self) -> None:
        """Some of the queue was taken."""
        if self._changes is not None and len(self._inbound) <= self._marks.receive_low:
            self._changes.note_room()

    def _take_exactly(self, count: int, /) -> bytes | None:
        """See :meth:`Connection._take_exactly`."""
        count = as_size(count)
        if self._is_closed or current_thread() != self._run.thread:
            self._check_thread()
            raise closed_error()
        queued = len(self._inbound)
        if count > queued:
            self._pump()
            queued = len(self._inbound)
        return None if count > queued else self._dequeue(count if count >= 0 else queued)

    # --- changes ---

    def _enqueue_inbound(self, data: bytes) -> None:
        """What was received, and not taken at once."""
        self._inbound = joined(self._inbound, data)
        if self._changes is not None:
            self._changes.unseen += len(data)

    def _own_changes(self) -> SocketChanges:
        if self._changes is None:
            self._changes = SocketChanges(len(self._inbound))
        return self._changes

    def _wait_change(self, watched: int, /) -> Coroutine[Any, Any, int]:
        """See :meth:`Connection._wait_change`."""
        return self._own_changes().wait_change(self, watched)

    def _note_change(self) -> None:
        """See :meth:`Connection._note_change`."""
        if not self._is_closed:
            self._check_thread()
            self._own_changes().note(self)

    # --- sending ---

    def send(self, data: Buffer | Sequence[Buffer], /) -> Coroutine[Any, Any, None]:
        """See :meth:`Connection.send`."""
        return self._sender.send(self, data)

    async def flush(self) -> None:
        """See :meth:`Connection.flush`."""
        await self._wait_below(1)

    async def _wait_writable(self) -> None:
        await self._wait_below(self._marks.send_high)

    async def _wait_for_room(self) -> None:
        """See :meth:`Connection._wait_for_room`."""
        await self._sender.wait_for_room(self)

    async def _close_flush(self) -> None:
        await self._sender.flush_closing(self)

    @property
    def write_deadline(self) -> float:
        """See :attr:`Connection.write_deadline`."""
        return self._sender.deadline

    @write_deadline.setter
    def write_deadline(self, deadline: float) -> None:
        self._sender.set_deadline(self, checked_deadline(deadline))

    @property
    def outbound_buffered(self) -> int:
        """See :attr:`Connection.outbound_buffered`."""
        return self._sender.size

    @property
    def _is_send_eof(self) -> bool:
        return self._sender.is_eof

    @property
    def _is_send_incomplete(self) -> bool:
        return self._sender.is_incomplete

    def _hold_sends(self, held: bool, /) -> None:
        self._sender.is_busy = held

    def _mark_send_incomplete(self) -> None:
        self._sender.is_incomplete = True

    def _fail_sends(self, number: int, /) -> int:
        sender = self._sender
        if sender.error is None:
            self._send_failed(OSError(number, os.strerror(number)))
        assert sender.error is not None
        return sender.error.errno or number

    def _send_failed(self, error: OSError) -> None:
        """The sender has failed, or is to."""
        self._sender.fail(error)
        if self._changes is not None:
            self._changes.wake(self)

    def _refuse_sends(self) -> None:
        self._check_thread()
        if self._is_closed:
            raise closed_error()
        self._sender.is_eof = True

    # --- sending without waiting ---

    def _send_nowait(self, data: Buffer, /) -> int:
        """See :meth:`Connection._send_nowait`."""
        if self._is_closed or current_thread() != self._run.thread:
            self._refuse("sending")
        if self._sender.is_busy and not self._flushing:
            self._refuse("sending")
        self._sender.check_not_eof()
        self._sender.check(self)
        whole = whole_of(data)
        sent = 0
        if whole and self._sender.outbound is None:
            sent = self._sender.write(self, whole)
        if sent < len(whole):
            self._sender.enqueue(self, whole, sent)
        return self.outbound_buffered

    def _push(self) -> int:
        """See :meth:`Connection._push`."""
        if self._is_closed or current_thread() != self._run.thread:
            self._check_thread()
            raise closed_error()
        with contextlib.suppress(trio.BrokenResourceError):  # which is kept for the next send
            self._sender.write_queued(self)
        return self.outbound_buffered

    async def _wait_below(self, mark: int) -> None:
        sender = self._sender
        if sender.is_busy:
            self._refuse("sending")
        self._flushing = True
        try:
            await sender.wait_below(self, mark)
        finally:
            self._flushing = False

    # --- giving the socket back ---

    @trio.lowlevel.enable_ki_protection  # the descriptor has no owner for a moment
    async def detach(self) -> tuple[socket.socket, bytes]:
        """See :meth:`Connection.detach`."""
        await trio.lowlevel.checkpoint()
        await self.flush()
        self._refuse_detach()
        if self._sender.is_writing:  # for a call that was cancelled while it waited for room
            trio.lowlevel.notify_closing(self._descriptor)
        old, queued = self._socket, bytes(self._inbound)
        sock = socket.socket(old.family, old.type, old.proto, old.detach())
        self._is_closed = True
        self._descriptor = -1
        self._inbound = NOTHING
        self._run.connections.discard(self)
        self._unwatch()
        sock.setblocking(True)
        return sock, queued

    def _refuse_detach(self) -> None:
        """Raise why the socket cannot be given back now."""
        if self._receiving:
            self._refuse("receiving")
        if self._receive_error is not None:
            raise broken_by(kept(self._receive_error))

    # --- closing ---

    def _refuse_calls(self) -> None:
        self._check_thread()
        self._is_closed = True
        self._unwatch()
        if self._receiving and self._descriptor >= 0:
            trio.lowlevel.notify_closing(self._descriptor)
            if self._changes is not None:
                self._changes.wake(self)
        self._sender.wake()

    def _close(self, reset: bool, /) -> None:
        self._refuse_calls()
        if self._descriptor < 0:
            return
        self._inbound = NOTHING
        self._sender.outbound = None
        self._sender.room_wanted = False
        trio.lowlevel.notify_closing(self._descriptor)
        self._release(reset=reset or self._is_send_incomplete)

    def _release(self, *, reset: bool) -> None:
        """Close the descriptor."""
        self._descriptor = -1
        try:
            if reset:
                reset_on_close(self._socket)
        finally:
            try:
                self._socket.close()
            except OSError as error:
                if error.errno != errno.EBADF:  # other code has closed it: nothing is left to close
                    raise

    def fileno(self) -> int:
        """See :meth:`Connection.fileno`."""
        return -1 if self._is_closed else self._descriptor

    def _borrowed_socket(self) -> contextlib.AbstractContextManager[socket.socket]:
        if self._is_closed:
            raise closed_error()
        return contextlib.nullcontext(self._socket)

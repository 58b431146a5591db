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
import os
import socket
import warnings
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import trio

from gain_trio._io_manager import broken_by
from gain_trio._transports._addresses import reset_on_close
from gain_trio._transports._connections import (
    NOTHING,
    Connection,
    ConnectionDeadlines,
    Marks,
    ProxyHeader,
    checked_deadline,
    whole_of,
)
from gain_trio._transports._peer_progress import DEFAULT_CLOSE_TIMEOUT, unacknowledged

from ._socket_base import closed_error, current_socket_run, current_thread, kept
from ._socket_changes import SocketChanges
from ._socket_receiving import SocketReceiver
from ._socket_sending import SocketSender

if TYPE_CHECKING:
    from typing_extensions import Buffer


class SocketConnection(Connection):
    """See :class:`Connection`.  Owns the socket, which must be non-blocking."""

    __slots__ = (
        "__weakref__",
        "_active_at",
        "_between",
        "_changes",
        "_close_timeout",
        "_deadlines_kept",
        "_descriptor",
        "_drain_deadline",
        "_draining",
        "_drains",
        "_flushing",
        "_is_closed",
        "_is_timed",
        "_local_address",
        "_marks",
        "_proxy_header",
        "_proxy_header_size",
        "_receiver",
        "_remote_address",
        "_run",
        "_sender",
        "_socket",
        "_successor",
        "_transfer",
        "_unwaited",
        "_was_detached",
        "bytes_received",
        "bytes_sent",
        "context",
    )

    _reads_ahead: ClassVar[bool] = True
    """Whether a call may receive more bytes than it returns."""

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
        self._unwaited = 0  # bytes moved in either direction since a task of this connection last waited
        self._local_address: Any = None
        self._remote_address: Any = None
        self._proxy_header: ProxyHeader | None = None
        self._successor: Connection | None = None
        self._was_detached = False
        self._transfer: trio.CancelScope | None = None
        self._draining: trio.Event | None = None
        self._between = self._drains = False
        self._drain_deadline = None
        self._proxy_header_size = 0
        self.bytes_received = self.bytes_sent = 0
        self.context = None
        self._receiver = SocketReceiver(marks, reads_ahead=self._reads_ahead)
        self._sender = SocketSender()
        self._changes: SocketChanges | None = None
        self._flushing = False  # the call of the sending direction has nothing to send
        self._run.connections.add(self)

    def __del__(self) -> None:
        """Dropped without being closed.  Like a socket: say so, and close.  Maybe in another thread, and after the run."""
        if getattr(self, "_flushing", None) is None or self._descriptor < 0:
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
            raise closed_error(self)
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
            raise closed_error(self)

    # --- receiving ---

    def receive(self, max_bytes: int | None = None) -> Coroutine[Any, Any, bytes]:
        """See :meth:`Connection.receive`."""
        return self._receiver.receive(self, max_bytes)

    @property
    def read_deadline(self) -> float:
        """See :attr:`Connection.read_deadline`."""
        return self._receiver.deadline

    @read_deadline.setter
    def read_deadline(self, deadline: float) -> None:
        self._receiver.set_deadline(self, checked_deadline(deadline))

    def _deadline_passed(self, sending: bool, now: float, /) -> float:
        """See :meth:`Connection._deadline_passed`."""
        return (self._sender if sending else self._receiver).deadline_passed(self, now)

    def _break(self, number: int, /) -> None:
        """See :meth:`Connection._break`."""
        if self._is_closed:
            return
        error = OSError(number, os.strerror(number))
        self._sender.is_incomplete = self._is_send_incomplete or self.outbound_buffered > 0
        self._receiver.fail(error)
        self._send_failed(error)
        with contextlib.suppress(OSError):  # one that is not connected any more needs no telling
            self._socket.shutdown(socket.SHUT_RDWR)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """:meth:`Connection.receive` as a full checkpoint."""
        return await self._receiver.receive_some(self, max_bytes)

    def _fill(self, count: int, /) -> Coroutine[Any, Any, int]:
        """See :meth:`Framing._fill`."""
        return self._receiver.fill(self, count)

    # --- what has been received, without waiting ---

    def _find(self, separator: bytes, start: int, /) -> int:
        """See :meth:`Framing._find`."""
        return self._receiver.find(self, separator, start)

    def peek(self, count: int | None = None, /) -> bytes:
        """See :meth:`Connection.peek`."""
        return self._receiver.peek(self, count)

    def next(self, count: int | None = None, /) -> bytes:
        """See :meth:`Connection.next`."""
        return self._receiver.next(self, count)

    def discard(self, count: int | None = None, /) -> int:
        """See :meth:`Connection.discard`."""
        return self._receiver.discard(self, count)

    @property
    def inbound_buffered(self) -> int:
        """See :attr:`Connection.inbound_buffered`."""
        return self._receiver.buffered(self)

    def _take_exactly(self, count: int, /) -> bytes | None:
        """See :meth:`Connection._take_exactly`."""
        return self._receiver.take_exactly(self, count)

    # --- changes ---

    def _own_changes(self) -> SocketChanges:
        if self._changes is None:
            self._changes = SocketChanges(len(self._receiver.inbound))
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
            raise closed_error(self)
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
            raise closed_error(self)
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
        old, queued = self._socket, bytes(self._receiver.inbound)
        sock = socket.socket(old.family, old.type, old.proto, old.detach())
        self._is_closed = self._was_detached = True
        self._descriptor = -1
        self._receiver.inbound = NOTHING
        self._run.connections.discard(self)
        self._unwatch()
        sock.setblocking(True)
        return sock, queued

    def _refuse_detach(self) -> None:
        """Raise why the socket cannot be given back now."""
        if self._receiver.is_busy:
            self._refuse("receiving")
        if self._receiver.error is not None:
            raise broken_by(kept(self._receiver.error))

    # --- closing ---

    def _refuse_calls(self) -> None:
        self._check_thread()
        self._is_closed = True
        self._unwatch()
        if self._receiver.is_busy and self._descriptor >= 0:
            trio.lowlevel.notify_closing(self._descriptor)
            if self._changes is not None:
                self._changes.wake(self)
        self._sender.wake()

    def _close(self, reset: bool, /) -> None:
        self._refuse_calls()
        if self._descriptor < 0:
            return
        self._receiver.inbound = NOTHING
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
            raise closed_error(self)
        return contextlib.nullcontext(self._socket)

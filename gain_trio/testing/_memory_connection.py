"""A connection without a socket: what one end sends goes to the other end's queue.

It keeps the contract of :class:`Connection`, so a handler cannot tell the difference, but for what only a socket has.
What the kernel does for a socket is done here by :meth:`MemoryConnection._pump`: it moves bytes from the outbound queue of
one end to the inbound queue of the other, as many as that has room for and the route lets pass.  "Accepted by the kernel"
means moved.

Nothing is left to chance: bytes arrive in the step in which they are sent, and every call is a full checkpoint.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING, Any, final

import trio

from gain_trio._io_manager import broken_by
from gain_trio._transports import (
    CHANGED,
    DEFAULT_CLOSE_TIMEOUT,
    ENDED,
    FULL,
    MOST_SEEN,
    WATCH_SENT,
    Connection,
    FileTransfer,
    Marks,
    checked_deadline,
    endpoint_text,
    head_of,
    joined,
    message_of,
    without_head,
)

from ._route import Route
from ._timed_wait import TimedWait
from ._without_socket import WithoutSocket

if TYPE_CHECKING:
    from typing_extensions import Buffer


@final
class MemoryConnection(WithoutSocket, Connection):
    """See :func:`connection_pair`.

    ``incoming`` and ``outgoing`` are the two directions between it and its peer, for a test to disturb.
    """

    __slots__ = (
        "__weakref__",
        "_active_at",
        "_between",
        "_change_noted",
        "_close_timeout",
        "_deadlines_kept",
        "_drain_deadline",
        "_draining",
        "_drains",
        "_end_seen",
        "_error",
        "_full_seen",
        "_inbound",
        "_is_closed",
        "_is_send_eof",
        "_is_send_incomplete",
        "_local_address",
        "_marks",
        "_needed",
        "_options",
        "_outbound",
        "_peer",
        "_proxy_header",
        "_proxy_header_size",
        "_reads",
        "_receiving",
        "_remote_address",
        "_sending",
        "_sent_seen",
        "_successor",
        "_thread",
        "_transfer",
        "_unseen",
        "_was_detached",
        "_writes",
        "bytes_received",
        "bytes_sent",
        "context",
        "incoming",
        "outgoing",
    )

    _KIND = "a connection"

    _transfer_type = FileTransfer
    context: Any
    bytes_received: int
    bytes_sent: int
    _is_closed: bool
    _is_send_eof: bool
    _is_send_incomplete: bool
    _active_at: float
    _peer: MemoryConnection
    incoming: Route
    """From the peer to this end."""
    outgoing: Route
    """From this end to the peer."""

    def __init__(self, marks: Marks, local_address: Any, remote_address: Any) -> None:
        self._marks = marks
        self._local_address = local_address
        self._remote_address = remote_address
        self._inbound: bytes | bytearray = b""
        self._outbound = bytearray()
        self._needed = 0  # bytes that a call waits for, whatever the mark
        self._error: OSError | None = None
        self._is_closed = self._is_send_eof = self._is_send_incomplete = False
        self._end_seen = False
        self._receiving = self._sending = False
        self._reads = TimedWait("read")
        self._writes = TimedWait("write")
        self._thread = threading.get_ident()  # the run's
        self._change_noted = self._full_seen = False
        self._unseen = self._sent_seen = 0
        self._options = {}
        self.bytes_received = self.bytes_sent = 0
        self.context = None
        self._active_at = trio.current_time()
        self._close_timeout = DEFAULT_CLOSE_TIMEOUT
        self._deadlines_kept = None
        self._proxy_header = None
        self._proxy_header_size = 0
        self._draining: trio.Event | None = None
        self._between = self._drains = False
        self._drain_deadline = None
        self._successor = None
        self._was_detached = False
        self._transfer = None
        self.outgoing = Route(self._pump)

    def _join(self, peer: MemoryConnection) -> None:
        """The two are the ends of one connection from now on."""
        self._peer = peer
        self.incoming = peer.outgoing

    def __repr__(self) -> str:
        return self._described("closed" if self._is_closed else "in memory")

    def _peer_text(self) -> str | None:
        header = self._proxy_header
        source = self._remote_address if header is None or header.source is None else header.source
        return endpoint_text(source)

    # --- moving bytes ---

    def _pump(self) -> None:
        """Move what can be moved to the peer."""
        peer = self._peer
        if self.outgoing.is_cut and self._error is None and not self._is_closed:
            self._lose()
            return
        room = max(peer._marks.receive_high, peer._needed) - len(peer._inbound)
        count = self.outgoing.passing(max(min(len(self._outbound), room), 0))
        if count and not peer._is_closed and peer._error is None:
            peer._inbound = joined(peer._inbound, head_of(self._outbound, count))
            del self._outbound[:count]
            self.outgoing.carry(count)
            self.bytes_sent += count
            peer.bytes_received += count
            peer._unseen += count
            self._active_at = peer._active_at = trio.current_time()
            peer._wake_receiver()
            self._wake_sender()
            if self.outgoing.is_cut:
                self._lose()

    def _lose(self) -> None:
        """The connection is reset by what is between its ends."""
        for end in (self, self._peer):
            end._break(errno.ECONNRESET)

    def _break(self, errno: int, /) -> None:
        if self._error is None and not self._is_closed:
            self._error = OSError(errno, os.strerror(errno))
            self._outbound.clear()
            self._wake_receiver()
            self._wake_sender()

    def _wake_receiver(self) -> None:
        self._reads.wake()

    def _wake_sender(self) -> None:
        self._writes.wake()
        self._wake_receiver()  # a task in _wait_change() waits for bytes that were sent, too

    @property
    def _has_ended(self) -> bool:
        """Whether the peer has ended the stream, and all its bytes are here."""
        return (self._peer._is_send_eof or self._peer._is_closed) and not self._peer._outbound

    def _check_open(self) -> None:
        if self._is_closed:
            raise trio.ClosedResourceError("this connection was closed")

    def _check_thread(self) -> None:
        if threading.get_ident() != self._thread:
            raise RuntimeError("this connection belongs to a run in another thread; use trio.from_thread.run()")

    # --- time ---

    @property
    def read_deadline(self) -> float:
        """See :attr:`Connection.read_deadline`."""
        return self._reads.deadline

    @read_deadline.setter
    def read_deadline(self, deadline: float) -> None:
        self._reads.deadline = checked_deadline(deadline)

    @property
    def write_deadline(self) -> float:
        """See :attr:`Connection.write_deadline`."""
        return self._writes.deadline

    @write_deadline.setter
    def write_deadline(self, deadline: float) -> None:
        self._writes.deadline = checked_deadline(deadline)

    def _timed(self, _wanted: bool, /) -> None:
        self._active_at = trio.current_time()

    def _unacknowledged(self) -> int | None:
        return None

    # --- receiving ---

    def _begin_receiving(self) -> None:
        self._check_open()
        if self._receiving:
            raise trio.BusyResourceError("another task is already receiving on this connection")
        self._receiving = True

    async def _wait_queued(self, count: int) -> int:
        """Wait until this many bytes are queued, or no more will come.  Returns how many there are."""
        self._needed = count
        self._peer._pump()
        try:
            while len(self._inbound) < count:
                if self._error is not None:
                    raise broken_by(self._error)
                if self._has_ended:
                    break
                await self._reads.wait(self._check_open)
        finally:
            self._needed = 0
        return len(self._inbound)

    async def receive(self, max_bytes: int | None = None) -> bytes:
        """See :meth:`Connection.receive`."""
        if max_bytes is not None and index(max_bytes) < 1:
            raise ValueError("max_bytes must be >= 1, or None")
        self._begin_receiving()
        try:
            await trio.lowlevel.checkpoint()
            self._check_open()
            await self._wait_queued(1)
            limits = [limit for limit in (max_bytes, self.incoming.largest_piece) if limit is not None]
            return self._taken(min(limits, default=len(self._inbound)))
        finally:
            self._receiving = False

    async def _fill(self, count: int, /) -> int:
        """See :meth:`Framing._fill`."""
        if index(count) < 0:
            raise ValueError("the number of bytes to wait for must be >= 0")
        self._begin_receiving()
        try:
            await trio.lowlevel.checkpoint()
            self._check_open()
            return await self._wait_queued(count)
        finally:
            self._receiving = False

    def _find(self, separator: bytes, start: int, /) -> int:
        self._check_open()
        return self._inbound.find(separator, start)

    def _taken(self, count: int) -> bytes:
        head = head_of(self._inbound, count)
        self._inbound = without_head(self._inbound, count)
        if len(self._inbound) <= self._marks.receive_low:
            self._full_seen = False
        self._peer._pump()
        return head

    def _counted(self, name: str, count: int | None) -> int:
        self._check_open()
        if count is not None and index(count) < 0:
            raise ValueError(f"{name}() takes a number of bytes >= 0, or None")
        return len(self._inbound) if count is None else min(count, len(self._inbound))

    def peek(self, count: int | None = None, /) -> bytes:
        """See :meth:`Connection.peek`."""
        return head_of(self._inbound, self._counted("peek", count))

    def next(self, count: int | None = None, /) -> bytes:
        """See :meth:`Connection.next`."""
        return self._taken(self._counted("next", count))

    def discard(self, count: int | None = None, /) -> int:
        """See :meth:`Connection.discard`."""
        return len(self._taken(self._counted("discard", count)))

    @property
    def inbound_buffered(self) -> int:
        """See :attr:`Connection.inbound_buffered`."""
        return len(self._inbound)

    def _take_exactly(self, count: int, /) -> bytes | None:
        self._check_open()
        queued = len(self._inbound)
        return None if count > queued else self._taken(queued if count < 0 else count)

    # --- sending ---

    def _begin_sending(self) -> None:
        self._check_open()
        if self._sending:
            raise trio.BusyResourceError("another task is already sending on this connection")
        self._check_sendable()

    def _check_sendable(self) -> None:
        if self._is_send_eof:
            raise trio.ClosedResourceError("send_eof() was called on this connection")
        if self._error is not None:
            raise broken_by(self._error)
        if self._is_send_incomplete:
            raise broken_by(OSError(errno.ECANCELED, "a send was cancelled when a part of its data had been sent"))
        if self._peer._is_closed:
            raise broken_by(OSError(errno.EPIPE, os.strerror(errno.EPIPE)))

    async def send(self, data: Buffer | Sequence[Buffer], /) -> None:
        """See :meth:`Connection.send`."""
        self._begin_sending()
        self._sending = True
        try:
            await trio.lowlevel.checkpoint()
            with message_of(data if isinstance(data, (list, tuple)) else (data,)) as message:
                whole = b"".join(message.parts)
            await self._wait_outbound(self._marks.send_high)
            self._queue(whole)
            await self._wait_outbound(self._marks.send_high)
        finally:
            self._sending = False

    def _queue(self, data: bytes) -> None:
        self._outbound += data
        self._pump()

    async def _wait_outbound(self, mark: int) -> None:
        """Wait until less than this is outbound."""
        while True:
            self._check_open()
            if self._error is not None:
                raise broken_by(self._error)
            if len(self._outbound) < mark:
                return
            if self._peer._is_closed:
                raise broken_by(OSError(errno.EPIPE, os.strerror(errno.EPIPE)))
            await self._writes.wait(self._check_open)

    async def _waited(self, mark: int) -> None:
        self._begin_sending()
        self._sending = True
        try:
            await trio.lowlevel.checkpoint()
            await self._wait_outbound(mark)
        finally:
            self._sending = False

    async def flush(self) -> None:
        """See :meth:`Connection.flush`."""
        await self._waited(1)

    async def _wait_writable(self) -> None:
        await self._waited(self._marks.send_high)

    @property
    def outbound_buffered(self) -> int:
        """See :attr:`Connection.outbound_buffered`."""
        return len(self._outbound)

    def _send_nowait(self, data: Buffer, /) -> int:
        self._check_thread()
        self._begin_sending()
        self._queue(bytes(memoryview(data)))
        return len(self._outbound)

    def _push(self) -> int:
        self._check_thread()
        self._check_open()
        self._pump()
        return len(self._outbound)

    def _hold_sends(self, held: bool, /) -> None:
        self._sending = held

    def _mark_send_incomplete(self) -> None:
        self._is_send_incomplete = True

    # --- changes: see Connection._wait_change() ---

    async def _wait_change(self, watched: int, /) -> int:
        self._begin_receiving()
        try:
            await trio.lowlevel.checkpoint()
            while True:
                self._check_open()
                change = self._next_change(watched)
                if change is not None:
                    return change
                await self._reads.wait(self._check_open)
        finally:
            self._receiving = False

    def _next_change(self, watched: int) -> int | None:
        has_sent = bool(watched & WATCH_SENT) and self._sent_seen != self.bytes_sent
        if self._change_noted or has_sent:
            self._change_noted = False
            self._sent_seen = self.bytes_sent
            return CHANGED
        unseen = min(self._unseen, len(self._inbound))
        seen = min(unseen, MOST_SEEN)
        self._unseen = unseen - seen
        if seen:
            return seen
        if self._error is not None:
            raise broken_by(self._error)
        if self._has_ended:
            return ENDED
        is_full = len(self._inbound) >= self._marks.receive_high
        was_seen, self._full_seen = self._full_seen, self._full_seen or is_full
        return FULL if is_full and not was_seen else None

    def _note_change(self) -> None:
        if not self._is_closed:
            self._change_noted = True
            self._wake_receiver()

    # --- ending ---

    def _refuse_sends(self) -> None:
        self._check_open()
        self._is_send_eof = True

    def _end_sending(self) -> None:
        self._refuse_sends()
        self._peer._wake_receiver()

    def _refuse_calls(self) -> None:
        self._is_closed = True
        self._unwatch()
        self._wake_receiver()
        self._wake_sender()

    async def _close_flush(self) -> None:
        while self._outbound and self._error is None and not self._peer._is_closed:
            await self._writes.woken.wait()

    def _close(self, reset: bool, /) -> None:
        was_closed = self._is_closed and not self._outbound
        self._refuse_calls()
        if (reset or self._is_send_incomplete) and not was_closed:
            self._peer._break(errno.ECONNRESET)
        self._inbound = b""
        self._outbound.clear()
        self._peer._wake_receiver()
        self._peer._wake_sender()

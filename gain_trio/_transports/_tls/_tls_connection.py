"""A connection with TLS, over another connection, behind the contract of :class:`Connection`.

How bytes move, and who waits for what, stands at the top of ``_tls_traffic.py``.

*Receiving.*  Decrypted bytes go to a queue here, and from there to the program, which reads the queue with ``peek`` and
``next``.  Only a task that receives decrypts, so other bytes stay encrypted in the queue of the connection below, up to its
mark, and ``inbound_buffered`` does not count them.

*Sending.*  Data is encrypted in pieces.  Encrypted bytes cannot be withdrawn, and the next piece needs them to be sent, so
encrypted bytes count as sent.  A send that is cancelled between two pieces is incomplete: see :meth:`Connection.send`.

*Changes.*  Code that is called back waits in ``_wait_change``, and sends without waiting, which is encrypting and handing
down.  Its task waits for a change of the connection below, and decrypts what has come, until there is something to report.
What the program does meanwhile (taking from a full queue, ``_note_change``) and an error of ssl's cancel the scope of the
wait, which loses nothing.  The connection below reports encrypted bytes.  Some of those that have arrived may stay there
when a chunk of them has been decrypted, so this connection counts them.  Bytes that the kernel has taken are a change also
when they were none of the program's.  :meth:`TlsConnection.payload_sent` counts the program's: for each piece it keeps where
the piece ends among all that was sent below, so a piece counts as sent when the kernel has got that far.

*In C.*  Over a connection on the ring ``receive`` and ``send`` are methods in C while nothing is unusual
(``_ffi/fastpath/tls_calls.c``), and so is the loop that waits for a change and calls back.  They read and write the slots of
these classes, and leave everything else to Python.

*Ending.*  TLS has an end of its own, close_notify, and without it the end of the stream is an error: any machine on the way
can cut a TCP stream off.  So a close that is cancelled, or that resets, does not send it.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, final

import trio

from gain_trio._kernel import fastpath
from gain_trio._transports._backends import as_size, current_thread
from gain_trio._transports._connections import (
    NOTHING,
    Connection,
    Marks,
    Message,
    ProxyHeader,
    ReadOnlySocket,
    head_of,
    joined,
    message_of,
    whole_of,
    without_head,
)
from gain_trio._transports._peer_progress import STALL

from ._tls_changes import TlsChanges
from ._tls_engine import INTERRUPTED, OUT_OF_MEMORY, Engine
from ._tls_traffic import ANSWERS, CHUNK, PIECE, Exclusive, TlsTraffic

if TYPE_CHECKING:
    from typing_extensions import Buffer


@final
class TlsConnection(TlsTraffic):
    """See :class:`Connection`.  ``engine`` has done its handshake over the connection below, which belongs to this one."""

    __slots__ = (
        "__weakref__",
        "_changes",
        "_flushing",
        "_payload_sent",
        "_pieces",
        "_sending",
        "_thread",
        "_transfer",
        "context",
    )

    context: Any
    _is_send_eof = False  # see send_eof()
    _successor = None  # there is no TLS over TLS
    _was_detached = False

    def __init__(self, engine: Engine, below: Connection, marks: Marks, *, https_compatible: bool = False) -> None:
        self._changes = TlsChanges()
        self._pieces: deque[tuple[int, int]] | None = (
            None  # where below each ends, and how much of the program's it has
        )
        self._payload_sent = 0
        self._sending = False  # a call of this direction is in progress
        self._flushing = False  # it has nothing to send
        self._thread = current_thread()  # the run's
        super().__init__(engine, below, marks, https_compatible=https_compatible)
        self.context = None
        self._transfer: trio.CancelScope | None = None

    def __repr__(self) -> str:
        return self._described("closed" if self._is_closed else f"{self.tls_version() or 'TLS'} fd={self.fileno()}")

    def _peer_text(self) -> str | None:
        """See :meth:`Connection._peer_text`."""
        return self._below._peer_text()

    # --- idleness: that of the connection below ---

    @property
    def idle_timeout(self) -> float:
        """See :attr:`Connection.idle_timeout`."""
        return self._below.idle_timeout

    @idle_timeout.setter
    def idle_timeout(self, timeout: float) -> None:
        self._below.idle_timeout = timeout

    @property
    def close_timeout(self) -> float:
        """See :attr:`Connection.close_timeout`."""
        return self._below.close_timeout

    @close_timeout.setter
    def close_timeout(self, timeout: float) -> None:
        self._below.close_timeout = timeout

    def _unacknowledged(self) -> int | None:
        """See :meth:`Connection._unacknowledged`."""
        return self._below._unacknowledged()

    @property
    def _was_idle(self) -> bool:
        """See :attr:`Connection._was_idle`."""
        return self._below._was_idle

    # --- what the connection below knows ---

    @property
    def draining(self) -> trio.Event:
        """See :attr:`Connection.draining`."""
        return self._below.draining

    @property
    def bytes_received(self) -> int:
        """See :attr:`Connection.bytes_received`."""
        return self._below.bytes_received

    @property
    def bytes_sent(self) -> int:
        """See :attr:`Connection.bytes_sent`."""
        return self._below.bytes_sent

    @property
    def proxy_header(self) -> ProxyHeader | None:
        """See :attr:`Connection.proxy_header`."""
        return self._below.proxy_header

    @property
    def direct_local_address(self) -> Any:
        """See :attr:`Connection.direct_local_address`."""
        return self._below.direct_local_address

    @property
    def direct_remote_address(self) -> Any:
        """See :attr:`Connection.direct_remote_address`."""
        return self._below.direct_remote_address

    @property
    def socket(self) -> ReadOnlySocket:
        """See :attr:`Connection.socket`."""
        return self._below.socket

    # --- receiving ---

    @trio.lowlevel.enable_ki_protection  # see _feed()
    async def receive(self, max_bytes: int | None = None) -> bytes:
        """See :meth:`Connection.receive`."""
        if max_bytes is not None and as_size(max_bytes) < 1:
            raise ValueError("max_bytes must be >= 1, or None")
        self._begin_receiving()
        try:
            if self._inbound:
                await self._pass()
            while not self._inbound:
                if not self._receives_at_once:
                    if await self._decrypt():
                        continue
                    break
                # What _decrypt() and _feed() do, without a coroutine for each of them: half of what a small message costs.
                self._time_slice.begin()
                self._feeding.is_taken = True
                try:
                    self._decrypt_received(await self._below.receive(CHUNK))
                except trio.TooSlowError:
                    self._check_open()  # see _interrupt_calls()
                    raise
                finally:
                    self._feeding.end()
                self._check_open()
            return self._taken(len(self._inbound) if max_bytes is None else max_bytes)
        finally:
            self._receiving = False

    async def _fill(self, count: int, /) -> int:
        """See :meth:`Framing._fill`."""
        if as_size(count) < 0:
            raise ValueError("the number of bytes to wait for must be >= 0")
        self._begin_receiving()
        try:
            if count:
                await self._pass()
            else:
                await trio.lowlevel.checkpoint()
            while len(self._inbound) < count and await self._decrypt():
                pass
            self._check_open()
            return len(self._inbound)
        finally:
            self._receiving = False

    # --- what has been received, without waiting ---

    def _find(self, separator: bytes, start: int, /) -> int:
        """See :meth:`Framing._find`."""
        self._check_open()
        return self._inbound.find(separator, start)

    def _counted(self, name: str, count: int | None) -> int:
        """``count`` bytes, or all there are for None, of the queue."""
        self._check_open()
        if count is None:
            return len(self._inbound)
        count = as_size(count)
        if count < 0:
            raise ValueError(f"{name}() takes a number of bytes >= 0, or None")
        return min(count, len(self._inbound))

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

    # --- sending ---

    async def send(self, data: Buffer | Sequence[Buffer], /) -> None:
        """See :meth:`Connection.send`."""
        self._begin_sending()
        try:
            if type(data) is bytes and 0 < len(data) <= self._piece:
                if not self._sends_at_once:
                    await self._wait_outbound(self._marks.send_high)
                elif self._time_slice.is_over():  # asked once: the next slice has begun
                    await self._wait_outbound(self._marks.send_high, is_slice_over=True)
                else:
                    try:
                        await self._below._wait_writable()  # only a cancellation point: it has nothing to wait for
                    except trio.BrokenResourceError as error:
                        self._send_failed(error)
                        self._check_sendable()
                self._put(data)
                if self._is_behind:
                    await self._wait_outbound(self._marks.send_high, own_half=True)
            else:
                await self._send_pieces(data if isinstance(data, (list, tuple)) else (data,))
        finally:
            self._sending = False

    async def _finish_send(self) -> None:
        """The rest of a send that has handed its data down, and may have waited: what it has to wait for, or to raise."""
        try:
            self._check_open()
            self._check_sendable(own_half=True)
            await self._wait_behind()
        finally:
            self._sending = False

    async def _send_pieces(self, buffers: Sequence[Buffer]) -> None:
        with message_of(buffers) as message:
            if not message.parts:
                await trio.lowlevel.checkpoint()
            await self._wait_outbound(self._marks.send_high)
            while message.parts:
                self._put_next(message)
                try:
                    await self._wait_behind()
                except trio.TooSlowError:
                    self._put_rest(message)
                    raise

    def _put_next(self, message: Message) -> None:
        """In a call of its own: the piece can be a view of the program's buffer, and an error of the wait would keep it."""
        piece = message.take(self._piece)
        self._is_send_incomplete = bool(message.parts)  # should anything interrupt what follows
        self._put(piece)

    def _put_rest(self, message: Message) -> None:
        """The deadline has passed.  The connection stays good: what was begun is queued to its end."""
        while message.parts:
            self._put(message.take(self._piece))
        self._is_send_incomplete = False

    async def _wait_behind(self) -> None:
        """What the call in progress has sent may have been too much, or may have failed."""
        if self._is_behind:
            await self._wait_outbound(self._marks.send_high, own_half=True)

    async def flush(self) -> None:
        """See :meth:`Connection.flush`."""
        await self._wait_flushing(1)
        self._changes.sent = True

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until less than the high mark is queued for sending.  Raises what ``send`` raises."""
        await trio.lowlevel.checkpoint()
        await self._wait_flushing(self._marks.send_high)

    async def _wait_flushing(self, mark: int) -> None:
        self._begin_sending()
        self._flushing = True
        try:
            await self._wait_outbound(mark)
        finally:
            self._flushing = False
            self._sending = False

    def _hold_sends(self, held: bool, /) -> None:
        self._sending = held

    def _mark_send_incomplete(self) -> None:
        self._is_send_incomplete = True

    def _begin_sending(self) -> None:
        if self._is_closed:
            self._check_open()
        if self._sending:
            raise trio.BusyResourceError("another task is already sending on this connection")
        self._sending = True

    # --- changes ---

    def _arrived(self, data: bytes) -> None:
        self._has_received_nothing = False
        self._inbound = joined(self._inbound, data) if self._inbound else data
        self._changes.unseen += len(data)

    def _wait_change(self, watched: int, /) -> Coroutine[Any, Any, int]:
        """See :meth:`Connection._wait_change`."""
        return self._changes.wait_change(self, watched)

    def _note_change(self) -> None:
        """See :meth:`Connection._note_change`."""
        if not self._is_closed:
            self._changes.note()

    def _wake_for_change(self) -> None:
        """See :meth:`TlsTraffic._wake_for_change`."""
        self._changes.wake()

    def _let_go_on(self) -> None:
        """Some of the queue was taken."""
        self._changes.note_room(self)
        if self._room_inbound is not None and len(self._inbound) < self._marks.receive_high:
            self._wake_sender()

    def _handed_down(self, count: int) -> None:
        if self._pieces is not None:
            self.payload_sent()  # so that no more pieces are kept than are outbound
            self._pieces.append((self._below.bytes_sent + self._below.outbound_buffered, count))
        self._changes.note_outbound()

    def payload_sent(self) -> int:
        """How many of the program's bytes the kernel has taken, of those that were sent since the first call of this."""
        if self._pieces is None:
            self._pieces = deque()
        sent = self._below.bytes_sent
        while self._pieces and self._pieces[0][0] <= sent:
            self._payload_sent += self._pieces.popleft()[1]
        return self._payload_sent

    # --- taking ---

    def _taken(self, count: int) -> bytes:
        inbound = self._inbound
        if type(inbound) is bytes and count >= len(inbound):  # nearly always
            head, self._inbound = inbound, NOTHING
        else:
            head, self._inbound = head_of(inbound, count), without_head(inbound, count)
        self._let_go_on()
        return head

    def _take_exactly(self, count: int, /) -> bytes | None:
        """See :meth:`Connection._take_exactly`."""
        count = as_size(count)
        self._check_open()
        queued = len(self._inbound)
        return None if count > queued else self._taken(count if count >= 0 else queued)

    # --- sending without waiting ---

    def _send_nowait(self, data: Buffer, /) -> int:
        """See :meth:`Connection._send_nowait`."""
        self._check_open()
        self._check_thread()
        if self._sending and not self._flushing:
            raise trio.BusyResourceError("another task is already sending on this connection")
        self._check_sendable()
        whole = whole_of(data)
        if len(whole) <= PIECE:
            if whole:
                self._put(whole)
        else:
            view = memoryview(whole)
            for start in range(0, len(whole), PIECE):
                self._put(view[start : start + PIECE])
        return self._outbound_after_send()

    def _outbound_after_send(self) -> int:
        """How much is outbound, if sending has not failed."""
        if self._error is not None or self._send_error is not None:
            self._check_sendable()
        return self.outbound_buffered

    def _push(self) -> int:
        """See :meth:`Connection._push`."""
        self._check_open()
        self._below._push()
        return self.outbound_buffered

    # --- ending ---

    async def send_eof(self) -> None:
        """TLS allows it (RFC 8446, 6.1), Python's ssl does not.

        Raises:
          NotImplementedError: always, and without any effect.
        """
        await trio.lowlevel.checkpoint()
        raise NotImplementedError(
            "send_eof(): Python's ssl cannot end one direction of a TLS connection; aclose() ends both, and a protocol "
            "that has to go on receiving marks the end of its messages itself"
        )

    def _end_sending(self) -> None:
        """See :meth:`Connection._end_sending`."""
        raise NotImplementedError("TLS cannot end one direction only")

    @trio.lowlevel.enable_ki_protection
    async def _close_flushing(self) -> bool:
        """See :meth:`Connection._close_flushing`; sends close_notify before FIN."""
        if self._is_closed:
            await trio.lowlevel.checkpoint()
            return True
        self._end_transfer()
        flushed = False
        try:
            self._is_closed = True
            self._changes.wake()
            self._wake_sender()
            if self._unencrypted:
                self._interrupt_calls()
                await self._encrypt_kept_in_time()
            await trio.lowlevel.checkpoint()
            if not self._is_send_incomplete and not self._unencrypted:
                with contextlib.suppress(trio.ClosedResourceError):  # abort() was called
                    self._close_notify()
                    self._below.discard()  # of TLS's own, mostly; left unread it would turn FIN into a reset
                    flushed = await self._below._close_flushing()
        finally:
            self._close_below()
        return flushed

    async def _encrypt_kept_in_time(self) -> None:
        """A renegotiation is to be over, so that what was sent can be; but not for ever."""
        with (
            contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError),
            trio.move_on_after(STALL),
        ):
            while self._unencrypted:
                self._inbound = NOTHING  # no call reads it any more
                await self._feed_to_send()

    def _close_notify(self) -> None:
        """Queue it, behind all that was sent."""
        if self._error is None and self._expects_close_notify:
            self._engine.close()
            if self._engine.has_outgoing:
                self._hand_down()

    def _check_thread(self) -> None:
        """Refuse other threads, before anything has been changed; what is closed below is for that connection to refuse."""
        if current_thread() != self._thread and self._below.fileno() >= 0:
            raise RuntimeError("this connection belongs to a run in another thread; use trio.from_thread.run()")

    def _close_below(self, *, reset: bool = False) -> None:
        self._check_thread()
        self._end_transfer()
        self._is_closed = True
        self._inbound = NOTHING
        self._changes.wake()
        if self._drop_unencrypted() or reset or self._is_send_incomplete:
            self._below.abort()
        else:
            self._below._close_now()

    @trio.lowlevel.enable_ki_protection
    def abort(self) -> None:
        """See :meth:`Connection.abort`."""
        self._close_below(reset=True)

    @trio.lowlevel.enable_ki_protection
    def _close_soon(self) -> bool:
        """See :meth:`Connection._close_soon`.  There is a close_notify left to send unless it is closed or broken."""
        if not self._is_closed and self._error is None and self._send_error is None:
            return False
        self._close_now()
        return True

    @trio.lowlevel.enable_ki_protection
    def _close_now(self) -> None:
        """See :meth:`Connection._close_now`."""
        self._close_below()

    # --- TLS ---

    def selected_alpn_protocol(self) -> str | None:
        """See :meth:`Connection.selected_alpn_protocol`."""
        return self._engine.ssl_object.selected_alpn_protocol()

    def getpeercert(self, binary_form: bool = False) -> dict[str, Any] | bytes | None:
        """See :meth:`Connection.getpeercert`."""
        found: dict[str, Any] | bytes | None = self._engine.ssl_object.getpeercert(binary_form)
        return found

    def cipher(self) -> tuple[str, str, int] | None:
        """See :meth:`Connection.cipher`."""
        return self._engine.ssl_object.cipher()

    def tls_version(self) -> str | None:
        """See :meth:`Connection.tls_version`."""
        return self._engine.ssl_object.version()

    # --- the socket ---

    @property
    def local_address(self) -> Any:
        """See :attr:`Connection.local_address`."""
        return self._below.local_address

    @property
    def remote_address(self) -> Any:
        """See :attr:`Connection.remote_address`."""
        return self._below.remote_address

    def fileno(self) -> int:
        """See :meth:`Connection.fileno`."""
        return -1 if self._is_closed else self._below.fileno()

    def setsockopt(self, level: int, option: int, value: int | Buffer) -> None:
        """See :meth:`Connection.setsockopt`."""
        self._check_open()
        self._below.setsockopt(level, option, value)

    def getsockopt(self, level: int, option: int, buffersize: int = 0) -> int | bytes:
        """See :meth:`Connection.getsockopt`."""
        self._check_open()
        return self._below.getsockopt(level, option, buffersize)


if fastpath is not None:
    fastpath.hasten_tls(
        TlsConnection,
        Engine,
        Exclusive,
        TlsChanges,
        OUT_OF_MEMORY,
        INTERRUPTED,
        trio.BrokenResourceError,
        CHUNK,
        ANSWERS,
    )

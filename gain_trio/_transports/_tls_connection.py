"""A connection with TLS: :class:`trio.SSLStream` over another connection, behind the contract of :class:`Connection`.

What there is to know of waiting and cancelling stands at the top of ``_tls_link.py``.  In short: every wait is a wait of the
connection below and loses nothing when it is cancelled; everything between two waits is done in a shielded scope.

*Receiving.*  What a record brings goes to a queue here, and from there to the program, which finds the queue with ``peek``
and ``next``.  Decrypting takes a task that receives, so what nobody has asked for stays encrypted in the queue of the
connection below, up to its mark, and ``inbound_buffered`` does not count it.

*Sending.*  Data is encrypted in pieces.  Encrypted bytes cannot be taken back, and the next piece needs them to be sent, so
what counts as sent is what was encrypted.  A send that is cancelled between two pieces is torn: see :meth:`Connection.send`.

*Ending.*  TLS has an end of its own, close_notify, and without it the end of the stream is an error: anybody on the way can
cut a TCP stream off.  So a close that is cancelled, or that resets, does not send it.
"""

from __future__ import annotations

import contextlib
import errno
import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, final

import trio

from gain_trio._io_manager._errors import broken_by

from ._connection import Marks
from ._connection_base import CLOSE_TIMEOUT
from ._file_sending import FileSending
from ._proxy_protocol import ProxyHeader
from ._queues import NOTHING, Message, head_of, message_of, receive_into, without_head
from ._socket_base import as_size, closed_error, kept
from ._tls_events import TlsEvents
from ._tls_link import CONTROL_ROOM, PIECE, Link, MustWait

if TYPE_CHECKING:
    from typing_extensions import Buffer

_RECORD = 16384
"""The most that one record brings."""
_SMALLEST_PIECE = 4096


def is_cut_off(error: BaseException | None) -> bool:
    """Whether an error of ssl's says that the stream ended without close_notify.  Python 3.10 has a plain SSLError there."""
    return isinstance(error, ssl.SSLEOFError) or "UNEXPECTED_EOF_WHILE_READING" in (
        getattr(error, "strerror", "") or ""
    )


def explained(error: OSError) -> str:
    """What an error of ssl's means."""
    if is_cut_off(error):
        return "the peer ended the stream without TLS's close_notify, so a part may be missing"
    return error.strerror or str(error)


def broken_tls(error: OSError) -> trio.BrokenResourceError:
    """What a call raises after this error of ssl's."""
    broken = trio.BrokenResourceError(f"the connection is broken: {explained(error)}")
    broken.__cause__ = error
    return broken


@final
class TlsConnection(TlsEvents, FileSending):
    """See :class:`Connection`.  ``stream`` has done its handshake over ``link``.  Owns the connection below."""

    __slots__ = (
        "__weakref__",
        "_error",
        "_piece",
        "_stream",
        "_transfer",
        "context",
    )

    context: Any
    _is_closed: bool
    _is_send_eof = False  # see send_eof()

    def __init__(self, stream: trio.SSLStream[Link], link: Link, marks: Marks) -> None:
        super().__init__(link, marks)
        self.context = None
        self._stream = stream
        self._piece = max(min(PIECE, marks.send_high), _SMALLEST_PIECE)
        self._error: OSError | None = None  # of ssl's: nothing goes in either direction after it
        self._transfer: trio.CancelScope | None = None

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else f"{self._stream.version()} fd={self.fileno()}"
        return f"<gain_trio.Connection {state} at {id(self):#x}>"

    # --- time: that of the connection below ---

    @property
    def read_deadline(self) -> float:
        """See :attr:`Connection.read_deadline`."""
        return self._link.below.read_deadline

    @read_deadline.setter
    def read_deadline(self, deadline: float) -> None:
        self._link.below.read_deadline = deadline

    @property
    def write_deadline(self) -> float:
        """See :attr:`Connection.write_deadline`."""
        return self._link.below.write_deadline

    @write_deadline.setter
    def write_deadline(self, deadline: float) -> None:
        self._link.below.write_deadline = deadline

    def set_deadline(self, deadline: float) -> None:
        """See :meth:`Connection.set_deadline`."""
        self._link.below.set_deadline(deadline)

    @property
    def idle_timeout(self) -> float:
        """See :attr:`Connection.idle_timeout`."""
        return self._link.below.idle_timeout

    @idle_timeout.setter
    def idle_timeout(self, timeout: float) -> None:
        self._link.below.idle_timeout = timeout

    @property
    def _was_idle(self) -> bool:
        """See :attr:`Connection._was_idle`."""
        return self._link.below._was_idle

    # --- what the connection below knows ---

    @property
    def draining(self) -> trio.Event:
        """See :attr:`Connection.draining`."""
        return self._link.below.draining

    @property
    def bytes_received(self) -> int:
        """See :attr:`Connection.bytes_received`."""
        return self._link.below.bytes_received

    @property
    def bytes_sent(self) -> int:
        """See :attr:`Connection.bytes_sent`."""
        return self._link.below.bytes_sent

    @property
    def proxy_header(self) -> ProxyHeader | None:
        """See :attr:`Connection.proxy_header`."""
        return self._link.below.proxy_header

    @property
    def direct_local_address(self) -> Any:
        """See :attr:`Connection.direct_local_address`."""
        return self._link.below.direct_local_address

    @property
    def direct_remote_address(self) -> Any:
        """See :attr:`Connection.direct_remote_address`."""
        return self._link.below.direct_remote_address

    # --- receiving ---

    async def receive(self, max_bytes: int | None = None) -> bytes:
        """See :meth:`Connection.receive`."""
        if max_bytes is not None and as_size(max_bytes) < 1:
            raise ValueError("max_bytes must be >= 1, or None")
        self._begin_receiving()
        try:
            if not self._inbound:
                await self._decrypt()
            else:
                await trio.lowlevel.checkpoint_if_cancelled()
            return self._taken(len(self._inbound) if max_bytes is None else max_bytes)
        finally:
            self._receiving = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """:meth:`Connection.receive` as a full checkpoint."""
        await trio.lowlevel.checkpoint()
        return await self.receive(max_bytes)

    async def receive_into(self, buffer: Buffer, /) -> int:
        """See :meth:`Connection.receive_into`."""
        return await receive_into(self.receive, buffer)

    async def _fill(self, count: int, /) -> int:
        """See :meth:`Framing._fill`."""
        if as_size(count) < 0:
            raise ValueError("the number of bytes to wait for must be >= 0")
        self._begin_receiving()
        try:
            if count:
                await trio.lowlevel.checkpoint_if_cancelled()
            else:
                await trio.lowlevel.checkpoint()
            while len(self._inbound) < count and await self._decrypt():
                pass
            self._check_open()
            return len(self._inbound)
        finally:
            self._receiving = False

    def _begin_receiving(self) -> None:
        self._check_open()
        if self._receiving:
            raise trio.BusyResourceError("another task is already receiving on this connection")
        self._receiving = True

    async def _decrypt(self) -> bool:
        """Queue what the next record brings, waiting for it; False at the end of the stream."""
        if self._ended:
            await trio.lowlevel.checkpoint()
        while not self._ended:
            if self._error is not None:
                await trio.lowlevel.checkpoint()
                raise broken_tls(self._error)
            await self._wait_for_record()
            self._check_open()
            try:
                with trio.CancelScope(shield=True):  # it does not wait
                    self._link.has_unread = False
                    data = bytes(await self._stream.receive_some(_RECORD))
                    self._check_open()
                    self._arrived(data)
                    self._ended = not data
            except MustWait:
                continue
            except trio.BrokenResourceError as error:
                raise self._given_up(error)  # noqa: B904 - it has its cause
            if not self._ended:
                return True
        self._check_open()
        return False

    async def _wait_for_record(self) -> None:
        """Wait until there is something to decrypt, and room for what TLS may have to answer."""
        room = self._marks.send_high + CONTROL_ROOM
        while self._link.outbound_buffered >= room and self._link.send_error is None:
            await self._link.drain()
            self._check_open()
        await self._link.wait_for_record()

    def _given_up(self, error: trio.BrokenResourceError) -> trio.BrokenResourceError:
        """SSLStream has: what to raise, now and ever after."""
        self._check_open()
        if self._error is None:
            cause = error.__cause__
            if not isinstance(cause, OSError):  # after an end without close_notify that https_compatible allows
                cause = ssl.SSLEOFError(ssl.SSLErrorNumber.SSL_ERROR_EOF, "EOF occurred in violation of protocol")
            self._error = cause.with_traceback(None)
        return broken_tls(self._error)

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

    def _taken(self, count: int) -> bytes:
        head = head_of(self._inbound, count)
        self._inbound = without_head(self._inbound, count)
        self._let_go_on()
        return head

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
        buffers = data if isinstance(data, (list, tuple)) else (data,)
        with message_of(buffers) as message:
            self._begin_sending()
            try:
                await self._send(message)
            finally:
                self._sending = False

    async def _send(self, message: Message) -> None:
        if not message.parts:
            await trio.lowlevel.checkpoint()
        await self._wait_below(self._marks.send_high)
        while message.parts:
            piece = message.take(self._piece)
            self._is_send_torn = bool(message.parts)  # should anything interrupt this
            await self._encrypt(piece)
            await self._wait_below(self._marks.send_high, own_half=True)

    async def _encrypt(self, piece: bytes) -> None:
        """Encrypt and queue it."""
        while True:
            try:
                with trio.CancelScope(shield=True):  # it does not wait
                    await self._stream.send_all(piece)
            except MustWait:  # in a renegotiation; with the same piece it goes on where it was
                torn, self._is_send_torn = self._is_send_torn, True
                await self._link.wait_for_record(to_send=True)
                self._check_open()
                self._link.has_unread = True
                self._is_send_torn = torn
            except trio.BrokenResourceError as error:
                raise self._given_up(error)  # noqa: B904 - it has its cause
            else:
                return

    async def send_all(self, data: Buffer | Sequence[Buffer]) -> None:
        """:meth:`Connection.send` as a full checkpoint."""
        await trio.lowlevel.checkpoint()
        await self.send(data)

    async def flush(self) -> None:
        """See :meth:`Connection.flush`."""
        await self._written_all()
        self._begin_sending()
        try:
            await self._wait_below(1)
        finally:
            self._sending = False

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until less than the high mark is queued for sending.  Raises what ``send`` raises."""
        await trio.lowlevel.checkpoint()
        self._begin_sending()
        try:
            await self._wait_below(self._marks.send_high)
        finally:
            self._sending = False

    def _hold_sends(self, held: bool, /) -> None:
        self._sending = held

    def _tear_sends(self) -> None:
        self._is_send_torn = True

    def _begin_sending(self) -> None:
        self._check_open()
        if self._sending:
            raise trio.BusyResourceError("another task is already sending on this connection")
        self._sending = True

    async def _wait_below(self, mark: int, *, own_half: bool = False) -> None:
        """Wait until less than ``mark`` is outbound.  ``own_half``: the caller has sent a part itself, and goes on."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            self._check_open()
            self._check_sendable(own_half=own_half)
            if self._link.outbound_buffered < mark:
                return
            await self._link.drain()

    def _check_sendable(self, *, own_half: bool = False) -> None:
        if self._error is not None:
            raise broken_tls(self._error)
        if self._link.send_error is not None:
            raise broken_by(kept(self._link.send_error))
        if self._is_send_torn and not own_half:
            raise broken_by(OSError(errno.ECANCELED, "a send was cancelled when a part of its data had been sent"))

    @property
    def outbound_buffered(self) -> int:
        """See :attr:`Connection.outbound_buffered`.  Encrypted bytes, which are a few more."""
        return self._link.outbound_buffered + self._unencrypted_size

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

    async def aclose(self) -> None:
        """See :meth:`Connection.aclose`; sends close_notify before FIN."""
        if self._is_closed:
            await trio.lowlevel.checkpoint()
            return
        self._end_transfer()
        await self._written_all_in_time()
        self._is_closed = True
        self._wake_for_news()
        below = self._link.below
        self._link.stop_draining()
        try:
            # ClosedResourceError: abort() was called.
            with contextlib.suppress(trio.ClosedResourceError), trio.move_on_after(CLOSE_TIMEOUT):
                await trio.lowlevel.checkpoint()
                if not self._is_send_torn:
                    await self._close_notify()
                    below.discard()  # of TLS's own, mostly; left unread it would turn FIN into a reset
                    await below.aclose()
        finally:
            self._close_below()

    async def _close_notify(self) -> None:
        """Queue it, behind all that was sent.  SSLStream does nothing if TLS is broken, or with https_compatible."""
        await self._link.wait_until_idle()
        with trio.CancelScope(shield=True):  # it does not wait
            await self._stream.aclose()

    def _close_below(self, *, reset: bool = False) -> None:
        self._end_transfer()
        self._is_closed = True
        self._inbound = NOTHING
        self._wake_for_news()
        self._link.stop_draining()
        if self._drop_unencrypted() or reset or self._is_send_torn:
            self._link.below.abort()
        else:
            self._link.below._close_now()

    def abort(self) -> None:
        """See :meth:`Connection.abort`."""
        self._close_below(reset=True)

    def _close_soon(self) -> bool:
        """See :meth:`Connection._close_soon`.  There is a close_notify left to send unless it is closed or broken."""
        if not self._is_closed and self._error is None and self._link.send_error is None:
            return False
        self._close_now()
        return True

    def _close_now(self) -> None:
        """See :meth:`Connection._close_now`."""
        self._close_below()

    def _check_open(self) -> None:
        if self._is_closed:
            raise closed_error()

    # --- TLS ---

    def selected_alpn_protocol(self) -> str | None:
        """See :meth:`Connection.selected_alpn_protocol`."""
        found: str | None = self._stream.selected_alpn_protocol()
        return found

    def getpeercert(self, binary_form: bool = False) -> dict[str, Any] | bytes | None:
        """See :meth:`Connection.getpeercert`."""
        found: dict[str, Any] | bytes | None = self._stream.getpeercert(binary_form)
        return found

    def cipher(self) -> tuple[str, str, int] | None:
        """See :meth:`Connection.cipher`."""
        found: tuple[str, str, int] | None = self._stream.cipher()
        return found

    def tls_version(self) -> str | None:
        """See :meth:`Connection.tls_version`."""
        found: str | None = self._stream.version()
        return found

    # --- the socket ---

    @property
    def local_address(self) -> Any:
        """See :attr:`Connection.local_address`."""
        return self._link.below.local_address

    @property
    def remote_address(self) -> Any:
        """See :attr:`Connection.remote_address`."""
        return self._link.below.remote_address

    def fileno(self) -> int:
        """See :meth:`Connection.fileno`."""
        return -1 if self._is_closed else self._link.below.fileno()

    def setsockopt(self, level: int, option: int, value: int | Buffer) -> None:
        """See :meth:`Connection.setsockopt`."""
        self._check_open()
        self._link.below.setsockopt(level, option, value)

    def getsockopt(self, level: int, option: int, buffersize: int = 0) -> int | bytes:
        """See :meth:`Connection.getsockopt`."""
        self._check_open()
        return self._link.below.getsockopt(level, option, buffersize)

"""The contract of a connection, whatever it runs on."""

from __future__ import annotations

import abc
import math
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, final

import attrs
import trio

from gain_trio._ring import whole_number

from ._files import File
from ._messages import MessageLoop
from ._seconds import checked_seconds
from ._socket_calls import SocketCalls

if TYPE_CHECKING:
    from typing_extensions import Buffer, Self

KIBIBYTE = 1024

END, WRITTEN, STALLED = 0, -1, -2
"""What :meth:`Connection._wait_inbound` tells beside numbers of bytes: nothing more will come; the kernel has taken bytes;
nothing more comes until some of the queue is taken, which is told once."""


@final
@attrs.frozen(kw_only=True)
class Marks:
    """How much a connection holds before it pushes back, in bytes.

    Raises:
      ValueError: not ``0 <= receive_low < receive_high`` and ``send_high > 0``.
      TypeError: a number is none.
    """

    receive_high: int = attrs.field(default=256 * KIBIBYTE, validator=whole_number)
    """With this much received and not taken, receiving stops; the peer is slowed down by TCP.  On the ring, what arrives
    before the stop takes effect is still queued: at most what the run's receive buffers hold (2 MiB by default)."""
    receive_low: int = attrs.field(default=64 * KIBIBYTE, validator=whole_number)
    """It goes on when no more than this is left."""
    send_high: int = attrs.field(default=512 * KIBIBYTE, validator=whole_number)
    """With this much sent and not taken by the kernel, ``send`` waits.  Twice the usual piece of a large transfer, so
    that there is one to go on with when the kernel has taken another."""

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.receive_low < self.receive_high or self.send_high <= 0:
            raise ValueError(f"need 0 <= receive_low < receive_high and send_high > 0: {self}")


def checked_deadline(deadline: float) -> float:
    """A time on Trio's clock, as a float."""
    deadline = float(deadline)
    if math.isnan(deadline):
        raise ValueError("a deadline is a time on Trio's clock, and not nan")
    return deadline


def checked_idle_timeout(timeout: float) -> float:
    """``timeout``, if a connection can be idle for so many seconds."""
    return checked_seconds("idle_timeout", timeout, positive=True)


def checked_close_timeout(timeout: float) -> float:
    """``timeout``, if a close can wait for so many seconds."""
    return checked_seconds("close_timeout", timeout)


class Connection(MessageLoop, SocketCalls, trio.abc.HalfCloseableStream):
    """A connected stream socket.

    A :class:`trio.abc.HalfCloseableStream`, so ``trio.SSLStream(connection)`` and everything else written for Trio's
    streams works on it, with short names beside for the author of a server.

    One task receives and one task sends at a time; a second one gets :exc:`trio.BusyResourceError`.  A connection that was
    closed here raises :exc:`trio.ClosedResourceError`, one that broke out there :exc:`trio.BrokenResourceError`, whose
    ``__cause__`` is the :exc:`OSError`.

    :meth:`receive`, :meth:`receive_into`, :meth:`receive_exactly`, :meth:`receive_until`, :meth:`receive_line`, :meth:`send`
    and :meth:`flush` are always cancellation points.  They are schedule points when they have to wait; when they can be
    answered from memory they return at once, until a task has gone on like that for about a millisecond: then the next
    call lets others have a turn, before it moves anything.  An answer that moves no bytes (the end of the stream once
    more, a send of nothing) is a schedule point too.  ``async for`` receives by :meth:`receive`, and is like it.
    :meth:`receive_some`, :meth:`send_all` and the other methods of Trio's stream are full checkpoints.
    """

    __slots__ = ()

    context: Any
    """The program's own: anything, None at first."""

    # --- time ---

    @property
    @abc.abstractmethod
    def read_deadline(self) -> float:
        """When a call that waits to receive is too slow: seconds on Trio's clock, ``math.inf`` at first.

        The call then raises :exc:`trio.TooSlowError`, and nothing is lost: the connection is as good as before, and what has
        arrived stays queued.  A call that has an answer never waits, and so is never too slow.

        Moving a deadline takes constant time and makes no cancel scope; it also holds for the call in progress.  Setting it
        to what is no number raises a :exc:`TypeError` or :exc:`ValueError`.
        """

    @read_deadline.setter
    @abc.abstractmethod
    def read_deadline(self, deadline: float) -> None: ...

    @property
    @abc.abstractmethod
    def write_deadline(self) -> float:
        """The same for :meth:`send`, :meth:`flush` and the like.

        A :meth:`send` that is too slow has queued all of its data, which will be sent, or none of it, if it was waiting for
        earlier data to leave.
        """

    @write_deadline.setter
    @abc.abstractmethod
    def write_deadline(self, deadline: float) -> None: ...

    @property
    @abc.abstractmethod
    def idle_timeout(self) -> float:
        """How long the connection may move no byte in either direction: seconds, ``math.inf`` at first.

        Bytes that the kernel has taken count, and on Linux so does what the peer takes of those: a peer that takes
        something at least every half of this time is not idle, however slowly it does.

        After that it is over: the peer is told, a line is logged, and calls raise :exc:`trio.BrokenResourceError` with
        ``ETIMEDOUT`` as its cause.  It remains to be closed; if something was unsent, with a reset.  Setting it to what is
        not greater than 0 raises a :exc:`ValueError`, what is no number a :exc:`TypeError`.
        """

    @idle_timeout.setter
    @abc.abstractmethod
    def idle_timeout(self, timeout: float) -> None: ...

    @property
    @abc.abstractmethod
    def close_timeout(self) -> float:
        """How long a close waits for a peer that goes on taking what was sent: seconds, 60 at first.

        A close waits no more than 5 seconds for a peer that takes nothing, and then resets the connection, as it does when
        this time is over.  With ``math.inf`` a peer that takes a byte every few seconds holds it for as long as it likes.
        Setting it to what is less than 0 raises a :exc:`ValueError`, what is no number a :exc:`TypeError`.
        """

    @close_timeout.setter
    @abc.abstractmethod
    def close_timeout(self, timeout: float) -> None: ...

    @abc.abstractmethod
    def _unacknowledged(self) -> int | None:
        """Bytes that the kernel has taken and the peer has not; None when that is not known, also when it has no socket.

        Linux alone says (SIOCOUTQ, tcp(7) and unix(7)); of a Unix socket they are counted with what the kernel keeps beside.
        """

    @property
    @abc.abstractmethod
    def _was_idle(self) -> bool:
        """Whether the connection is over because of its :attr:`idle_timeout`."""

    @abc.abstractmethod
    def set_deadline(self, deadline: float) -> None:
        """Set :attr:`read_deadline` and :attr:`write_deadline`.

        Raises:
          ValueError: it is not a number.
        """

    # --- receiving ---

    @abc.abstractmethod
    def receive(self, max_bytes: int | None = None) -> Coroutine[Any, Any, bytes]:
        """Wait for bytes and return them, at most ``max_bytes`` (None: as many as lie in one piece).

        What has arrived in small pieces lies in one; large ones (of 4 KiB and more) are returned one by one, uncopied.

        Returns:
          The next bytes; ``b""`` at the end of the stream, then and ever after.

        Raises:
          ValueError: ``max_bytes`` is less than 1.
          trio.BusyResourceError: another task is receiving.
          trio.ClosedResourceError: the connection is, or meanwhile was, closed here.
          trio.BrokenResourceError: it broke; what arrived before has been returned by earlier calls.

        Cancelling it loses nothing: bytes are taken from the connection's queue only when the task runs.
        """

    @abc.abstractmethod
    def receive_into(self, buffer: Buffer, /) -> Coroutine[Any, Any, int]:
        """Like :meth:`receive`, into a writable buffer of at least one byte, which must keep its size meanwhile.

        Returns:
          How many bytes were stored; 0 at the end of the stream.
        """

    @abc.abstractmethod
    def peek(self, count: int | None = None, /) -> bytes:
        """Up to ``count`` bytes (None: all) of what has been received, without waiting and without taking them."""

    @abc.abstractmethod
    def next(self, count: int | None = None, /) -> bytes:
        """Up to ``count`` bytes (None: all) of what has been received, taken from the queue without waiting."""

    @abc.abstractmethod
    def discard(self, count: int | None = None, /) -> int:
        """Drop up to ``count`` bytes (None: all) of what has been received; returns how many."""

    @property
    @abc.abstractmethod
    def inbound_buffered(self) -> int:
        """Bytes received and not yet taken: what :meth:`next` returns without waiting.

        On a TLS connection that is what has been decrypted, and only a task that receives decrypts: a chunk of about 64 KiB
        at most, or what :meth:`receive_exactly` and its kind ask for.
        """

    # --- sending ---

    @abc.abstractmethod
    def send(self, data: Buffer | Sequence[Buffer], /) -> Coroutine[Any, Any, None]:
        """Send all of ``data``, after what was sent before.

        A list or tuple of buffers is sent as one message, in their order, without joining large ones first.

        Returns when the connection holds less than its high mark, so a peer that reads slowly stops the sender.  ``data``
        may be changed afterwards.

        Raises:
          trio.BusyResourceError: another task is sending or flushing.
          trio.ClosedResourceError: the connection is closed here, or :meth:`send_eof` was called.
          trio.BrokenResourceError: this or an earlier send failed, or the kernel has said that the peer has reset the
            connection.  What arrived before can still be received.

        Cancelled before it runs, or while the connection is over its high mark from before, nothing is sent.  Cancelled
        while it waits for its own bytes to drain, all of a :class:`bytes` object will be sent, and of a list of them.  Of a
        large buffer of another kind, or of a list with such a one, a part may have been: then the connection is of no more
        use for sending (:exc:`trio.BrokenResourceError`), and closing it resets it, so that the peer does not take the part
        for the whole.  On a TLS connection that is so of everything of more than 64 KiB (or more than ``send_high``, if that
        is less), bytes objects and lists of them, too.
        """

    @abc.abstractmethod
    async def send_file(self, file: File, offset: int = 0, count: int | None = None, /) -> int:
        """Send ``count`` bytes of a file from ``offset`` on (None: up to where it ends now), after what was sent before.

        Returns when the kernel has taken all of them.  But for TLS the kernel sends the file itself (sendfile(2)), and
        no byte of it passes through the program: what is written to the file meanwhile is sent as it is found.  All of it
        is done in a worker thread (:func:`trio.to_thread.run_sync`), so a slow disk keeps nobody else waiting, and in
        turns of some 20 milliseconds.

        Args:
          file: a path, which is opened and closed; or a descriptor, or anything with a ``fileno()``, which must stay open
            meanwhile.  Where that one stands does not matter, and it is not moved.
          offset, count: of the bytes to send.

        Returns:
          How many bytes were sent: ``count``.

        Raises:
          ValueError: it is no regular file (a pipe, a device, a directory), or has fewer bytes than that; nothing is sent.
          EOFError: it was shortened meanwhile; the message says how much was sent.
          OSError: it cannot be opened or read.
          trio.BusyResourceError, trio.ClosedResourceError, trio.BrokenResourceError, trio.TooSlowError: see :meth:`send`.

        What ends it early, be it an error, :attr:`write_deadline` or a cancellation (which takes effect after the current
        turn), leaves a part of the file sent: then the connection is of no more use for sending, and closing it resets
        it, as with :meth:`send`.  Unix sockets have no reset: there the peer sees the end.
        """

    @abc.abstractmethod
    def flush(self) -> Coroutine[Any, Any, None]:
        """Wait until the kernel has taken everything that was sent.  Raises what :meth:`send` raises."""

    @property
    @abc.abstractmethod
    def outbound_buffered(self) -> int:
        """Bytes sent and not yet taken by the kernel."""

    # --- counters ---

    @property
    @abc.abstractmethod
    def bytes_received(self) -> int:
        """Bytes that have come from the kernel so far, taken or not; also when the connection is closed.

        On the ring they come when they arrive, over a socket when somebody receives.  Of a TLS connection they are
        those on the wire.
        """

    @property
    @abc.abstractmethod
    def bytes_sent(self) -> int:
        """Bytes that the kernel has taken so far, likewise."""

    # --- ending ---

    @property
    @abc.abstractmethod
    def draining(self) -> trio.Event:
        """Set when the connection's server drains (:meth:`Server.drain`): finish what is being done, and return.

        A handler that waits for its next message by :meth:`wait_data` or :meth:`messages` is ended there, and need not look
        at this.  Any other can wait for it in a task of its own.  It is one event for all connections of the server; a
        connection that has no server has one that is never set.
        """

    @abc.abstractmethod
    async def send_eof(self) -> None:
        """Flush, then tell the peer that nothing more will be sent.  Receiving goes on.  Twice is once.

        Raises:
          NotImplementedError: on a TLS connection: Python's ssl cannot do that.
        """

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Close the connection: flush what was sent, then close.

        Calls in progress raise :exc:`trio.ClosedResourceError` at once.  The flush goes on while the peer takes something,
        for :attr:`close_timeout` at most.  When the peer has taken nothing for 5 seconds, when that time is over, or when
        this is cancelled, the connection is reset, so that the peer does not take what arrived for everything.

        A Unix socket has no reset: the peer receives what the kernel has taken and then the end of the stream, or
        ``ECONNRESET`` if it has sent something that was not received here (unix(7)).  A protocol that has to tell a part
        from the whole there marks the end of its messages itself, by a length or a separator.

        With nothing left to send it ends with FIN, unless bytes are in the kernel that nobody received: then
        the kernel resets it (RFC 1122, 4.2.2.13).  On the ring they may be in the connection's queue already, and it does
        not.  Receive until the end of the stream first where that matters.  Closing twice is fine.
        """

    @abc.abstractmethod
    def abort(self) -> None:
        """Close at once, with a reset (RST): drop what is queued in either direction, here and in the kernel.

        Unix sockets have no RST: what the kernel has taken still arrives, and the peer sees the end of the stream, or
        ``ECONNRESET`` if it had sent what was not received here.
        """

    # --- the socket ---

    @property
    @abc.abstractmethod
    def local_address(self) -> Any:
        """This end, as from :meth:`socket.socket.getsockname`; looked up when first asked for.

        Of a Unix connection it is the path, ``""`` of an end that was not bound, bytes of an abstract name.  Behind a proxy
        (:attr:`proxy_header`) it is what the client connected to.
        """

    @property
    @abc.abstractmethod
    def remote_address(self) -> Any:
        """The other end, as from :meth:`socket.socket.getpeername`; looked up when first asked for.

        Behind a proxy it is the client.

        Raises:
          trio.BrokenResourceError: the connection broke before anybody asked.
        """

    @abc.abstractmethod
    def fileno(self) -> int:
        """The file descriptor; -1 when closed.  It stays the connection's."""

    @abc.abstractmethod
    def setsockopt(self, level: int, option: int, value: int | Buffer) -> None:
        """:meth:`socket.socket.setsockopt`."""

    @abc.abstractmethod
    def getsockopt(self, level: int, option: int, buffersize: int = 0) -> int | bytes:
        """:meth:`socket.socket.getsockopt`."""

    # --- TLS: None on a connection without ---

    def selected_alpn_protocol(self) -> str | None:
        """The protocol that both ends chose by ALPN, for example ``"h2"``; None if they chose none."""
        return None

    def getpeercert(self, binary_form: bool = False) -> dict[str, Any] | bytes | None:  # noqa: ARG002 - of TLS's
        """The peer's certificate, as from :meth:`ssl.SSLSocket.getpeercert`; None if it has shown none."""
        return None

    def cipher(self) -> tuple[str, str, int] | None:
        """The cipher's name, its protocol and its secret bits."""
        return None

    def tls_version(self) -> str | None:
        """The version of TLS, for example ``"TLSv1.3"``."""
        return None

    # --- for a server of callbacks, whose calls must not wait ---

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

    # --- for the server ---

    @abc.abstractmethod
    def _peer_text(self) -> str | None:
        """The other end for a person to read, escaped, also after a reset; None if it is not known any more."""

    def _described(self, state: str) -> str:
        """What :func:`repr` returns."""
        peer = self._peer_text()
        return f"<gain_trio.Connection {state}{f' with {peer}' if peer is not None else ''} at {id(self):#x}>"

    def _end_sending(self) -> None:
        """What :meth:`send_eof` does when all is flushed, without a checkpoint."""
        raise NotImplementedError("TLS cannot end one direction only")

    @abc.abstractmethod
    async def _close_flushing(self) -> bool:
        """:meth:`aclose`.  False when it gave up on the peer, and has reset the connection with something unsent."""

    @abc.abstractmethod
    def _close_soon(self) -> bool:
        """Close now if that loses nothing, without a checkpoint.  False when something is left to send."""

    @abc.abstractmethod
    def _close_now(self) -> None:
        """What a cancelled :meth:`aclose` does, without a checkpoint."""

    # --- iteration ---

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        data = await self.receive()
        if not data:
            raise StopAsyncIteration
        return data

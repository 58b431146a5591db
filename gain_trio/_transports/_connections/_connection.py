"""The contract of a connection, whatever it runs on."""

from __future__ import annotations

import abc
import math
import ssl
import types
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn, SupportsIndex

import trio

from gain_trio._io_manager import broken_by
from gain_trio._transports._addresses import PeerCredentials, peer_credentials
from gain_trio._transports._peer import shared_address

from ._change_wait import ChangeWait
from ._closing import Closing
from ._deadlines import ConnectionDeadlines, HasDeadlines
from ._descriptor_passing import DescriptorPassing
from ._file_sending import FileSending, FileTransfer, KernelFileTransfer
from ._framing import Framing
from ._marks import Marks, checked_close_timeout, checked_idle_timeout
from ._messages import DrainDeadline, MessageLoop
from ._peer_naming import PeerNaming
from ._proxy_protocol import ProxyHeader
from ._queues import receive_into
from ._read_only_socket import PlainSocket, ReadOnlySocket

if TYPE_CHECKING:
    from typing_extensions import Buffer, Self


class Connection(trio.abc.HalfCloseableStream):
    """A connected stream socket.

    A :class:`trio.abc.HalfCloseableStream`, so ``trio.SSLStream(connection)`` and everything else written for Trio's
    streams works on it, with short names beside for the author of a server.

    One task receives and one task sends at a time; a second one gets :exc:`trio.BusyResourceError`.  A connection that this
    side has closed raises :exc:`trio.ClosedResourceError`, a broken one :exc:`trio.BrokenResourceError`, whose
    ``__cause__`` is the :exc:`OSError`.

    :meth:`receive`, :meth:`receive_into`, :meth:`receive_exactly`, :meth:`receive_until`, :meth:`receive_line`, :meth:`send`
    and :meth:`flush` are always cancellation points.  They are schedule points when they have to wait; when they can be
    answered from memory they return at once, until a task has gone on like that for about a millisecond: then its next
    call is a schedule point, before it moves anything.  An answer that moves no bytes (the end of the stream once more, a
    send of nothing) is a schedule point too.  ``async for`` receives by :meth:`receive`, and is like it.
    :meth:`receive_some`, :meth:`send_all` and the other methods of Trio's stream are full checkpoints.
    """

    __slots__ = ()

    context: Any
    """The program's own: anything, None at first."""

    _start_tls: ClassVar[Callable[..., Coroutine[Any, Any, Connection]]]
    """Set by ``_transports``, with the arguments of :meth:`start_tls`."""
    _wrap: ClassVar[Callable[[PlainSocket | trio.socket.SocketType, Marks | None, bool], Connection]]
    """Set by ``_wrapping.py``, which knows the implementations."""
    _transfer_type: ClassVar[type[FileTransfer]] = KernelFileTransfer
    """How :meth:`send_file` sends."""

    _local_address: Any
    _remote_address: Any
    """What was looked up, or None.  Slots of the implementation, as are these:"""
    _close_timeout: float
    _deadlines_kept: ConnectionDeadlines | None
    """Made when the first deadline or idle timeout is to be kept."""
    _proxy_header: ProxyHeader | None
    """What a proxy said; set by the server."""
    _draining: trio.Event | None
    """The server's; one of its own, made when asked for, of a connection that has no server."""
    _proxy_header_size: int
    """Bytes received that are not the client's: a PROXY protocol header."""
    _marks: Marks
    _was_detached: bool
    """Whether the socket has another owner now."""
    _successor: Connection | None
    """What :meth:`start_tls` has made of the connection: it is closed with this one, and has the bytes from then on."""
    _transfer: trio.CancelScope | None
    """The scope of the :meth:`send_file` in progress."""
    _between: bool
    """Whether a task waits between two messages in code that is written in Python."""
    _drains: bool
    """Whether the server drains."""
    _drain_deadline: DrainDeadline | None
    """The deadline of the wait in progress, if the server drains."""

    if TYPE_CHECKING:
        # An implementation over a socket has these, for the classes that are named here and say what each of them is; one
        # over another connection has it done there.

        @property
        def _is_closed(self) -> bool: ...

        @property
        def _is_send_eof(self) -> bool: ...

        @property
        def _is_send_incomplete(self) -> bool: ...

        @property
        def _active_at(self) -> float: ...

        _borrowed_socket = Closing._borrowed_socket
        _close_flush = Closing._close_flush
        _refuse_calls = Closing._refuse_calls
        _refuse_sends = Closing._refuse_sends
        _close = Closing._close

        _timed = HasDeadlines._timed
        _deadline_passed = HasDeadlines._deadline_passed
        _break = HasDeadlines._break

        _hold_sends = FileSending._hold_sends
        _mark_send_incomplete = FileSending._mark_send_incomplete
        _wait_for_room = FileSending._wait_for_room
        _fail_sends = FileSending._fail_sends
        _has_sent = FileSending._has_sent

        def _wait_writable(self) -> Coroutine[Any, Any, None]:
            """Wait until less than the high mark is outbound."""

        # Every implementation has these two.
        _wait_change = ChangeWait._wait_change
        _note_change = ChangeWait._note_change

    def __reduce_ex__(self, _protocol: SupportsIndex, /) -> NoReturn:
        # A copy would be a second owner of the descriptor: the first to close it closes the other's, or a stranger's.
        raise TypeError("a connection cannot be copied or pickled")

    # --- time ---

    @property
    @abc.abstractmethod
    def read_deadline(self) -> float:
        """When a call that waits to receive is too slow: seconds on Trio's clock, ``math.inf`` at first.

        The call then raises :exc:`trio.TooSlowError`, and nothing is lost: the connection is as good as before, and what has
        arrived stays queued.  A call that has an answer never waits, and so is never too slow.

        Moving a deadline takes constant time and makes no cancel scope; it also holds for the call in progress.  Setting it
        to anything but a number raises a :exc:`TypeError` or :exc:`ValueError`.
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
    def idle_timeout(self) -> float:
        """How long the connection may move no byte in either direction: seconds, ``math.inf`` at first.

        A byte counts as moved when the kernel accepts it, and on Linux also when the peer does: a peer that accepts
        something at least every half of this time is not idle, however slow it is.

        After that time the connection is shut down in both directions, a line is logged, and calls raise
        :exc:`trio.BrokenResourceError` with ``ETIMEDOUT`` as its cause.  The program still has to close it; a close with
        unsent bytes resets it.  Setting it to a number that is not greater than 0 raises a :exc:`ValueError`, and to
        anything but a number a :exc:`TypeError`.
        """
        return math.inf if self._deadlines_kept is None else self._deadlines_kept.idle_timeout

    @idle_timeout.setter
    @trio.lowlevel.enable_ki_protection
    def idle_timeout(self, timeout: float) -> None:
        timeout = checked_idle_timeout(timeout)
        if self._is_closed or timeout == self.idle_timeout:
            return
        timing = self._own_deadlines()
        self._timed(timeout != math.inf)
        timing.set_idle_timeout(timeout, self._active_at)

    @property
    def close_timeout(self) -> float:
        """How long a close waits for a peer that still accepts bytes: seconds, 60 at first.

        A close waits no more than 5 seconds for a peer that accepts nothing, and then resets the connection, as it does when
        this time is over.  With ``math.inf`` a peer that accepts a byte every few seconds can hold a close up for ever.
        Setting it to less than 0 raises a :exc:`ValueError`, and to anything but a number a :exc:`TypeError`.
        """
        return self._close_timeout

    @close_timeout.setter
    def close_timeout(self, timeout: float) -> None:
        self._close_timeout = checked_close_timeout(timeout)  # type: ignore[misc]  # a slot of the implementation

    def _own_deadlines(self) -> ConnectionDeadlines:
        if self._deadlines_kept is None:
            self._deadlines_kept = ConnectionDeadlines(self)  # type: ignore[misc]  # a slot of the implementation
        return self._deadlines_kept

    @trio.lowlevel.enable_ki_protection
    def _watch(self, sending: bool, when: float, /) -> None:
        """Have :meth:`_deadline_passed` called then, or before."""
        self._own_deadlines().watch(sending, when)

    @trio.lowlevel.enable_ki_protection
    def _unwatch(self) -> None:
        """The connection is closed, or has let go of its socket: there is nothing to look at any more."""
        if self._deadlines_kept is not None:
            self._deadlines_kept.stop()

    @abc.abstractmethod
    def _unacknowledged(self) -> int | None:
        """Bytes that the kernel has accepted and the peer has not; None where that is unknown, also without a socket.

        Only Linux reports them (SIOCOUTQ, tcp(7) and unix(7)); on a Unix socket it counts its own overhead with them.
        """

    @property
    def _was_idle(self) -> bool:
        """Whether the connection is over because of its :attr:`idle_timeout`."""
        return self._deadlines_kept is not None and self._deadlines_kept.was_idle

    def set_deadline(self, deadline: float) -> None:
        """Set :attr:`read_deadline` and :attr:`write_deadline`.

        Raises:
          ValueError: it is not a number.
        """
        self.read_deadline = deadline
        self.write_deadline = deadline

    # --- receiving ---

    @abc.abstractmethod
    def receive(self, max_bytes: int | None = None) -> Coroutine[Any, Any, bytes]:
        """Wait for bytes and return them, at most ``max_bytes`` (None: as many as lie in one piece).

        Small pieces that have arrived are joined; large ones (of 4 KiB and more) are returned one by one, uncopied.

        Returns:
          The next bytes; ``b""`` at the end of the stream, then and ever after.

        Raises:
          ValueError: ``max_bytes`` is less than 1.
          trio.BusyResourceError: another task is receiving.
          trio.ClosedResourceError: the connection is, or meanwhile was, closed here.
          trio.BrokenResourceError: it broke; earlier calls have returned all that arrived before.

        Cancelling it loses nothing: bytes leave the connection's queue only when the task runs.
        """

    async def receive_into(self, buffer: Buffer, /) -> int:
        """Like :meth:`receive`, into a writable buffer of at least one byte, which must keep its size meanwhile.

        Returns:
          How many bytes were stored; 0 at the end of the stream.
        """
        return await receive_into(self.receive, buffer)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """:meth:`Connection.receive` as a full checkpoint."""
        await trio.lowlevel.checkpoint()
        return await self.receive(max_bytes)

    @abc.abstractmethod
    def peek(self, count: int | None = None, /) -> bytes:
        """Up to ``count`` received bytes (None: all), without waiting; they stay in the queue."""

    @abc.abstractmethod
    def next(self, count: int | None = None, /) -> bytes:
        """Up to ``count`` received bytes (None: all), without waiting; they leave the queue."""

    @abc.abstractmethod
    def discard(self, count: int | None = None, /) -> int:
        """Drop up to ``count`` received bytes (None: all) from the queue.  Returns how many."""

    @property
    @abc.abstractmethod
    def inbound_buffered(self) -> int:
        """The number of bytes received and unread, which :meth:`next` returns without waiting.

        On a TLS connection it counts decrypted bytes, and only a task that receives decrypts: a chunk of about 64 KiB at
        most, or the count that a call such as :meth:`receive_exactly` waits for.
        """

    @abc.abstractmethod
    def _fill(self, count: int, /) -> Coroutine[Any, Any, int]:
        """See :meth:`Framing._fill`."""

    @abc.abstractmethod
    def _find(self, separator: bytes, start: int, /) -> int:
        """See :meth:`Framing._find`."""

    @abc.abstractmethod
    def _take_exactly(self, count: int, /) -> bytes | None:
        """Take exactly ``count`` bytes from the queue (-1: all); or take none and return None, if fewer are queued."""

    # --- messages ---

    receive_exactly: Final = Framing.receive_exactly
    receive_until: Final = Framing.receive_until
    receive_line: Final = Framing.receive_line
    _measure = Framing._measure

    wait_data: Final = MessageLoop.wait_data
    messages: Final = MessageLoop.messages
    _wait_first = MessageLoop._wait_first
    _chunks = MessageLoop._chunks
    _waits_between = MessageLoop._waits_between
    _first_of_message = MessageLoop._first_of_message
    _set_drain_deadline = MessageLoop._set_drain_deadline
    _restore_deadline = MessageLoop._restore_deadline
    _begin_drain = MessageLoop._begin_drain

    # --- sending ---

    @abc.abstractmethod
    def send(self, data: Buffer | Sequence[Buffer], /) -> Coroutine[Any, Any, None]:
        """Send all of ``data``, after what was sent before.

        A list or tuple of buffers is sent as one message, in their order, without joining large ones first.

        Returns when the connection holds less than its high mark, so a peer that reads slowly stops the sender.  The caller
        may change ``data`` afterwards.

        Raises:
          trio.BusyResourceError: another task is sending or flushing.
          trio.ClosedResourceError: the connection is closed here, or :meth:`send_eof` was called.
          trio.BrokenResourceError: this or an earlier send failed, or the kernel has reported a reset by the peer.  Bytes
            that arrived before can still be received.

        Cancelled before it runs, or while the connection is over its high mark from before, nothing is sent.  Cancelled
        while it waits for its own bytes to drain, all of a :class:`bytes` object will be sent, and of a list of them.  A
        large buffer of another kind, or a list with such a one, may have been sent in part: then the connection cannot send
        any more (:exc:`trio.BrokenResourceError`), and closing it resets it, so that the peer does not take the part
        for the whole.  On a TLS connection that holds for all data of more than 256 KiB (or more than ``send_high``, if that
        is less), bytes objects and lists of them included.
        """

    send_file: Final = FileSending.send_file
    _send_source = FileSending._send_source
    _end_transfer = FileSending._end_transfer

    @abc.abstractmethod
    def flush(self) -> Coroutine[Any, Any, None]:
        """Wait until the kernel has accepted everything that was sent.  Raises what :meth:`send` raises."""

    async def send_all(self, data: Buffer | Sequence[Buffer]) -> None:
        """:meth:`Connection.send` as a full checkpoint."""
        await trio.lowlevel.checkpoint()
        await self.send(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until less than the high mark is queued for sending.  Raises what ``send`` raises."""
        await trio.lowlevel.checkpoint()
        await self._wait_writable()

    @property
    @abc.abstractmethod
    def outbound_buffered(self) -> int:
        """The number of bytes sent that the kernel has not accepted yet."""

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

    # --- counters ---

    @property
    @abc.abstractmethod
    def bytes_received(self) -> int:
        """The number of bytes received from the kernel so far, read or not; also when the connection is closed.

        On the ring they are counted when they arrive, over a socket when a call receives.  A TLS connection counts the
        bytes on the wire.
        """

    @property
    @abc.abstractmethod
    def bytes_sent(self) -> int:
        """The number of bytes that the kernel has accepted so far; also when the connection is closed."""

    # --- ending ---

    @property
    def draining(self) -> trio.Event:
        """Set when the connection's server drains (:meth:`Server.drain`): the handler finishes its work, and returns.

        For a handler that waits for its next message by :meth:`wait_data` or :meth:`messages` that wait ends, and the
        handler need not use this event.  Any other handler can wait for the event in a task of its own.  All connections of
        a server have the same event; a connection that has no server has one that is never set.
        """
        if self._draining is None:
            self._draining = trio.Event()  # type: ignore[misc]  # a slot of the implementation
        return self._draining

    @property
    def _has_received_nothing(self) -> bool:
        """Whether the peer has not sent a byte yet, apart from a PROXY protocol header and a TLS handshake."""
        return self.bytes_received <= self._proxy_header_size

    def _handled(self, serving: Awaitable[object], _code: types.CodeType, /) -> Awaitable[object]:
        """What the coroutine with this code, a task's own, is to await for what a handler has returned.

        An implementation may know how to resume the handler past that coroutine.
        """
        return serving

    def _drains_with(self, event: trio.Event) -> None:
        """The server's event is the connection's."""
        self._draining = event  # type: ignore[misc]  # the slot is the implementation's

    async def send_eof(self) -> None:
        """Flush, then end the stream to the peer (FIN).  Receiving goes on.  A second call does nothing.

        Raises:
          NotImplementedError: on a TLS connection: Python's ssl cannot do that.
        """
        await trio.lowlevel.checkpoint()
        if self._is_send_eof and not self._is_closed:
            return
        await self.flush()
        self._end_sending()

    aclose: Final = Closing.aclose

    @trio.lowlevel.enable_ki_protection
    def abort(self) -> None:
        """Close at once, with a reset (RST): drop what is queued in either direction, here and in the kernel.

        Unix sockets have no RST: what the kernel has accepted still arrives, and the peer sees the end of the stream, or
        ``ECONNRESET`` if it had sent something that is unread here.
        """
        if self._successor is not None:
            self._successor.abort()
            return
        self._end_transfer()
        self._remember_peer()
        self._close(True)

    _end_sending = Closing._end_sending
    _close_flushing = Closing._close_flushing
    _close_soon = Closing._close_soon
    _close_now = Closing._close_now

    # --- the socket ---

    @property
    def local_address(self) -> Any:
        """This end, as from :meth:`socket.socket.getsockname`; looked up when first asked for.

        A Unix connection has a path, ``""`` at an end that was not bound, or bytes for an abstract name.  Behind a proxy
        (:attr:`proxy_header`) it is the address that the client connected to.
        """
        header = self._proxy_header
        return self.direct_local_address if header is None or header.destination is None else header.destination

    @property
    def remote_address(self) -> Any:
        """The other end, as from :meth:`socket.socket.getpeername`; looked up when first asked for.

        Behind a proxy it is the client.

        Raises:
          trio.BrokenResourceError: the connection broke before the address was first looked up.
        """
        header = self._proxy_header
        return self.direct_remote_address if header is None or header.source is None else header.source

    @abc.abstractmethod
    def fileno(self) -> int:
        """The file descriptor; -1 when closed.  It stays the connection's."""

    def setsockopt(self, level: int, option: int, value: int | Buffer) -> None:
        """:meth:`socket.socket.setsockopt`."""
        with self._borrowed_socket() as sock:
            sock.setsockopt(level, option, value)

    def getsockopt(self, level: int, option: int, buffersize: int = 0) -> int | bytes:
        """:meth:`socket.socket.getsockopt`."""
        with self._borrowed_socket() as sock:
            return sock.getsockopt(level, option, buffersize) if buffersize else sock.getsockopt(level, option)

    @classmethod
    def from_socket(
        cls,
        sock: PlainSocket | trio.socket.SocketType,
        *,
        marks: Marks | None = None,
        pass_fds: bool = False,
    ) -> Connection:
        """Make a connection of a connected stream socket, whatever its family.

        The descriptor is the connection's from then on, and ``sock`` is left closed, without the descriptor.  When this
        raises, ``sock`` is as it was.  A blocking socket is made non-blocking.  As with :func:`connect`, ``TCP_NODELAY`` is
        set.  Bytes that another object has received from ``sock`` into its own buffer (``sock.makefile()``, an
        ``SSLSocket``) do not come along.

        Args:
          sock: a :class:`socket.socket` or one of :mod:`trio.socket`.
          marks: of the connection.
          pass_fds: see :func:`connect`.

        Raises:
          TypeError: it is not a socket.
          ValueError: it is one of another kind, or is closed, or listens.
          OSError: it is not connected (``ENOTCONN``), or there is no room for another connection.
          RuntimeError: not called from a task of a Trio run.
        """
        return cls._wrap(sock, marks, pass_fds)

    async def detach(self) -> tuple[PlainSocket, bytes]:
        """Give the socket back: flush what was sent, stop receiving, and let go.

        Returns:
          The socket, in blocking mode as a new one is, and the bytes that were received from it and not taken.
          Whatever else arrives is the socket's.  The connection is closed afterwards, and the socket is the caller's
          to close.

        Raises:
          trio.BusyResourceError: another task is receiving or sending.
          trio.ClosedResourceError: the connection is, or meanwhile was, closed here.
          trio.BrokenResourceError: it broke.
          RuntimeError: descriptors have been received and not taken (:meth:`receive_fds`); or the connection is not one
            over a socket alone: TLS is between.

        Cancelled, it changes nothing: the connection goes on.
        """
        raise RuntimeError(
            "what goes over this connection's socket is not what this connection sends: it cannot be detached"
        )

    def peer_credentials(self) -> PeerCredentials:
        """Process, user and group of the other end of a Unix connection (``SO_PEERCRED``, unix(7)).

        The kernel recorded them when the peer connected (or, for a client, when the server began to listen); another
        process may have the socket by now, and another process the number.

        Raises:
          ValueError: this is not a Unix connection.
          OSError: the system does not report them.
          trio.ClosedResourceError: the connection is closed here.
        """
        return peer_credentials(self)

    send_fds: Final = DescriptorPassing.send_fds
    receive_fds: Final = DescriptorPassing.receive_fds
    _send_fds = DescriptorPassing._send_fds
    _receive_fds = DescriptorPassing._receive_fds

    # --- behind a proxy ---

    @property
    def proxy_header(self) -> ProxyHeader | None:
        """What the proxy said in front of the client's bytes (``serve(proxy_protocol=...)``), or None."""
        return self._proxy_header

    @property
    def direct_local_address(self) -> Any:
        """:attr:`Connection.local_address` of the socket itself, whatever a proxy said."""
        if self._local_address is None:
            with self._borrowed_socket() as sock:
                self._local_address = shared_address(sock.getsockname())
        return self._local_address

    @property
    def direct_remote_address(self) -> Any:
        """:attr:`Connection.remote_address` of the socket itself, whatever a proxy said: the proxy's."""
        if self._remote_address is None:
            with self._borrowed_socket() as sock:
                try:
                    self._remote_address = sock.getpeername()
                except OSError as error:
                    raise broken_by(error) from error
        return self._remote_address

    def _told_by_a_proxy(self, header: ProxyHeader) -> None:
        """From now on the addresses are those in there, as far as it has any."""
        self._proxy_header = header  # type: ignore[misc]  # the slot is the implementation's
        self._proxy_header_size = header.length  # type: ignore[misc]

    # --- TLS ---

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext | bool,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        received: bytes = b"",
        handshake_timeout: float = 30.0,
        https_compatible: bool = False,
    ) -> Connection:
        """Begin TLS on a connection that has been without, as STARTTLS of SMTP and its like in other protocols do.

        What was sent is flushed first.  Returns the connection with TLS, whose handshake is done; it has the socket, the
        limits and the ``context`` from then on.  The calls of this one raise :exc:`trio.ClosedResourceError`, but for
        :meth:`aclose` and :meth:`abort`, which close the connection with TLS.

        *What came too early.*  A client that has asked for TLS may send nothing before its server has agreed, and a server
        nothing before its client's first message of TLS.  Bytes that came all the same may be an attacker's, who wants them
        to count as encrypted (STARTTLS injection, CVE-2011-0411).  So bytes that were received and not taken are TLS's,
        and are refused if they are not: as a server, if they do not begin a message of TLS; as a client, whatever they are.
        A program that knows better takes them before (:meth:`next`).  A program that has taken too much, with the command in
        one piece, gives it back by ``received``, where it is judged like the rest.

        Args:
          ssl_context: a context for this side; as a client True, too, for :func:`ssl.create_default_context`.
          server_side: whether this side is TLS's server.
          server_hostname: as a client, the name that the server's certificate has to prove.
          received: as a server, what the program has received behind the peer's command.
          handshake_timeout: seconds that the handshake may take.
          https_compatible: see :func:`connect`.

        Raises:
          ValueError, TypeError: an argument makes no sense for this side.
          trio.BrokenResourceError: the connection broke; or the handshake failed, with the :exc:`ssl.SSLError` as its cause
            (:exc:`ssl.SSLCertVerificationError` if the server has not proved its name); or the peer has sent too early.
          trio.TooSlowError: the handshake took too long, or met a deadline of the connection.
          trio.BusyResourceError: another task is receiving or sending.
          trio.ClosedResourceError: the connection is closed here.
          RuntimeError: it is one with TLS already, or one that passes descriptors.

        The connection is closed when it has failed with one of the middle two.  Cancelled while it flushes, it changes
        nothing; cancelled later, it closes the connection.
        """
        return await self._start_tls(
            self,
            ssl_context,
            server_side=server_side,
            server_hostname=server_hostname,
            received=received,
            handshake_timeout=handshake_timeout,
            https_compatible=https_compatible,
        )

    def _continues_as(self, successor: Connection) -> None:
        """Another connection has the socket: see :attr:`_successor`."""
        self._successor = successor  # type: ignore[misc]  # the slot is the implementation's

    def _latest(self) -> Connection:
        """This connection, or what :meth:`start_tls` has made of it."""
        return self if self._successor is None else self._successor

    # The others return None on a connection without.

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

    @property
    def socket(self) -> ReadOnlySocket:
        """The socket, to be read by code that was written for :class:`trio.SocketStream`."""
        return ReadOnlySocket(
            self._borrowed_socket, lambda: self.direct_local_address, lambda: self.direct_remote_address
        )

    # --- for the log ---

    _peer_text = PeerNaming._peer_text
    _remember_peer = PeerNaming._remember_peer
    _described = PeerNaming._described

    # --- iteration ---

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        data = await self.receive()
        if not data:
            raise StopAsyncIteration
        return data

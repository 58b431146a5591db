"""The cold half of a connection: Trio's stream, closing, and the socket, on top of what an implementation has.

An implementation gives :meth:`receive`, :meth:`send` and the queues, and the few things below that say what state it is in
and change it.  Order and bounds of closing are here, once for all implementations.
"""

from __future__ import annotations

import abc
import contextlib
import math
import socket
import sys
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, SupportsIndex

import trio

from gain_trio._io_manager import broken_by
from gain_trio._transports._patience import Patience
from gain_trio._transports._peer import UNNAMED, endpoint_text, peer_of, unnamed_text

from ._connection import Connection, checked_close_timeout, checked_idle_timeout
from ._deadlines import Timing
from ._proxy_protocol import ProxyHeader

if TYPE_CHECKING:
    from typing_extensions import Buffer


class ConnectionBase(Connection):
    """See :class:`Connection`."""

    __slots__ = ()

    _local_address: Any
    _remote_address: Any
    """What was looked up, or None.  Slots of the implementation, as are these:"""
    _close_timeout: float
    _timing: Timing | None
    """Made when the first deadline or idle timeout is to be kept."""
    _proxy_header: ProxyHeader | None
    """What a proxy said; set by the server."""
    _draining: trio.Event | None
    """The server's; one of its own, made when asked for, of a connection that has no server."""
    _prelude: int
    """Bytes received that are no message of the peer's: a PROXY protocol header."""

    def __reduce_ex__(self, _protocol: SupportsIndex, /) -> NoReturn:
        # A copy would be a second owner of the descriptor: the first to close it closes the other's, or a stranger's.
        raise TypeError("a connection cannot be copied or pickled")

    # --- what an implementation has ---

    @property
    @abc.abstractmethod
    def _is_closed(self) -> bool:
        """Whether calls are refused."""

    @property
    @abc.abstractmethod
    def _is_send_eof(self) -> bool:
        """Whether sends are refused."""

    @property
    @abc.abstractmethod
    def _is_send_torn(self) -> bool:
        """Whether a send ended with only a part of its data sent."""

    @abc.abstractmethod
    def _wait_writable(self) -> Coroutine[Any, Any, None]:
        """Wait until less than the high mark is outbound."""

    @abc.abstractmethod
    def _close_flush(self) -> Coroutine[Any, Any, None]:
        """:meth:`flush` after :meth:`_refuse_calls`."""

    @abc.abstractmethod
    def _refuse_calls(self) -> None:
        """Closed for the program: calls in progress and new ones fail."""

    @abc.abstractmethod
    def _refuse_sends(self) -> None:
        """No more sends: :meth:`send_eof` was called."""

    @abc.abstractmethod
    def _close(self, reset: bool, /) -> None:
        """Close the descriptor, with RST if asked for or if a send is torn.  Again: nothing."""

    @abc.abstractmethod
    def _borrowed_socket(self) -> contextlib.AbstractContextManager[socket.socket]:
        """The socket, for the length of a with statement.  Raises :exc:`trio.ClosedResourceError` when closed."""

    @property
    @abc.abstractmethod
    def _active_at(self) -> float:
        """When a byte was moved last, on Trio's clock; kept while :meth:`_timed`."""

    @abc.abstractmethod
    def _timed(self, wanted: bool, /) -> None:
        """Keep :attr:`_active_at`, or do not."""

    @abc.abstractmethod
    def _deadline_passed(self, sending: bool, now: float, /) -> float:
        """The keeper's visit: have a call in progress that is past its deadline raise.  Returns when to come again."""

    @abc.abstractmethod
    def _break(self, errno: int, /) -> None:
        """Tell both ends that it is over; calls raise the errno until somebody closes it."""

    # --- its server ---

    @property
    def draining(self) -> trio.Event:
        """See :attr:`Connection.draining`."""
        if self._draining is None:
            self._draining = trio.Event()  # type: ignore[misc]  # a slot of the implementation
        return self._draining

    @property
    def _is_unheard(self) -> bool:
        """See :attr:`MessageLoop._is_unheard`."""
        return self.bytes_received <= self._prelude

    def _drains_with(self, event: trio.Event) -> None:
        """The server's event is the connection's."""
        self._draining = event  # type: ignore[misc]  # the slot is the implementation's

    # --- deadlines ---

    def set_deadline(self, deadline: float) -> None:
        """See :meth:`Connection.set_deadline`."""
        self.read_deadline = deadline
        self.write_deadline = deadline

    @property
    def idle_timeout(self) -> float:
        """See :attr:`Connection.idle_timeout`."""
        return math.inf if self._timing is None else self._timing.idleness.timeout

    @idle_timeout.setter
    @trio.lowlevel.enable_ki_protection
    def idle_timeout(self, timeout: float) -> None:
        timeout = checked_idle_timeout(timeout)
        if self._is_closed or timeout == self.idle_timeout:
            return
        timing = self._own_timing()
        timing.idleness.timeout = timeout
        self._timed(timeout != math.inf)
        if timeout != math.inf:
            timing.watch_idleness(self._active_at)

    @property
    def _was_idle(self) -> bool:
        """See :attr:`Connection._was_idle`."""
        return self._timing is not None and self._timing.idleness.was_idle

    @property
    def close_timeout(self) -> float:
        """See :attr:`Connection.close_timeout`."""
        return self._close_timeout

    @close_timeout.setter
    def close_timeout(self, timeout: float) -> None:
        self._close_timeout = checked_close_timeout(timeout)  # type: ignore[misc]  # a slot of the implementation

    def _own_timing(self) -> Timing:
        if self._timing is None:
            self._timing = Timing(self)  # type: ignore[misc]  # a slot of the implementation
        return self._timing

    @trio.lowlevel.enable_ki_protection
    def _watch(self, sending: bool, when: float, /) -> None:
        """Have :meth:`_deadline_passed` called then, or before."""
        self._own_timing().watch(sending, when)

    @trio.lowlevel.enable_ki_protection
    def _unwatch(self) -> None:
        """The connection is closed, or has let go of its socket: there is nothing to look at any more."""
        if self._timing is not None:
            self._timing.stop()

    # --- Trio's stream ---

    async def send_all(self, data: Buffer | Sequence[Buffer]) -> None:
        """:meth:`Connection.send` as a full checkpoint."""
        await trio.lowlevel.checkpoint()
        await self.send(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until less than the high mark is queued for sending.  Raises what ``send`` raises."""
        await trio.lowlevel.checkpoint()
        await self._wait_writable()

    async def send_eof(self) -> None:
        """See :meth:`Connection.send_eof`."""
        await trio.lowlevel.checkpoint()
        if self._is_send_eof and not self._is_closed:
            return
        await self.flush()
        self._end_sending()

    def _end_sending(self) -> None:
        """See :meth:`Connection._end_sending`."""
        self._refuse_sends()
        with self._borrowed_socket() as sock:
            try:
                sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                raise broken_by(error) from error

    async def aclose(self) -> None:
        """See :meth:`Connection.aclose`."""
        await self._close_flushing()

    @trio.lowlevel.enable_ki_protection
    async def _close_flushing(self) -> bool:
        """See :meth:`Connection._close_flushing`."""
        if self._is_closed:
            await trio.lowlevel.checkpoint()
            return True
        self._remember_peer()
        self._refuse_calls()
        flushed = False
        try:
            patience = Patience(self)
            await trio.lowlevel.checkpoint()
            if self.outbound_buffered and not self._is_send_torn:
                flushed = await patience.wait(self._close_flush)
            else:
                flushed = True
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            flushed = True  # there is nobody left to send to, or abort() was called: nobody to reset
        finally:
            self._close(not flushed and self.outbound_buffered > 0)
        return flushed

    @trio.lowlevel.enable_ki_protection
    def abort(self) -> None:
        """See :meth:`Connection.abort`."""
        self._remember_peer()
        self._close(True)

    @trio.lowlevel.enable_ki_protection
    def _close_soon(self) -> bool:
        """See :meth:`Connection._close_soon`."""
        if not self._is_closed and self.outbound_buffered:
            return False
        self._close(False)
        return True

    @trio.lowlevel.enable_ki_protection
    def _close_now(self) -> None:
        """See :meth:`Connection._close_now`."""
        self._remember_peer()
        self._close(not self._is_closed and self.outbound_buffered > 0)

    # --- the socket ---

    @property
    def local_address(self) -> Any:
        """See :attr:`Connection.local_address`."""
        header = self._proxy_header
        return self.direct_local_address if header is None or header.destination is None else header.destination

    @property
    def remote_address(self) -> Any:
        """See :attr:`Connection.remote_address`."""
        header = self._proxy_header
        return self.direct_remote_address if header is None or header.source is None else header.source

    def _peer_text(self) -> str | None:
        """See :meth:`Connection._peer_text`."""
        header = self._proxy_header
        if header is not None and header.source is not None:
            return endpoint_text(header.source)
        if self._remote_address:
            return endpoint_text(self._remote_address)
        try:
            with self._borrowed_socket() as sock:
                if self._remote_address is None:
                    self._remote_address = peer_of(sock)
                if self._remote_address in ("", b""):
                    return unnamed_text(sock)
        except (trio.ClosedResourceError, OSError):
            return None if self._remote_address is None else UNNAMED
        return None if self._remote_address is None else endpoint_text(self._remote_address)

    def _remember_peer(self) -> None:
        """It is about to be closed because of an error, which a line of the log will be about."""
        if self._remote_address is None and isinstance(sys.exc_info()[1], Exception):
            self._peer_text()

    @property
    def proxy_header(self) -> ProxyHeader | None:
        """See :attr:`Connection.proxy_header`."""
        return self._proxy_header

    def _told_by_a_proxy(self, header: ProxyHeader) -> None:
        """From now on the addresses are those in there, as far as it has any."""
        self._proxy_header = header  # type: ignore[misc]  # the slot is the implementation's
        self._prelude = header.length  # type: ignore[misc]

    @property
    def direct_local_address(self) -> Any:
        """See :attr:`Connection.direct_local_address`."""
        if self._local_address is None:
            with self._borrowed_socket() as sock:
                self._local_address = sock.getsockname()
        return self._local_address

    @property
    def direct_remote_address(self) -> Any:
        """See :attr:`Connection.direct_remote_address`."""
        if self._remote_address is None:
            with self._borrowed_socket() as sock:
                try:
                    self._remote_address = sock.getpeername()
                except OSError as error:
                    raise broken_by(error) from error
        return self._remote_address

    def setsockopt(self, level: int, option: int, value: int | Buffer) -> None:
        """See :meth:`Connection.setsockopt`."""
        with self._borrowed_socket() as sock:
            sock.setsockopt(level, option, value)

    def getsockopt(self, level: int, option: int, buffersize: int = 0) -> int | bytes:
        """See :meth:`Connection.getsockopt`."""
        with self._borrowed_socket() as sock:
            return sock.getsockopt(level, option, buffersize) if buffersize else sock.getsockopt(level, option)

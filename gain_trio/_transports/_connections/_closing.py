"""How a connection ends: by FIN when all is sent, by a reset otherwise, and after a bounded time in any case."""

from __future__ import annotations

import abc
import contextlib
import socket
from collections.abc import Coroutine
from typing import Any, Protocol

import trio

from gain_trio._io_manager import broken_by
from gain_trio._transports._peer_progress import CloseWait, HasSendProgress


class Closing(HasSendProgress, Protocol):
    """The steps that end a connection: a connection has them by their names."""

    __slots__ = ()

    # --- what a connection brings ---

    @property
    @abc.abstractmethod
    def _successor(self) -> Closing | None:
        """The connection that has the socket now, and is closed with this one: see :meth:`Connection.start_tls`."""

    @property
    @abc.abstractmethod
    def outbound_buffered(self) -> int:
        """See :attr:`Connection.outbound_buffered`."""

    @property
    @abc.abstractmethod
    def _is_closed(self) -> bool:
        """Whether calls are refused."""

    @property
    @abc.abstractmethod
    def _is_send_incomplete(self) -> bool:
        """Whether a send ended with only a part of its data sent."""

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
        """Close the descriptor, with RST if asked for or if a send is incomplete.  A second call does nothing."""

    @abc.abstractmethod
    def _borrowed_socket(self) -> contextlib.AbstractContextManager[socket.socket]:
        """The socket, for the length of a with statement.  Raises :exc:`trio.ClosedResourceError` when closed."""

    @abc.abstractmethod
    def _end_transfer(self) -> None:
        """See :meth:`FileSending._end_transfer`."""

    @abc.abstractmethod
    def _remember_peer(self) -> None:
        """See :meth:`PeerNaming._remember_peer`."""

    # --- what a program calls ---

    async def aclose(self) -> None:
        """Close the connection: flush what was sent, then close.

        Calls in progress raise :exc:`trio.ClosedResourceError` at once.  The flush goes on while the peer accepts bytes, for
        :attr:`close_timeout` at most.  When the peer has accepted nothing for 5 seconds, when that time is over, or when
        this is cancelled, the connection is reset, so that the peer does not take a part for the whole.

        A Unix socket has no reset: the peer receives what the kernel has accepted and then the end of the stream, or
        ``ECONNRESET`` if it has sent something that is unread here (unix(7)).  A protocol that has to distinguish a part
        from the whole there marks the end of its messages itself, by a length or a separator.

        With nothing left to send it ends with FIN, unless unread bytes are in the kernel: then the kernel resets it
        (RFC 1122, 4.2.2.13).  On the ring they may be in the connection's queue already, and it does not.  Receive until
        the end of the stream first where that matters.  Closing twice is fine.
        """
        await self._close_flushing()

    # --- for the server ---

    def _end_sending(self) -> None:
        """What :meth:`send_eof` does when all is flushed, without a checkpoint."""
        self._refuse_sends()
        with self._borrowed_socket() as sock:
            try:
                sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                raise broken_by(error) from error

    @trio.lowlevel.enable_ki_protection
    async def _close_flushing(self) -> bool:
        """:meth:`aclose`.  False when it gave up on the peer, and has reset the connection with something unsent."""
        if self._successor is not None:
            return await self._successor._close_flushing()
        self._end_transfer()
        if self._is_closed:
            await trio.lowlevel.checkpoint()
            return True
        self._remember_peer()
        self._refuse_calls()
        flushed = False
        try:
            patience = CloseWait(self)
            await trio.lowlevel.checkpoint()
            if self.outbound_buffered and not self._is_send_incomplete:
                flushed = await patience.wait(self._close_flush)
            else:
                flushed = True
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            flushed = True  # the peer is gone, or abort() was called: there is nothing to reset
        finally:
            self._close(not flushed and self.outbound_buffered > 0)
        return flushed

    @trio.lowlevel.enable_ki_protection
    def _close_soon(self) -> bool:
        """Close now if that loses nothing, without a checkpoint.  False when something is left to send."""
        if self._successor is not None:
            return self._successor._close_soon()
        self._end_transfer()
        if not self._is_closed and self.outbound_buffered:
            return False
        self._close(False)
        return True

    @trio.lowlevel.enable_ki_protection
    def _close_now(self) -> None:
        """What a cancelled :meth:`aclose` does, without a checkpoint."""
        if self._successor is not None:
            self._successor._close_now()
            return
        self._end_transfer()
        self._remember_peer()
        self._close(not self._is_closed and self.outbound_buffered > 0)

"""A connection on the ring: the cold half, in Python, of ``gain_trio._fastpath.Stream``."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, final

import trio

from gain_trio._io_manager import UringIOManager
from gain_trio._io_manager._errors import broken
from gain_trio._kernel import fastpath

from ._connection import Connection, Marks

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from gain_trio._fastpath import Stream as _Stream
elif fastpath is not None:
    _Stream = fastpath.Stream
else:

    class _Stream:
        """Where the compiled modules are missing, no run gets as far as having a connection."""


CLOSE_TIMEOUT = 5.0
"""Seconds that aclose() waits for a peer that does not read."""


@final
class RingConnection(_Stream, Connection):
    """See :class:`Connection`.  Owns the descriptor."""

    __slots__ = ("_local_address", "_remote_address")

    def __init__(self, manager: UringIOManager, descriptor: int, marks: Marks) -> None:
        self._local_address: Any = None
        self._remote_address: Any = None
        # Last: from here on the descriptor is the connection's, and a caller that sees an exception closes it.
        super().__init__(manager.reactor, descriptor, marks.receive_high, marks.receive_low, marks.send_high)

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else f"fd={self._descriptor}"
        return f"<gain_trio.Connection {state} at {id(self):#x}>"

    # --- Trio's stream ---

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """:meth:`Connection.receive` as a full checkpoint."""
        call = self.receive(max_bytes)
        if not self._receive_would_wait:
            await trio.lowlevel.checkpoint()
        return await call

    async def send_all(self, data: Buffer) -> None:
        """:meth:`Connection.send` as a full checkpoint."""
        call = self.send(data)
        await trio.lowlevel.checkpoint()
        await call

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until less than the high mark is queued for sending.  Raises what ``send`` raises."""
        call = self._wait_writable()
        await trio.lowlevel.checkpoint()
        await call

    async def send_eof(self) -> None:
        """See :meth:`Connection.send_eof`."""
        await trio.lowlevel.checkpoint()
        if self._is_send_eof and not self._is_closed:
            return
        await self.flush()
        self._refuse_sends()
        with self._borrowed_socket() as sock:
            try:
                sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                raise broken(error.errno or 0) from error

    async def aclose(self) -> None:
        """See :meth:`Connection.aclose`."""
        if self._is_closed:
            await trio.lowlevel.checkpoint()
            return
        self._refuse_calls()
        flushed = False
        try:
            with trio.move_on_after(CLOSE_TIMEOUT):
                await trio.lowlevel.checkpoint()
                if self.outbound_buffered and not self._is_send_torn:
                    await self._close_flush()
                flushed = True
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            flushed = True  # there is nobody left to send to, or abort() was called: nobody to reset
        finally:
            self._close(not flushed and self.outbound_buffered > 0)

    def close_soon(self) -> bool:
        """Close now if that loses nothing, without a checkpoint.  False when something is left to send."""
        if not self._is_closed and self.outbound_buffered:
            return False
        self._close(False)
        return True

    def close_now(self) -> None:
        """What a cancelled :meth:`aclose` does, without a checkpoint."""
        self._close(not self._is_closed and self.outbound_buffered > 0)

    def abort(self) -> None:
        """See :meth:`Connection.abort`."""
        self._close(True)

    # --- the socket ---

    def fileno(self) -> int:
        """See :meth:`Connection.fileno`."""
        return self._descriptor

    def _borrowed_socket(self) -> _BorrowedSocket:
        descriptor = self._descriptor
        if descriptor < 0:
            raise trio.ClosedResourceError("this connection was closed")
        return _BorrowedSocket(descriptor)

    @property
    def local_address(self) -> Any:
        """See :attr:`Connection.local_address`."""
        if self._local_address is None:
            with self._borrowed_socket() as sock:
                self._local_address = sock.getsockname()
        return self._local_address

    @property
    def remote_address(self) -> Any:
        """See :attr:`Connection.remote_address`."""
        if self._remote_address is None:
            with self._borrowed_socket() as sock:
                try:
                    self._remote_address = sock.getpeername()
                except OSError as error:
                    raise broken(error.errno or 0) from error
        return self._remote_address

    def setsockopt(self, level: int, option: int, value: int | Buffer) -> None:
        """See :meth:`Connection.setsockopt`."""
        with self._borrowed_socket() as sock:
            sock.setsockopt(level, option, value)

    def getsockopt(self, level: int, option: int, buffersize: int = 0) -> int | bytes:
        """See :meth:`Connection.getsockopt`."""
        with self._borrowed_socket() as sock:
            return sock.getsockopt(level, option, buffersize) if buffersize else sock.getsockopt(level, option)


@final
class _BorrowedSocket:
    """A :class:`socket.socket` on a connection's descriptor for the length of a with statement."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)

    def __enter__(self) -> socket.socket:
        return self._socket

    def __exit__(self, *_exc_info: object) -> None:
        self._socket.detach()

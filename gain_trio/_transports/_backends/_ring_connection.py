"""A connection on the ring: ``gain_trio._fastpath.Connection`` with the cold half that all connections share."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, final

import trio

from gain_trio._io_manager import UringIOManager
from gain_trio._kernel import fastpath
from gain_trio._transports._connections import Connection, Marks
from gain_trio._transports._peer_progress import DEFAULT_CLOSE_TIMEOUT

from ._socket_base import closed_error

if TYPE_CHECKING:
    from gain_trio._fastpath import Connection as _FastConnection
elif fastpath is not None:
    _FastConnection = fastpath.Connection
else:

    class _FastConnection:
        """Where the compiled modules are missing, no run gets as far as having a connection on the ring."""

        __slots__ = ()


@final
class RingConnection(_FastConnection, Connection):  # type: ignore[misc]  # it has a wait_data() of its own
    """See :class:`Connection`.  Owns the descriptor."""

    __slots__ = ()  # those of the contract are members of the compiled class, which makes them with the object

    def __repr__(self) -> str:
        return self._described("closed" if self._is_closed else f"fd={self._descriptor}")

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """:meth:`Connection.receive` as a full checkpoint."""
        call = self.receive(max_bytes)  # before the checkpoint, because it may refuse
        if not self._receive_would_wait:
            try:
                await trio.lowlevel.checkpoint()
            except BaseException:
                call.close()  # its `await` was not forgotten
                raise
        return await call

    @trio.lowlevel.enable_ki_protection  # the descriptor has no owner for a moment
    async def detach(self) -> tuple[socket.socket, bytes]:
        """See :meth:`Connection.detach`."""
        await trio.lowlevel.checkpoint()
        await self.flush()
        descriptor, queued = await self._detach()
        self._unwatch()
        try:
            sock = socket.socket(fileno=descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        sock.setblocking(True)
        return sock, queued

    def _close_soon(self) -> bool:
        """See :meth:`Connection._close_soon`."""
        return self._close_plainly() or Connection._close_soon(self)

    def fileno(self) -> int:
        """See :meth:`Connection.fileno`."""
        return self._descriptor

    @contextlib.contextmanager
    @trio.lowlevel.enable_ki_protection  # a socket object that is dropped closes what it was made of
    def _borrowed_socket(self) -> Iterator[socket.socket]:
        descriptor = self._descriptor
        if descriptor < 0:
            raise closed_error(self)
        sock = socket.socket(fileno=descriptor)
        try:
            yield sock
        finally:
            sock.detach()


if fastpath is not None:
    fastpath.adopt_methods(RingConnection)


def ring_connection(manager: UringIOManager, descriptor: int, marks: Marks) -> RingConnection:
    """Make a connection that owns the descriptor; when this raises, the descriptor is the caller's still."""
    high, low = marks.receive_high, marks.receive_low
    return RingConnection(manager.proactor, descriptor, high, low, marks.send_high, marks, DEFAULT_CLOSE_TIMEOUT)

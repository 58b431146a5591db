"""A listener over a socket: accept(2) when the descriptor is readable.

Nothing is accepted before somebody asks, so there is no queue but the kernel's backlog, and cancelling
:meth:`SocketListener.accept` loses nothing.

Several tasks may be in :meth:`~SocketListener.accept` at once, but only one may wait for a descriptor.  So one of them, the
lookout, does, and the others are parked.  Whenever the lookout leaves, with a connection, an error or a cancellation, it
sends the next one: if more connections are in the backlog, that one finds the descriptor readable at once.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, final

import trio

from ._connection import Marks
from ._listener import CONNECTION_ERRNOS, Listener
from ._socket_connection import SocketConnection
from ._sockets import deepen_send_buffer

BATCH = 128
"""Connections accepted without waiting, after which other tasks get their turn."""


@final
class SocketListener(Listener):
    """See :class:`Listener`.  Owns the socket, which must be listening and non-blocking."""

    __slots__ = (
        "_batch",
        "_closed",
        "_has_lookout",
        "_is_unix",
        "_make",
        "_marks",
        "_parked",
        "_socket",
        "local_address",
    )

    def __init__(
        self,
        sock: socket.socket,
        marks: Marks,
        make: Callable[[socket.socket, Marks], SocketConnection] = SocketConnection,
    ) -> None:
        self._socket = sock
        self._make = make
        self._is_unix = sock.family == getattr(socket, "AF_UNIX", None)
        self._marks = marks
        self._parked = trio.lowlevel.ParkingLot()
        self._has_lookout = False
        self._batch = 0  # connections accepted since a task last waited
        self._closed = False
        self.local_address: Any = sock.getsockname()

    def __repr__(self) -> str:
        return f"<gain_trio.Listener {'closed' if self._closed else self.local_address} at {id(self):#x}>"

    def fileno(self) -> int:
        """See :meth:`Listener.fileno`."""
        return self._socket.fileno()

    async def accept(self) -> SocketConnection:
        """See :meth:`Listener.accept`."""
        if self._closed:
            await trio.lowlevel.checkpoint()
        elif self._has_lookout:
            await self._parked.park()  # ends with this task the lookout, or with the listener closed
        self._has_lookout = True
        try:
            while True:
                if self._closed:
                    raise _closed()
                await trio.lowlevel.wait_readable(self._socket)
                self._batch = 0
                connection = self._accept_ready()
                if connection is not None:
                    return connection
        except trio.ClosedResourceError:
            raise _closed() from None
        finally:
            # Whoever is woken is the lookout from now on, even if this task comes back before that one has run.
            self._has_lookout = bool(self._parked.unpark())

    def _accept_ready(self) -> SocketConnection | None:
        """See :meth:`Listener._accept_ready`."""
        if self._closed:
            raise _closed()
        while self._batch < BATCH:
            self._batch += 1
            try:
                sock, _address = self._socket.accept()
            except (BlockingIOError, InterruptedError):
                return None
            except OSError as error:
                if error.errno in CONNECTION_ERRNOS:
                    continue
                raise
            try:
                sock.setblocking(False)
                if self._is_unix:
                    deepen_send_buffer(sock)
                return self._make(sock, self._marks)
            except BaseException:
                sock.close()
                raise
        return None

    async def aclose(self) -> None:
        """See :meth:`Listener.aclose`."""
        self._close()
        await trio.lowlevel.checkpoint()

    def _close(self) -> None:
        """See :meth:`Listener._close`."""
        if self._closed:
            return
        self._closed = True
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()  # the kernel resets what is in its backlog
        self._parked.unpark_all()


def _closed() -> trio.ClosedResourceError:
    return trio.ClosedResourceError("this listener was closed")

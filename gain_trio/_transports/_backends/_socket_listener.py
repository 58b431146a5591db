"""A listener over a socket: accept(2) when the descriptor is readable.

Connections are accepted only in :meth:`SocketListener.accept`, so there is no queue but the kernel's backlog, and
cancelling that call loses nothing.

Several tasks may be in :meth:`~SocketListener.accept` at once, but only one may wait for a descriptor.  So one of them, the
lookout, does, and the others are parked.  Whenever the lookout leaves, with a connection, an error or a cancellation, it
sends the next one: if more connections are in the backlog, that one finds the descriptor readable at once.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, final

import trio

from gain_trio._transports._addresses import (
    admit,
    close_listening,
    close_unused,
    deepen_send_buffer,
    descriptor_closer,
    receives_descriptors,
    reset_on_close,
)
from gain_trio._transports._connections import CONNECTION_ERRNOS, Connection, Listener, Marks

from ._socket_connection import SocketConnection

BATCH = 128
"""Connections accepted without waiting, after which other tasks get their turn."""


@final
class SocketListener(Listener):
    """See :class:`Listener`.  Owns the socket, which must be listening and non-blocking."""

    __slots__ = (
        "_batch",
        "_closed",
        "_has_lookout",
        "_held",
        "_is_unix",
        "_make",
        "_marks",
        "_parked",
        "_receives_descriptors",
        "_socket",
        "local_address",
    )

    def __init__(
        self,
        sock: socket.socket,
        marks: Marks,
        make: Callable[[socket.socket, Marks], Connection] = SocketConnection,
    ) -> None:
        self._socket = sock
        self._make = make
        self._is_unix = sock.family == getattr(socket, "AF_UNIX", None)
        self._receives_descriptors = receives_descriptors(sock)
        self._marks = marks
        self._parked = trio.lowlevel.ParkingLot()
        self._has_lookout = False
        self._held: socket.socket | None = None  # one that was accepted, and that nothing could be made of yet
        self._batch = 0  # connections accepted since a task last waited
        self._closed = False
        self.local_address: Any = sock.getsockname()

    async def accept(self) -> Connection:
        """See :meth:`Listener.accept`."""
        if self._closed:
            await trio.lowlevel.checkpoint()
        elif self._has_lookout:
            await self._parked.park()  # ends with this task the lookout, or with the listener closed
        self._has_lookout = True
        try:
            while True:
                await self._wait_acceptable()
                connection = self._accept_ready()
                if connection is not None:
                    return connection
        finally:
            # The task that is woken is the lookout from now on, even if this task comes back before that one has run.
            self._has_lookout = bool(self._parked.unpark())

    async def _wait_acceptable(self) -> None:
        """See :meth:`Listener._wait_acceptable`."""
        if self._closed:
            raise _closed()
        if self._held is not None:
            await trio.lowlevel.checkpoint()
        else:
            try:
                await trio.lowlevel.wait_readable(self._socket)
            except trio.ClosedResourceError:
                raise _closed() from None
        self._batch = 0

    def _accept_ready(self) -> Connection | None:
        """See :meth:`Listener._accept_ready`."""
        if self._closed:
            raise _closed()
        if self._held is not None:
            return self._made()
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
            if self._is_unix and not self._receives_descriptors and not admit(sock):
                continue
            self._held = sock
            return self._made()
        return None

    def _made(self) -> Connection:
        """A connection of the socket that is held."""
        sock, self._held = self._held, None
        assert sock is not None
        try:
            sock.setblocking(False)
            if self._is_unix:
                deepen_send_buffer(sock)
            return self._make(sock, self._marks)
        except OSError:  # the ring's table of connections is full; the next call may find a place
            self._held = sock
            raise
        except BaseException:
            close_unused(sock)
            raise

    @trio.lowlevel.enable_ki_protection
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
        close_listening(self._socket)  # the kernel resets what is in its backlog
        if self._held is not None:
            reset_on_close(self._held)
            close_unused(self._held)
            self._held = None
        self._parked.unpark_all()

    def _stop(self) -> None:
        """See :meth:`Listener._stop`.  One that takes nothing ahead has nothing left to give."""
        self._close()

    @property
    def _is_released(self) -> bool:
        """See :attr:`Listener._is_released`."""
        return not self._receives_descriptors or descriptor_closer.is_idle


def _closed() -> trio.ClosedResourceError:
    return trio.ClosedResourceError("this listener was closed")

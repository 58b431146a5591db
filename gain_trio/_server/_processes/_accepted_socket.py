"""Connections that the server's process accepts for its workers: sockets that this process never reads from."""

from __future__ import annotations

import socket
from typing import Any, final

import trio

from gain_trio._transports import Marks, SocketListener, close_unused, reset_on_close


@final
class AcceptedSocket:
    """An accepted connection on its way.  It has what a dispatcher asks of a connection."""

    __slots__ = ("_socket",)

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    @property
    def direct_remote_address(self) -> Any:
        """The other end.

        Raises:
          trio.BrokenResourceError: it is gone.
        """
        try:
            return self._socket.getpeername()
        except OSError as error:
            raise trio.BrokenResourceError("the connection broke") from error

    def fileno(self) -> int:
        """Its descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this copy of the descriptor; a worker has its own."""
        close_unused(self._socket)

    def reset(self) -> None:
        """Reset a connection that no worker will serve, so that the client cannot take it for served."""
        reset_on_close(self._socket)
        close_unused(self._socket)

    def _close_now(self) -> None:
        """What a dispatcher calls when a balancer fails."""
        self.reset()


def listener_for_others(sock: socket.socket) -> SocketListener:
    """A listener that owns ``sock``, whose connections are :class:`AcceptedSocket`, and which takes none ahead."""
    make: Any = _make  # a listener is typed for connections, and an acceptor just passes on what it accepts
    return SocketListener(sock, Marks(), make=make)


def _make(sock: socket.socket, _marks: Marks) -> AcceptedSocket:
    return AcceptedSocket(sock)

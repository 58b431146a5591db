"""Which implementation of connections and listeners a run gets.

On the ring where the run has one that can do all of it, over sockets and Trio's own waits everywhere else.  Nothing above
this module knows which.

Unix sockets go over sockets everywhere.  Since Linux 6.17 they report how much is queued, and a multishot receive that is
armed on one with much queued, or whose peer sends and shuts down in one go, can miss the end of the stream for good: nothing
wakes it again (axboe/liburing issue 1549, mended in the kernel in March 2026).  An end that never comes is worse than a
slower start, and nothing tells beforehand whether a kernel has the mend.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable
from typing import final

import attrs

from gain_trio._io_manager import UringIOManager, current_manager

from ._connection import Connection, Marks
from ._descriptor_connection import DescriptorConnection
from ._listener import Listener
from ._ring_connection import RingConnection
from ._ring_listener import RingListener
from ._socket_connection import SocketConnection
from ._socket_listener import SocketListener


@final
@attrs.frozen
class Implementation:
    """What makes connections and listeners of sockets, which must be non-blocking.

    The socket is the new object's when there is one; when there is none, because making it raised, it is still the caller's.
    """

    connection: Callable[[socket.socket, Marks], Connection]
    listener: Callable[[socket.socket, Marks], Listener]


_SOCKETS = Implementation(SocketConnection, SocketListener)
_WITH_DESCRIPTORS = Implementation(DescriptorConnection, functools.partial(SocketListener, make=DescriptorConnection))


def _is_unix(sock: socket.socket) -> bool:
    return sock.family == getattr(socket, "AF_UNIX", None)


def _ring_connection(manager: UringIOManager, sock: socket.socket, marks: Marks) -> Connection:
    if _is_unix(sock):
        return SocketConnection(sock, marks)
    connection = RingConnection(manager, sock.fileno(), marks)
    sock.detach()
    return connection


def _ring_listener(manager: UringIOManager, sock: socket.socket, marks: Marks) -> Listener:
    return SocketListener(sock, marks) if _is_unix(sock) else RingListener(manager, sock, marks)


def implementation(what: str, *, pass_fds: bool = False) -> Implementation:
    """The one for the run that ``what`` is called from.

    Args:
      what: who asks, for the message.
      pass_fds: connections that pass descriptors, which go over sockets everywhere.

    Raises:
      RuntimeError: not called from a Trio run; names ``what`` and says what is running instead.
    """
    manager = current_manager(what)
    if pass_fds:
        return _WITH_DESCRIPTORS
    if manager is None:
        return _SOCKETS
    return Implementation(functools.partial(_ring_connection, manager), functools.partial(_ring_listener, manager))

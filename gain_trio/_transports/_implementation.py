"""Which implementation of connections and listeners a run gets.

On the ring where the run has one that can do all of it, over sockets and Trio's own waits everywhere else.  Nothing above
this module knows which.
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


def _ring_connection(manager: UringIOManager, sock: socket.socket, marks: Marks) -> Connection:
    connection = RingConnection(manager, sock.fileno(), marks)
    sock.detach()
    return connection


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
    return Implementation(functools.partial(_ring_connection, manager), functools.partial(RingListener, manager))

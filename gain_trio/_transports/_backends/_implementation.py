"""Which implementation of connections and listeners a run gets.

On the ring where the run has one that can do all of it, over sockets and Trio's own waits everywhere else.  Nothing above
this module knows which.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Iterable
from typing import final

import attrs
import trio

from gain_trio._io_manager import UringIOManager, current_manager
from gain_trio._transports._connections import Connection, Listener, Marks, close_all

from ._descriptor_connection import DescriptorConnection
from ._ring_connection import ring_connection
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
    """Makes a listener that may accept ahead of the calls of ``accept``."""
    exact_listener: Callable[[socket.socket, Marks], Listener]
    """Makes a listener that accepts only in a call of ``accept``: the rest waits in the kernel's backlog."""


_SOCKETS = Implementation(SocketConnection, SocketListener, SocketListener)
_descriptor_listener = functools.partial(SocketListener, make=DescriptorConnection)
_WITH_DESCRIPTORS = Implementation(DescriptorConnection, _descriptor_listener, _descriptor_listener)


@trio.lowlevel.enable_ki_protection  # of a descriptor that for a moment has two owners
def _ring_connection(manager: UringIOManager, sock: socket.socket, marks: Marks) -> Connection:
    connection = ring_connection(manager, sock.fileno(), marks)
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
    make = functools.partial(_ring_connection, manager)
    return Implementation(make, functools.partial(RingListener, manager), functools.partial(SocketListener, make=make))


_MOST_TICKS = 100
"""Ticks of the loop that the kernel gets to release a closed socket; two or three are enough."""


async def wait_released(listeners: Iterable[Listener]) -> None:
    """Wait until the kernel has released these listeners and all connections of the run that were closed.

    Closing one on the ring only prepares it: the next tick of the loop submits the cancels and the close, and one or two
    ticks later the last completions are there.  This waits for these ticks, cancelled or not, a bounded number.
    """
    manager = current_manager("wait_released()")
    for _tick in range(_MOST_TICKS):
        if all(listener._is_released for listener in listeners) and (manager is None or not manager.proactor.closing):
            return
        await trio.lowlevel.cancel_shielded_checkpoint()


def make_listeners(
    make: Implementation, sockets: Iterable[socket.socket], marks: Marks, *, exact: bool = False
) -> list[Listener]:
    """Listeners that own the sockets; when this raises, all of them are closed."""
    listeners: list[Listener] = []
    left = list(sockets)
    try:
        while left:
            listeners.append((make.exact_listener if exact else make.listener)(left[0], marks))
            left.pop(0)
    except BaseException:
        close_all(listeners)
        for sock in left:
            sock.close()
        raise
    return listeners

"""Listeners: where connections come from.

A multishot accept serves the listener: one operation, a completion for each connection.  It is armed while somebody wants
connections, and what it brings is queued, so cancelling :meth:`Listener.accept` loses none.  The queue is bounded: beyond
its high mark the accept is cancelled, and connections wait in the kernel's backlog, until the queue has been emptied.

Errors of accept(2), surveyed in the man page and in what Trio, asyncio and Twisted make of them:

- of the connection, which is gone before it was taken (``ECONNABORTED``, ``EPROTO``, and on Linux any pending network error
  of the new socket): none of the server's business; the accept is armed again.  ``EPERM`` (a firewall rule) counts here.
- of resources (``EMFILE``, ``ENFILE``, ``ENOBUFS``, ``ENOMEM``; ``ENOSPC`` is our own table of connections): raised from
  :meth:`Listener.accept`, once; the next call tries again.  What to do meanwhile is the caller's policy;
  ``gain_trio.serve`` logs it and waits 0.1 seconds, as Trio does.
- all others are errors of the program and are raised too.
"""

from __future__ import annotations

import abc
import errno
import os
import socket
import struct
from collections import deque
from collections.abc import Iterable
from typing import Any, final

import trio

from gain_trio._io_manager import UringIOManager
from gain_trio._kernel import CompletionFlag, os_error
from gain_trio._ring import Operation

from ._connection import Connection, Marks
from ._ring_connection import RingConnection

RESOURCE_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC})
"""The machine or the process is out of something, and may have it again soon."""

_CONNECTION_ERRNOS = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.EPERM,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
    }
    if hasattr(errno, "ENONET")
    else {errno.ECONNABORTED, errno.EPROTO, errno.EPERM}
)
_RETRY_ERRNOS = frozenset({errno.EINTR, errno.EAGAIN, errno.ECANCELED})

_MORE = int(CompletionFlag.MORE)  # a plain int: an IntFlag makes a new object of every &

QUEUE_HIGH = 128
"""Connections accepted and not yet taken, at which accepting stops."""


class Listener(trio.abc.Listener[Connection]):
    """A listening socket that brings :class:`Connection` objects.

    Several tasks may be in :meth:`accept` at once; each connection goes to one of them.
    """

    __slots__ = ()

    @abc.abstractmethod
    async def accept(self) -> Connection:
        """Wait for a connection and return it.

        Raises:
          trio.ClosedResourceError: the listener is, or meanwhile was, closed.
          OSError: accept(2) failed in a way that is not the peer's doing, ``EMFILE`` among them; call again to go on.

        Cancelling it loses no connection: the next call returns it.
        """

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Close the listener.  Connections that nobody has accepted are reset.  Closing twice is fine."""

    @property
    @abc.abstractmethod
    def local_address(self) -> Any:
        """Where it listens, as from :meth:`socket.socket.getsockname`, with the port that the kernel chose for 0."""

    @abc.abstractmethod
    def fileno(self) -> int:
        """The file descriptor; -1 when closed."""


@final
class RingListener(Listener):
    """See :class:`Listener`.  Owns the socket, which must be listening."""

    __slots__ = (
        "_closed",
        "_error",
        "_manager",
        "_marks",
        "_operation",
        "_queue",
        "_socket",
        "_waiting",
        "local_address",
    )

    def __init__(self, manager: UringIOManager, sock: socket.socket, marks: Marks) -> None:
        self._manager = manager
        self._socket = sock
        self._marks = marks
        self._queue: deque[int] = deque()
        self._waiting = trio.lowlevel.ParkingLot()
        self._operation: Operation | None = None
        self._error: OSError | None = None
        self._closed = False
        self.local_address: Any = sock.getsockname()

    def __repr__(self) -> str:
        return f"<gain_trio.Listener {'closed' if self._closed else self.local_address} at {id(self):#x}>"

    def fileno(self) -> int:
        """See :meth:`Listener.fileno`."""
        return self._socket.fileno()

    async def accept(self) -> RingConnection:
        """See :meth:`Listener.accept`."""
        if self._queue or self._closed or self._error is not None:
            await trio.lowlevel.checkpoint()
        while True:
            connection = self.accept_ready()
            if connection is not None:
                return connection
            self._arm()
            await self._waiting.park()

    def accept_ready(self) -> RingConnection | None:
        """A connection that is here already, or None.  Raises what :meth:`accept` raises."""
        if self._closed:
            raise trio.ClosedResourceError("this listener was closed")
        if self._queue:
            descriptor = self._queue.popleft()
            try:
                return RingConnection(self._manager, descriptor, self._marks)
            except OSError:  # the table of connections is full; the next call may find a place
                self._queue.appendleft(descriptor)
                raise
            except BaseException:
                os.close(descriptor)
                raise
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return None

    def _arm(self) -> None:
        if self._operation is None:
            self._operation = self._manager.ring.accept(self._socket.fileno(), self._accepted)

    def _accepted(self, result: int, flags: int) -> None:
        """A completion of the accept.  Its last one is the one without MORE."""
        operation = self._operation
        if not flags & _MORE:
            self._operation = None
        if self._closed:
            if result >= 0:
                _reset(result)
            return
        if result >= 0:
            self._queue.append(result)
            if len(self._queue) == QUEUE_HIGH and operation is not None:
                operation.cancel()
            self._waiting.unpark()
        elif -result not in _CONNECTION_ERRNOS and -result not in _RETRY_ERRNOS:
            self._error = os_error(result)
            self._waiting.unpark_all()  # one raises it, the others try again and get what accept(2) says to them
        if self._waiting:
            self._arm()

    async def aclose(self) -> None:
        """See :meth:`Listener.aclose`."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """:meth:`aclose` without a checkpoint."""
        if self._closed:
            return
        self._closed = True
        if self._operation is not None:
            self._operation.cancel()
        self._socket.close()
        while self._queue:
            _reset(self._queue.popleft())
        self._waiting.unpark_all()


def _reset(descriptor: int) -> None:
    """Close a connection that nobody has accepted, as the kernel does with those in its backlog: with RST."""
    with socket.socket(fileno=descriptor) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def close_all(listeners: Iterable[RingListener]) -> None:
    """Close several listeners without a checkpoint."""
    for listener in listeners:
        listener.close()

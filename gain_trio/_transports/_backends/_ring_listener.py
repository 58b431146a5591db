"""A listener on the ring.

A multishot accept serves it: one operation, a completion for each connection.  It is armed while a task waits in
:meth:`RingListener.accept`, and its connections are queued, so cancelling that call loses none.  The queue is bounded:
beyond its high mark the accept is cancelled, and connections wait in the kernel's backlog, until the queue has been emptied.

A multishot accept accepts ahead of the calls.  A caller with a hard limit on connections uses a :class:`SocketListener`
that makes connections of the ring: it waits for readiness, and accepts only in a call.

*Closing.*  An accept in flight holds a reference to the listening socket, so closing the descriptor alone does not end the
listening: a client could connect until the next tick of the loop has submitted the cancel.  So that is done at once.

*Stopping.*  Others may accept on the same socket: the process that takes this one's place.  The kernel wakes one of all
accepts for a connection, and when that was the one that is being cancelled, it wakes no other: the client would wait until
another client comes.  So a listener that stops looks whether connections are there, and accepts them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections import deque
from typing import Any, NoReturn, final

import trio

from gain_trio._io_manager import UringIOManager
from gain_trio._kernel import CompletionFlag, os_error
from gain_trio._ring import Operation
from gain_trio._transports._addresses import admit, deepen_send_buffer, reset_on_close
from gain_trio._transports._connections import CONNECTION_ERRNOS, Listener, Marks

from ._ring_connection import RingConnection, ring_connection

_RETRY_ERRNOS = frozenset({errno.EINTR, errno.EAGAIN, errno.ECANCELED})

_MORE = int(CompletionFlag.MORE)  # a plain int: an IntFlag makes a new object of every &

QUEUE_HIGH = 128
"""Connections accepted and not yet taken, at which accepting stops."""
_LAST_ACCEPTS = 8
"""The most accepts at the end.  One is enough but where a connection comes between an accept and its cancel."""


@final
class RingListener(Listener):
    """See :class:`Listener`.  Owns the socket, which must be listening."""

    __slots__ = (
        "_closed",
        "_error",
        "_in_flight",
        "_is_unix",
        "_manager",
        "_marks",
        "_operation",
        "_queue",
        "_socket",
        "_stopped",
        "_waiting",
        "local_address",
    )

    def __init__(self, manager: UringIOManager, sock: socket.socket, marks: Marks) -> None:
        self._manager = manager
        self._socket = sock
        self._marks = marks
        self._is_unix = sock.family == getattr(socket, "AF_UNIX", None)
        self._queue: deque[int] = deque()
        self._waiting = trio.lowlevel.ParkingLot()
        self._operation: Operation | None = None
        self._in_flight = 0  # accepts that have not ended: one, and more while it stops
        self._error: OSError | None = None
        self._closed = False
        self._stopped = False  # accept() still returns queued connections, and those on their way
        self.local_address: Any = sock.getsockname()

    def __del__(self) -> None:
        """Close the connections that wait in a listener which the program has dropped.

        An accept that is under way keeps the listener as long as the run lasts.  This may also be the child of a fork, where
        asking for an RST would reset the parent's connection.
        """
        for descriptor in self._queue:
            with contextlib.suppress(OSError):  # a child may have closed all that it had inherited
                os.close(descriptor)

    async def accept(self) -> RingConnection:
        """See :meth:`Listener.accept`."""
        if self._queue or self._closed or self._error is not None:
            await trio.lowlevel.checkpoint()
        while True:
            connection = self._accept_ready()
            if connection is not None:
                return connection
            self._arm()
            await self._waiting.park()

    @trio.lowlevel.enable_ki_protection  # of a descriptor that for a moment has two owners
    def _accept_ready(self) -> RingConnection | None:
        """A connection that is here already, or None.  Raises what :meth:`accept` raises."""
        if self._closed:
            raise trio.ClosedResourceError("this listener was closed")
        while self._queue:
            descriptor = self._queue.popleft()
            try:
                if self._is_unix and not _is_admitted(descriptor):
                    continue
                connection = ring_connection(self._manager, descriptor, self._marks)
            except OSError:  # the table of connections is full; the next call may find a place
                self._queue.appendleft(descriptor)
                raise
            except BaseException:
                os.close(descriptor)
                raise
            return connection
        if self._stopped:
            if self._operation is None:
                raise trio.ClosedResourceError("this listener was closed")
            return None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return None

    async def _wait_acceptable(self) -> NoReturn:
        """See :meth:`Listener._wait_acceptable`."""
        raise RuntimeError("this listener takes connections ahead; one that does not is an exact_listener")

    def _arm(self) -> None:
        if self._operation is None and not self._stopped:
            self._operation = self._begin_accept()

    def _begin_accept(self) -> Operation:
        operation = self._manager.ring.accept(self._socket.fileno(), self._accepted)
        self._in_flight += 1
        return operation

    def _accepted(self, result: int, flags: int) -> None:
        """A completion of the accept.  Its last one is the one without MORE."""
        operation = self._operation
        if not flags & _MORE:
            self._in_flight -= 1
            if not self._in_flight:
                self._operation = None
        if self._closed:
            if result >= 0:
                _reset(result)
            return
        if result >= 0:
            self._queue.append(result)
            if len(self._queue) == QUEUE_HIGH and operation is not None and not self._stopped:
                operation.cancel()
            self._waiting.unpark()
        elif -result not in CONNECTION_ERRNOS and -result not in _RETRY_ERRNOS:
            self._error = os_error(result)
            self._waiting.unpark_all()  # one raises it, the others try again and get what accept(2) says to them
        if self._stopped and self._operation is None:
            self._waiting.unpark_all()
        elif self._operation is None and self._waiting:
            self._arm()

    @trio.lowlevel.enable_ki_protection
    async def aclose(self) -> None:
        """See :meth:`Listener.aclose`."""
        self._close()
        await trio.lowlevel.checkpoint()

    def _stop(self) -> None:
        """See :meth:`Listener._stop`."""
        if self._stopped:
            return
        self._stopped = True
        ring = self._manager.ring
        if not ring.closed and (self._operation is not None or self._queue):
            if self._operation is not None:
                self._operation.cancel()
                ring.settle()
            if not self._closed:
                self._take_what_woke_it()
        if self._operation is None or ring.closed:
            self._waiting.unpark_all()
        self._socket.close()

    def _take_what_woke_it(self) -> None:
        """Accept the connections that are there: the kernel may have woken the cancelled accept for one of them."""
        backlog = select.poll()
        backlog.register(self._socket, select.POLLIN)
        for _ in range(_LAST_ACCEPTS):
            if not backlog.poll(0):
                return
            self._operation = self._begin_accept()
            self._operation.cancel()  # it takes all that are there, and is cancelled before it waits
            self._manager.ring.settle()

    def _close(self) -> None:
        """See :meth:`Listener._close`."""
        if self._closed:
            return
        self._closed = True
        self._stop()
        while self._queue:
            _reset(self._queue.popleft())
        self._waiting.unpark_all()

    @property
    def _is_released(self) -> bool:
        """See :attr:`Listener._is_released`."""
        return self._operation is None


def _is_admitted(descriptor: int) -> bool:
    """Prepare a Unix connection, and refuse one that descriptors were passed to already."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, descriptor)
    try:
        if not admit(sock):
            return False
        deepen_send_buffer(sock)
    finally:
        sock.detach()
    return True


def _reset(descriptor: int) -> None:
    """Close a connection that the program has not accepted, as the kernel does with those in its backlog: with RST."""
    with socket.socket(fileno=descriptor) as sock:
        reset_on_close(sock)

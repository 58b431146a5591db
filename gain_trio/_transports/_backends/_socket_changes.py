"""The wait for a change of a connection over a socket, for code that is called back, and so never waits in other calls.

The task waits for the socket to become readable.  All other changes (the kernel has taken bytes, a send has failed,
``_note_change``) wake it by ``notify_closing``, as a deadline does.  While the queue is full the task reads nothing, and
waiting until the socket is readable would be no wait.  Then it waits to be woken by a cancelled scope, and with
``WATCH_RESETS`` for an error of the socket: a program that never takes anything would wait for ever for a peer that has
reset the connection.  An epoll instance registered with an empty event mask still reports errors, and becomes readable when
it has one to report.

A message is one step here, too: a read leaves a note whether the kernel had more, and when the program has taken all of it,
the next wait begins with waiting and not with a system call that fails.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
from typing import Protocol, final

import trio

from gain_trio._io_manager import broken_by
from gain_trio._transports._connections import CHANGED, ENDED, FULL, MOST_SEEN, WATCH_RESETS, WATCH_SENT

from ._socket_base import SocketOwner, closed_error, current_thread, kept
from ._socket_receiving import ReceivingOwner, SocketReceiver

STEP = 4096
"""The least that a CHANGED counts for, in bytes, where it is counted how long a task goes on without waiting.  A callback
that writes a byte whenever one was taken would otherwise have the thread for as many turns as the mark has bytes."""


class WaitingOwner(ReceivingOwner, Protocol):
    """The connection as the wait for a change sees it."""

    @property
    def _receiver(self) -> SocketReceiver:
        """The receiving half."""


@final
class SocketChanges:
    """What the answers have reported, and the task that waits for one: a part of one connection, see :class:`SocketOwner`.

    Args:
      unseen: bytes that are queued already.
    """

    __slots__ = (
        "_full_seen",
        "_is_noted",
        "_room",
        "_sent_seen",
        "_waits_for_descriptor",
        "_watched",
        "_yields_to_peer",
        "unseen",
    )

    def __init__(self, unseen: int) -> None:
        self.unseen = unseen
        """Bytes that have arrived, and were not reported; the program may have taken some of them."""
        self._is_noted = False  # the program has asked for an answer
        self._sent_seen = 0  # bytes that the kernel had taken when that was reported last
        self._full_seen = False  # the pause was reported
        self._yields_to_peer = False  # the last answer was that the kernel has taken bytes
        self._watched = 0  # by the wait in progress
        self._waits_for_descriptor = False
        self._room: trio.CancelScope | None = None  # of the task, while it waits for the queue to be taken from

    async def wait_change(self, connection: WaitingOwner, watched: int) -> int:
        """See :meth:`Connection._wait_change`."""
        receiver = connection._receiver
        if connection._is_closed or receiver.is_busy or current_thread() != connection._run.thread:
            connection._refuse("receiving")
        receiver.is_busy = True
        receiver.is_late = False
        self._watched = watched
        try:
            if not receiver.is_dry or self._is_noted or self._has_sent(connection):
                await receiver.begin(connection)
            while True:
                if connection._is_closed:
                    raise closed_error(connection)
                change = self._next(connection)
                if change is not None:
                    receiver.end_told = change == ENDED
                    if change == CHANGED:
                        connection._unwaited += STEP
                    return change
                await self._park(connection)
        except OSError as error:  # from the wait: this is no descriptor any more, or none that can be waited for
            raise broken_by(error) from error
        finally:
            self._watched = 0
            receiver.end()

    # --- what the answer is ---

    def _has_sent(self, connection: WaitingOwner) -> bool:
        """Whether the kernel has taken bytes that are to be reported."""
        return bool(self._watched & WATCH_SENT) and self._sent_seen != connection.bytes_sent

    def _next(self, connection: WaitingOwner) -> int | None:
        if self._is_noted:
            return self._changed(connection)
        # The kernel may take bytes at once.  A program that then writes again would never wait, and never hear of the peer:
        # so each has its turn.
        has_sent = self._has_sent(connection)
        if has_sent and not self._yields_to_peer:
            change: int | None = CHANGED
        else:
            if has_sent and not connection._receiver.is_paused:
                self._receive(connection)
            change = self._next_of_peer(connection)
            if change is None and has_sent:
                change = CHANGED
        self._yields_to_peer = change == CHANGED
        return self._changed(connection) if change == CHANGED else change

    def _changed(self, connection: WaitingOwner) -> int:
        self._is_noted = False
        self._sent_seen = connection.bytes_sent
        return CHANGED

    def _next_of_peer(self, connection: WaitingOwner) -> int | None:
        receiver = connection._receiver
        unseen = min(self.unseen, len(receiver.inbound))
        seen = min(unseen, MOST_SEEN)
        self.unseen = unseen - seen
        if seen:
            return seen
        error = receiver.error or connection._sender.error
        if error is not None:
            raise broken_by(kept(error))
        if receiver.ended:
            return ENDED
        was_seen, self._full_seen = self._full_seen, receiver.check_full()
        return FULL if self._full_seen and not was_seen else None

    def _receive(self, connection: WaitingOwner) -> bytes:
        """Queue what the kernel has, and return it."""
        receiver = connection._receiver
        data = receiver.read(connection, receiver.chunk)
        receiver.enqueue(connection, data)
        connection._unwaited += len(data)
        return data

    # --- waiting ---

    async def _park(self, connection: WaitingOwner) -> None:
        """Wait, and queue what there is then."""
        receiver = connection._receiver
        if receiver.deadline < receiver.looked_at:
            receiver.watch_deadline(connection)
        if receiver.is_paused:
            await self._wait_while_full(connection)
        elif receiver.is_dry:
            self._waits_for_descriptor = True
            try:
                await trio.lowlevel.wait_readable(connection._descriptor)
            except trio.ClosedResourceError:
                if not receiver.is_late:
                    return  # something else has changed
            finally:
                self._waits_for_descriptor = False
                connection._has_waited()
        if connection._is_closed:
            return
        if not receiver.is_paused and (self._receive(connection) or not receiver.is_dry):
            return
        if receiver.is_late:
            raise trio.TooSlowError("the connection's read deadline has passed")

    async def _wait_while_full(self, connection: WaitingOwner) -> None:
        """Wait until :attr:`_room` is cancelled.

        Raises the socket's error.  What the kernel has received before it can still be read.
        """
        self._room = trio.CancelScope()
        try:
            with self._room:
                if self._watched & WATCH_RESETS:
                    await _wait_for_error(connection)
                else:
                    await trio.sleep_forever()
        finally:
            self._room = None
        if connection._receiver.socket_error is not None:
            raise broken_by(kept(connection._receiver.socket_error))

    # --- waking ---

    def wake(self, connection: SocketOwner, /) -> None:
        """Have the task look again."""
        if self._room is not None:
            self._room.cancel()
        elif self._waits_for_descriptor and connection._descriptor >= 0:
            trio.lowlevel.notify_closing(connection._descriptor)  # the writer, if there is one, waits again

    def note(self, connection: SocketOwner) -> None:
        """See :meth:`Connection._note_change`."""
        self._is_noted = True
        self.wake(connection)

    def note_sent(self, connection: SocketOwner) -> None:
        """The kernel has taken bytes."""
        if self._watched & WATCH_SENT:
            self.wake(connection)

    def note_room(self) -> None:
        """The queue is at its low mark."""
        if self._room is not None:
            self._room.cancel()


async def _wait_for_error(connection: WaitingOwner) -> None:
    """Wait for an error of the socket, and keep it: a socket reports its error once."""
    watch = _watch_for_errors(connection._descriptor)
    if watch is None:
        await trio.sleep_forever()
    with watch:
        while connection._receiver.socket_error is None:
            await trio.lowlevel.wait_readable(watch.fileno())
            watch.poll(0)  # with EPOLLET, so that it is not readable any more, if it was not for an error
            number = connection._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                connection._receiver.socket_error = OSError(number, os.strerror(number))


def _watch_for_errors(descriptor: int) -> select.epoll | None:
    """An epoll instance that reports errors alone; None if it cannot be made: then the next write finds out."""
    if sys.platform != "linux":
        return None
    with contextlib.ExitStack() as stack:
        try:
            watch = stack.enter_context(select.epoll())
            watch.register(descriptor, select.EPOLLET)
        except OSError:  # there is no descriptor left, or no memory
            return None
        stack.pop_all()
    return watch

"""The sending half of a connection over a socket; the essay is in ``_socket_connection.py``."""

from __future__ import annotations

import contextlib
import errno
import math
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, final

import outcome
import trio

from gain_trio._io_manager import broken_by
from gain_trio._transports._addresses import NO_SIGNAL
from gain_trio._transports._connections import (
    SMALL,
    Message,
    Outbound,
    message_of,
)

from ._socket_base import SocketOwner, closed_error, current_thread, kept

checkpoint_if_cancelled = trio.lowlevel.checkpoint_if_cancelled

if TYPE_CHECKING:
    from typing_extensions import Buffer


@final
class SocketSender:
    """Sends, and a writer that finishes them: a part of one connection, see :class:`SocketOwner`."""

    __slots__ = (
        "_is_late",
        "_task",
        "_wake_below",
        "deadline",
        "error",
        "is_busy",
        "is_eof",
        "is_incomplete",
        "is_writing",
        "looked_at",
        "outbound",
        "room_wanted",
    )

    def __init__(self) -> None:
        self.outbound: Outbound | None = None  # None when nothing is queued
        self.is_eof = False
        self.is_incomplete = False  # also while a send waits with a part of its data sent
        self.error: OSError | None = None
        self.is_busy = False  # a call of this direction is in progress
        self._task: trio.lowlevel.Task | None = None  # its task, while it waits for less than this to be outbound:
        self._wake_below = 0
        self._is_late = False  # it was woken because its deadline has passed
        self.is_writing = False  # the writer runs
        self.room_wanted = False  # a call waits for it to find that the kernel would take something
        self.deadline = self.looked_at = math.inf  # when the keeper of deadlines comes

    @property
    def size(self) -> int:
        """Bytes sent and not yet taken by the kernel."""
        return 0 if self.outbound is None else self.outbound.size

    def set_deadline(self, connection: SocketOwner, deadline: float) -> None:
        """Move the deadline, also of the call in progress."""
        self.deadline = deadline
        if self._task is not None and not connection._is_closed and deadline < self.looked_at:
            self.watch_deadline(connection)

    async def send(self, connection: SocketOwner, data: Buffer | Sequence[Buffer], /) -> None:
        """See :meth:`Connection.send`."""
        if type(data) is not bytes:
            if isinstance(data, (list, tuple)):
                await self._send_parts(connection, data)
            else:
                await self._send_buffer(connection, data)  # type: ignore[arg-type]  # refuses all but a buffer
            return
        if connection._is_closed or self.is_busy or current_thread() != connection._run.thread:
            connection._refuse("sending")
        sent = 0
        if data and self.outbound is None:
            if connection._unwaited < connection._marks.send_high and not connection._run.time_slice.is_over():
                await checkpoint_if_cancelled()
            else:
                await self._take_turn(connection)
            self.check(connection)
            self.check_not_eof()
            sent = self.write(connection, data)
            if sent == len(data):
                return
        await self.send_rest(connection, data, sent)

    async def _take_turn(self, connection: SocketOwner) -> None:
        """Much was moved without one, or for long."""
        self.is_busy = True
        try:
            await connection._yield()
        finally:
            self.is_busy = False

    async def _send_buffer(self, connection: SocketOwner, data: Buffer) -> None:
        with memoryview(data) as view:
            if not view.c_contiguous:
                raise BufferError("send() needs a buffer in one piece")
            with view.cast("B") as flat:
                if connection._is_closed or self.is_busy or current_thread() != connection._run.thread:
                    connection._refuse("sending")
                await self.send_rest(connection, flat, 0)

    async def _send_parts(self, connection: SocketOwner, data: Sequence[Buffer]) -> None:
        with message_of(data) as message:
            if connection._is_closed or self.is_busy or current_thread() != connection._run.thread:
                connection._refuse("sending")
            await self._send_message(connection, message)

    async def _send_message(self, connection: SocketOwner, message: Message) -> None:
        """As :meth:`send_rest`, of a message in several parts."""
        high = connection._marks.send_high
        begun = False
        self.is_busy = True
        try:
            if message.parts:
                await connection._pass(high)
            else:
                await trio.lowlevel.checkpoint()
            while True:
                self.check(connection, own_half=begun)
                self.check_not_eof()
                if begun or self.size < high:
                    self.is_incomplete = True  # should what follows be interrupted
                    begun |= self._put_message(connection, message)
                    self.is_incomplete = begun and bool(message.parts)
                    if not message.parts and self.size < high:
                        return
                if await self.park(connection, high):
                    self.finish_late(connection, message.parts if begun else (), message.done)
        finally:
            self.is_busy = False

    def _put_message(self, connection: SocketOwner, message: Message) -> bool:
        """Send of it what the kernel takes, queue of the rest what the mark allows; whether any of it is done now."""
        begun = False
        while self.outbound is None and message.parts:
            with contextlib.ExitStack() as stack:
                head = [stack.enter_context(part) for part in message.head()]
                length = sum(map(len, head))
                sent = self._write_parts(connection, head)
            begun |= sent > 0
            message.remove(sent)
            if sent < length:
                break
        while message.parts:
            part = message.parts[0]
            done = self._queue(connection, part, message.done)
            begun |= done > message.done
            message.remove(done - message.done)
            if done < len(part):
                break
        return begun

    def _write_parts(self, connection: SocketOwner, parts: Sequence[memoryview]) -> int:
        """How much the kernel takes of all of them together."""
        if len(parts) == 1 or not hasattr(connection._socket, "sendmsg"):  # Windows has none
            return self.write(connection, parts[0])
        return self._sent_by(connection, connection._socket.sendmsg, parts, ())

    async def send_rest(self, connection: SocketOwner, data: bytes | memoryview, done: int) -> None:
        """Send what follows the first ``done`` bytes, which the kernel has taken: from then on there is no way back."""
        high = connection._marks.send_high
        self.is_busy = True
        try:
            if not data:
                await trio.lowlevel.checkpoint()
            elif not done:
                await connection._pass(high)
            while True:
                self.check(connection, own_half=done > 0)
                self.check_not_eof()
                if done or self.size < high:  # or sends that are cancelled over and over would fill the memory
                    self.is_incomplete = True  # should what follows be interrupted
                    done = self._put(connection, data, done)
                    self.is_incomplete = 0 < done < len(data)
                    if done == len(data) and self.size < high:
                        return
                if await self.park(connection, high):
                    self.finish_late(connection, (data,) if done else (), done)
        finally:
            self.is_busy = False

    def finish_late(self, connection: SocketOwner, parts: Collection[bytes | memoryview], done: int) -> None:
        """The deadline has passed.  The connection stays good: the rest of a send that was begun is queued.

        The rest is ``parts``, less the first ``done`` bytes.
        """
        if not connection._is_closed and self.error is None:
            for part in parts:
                if done < len(part):
                    self.enqueue(connection, bytes(part[done:]))
                done = 0
            if parts:
                self.is_incomplete = False
            raise trio.TooSlowError("the connection's write deadline has passed")

    def check(self, connection: SocketOwner, *, own_half: bool = False) -> None:
        """Raise why nothing can be sent any more.  ``own_half``: the caller has sent a part itself, and goes on."""
        if connection._is_closed:
            raise closed_error(connection)
        if self.error is not None:
            raise broken_by(kept(self.error))
        if self.is_incomplete and not own_half:  # what follows half of something would be taken for its other half
            raise broken_by(OSError(errno.ECANCELED, "a send was cancelled when a part of its data had been sent"))

    def check_not_eof(self) -> None:
        if self.is_eof:
            raise trio.ClosedResourceError("send_eof() was called on this connection")

    def _put(self, connection: SocketOwner, data: bytes | memoryview, done: int) -> int:
        """Give the kernel what it takes of the rest of ``data``, and queue as much as the mark allows of what it does not.

        A bytes object cannot change, so all of it is queued by reference.  Returns how much is done in all.
        """
        if self.outbound is None and done < len(data):
            with memoryview(data) as view, view[done:] as rest:
                done += self.write(connection, rest)
        return self._queue(connection, data, done)

    def _queue(self, connection: SocketOwner, data: bytes | memoryview, done: int) -> int:
        """Queue as much of what follows the first ``done`` bytes as the mark allows; returns how much is done in all."""
        left = len(data) - done
        if not left:
            return done
        if isinstance(data, bytes):
            self.enqueue(connection, data, done)
        else:
            if left > SMALL:
                left = min(left, max(connection._marks.send_high - self.size, 0))
            if not left:
                return done
            self.enqueue(connection, bytes(data[done : done + left]))
        connection._unwaited += left
        return done + left

    def enqueue(self, connection: SocketOwner, data: bytes, start: int = 0) -> None:
        """Leave ``data``, from ``start`` on, to the writer."""
        outbound = self.outbound or Outbound()
        outbound.add(data, start)
        self._start_writer(connection)
        self.outbound = outbound

    def _start_writer(self, connection: SocketOwner) -> None:
        if not self.is_writing:
            trio.lowlevel.spawn_system_task(self._drain, connection, name="gain_trio writer")
            self.is_writing = True

    def write(self, connection: SocketOwner, data: bytes | memoryview) -> int:
        """How much the kernel takes."""
        return self._sent_by(connection, connection._socket.send, data)

    @staticmethod
    def _sent_by(connection: SocketOwner, send: Callable[..., int], *what: object) -> int:
        """How many bytes a method of the socket sends; 0 if there is no room."""
        try:
            sent = send(*what, NO_SIGNAL)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            connection._send_failed(error)
            raise broken_by(error) from error
        connection._has_sent(sent)
        return sent

    async def wait_for_room(self, connection: SocketOwner) -> None:
        """See :meth:`Connection._wait_for_room`."""
        if connection._is_closed or self.is_busy or current_thread() != connection._run.thread:
            connection._refuse("sending")
        self.is_busy = True
        try:
            await self.until_room(connection)
        finally:
            self.is_busy = False

    async def until_room(self, connection: SocketOwner) -> None:
        """:meth:`wait_for_room` for a call that holds the sending side already.

        The writer waits for it: what ends a wait for the descriptor need not be meant for this call, and a deadline is.
        """
        try:
            self.room_wanted = True
            self._start_writer(connection)
            while True:
                self.check(connection)
                if not self.room_wanted:
                    return
                if await self.park(connection, 0) and self.room_wanted:
                    self.finish_late(connection, (), 0)
        finally:
            self.room_wanted = False

    async def _drain(self, connection: SocketOwner) -> None:
        """The writer.  Nothing but the end of the run may end it before the queue is empty, and no error may leave it."""
        try:
            while self.outbound is not None or self.room_wanted:
                # Calls in progress are refused before the queue is flushed.  Had the socket been closed, it would be empty.
                with contextlib.suppress(trio.ClosedResourceError):
                    await trio.lowlevel.wait_writable(connection._descriptor)
                    self.write_queued(connection)
                    if self.room_wanted:
                        self.room_wanted = False
                        self.wake()
        except trio.BrokenResourceError:
            return  # write() has kept it for the sender
        except trio.BusyResourceError:
            connection._send_failed(OSError(errno.EBUSY, "another task waits for this connection's descriptor"))
        except OSError as error:
            connection._send_failed(error)
        finally:
            self.is_writing = False

    def write_queued(self, connection: SocketOwner) -> None:
        """Send what is queued until the kernel takes no more."""
        while (outbound := self.outbound) is not None:
            head = outbound.head()
            length = sum(map(len, head))
            sent = self._write_parts(connection, head)
            for view in head:
                view.release()
            outbound.remove(sent)
            if not outbound.size:
                self.outbound = None
            if self._task is not None and outbound.size < self._wake_below:
                self.wake()
            if sent < length:
                return

    def fail(self, error: OSError) -> None:
        """Keep the error for the calls that send; what is queued is dropped."""
        self.error = kept(error)
        self.outbound = None
        self.wake()

    async def park(self, connection: SocketOwner, mark: int) -> bool:
        """Wait until less than ``mark`` is outbound, or something happened that the caller finds out.

        Returns whether it was woken because the deadline has passed, and nothing else has happened.
        """
        if self.deadline < self.looked_at and not connection._is_closed:
            self.watch_deadline(connection)
        self._is_late = False

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._task = trio.lowlevel.current_task()
        self._wake_below = mark
        await trio.lowlevel.wait_task_rescheduled(abort)
        connection._has_waited()
        return self._is_late and self.size >= mark

    def watch_deadline(self, connection: SocketOwner) -> None:
        """The call in progress has a deadline that the keeper does not know of."""
        connection._watch(True, self.deadline)
        self.looked_at = self.deadline

    def deadline_passed(self, connection: SocketOwner, now: float) -> float:
        self.looked_at = math.inf
        if self._task is not None and not connection._is_closed:
            if self.deadline > now:
                self.looked_at = self.deadline
            else:
                self._is_late = True
                self.wake()
        return self.looked_at

    def wake(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task, outcome.Value(None))

    async def wait_below(self, connection: SocketOwner, mark: int) -> None:
        if connection._is_closed or self.is_busy or current_thread() != connection._run.thread:
            connection._refuse("sending")
        self.is_busy = True
        try:
            await connection._pass(connection._marks.send_high)
            while True:
                self.check(connection)
                if self.size < mark:
                    return
                if await self.park(connection, mark):
                    self.finish_late(connection, (), 0)
        finally:
            self.is_busy = False

    async def flush_closing(self, connection: SocketOwner) -> None:
        while self.outbound is not None:
            await self.park(connection, 1)
        if self.error is not None:
            raise broken_by(kept(self.error))

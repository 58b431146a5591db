"""The sending half of a connection over a socket; the essay is in ``_socket_connection.py``."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import outcome
import trio

from gain_trio._io_manager import broken_by
from gain_trio._transports._addresses import NO_SIGNAL
from gain_trio._transports._connections import (
    SMALL,
    Connection,
    Marks,
    Message,
    Outbound,
    ProxyHeader,
    Timing,
    checked_deadline,
    message_of,
)
from gain_trio._transports._patience import DEFAULT_CLOSE_TIMEOUT, unacknowledged

from ._socket_base import closed_error, current_run, current_thread, kept

checkpoint_if_cancelled = trio.lowlevel.checkpoint_if_cancelled

if TYPE_CHECKING:
    from typing_extensions import Buffer


class SocketSending(Connection):
    """A socket in a run, what both directions share, and the sending half: sends, and a writer that finishes them."""

    __slots__ = (
        "__weakref__",
        "_active_at",
        "_between",
        "_close_timeout",
        "_descriptor",
        "_draining",
        "_drains",
        "_hurry",
        "_is_closed",
        "_is_send_eof",
        "_is_send_torn",
        "_is_timed",
        "_late_sending",
        "_local_address",
        "_marks",
        "_outbound",
        "_prelude",
        "_proxy_header",
        "_read_deadline",
        "_read_looked_at",
        "_remote_address",
        "_room_wanted",
        "_run",
        "_send_error",
        "_sender",
        "_sending",
        "_socket",
        "_timing",
        "_transfer",
        "_unwaited",
        "_wake_below",
        "_write_deadline",
        "_write_looked_at",
        "_writing",
        "bytes_received",
        "bytes_sent",
        "context",
    )

    context: Any
    bytes_received: int
    bytes_sent: int
    _is_closed: bool
    _active_at: float
    _is_send_eof: bool
    _is_send_torn: bool

    def __init__(self, sock: socket.socket, marks: Marks) -> None:
        self._run = current_run()
        self._marks = marks
        self._socket = sock
        self._descriptor = sock.fileno()  # -1 once it has been closed; one that is_closed may still be flushed
        self._is_closed = False
        self._close_timeout = DEFAULT_CLOSE_TIMEOUT
        self._timing: Timing | None = None
        self._is_timed = False
        self._active_at = 0.0
        self._read_deadline = self._write_deadline = math.inf
        self._read_looked_at = self._write_looked_at = math.inf  # when the keeper of deadlines comes
        self._unwaited = 0  # bytes moved in either direction since a task of this connection last waited
        self._local_address: Any = None
        self._remote_address: Any = None
        self._proxy_header: ProxyHeader | None = None
        self._transfer: trio.CancelScope | None = None
        self._draining: trio.Event | None = None
        self._between = self._drains = False
        self._hurry = None
        self._prelude = 0
        self.bytes_received = self.bytes_sent = 0
        self.context = None
        self._outbound: Outbound | None = None  # None when nothing is queued
        self._is_send_eof = False
        self._is_send_torn = False  # also while a send waits with a part of its data sent
        self._send_error: OSError | None = None
        self._sending = False  # a call of this direction is in progress
        self._sender: trio.lowlevel.Task | None = None  # its task, while it waits for less than this to be outbound:
        self._wake_below = 0
        self._late_sending = False  # it was woken because its deadline has passed
        self._writing = False  # the writer runs
        self._room_wanted = False  # a call waits for it to find that the kernel would take something

    def __repr__(self) -> str:
        return self._described("closed" if self._is_closed else f"fd={self._descriptor}")

    def _refuse(self, verb: str) -> NoReturn:
        """A call that cannot even begin."""
        self._check_thread()
        if self._is_closed:
            raise closed_error()
        raise trio.BusyResourceError(f"another task is already {verb} on this connection")

    def _check_thread(self) -> None:
        if current_thread() == self._run.thread or self._descriptor < 0:
            return
        if not self._run.thread:
            raise RuntimeError("this run belongs to the parent process: after a fork, only exec or os._exit can follow")
        raise RuntimeError("this connection belongs to a run in another thread; use trio.from_thread.run()")

    def _timed(self, wanted: bool, /) -> None:
        """See :meth:`Connection._timed`."""
        self._is_timed = wanted
        self._active_at = trio.current_time()

    def _has_waited(self) -> None:
        """Other tasks have had a turn."""
        self._unwaited = 0
        self._run.turn.begin()

    def _unacknowledged(self) -> int | None:
        """See :meth:`Connection._unacknowledged`."""
        return unacknowledged(self._descriptor)

    def _has_sent(self, count: int) -> None:
        """The kernel has taken so many bytes."""
        self.bytes_sent += count
        self._unwaited += count
        if self._is_timed:
            self._active_at = trio.current_time()

    async def _pass(self, mark: int) -> None:
        """A cancellation point, before anything is moved.

        It is a schedule point, too, after much was moved without one, or for long.
        """
        if self._unwaited < mark and not self._run.turn.is_over():
            await trio.lowlevel.checkpoint_if_cancelled()
            return
        await self._yield()

    async def _yield(self) -> None:
        await trio.lowlevel.checkpoint()
        self._has_waited()
        if self._is_closed:
            raise closed_error()

    # --- sending ---

    async def send(self, data: Buffer | Sequence[Buffer], /) -> None:
        """See :meth:`Connection.send`."""
        if type(data) is not bytes:
            if isinstance(data, (list, tuple)):
                await self._send_parts(data)
            else:
                await self._send_buffer(data)  # type: ignore[arg-type]  # what is no buffer is refused there
            return
        if self._is_closed or self._sending or current_thread() != self._run.thread:
            self._refuse("sending")
        sent = 0
        if data and self._outbound is None:
            if self._unwaited < self._marks.send_high and not self._run.turn.is_over():
                await checkpoint_if_cancelled()
            else:
                await self._take_turn()
            self._check_sending()
            self._check_not_eof()
            sent = self._write(data)
            if sent == len(data):
                return
        await self._send_rest(data, sent)

    async def _take_turn(self) -> None:
        """Much was moved without one, or for long."""
        self._sending = True
        try:
            await self._yield()
        finally:
            self._sending = False

    async def _send_buffer(self, data: Buffer) -> None:
        with memoryview(data) as view:
            if not view.c_contiguous:
                raise BufferError("send() needs a buffer in one piece")
            with view.cast("B") as flat:
                if self._is_closed or self._sending or current_thread() != self._run.thread:
                    self._refuse("sending")
                await self._send_rest(flat, 0)

    async def _send_parts(self, data: Sequence[Buffer]) -> None:
        with message_of(data) as message:
            if self._is_closed or self._sending or current_thread() != self._run.thread:
                self._refuse("sending")
            await self._send_message(message)

    async def _send_message(self, message: Message) -> None:
        """As :meth:`_send_rest`, of a message in several parts."""
        high = self._marks.send_high
        begun = False
        self._sending = True
        try:
            if message.parts:
                await self._pass(high)
            else:
                await trio.lowlevel.checkpoint()
            while True:
                self._check_sending(own_half=begun)
                self._check_not_eof()
                if begun or self.outbound_buffered < high:
                    self._is_send_torn = True  # should what follows be interrupted
                    begun |= self._put_message(message)
                    self._is_send_torn = begun and bool(message.parts)
                    if not message.parts and self.outbound_buffered < high:
                        return
                if await self._park(high):
                    self._finish_late(message.parts if begun else (), message.done)
        finally:
            self._sending = False

    def _put_message(self, message: Message) -> bool:
        """Send of it what the kernel takes, queue of the rest what the mark allows; whether any of it is done now."""
        begun = False
        while self._outbound is None and message.parts:
            with contextlib.ExitStack() as stack:
                head = [stack.enter_context(part) for part in message.head()]
                length = sum(map(len, head))
                sent = self._write_parts(head)
            begun |= sent > 0
            message.remove(sent)
            if sent < length:
                break
        while message.parts:
            part = message.parts[0]
            done = self._queue(part, message.done)
            begun |= done > message.done
            message.remove(done - message.done)
            if done < len(part):
                break
        return begun

    def _write_parts(self, parts: Sequence[memoryview]) -> int:
        """How much the kernel takes of all of them together."""
        if len(parts) == 1 or not hasattr(self._socket, "sendmsg"):  # Windows has none
            return self._write(parts[0])
        try:
            sent = self._socket.sendmsg(parts, (), NO_SIGNAL)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            self._send_failed(error)
            raise broken_by(error) from error
        self._has_sent(sent)
        return sent

    async def _send_rest(self, data: bytes | memoryview, done: int) -> None:
        """Send what follows the first ``done`` bytes, which the kernel has taken: from then on there is no way back."""
        high = self._marks.send_high
        self._sending = True
        try:
            if not data:
                await trio.lowlevel.checkpoint()
            elif not done:
                await self._pass(high)
            while True:
                self._check_sending(own_half=done > 0)
                self._check_not_eof()
                if (
                    done or self.outbound_buffered < high
                ):  # or sends that are cancelled over and over would fill the memory
                    self._is_send_torn = True  # should what follows be interrupted
                    done = self._put(data, done)
                    self._is_send_torn = 0 < done < len(data)
                    if done == len(data) and self.outbound_buffered < high:
                        return
                if await self._park(high):
                    self._finish_late((data,) if done else (), done)
        finally:
            self._sending = False

    def _finish_late(self, parts: Collection[bytes | memoryview], done: int) -> None:
        """The deadline has passed.  The connection stays good: the rest of a send that was begun is queued.

        The rest is ``parts``, less the first ``done`` bytes.
        """
        if not self._is_closed and self._send_error is None:
            for part in parts:
                if done < len(part):
                    self._enqueue(bytes(part[done:]))
                done = 0
            if parts:
                self._is_send_torn = False
            raise trio.TooSlowError("the connection's write deadline has passed")

    def _check_sending(self, *, own_half: bool = False) -> None:
        """Raise why nothing can be sent any more.  ``own_half``: the caller has sent a part itself, and goes on."""
        if self._is_closed:
            raise closed_error()
        if self._send_error is not None:
            raise broken_by(kept(self._send_error))
        if self._is_send_torn and not own_half:  # what follows half of something would be taken for its other half
            raise broken_by(OSError(errno.ECANCELED, "a send was cancelled when a part of its data had been sent"))

    def _check_not_eof(self) -> None:
        if self._is_send_eof:
            raise trio.ClosedResourceError("send_eof() was called on this connection")

    def _put(self, data: bytes | memoryview, done: int) -> int:
        """Give the kernel what it takes of the rest of ``data``, and queue as much as the mark allows of what it does not.

        All of it when it is bytes, which nobody can change: they are referenced.  Returns how much is done in all.
        """
        if self._outbound is None and done < len(data):
            with memoryview(data) as view, view[done:] as rest:
                done += self._write(rest)
        return self._queue(data, done)

    def _queue(self, data: bytes | memoryview, done: int) -> int:
        """Queue as much of what follows the first ``done`` bytes as the mark allows; returns how much is done in all."""
        left = len(data) - done
        if not left:
            return done
        if isinstance(data, bytes):
            self._enqueue(data, done)
        else:
            if left > SMALL:
                left = min(left, max(self._marks.send_high - self.outbound_buffered, 0))
            if not left:
                return done
            self._enqueue(bytes(data[done : done + left]))
        self._unwaited += left
        return done + left

    def _enqueue(self, data: bytes, start: int = 0) -> None:
        """Leave ``data``, from ``start`` on, to the writer."""
        outbound = self._outbound or Outbound()
        outbound.add(data, start)
        self._start_writer()
        self._outbound = outbound

    def _start_writer(self) -> None:
        if not self._writing:
            trio.lowlevel.spawn_system_task(self._drain, name="gain_trio writer")
            self._writing = True

    def _write(self, data: bytes | memoryview) -> int:
        """How much the kernel takes."""
        try:
            sent = self._socket.send(data, NO_SIGNAL)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            self._send_failed(error)
            raise broken_by(error) from error
        self._has_sent(sent)
        return sent

    def _hold_sends(self, held: bool, /) -> None:
        self._sending = held

    def _tear_sends(self) -> None:
        self._is_send_torn = True

    def _fail_sends(self, number: int, /) -> int:
        if self._send_error is None:
            self._send_failed(OSError(number, os.strerror(number)))
        assert self._send_error is not None
        return self._send_error.errno or number

    async def _wait_for_room(self) -> None:
        """See :meth:`Connection._wait_for_room`."""
        if self._is_closed or self._sending or current_thread() != self._run.thread:
            self._refuse("sending")
        self._sending = True
        try:
            await self._until_room()
        finally:
            self._sending = False

    async def _until_room(self) -> None:
        """:meth:`_wait_for_room` for a call that holds the sending side already.

        The writer waits for it: what ends a wait for the descriptor need not be meant for this call, and a deadline is.
        """
        try:
            self._room_wanted = True
            self._start_writer()
            while True:
                self._check_sending()
                if not self._room_wanted:
                    return
                if await self._park(0) and self._room_wanted:
                    self._finish_late((), 0)
        finally:
            self._room_wanted = False

    async def _drain(self) -> None:
        """The writer.  Nothing but the end of the run may end it before the queue is empty, and no error may leave it."""
        try:
            while self._outbound is not None or self._room_wanted:
                # Calls in progress are refused before the queue is flushed.  Had the socket been closed, it would be empty.
                with contextlib.suppress(trio.ClosedResourceError):
                    await trio.lowlevel.wait_writable(self._descriptor)
                    self._write_queued()
                    if self._room_wanted:
                        self._room_wanted = False
                        self._wake_sender()
        except trio.BrokenResourceError:
            return  # _write() has kept it for the sender
        except trio.BusyResourceError:
            self._send_failed(OSError(errno.EBUSY, "somebody else waits for this connection's descriptor"))
        except OSError as error:
            self._send_failed(error)
        finally:
            self._writing = False

    def _write_queued(self) -> None:
        """Send what is queued until the kernel takes no more."""
        while (outbound := self._outbound) is not None:
            head = outbound.head()
            length = sum(map(len, head))
            sent = self._write_parts(head)
            for view in head:
                view.release()
            outbound.remove(sent)
            if not outbound.size:
                self._outbound = None
            if self._sender is not None and outbound.size < self._wake_below:
                self._wake_sender()
            if sent < length:
                return

    def _send_failed(self, error: OSError) -> None:
        self._send_error = kept(error)
        self._outbound = None
        self._wake_sender()

    async def _park(self, mark: int) -> bool:
        """Wait until less than ``mark`` is outbound, or something happened that the caller finds out.

        Returns whether it was woken because the deadline has passed, and nothing else has happened.
        """
        if self._write_deadline < self._write_looked_at and not self._is_closed:
            self._watch_sending()
        self._late_sending = False

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._sender = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._sender = trio.lowlevel.current_task()
        self._wake_below = mark
        await trio.lowlevel.wait_task_rescheduled(abort)
        self._has_waited()
        return self._late_sending and self.outbound_buffered >= mark

    def _watch_sending(self) -> None:
        """The call in progress has a deadline that the keeper does not know of."""
        self._watch(True, self._write_deadline)
        self._write_looked_at = self._write_deadline

    @property
    def write_deadline(self) -> float:
        """See :attr:`Connection.write_deadline`."""
        return self._write_deadline

    @write_deadline.setter
    def write_deadline(self, deadline: float) -> None:
        self._write_deadline = checked_deadline(deadline)
        if self._sender is not None and not self._is_closed and self._write_deadline < self._write_looked_at:
            self._watch_sending()

    def _write_deadline_passed(self, now: float) -> float:
        self._write_looked_at = math.inf
        if self._sender is not None and not self._is_closed:
            if self._write_deadline > now:
                self._write_looked_at = self._write_deadline
            else:
                self._late_sending = True
                self._wake_sender()
        return self._write_looked_at

    def _wake_sender(self) -> None:
        task, self._sender = self._sender, None
        if task is not None:
            trio.lowlevel.reschedule(task, outcome.Value(None))

    @property
    def outbound_buffered(self) -> int:
        """See :attr:`Connection.outbound_buffered`."""
        return 0 if self._outbound is None else self._outbound.size

    def _refuse_sends(self) -> None:
        self._check_thread()
        if self._is_closed:
            raise closed_error()
        self._is_send_eof = True

    async def flush(self) -> None:
        """See :meth:`Connection.flush`."""
        await self._wait_below(1)

    async def _wait_writable(self) -> None:
        await self._wait_below(self._marks.send_high)

    async def _wait_below(self, mark: int) -> None:
        if self._is_closed or self._sending or current_thread() != self._run.thread:
            self._refuse("sending")
        self._sending = True
        try:
            await self._pass(self._marks.send_high)
            while True:
                self._check_sending()
                if self.outbound_buffered < mark:
                    return
                if await self._park(mark):
                    self._finish_late((), 0)
        finally:
            self._sending = False

    async def _close_flush(self) -> None:
        while self._outbound is not None:
            await self._park(1)
        if self._send_error is not None:
            raise broken_by(kept(self._send_error))

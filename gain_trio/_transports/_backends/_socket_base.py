"""What both directions of a connection over a socket share: its run, its socket, and whose turn it is."""

from __future__ import annotations

import math
import os
import sys
import threading
import weakref
from operator import index
from typing import TYPE_CHECKING, Any, NoReturn, final

import trio

from gain_trio._transports._connections import Connection, ProxyHeader, Timing
from gain_trio._transports._patience import DEFAULT_CLOSE_TIMEOUT, unacknowledged
from gain_trio._transports._turns import Turn

if TYPE_CHECKING:
    import socket

    from gain_trio._transports._connections import Marks

current_thread = threading.get_ident


def closed_error() -> trio.ClosedResourceError:
    """What a call on a closed connection raises."""
    return trio.ClosedResourceError("this connection was closed")


def kept(error: OSError) -> OSError:
    """The same error without its traceback, to be raised at any time and any number of times."""
    return OSError(error.errno, error.strerror)


def as_size(number: int) -> int:
    """A number of bytes, as the C side of Python sees it."""
    number = index(number)
    if number > sys.maxsize:
        raise OverflowError(f"{number} is more bytes than there can be")
    return number


@final
class Run:
    """What the connections of a run share."""

    def __init__(self) -> None:
        self.thread = current_thread()  # 0, which no thread is, in the child of a fork
        self.connections: weakref.WeakSet[Connection] = weakref.WeakSet()
        self.turn = Turn()
        _runs.add(self)

    async def close_at_the_end(self) -> None:
        """A system task: Trio cancels it when the main task has ended."""
        try:
            await trio.sleep_forever()
        finally:
            for connection in list(self.connections):
                connection._close_now()


_runs: weakref.WeakSet[Run] = weakref.WeakSet()


def _leave_to_the_parent() -> None:
    for run in list(_runs):
        run.thread = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_parent)

_current_run: trio.lowlevel.RunVar[Run] = trio.lowlevel.RunVar("gain_trio connections over sockets")


def current_run() -> Run:
    """The one of the current task's run."""
    try:
        return _current_run.get()
    except LookupError:
        run = Run()
        trio.lowlevel.spawn_system_task(run.close_at_the_end, name="gain_trio closing at the end of the run")
        _current_run.set(run)
        return run


class SocketBase(Connection):
    """A socket, which must be non-blocking, in a run."""

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
        "_is_timed",
        "_local_address",
        "_marks",
        "_prelude",
        "_proxy_header",
        "_read_deadline",
        "_read_looked_at",
        "_remote_address",
        "_run",
        "_socket",
        "_timing",
        "_transfer",
        "_unwaited",
        "_write_deadline",
        "_write_looked_at",
        "bytes_received",
        "bytes_sent",
        "context",
    )

    context: Any
    bytes_received: int
    bytes_sent: int
    _is_closed: bool
    _active_at: float

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

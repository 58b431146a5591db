"""What both directions of a connection over a socket share: its run, its errors, and their view of the connection."""

from __future__ import annotations

import os
import socket
import sys
import threading
import weakref
from operator import index
from typing import Final, NoReturn, Protocol, final

import trio

from gain_trio._transports._connections import Connection, Marks
from gain_trio._transports._time_slices import TimeSlice

current_thread = threading.get_ident
DETACHED: Final = "this connection was detached: use what detach() or start_tls() has returned"
"""As ``_ffi/fastpath/stream_calls.c`` says."""


class Detachable(Protocol):
    """A connection that may have let go of its socket."""

    @property
    def _was_detached(self) -> bool:
        """Whether the socket has another owner now."""


def closed_error(connection: Detachable) -> trio.ClosedResourceError:
    """What a call on a closed connection raises."""
    if connection._was_detached:
        return trio.ClosedResourceError(DETACHED)
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
class SocketRun:
    """What the connections of a run share."""

    def __init__(self) -> None:
        self.thread = current_thread()  # 0, which no thread is, in the child of a fork
        self.connections: weakref.WeakSet[Connection] = weakref.WeakSet()
        self.time_slice = TimeSlice()
        _runs.add(self)

    async def close_at_the_end(self) -> None:
        """A system task: Trio cancels it when the main task has ended."""
        try:
            await trio.sleep_forever()
        finally:
            for connection in list(self.connections):
                connection._close_now()


_runs: weakref.WeakSet[SocketRun] = weakref.WeakSet()


def _leave_to_the_parent() -> None:
    for run in list(_runs):
        run.thread = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_parent)

_current_run: trio.lowlevel.RunVar[SocketRun] = trio.lowlevel.RunVar("gain_trio connections over sockets")


def current_socket_run() -> SocketRun:
    """The one of the current task's run."""
    try:
        return _current_run.get()
    except LookupError:
        run = SocketRun()
        trio.lowlevel.spawn_system_task(run.close_at_the_end, name="gain_trio closing at the end of the run")
        _current_run.set(run)
        return run


class SocketOwner(Detachable, Protocol):
    """A connection over a socket, as the parts that send and receive for it see it: each call of a part names it.

    The part holds no reference to the whole, so that a connection that the program drops is closed at once.
    """

    _unwaited: int
    """Bytes moved in either direction since a task of this connection last waited."""
    _active_at: float
    """When a byte was moved last, on Trio's clock; kept while:"""
    bytes_received: int
    """See :attr:`Connection.bytes_received`."""

    @property
    def _is_timed(self) -> bool:
        """Whether the connection has an idle timeout."""

    @property
    def _is_closed(self) -> bool:
        """Whether calls are refused."""

    @property
    def _descriptor(self) -> int:
        """The socket's; -1 when it has been closed, which may be later than the calls are refused."""

    @property
    def _socket(self) -> socket.socket:
        """The socket itself."""

    @property
    def _run(self) -> SocketRun:
        """The run that the connection belongs to."""

    @property
    def _marks(self) -> Marks:
        """The bounds of the queues."""

    @property
    def bytes_sent(self) -> int:
        """See :attr:`Connection.bytes_sent`."""

    def _refuse(self, verb: str) -> NoReturn:
        """Raise why a call cannot even begin."""

    def _check_thread(self) -> None:
        """Raise a RuntimeError in another thread than the run's, or in the child of a fork."""

    def _watch(self, sending: bool, when: float, /) -> None:
        """See :meth:`Connection._watch`."""

    def _has_waited(self) -> None:
        """Note that other tasks have had a turn."""

    async def _pass(self, mark: int) -> None:
        """A cancellation point, before anything is moved; also a schedule point if ``mark`` bytes were moved without one."""

    async def _yield(self) -> None:
        """A schedule point, after which the connection may be closed."""

    def _has_sent(self, count: int, /) -> None:
        """Count ``count`` bytes that the kernel has accepted."""

    def _send_failed(self, error: OSError) -> None:
        """Keep the error for the calls that send, and wake the tasks that it is of interest to."""

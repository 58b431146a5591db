"""What both directions of a connection over a socket share: its run and its errors."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from operator import index
from typing import Final, final

import trio

from gain_trio._transports._connections import Connection
from gain_trio._transports._time_slices import TimeSlice

current_thread = threading.get_ident
DETACHED: Final = "this connection was detached: use what detach() or start_tls() has returned"
"""As ``_ffi/fastpath/stream_calls.c`` says."""


def closed_error(connection: Connection) -> trio.ClosedResourceError:
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

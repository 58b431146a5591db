"""The end of a process whose server was cancelled and does not end: threads cannot be stopped.

A task that waits in :func:`trio.to_thread.run_sync` is cancelled when its thread has returned, and not before; so is a
callback in a thread (``async_handler``).  An operator who has sent a second SIGTERM wants the process to end all the same.
So from then on there is a limit: what is left is logged by name, and the process ends, without ``finally`` or ``atexit``.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final, NoReturn

import trio

from gain_trio._transports import shown

from ._time_limits import CUT_SECONDS, HURRIED_SECONDS, LAST_WORDS

LATE: Final = 0.25
"""Seconds after which the run has noticed a deadline so late that its tasks must have their turn first."""
MOST_ROUNDS: Final = 3
"""How often they have it."""
CUT_STATUS: Final = 1
"""Exit status of a process that was ended with something still running."""
MOST_NAMES: Final = 20
"""Names that are logged."""
OWN_TASKS: Final = "gain_trio "
"""What the names of the library's own tasks begin with; they wait for the others."""

logger = logging.getLogger("gain_trio")


async def cut_off(signals: AsyncIterator[int], nursery: trio.Nursery, ignored: tuple[int, ...] = ()) -> NoReturn:
    """Give a server that was cancelled its time to end, and then end the process.

    The server's end cancels this.

    Args:
      signals: each one that comes shortens the time.
      nursery: what is left is below it.
      ignored: signals that do not.
    """
    seconds = CUT_SECONDS
    for _ in range(MOST_ROUNDS):
        with trio.move_on_after(seconds) as scope:
            async for number in signals:
                if number not in ignored:
                    scope.deadline = min(scope.deadline, trio.current_time() + HURRIED_SECONDS)
                    logger.info("%s: what has not ended within a second is cut off", shown(signal.Signals(number).name))
        if trio.current_time() < scope.deadline + LATE:
            break
        seconds = HURRIED_SECONDS  # the run itself was held up, and what waits for it may be done now
    end_process(left_of(nursery, trio.lowlevel.current_task()))


def left_of(nursery: trio.Nursery, own: trio.lowlevel.Task) -> list[str]:
    """What still runs below a nursery, but for one task: by name, with the place where it waits and its threads."""
    parent = nursery.parent_task
    inside = parent.child_nurseries[parent.child_nurseries.index(nursery) :]  # those in its body, too
    leaves = [leaf for each in inside for leaf in _leaves(each, own)]
    threads = [thread.name for thread in threading.enumerate()]
    others = [task for task in leaves if not task.name.startswith(OWN_TASKS)]
    return [_described(task, threads) for task in others or leaves or [parent]]


def _leaves(nursery: trio.Nursery, own: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    """The tasks that do not wait for others."""
    for task in nursery.child_tasks:
        if any(below.child_tasks for below in task.child_nurseries):
            for below in task.child_nurseries:
                yield from _leaves(below, own)
        elif task is not own:
            yield task


def _described(task: trio.lowlevel.Task, threads: list[str]) -> str:
    works = "".join(f" for the thread {name!r}" for name in threads if name.endswith(f" from {task.name}"))
    return f"{task.name}, which waits in {_place(task.coro)}{works}"


def _place(coroutine: Any) -> str:
    """The innermost function that a task waits in, but for Trio's own."""
    place = "a coroutine that cannot be looked into"
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        module = frame.f_globals.get("__name__", "?")
        if not module.startswith("trio."):
            name = getattr(frame.f_code, "co_qualname", frame.f_code.co_name)  # co_qualname: Python 3.11
            place = f"{module}.{name}, line {frame.f_lineno}"
        coroutine = coroutine.cr_await
    return place


def end_process(left: list[str]) -> NoReturn:
    """Log what is left, and end the process with status :data:`CUT_STATUS`."""
    names = "; ".join(left[:MOST_NAMES]) or "a task outside of the server"
    more = f"; and {len(left) - MOST_NAMES} more" if len(left) > MOST_NAMES else ""
    guard = threading.Timer(LAST_WORDS, os._exit, [CUT_STATUS])
    guard.daemon = True
    guard.start()
    logger.error(
        "the server was cancelled and has not ended; this process ends with status %d, and with it what still runs: %s%s",
        CUT_STATUS,
        shown(names, 4000),
        shown(more),
    )
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except (OSError, ValueError):  # what reads it is gone, or it is closed: there is no better place to say so
                continue
    os._exit(CUT_STATUS)

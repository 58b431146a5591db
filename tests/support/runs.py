"""Runs of a test's own, and what can be seen of them."""

from __future__ import annotations

import os
import queue
import traceback
import warnings
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import outcome
import trio

import gain_trio
from gain_trio import UringStatistics
from gain_trio._ring import Completion, Ring
from support.pairs import PATIENCE, until

T = TypeVar("T")


def bounded(async_fn: Callable[[], Awaitable[T]], patience: float = PATIENCE) -> Callable[[], Awaitable[T]]:
    """The same function, failing when it has not ended after a long while."""

    async def in_time() -> T:
        with trio.fail_after(patience):
            return await async_fn()

    return in_time


def ring_run(async_fn: Callable[[], Awaitable[T]], *, in_place: bool | None = None, **options: object) -> T:
    """``gain_trio.run(async_fn)`` on a ring with these options, failing when it has not ended after a long while."""
    ring = gain_trio.RingOptions(**options)  # type: ignore[arg-type]
    return gain_trio.run(bounded(async_fn), ring=ring, resume_in_place=in_place)


def statistics() -> UringStatistics:
    """Of the current run."""
    found: object = trio.lowlevel.current_statistics().io_statistics
    assert isinstance(found, UringStatistics)
    return found


async def until_let_go() -> None:
    """Until the kernel has let go of every connection that was closed.  Over sockets, closing does not return before."""
    found: object = trio.lowlevel.current_statistics().io_statistics
    if isinstance(found, UringStatistics):
        await until(lambda: statistics().connections == 0)


class WaitCounter(trio.abc.Instrument):
    """Counts how often the run has waited for news: a loop that spins does little else."""

    def __init__(self) -> None:
        self.waits = 0

    def before_io_wait(self, _timeout: float) -> None:
        self.waits += 1


def drive(ring: Ring, until: Callable[[], bool]) -> list[Completion]:
    """Enter and reap until the condition holds; all completions meanwhile."""
    completions: list[Completion] = []
    for _ in range(100_000):
        completions += ring.reap()
        if until():
            return completions
        assert ring.enter(PATIENCE), f"nothing arrived; {ring.statistics()}"
    raise AssertionError("the condition did not come to hold")


def host_run(async_fn: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
    """A guest run in a host loop that does what it is told to and nothing else."""
    todo: queue.Queue[Callable[[], object]] = queue.Queue()
    ended: list[outcome.Outcome[Any]] = []
    gain_trio.start_guest_run(async_fn, *args, run_sync_soon_threadsafe=todo.put, done_callback=ended.append, **options)
    while not ended:
        todo.get(timeout=PATIENCE)()
    return ended[0].unwrap()


def in_child(function: Callable[[], object]) -> None:
    """Call it in a forked child, which ends without ceremony; a failure there is one here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 has reservations about fork and threads
        child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0

"""Runs that a test starts itself, and ways to observe them."""

from __future__ import annotations

import contextlib
import os
import queue
import traceback
import warnings
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import outcome
import pytest
import trio

import gain_trio
from gain_trio import UringStatistics
from gain_trio._io_manager import current_manager
from gain_trio._ring import Completion, Ring
from gain_trio._transports import TimeSlice
from support.pairs import PATIENCE, until
from support.sockets import socket_pair

T = TypeVar("T")


def bounded(async_fn: Callable[[], Awaitable[T]], patience: float = PATIENCE) -> Callable[[], Awaitable[T]]:
    """The function with a time limit, so that a run that hangs fails."""

    async def in_time() -> T:
        with trio.fail_after(patience):
            return await async_fn()

    return in_time


def ring_run(async_fn: Callable[[], Awaitable[T]], *, in_place: bool | None = None, **options: object) -> T:
    """Call ``gain_trio.run(async_fn)`` on a ring with these options; a run that hangs fails."""
    ring = gain_trio.RingOptions(**options)  # type: ignore[arg-type]
    return gain_trio.run(bounded(async_fn), ring=ring, resume_in_place=in_place)


ENDLESS = 1 << 60


def set_ring_slices(nanoseconds: int) -> None:
    """From now on the time slices of the current run are this long, if it is on the ring."""
    manager = current_manager("a test")
    if manager is not None:
        manager.proactor.slice_ns = nanoseconds


def make_slices_endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on no time slice of the current run ends, however long a busy machine takes for a step."""
    monkeypatch.setattr(TimeSlice, "_look", lambda _slice: False)
    set_ring_slices(ENDLESS)


def statistics() -> UringStatistics:
    """The statistics of the current run."""
    found: object = trio.lowlevel.current_statistics().io_statistics
    assert isinstance(found, UringStatistics)
    return found


async def wait_released() -> None:
    """Wait until the kernel has ended every closed connection.  Over sockets, closing does not return before."""
    found: object = trio.lowlevel.current_statistics().io_statistics
    if isinstance(found, UringStatistics):
        await until(lambda: statistics().connections == 0)


class WaitCounter(trio.abc.Instrument):
    """A count of the run's waits for events: a loop that spins does little else."""

    def __init__(self) -> None:
        self.waits = 0

    def before_io_wait(self, _timeout: float) -> None:
        self.waits += 1


def drive(ring: Ring, until: Callable[[], bool]) -> list[Completion]:
    """Enter and reap until the condition holds, and return all completions."""
    completions: list[Completion] = []
    for _ in range(100_000):
        completions += ring.reap()
        if until():
            return completions
        assert ring.enter(PATIENCE), f"nothing arrived; {ring.statistics()}"
    raise AssertionError("the condition did not come to hold")


def host_run(async_fn: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
    """Run a guest in a host loop that only calls what Trio schedules."""
    todo: queue.Queue[Callable[[], object]] = queue.Queue()
    ended: list[outcome.Outcome[Any]] = []
    gain_trio.start_guest_run(async_fn, *args, run_sync_soon_threadsafe=todo.put, done_callback=ended.append, **options)
    while not ended:
        todo.get(timeout=PATIENCE)()
    return ended[0].unwrap()


def in_child(function: Callable[[], object]) -> None:
    """Call a function in a forked child, which ends by _exit(2); a failure there is one here."""
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


async def sleep_beside_readers() -> None:
    """Sleep for hours while 50 tasks wait for sockets, and once more without them: for a clock that jumps."""
    with contextlib.ExitStack() as stack:
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                one, _other = stack.enter_context(socket_pair())
                nursery.start_soon(trio.lowlevel.wait_readable, one)
            await trio.sleep(10_000)
            nursery.cancel_scope.cancel()
        await trio.sleep(10_000)

"""gain_trio.run and its relatives: Trio's own, on the ring."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import outcome
import trio

from gain_trio._ring import RingOptions

from . import _seam
from ._manager import UringIOManager

T = TypeVar("T")


class _Swap(trio.abc.Instrument):
    """Puts the manager in its place before the first tick, and is gone then.

    The ring is opened before the run, not by the instrument: Trio logs what an instrument raises and goes on, and a run
    that silently is not on the ring is what nobody must get.
    """

    def __init__(self, ring: RingOptions | None, resume_in_place: bool | None) -> None:
        self.manager = UringIOManager(ring, resume_in_place=resume_in_place)
        self.adopted = False

    def before_run(self) -> None:
        trio.lowlevel.remove_instrument(self)
        _seam.replace_io_manager(self.manager)
        self.adopted = True

    def abandon(self) -> None:
        """The run did not come about."""
        if not self.adopted:
            self.manager.close()


def run(
    async_fn: Callable[..., Awaitable[T]],
    *args: Any,
    clock: trio.abc.Clock | None = None,
    instruments: Sequence[trio.abc.Instrument] = (),
    restrict_keyboard_interrupt_to_checkpoints: bool = False,
    strict_exception_groups: bool = True,
    ring: RingOptions | None = None,
    resume_in_place: bool | None = None,
) -> T:
    """:func:`trio.run` on io_uring: everything Trio can do works, and connections of gain_trio are fast.

    Args:
      async_fn, args, clock, instruments, restrict_keyboard_interrupt_to_checkpoints, strict_exception_groups:
        as for :func:`trio.run`.
      ring: how the ring is set up; None for the defaults.
      resume_in_place: False sends the wake-ups of tasks that wait for a connection through Trio's scheduler, which is
        slower and makes no other difference; None leaves it to the environment variable
        ``GAIN_TRIO_RESUME_IN_PLACE`` (0 or 1; 1 when it is not set).

    Returns:
      What ``async_fn`` returns.

    Raises:
      RingUnavailable: there is no io_uring to be had; the message says why and what would help.
      BaseException: what ``async_fn`` raises, and what :func:`trio.run` raises.
    """
    swap = _Swap(ring, resume_in_place)
    try:
        return trio.run(
            async_fn,
            *args,
            clock=clock,
            instruments=[swap, *instruments],
            restrict_keyboard_interrupt_to_checkpoints=restrict_keyboard_interrupt_to_checkpoints,
            strict_exception_groups=strict_exception_groups,
        )
    finally:
        swap.abandon()


def start_guest_run(
    async_fn: Callable[..., Awaitable[Any]],
    *args: Any,
    run_sync_soon_threadsafe: Callable[[Callable[[], object]], object],
    done_callback: Callable[[outcome.Outcome[Any]], object],
    run_sync_soon_not_threadsafe: Callable[[Callable[[], object]], object] | None = None,
    host_uses_signal_set_wakeup_fd: bool = False,
    clock: trio.abc.Clock | None = None,
    instruments: Sequence[trio.abc.Instrument] = (),
    restrict_keyboard_interrupt_to_checkpoints: bool = False,
    strict_exception_groups: bool = True,
    ring: RingOptions | None = None,
    resume_in_place: bool | None = None,
) -> None:
    """:func:`trio.lowlevel.start_guest_run` on io_uring.  Call it in the thread of the host loop.

    Args:
      ring, resume_in_place: as for :func:`run`.
      The others are those of :func:`trio.lowlevel.start_guest_run`.

    Raises:
      RingUnavailable: there is no io_uring to be had.
    """
    swap = _Swap(ring, resume_in_place)
    try:
        trio.lowlevel.start_guest_run(
            async_fn,
            *args,
            run_sync_soon_threadsafe=run_sync_soon_threadsafe,
            done_callback=done_callback,
            run_sync_soon_not_threadsafe=run_sync_soon_not_threadsafe,
            host_uses_signal_set_wakeup_fd=host_uses_signal_set_wakeup_fd,
            clock=clock,
            instruments=[swap, *instruments],
            restrict_keyboard_interrupt_to_checkpoints=restrict_keyboard_interrupt_to_checkpoints,
            strict_exception_groups=strict_exception_groups,
        )
    except BaseException:
        swap.abandon()
        raise


_replaced: list[type[Any]] = []


def install(ring: RingOptions | None = None, *, resume_in_place: bool | None = None) -> None:
    """Have every later :func:`trio.run` of this process run on io_uring.

    For programs that call ``trio.run`` themselves (servers, test suites); a program of one's own calls
    :func:`gain_trio.run`.  Calling it again changes the options.

    Args:
      ring, resume_in_place: as for :func:`run`.

    Raises:
      RingUnavailable: there is no io_uring to be had; nothing is changed then.
    """
    UringIOManager(ring, resume_in_place=resume_in_place).close()  # now, rather than in the middle of somebody's run
    UringIOManager.default_options = ring if ring is not None else RingOptions()
    UringIOManager.default_resume_in_place = resume_in_place
    if not _replaced:
        _replaced.append(_seam.default_io_manager())
        _seam.set_default_io_manager(UringIOManager)


def uninstall() -> None:
    """Undo :func:`install`: later runs are on Trio's own I/O manager again.  Without an install, does nothing."""
    if _replaced:
        _seam.set_default_io_manager(_replaced.pop())
        UringIOManager.default_options = RingOptions()
        UringIOManager.default_resume_in_place = None

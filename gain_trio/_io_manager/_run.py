"""gain_trio.run and its relatives: Trio's own, on the ring where there is one."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import outcome
import trio

from gain_trio._acceleration import Acceleration, switch
from gain_trio._acceleration import resolve as resolve_acceleration
from gain_trio._kernel import keep_freed_memory
from gain_trio._ring import RingOptions

from . import _seam
from ._backend_choice import Backend, BackendInfo, open_manager, reason_of_run, resolve
from ._install import trios_own
from ._manager import UringIOManager

T = TypeVar("T")

switch.know(UringIOManager)


class _ManagerInstaller(trio.abc.Instrument):
    """Puts the run's I/O manager in its place before the first tick, and is gone then.

    The ring is opened before the run, not by the instrument: Trio logs an instrument's exception and goes on, and the run
    would then not be on the ring, with no error for the caller.
    """

    def __init__(
        self,
        backend: Backend,
        ring: RingOptions | None,
        resume_in_place: bool | None,
        refusal_level: int = logging.WARNING,
    ) -> None:
        keep_freed_memory()
        self._opened: UringIOManager | BackendInfo | None = open_manager(
            resolve(backend), ring, resume_in_place, refusal_level=refusal_level
        )

    def before_run(self) -> None:
        trio.lowlevel.remove_instrument(self)
        opened, self._opened = self._opened, None
        if isinstance(opened, UringIOManager):
            _seam.replace_io_manager(opened)
        elif opened is not None:
            reason_of_run.set(opened)
            if isinstance(
                _seam.current_io_manager(), UringIOManager
            ):  # it is installed, and this run is not to be on it
                _seam.replace_io_manager(trios_own()())

    def abandon(self) -> None:
        """The run did not come about."""
        if isinstance(self._opened, UringIOManager):
            self._opened.close()


def run(
    async_fn: Callable[..., Awaitable[T]],
    *args: Any,
    clock: trio.abc.Clock | None = None,
    instruments: Sequence[trio.abc.Instrument] = (),
    restrict_keyboard_interrupt_to_checkpoints: bool = False,
    strict_exception_groups: bool = True,
    backend: Backend = "auto",
    ring: RingOptions | None = None,
    resume_in_place: bool | None = None,
    accelerate: Acceleration = None,
) -> T:
    """:func:`trio.run` on io_uring, where that is available, with Trio's own hot path in C.

    Everything Trio can do works, and connections of gain_trio are fast.

    Args:
      async_fn, args, clock, instruments, restrict_keyboard_interrupt_to_checkpoints, strict_exception_groups:
        as for :func:`trio.run`.
      backend: ``"io_uring"``: on the ring, or not at all.  ``"trio"``: on Trio's own I/O manager, with gain_trio's
        connections over ordinary sockets.  ``"auto"``: what the environment variable ``GAIN_TRIO_BACKEND`` says, one of
        these words; when it is not set, the ring where it is available, and Trio's own manager elsewhere.  The choice is
        logged to the logger ``gain_trio``: at level info, but as a warning, with cause and cure, where the ring was wanted
        and is not available.
      ring: how the ring is set up; None for the defaults.
      resume_in_place: False sends the wake-ups of tasks that wait for a connection through Trio's scheduler, which is
        slower and makes no other difference; None leaves it to the environment variable
        ``GAIN_TRIO_RESUME_IN_PLACE`` (0 or 1; 1 when it is not set).
      accelerate: which pieces of Trio's own hot path are done in C while this runs, on any backend: True for all, False
        for none, or their names (``sockets``, ``streams``, ``step``, ``checkpoints``, ``scopes``, ``spawning``, ``tick``,
        ``timeouts``, ``nurseries``, ``locks``, ``events``, ``channels``, ``epoll``, ``generators``,
        ``readiness``).
        None, the default, leaves it to the environment variable ``GAIN_TRIO_ACCELERATE``: 0, 1, or names with commas
        between them; when it is not set, all are.  A piece that was not tested with this release of Trio stays Trio's own,
        which is logged once, and which :func:`backend_info` reports.  Trio's functions are the process's: plain runs in
        other threads use the same pieces meanwhile.

    Returns:
      What ``async_fn`` returns.

    Raises:
      RingUnavailable: the ring was demanded and is not available; the message has the reason and the cure.
      ValueError: ``backend``, ``GAIN_TRIO_BACKEND`` or another of this package's variables has an unknown value.
      ValueError: ``accelerate`` or ``GAIN_TRIO_ACCELERATE`` names a piece that there is not.
      TypeError: ``ring`` is not a :class:`RingOptions`.
      BaseException: what ``async_fn`` raises, and what :func:`trio.run` raises.
    """
    setting = resolve_acceleration(accelerate)
    installer = _ManagerInstaller(backend, ring, resume_in_place)
    pieces = switch.put_in(setting.names)
    try:
        return trio.run(
            async_fn,
            *args,
            clock=clock,
            instruments=[installer, *instruments],
            restrict_keyboard_interrupt_to_checkpoints=restrict_keyboard_interrupt_to_checkpoints,
            strict_exception_groups=strict_exception_groups,
        )
    finally:
        switch.take_out(pieces)
        installer.abandon()


def run_worker(
    async_fn: Callable[..., Awaitable[T]],
    *args: Any,
    backend: Backend,
    ring: RingOptions | None,
    resume_in_place: bool | None,
    accelerate: tuple[str, ...],
) -> T:
    """:func:`run` in a worker process.  That it has no ring is for its server to say, which counts those that have none."""
    setting = resolve_acceleration(accelerate)
    installer = _ManagerInstaller(backend, ring, resume_in_place, logging.INFO)
    pieces = switch.put_in(setting.names)
    try:
        return trio.run(async_fn, *args, instruments=[installer])
    finally:
        switch.take_out(pieces)
        installer.abandon()


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
    backend: Backend = "auto",
    ring: RingOptions | None = None,
    resume_in_place: bool | None = None,
    accelerate: Acceleration = None,
) -> None:
    """:func:`trio.lowlevel.start_guest_run` on io_uring.  Call it in the thread of the host loop.

    Args:
      backend, ring, resume_in_place, accelerate: as for :func:`run`.

    The other arguments are those of :func:`trio.lowlevel.start_guest_run`.

    Raises:
      RingUnavailable, ValueError, TypeError: as for :func:`run`.
    """
    setting = resolve_acceleration(accelerate)
    installer = _ManagerInstaller(backend, ring, resume_in_place)
    pieces = switch.put_in(setting.names)

    def done(result: outcome.Outcome[Any]) -> None:
        switch.take_out(pieces)
        done_callback(result)

    try:
        trio.lowlevel.start_guest_run(
            async_fn,
            *args,
            run_sync_soon_threadsafe=run_sync_soon_threadsafe,
            done_callback=done,
            run_sync_soon_not_threadsafe=run_sync_soon_not_threadsafe,
            host_uses_signal_set_wakeup_fd=host_uses_signal_set_wakeup_fd,
            clock=clock,
            instruments=[installer, *instruments],
            restrict_keyboard_interrupt_to_checkpoints=restrict_keyboard_interrupt_to_checkpoints,
            strict_exception_groups=strict_exception_groups,
        )
    except BaseException:
        switch.take_out(pieces)
        installer.abandon()
        raise

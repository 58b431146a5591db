"""The current run's I/O manager, and the backend that a run has or would have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs
import sniffio

from gain_trio._acceleration import describe as describe_acceleration
from gain_trio._acceleration import resolve as resolve_acceleration
from gain_trio._kernel import RingUnavailable
from gain_trio._ring import Ring, RingOptions

from . import _install, _seam
from ._backend_choice import NOT_ON_THE_RING, BackendInfo, logger, reason_of_run, resolve, ring_info, trio_info
from ._manager import UringIOManager, UringStatistics

_PLAIN: Final = "this run was started without gain_trio.run() or gain_trio.install()"


def current_manager(what: str) -> UringIOManager | None:
    """The I/O manager that the connections of this run belong to, or None if they go over sockets.

    Connections go over sockets on Trio's own manager, and on a ring that has only the tier ``poll``.

    Raises:
      RuntimeError: the caller of ``what`` is not a Trio task; the message names what is running instead.
    """
    manager = _seam.current_io_manager()
    if isinstance(manager, UringIOManager):
        return manager if manager.tier == "full" else None
    if manager is not None:
        _tell_of_plain_run()
        return None
    try:
        library = sniffio.current_async_library()
    except sniffio.AsyncLibraryNotFoundError:
        raise RuntimeError(
            f"{what} must be called from a Trio task, and no async library is running here; start one with gain_trio.run()"
        ) from None
    raise RuntimeError(f"{what} must be called from a Trio task, and what is running here is {library}")


def _tell_of_plain_run() -> None:
    """Log once on what a run is that was started without gain_trio, because nothing else has logged it."""
    if reason_of_run.get() is None:
        refusal = _install.refusal()  # install() has logged it
        info = refusal or trio_info(_PLAIN, running=True)
        reason_of_run.set(info)
        if refusal is None:
            logger.info(NOT_ON_THE_RING, info.reason)


def current_ring_statistics() -> Callable[[], tuple[UringStatistics, ...]]:
    """A function that returns the counters of this run's ring, of any tier; an empty tuple if the run has none."""
    manager = _seam.current_io_manager()
    if not isinstance(manager, UringIOManager):
        return tuple
    ring = manager
    return lambda: (ring.statistics(),)


def ring_settings() -> tuple[RingOptions | None, bool | None]:
    """The options of this run's ring, and whether tasks are resumed in place, for another run with the same settings.

    Both are None for a run without a ring.
    """
    manager = _seam.current_io_manager()
    if not isinstance(manager, UringIOManager):
        return None, None
    return manager.ring.options, manager.resume_in_place


def ring_is_demanded() -> bool:
    """Whether this run is on a ring because the program or the operator requires one."""
    manager = _seam.current_io_manager()
    return isinstance(manager, UringIOManager) and manager.is_demanded


def backend_info() -> BackendInfo:
    """The backend of the current run; outside a run, that of :func:`gain_trio.run`, which opens a ring to find out.

    Raises:
      ValueError: outside a run, when ``GAIN_TRIO_BACKEND`` is none of ``auto``, ``io_uring`` and ``trio``, or
        ``GAIN_TRIO_ACCELERATE`` has a name that no piece has.
    """
    running = _seam.current_io_manager() is not None
    setting = None if running else resolve_acceleration()
    return attrs.evolve(_backend_info(), acceleration=describe_acceleration(setting))


def _backend_info() -> BackendInfo:
    manager = _seam.current_io_manager()
    if isinstance(manager, UringIOManager):
        return ring_info(manager.ring, running=True)
    if manager is not None:
        return reason_of_run.get() or _install.refusal() or trio_info(_PLAIN, running=True)
    setting = resolve("auto")
    if setting.backend == "trio":
        return trio_info(f"it is asked for by {setting.origin}", running=False)
    try:
        ring = Ring()
    except RingUnavailable as error:
        return trio_info(str(error), running=False)
    try:
        return ring_info(ring, running=False)
    finally:
        ring.close()

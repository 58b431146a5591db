"""install() and uninstall(): the class that Trio makes its I/O managers of."""

from __future__ import annotations

from typing import Any

import attrs

from gain_trio._acceleration import Acceleration, PieceSetting, switch
from gain_trio._acceleration import describe as describe_acceleration
from gain_trio._acceleration import resolve as resolve_acceleration
from gain_trio._ring import RingOptions

from . import _seam
from ._backend_choice import Backend, BackendInfo, BackendSetting, open_manager, resolve, ring_info
from ._manager import UringIOManager

_replaced: list[type[Any]] = []
_refusals: list[BackendInfo] = []
_pieces: list[tuple[str, ...]] = []
"""What :func:`install` has put in, until it is taken out."""


def install(
    ring: RingOptions | None = None,
    *,
    resume_in_place: bool | None = None,
    backend: Backend = "auto",
    accelerate: Acceleration = None,
) -> BackendInfo:
    """Have every later :func:`trio.run` of this process run on io_uring, and do Trio's own hot path in C.

    For programs that call ``trio.run`` themselves (servers, test suites); a program of one's own calls
    :func:`gain_trio.run`.  Calling it again changes the options.  A ring is opened once to find out whether it is available;
    a later run for which it is not (no descriptor left, say) raises :exc:`RingUnavailable`.

    Args:
      ring, resume_in_place, backend: as for :func:`run`.  Where the ring is not available, or not wanted, Trio's runs are
        on the I/O manager that they would be on without this call; with ``backend="auto"`` that is a warning in the log.
      accelerate: as for :func:`run`; it needs no ring.

    Returns:
      What later runs are on.

    Raises:
      RingUnavailable: with ``backend="io_uring"``, io_uring is not available; nothing is changed then.
      ValueError, TypeError: as for :func:`run`.
    """
    return install_setting(resolve(backend), ring, resume_in_place, accelerate)


def install_setting(
    setting: BackendSetting,
    ring: RingOptions | None = None,
    resume_in_place: bool | None = None,
    accelerate: Acceleration = None,
) -> BackendInfo:
    """:func:`install` for a caller that has resolved the backend by itself, as the pytest plugin does from its option."""
    pieces = resolve_acceleration(accelerate)
    opened = open_manager(setting, ring, resume_in_place)
    _accelerate(pieces)
    if isinstance(opened, BackendInfo):
        _uninstall_manager()
        _refusals.append(opened)
        return attrs.evolve(opened, acceleration=describe_acceleration(pieces))
    info = attrs.evolve(ring_info(opened.ring, running=False), acceleration=describe_acceleration(pieces))
    opened.close()  # a ring of its own for each run; this one was to find out
    _refusals.clear()
    UringIOManager.default_options = ring
    UringIOManager.default_resume_in_place = resume_in_place
    UringIOManager.is_demanded = setting.backend == "io_uring"
    if not _replaced:
        _replaced.append(_seam.default_io_manager())
        _seam.set_default_io_manager(UringIOManager)
    return info


def _accelerate(setting: PieceSetting) -> None:
    """These pieces, in the place of those of an install before."""
    before, _pieces[:] = _pieces[:], [switch.put_in(setting.names)]
    for pieces in before:
        switch.take_out(pieces)


def uninstall() -> None:
    """Undo :func:`install`: later runs are on Trio's own I/O manager again, and on its own code, if no run of this process
    is accelerated.  Without an install, does nothing.
    """
    while _pieces:
        switch.take_out(_pieces.pop())
    _uninstall_manager()


def _uninstall_manager() -> None:
    _refusals.clear()
    if _replaced:
        _seam.set_default_io_manager(_replaced.pop())
        UringIOManager.default_options = None
        UringIOManager.default_resume_in_place = None
        UringIOManager.is_demanded = False


def trios_own() -> type[Any]:
    """What Trio makes its I/O managers of when nothing is installed."""
    return _replaced[-1] if _replaced else _seam.default_io_manager()


def refusal() -> BackendInfo | None:
    """Why an :func:`install` left Trio as it is, or None."""
    return _refusals[-1] if _refusals else None

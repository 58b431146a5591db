"""install() and uninstall(): the class that Trio makes its I/O managers of."""

from __future__ import annotations

from typing import Any

from gain_trio._ring import RingOptions

from . import _seam
from ._choice import Backend, BackendInfo, Wish, open_manager, resolve, ring_info
from ._manager import UringIOManager

_replaced: list[type[Any]] = []
_refusals: list[BackendInfo] = []


def install(
    ring: RingOptions | None = None, *, resume_in_place: bool | None = None, backend: Backend = "auto"
) -> BackendInfo:
    """Have every later :func:`trio.run` of this process run on io_uring.

    For programs that call ``trio.run`` themselves (servers, test suites); a program of one's own calls
    :func:`gain_trio.run`.  Calling it again changes the options.  A ring is opened once to see that it can be had; a later
    run for which it cannot (no descriptor left, say) raises :exc:`RingUnavailable`.

    Args:
      ring, resume_in_place, backend: as for :func:`run`.  Where the ring is not to be had, or not wanted, Trio's runs are
        what they would be without this call; with ``backend="auto"`` that is a warning in the log.

    Returns:
      What later runs are on.

    Raises:
      RingUnavailable: with ``backend="io_uring"``, there is no io_uring to be had; nothing is changed then.
      ValueError, TypeError: as for :func:`run`.
    """
    return install_wish(resolve(backend), ring, resume_in_place)


def install_wish(wish: Wish, ring: RingOptions | None = None, resume_in_place: bool | None = None) -> BackendInfo:
    """:func:`install` for who has asked somebody else than the program and the environment."""
    opened = open_manager(wish, ring, resume_in_place)
    if isinstance(opened, BackendInfo):
        uninstall()
        _refusals.append(opened)
        return opened
    info = ring_info(opened.ring, running=False)
    opened.close()  # a ring of its own for each run; this one was to find out
    _refusals.clear()
    UringIOManager.default_options = ring
    UringIOManager.default_resume_in_place = resume_in_place
    UringIOManager.is_demanded = wish.backend == "io_uring"
    if not _replaced:
        _replaced.append(_seam.default_io_manager())
        _seam.set_default_io_manager(UringIOManager)
    return info


def uninstall() -> None:
    """Undo :func:`install`: later runs are on Trio's own I/O manager again.  Without an install, does nothing."""
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

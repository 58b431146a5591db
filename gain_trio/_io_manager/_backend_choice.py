"""The choice of a run's I/O manager: the ring's, or Trio's own.

The program chooses with ``backend=``, and leaves it to the operator with ``"auto"``, the default: then the environment
variable ``GAIN_TRIO_BACKEND`` decides, and when it is not set, the ring is tried.  A ring that was wanted and is not
available is a warning with the reason and the cure; a ring that was demanded is an error.  The logger ``gain_trio`` logs the
choice in one line, and :func:`gain_trio.backend_info` returns it afterwards.
"""

from __future__ import annotations

import logging
import os
from typing import Final, Literal, TypeAlias, cast, final, get_args

import attrs
import trio

from gain_trio._acceleration import PieceInfo
from gain_trio._kernel import FULL_TIER, Feature, RingUnavailable, Tier, ring_is_possible
from gain_trio._ring import Ring, RingOptions

from ._manager import UringIOManager

Backend: TypeAlias = Literal["auto", "io_uring", "trio"]
"""``"io_uring"``: gain_trio's I/O manager, or an error.  ``"trio"``: Trio's own.  ``"auto"``: what the environment variable
``GAIN_TRIO_BACKEND`` says, or else the ring where it is available."""

_VARIABLE = "GAIN_TRIO_BACKEND"

logger = logging.getLogger("gain_trio")
NOT_ON_THE_RING: Final = "running on Trio's own I/O manager: %s"


@final
@attrs.frozen
class BackendInfo:
    """What a run is on, or would be on."""

    backend: str
    """``"io_uring"``, or ``"trio"`` for Trio's own I/O manager."""
    tier: Tier
    """``"full"``: connections run on the ring.  ``"poll"``: the run waits on a ring, and its connections go over sockets, as
    on Trio's own manager.  ``"none"``: there is no ring."""
    running: bool
    """Whether this is the backend of the run of the caller, and not of one to come."""
    reason: str
    """Why it is this backend and tier, in a sentence."""
    features: tuple[str, ...]
    """Kernel features in use, by name."""
    acceleration: tuple[PieceInfo, ...] = ()
    """The pieces of Trio's own hot path that gain_trio can do in C, and whether it does."""


def feature_names(features: Feature) -> tuple[str, ...]:
    """In the spelling of :attr:`BackendInfo.features` and of ``GAIN_TRIO_UNWANTED``."""
    return tuple(feature.name.lower() for feature in Feature if feature & features and feature.name)


def ring_info(ring: Ring, *, running: bool) -> BackendInfo:
    """The :class:`BackendInfo` of a run on this ring."""
    features = feature_names(ring.features)
    if ring.tier == "full":
        reason = "a ring could be opened, and has all that connections need"
    else:
        lacking = ", ".join(feature_names(FULL_TIER & ~ring.features))
        reason = (
            f"a ring could be opened, but without {lacking}, so connections go over sockets: either the kernel is older "
            "than 6.1, or it was asked to do without (GAIN_TRIO_UNWANTED, RingOptions.unwanted)"
        )
    return BackendInfo("io_uring", ring.tier, running, reason, features)


def trio_info(reason: str, *, running: bool) -> BackendInfo:
    """The :class:`BackendInfo` of a run on Trio's own I/O manager."""
    return BackendInfo("trio", "none", running, reason, ())


@final
@attrs.frozen
class BackendSetting:
    """The backend that was chosen for a run, and by whom."""

    backend: Backend
    origin: str
    """For messages: ``backend='trio'`` or ``GAIN_TRIO_BACKEND=trio``."""


def resolve(backend: str) -> BackendSetting:
    """The setting of the program, or with ``"auto"`` that of the environment.

    Raises:
      ValueError: the program or the environment names something else than ``auto``, ``io_uring`` or ``trio``.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, not {backend!r}")
    origin = f"backend={backend!r}"
    if backend == "auto":
        said = os.environ.get(_VARIABLE)
        if said:  # set to nothing is not set
            if said not in get_args(Backend):
                raise ValueError(f"{_VARIABLE} must be one of {', '.join(get_args(Backend))}, not {said!r}")
            backend, origin = said, f"{_VARIABLE}={said}"
    return BackendSetting(cast("Backend", backend), origin)


def open_manager(
    setting: BackendSetting,
    ring: RingOptions | None,
    resume_in_place: bool | None,
    *,
    refusal_level: int = logging.WARNING,
) -> UringIOManager | BackendInfo:
    """An I/O manager on the ring, or the reason for Trio's own, which is logged.

    Args:
      setting: what is asked for.
      ring, resume_in_place: how.
      refusal_level: of the line about a ring that was wanted and is not available.

    Raises:
      RingUnavailable: the ring is demanded and not available.
      TypeError: ``ring`` is something else than options.
    """
    _check_options(ring)
    level = logging.INFO
    if setting.backend == "trio":
        info = trio_info(f"it is asked for by {setting.origin}", running=True)
    else:
        try:
            manager = UringIOManager(ring, resume_in_place=resume_in_place)
        except RingUnavailable as error:
            if setting.backend == "io_uring":
                raise RingUnavailable(f"{error} (the ring is demanded by {setting.origin})", error.errno) from None
            info = trio_info(str(error), running=True)
            if ring_is_possible:  # elsewhere there is nothing to be done about it, and so nothing to warn of
                level = refusal_level
        else:
            manager.is_demanded = setting.backend == "io_uring"
            _log_ring(manager)
            return manager
    logger.log(level, NOT_ON_THE_RING, info.reason)
    return info


def _check_options(ring: object) -> None:
    """Refuse an object that is not a RingOptions, on any backend, before its fields are read."""
    if ring is not None and not isinstance(ring, RingOptions):
        cure = f"; the backend is chosen by backend={ring!r}" if ring in get_args(Backend) else ""
        raise TypeError(f"ring must be a gain_trio.RingOptions, not {ring!r}{cure}")


def _log_ring(manager: UringIOManager) -> None:
    info = ring_info(manager.ring, running=True)
    try:
        logger.info(
            "running on io_uring, tier %s: %s (kernel features in use: %s)",
            info.tier,
            info.reason,
            ", ".join(info.features) or "none",
        )
    except BaseException:  # what a handler or a filter raises must not leave a ring open
        manager.close()
        raise


reason_of_run: trio.lowlevel.RunVar[BackendInfo | None] = trio.lowlevel.RunVar("gain_trio.backend_info", default=None)
"""The :class:`BackendInfo` of a run on Trio's own I/O manager, once a line of the log has given it."""

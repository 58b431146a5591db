"""What is running here: the current manager, and what a run would be on."""

from __future__ import annotations

from typing import final

import attrs
import sniffio

from gain_trio._kernel import Feature, RingUnavailable
from gain_trio._ring import Ring

from . import _seam
from ._manager import UringIOManager


def current_manager(what: str) -> UringIOManager:
    """The I/O manager of the run that ``what`` is called from.

    Raises:
      RuntimeError: not called from a task of a run on the ring; says what is running instead.
    """
    manager = _seam.current_io_manager()
    if isinstance(manager, UringIOManager):
        return manager
    if manager is not None:
        raise RuntimeError(
            f"{what} was called in a run on Trio's own I/O manager; start the program with gain_trio.run() instead of "
            "trio.run(), or call gain_trio.install() before"
        )
    try:
        library = sniffio.current_async_library()
    except sniffio.AsyncLibraryNotFoundError:
        raise RuntimeError(
            f"{what} must be called from a Trio task, and no async library is running here; start one with gain_trio.run()"
        ) from None
    raise RuntimeError(f"{what} must be called from a Trio task, and what is running here is {library}")


@final
@attrs.frozen
class BackendInfo:
    """What a run is on, or would be on."""

    backend: str
    """``"io_uring"``, or ``"trio"`` for Trio's own I/O manager."""
    running: bool
    """Whether this is about the run that asked, and not about one to come."""
    reason: str
    """Why it is this backend, in a sentence."""
    features: tuple[str, ...]
    """Kernel features in use, by name."""


def _feature_names(features: Feature) -> tuple[str, ...]:
    return tuple(feature.name.lower() for feature in Feature if feature & features and feature.name)


def backend_info() -> BackendInfo:
    """What the current run is on; outside a run, what :func:`gain_trio.run` would be on (a ring is opened to find out)."""
    manager = _seam.current_io_manager()
    if isinstance(manager, UringIOManager):
        features = _feature_names(manager.ring.features)
        return BackendInfo("io_uring", True, "this run's I/O manager is gain_trio's", features)
    if manager is not None:
        return BackendInfo("trio", True, "this run was started without gain_trio.run() or gain_trio.install()", ())
    try:
        ring = Ring()
    except RingUnavailable as error:
        return BackendInfo("trio", False, str(error), ())
    features = _feature_names(ring.features)
    ring.close()
    return BackendInfo("io_uring", False, "a ring could be opened", features)

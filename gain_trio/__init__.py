"""Trio's structured concurrency at the speed of io_uring."""

from ._io_manager import BackendInfo, UringStatistics, backend_info, install, run, start_guest_run, uninstall
from ._kernel import Feature, RingUnavailable
from ._ring import RingOptions

__all__ = [
    "BackendInfo",
    "Feature",
    "RingOptions",
    "RingUnavailable",
    "UringStatistics",
    "backend_info",
    "install",
    "run",
    "start_guest_run",
    "uninstall",
]

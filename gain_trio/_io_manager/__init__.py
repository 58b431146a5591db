"""Floor 3: the I/O manager that takes the place of Trio's own, and the ways to install it."""

from ._current import BackendInfo, backend_info, current_manager
from ._manager import UringIOManager, UringStatistics
from ._run import install, run, start_guest_run, uninstall

__all__ = [
    "BackendInfo",
    "UringIOManager",
    "UringStatistics",
    "backend_info",
    "current_manager",
    "install",
    "run",
    "start_guest_run",
    "uninstall",
]

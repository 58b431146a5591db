"""Floor 3: the I/O manager that takes the place of Trio's own, and the ways to install it."""

from ._choice import Backend, BackendInfo
from ._current import backend_info, current_manager
from ._install import install, uninstall
from ._manager import UringIOManager, UringStatistics
from ._run import run, start_guest_run

__all__ = [
    "Backend",
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

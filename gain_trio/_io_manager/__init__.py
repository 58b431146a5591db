"""Floor 3: the I/O manager that takes the place of Trio's own, and the ways to install it."""

from gain_trio._acceleration import PieceInfo

from ._backend_choice import Backend, BackendInfo, BackendSetting, resolve
from ._current import backend_info, current_manager, current_ring_statistics, ring_is_demanded, ring_settings
from ._install import install, install_setting, uninstall
from ._manager import UringIOManager, UringStatistics, resume_in_place_default
from ._run import run, run_worker, start_guest_run
from ._seam import cancel_status_of, leave_open_scopes, waits_of
from ._stream_errors import broken_by

__all__ = [
    "Backend",
    "BackendInfo",
    "BackendSetting",
    "PieceInfo",
    "UringIOManager",
    "UringStatistics",
    "backend_info",
    "broken_by",
    "cancel_status_of",
    "current_manager",
    "current_ring_statistics",
    "install",
    "install_setting",
    "leave_open_scopes",
    "resolve",
    "resume_in_place_default",
    "ring_is_demanded",
    "ring_settings",
    "run",
    "run_worker",
    "start_guest_run",
    "uninstall",
    "waits_of",
]

"""Floor 1: the typed door to the two compiled modules.

Nothing above this package imports ``gain_trio._uring`` or ``gain_trio._fastpath`` itself.  Both exist on CPython on Linux
only; everywhere else :data:`load_error` says so and the rest of the package does without.
"""

from ._constants import FULL_TIER, AcceptFlag, CompletionFlag, Feature, PollEvent, RegisterOp, Tier
from ._errors import RingUnavailable, check, kernel_version, os_error, ring_unavailable
from ._modules import fastpath, load_error, ring_is_possible, uring

__all__ = [
    "FULL_TIER",
    "AcceptFlag",
    "CompletionFlag",
    "Feature",
    "PollEvent",
    "RegisterOp",
    "RingUnavailable",
    "Tier",
    "check",
    "fastpath",
    "kernel_version",
    "load_error",
    "os_error",
    "ring_is_possible",
    "ring_unavailable",
    "uring",
]

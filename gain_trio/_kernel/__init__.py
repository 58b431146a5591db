"""Floor 1: the typed door to the compiled modules.

Nothing above this package imports ``gain_trio._uring``, ``gain_trio._fastpath``, ``gain_trio._trio_core`` or
``gain_trio._heads`` itself.  They exist on CPython on Linux only; everywhere else :data:`load_error` gives the reason, and
the package works without them.
"""

from ._constants import FULL_TIER, AcceptFlag, CompletionFlag, Feature, PollEvent, RegisterOp, Tier
from ._field_docs import documented_fields
from ._heap import keep_freed_memory
from ._modules import fastpath, heads, load_error, ring_is_possible, trio_core, trio_core_error, uring
from ._os_errors import RingUnavailable, check, kernel_version, os_error, ring_unavailable

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
    "documented_fields",
    "fastpath",
    "heads",
    "keep_freed_memory",
    "kernel_version",
    "load_error",
    "os_error",
    "ring_is_possible",
    "ring_unavailable",
    "trio_core",
    "trio_core_error",
    "uring",
]

"""Imports the compiled modules, or says why not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["fastpath", "load_error", "uring"]

if TYPE_CHECKING:
    from gain_trio import _fastpath as fastpath
else:
    fastpath: Any = None

uring: Any = None
"""``gain_trio._uring``: cffi's ``ffi`` and ``lib`` over ring.h, or None."""

load_error: str | None = None
"""Why the compiled modules are not there, or None when they are."""

try:
    from gain_trio import _fastpath, _uring
except ImportError as error:
    load_error = (
        f"the compiled modules of gain_trio are missing ({error}); "
        "they are built where io_uring is, on CPython on Linux, when the package is installed"
    )
else:
    fastpath = _fastpath
    uring = _uring

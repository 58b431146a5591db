"""This module imports the compiled modules, or records why it cannot."""

from __future__ import annotations

import platform
import sys
from typing import TYPE_CHECKING, Any

__all__ = ["fastpath", "heads", "load_error", "ring_is_possible", "trio_core", "trio_core_error", "uring"]

if TYPE_CHECKING:
    from gain_trio import _fastpath as fastpath
else:
    fastpath: Any = None

uring: Any = None
"""``gain_trio._uring``: cffi's ``ffi`` and ``lib`` over ring.h, or None."""

trio_core: Any = None
"""``gain_trio._trio_core``, or None.  It needs no ring, so :data:`load_error` does not cover it."""

trio_core_error: str | None = None
"""Why ``gain_trio._trio_core`` is missing, or None if it is there."""

heads: Any = None
"""``gain_trio._heads``, or None where the compiled modules are missing: then Python does the same."""

load_error: str | None = None
"""Why the compiled modules are missing, or None if they are there."""

ring_is_possible: bool = sys.platform == "linux" and platform.python_implementation() == "CPython"
"""Whether this interpreter and system support a ring at all.  Elsewhere the user cannot change that."""

if not ring_is_possible:
    load_error = (
        "io_uring is a part of Linux, and gain_trio uses it on CPython; "
        f"this is {platform.python_implementation()} on {sys.platform}"
    )
else:
    try:
        # Not "from gain_trio import": as gain_trio itself is being imported, that blames a circular import where a module
        # is missing.
        import gain_trio._fastpath
        import gain_trio._heads
        import gain_trio._uring
    except ImportError as error:
        load_error = (
            f"the compiled modules of gain_trio are missing ({error}); install gain_trio again, from a wheel for this "
            "Python or where there is a C compiler, and without GAIN_TRIO_NO_EXTENSIONS"
        )
    else:
        fastpath = gain_trio._fastpath
        heads = gain_trio._heads
        uring = gain_trio._uring

if load_error is not None:
    trio_core_error = load_error
else:
    try:
        import gain_trio._trio_core
    except ImportError as error:  # in a sub-interpreter, which the message names
        trio_core_error = str(error)
    else:
        trio_core = gain_trio._trio_core

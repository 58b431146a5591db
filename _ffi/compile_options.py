"""How the compiled modules are compiled.

``GAIN_TRIO_WERROR=1`` makes warnings errors (CI does), ``GAIN_TRIO_SANITIZE=1`` builds with AddressSanitizer and UBSan.
"""

from __future__ import annotations

import os
from pathlib import Path

RING_SOURCES = ["_ffi/ring.c", "_ffi/operations.c", "_ffi/buffers.c", "_ffi/submission.c"]
"""The ring itself, which each module has a copy of."""

WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wundef", "-Wstrict-prototypes", "-Wmissing-prototypes"]
"""What every C file of the project is compiled with, the benchmarks' too (tools/check_c.py)."""

# PyMethodDef tables cast METH_FASTCALL and METH_NOARGS functions, and PyTypeObject is filled in part: that is the C API.
PYTHON_WARNINGS = [*WARNINGS, "-Wno-cast-function-type", "-Wno-missing-field-initializers"]

COMPILE_ARGUMENTS = ["-std=gnu11", "-fvisibility=hidden", *PYTHON_WARNINGS]
LINK_ARGUMENTS: list[str] = []

if os.environ.get("GAIN_TRIO_WERROR") == "1":
    COMPILE_ARGUMENTS.append("-Werror")

if os.environ.get("GAIN_TRIO_SANITIZE") == "1":
    COMPILE_ARGUMENTS += ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"]
    COMPILE_ARGUMENTS += ["-fno-sanitize-recover=undefined"]
    LINK_ARGUMENTS += ["-fsanitize=address,undefined"]


def fastpath_sources() -> list[str]:
    """The C files of ``gain_trio._fastpath``, relative to the project's root as setuptools wants them."""
    root = Path(__file__).resolve().parent.parent
    fastpath = sorted(path.relative_to(root).as_posix() for path in (root / "_ffi/fastpath").glob("*.c"))
    return [*RING_SOURCES, *fastpath]


def sources_in(folder: str) -> list[str]:
    """The same of a module that needs no ring, whose C files are all in one folder."""
    root = Path(__file__).resolve().parent.parent
    return sorted(path.relative_to(root).as_posix() for path in (root / folder).glob("*.c"))

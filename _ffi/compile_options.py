"""How the compiled modules are compiled.

``GAIN_TRIO_WERROR=1`` makes warnings errors (CI does), ``GAIN_TRIO_SANITIZE=1`` builds with AddressSanitizer and UBSan.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

RING_SOURCES = ["_ffi/ring.c", "_ffi/operations.c", "_ffi/buffers.c", "_ffi/files.c", "_ffi/submission.c"]
"""The ring itself, which each module has a copy of."""

WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wundef", "-Wstrict-prototypes", "-Wmissing-prototypes"]
"""What every C file of the project is compiled with, the benchmarks' too (tools/check_c.py)."""

# PyMethodDef tables cast METH_FASTCALL and METH_NOARGS functions, and PyTypeObject is filled in part: that is the C API.
PYTHON_WARNINGS = [*WARNINGS, "-Wno-cast-function-type", "-Wno-missing-field-initializers"]

COMPILE_ARGUMENTS = ["-std=gnu11", "-fvisibility=hidden", *PYTHON_WARNINGS]
LINK_ARGUMENTS: list[str] = []

if os.environ.get("GAIN_TRIO_WERROR") == "1":
    COMPILE_ARGUMENTS.append("-Werror")

SANITIZES = os.environ.get("GAIN_TRIO_SANITIZE") == "1"

if SANITIZES:
    COMPILE_ARGUMENTS += ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"]
    COMPILE_ARGUMENTS += ["-fno-sanitize-recover=undefined"]
    LINK_ARGUMENTS += ["-fsanitize=address,undefined"]


WHOLE_PROGRAM = "-flto=auto"
"""Optimises over all files of a module: a message passes through a dozen, and most functions on its way are small."""


def takes_whole_program(compiler: Sequence[str], linker: Sequence[str]) -> bool:
    """Whether this compiler and this linker take :data:`WHOLE_PROGRAM`: a compiler without its linker's plugin does not."""
    if SANITIZES:
        return False
    with tempfile.TemporaryDirectory() as folder:
        source, compiled, linked = (str(Path(folder) / name) for name in ("probe.c", "probe.o", "probe.so"))
        Path(source).write_text("int probe(void);\nint probe(void) { return 0; }\n")
        commands = [
            [*compiler, WHOLE_PROGRAM, "-c", source, "-o", compiled],
            [*linker, WHOLE_PROGRAM, compiled, "-o", linked],
        ]
        try:
            return all(
                subprocess.run(command, capture_output=True, check=False).returncode == 0 for command in commands
            )
        except OSError:
            return False


def fastpath_sources() -> list[str]:
    """The C files of ``gain_trio._fastpath``, relative to the project's root as setuptools wants them."""
    root = Path(__file__).resolve().parent.parent
    fastpath = sorted(path.relative_to(root).as_posix() for path in (root / "_ffi/fastpath").glob("*.c"))
    return [*RING_SOURCES, *fastpath]


def sources_in(folder: str) -> list[str]:
    """The same of a module that needs no ring, whose C files are all in one folder."""
    root = Path(__file__).resolve().parent.parent
    return sorted(path.relative_to(root).as_posix() for path in (root / folder).glob("*.c"))

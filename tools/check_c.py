"""Check that the C compiles without a warning: ``python tools/check_c.py [--analyse]``.

The script compiles every C file of ``_ffi`` and of ``benchmarks/c`` with the warnings of ``_ffi/compile_options.py`` as
errors.  With ``--analyse`` it runs gcc's analyser on the files of ``_ffi`` instead, which follows the paths through each
function in search of a leak, a use after free or a null pointer.  It builds nothing.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "_ffi"))

from compile_options import PYTHON_WARNINGS, WARNINGS  # found by the line above

ROOT = Path(__file__).resolve().parent.parent
COMPILER = shlex.split(os.environ.get("CC", "cc"))
PYTHON_INCLUDE = sysconfig.get_paths()["include"]


def options(source: Path) -> list[str]:
    """The compiler's options: the warnings, and the folders of the headers."""
    if source.parent.name in ("fastpath", "heads", "trio_core"):
        return [*PYTHON_WARNINGS, "-I_ffi", f"-I{PYTHON_INCLUDE}"]
    return [*WARNINGS, "-I_ffi", "-Ibenchmarks/c"]


def complaints(source: Path, *, analyse: bool) -> str:
    """The compiler's warnings about a file; an empty string if it is clean."""
    # The analyser works on the optimizer's input, so the compiler must make an object, which is thrown away.
    how = ["-fanalyzer", "-c", "-o", os.devnull] if analyse else ["-fsyntax-only"]
    command = [*COMPILER, "-std=gnu11", "-O2", "-Werror", *options(source), *how, str(source)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return result.stderr if result.returncode else ""


def main(arguments: list[str]) -> int:
    """Check every file, and return the exit status."""
    if arguments not in ([], ["--analyse"]):
        print(__doc__, file=sys.stderr)
        return 2
    analyse = bool(arguments)
    folders = ["_ffi"] if analyse else ["_ffi", "benchmarks/c"]
    sources = sorted(path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.c"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda source: complaints(source, analyse=analyse), sources))
    print("".join(found), end="")
    print(f"{len(sources)} C files, {sum(map(bool, found))} with warnings")
    return 1 if any(found) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

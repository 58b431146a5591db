"""Check the contents of the built distributions: ``python tools/check_package.py dist``.

The caller runs it in the project's root, because the script compares the sdist with that.
"""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from pathlib import Path

SDIST_MUST = {
    "_ffi": ("*.c", "*.h", "*.py"),
    "gain_trio": ("*.py", "*.pyi", "py.typed"),
    "tests": ("*.py",),
    "examples": ("*.py", "*.service", "*.socket", "*.yaml", "Dockerfile"),
    "tools": ("*.py", "*.sh"),
    "docs": ("*.md", "*.rst", "*.py", "*.svg", "*.css"),
    "benchmarks": ("*.py", "*.c", "*.h", "*.lua", "*.json", "README.md"),
}
SDIST_MUST_FILES = (
    "Makefile",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "LICENSE",
    "pyproject.toml",
    "setup.py",
)


def expected(patterns: dict[str, tuple[str, ...]]) -> set[str]:
    """The files of the tree that match the patterns."""
    return {
        path.as_posix()
        for folder, names in patterns.items()
        for name in names
        for path in Path(folder).rglob(name)
        if not any(part == "__pycache__" or part.startswith(".") for part in path.parts)
    }


def check_sdist(path: Path) -> list[str]:
    """The faults of the sdist."""
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    missing = (expected(SDIST_MUST) | set(SDIST_MUST_FILES)) - names
    compiled = {name for name in names if name.endswith((".so", ".o", ".pyc")) or name == "gain_trio/_uring.c"}
    return [f"{path.name} lacks {name}" for name in sorted(missing)] + [
        f"{path.name} holds {name}, which is built" for name in sorted(compiled)
    ]


def check_wheel(path: Path) -> list[str]:
    """The faults of the wheel."""
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        description = archive.read(metadata).decode()
    wrong = [f"{path.name} lacks {name}" for name in sorted(expected({"gain_trio": SDIST_MUST["gain_trio"]}) - names)]
    wrong += [
        f"{path.name} lacks the module gain_trio.{module}"
        for module in ("_uring", "_fastpath", "_trio_core", "_heads")
        if not any(name.startswith(f"gain_trio/{module}.") and name.endswith(".so") for name in names)
    ]
    wrong += [
        f"{path.name} holds {name}, which does not belong to the package"
        for name in sorted(names)
        if not name.startswith(("gain_trio/", "gain_trio-"))
    ]
    if "gain_trio/_command/containers.md" not in names:
        wrong.append(f"{path.name} lacks the page that gain-trio doctor refers to")
    if re.search(r"\]\((?![a-z]+:)", description):
        wrong.append(f"{path.name} has a description with relative links, which a package index does not resolve")
    if not any(name.endswith("/LICENSE") for name in names):
        wrong.append(f"{path.name} lacks the licence")
    return wrong


def main(folder: Path) -> int:
    """Check one sdist and one wheel."""
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    wrong = check_sdist(sdist) + check_wheel(wheel)
    for line in wrong:
        print(line, file=sys.stderr)
    if not wrong:
        print(f"{sdist.name} and {wheel.name} hold what they must")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

"""Compile the C programs: the load generators and the reference server."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "_ffi"))

from compile_options import WARNINGS  # found by the line above

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "c"
RING = HERE.parent / "_ffi"
BUILD = HERE / ".build"

FLAGS = ("-std=gnu11", "-O2", *WARNINGS, "-Werror", f"-I{RING}", f"-I{SOURCES}")
LOAD_PARTS = (
    "echo_load",
    "options",
    "connections",
    "echo",
    "http",
    "answer",
    "websocket",
    "churn",
    "idle",
    "sockets",
    "turns",
    "slices",
    "histogram",
    "cpu",
    "common",
)
SERVER_PARTS = ("echo_server", "common")
HTTP_SERVER_PARTS = ("http_server", "common")
DATAGRAM_SERVER_PARTS = ("datagram_server", "common")
TRANSFER_PARTS = ("transfer_load", "cpu", "common")
ZERO_COPY_PARTS = ("zero_copy", "common")


class BuildError(Exception):
    """The C programs cannot be compiled."""


@dataclass(frozen=True)
class Programs:
    load: Path
    reference: Path
    http_reference: Path
    datagram_reference: Path
    transfer: Path


def _is_current(program: Path) -> bool:
    if not program.exists():
        return False
    built = program.stat().st_mtime
    inputs = [*SOURCES.iterdir(), *RING.glob("*.[ch]"), Path(__file__)]
    return all(path.stat().st_mtime < built for path in inputs)


def _compile(name: str, parts: tuple[str, ...]) -> Path:
    program = BUILD / name
    if _is_current(program):
        return program
    compiler = shlex.split(os.environ.get("CC", "cc"))
    sources = [str(SOURCES / f"{part}.c") for part in parts]
    # Under another name first: an interrupted compilation must not pass for a finished one.
    unfinished = BUILD / f"{name}.new"
    command = [*compiler, *FLAGS, "-o", str(unfinished), *sources, *map(str, sorted(RING.glob("*.c"))), "-lm"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except FileNotFoundError:
        raise BuildError(f"no C compiler: {compiler[0]} not found (set CC)") from None
    if result.returncode != 0:
        raise BuildError(f"compiling {name} failed:\n{result.stderr.strip()}")
    unfinished.replace(program)
    return program


def build() -> Programs:
    BUILD.mkdir(exist_ok=True)
    return Programs(
        load=_compile("echo_load", LOAD_PARTS),
        reference=_compile("echo_server", SERVER_PARTS),
        http_reference=_compile("http_server", HTTP_SERVER_PARTS),
        datagram_reference=_compile("datagram_server", DATAGRAM_SERVER_PARTS),
        transfer=_compile("transfer_load", TRANSFER_PARTS),
    )


def build_zero_copy() -> Path:
    """The program of ``zero_copy.py``, which no other measurement needs."""
    BUILD.mkdir(exist_ok=True)
    return _compile("zero_copy", ZERO_COPY_PARTS)

"""Programs in processes of their own: their output, their answers and their end."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from gain_trio._command import main

ROOT = Path(__file__).resolve().parent.parent.parent
TIMEOUT = 30.0
"""Seconds after which a program that has not answered or ended counts as stuck."""


class Program:
    """A running Python program."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def line(self) -> str:
        """The next line that the program prints; empty after its end."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> None:
        """Send the program a signal."""
        self._process.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """Wait for its end, and return its exit status, the output that no :meth:`line` has returned, and its errors."""
        out, err = self._process.communicate(timeout=TIMEOUT)
        return self._process.returncode, out, err


@contextlib.contextmanager
def running(*arguments: str | Path, cwd: Path | None = None) -> Iterator[Program]:
    """Run ``python *arguments``, and kill it at the end if it still runs."""
    command = [sys.executable, "-W", "error", *map(str, arguments)]
    # Ctrl-C reaches it as from a terminal, even if the tests run with SIGINT ignored, as a background job does.
    restore = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    finally:
        signal.signal(signal.SIGINT, restore)
    try:
        yield Program(process)
    finally:
        process.kill()
        process.communicate()


def run(*arguments: str | Path, cwd: Path | None = None) -> tuple[int, str, str]:
    """Run ``python *arguments`` to its end, and return its exit status, standard output and standard error."""
    with running(*arguments, cwd=cwd) as program:
        return program.end()


def command(*arguments: str | Path, cwd: Path | None = None) -> tuple[int, str, str]:
    """``gain-trio *arguments`` in this process, for what ends by itself: exit status, standard output, standard error.

    That is an order of magnitude quicker than a process.  What the command leaves to the end of its process is undone.
    """
    out, err = io.StringIO(), io.StringIO()
    root = logging.getLogger()
    path, modules, handlers, level, before = (
        sys.path.copy(),
        set(sys.modules),
        root.handlers.copy(),
        root.level,
        Path.cwd(),
    )
    os.chdir(cwd or before)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = main([str(argument) for argument in arguments])
            except SystemExit as end:  # argparse's way
                status = cast("int", end.code)
    finally:
        os.chdir(before)
        sys.path[:], root.handlers[:] = path, handlers
        root.setLevel(level)
        for name in set(sys.modules) - modules:
            if cwd is not None and str(getattr(sys.modules[name], "__file__", None)).startswith(str(cwd)):
                del sys.modules[name]
    return status, out.getvalue(), err.getvalue()


def environment(*command: object) -> dict[str, str]:
    """The environment for a command: programs of other projects are not made for a sanitizer's runtime."""
    ours = command[0] == sys.executable
    return {name: value for name, value in os.environ.items() if ours or name != "LD_PRELOAD"}


def connect(host: str, port: int) -> socket.socket:
    """Open a blocking client."""
    client = socket.create_connection((host, port), timeout=TIMEOUT)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def read_all(client: socket.socket) -> bytes:
    """Read everything to the end of the stream."""
    received = b""
    while data := client.recv(65536):
        received += data
    return received


def read_exactly(client: socket.socket, count: int) -> bytes:
    """Read ``count`` bytes."""
    received = b""
    while len(received) < count:
        data = client.recv(count - len(received))
        assert data, f"the stream ended after {received!r}"
        received += data
    return received

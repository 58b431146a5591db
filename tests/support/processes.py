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
from concurrent import futures
from pathlib import Path
from typing import TextIO, cast

from gain_trio._command import main

from .fork_server import ForkedProgram, Job

ROOT = Path(__file__).resolve().parent.parent.parent
TIMEOUT = 30.0
"""Seconds after which a program that has not answered or ended counts as stuck."""


class Program:
    """A running Python program."""

    def __init__(self, process: ForkedProgram, out: TextIO, err: TextIO) -> None:
        self._process = process
        self._out = out
        self._err = err

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def line(self) -> str:
        """The next line that the program prints; empty after its end."""
        return self._out.readline().rstrip("\n")

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> None:
        """Send the program a signal."""
        self._process.send_signal(number)

    def ends_within(self, seconds: float) -> bool:
        """Whether it has ended when this time is over."""
        try:
            self._process.wait(seconds)
        except TimeoutError:
            return False
        return True

    def end(self) -> tuple[int, str, str]:
        """Wait for its end, and return its exit status, the output that no :meth:`line` has returned, and its errors."""
        with futures.ThreadPoolExecutor(2) as threads:
            out, err = threads.submit(self._out.read), threads.submit(self._err.read)
            try:
                return self._process.wait(TIMEOUT), out.result(TIMEOUT), err.result(TIMEOUT)
            finally:
                self._process.send_signal(signal.SIGKILL)  # of one that is stuck, so that its output ends


@contextlib.contextmanager
def running(*arguments: str | Path, cwd: Path | None = None) -> Iterator[Program]:
    """Run ``python -W error *arguments``, and kill it at the end if it still runs.  See :mod:`support.fork_server`."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    job = Job([*map(str, arguments)], str(cwd or Path.cwd()), environment, (0, 1, 2))
    with contextlib.ExitStack() as stack:
        (out, out_written), (err, err_written) = os.pipe(), os.pipe()
        files = stack.enter_context(os.fdopen(out)), stack.enter_context(os.fdopen(err))
        try:
            with Path(os.devnull).open() as nothing:
                process = ForkedProgram(job, (nothing.fileno(), out_written, err_written))
        finally:
            os.close(out_written)
            os.close(err_written)
        with contextlib.closing(process):
            yield Program(process, *files)


def run(*arguments: str | Path, cwd: Path | None = None) -> tuple[int, str, str]:
    """Run ``python *arguments`` to its end, and return its exit status, standard output and standard error."""
    with running(*arguments, cwd=cwd) as program:
        return program.end()


def interpreted(*arguments: str | Path) -> tuple[int, str, str]:
    """The same in an interpreter that has imported nothing yet, for tests of imports."""
    command = [sys.executable, "-W", "error", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    return done.returncode, done.stdout, done.stderr


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

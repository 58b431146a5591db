"""The process that Python programs of tests are forked from: it has imported already what they import.

A program of this project imports Trio and the package, which takes ten times the CPU time of all that most tests have
their program do.  So one process imports them, once for each process of pytest, and forks for each program.  What it forks
is a process like any other, with descriptors, signals, a working directory and an end of its own; only the imports are
done.  A test of what Python itself does when it starts (its options, its variables, imports) starts an interpreter.

The server has one thread, so no other thread holds a lock when it forks.  It is no child of pytest's: tests count the
children of their process.  It ends when pytest does.

Each connection to it is for one program.  The client sends a :class:`Job` with the program's standard descriptors, and gets
the process id with a descriptor of the process; when the program has ended it gets the wait status.  A program whose client
hangs up is killed.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import pickle
import runpy
import secrets
import selectors
import signal
import socket
import struct
import subprocess
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

NUMBER = struct.Struct("!i")
"""A length, a process id or a wait status."""
PATIENCE = 30.0
"""Seconds after which a program that was killed counts as stuck."""


class Job(NamedTuple):
    """A program to run."""

    arguments: list[str]
    """Those of ``python``: ``-m MODULE ...``, ``-c CODE ...`` or ``FILE ...``."""
    folder: str
    environment: dict[str, str]


def _receive_exactly(sock: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        data = sock.recv(count - len(received))
        if not data:
            raise ConnectionError("the other end of the fork server's connection is gone")
        received += data
    return received


# --- the client ---


class ForkedProgram:
    """A program that the server has forked."""

    def __init__(self, job: Job, descriptors: tuple[int, int, int]) -> None:
        self._control = socket.socket(socket.AF_UNIX)
        try:
            self._control.connect(f"\0{_server()}")
            content = pickle.dumps(tuple(job))  # the server has this module by another name
            socket.send_fds(self._control, [NUMBER.pack(len(content))], descriptors)
            self._control.sendall(content)
            number, [self._process], _flags, _address = socket.recv_fds(self._control, NUMBER.size, 1)
        except BaseException:
            self._control.close()
            raise
        [self.pid] = NUMBER.unpack(number)
        self._status: int | None = None

    def send_signal(self, number: int) -> None:
        """Send the program a signal, if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._process, number)

    def wait(self, timeout: float) -> int:
        """Wait for the program's end, and return its exit status; negative, the number of the signal that killed it.

        Raises:
          TimeoutError: it has not ended in time.
        """
        if self._status is None:
            self._control.settimeout(timeout)
            [status] = NUMBER.unpack(_receive_exactly(self._control, NUMBER.size))
            self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def close(self) -> None:
        """Kill the program if it has not ended, and return when it is gone."""
        self.send_signal(signal.SIGKILL)
        try:
            self.wait(PATIENCE)
        finally:
            self._control.close()
            os.close(self._process)


@functools.cache
def _server() -> str:
    """The abstract name of this process's server, which is started on the first call."""
    name = f"gain_trio fork server {secrets.token_hex(16)}"
    # The process that is waited for here imports, listens, and forks the server.
    subprocess.run(
        [sys.executable, "-W", "error", __file__, name],
        stdin=subprocess.DEVNULL,
        check=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    return name


# --- the server ---


def _import_what_programs_import() -> None:
    import gain_trio
    import gain_trio._command
    import gain_trio.asgi
    import gain_trio.asyncio_bridge
    import gain_trio.callbacks

    for name in gain_trio.__all__:
        getattr(gain_trio, name)
    gc.collect()
    gc.freeze()  # no collection in a program walks what it has from here


class _Server:
    """The loop of the server, which a program that it forks leaves with what it is to do."""

    def __init__(self, listener: socket.socket, parent: int) -> None:
        self._listener = listener
        self._parent = parent
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(parent, selectors.EVENT_READ)
        self._programs: dict[int, tuple[int, socket.socket]] = {}
        """By its descriptor, the process id of a program, and the connection to its client."""

    def run(self) -> Job | None:
        """Serve until pytest has ended; what a program is to do, in that program."""
        while True:
            for key, _events in self._selector.select():
                if key.fd == self._parent:
                    self._kill(self._programs)
                    return None
                if key.fd == self._listener.fileno():
                    job = self._fork()
                    if job is not None:
                        return job
                elif key.fd in self._programs:
                    self._report(key.fd)
                else:  # a client has hung up
                    self._selector.unregister(key.fd)
                    self._kill(
                        [process for process, (_, control) in self._programs.items() if control.fileno() == key.fd]
                    )

    def _kill(self, processes: Iterable[int]) -> None:
        for process in processes:
            signal.pidfd_send_signal(process, signal.SIGKILL)

    def _fork(self) -> Job | None:
        control, _ = self._listener.accept()
        length, descriptors, _flags, _address = socket.recv_fds(control, NUMBER.size, 3)
        job = Job(*pickle.loads(_receive_exactly(control, *NUMBER.unpack(length))))
        pid = os.fork()
        if pid == 0:
            for number, descriptor in enumerate(descriptors):
                os.dup2(descriptor, number)
                os.close(descriptor)
            control.close()
            self._close()
            return job
        for descriptor in descriptors:
            os.close(descriptor)
        process = os.pidfd_open(pid)
        self._programs[process] = pid, control
        self._selector.register(process, selectors.EVENT_READ)
        self._selector.register(control, selectors.EVENT_READ)
        socket.send_fds(control, [NUMBER.pack(pid)], [process])
        return None

    def _report(self, process: int) -> None:
        pid, control = self._programs.pop(process)
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(OSError):  # a client that has hung up does not read it
            control.sendall(NUMBER.pack(status))
        self._selector.unregister(process)
        with contextlib.suppress(KeyError):
            self._selector.unregister(control)
        control.close()
        os.close(process)

    def _close(self) -> None:
        """Leave nothing of the server open in a program."""
        self._selector.close()
        self._listener.close()
        os.close(self._parent)
        for process, (_pid, control) in self._programs.items():
            control.close()
            os.close(process)


def _become(job: Job) -> None:
    """Run the program, as ``python *arguments`` does, in this process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(job.environment)
    os.chdir(job.folder)
    first, *rest = job.arguments
    if first == "-m":
        module, *rest = rest
        sys.path[0] = job.folder
        sys.argv = [module, *rest]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    elif first == "-c":
        code, *rest = rest
        sys.path[0] = ""
        sys.argv = ["-c", *rest]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(code, "<string>", "exec"), main.__dict__)
    else:
        sys.path[0] = str(Path(first).resolve().parent)
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")


def _serve(name: str) -> None:
    parent = os.pidfd_open(os.getppid())
    _import_what_programs_import()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0{name}")
    listener.listen()
    if os.fork():
        os._exit(0)  # clients may come
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's is for pytest
    job = _Server(listener, parent).run()
    if job is not None:
        _become(job)


if __name__ == "__main__":
    _serve(sys.argv[1])

"""The process that programs and worker processes of tests are forked from: it has imported already what they import.

A process of this project imports Trio and the package, which takes ten times the CPU time of all that most tests have it
do.  So one process imports them, once for each process of pytest, and forks for each program.  What it forks is a process
like any other, with descriptors, signals, a working directory and an end of its own; only the imports are done.  A test of
what Python itself does when it starts (its options, its variables, imports) starts an interpreter.

The server has one thread, so no other thread holds a lock when it forks.  It ends when pytest does.

Each connection to it is for one process.  The client sends a :class:`Job` with the descriptors that the process is to have.
A **program** is a child of the server.  The client gets its process id, with a descriptor of the process, and its wait
status when it has ended.  A program whose client hangs up is killed.  A **worker process** becomes a child of pytest's, as
if that had started it, for the code that is tested waits for it and looks at its parent: its first parent ends, and pytest
is then the process that adopts what such a parent leaves (PR_SET_CHILD_SUBREAPER, prctl(2)).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import os
import pickle
import resource
import runpy
import secrets
import selectors
import signal
import socket
import struct
import sys
import threading
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

NUMBER = struct.Struct("!i")
"""A length, a process id or a wait status."""
PATIENCE = 30.0
"""Seconds after which a program that was killed counts as stuck."""
PR_SET_CHILD_SUBREAPER = 36


class Job(NamedTuple):
    """What a process is to do."""

    arguments: list[str]
    """Those of ``python``: ``-m MODULE ...``, ``-c CODE ...`` or ``FILE ...``."""
    folder: str
    environment: dict[str, str]
    numbers: Sequence[int]
    """Which descriptors it is to have; they are sent in this order."""
    is_worker: bool = False
    most_descriptors: tuple[int, int] | None = None
    """Its RLIMIT_NOFILE, if that is to be another than the server's."""


def _receive_exactly(sock: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        data = sock.recv(count - len(received))
        if not data:
            raise ConnectionError("the other end of the fork server's connection is gone")
        received += data
    return received


# --- the clients ---


class _Started:
    """The server of this process, if there is one."""

    name = ""
    pid = -1
    lock = threading.Lock()
    """Of who adopts: two threads may start a worker process each."""


def server_process() -> int:
    """The process id of this process's server, or -1: it is a child that tests leave out of account."""
    return _Started.pid


def _connect() -> socket.socket:
    """A connection to this process's server, which is started for the first one."""
    if not _Started.name:
        name = f"\0gain_trio fork server {secrets.token_hex(16)}"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(name)
            listener.listen()
            listener.set_inheritable(True)
            _Started.pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-W", "error", __file__, str(listener.fileno())],
                {**os.environ, "PYTHONUNBUFFERED": "1"},
                file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
            )
        _Started.name = name
    control = socket.socket(socket.AF_UNIX)
    control.connect(_Started.name)
    return control


def _send(control: socket.socket, job: Job, descriptors: Sequence[int]) -> None:
    content = pickle.dumps(tuple(job))  # the server has this module by another name
    socket.send_fds(control, [NUMBER.pack(len(content))], descriptors)
    control.sendall(content)


class ForkedProgram:
    """A program that the server has forked."""

    def __init__(self, job: Job, descriptors: Sequence[int]) -> None:
        self._control = _connect()
        try:
            _send(self._control, job, descriptors)
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


def fork_worker(job: Job, descriptors: Sequence[int]) -> int:
    """Fork a worker process, a child of this one, and return its process id."""
    prctl = ctypes.CDLL(None).prctl
    with _Started.lock, _connect() as control:
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            _send(control, job, descriptors)
            [pid] = NUMBER.unpack(_receive_exactly(control, NUMBER.size))
        finally:
            prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    assert isinstance(pid, int)
    return pid


# --- the server ---


def _import_what_programs_import() -> None:
    import gain_trio
    import gain_trio._command
    import gain_trio._server._processes._worker
    import gain_trio.asgi
    import gain_trio.asyncio_bridge
    import gain_trio.callbacks

    for name in gain_trio.__all__:
        getattr(gain_trio, name)
    gc.collect()
    gc.freeze()  # no collection in a program walks what it has from here


class _Server:
    """The loop of the server, which a process that it forks leaves with what it is to do."""

    def __init__(self, listener: socket.socket, parent: int) -> None:
        self._listener = listener
        self._parent = parent
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(parent, selectors.EVENT_READ)
        self._programs: dict[int, tuple[int, socket.socket]] = {}
        """By its descriptor, the process id of a program, and the connection to its client."""

    def run(self) -> Job | None:
        """Serve until pytest has ended; what a process is to do, in that process."""
        while True:
            for key, _events in self._selector.select():
                if key.fd == self._parent:
                    self._kill(self._programs)
                    return None
                if key.fd == self._listener.fileno():
                    job = self._accept()
                    if job is not None:
                        return job
                elif key.fd in self._programs:
                    self._report(key.fd)
                else:  # a client has hung up
                    self._selector.unregister(key.fd)
                    self._kill(process for process, (_, other) in self._programs.items() if other.fileno() == key.fd)

    def _kill(self, processes: Iterable[int]) -> None:
        for process in processes:
            signal.pidfd_send_signal(process, signal.SIGKILL)

    def _accept(self) -> Job | None:
        control, _ = self._listener.accept()
        length, descriptors, _flags, _address = socket.recv_fds(control, NUMBER.size, 250)
        job = Job(*pickle.loads(_receive_exactly(control, *NUMBER.unpack(length))))
        pid = (_fork_orphan if job.is_worker else os.fork)()
        if pid == 0:
            control.close()
            self._close()
            _arrange(descriptors, job.numbers)
            return job
        for descriptor in descriptors:
            os.close(descriptor)
        if job.is_worker:
            control.sendall(NUMBER.pack(pid))
            control.close()
            return None
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
        """Leave nothing of the server open in a process that it has forked."""
        self._selector.close()
        self._listener.close()
        os.close(self._parent)
        for process, (_pid, control) in self._programs.items():
            control.close()
            os.close(process)


def _fork_orphan() -> int:
    """Fork a process whose parent has ended; its process id, or 0 in that process."""
    reading, writing = os.pipe()
    between = os.fork()
    if between == 0:
        parent = os.getpid()
        pid = os.fork()
        if pid:
            os.write(writing, NUMBER.pack(pid))
            os._exit(0)
        os.close(reading)
        os.close(writing)
        while os.getppid() == parent:
            os.sched_yield()
        return 0
    os.waitpid(between, 0)
    os.close(writing)
    [pid] = NUMBER.unpack(os.read(reading, NUMBER.size))
    os.close(reading)
    assert isinstance(pid, int)
    return pid


def _arrange(descriptors: Sequence[int], numbers: Sequence[int]) -> None:
    """Give the descriptors their numbers; first they go where none of the numbers is."""
    above = max([*descriptors, *numbers]) + 1
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, above) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    for descriptor, number in zip(high, numbers, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)


def _become(job: Job) -> None:
    """Do what ``python *arguments`` does, in this process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if job.most_descriptors is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, job.most_descriptors)
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


def _serve(listener: socket.socket) -> None:
    os.closerange(3, listener.fileno())  # what pytest was started with
    os.closerange(listener.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
    parent = os.pidfd_open(os.getppid())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's is for pytest
    _import_what_programs_import()
    job = _Server(listener, parent).run()
    if job is not None:
        _become(job)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as _listener:
        _serve(_listener)

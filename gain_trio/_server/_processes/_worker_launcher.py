"""Starting worker processes: what they need, checked before the first one is started, and the command.

**Why not multiprocessing.Process.**  Its spawn context is what a worker's start is modelled on, and what it does for
``__main__`` is used here (:func:`multiprocessing.spawn.prepare`).  The rest does not fit.  ``Process.start()`` starts a
resource tracker beside the first process, and that stays, with a descriptor, until the program ends: a server would leave
something behind.  Its sentinel is a pipe that a worker's forked children keep open, so that a death goes unnoticed;
Trio waits for the process itself (pidfd_open(2)).  And what a process needs is written into a pipe while the event loop
waits.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, final

import attrs
import trio

from gain_trio._io_manager import Backend, backend_info, ring_is_demanded, ring_settings
from gain_trio._ring import RingOptions
from gain_trio._server._consumer import Handler
from gain_trio._server._server_config import AtMaxConnections, ServerConfig

Groups: TypeAlias = tuple[tuple[int, ...], ...]
"""Descriptors of listening sockets, by shard."""
Main: TypeAlias = Callable[[bytes, socket.socket], None]

_BOOT = str(Path(__file__).with_name("_boot.py"))


@final
@attrs.frozen
class RunSettings:
    """What a worker's run is on: the same as the server's."""

    backend: Backend
    """``"auto"`` of a server that has a ring and does not demand it: a worker that can have none does without."""
    ring: RingOptions | None
    resume_in_place: bool | None
    accelerate: tuple[str, ...]
    """The pieces of Trio's own hot path that are done in C."""


@final
@attrs.frozen
class WorkerSettings:
    """What one worker process has for itself."""

    index: int
    processes: int
    """How many worker processes the server has."""
    hand_off: int
    """Descriptor of the socket that accepted connections come through."""
    groups: Groups
    parent: int
    """Process id of the server."""
    cpu: int | None
    """The only one that it may run on."""
    max_connections: int | None
    at_max_connections: AtMaxConnections
    log_levels: dict[str, int]
    has_metrics: bool
    """Whether the server reports the program's own metrics."""


@final
class WorkerLauncher:
    """How the worker processes of a server are started.

    Args:
      handler: serves a connection there.
      config: of the servers there.
      main: what a process does: called there with the setup, pickled, and with its end of the control channel.

    Raises:
      ValueError: the handler, or an option, cannot be pickled, or no process can be started from here.
      RuntimeError: this process is a worker that imports its program: ``if __name__ == "__main__"`` is missing there.
    """

    def __init__(self, handler: Handler, config: ServerConfig, main: Main) -> None:
        from multiprocessing import process, spawn  # noqa: PLC0415 - few servers have processes, and not every system has multiprocessing

        if getattr(process.current_process(), "_inheriting", False):
            raise RuntimeError(
                "a worker process imports the program that has the handler, and the program starts a server when it is "
                'imported: let it do so under if __name__ == "__main__": only'
            )
        if not hasattr(socket, "send_fds") or os.name != "posix":
            raise ValueError(
                f"processes= passes sockets to other processes, which {sys.platform} cannot do; leave it out"
            )
        if getattr(sys, "frozen", False):
            raise ValueError("processes= starts Python anew, and a frozen program has none: leave it out")
        self._handler = _pickled(handler, f"the handler {handler!r}", "an async function at the top of a module can")
        for field in attrs.fields(ServerConfig):
            value = getattr(config, field.name)
            _pickled(value, f"{field.name}={value!r}", "give a function at the top of a module that makes it")
        self._config = config
        self._main = main
        info = backend_info()
        backend: Backend = "trio"
        if info.backend == "io_uring":
            backend = "io_uring" if ring_is_demanded() else "auto"
        pieces = tuple(piece.name for piece in info.acceleration if piece.active)
        self.run = RunSettings(backend, *ring_settings(), pieces)
        *self._python, _dash_c, _code, _mark = spawn.get_command_line()

    async def start(self, control: socket.socket, descriptors: Sequence[int]) -> trio.Process:
        """Start a process, which has the end ``control`` of its channel, and ``descriptors``.

        Raises:
          OSError: it cannot be started: there are too many processes, or too little memory.
        """
        try:
            return await trio.lowlevel.open_process(
                [*self._python, _BOOT, str(control.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(control.fileno(), *descriptors),
            )
        except (RuntimeError, MemoryError) as error:  # "can't start new thread", of the thread that would start it
            raise OSError(errno.EAGAIN, f"no process can be started: {str(error) or 'out of memory'}") from error

    def first_message(self, settings: WorkerSettings) -> bytes:
        """What ``_boot.py`` reads from the channel."""
        setup = pickle.dumps((self._handler, self._config, self.run, settings))
        # What __main__ is costs time to import, and only a handler that is in it needs it.
        preparation = _preparation(f"gain_trio worker {settings.index}", with_main=b"__main__" in self._handler + setup)
        return pickle.dumps((preparation, pickle.dumps(functools.partial(self._main, setup))))


def _preparation(name: str, *, with_main: bool) -> dict[str, Any]:
    from multiprocessing import spawn  # noqa: PLC0415 - the same

    preparation = spawn.get_preparation_data(name)
    preparation["authkey"] = bytes(preparation["authkey"])  # of itself it refuses to be pickled; the channel is private
    if not with_main:
        preparation.pop("init_main_from_name", None)
        preparation.pop("init_main_from_path", None)
    return preparation


def _pickled(value: object, what: str, cure: str) -> bytes:
    try:
        content = pickle.dumps(value)
    except Exception as error:  # pickle raises what it likes, and so do objects that are pickled
        raise ValueError(
            f"{what} cannot be sent to worker processes ({type(error).__name__}: {error}): with processes= everything "
            f"that they need is pickled; {cure}"
        ) from error
    return content


def log_levels() -> dict[str, int]:
    """The levels of this process's loggers, as far as they are set; ``""`` is the root."""
    levels = {"": logging.root.level}
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and logger.level:
            levels[name] = logger.level
    return levels

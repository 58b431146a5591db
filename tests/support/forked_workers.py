"""Worker processes that the fork server forks, in the place of those that an interpreter would be started for."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from pathlib import Path
from typing import Any

import trio

from gain_trio._server._processes import _boot

from .fork_server import Job, fork_worker

open_process = trio.lowlevel.open_process


class ForkedWorker:
    """What a server does with the :class:`trio.Process` of a worker."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._status: int | None = None
        self._waiting = trio.Lock()

    @property
    def returncode(self) -> int | None:
        """As that of a subprocess, or None before its end."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status

    async def wait(self) -> int | None:
        """Wait for the process's end."""
        async with self._waiting:
            if self.returncode is None:
                process = os.pidfd_open(self.pid)
                try:
                    await trio.lowlevel.wait_readable(process)
                finally:
                    os.close(process)
            return self.returncode

    def terminate(self) -> None:
        """Send the process a SIGTERM, if it has not ended."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Kill the process, if it has not ended."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)


async def fork_workers(command: list[str], **options: Any) -> Any:
    """In the place of :func:`trio.lowlevel.open_process`: fork if this is the start of a worker process."""
    *_python, program, control = command
    if Path(program) != Path(_boot.__file__):
        return await open_process(command, **options)
    assert options["stdin"] == subprocess.DEVNULL
    passed = tuple(options["pass_fds"])

    def fork() -> int:
        with Path(os.devnull).open() as nothing:
            job = Job(
                [program, control],
                str(Path.cwd()),
                dict(os.environ),
                (0, 1, 2, *passed),
                is_worker=True,
                most_descriptors=resource.getrlimit(resource.RLIMIT_NOFILE),
            )
            return fork_worker(job, (nothing.fileno(), 1, 2, *passed))

    return ForkedWorker(await trio.to_thread.run_sync(fork))

"""Recycling: worker processes that have served enough are replaced, one at a time.

A process that leaks, or whose memory is fragmented, is as good as new after that.  All of it is decided in the server's
process, which knows what a worker has reported and reads its memory from /proc: so a worker that is busy is recycled, too.
The replacement is the one of SIGHUP: the successor serves before the old process drains, so no connection is refused.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import weakref
from collections.abc import Sequence
from typing import final

import trio

from gain_trio._server._log_throttle import log_throttle, since_last
from gain_trio._server._process_usage import resident_memory
from gain_trio._server._server_config import ServerConfig
from gain_trio._server._time_limits import LONGEST_PAUSE, RECYCLE_INTERVAL, SOON
from gain_trio._transports import shown

from ._supervisor import WorkerSupervisor
from ._worker_failed import WorkerFailed
from ._worker_process import WorkerProcess

logger = logging.getLogger("gain_trio")


def check_memory_is_known() -> None:
    """Check that this system reports the memory of processes.

    Raises:
      ValueError: it does not.
    """
    if resident_memory(os.getpid()) is None:
        raise ValueError(f"max_worker_memory reads /proc, which {sys.platform} does not have here: leave it out")


@final
class Recycler:
    """Replaces the worker processes of a server.

    Args:
      supervisors: those of the server.
      rolling: taken by the one who replaces processes.
    """

    def __init__(self, config: ServerConfig, supervisors: Sequence[WorkerSupervisor], rolling: trio.Lock) -> None:
        self._config = config
        self._supervisors = supervisors
        self._rolling = rolling
        self._most: weakref.WeakKeyDictionary[WorkerProcess, int] = weakref.WeakKeyDictionary()
        self._large: weakref.WeakSet[WorkerProcess] = weakref.WeakSet()  # from the beginning
        self.recycled = 0
        """Processes that were replaced because they had served enough."""

    async def run(self) -> None:
        """Look now and then, until cancelled."""
        while True:
            await trio.sleep(RECYCLE_INTERVAL)
            for supervisor in self._supervisors:
                worker = supervisor.current
                # While the one before it drains there is no place for a successor, and waiting for that would hold up
                # the replacements of all others, and SIGHUP.
                if worker is None or not supervisor.serves or len(supervisor.workers) > 1:
                    continue
                reason = self._reason(worker)
                if reason is None:
                    continue
                async with self._rolling:
                    if supervisor.current is worker and supervisor.serves:
                        await self._replace(supervisor, worker, reason)

    async def _replace(self, supervisor: WorkerSupervisor, worker: WorkerProcess, reason: str) -> None:
        logger.info("worker process %d (%s) is replaced: %s", supervisor.index, worker.pid, shown(reason))
        try:
            await supervisor.replace()
        except WorkerFailed:  # the supervisor has logged it, and the old process goes on
            await trio.sleep(LONGEST_PAUSE)
        else:
            self.recycled += supervisor.current is not worker

    def _reason(self, worker: WorkerProcess) -> str | None:
        """Why a process has served enough; None if it has not."""
        config, statistics = self._config, worker.statistics
        if config.max_connections_per_worker is not None and statistics is not None:
            if worker not in self._most:
                extra = random.randint(0, config.max_connections_per_worker_jitter)  # noqa: S311 - no secret
                self._most[worker] = config.max_connections_per_worker + extra
            if statistics.accepted >= self._most[worker]:
                return f"it has had {statistics.accepted} connections (max_connections_per_worker)"
        if config.max_worker_lifetime is not None and worker.ready_at is not None:
            age = trio.current_time() - worker.ready_at
            if age >= config.max_worker_lifetime:
                return f"it has served for {age:.0f} seconds (max_worker_lifetime)"
        if config.max_worker_memory is not None and worker.pid is not None:
            memory = resident_memory(worker.pid)
            if memory is not None and memory > config.max_worker_memory and self._has_grown(worker, memory):
                return f"it has {memory} bytes in memory (max_worker_memory)"
        return None

    def _has_grown(self, worker: WorkerProcess, memory: int) -> bool:
        """Whether a successor may have less: not soon after the beginning, or processes would be replaced all the time."""
        if worker.ready_at is None or trio.current_time() - worker.ready_at >= SOON:
            return True
        count = None if worker in self._large else log_throttle("max_worker_memory").count()
        self._large.add(worker)
        if count is not None:
            logger.warning(
                "max_worker_memory is %d bytes, and a worker process has %d when it has hardly begun: processes are "
                "replaced all the time, after %g seconds each; allow more%s",
                self._config.max_worker_memory,
                memory,
                SOON,
                shown(since_last(count)),
            )
        return False

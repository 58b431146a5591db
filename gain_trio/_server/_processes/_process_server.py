"""What a program sees of a server whose connections are in worker processes."""

from __future__ import annotations

import logging
import os
from typing import Any, final

from gain_trio._server._checks import check_timeout
from gain_trio._server._program_metrics import GatheredMetrics
from gain_trio._server._server import Server
from gain_trio._server._snapshot import ServerSnapshot
from gain_trio._server._statistics import ServerStatistics
from gain_trio._transports import shown

from ._worker_pool import WorkerPool

logger = logging.getLogger("gain_trio")


@final
class ProcessServer(Server):
    """A :class:`Server`; what it counts comes from the worker processes, and is some hundredths of a second old."""

    _is_of_processes = True

    def __init__(
        self, pool: WorkerPool, addresses: tuple[Any, ...]
    ) -> None:  # no part of what a server in one process has
        self._pool = pool
        self.addresses = addresses
        self.draining = pool.draining

    @property
    def active_connections(self) -> int:
        """See :attr:`Server.active_connections`."""
        return self.statistics().active

    @property
    def cut_off(self) -> int:
        """See :attr:`Server.cut_off`."""
        return self._pool.cut_off

    def stop_accepting(self) -> None:
        """See :meth:`Server.stop_accepting`.  With socket sharding the processes do it, some moments later."""
        self._pool.stop_accepting()

    async def drain(self, timeout: float) -> None:
        """See :meth:`Server.drain`."""
        check_timeout("timeout", timeout)
        self._begin_to_drain(timeout)
        await self._pool.ended.wait()

    def _begin_to_drain(self, timeout: float) -> None:
        """See :meth:`Server._begin_to_drain`."""
        if not self.draining.is_set():
            logger.info("%s drains: %d connections have %g seconds", shown(self), self.active_connections, timeout)
        self._pool.drain(timeout)

    def statistics(self) -> ServerStatistics:
        """See :meth:`Server.statistics`."""
        return self._pool.statistics()

    def _status(self) -> str:
        processes, _restarts = self._process_counts()
        return f"{super()._status()}, {processes} of {len(self._pool.supervisors)} worker processes"

    def _is_ready(self) -> bool:
        """See :meth:`Server._is_ready`; without a process that answers, connections wait in the backlog."""
        return self._pool.accepts and self._process_counts()[0] > 0

    def _process_ids(self) -> list[int]:
        """See :meth:`Server._process_ids`."""
        workers = [worker for supervisor in self._pool.supervisors for worker in supervisor.workers]
        return [os.getpid(), *(worker.pid for worker in workers if worker.pid is not None)]

    def _process_counts(self) -> tuple[int, int]:
        supervisors = self._pool.supervisors
        return sum(supervisor.answers for supervisor in supervisors), sum(
            supervisor.restarts for supervisor in supervisors
        )

    def _late_processes(self) -> int:
        return sum(supervisor.serves and not supervisor.answers for supervisor in self._pool.supervisors)

    async def _program_metrics(self) -> GatheredMetrics:
        return await self._pool.metrics.gather()

    async def _snapshot(self) -> ServerSnapshot:
        """See :meth:`Server._snapshot`."""
        processes = await self._pool.snapshots.gather()
        is_serving = self._pool.accepts and not self.draining.is_set()
        return ServerSnapshot(
            "serving" if is_serving else "draining",
            self.addresses,
            processes,
            self.statistics(),
            restarts=self._process_counts()[1],
        )

    def _end_failure(self) -> Exception | None:
        return self._pool.end_failure()

    async def _renew(self) -> None:
        await self._pool.roll()

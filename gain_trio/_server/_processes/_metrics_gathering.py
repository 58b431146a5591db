"""The program's own metrics from the worker processes of a server: asked for, awaited for a bounded time, kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

import trio

from gain_trio._server._program_metrics import SERVER, GatheredMetrics, ProgramMetrics, reported_metrics
from gain_trio._server._time_limits import GATHERING

from ._supervisor import WorkerSupervisor
from ._worker_process import WorkerProcess, WorkerState


@final
class MetricsGathering:
    """Asks all processes at once.  Scrapes that wait for the same turn share what it brings."""

    def __init__(self, supervisors: Sequence[WorkerSupervisor]) -> None:
        self._supervisors = supervisors
        self._turn = trio.Lock()
        self._begun = 0
        self._gathered = (0, GatheredMetrics())  # and the number of the turn that brought it

    async def gather(self) -> GatheredMetrics:
        """The metrics of all processes.  One that does not answer in time has those of its last report."""
        before = self._begun
        async with self._turn:
            if self._gathered[0] <= before:  # it began before this call, and may lack what was counted since
                self._begun += 1
                self._gathered = (self._begun, await self._ask())
        return self._gathered[1]

    async def _ask(self) -> GatheredMetrics:
        # A process that is being started is asked at the next scrape: it has counted nothing.
        workers = [
            worker
            for supervisor in self._supervisors
            for worker in supervisor.workers
            if worker.state in (WorkerState.READY, WorkerState.LEAVING)
        ]
        answered: set[WorkerProcess] = set()
        own: list[ProgramMetrics] = []

        async def ask(worker: WorkerProcess) -> None:
            if await worker.metrics.ask():
                answered.add(worker)

        async def ask_this_process() -> None:
            own.append(await reported_metrics())

        with trio.move_on_after(GATHERING):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask_this_process, name="gain_trio metrics")
                for worker in workers:
                    nursery.start_soon(ask, worker, name="gain_trio metrics")
        parts = (*self._parts(), *((SERVER, metrics) for metrics in own))
        missing = [worker for worker in workers if worker not in answered and worker.state is not WorkerState.ENDED]
        incomplete = len(missing) + (not own)
        incomplete += sum(not part.is_complete for _label, part in parts)
        return GatheredMetrics(parts=parts, incomplete=incomplete)

    def _parts(self) -> Iterator[tuple[str | None, ProgramMetrics]]:
        """By supervisor, and in it what is gone, what drains, what serves: of two with one label the last counts."""
        for supervisor in self._supervisors:
            yield None, supervisor.past_metrics
            for worker in sorted(supervisor.workers, key=lambda worker: worker is supervisor.current):
                if worker.metrics.last is not None:
                    yield str(supervisor.index), worker.metrics.last

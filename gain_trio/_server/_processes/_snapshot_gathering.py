"""What the worker processes of a server serve: asked for, awaited for a bounded time, with what is known without them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final, final

import trio

from gain_trio._server._process_usage import cpu_seconds, resident_memory
from gain_trio._server._snapshot import ProcessSnapshot, ProcessState
from gain_trio._server._time_limits import LOOKING

from ._supervisor import WorkerSupervisor
from ._worker_process import WorkerProcess, WorkerState

_STATES: Final[dict[WorkerState, ProcessState]] = {
    WorkerState.STARTING: "starting",
    WorkerState.READY: "serving",
    WorkerState.LEAVING: "draining",
}


@final
class SnapshotGathering:
    """Asks all processes at once.  One that has not answered before is not waited for, until it does."""

    def __init__(self, supervisors: Sequence[WorkerSupervisor]) -> None:
        self._supervisors = supervisors

    async def gather(self) -> tuple[ProcessSnapshot, ...]:
        """The server's own process and all others.  One that does not answer in time is late, with its last answer."""
        workers = [(supervisor.index, worker) for supervisor in self._supervisors for worker in supervisor.workers]
        with trio.move_on_after(LOOKING):
            async with trio.open_nursery() as nursery:
                for _index, worker in workers:
                    has_begun = worker.state in (WorkerState.READY, WorkerState.LEAVING)
                    if has_begun and not worker.snapshots.is_waiting:
                        nursery.start_soon(worker.snapshots.ask, name="gain_trio look")
        own = os.getpid()
        return (
            ProcessSnapshot(own, "serving", cpu_seconds=cpu_seconds(own), memory=resident_memory(own)),
            *(_seen(index, worker) for index, worker in workers if worker.state is not WorkerState.ENDED),
        )


def _seen(index: int, worker: WorkerProcess) -> ProcessSnapshot:
    state = _STATES[worker.state]
    if worker.state is WorkerState.READY and (worker.snapshots.is_waiting or not worker.answers):
        state = "late"
    pid = worker.pid
    return ProcessSnapshot(
        pid,
        state,
        index,
        worker.snapshots.last,
        None if pid is None else cpu_seconds(pid),
        None if pid is None else resident_memory(pid),
    )

"""The supervisor of one worker process: it keeps one process running, and starts its successors.

::

    supervisor                           a task in the server's nursery
    ├─ the process that serves           its control channel, the connections on their way to it, its exit status
    └─ the one before it                 while that drains: never more than one

A process that dies is replaced at once.  One that dies soon again is replaced after a pause, which doubles up to a limit, so
that a machine in trouble is not kept busy with starting processes.

*A server that has never been up* ends with the reason when a process cannot begin to serve several times in a row; when
the process reports its reason itself, and no process of this supervisor has served yet, the first time is enough.  The
server also ends when its first processes all die as soon as they serve; one process that has lasted, or has had a
connection, shows that the server can run.

*A server that has been up* tries for ever: code that cannot be imported any more, or memory that is short, is no reason to
end the processes that serve, or to refuse what waits in the backlog when the cause is gone.

When a process is to be replaced (SIGHUP to the server, SIGTERM to the process), its successor serves before it stops.
A successor that cannot begin then ends nothing: the old one goes on.  If that was itself asked to go, it drains all the
same, and successors are tried meanwhile, with the same pauses.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Final, final

import attrs
import trio

from gain_trio._server._program_metrics import MergedMetrics, ProgramMetrics
from gain_trio._server._statistics import ServerStatistics
from gain_trio._server._time_limits import (
    AT_ONCE,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    SHORTEST_START,
    SOON,
    START_TIMEOUT,
)
from gain_trio._transports import shown, shown_lines

from ._worker_failed import WorkerFailed, failure_of
from ._worker_process import WorkerProcess, WorkerState

ATTEMPTS: Final = 4
"""Processes in a row that end before they serve, or the first ones if they end as soon as they do."""

logger = logging.getLogger("gain_trio")


def start_timeout(worker_timeout: float | None) -> float:
    """Seconds that a process may take to begin."""
    return START_TIMEOUT if worker_timeout is None else max(4 * worker_timeout, SHORTEST_START)


def pause_before(deaths: int) -> float:
    """Seconds to wait after this number of deaths in a row: none after the first."""
    return 0.0 if deaths < 2 else min(FIRST_PAUSE * 2 ** min(deaths - 2, 16), LONGEST_PAUSE)


@final
class WorkerSupervisor:
    """See the top of this module.

    Args:
      index: its number, from 0.
      make: makes a process for it, that is not started yet.
      strict: whether an exception that ends a process ends the server.
      graceful_timeout: seconds that the connections of a process have when it is replaced.
      changed: called when another process serves, or none does.
      fail: called with what is to end the server.
      ended_badly: called with the failure of a process at its requested end, and whether the server was cancelled.
      start_timeout: seconds that a process may take to begin.
      is_up: whether all supervisors have had a process that served.
      has_lasted: whether a process of any supervisor has lasted, see :attr:`has_lasted`.
    """

    def __init__(
        self,
        index: int,
        make: Callable[[WorkerSupervisor], WorkerProcess],
        *,
        strict: bool,
        graceful_timeout: float,
        changed: Callable[[], object],
        fail: Callable[[WorkerFailed], object],
        ended_badly: Callable[[WorkerFailed, bool], object] = lambda _failure, _was_cancelled: None,
        start_timeout: float = START_TIMEOUT,
        is_up: Callable[[], bool] = lambda: False,
        has_lasted: Callable[[], bool] = lambda: False,
    ) -> None:
        self.index = index
        self.current: WorkerProcess | None = None
        """The one that serves."""
        self.restarts = 0
        """Processes that were started to replace one that had died."""
        self.hung = 0
        """Processes that were killed because they did not answer."""
        self.failed_starts = 0
        """Processes that ended before they served."""
        self.past_metrics = ProgramMetrics()
        """The program's metrics in processes that are gone, as far as they are sums."""
        self._make = make
        self._strict = strict
        self._graceful_timeout = graceful_timeout
        self._changed = changed
        self._fail = fail
        self._ended_badly = ended_badly
        self._start_timeout = start_timeout
        self._is_up = is_up
        self._any_has_lasted = has_lasted
        self._has_lasted = False
        self._living: list[WorkerProcess] = []
        self._past: ServerStatistics | None = None  # of those that are gone
        self._noted = trio.Event()
        self._wanted = 0  # replacements asked for
        self._done = 0  # and made, or given up
        self._refusal: WorkerFailed | None = None
        self._closing = trio.Event()

    @property
    def workers(self) -> tuple[WorkerProcess, ...]:
        """All processes that there are: the one that serves, one that is being started, one that drains."""
        return tuple(self._living)

    @property
    def serves(self) -> bool:
        """Whether there is a process that takes connections."""
        return self.current is not None and self.current.state is WorkerState.READY

    @property
    def answers(self) -> bool:
        """Whether there is a process that takes connections and is not late with them."""
        return self.current is not None and self.current.answers

    @property
    def has_lasted(self) -> bool:
        """Whether a process here has served for :data:`AT_ONCE`, or has had a connection."""
        worker = self.current
        if not self._has_lasted and worker is not None and worker.ready_at is not None:
            self._has_lasted = worker.has_served or trio.current_time() - worker.ready_at >= AT_ONCE
        return self._has_lasted

    @property
    def is_empty(self) -> bool:
        """Whether there is no process, and will be none: only when the server drains."""
        return self._closing.is_set() and not self._living

    def note(self) -> None:
        """Something may have changed: look."""
        self._noted.set()

    def close(self, timeout: float) -> None:
        """Let the processes drain, and start no more."""
        self._closing.set()
        for worker in self._living:
            worker.drain(timeout)
        self.note()

    async def replace(self) -> None:
        """Replace the process, and return when the new one serves, or when the server drains.

        Raises:
          WorkerFailed: it cannot begin to serve; the old one goes on.
        """
        self._wanted += 1
        number = self._wanted
        self._refusal = None
        self.note()
        await self._until(lambda: self._done >= number or self._closing.is_set())
        if self._refusal is not None:
            raise self._refusal

    def asked_to_leave(self, worker: WorkerProcess) -> None:
        """Its process was sent a SIGTERM."""
        if worker is self.current:
            self._wanted += 1
            self.note()

    def statistics(self) -> ServerStatistics | None:
        """The sums over all its processes, past ones included; None before a process has reported any."""
        parts = [self._past] if self._past is not None else []
        parts += [worker.statistics for worker in self._living if worker.statistics is not None]
        return merged(parts) if parts else None

    # --- the supervisor ---

    async def supervise(self) -> None:
        """Keep a process running, until cancelled or closed."""
        async with trio.open_nursery() as nursery:
            deaths = 0
            await self._fill(nursery)
            while not self._closing.is_set():
                worker = self.current
                assert worker is not None
                await self._until(lambda worker=worker: self._is_to_be_replaced(worker))  # type: ignore[misc]
                if worker.state is WorkerState.ENDED and not self._closing.is_set():
                    deaths = deaths + 1 if self._died_soon(worker) else 1
                    self._has_lasted = self._has_lasted or not self._died_at_once(worker)
                    if deaths >= ATTEMPTS and not self._has_lasted and not self._any_has_lasted():
                        summary = f"worker process {self.index} died as soon as it served, {ATTEMPTS} times in a row"
                        self._fail(failure_of(summary, worker.failure, worker.end))
                        await trio.sleep_forever()  # the server ends, and this with it
                    await self._pause(deaths)
                await self._fill(nursery)

    def _is_to_be_replaced(self, worker: WorkerProcess) -> bool:
        if self._closing.is_set() or worker.state is WorkerState.ENDED:
            return True
        # The one before it has to be gone: so there are never more than two.
        return self._wanted > self._done and len(self._living) == 1

    def _died_soon(self, worker: WorkerProcess) -> bool:
        return worker.ready_at is not None and trio.current_time() - worker.ready_at < SOON

    def _died_at_once(self, worker: WorkerProcess) -> bool:
        if worker.ready_at is None or trio.current_time() - worker.ready_at >= AT_ONCE:
            return False
        return not worker.has_served

    async def _pause(self, deaths: int) -> None:
        with trio.move_on_after(pause_before(deaths)):
            await self._until(lambda: self._closing.is_set())

    async def _fill(self, nursery: trio.Nursery) -> None:
        """Start a new process.  If it cannot begin to serve, and the old one may go on, that one stays."""
        old, attempt, uncounted, known = self.current, 0, 0, ""
        while not self._closing.is_set():
            attempt += 1
            wanted = self._wanted  # what is asked for from now on may be because of what this one has loaded already
            worker = self._make(self)
            took_too_long = await self._begin(worker, nursery)
            if self._closing.is_set():
                return
            if worker.ready_at is not None and not took_too_long:  # it began, be it dead by now
                self._install(worker, wanted)
                return
            self.failed_starts += 1
            end = worker.end + (f" (it had {self._start_timeout:g} seconds)" if took_too_long else "")
            error = failure_of(f"worker process {self.index} could not begin to serve", worker.failure, end)
            if old is not None and old.state is not WorkerState.ENDED:
                self._refuse(wanted, error)
                if not old.was_asked_to_leave:
                    logger.error(
                        "process %s goes on, because its successor failed: %s%s",
                        old.pid,
                        shown(error.reason),
                        shown_lines(f"\n{error.worker_traceback}" if error.worker_traceback else ""),
                    )
                    return
                if old.state is WorkerState.READY:
                    old.drain(self._graceful_timeout)
            if old is not None and (old.state is not WorkerState.ENDED or not worker.was_started):
                # Those of the old one are served still; or this process or the machine is out of something, and may have
                # it again.
                attempt = 0
                uncounted += 1
            elif self._is_up():
                attempt = 0
                uncounted += 1
            if attempt == ATTEMPTS or (old is None and worker.failure is not None):
                self._fail(error)
                await trio.sleep_forever()  # the server ends, and this with it
            logger.error(
                "worker process %d could not begin to serve, and is tried again: %s%s",
                self.index,
                shown(error.reason),
                f"\n{shown_lines(error.worker_traceback)}" if error.worker_traceback not in ("", known) else "",
            )
            known = error.worker_traceback
            await self._pause(uncounted + attempt + 1)

    async def _begin(self, worker: WorkerProcess, nursery: trio.Nursery) -> bool:
        """Start a process, and wait until it serves or is gone.  True if it took too long."""
        self._living.append(worker)
        nursery.start_soon(self._run, worker, name=f"gain_trio worker process {self.index}")
        with trio.move_on_after(self._start_timeout) as scope:
            await self._until(lambda: worker.state is not WorkerState.STARTING)
        if scope.cancelled_caught:
            worker.cancel()
            await self._until(lambda: worker.state is WorkerState.ENDED)
        return scope.cancelled_caught

    async def _run(self, worker: WorkerProcess) -> None:
        was_cancelled = False
        try:
            await worker.run()
        except BaseException:
            was_cancelled = True
            raise
        finally:
            self._living.remove(worker)
            if worker.statistics is not None:
                past = [self._past] if self._past is not None else []
                self._past = merged([*past, without_open_ones(worker.statistics)])
            if worker.metrics.last is not None:
                self.past_metrics = without_gauges(self.past_metrics, worker.metrics.last)
            self._changed()
            if worker.failure is not None and worker.ready_at is not None:
                failure = failure_of(f"worker process {self.index} has failed", worker.failure, worker.end)
                if worker.has_reported_failure and (was_cancelled or worker.was_told_to_drain):
                    self._ended_badly(failure, was_cancelled)
                if self._strict:
                    self._fail(failure)
            if worker.was_lost and worker.ready_at is not None and (was_cancelled or worker.was_told_to_drain):
                self._report_loss(worker)
                summary = f"worker process {self.index} has cut connections off at its end"
                self._ended_badly(failure_of(summary, None, worker.end), was_cancelled)
        if worker.ready_at is not None and not worker.was_told_to_drain:  # also while its successor is being started
            self._report_death(worker)
            self.restarts += 1

    def _install(self, worker: WorkerProcess, wanted: int) -> None:
        old, self.current = self.current, worker
        self._done = max(self._done, wanted)
        self._refusal = None
        self._changed()
        if old is not None:
            old.drain(self._graceful_timeout)
        if worker.was_asked_to_leave:
            self._wanted += 1
        logger.info("worker process %d (%s, on %s) serves", self.index, worker.pid, worker.backend)
        self.note()

    def _refuse(self, wanted: int, error: WorkerFailed) -> None:
        """Make every task that waits for another process raise ``error``."""
        self._refusal = error
        self._done = max(self._done, wanted)
        self.note()

    def _report_death(self, worker: WorkerProcess) -> None:
        text = worker.failure.traceback if worker.failure is not None else ""
        logger.error(
            "worker process %d (%s) %s, and is replaced%s",
            self.index,
            worker.pid,
            shown(worker.end),
            f":\n{shown_lines(text)}" if text else "",
        )

    def _report_loss(self, worker: WorkerProcess) -> None:
        """Log that a process which was to end has ended otherwise."""
        logger.error(
            "worker process %d (%s) %s when it was to end: its connections are cut off",
            self.index,
            worker.pid,
            shown(worker.end),
        )

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._noted = trio.Event() if self._noted.is_set() else self._noted
            await self._noted.wait()


# --- statistics ---


def merged(parts: list[ServerStatistics]) -> ServerStatistics:
    """The statistics of processes of one supervisor, one after the other: their consumers are the same."""
    total = ServerStatistics.total(parts)
    return attrs.evolve(
        total,
        connections_by_consumer=_sums(part.connections_by_consumer for part in parts),
        active_by_consumer=_sums(part.active_by_consumer for part in parts),
    )


def _sums(rows: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*rows, strict=True)))


def without_open_ones(statistics: ServerStatistics) -> ServerStatistics:
    """The statistics of a process that is gone: its open connections were cut off, and its ring is closed."""
    requests = statistics.requests
    return attrs.evolve(
        statistics,
        active=0,
        cancelled=statistics.cancelled + statistics.active,
        active_by_consumer=tuple(0 for _ in statistics.active_by_consumer),
        rings=(),
        requests=None if requests is None else attrs.evolve(requests, in_progress=0),
    )


def without_gauges(*parts: ProgramMetrics) -> ProgramMetrics:
    """The sums in the metrics of processes that are gone."""
    total = MergedMetrics()
    for part in parts:
        total.add(part, None)
    return total.result()

"""The program's own metrics in one worker process, as the server knows them, and its requests for newer ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import final

import trio

from gain_trio._server._program_metrics import ProgramMetrics

from ._control_messages import Message, MetricsReport, ReportMetrics


@final
class WorkerMetrics:
    """The last report, and requests that have a number each."""

    def __init__(self) -> None:
        self.last: ProgramMetrics | None = None
        """What the process last reported."""
        self._asked = 0
        self._answered = 0
        self._has_ended = False
        self._wanted = trio.Event()
        self._reported = trio.Event()

    async def ask(self) -> bool:
        """Have the process report, and wait for that.  False: it has ended, and :attr:`last` is all there is.

        When this is cancelled, the report still comes, and :attr:`last` has it then.
        """
        self._asked += 1
        number = self._asked
        self._wanted.set()
        while self._answered < number and not self._has_ended:
            await self._reported.wait()
        return not self._has_ended

    async def send_requests(self, send: Callable[[Message], Awaitable[None]]) -> None:
        """Send requests to the process; one for those that have come together.  Runs until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            await send(ReportMetrics(self._asked))

    def note(self, report: MetricsReport) -> None:
        """A report has come."""
        self.last = report.metrics
        self._answered = report.number
        self._wake()

    def end(self) -> None:
        """The process is gone."""
        self._has_ended = True
        self._wake()

    def _wake(self) -> None:
        self._reported.set()
        self._reported = trio.Event()

"""What the server asks a worker process to report, and the last report that has come."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar, final

import trio

from ._control_messages import Message

Report = TypeVar("Report")


@final
class WorkerReports(Generic[Report]):
    """The last report of one kind, and requests that have a number each.

    Args:
      request: makes the message that asks for a report, with the number of the request.
    """

    def __init__(self, request: Callable[[int], Message]) -> None:
        self.last: Report | None = None
        """What the process last reported."""
        self._request = request
        self._asked = 0
        self._answered = 0
        self._has_ended = False
        self._wanted = trio.Event()
        self._reported = trio.Event()

    @property
    def is_waiting(self) -> bool:
        """Whether the process has not answered the last request yet."""
        return self._answered < self._asked

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
            await send(self._request(self._asked))

    def note(self, number: int, report: Report) -> None:
        """Keep the report that has come in answer to the request of this number."""
        self.last = report
        self._answered = number
        self._wake()

    def end(self) -> None:
        """The process is gone."""
        self._has_ended = True
        self._wake()

    def _wake(self) -> None:
        self._reported.set()
        self._reported = trio.Event()

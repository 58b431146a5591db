"""What looks on while requests are served: the count of requests, their limit, and the lines of the access log.

A server without any of them has no observer, and its requests pay one comparison.
"""

from __future__ import annotations

import logging
import random
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol, final

import trio

from gain_trio._server import BUCKETS, RequestInProgress, RequestStatistics, log_throttle, since_last, ungrouped
from gain_trio._transports import shown

from ._access_log import BufferedLines

FLUSH_SECONDS: Final = 1.0
"""Seconds that a line of the access log may wait for others."""

logger = logging.getLogger("gain_trio")


class RequestObserver(Protocol):
    """An object that the server calls at the beginning and the end of each request: for a log, and for metrics."""

    def began(self, scope: dict[str, Any]) -> Any:
        """Note that a request begins, and return a token for :meth:`ended`."""

    def ended(self, token: Any, scope: dict[str, Any], status: int, size: int, error: BaseException | None) -> None:
        """Note that a request is over.

        Args:
          token: the result of :meth:`began`.
          scope: the scope of the request.
          status: the status of the response; 0 without a response.
          size: the bytes of its body that were sent.
          error: the exception that the app has raised, or None.
        """


@final
class RequestCounter:
    """Counts requests by the class of their status and by their duration."""

    def __init__(self, timer: Callable[[], float] = time.perf_counter) -> None:
        self._timer = timer
        self._in_progress = 0
        self._by_status = [0] * 6
        self._by_duration = [0] * (len(BUCKETS) + 1)
        self._seconds = 0.0

    def began(self, _scope: dict[str, Any]) -> float:
        """See :meth:`RequestObserver.began`."""
        self._in_progress += 1
        return self._timer()

    def ended(
        self, token: float, _scope: dict[str, Any], status: int, _size: int, _error: BaseException | None
    ) -> None:
        """See :meth:`RequestObserver.ended`."""
        seconds = self._timer() - token
        self._in_progress -= 1
        self._seconds += seconds
        self._by_duration[bisect_left(BUCKETS, seconds)] += 1
        digit = status // 100
        self._by_status[digit if digit < 6 else 0] += 1

    def statistics(self) -> RequestStatistics:
        """A snapshot."""
        return RequestStatistics(self._in_progress, tuple(self._by_status), tuple(self._by_duration), self._seconds)


@final
class RequestsInProgress:
    """Notes the requests in progress, each by the task of its connection."""

    def __init__(self) -> None:
        self._by_task: dict[trio.lowlevel.Task, tuple[str, str, float]] = {}

    def began(self, scope: dict[str, Any]) -> trio.lowlevel.Task:
        """See :meth:`RequestObserver.began`."""
        task = trio.lowlevel.current_task()
        # Apps may change a scope.  That of a WebSocket has no method: the handshake is a GET.
        self._by_task[task] = (scope.get("method", "GET"), scope["path"], trio.current_time())
        return task

    def ended(
        self,
        token: trio.lowlevel.Task,
        _scope: dict[str, Any],
        _status: int,
        _size: int,
        _error: BaseException | None,
    ) -> None:
        """See :meth:`RequestObserver.ended`."""
        self._by_task.pop(token, None)

    def of_task(self, task: trio.lowlevel.Task) -> RequestInProgress | None:
        """The request that this task serves; without its query, which may have secrets in it."""
        entry = self._by_task.get(task)
        if entry is None:
            return None
        method, path, began = entry
        return RequestInProgress(f"{shown(method, 20)} {shown(path, 200)}", began)


@final
class RequestLimit:
    """Sets an event when a number of requests is over.

    Args:
      most: requests.
      jitter: up to how many more, by chance.
    """

    def __init__(self, most: int, jitter: int) -> None:
        self._left = most + random.randint(0, jitter)  # noqa: S311 - it keeps no secret
        self.reached = trio.Event()

    def began(self, _scope: dict[str, Any]) -> None:
        """See :meth:`RequestObserver.began`."""

    def ended(
        self, _token: None, _scope: dict[str, Any], _status: int, _size: int, _error: BaseException | None
    ) -> None:
        """See :meth:`RequestObserver.ended`."""
        self._left -= 1
        if self._left <= 0:
            self.reached.set()


@final
class _Several:
    """Several observers as one."""

    def __init__(self, observers: Sequence[RequestObserver]) -> None:
        self._observers = observers

    def began(self, scope: dict[str, Any]) -> list[Any]:
        return [observer.began(scope) for observer in self._observers]

    def ended(
        self, token: list[Any], scope: dict[str, Any], status: int, size: int, error: BaseException | None
    ) -> None:
        for observer, own in zip(self._observers, token, strict=True):
            observer.ended(own, scope, status, size, error)


def joined(observers: Sequence[RequestObserver]) -> RequestObserver | None:
    """One observer that calls all of them; None for none."""
    return _Several(observers) if len(observers) > 1 else next(iter(observers), None)


@final
class AccessLines:
    """The lines of an access log on their way to a descriptor.

    A write that fails loses its lines, is logged, and fails no request.
    """

    def __init__(self, descriptor: int) -> None:
        self._lines = BufferedLines(descriptor)

    def write(self, line: str) -> None:
        """Add a line."""
        self._try(self._lines, line)

    def flush(self) -> None:
        """Write all lines."""
        self._try(self._lines.flush)

    def _try(self, function: Callable[..., None], *arguments: str) -> None:
        try:
            function(*arguments)
        except OSError as error:
            count = log_throttle("access log").count()
            if count is not None:
                text = "lines of the access log are lost: %s%s"
                logger.error(text, shown(error.strerror), shown(since_last(count)))

    @asynccontextmanager
    async def flushed(self) -> AsyncIterator[None]:
        """Write the lines at intervals, and at the end."""
        try:
            with ungrouped():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._flush_at_intervals, name="gain_trio access log")
                    yield
                    nursery.cancel_scope.cancel()
        finally:
            self.flush()

    async def _flush_at_intervals(self) -> None:
        while True:
            await trio.sleep(FLUSH_SECONDS)
            self.flush()

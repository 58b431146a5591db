"""The statistics of a server for Prometheus: ``GET /metrics``, in the format that prometheus_client writes.

Beside them are two answers for a load balancer or an orchestrator: ``GET /healthz`` is 200 as long as the event loop of the
server's process goes round, and ``GET /ready`` is 200 as long as the server accepts connections, and 503 when it drains.

The numbers are those of :meth:`Server.statistics`, and the program's own (``_program_metrics``), over all worker processes,
asked for at each scrape.  The endpoint is a small server of this package's own, in the server's process, with limits on
everything: who can reach it can neither hold much nor keep it busy for long.

A client that sends nothing is cut off after :data:`HEAD_TIMEOUT`, and at once when :data:`MOST_SILENT` have connected after
it.  So silent clients hold up no scrape, however many they are.  And no request causes a traceback: what prometheus_client
cannot understand in an ``Accept`` is answered in the format for clients that have none.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
import socket
from collections.abc import Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, final

import attrs
import trio

from gain_trio._http import Limits, Refused, RequestMemory, RequestReader, response, split_target
from gain_trio._transports import (
    Connection,
    IncompleteMessage,
    MessageTooLong,
    SocketOptions,
    close_sockets,
    open_sockets,
    shown,
)

from ._listening import serve_listeners
from ._log_throttle import log_throttle, since_last
from ._program_metrics import GatheredMetrics, metrics_thread
from ._server import Server
from ._server_config import ServerConfig
from ._statistics import BUCKETS, RequestStatistics

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

PATH: Final = b"/metrics"
HEALTH_PATH: Final = b"/healthz"
READY_PATH: Final = b"/ready"
LARGEST_REQUEST: Final = 8192
"""Bytes of a request's head; a request for metrics has no more."""
HEAD_TIMEOUT: Final = 2.0
"""Seconds that a request's head may take."""
TIMEOUT: Final = 10.0
"""Seconds for a request and its answer."""
MOST_SILENT: Final = 16
"""Connections whose request has not come yet; one more, and the oldest of them is reset."""
MOST_AT_ONCE: Final = 64
"""Connections; others wait."""
_LIMITS: Final = Limits(head=LARGEST_REQUEST, needs_host=False)
"""The limits of a request.  The endpoint has one host, so a script need not name it."""
INCOMPLETE: Final = "gain_trio_program_metrics_incomplete"
"""The metric that says whether the program's are all there."""
_CLOSE: Final = b"Connection: close\r\n"
_ACCEPT: Final = re.compile(r"[\t\x20-\x7e]*")
"""What a field's value may consist of."""


logger = logging.getLogger("gain_trio")


@final
class MetricsEndpoint:
    """An endpoint that listens, for the server that :meth:`run` is given."""

    def __init__(self, groups: list[list[socket.socket]]) -> None:
        self._groups = groups
        self.addresses: tuple[Any, ...] = tuple(sock.getsockname() for group in groups for sock in group)
        """Where it listens."""

    @classmethod
    async def open(cls, address: str, options: SocketOptions) -> MetricsEndpoint:
        """Listen.

        Raises:
          ImportError: prometheus_client is not installed; says how to do so.
          ValueError, OSError: the address is not valid, or not available.
        """
        try:
            import prometheus_client  # noqa: F401, PLC0415 - an extra, which only this needs
        except ImportError as error:
            raise ImportError(
                f'metrics={address!r} needs the package prometheus_client ({error}): pip install "gain-trio[metrics]"'
            ) from error
        return cls(await open_sockets([address], options))

    def close(self) -> None:
        """Stop listening; for when :meth:`run` was not called.  Again: nothing."""
        close_sockets(self._groups)

    async def run(self, server: Server) -> None:
        """Answer, until cancelled."""
        config = ServerConfig(max_connections=MOST_AT_ONCE)
        await serve_listeners(_MetricsHandler(server), self._groups, config)


@final
class _MetricsHandler:
    """Answers one request, and closes the connection."""

    def __init__(self, server: Server) -> None:
        self.__qualname__ = "gain_trio metrics"  # in the log; in the body of the class it would be the class's own
        self._server = server
        self._memory = RequestMemory()
        self._silent: dict[trio.CancelScope, None] = {}  # of connections whose request is waited for, oldest first

    async def __call__(self, connection: Connection) -> None:
        with trio.move_on_after(TIMEOUT):
            try:
                head = await self._receive_head(connection)
            except IncompleteMessage:
                return
            except MessageTooLong:
                with_content = not connection.peek(5).startswith(b"HEAD ")
                answer = _answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, with_content=with_content)
            else:
                if head is None:
                    connection.abort()
                    return
                answer = await self._answer_to(head)
            await connection.send(answer)
            await connection.aclose()
            return
        connection.abort()

    async def _receive_head(self, connection: Connection) -> bytes | None:
        """A request's head; None when it does not come in time, or later ones wait for the place."""
        with trio.move_on_after(HEAD_TIMEOUT) as scope:
            self._silent[scope] = None
            if len(self._silent) > MOST_SILENT:
                next(iter(self._silent)).cancel()
            try:
                return await connection.receive_until(b"\r\n\r\n", max_bytes=LARGEST_REQUEST)
            finally:
                del self._silent[scope]
        return None

    async def _answer_to(self, head: bytes) -> bytes:
        """The answer to a head without the empty line at its end.  A body is not read: the connection has one request."""
        scrape = self._understood(head)
        if isinstance(scrape, bytes):
            return scrape
        return scrape.answer(*await self._encoded(scrape.accept))

    def _understood(self, head: bytes) -> _Scrape | bytes:
        """The request for metrics, or the answer to one that is something else."""
        reader = RequestReader(self._memory, _LIMITS)
        reader.feed(head + b"\r\n\r\n")
        try:
            request = reader.next_request()
        except Refused as refusal:
            return _answer(refusal.status, str(refusal).encode("ascii"), with_content=not reader.wants_no_content)
        if request is None:  # an empty line, and nothing behind it
            return _answer(HTTPStatus.BAD_REQUEST)
        path, _query = split_target(request.target)
        with_content = request.method != b"HEAD"
        if path not in {PATH, HEALTH_PATH, READY_PATH}:
            return _answer(HTTPStatus.NOT_FOUND, b"The metrics are at " + PATH, with_content=with_content)
        if request.method not in {b"GET", b"HEAD"}:
            return _answer(HTTPStatus.METHOD_NOT_ALLOWED, more=b"Allow: GET, HEAD\r\n")
        if path != PATH:
            is_well = path == HEALTH_PATH or self._server._is_ready()
            status = HTTPStatus.OK if is_well else HTTPStatus.SERVICE_UNAVAILABLE
            return _answer(status, more=b"Cache-Control: no-store\r\n", with_content=with_content)
        accepts = [value for name, value in request.pairs if name == b"accept"]
        return _Scrape(b", ".join(accepts).decode("latin-1"), with_content)

    async def _encoded(self, accept: str) -> tuple[bytes, str]:
        """The metrics in a format that a client accepts, and its name."""
        gathered = await self._server._program_metrics()
        own = list(_server_metrics(self._server))
        content, content_type, error = await trio.to_thread.run_sync(
            _exposition, accept, own, gathered, abandon_on_cancel=True, limiter=metrics_thread()
        )
        count = None if error is None else log_throttle("exposition").count()
        if count is not None:
            text = "metrics of the program are left out, because prometheus_client cannot encode them: %s%s"
            logger.error(text, shown(error), shown(since_last(count)))
        return content, content_type


@final
@attrs.frozen
class _Scrape:
    """A request for metrics."""

    accept: str
    with_content: bool

    def answer(self, content: bytes, content_type: str) -> bytes:
        return response(HTTPStatus.OK, content, content_type=content_type, last=_CLOSE, with_content=self.with_content)


def _exposition(accept: str, own: list[Metric], gathered: GatheredMetrics) -> tuple[bytes, str, Exception | None]:
    """The server's metrics and the program's; without the program's, and with the reason, if these cannot be encoded."""
    names = {metric.name for metric in own} | {INCOMPLETE}
    metrics, incomplete = gathered.together()
    # prometheus_client's registry has the standard metrics of a process, too, which the server has summed.
    others = [metric for metric in metrics if metric.name not in names]
    if any(metric.name in names and metric.name.startswith("gain_trio_") for metric in metrics):
        incomplete = max(incomplete, 1)
    try:
        content, content_type = _encode(accept, [*own, _incomplete(incomplete), *others])
    except Exception as error:  # noqa: BLE001 - of samples that a collector of the program's has made
        content, content_type = _encode(accept, [*own, _incomplete(max(incomplete, 1))])
        return content, content_type, error
    return content, content_type, None


def _encode(accept: str, metrics: list[Metric]) -> tuple[bytes, str]:
    from prometheus_client.exposition import choose_encoder  # noqa: PLC0415 - see MetricsEndpoint.open()

    registry: Any = _Metrics(metrics)
    encode, content_type = choose_encoder("")
    if _ACCEPT.fullmatch(accept):  # or a part of it might become a line of the answer, which repeats the version
        with contextlib.suppress(
            Exception
        ):  # of ``version=abc`` it makes a ValueError; the client gets the usual format
            encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


@final
class _Metrics:
    """As much of a registry as an encoder needs."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics


def _answer(status: HTTPStatus, text: bytes = b"", *, more: bytes = b"", with_content: bool = True) -> bytes:
    content = (text or f"{status.value} {status.phrase}".encode("ascii")) + b"\n"
    return response(status, content, last=more + _CLOSE, with_content=with_content)


def _incomplete(count: int) -> Metric:
    from prometheus_client.metrics_core import GaugeMetricFamily  # noqa: PLC0415 - see MetricsEndpoint.open()

    return GaugeMetricFamily(INCOMPLETE, "Processes whose own metrics are missing, old, or not all here.", count)


def _server_metrics(server: Server) -> Iterator[Metric]:
    """The statistics as metrics, and those of its processes."""
    from prometheus_client.metrics_core import (  # noqa: PLC0415 - see MetricsEndpoint.open()
        CounterMetricFamily,
        GaugeMetricFamily,
    )

    from ._process_metrics import ProcessMetrics  # noqa: PLC0415 - the same

    now = server.statistics()
    yield CounterMetricFamily("gain_trio_connections_accepted", "Connections taken.", now.accepted)
    yield GaugeMetricFamily("gain_trio_connections_active", "Connections that are open.", now.active)
    closed = CounterMetricFamily(
        "gain_trio_connections_closed", "Connections that are over, by cause.", labels=["cause"]
    )
    for cause, count in now.closed.items():
        closed.add_metric([cause], count)
    yield closed
    yield CounterMetricFamily("gain_trio_received_bytes", "Bytes received from connections.", now.bytes_received)
    yield CounterMetricFamily("gain_trio_sent_bytes", "Bytes that the kernel has taken.", now.bytes_sent)
    taken = CounterMetricFamily(
        "gain_trio_consumer_connections", "Connections taken, by consumer.", labels=["consumer"]
    )
    open_now = GaugeMetricFamily(
        "gain_trio_consumer_connections_active", "Connections that are open, by consumer.", labels=["consumer"]
    )
    for index, count in enumerate(now.connections_by_consumer):
        taken.add_metric([str(index)], count)
        open_now.add_metric([str(index)], now.active_by_consumer[index])
    yield taken
    yield open_now
    processes, restarts = server._process_counts()
    yield GaugeMetricFamily("gain_trio_worker_processes", "Worker processes that serve.", processes)
    yield CounterMetricFamily("gain_trio_worker_restarts", "Worker processes replaced after they had died.", restarts)
    late = server._late_processes()
    yield GaugeMetricFamily(
        "gain_trio_worker_processes_late", "Worker processes that do not answer, and get no connections.", late
    )
    yield CounterMetricFamily(
        "gain_trio_worker_timeouts", "Worker processes killed because they did not answer.", now.hung_workers
    )
    yield CounterMetricFamily(
        "gain_trio_worker_failed_starts", "Worker processes that ended before they served.", now.failed_starts
    )
    yield CounterMetricFamily(
        "gain_trio_worker_recycled",
        "Worker processes replaced because they had served enough.",
        now.recycled_workers,
    )
    if now.requests is not None:
        yield from _request_metrics(now.requests)
    yield GaugeMetricFamily("gain_trio_rings", "Processes of the server with a ring.", len(now.rings))
    for name, text in _RING_GAUGES.items():
        total = sum(getattr(ring, name) for ring in now.rings)
        yield GaugeMetricFamily(f"gain_trio_ring_{name}", text, total)
    yield from ProcessMetrics(server._process_ids).collect()


def _request_metrics(requests: RequestStatistics) -> Iterator[Metric]:
    from prometheus_client.metrics_core import (  # noqa: PLC0415 - see MetricsEndpoint.open()
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    yield GaugeMetricFamily(
        "gain_trio_requests_in_progress", "Requests whose response is not over.", requests.in_progress
    )
    completed = CounterMetricFamily(
        "gain_trio_requests", "Requests that are over, by the class of their status.", labels=["status"]
    )
    for digit, count in enumerate(requests.by_status):
        completed.add_metric([f"{digit}xx" if digit else "none"], count)
    yield completed
    bounds = [*map(str, BUCKETS), "+Inf"]
    yield HistogramMetricFamily(
        "gain_trio_request_duration_seconds",
        "Time from the head of a request to the end of its response.",
        buckets=list(zip(bounds, itertools.accumulate(requests.by_duration), strict=True)),
        sum_value=requests.seconds,
    )


_RING_GAUGES: Final = {
    "submissions": "Operations handed to the kernel by the rings that there are.",
    "completions": "Completions reaped by the rings that there are.",
    "enter_calls": "io_uring_enter system calls of the rings that there are.",
    "overflows": "How often a completion queue was found overflown.",
    "starvations": "How often a receive ended because no buffer was free.",
    "uncopied_pieces": "How often large data that was received was not copied.",
    "buffers_free": "Receive buffers that the kernel can pick from.",
    "registered_files": "Connections whose sockets the rings hold by themselves, because they send often.",
    "operations_in_flight": "Operations that the kernel has not completed yet.",
}
"""Gauges, because a worker process that is replaced takes the figures of its ring along."""

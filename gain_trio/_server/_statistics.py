"""The counters of a server."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal, TypeAlias, final

import attrs

from gain_trio._io_manager import UringStatistics
from gain_trio._transports import DatagramStatistics

CloseCause: TypeAlias = Literal[
    "finished", "error", "broken", "too_slow", "idle", "cancelled", "refused", "failed_handshake"
]
"""Why a connection is over; each has one cause.  What they mean stands in :class:`ServerStatistics`."""


BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the buckets that durations of requests are counted in, in seconds."""


@final
@attrs.frozen
class RequestStatistics:
    """The requests that a server has counted."""

    in_progress: int = 0
    """Requests whose response is not over."""
    by_status: tuple[int, ...] = (0,) * 6
    """Requests that are over, by the first digit of the status of their response; 0 counts those without a response."""
    by_duration: tuple[int, ...] = (0,) * (len(BUCKETS) + 1)
    """Requests that are over, by duration: up to 1, 2.5, 5, 10, 25, 50, 100, 250 and 500 ms, up to 1, 2.5, 5, 10, 30 and 60
    seconds, and longer.  Each request is in one of them."""
    seconds: float = 0.0
    """The durations of all requests that are over."""

    @property
    def completed(self) -> int:
        """Requests that are over."""
        return sum(self.by_status)

    def __add__(self, other: RequestStatistics) -> RequestStatistics:
        return RequestStatistics(
            self.in_progress + other.in_progress,
            tuple(map(sum, zip(self.by_status, other.by_status, strict=True))),
            tuple(map(sum, zip(self.by_duration, other.by_duration, strict=True))),
            self.seconds + other.seconds,
        )


@final
@attrs.frozen
class ServerStatistics:
    """A snapshot of a server's counters.

    ``accepted`` is ``active`` and all that is in :attr:`closed`.

    Of worker processes it is the sum of their last reports.  A process reports when something has changed, at most 20 times
    a second; what a process that is killed had counted since its last report is lost with it.
    """

    accepted: int
    """Connections accepted so far."""
    active: int
    """Connections whose handler runs, or whose TLS handshake does."""
    finished: int
    """Connections whose handler returned, whatever had become of the connection by then."""
    handler_errors: int
    """Connections whose handler ended with an exception, other than those of the next two."""
    broken: int
    """Connections whose handler ended with a trio.BrokenResourceError, IncompleteMessage or MessageTooLong: the peer was
    gone, hung up in the middle of a message, or sent one that was too long."""
    too_slow: int
    """Connections whose handler ended with a trio.TooSlowError: a deadline had passed."""
    idle: int
    """Connections that moved no byte for too long, whatever exception their handlers ended with."""
    cancelled: int
    """Connections whose handler, or handshake, was cancelled or interrupted: the server ended, or its drain took long."""
    refused: int
    """Connections closed before a handler had them: the peer may not send a PROXY protocol header, or sent a wrong one, or
    there were enough connections (``at_max_connections="refuse"``, ``max_connections_per_address``)."""
    failed_handshakes: int
    """Connections that had no handler, because their TLS handshake failed or took too long."""
    bytes_received: int
    """Bytes from all connections, the open ones included, see :attr:`Connection.bytes_received`."""
    bytes_sent: int
    """Bytes that the kernel has accepted from all connections."""
    connections_by_consumer: tuple[int, ...]
    """Connections accepted so far, by consumer."""
    active_by_consumer: tuple[int, ...]
    """Connections that are open, by consumer."""
    rings: tuple[UringStatistics, ...] = ()
    """The counters of the ring of each process that the server runs in.  A process without a ring has none; the ring is that
    of the whole run, and so counts what else runs in it."""
    hung_workers: int = 0
    """Worker processes that the server has killed because they did not answer (``worker_timeout``, or when it drained)."""
    failed_starts: int = 0
    """Worker processes that ended, or were killed, before they served."""
    recycled_workers: int = 0
    """Worker processes that were replaced because they had served enough (``max_connections_per_worker`` and the like)."""
    requests: RequestStatistics | None = None
    """Requests, of a server of a web app with ``metrics``; None of any other."""
    cut_off: int = 0
    """Connections whose handlers were cancelled because the time of a drain was up, that of a worker process that was
    replaced included.  They are also in one of the counters above, most of them in ``cancelled``."""

    @property
    def closed(self) -> dict[CloseCause, int]:
        """How many connections are over, by cause."""
        return {
            "finished": self.finished,
            "error": self.handler_errors,
            "broken": self.broken,
            "too_slow": self.too_slow,
            "idle": self.idle,
            "cancelled": self.cancelled,
            "refused": self.refused,
            "failed_handshake": self.failed_handshakes,
        }

    @classmethod
    def total(cls, parts: Iterable[ServerStatistics]) -> ServerStatistics:
        """Several of them as one: counts are added, what is by consumer or ring stands one behind the other."""
        rows = [attrs.astuple(part, recurse=False) for part in parts]
        if not rows:
            return _NOTHING
        return cls(*(_sum(column) for column in zip(*rows, strict=True)))


@final
@attrs.frozen
class DatagramServerStatistics:
    """A snapshot of a datagram server's counters."""

    handled: int
    """Datagrams whose handler has ended, in whichever way."""
    active: int
    """Handlers that run."""
    handler_errors: int
    """Handlers that ended with an exception, other than the next one."""
    unreachable: int
    """Handlers that ended because an answer could not be sent to where the datagram came from."""
    datagrams: DatagramStatistics
    """The endpoint's counters; with shards, of all endpoints."""


def _sum(column: Sequence[Any]) -> Any:
    """The sum of what is there; None if nothing is."""
    known = [value for value in column if value is not None]
    return sum(known[1:], start=known[0]) if known else None


_NOTHING = ServerStatistics(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, (), ())

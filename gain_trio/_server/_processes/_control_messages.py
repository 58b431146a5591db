"""The messages between a server and a worker process.

On the wire a message is its class's name and its fields, pickled, behind its length; so a worker that could not import this
module can still send the first of them, that it cannot begin.  The program at the other end of the channel is the same one,
run by the same user, and could do anything to this process without pickle, too.
"""

from __future__ import annotations

import pickle
from typing import Any, Final, TypeAlias, final

import attrs

from gain_trio._server._program_metrics import ProgramMetrics
from gain_trio._server._snapshot import WorkSnapshot
from gain_trio._server._statistics import ServerStatistics

LARGEST: Final = 4 << 20
"""Bytes that a message may have.  The largest are metrics and log records, which are cut, and tracebacks."""


# --- to the worker; the end of the stream says: cancel everything, and end ---


@final
@attrs.frozen
class StopAccepting:
    """Close the listeners."""


@final
@attrs.frozen
class Drain:
    """Take what has been handed off, accept no more, let the handlers end, and end."""

    timeout: float
    """Seconds."""


@final
@attrs.frozen
class ReportMetrics:
    """Report the program's own metrics."""

    number: int
    """The number of this request; the last one counts."""


@final
@attrs.frozen
class ReportSnapshot:
    """Report what it serves."""

    number: int
    """The number of this request; the last one counts."""


# --- to the server ---


@final
@attrs.frozen
class Ready:
    """It serves."""

    backend: str
    """What its run is on."""
    reason: str = ""
    """Why it is not on a ring, if it is not."""


@final
@attrs.frozen
class Heartbeat:
    """Its event loop goes round."""


@final
@attrs.frozen
class Failed:
    """It ends because of an exception."""

    reason: str
    traceback: str


@final
@attrs.frozen
class Leaving:
    """It was sent a SIGTERM, and asks to be replaced."""


@final
@attrs.frozen
class HandOffReceived:
    """Descriptors have arrived: the first ``count`` of a hand-off.  For the others it has no room."""

    sequence: int
    count: int


@final
@attrs.frozen
class ConnectionsEnded:
    """The number of connections that have ended so far, by consumer."""

    by_consumer: tuple[int, ...]


@final
@attrs.frozen
class StatisticsReport:
    """Its statistics."""

    statistics: ServerStatistics


@final
@attrs.frozen
class MetricsReport:
    """The program's own metrics."""

    number: int
    """The number of the request."""
    metrics: ProgramMetrics


@final
@attrs.frozen
class SnapshotReport:
    """What it serves."""

    number: int
    """The number of the request."""
    snapshot: WorkSnapshot


@final
@attrs.frozen
class LogRecords:
    """Log records, as :func:`logging.makeLogRecord` takes them, and how many more there were."""

    records: tuple[dict[str, Any], ...]
    dropped: int


Message: TypeAlias = (
    StopAccepting
    | Drain
    | ReportMetrics
    | ReportSnapshot
    | Ready
    | Heartbeat
    | Failed
    | Leaving
    | HandOffReceived
    | ConnectionsEnded
    | StatisticsReport
    | MetricsReport
    | SnapshotReport
    | LogRecords
)

_KINDS: Final[dict[str, type[Any]]] = {
    kind.__name__: kind
    for kind in (
        StopAccepting,
        Drain,
        ReportMetrics,
        ReportSnapshot,
        Ready,
        Heartbeat,
        Failed,
        Leaving,
        HandOffReceived,
        ConnectionsEnded,
        StatisticsReport,
        MetricsReport,
        SnapshotReport,
        LogRecords,
    )
}


def encode(message: Message) -> bytes:
    """Of one message, without its length.

    Raises:
      ValueError: it is too long.
    """
    fields = tuple(getattr(message, field.name) for field in attrs.fields(type(message)))
    content = pickle.dumps((type(message).__name__, fields))
    if len(content) > LARGEST:
        raise ValueError(f"a {type(message).__name__} has {len(content)} bytes, more than {LARGEST}")
    return content


def decode(content: bytes) -> Message:
    """The message again.

    Raises:
      ValueError: the bytes are not a message.
    """
    try:
        name, fields = pickle.loads(content)  # noqa: S301 - see the top
        message: Message = _KINDS[name](*fields)
    except Exception as error:  # of bytes that are no pickle, pickle makes anything
        raise ValueError(f"what comes through the control channel is not a message: {error!r}") from error
    return message

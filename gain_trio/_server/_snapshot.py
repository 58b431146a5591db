"""What a server looks like at one moment, for those who look at it through its control socket.

A :class:`WorkSnapshot` is what a process says of itself, and a :class:`ServerSnapshot` has that of all processes, with
what the server knows of each of them even if it does not answer.  :func:`as_json` is the form in which they leave the
server: docs/watching.md describes it for programs, so its keys change their meaning with :data:`VERSION` only.
"""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias, final

import attrs

from gain_trio._io_manager import UringStatistics
from gain_trio._transports import endpoint_text

from ._statistics import DatagramServerStatistics, RequestStatistics, ServerStatistics

VERSION: Final = 1
"""The version of the protocol of the control socket.  New keys come without a new one."""

WaitsFor: TypeAlias = Literal["peer", "other"]
"""What a handler waits for: its peer, to send or to read, or something else."""
ProcessState: TypeAlias = Literal["starting", "serving", "late", "draining"]


@final
@attrs.frozen
class SlowHandler:
    """A handler that has been at work for long, and the place where its task waits."""

    connection: int
    """The number of its connection in its process, as in the log."""
    peer: str
    """The other end, escaped."""
    seconds: float
    """How long ago its request began, or a byte last moved, or the handler itself began."""
    waits_for: WaitsFor
    unsent: int
    """Bytes that its peer has not read yet."""
    request: str | None
    """The method and the path of the request in progress, escaped; None if there is none."""
    at: str | None
    """The innermost frame that is the program's own, ``file:line function``; None if there is none."""
    frames: tuple[str, ...]
    """The innermost frames, the outer ones first."""


@final
@attrs.frozen
class WorkSnapshot:
    """What one process serves."""

    handler: str
    """Its name."""
    statistics: ServerStatistics | None = None
    """Its counters; None of a server of datagrams."""
    datagrams: DatagramServerStatistics | None = None
    rings: tuple[UringStatistics, ...] = ()
    """The counters of its ring, of a server of datagrams; those of other servers are in :attr:`statistics`."""
    slow: tuple[SlowHandler, ...] = ()
    """The slowest handlers, the slowest first."""
    examined: int = 0
    """Connections that were looked at for that; there is a limit."""


@final
@attrs.frozen
class ProcessSnapshot:
    """One process of a server."""

    pid: int | None
    """None of a process that is just being started."""
    state: ProcessState
    worker: int | None = None
    """The number of the worker process, from 0; None of the server's own process."""
    work: WorkSnapshot | None = None
    """What it serves, or served when it last answered; None if it serves nothing itself, or has never answered."""
    cpu_seconds: float | None = None
    memory: int | None = None
    """Bytes."""


@final
@attrs.frozen
class ServerSnapshot:
    """A server with all its processes."""

    state: Literal["serving", "draining"]
    addresses: tuple[Any, ...]
    """Where it listens."""
    processes: tuple[ProcessSnapshot, ...]
    """The server's own process first."""
    statistics: ServerStatistics | None = None
    """The sums over all processes, those that are gone included; None of a server of datagrams."""
    datagrams: DatagramServerStatistics | None = None
    rings: tuple[UringStatistics, ...] = ()
    """As in :class:`WorkSnapshot`."""
    restarts: int = 0
    """Worker processes replaced after they had died."""


def as_json(snapshot: ServerSnapshot, *, now: float) -> dict[str, Any]:
    """What :func:`json.dumps` takes.

    Args:
      snapshot: of the server.
      now: when it was taken, by a clock that never goes back.
    """
    return {
        "version": VERSION,
        "time": now,
        "state": snapshot.state,
        "addresses": [endpoint_text(address) for address in snapshot.addresses],
        "restarts": snapshot.restarts,
        **_counters(snapshot),
        "processes": [_process(process) for process in snapshot.processes],
    }


def _process(process: ProcessSnapshot) -> dict[str, Any]:
    work = process.work
    return {
        "pid": process.pid,
        "worker": process.worker,
        "state": process.state,
        "cpu_seconds": process.cpu_seconds,
        "memory_bytes": process.memory,
        "handler": None if work is None else work.handler,
        **_counters(work or _NOTHING),
        "slow_handlers": [] if work is None else [attrs.asdict(slow) for slow in work.slow],
        "examined": 0 if work is None else work.examined,
    }


_NOTHING: Final = WorkSnapshot("")
"""The work of a process that serves nothing itself, or has never answered."""


def _counters(of: WorkSnapshot | ServerSnapshot) -> dict[str, Any]:
    statistics, datagrams = of.statistics, of.datagrams
    rings = of.rings if statistics is None else statistics.rings
    return {
        "connections": None if statistics is None else _connections(statistics),
        "requests": None if statistics is None or statistics.requests is None else _requests(statistics.requests),
        "datagrams": None if datagrams is None else attrs.asdict(datagrams),
        "rings": [_ring(ring) for ring in rings],
    }


def _connections(statistics: ServerStatistics) -> dict[str, Any]:
    return {
        "accepted": statistics.accepted,
        "active": statistics.active,
        "closed": statistics.closed,
        "cut_off": statistics.cut_off,
        "bytes_received": statistics.bytes_received,
        "bytes_sent": statistics.bytes_sent,
    }


def _requests(requests: RequestStatistics) -> dict[str, Any]:
    return {
        "in_progress": requests.in_progress,
        "completed": requests.completed,
        "by_status": {f"{digit}xx" if digit else "none": count for digit, count in enumerate(requests.by_status)},
        "seconds": requests.seconds,
    }


def _ring(ring: UringStatistics) -> dict[str, Any]:
    return attrs.asdict(ring, filter=lambda field, _value: field.name != "backend")

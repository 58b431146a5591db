"""The options of a server that are about its worker processes, a part of :class:`ServerConfig`."""

from __future__ import annotations

from typing import Literal

import attrs

from gain_trio._kernel import documented_fields

from ._config_checks import (
    at_least,
    at_least_1_or_none,
    check_flag,
    check_priority,
    check_processes,
    parse_size,
    seconds_or_none,
)
from ._flags import Flag
from ._socket_config import SocketConfig
from ._time_limits import WORKER_TIMEOUT


@documented_fields
@attrs.frozen(kw_only=True)
class ProcessConfig(SocketConfig):
    """How many worker processes there are, where they run, and when one is replaced."""

    processes: int | Literal["auto"] | None = attrs.field(
        default=None,
        validator=check_processes,
        metadata=Flag(
            group="worker processes",
            parse=int,
            words={"auto": "auto"},
            metavar="N",
            help="the number of processes that serve, each with --workers; auto for one a CPU",
            usual="this process alone",
        ).beside(),
    )
    """Worker processes; ``"auto"`` for one a CPU that this process may run on, None to serve in this process."""
    cpu_affinity: bool = attrs.field(
        default=False,
        validator=check_flag,
        metadata=Flag(
            group="worker processes", help="bind each to a CPU of its own, and its listener to what arrives there"
        ).beside(),
    )
    """Bind each worker process to a CPU of its own, and its listener to what arrives there (``SO_INCOMING_CPU``)."""
    priority: int | None = attrs.field(
        default=None,
        validator=check_priority,
        metadata=Flag(
            group="worker processes",
            parse=int,
            metavar="N",
            help="their nice value, -20 to 19",
            usual="that of this process",
        ).beside(),
    )
    """Nice value of the worker processes, -20 to 19, see setpriority(2); None leaves it as it is."""
    worker_timeout: float | None = attrs.field(
        default=WORKER_TIMEOUT,
        validator=seconds_or_none,
        metadata=Flag(
            group="worker processes",
            parse=float,
            words={"none": None},
            metavar="S",
            help="seconds after which one that does not answer is killed and replaced, or none",
        ).beside(),
    )
    """Seconds that a worker process may hold its event loop up before the server kills and replaces it; None for as long as
    it likes.  After 2 seconds, or a third of this, it gets no new connections until it answers.  A process that has not
    begun to serve has four times as long, and at least 20 seconds."""
    max_connections_per_worker: int | None = attrs.field(
        default=None,
        validator=at_least_1_or_none,
        metadata=Flag(
            group="worker processes",
            parse=int,
            metavar="N",
            help="replace a process when it has had this number of connections",
            usual="never",
        ).beside(),
    )
    """Replace a worker process when it has had this number of connections, and as many more as
    ``max_connections_per_worker_jitter`` allows; None for never.  See :func:`serve` about recycling."""
    max_connections_per_worker_jitter: int = attrs.field(
        default=0,
        validator=at_least(0),
        metadata=Flag(
            group="worker processes",
            parse=int,
            metavar="N",
            help="and up to this number more, chosen at random for each process",
        ).beside(),
    )
    """Connections that are added to ``max_connections_per_worker``: for each process a random number up to this."""
    max_worker_lifetime: float | None = attrs.field(
        default=None,
        validator=seconds_or_none,
        metadata=Flag(
            group="worker processes",
            parse=float,
            metavar="S",
            help="replace a process when it has served for this number of seconds",
            usual="never",
        ).beside(),
    )
    """Replace a worker process when it has served for this number of seconds; None for never."""
    max_worker_memory: int | None = attrs.field(
        default=None,
        validator=at_least_1_or_none,
        metadata=Flag(
            group="worker processes",
            parse=parse_size,
            metavar="BYTES",
            help="replace a process that has more than this in memory (resident); 512M for example",
            usual="never",
        ).beside(),
    )
    """Replace a worker process that has more than this number of bytes in memory (its resident set, proc(5)), but not in its
    first 10 seconds; None for never."""

    @property
    def recycles(self) -> bool:
        """Whether worker processes are replaced when they have served enough."""
        return (self.max_connections_per_worker, self.max_worker_lifetime, self.max_worker_memory) != (None, None, None)

"""The options of a server of callbacks, and those that it passes to the servers below."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeAlias, final, get_args

import attrs

from gain_trio._kernel import documented_fields
from gain_trio._ring import RingOptions
from gain_trio._server import HIGH_PRIORITY, MOST_WORKERS, Architecture, LineFormatter, ServerConfig, check_balancer

WritePolicy: TypeAlias = Literal["close", "raise"]

_Check: TypeAlias = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def _one_of(kind: Any) -> _Check:
    names = get_args(kind)

    def check(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value not in names:
            raise ValueError(f"Config.{attribute.name} is one of {', '.join(map(repr, names))}, not {value!r}")

    return check


def _whole(least: int, most: int | None = None) -> _Check:
    def check(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"Config.{attribute.name} is a whole number, not {value!r}")
        if value < least:
            raise ValueError(f"Config.{attribute.name} is at least {least}, not {value}")
        if most is not None and value > most:
            raise ValueError(f"Config.{attribute.name} is at most {most}, not {value}")

    return check


def _check_flag(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"Config.{attribute.name} is True or False, not {value!r}")


def _check_keep_alive(_instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"Config.{attribute.name} is a number of seconds, or 0 for none, not {value!r}")
    if value != 0 and not 1 <= value < math.inf:
        raise ValueError(f"Config.{attribute.name} is a number of seconds of at least 1, or 0 for none, not {value!r}")


def _check_balancer(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    try:
        check_balancer(_instance, attribute, value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"Config.{attribute.name}: {error}") from None


def _check_level(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, str) and not isinstance(logging.getLevelName(value), int):
        raise ValueError(f"Config.{attribute.name} is a level of logging, such as 'INFO', not {value!r}")
    if isinstance(value, bool) or not isinstance(value, int | str | None):
        raise TypeError(f"Config.{attribute.name} is a level of logging, or None, not {value!r}")


def _level(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


@final
@documented_fields
@attrs.frozen(kw_only=True)
class Config:
    """How a server of callbacks works: Gain's options, and what this package adds.

    ``attrs.evolve(config, workers=2)`` makes another of it.  A server of datagrams is in one process, and its workers take
    what comes: it has no use for ``cpu_affinity`` (says a warning), ``load_balancing`` and ``tcp_keep_alive``.

    Raises:
      ValueError, TypeError: a value makes no sense; says which one, and what would.
    """

    architecture: Architecture = attrs.field(default="reactor", validator=_one_of(Architecture))
    """``"reactor"``: an acceptor hands connections to the workers.  ``"socket_sharding"``: each worker has a listener of its
    own on the same port, and the kernel distributes (TCP, UDP)."""
    async_handler: bool = attrs.field(default=False, validator=_check_flag)
    """Run ``on_read`` in a worker thread, so that it may take long, or block.  Writing and closing from there is safe, and
    the order is kept.  The other callbacks stay in the run's thread.  An ``async def on_read`` holds up only its own
    connection while it waits, and is not moved to a thread."""
    pool: bool = attrs.field(default=False, validator=_check_flag)
    """With ``async_handler``: no more than ``pool_size`` threads at a time; further calls wait.  Without it there may be one
    a connection."""
    pool_size: int = attrs.field(default=40, validator=_whole(1))
    """How many ``on_read`` may run in threads at once, with ``pool``; of datagrams in any case."""
    cpu_affinity: bool = attrs.field(default=False, validator=_check_flag)
    """Bind each worker process to a CPU of its own.  Python runs on one CPU a process, so this starts one process a CPU,
    unless ``processes`` says how many; the event handler is pickled for them, and its callbacks run there."""
    process_priority: bool = attrs.field(default=False, validator=_check_flag)
    """Give the worker processes, or without them this one, a nice value of -19, which takes privileges (setpriority(2))."""
    workers: int = attrs.field(default=1, validator=_whole(1, MOST_WORKERS))
    """How many consumers, or shards, share the connections; of datagrams, how many are handled at once.  They are tasks of
    one thread: more of them make no use of more CPUs, ``processes`` does."""
    cbpf: bool = attrs.field(default=False, validator=_check_flag)
    """Socket sharding on Linux: the shard is chosen by the CPU that a connection, or datagram, arrives on."""
    load_balancing: Any = attrs.field(default="round_robin", validator=_check_balancer)
    """Reactor: which worker gets a connection.  ``"round_robin"``, ``"least_connections"``, ``"source_ip_hash"``, or a
    balancer of your own, see :func:`gain_trio.serve`."""
    socket_recv_buffer_size: int = attrs.field(default=0, validator=_whole(0))
    """The kernel's receive buffer of each socket, in bytes; 0 leaves it to the kernel."""
    socket_send_buffer_size: int = attrs.field(default=0, validator=_whole(0))
    """The same for sending."""
    tcp_keep_alive: float = attrs.field(default=0, validator=_check_keep_alive)
    """Seconds of silence after which TCP asks whether the peer is there, and between the questions; 0 for not at all."""
    logger_level: int | str | None = attrs.field(default=None, converter=_level, validator=_check_level)
    """The level of the logger ``gain_trio`` while the server runs; None leaves it to the program.  Of several servers in a
    process, the one that began last has its will."""
    pretty_logger: bool = attrs.field(default=False, validator=_check_flag)
    """Write the log to standard error while the server runs, a line each, for people to read."""
    max_sq_entries: int | None = attrs.field(default=None, validator=attrs.validators.optional(_whole(1)))
    """``RingOptions.entries`` of a run that :class:`EventServer` starts; None for the default."""
    max_cq_events: int | None = attrs.field(default=None, validator=attrs.validators.optional(_whole(1)))
    """``RingOptions.completion_entries``, likewise."""
    write_limit: int = attrs.field(default=1 << 20, validator=_whole(1))
    """Bytes: with more than this unsent, a connection is written to too fast for its peer, and ``write_policy`` applies.  A
    single write is never cut in two, so it may bring what is unsent beyond the limit once."""
    write_policy: WritePolicy = attrs.field(default="close", validator=_one_of(WritePolicy))
    """``"close"``: such a connection is closed with a reset, and ``on_close`` gets :exc:`SlowReader`.  ``"raise"``: the next
    write raises :exc:`SlowReader`, and it is the program's affair."""


FIELDS = frozenset(field.name for field in attrs.fields(Config))

_NAMES_OF_SERVE = {
    "load_balancing": "balancer",
    "socket_recv_buffer_size": "receive_buffer",
    "socket_send_buffer_size": "send_buffer",
    "tcp_keep_alive": "keep_alive",
}
"""Fields that :class:`ServerConfig` has by another name; those of the same name mean the same."""


def merged(config: Config | None, options: Mapping[str, Any]) -> tuple[Config, dict[str, Any]]:
    """The config with the options that are its fields, and the options that are not: those of :func:`gain_trio.serve`."""
    if config is not None and not isinstance(config, Config):
        raise TypeError(f"config must be a gain_trio.callbacks.Config, not {config!r}")
    own = {name: value for name, value in options.items() if name in FIELDS}
    others = {name: value for name, value in options.items() if name not in FIELDS}
    return attrs.evolve(config, **own) if config is not None else Config(**own), others


def serve_options(config: Config, others: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of :func:`gain_trio.serve` that a config stands for, and those that were given for it.

    What was given wins, and what is at its default is not passed.
    """
    fields = attrs.fields_dict(ServerConfig)
    options = {_NAMES_OF_SERVE.get(name, name): getattr(config, name) for name in FIELDS}
    for name in ("receive_buffer", "send_buffer", "keep_alive"):
        options[name] = options[name] or None  # 0 in Gain's configuration
    options["processes"] = others.get("processes", "auto" if config.cpu_affinity else None)
    if config.process_priority and options["processes"] is not None:
        options["priority"] = HIGH_PRIORITY
    own = {name: value for name, value in options.items() if name in fields and value != fields[name].default}
    return own | dict(others)


def ring_options(config: Config) -> RingOptions | None:
    """The options of the ring of a run that the server starts."""
    options: dict[str, int] = {}
    if config.max_sq_entries is not None:
        options["entries"] = config.max_sq_entries
    if config.max_cq_events is not None:
        options["completion_entries"] = config.max_cq_events
    return RingOptions(**options) if options else None


@final
class Levels:
    """What servers want the level of a logger to be, of which several may run, in several threads, and end in any order.

    The one that began last has its will.  When all have ended, the level is the program's again.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._lock = threading.Lock()
        self._wanted: dict[object, int | str] = {}  # in the order in which they began
        self._before = logging.NOTSET

    @contextlib.contextmanager
    def at(self, level: int | str) -> Iterator[None]:
        """Log at this level for the length of the block."""
        me = object()
        with self._lock:
            if not self._wanted:
                self._before = self._logger.level
            self._wanted[me] = level
            self._logger.setLevel(level)
        try:
            yield
        finally:
            with self._lock:
                del self._wanted[me]
                self._logger.setLevel([self._before, *self._wanted.values()][-1])


_levels = Levels(logging.getLogger("gain_trio"))


@contextlib.contextmanager
def logging_as(config: Config) -> Iterator[None]:
    """Log as the config says for the length of the block, and then as before."""
    logger = logging.getLogger("gain_trio")
    handler = logging.StreamHandler() if config.pretty_logger else None
    if handler is not None:
        handler.setFormatter(LineFormatter("%(asctime)s  %(levelname)-8s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
    try:
        with contextlib.nullcontext() if config.logger_level is None else _levels.at(config.logger_level):
            yield
    finally:
        if handler is not None:
            logger.removeHandler(handler)
            handler.close()

"""ServerConfig: all options of a server, checked when the program sets them.

One class for all of it, because a server's options travel: from ``serve(..., workers=4)`` to its acceptors and consumers,
from the command line, and to worker processes, which get them pickled.  An option is written here once: its type, default
and check, its docstring, and its flag of ``gain-trio serve``.  :class:`ServerOptions` repeats names and types for type
checkers, and a test compares the two.  What depends on an address (that
``mode=`` is for Unix sockets, and socket sharding for TCP) is checked where addresses are opened, in ``_transports``.
"""

from __future__ import annotations

import difflib
import math
import ssl
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, TypeVar, final, get_args

import attrs

from gain_trio._transports import (
    DEFAULT_CLOSE_TIMEOUT,
    Marks,
    SocketOptions,
    check_handshake_timeout,
    check_server_context,
    checked_close_timeout,
    checked_idle_timeout,
    checked_seconds,
    parse_address,
)

from ._balancer import BALANCERS, Balancer, BalancerName
from ._checks import check_timeout
from ._flags import Flag
from ._proxy import check_proxy_timeout, parse_networks
from ._server_lifespan import Lifespan, check_lifespan
from ._time_limits import GRACEFUL_TIMEOUT, HANDSHAKE_TIMEOUT, PROXY_TIMEOUT, SHUTDOWN_SECONDS, WORKER_TIMEOUT

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")

Architecture: TypeAlias = Literal["reactor", "socket_sharding"]
"""``"reactor"``: an acceptor for each address, and consumers that share the connections.  ``"socket_sharding"``: each
consumer has acceptors and listeners of its own, and the kernel shares the connections (SO_REUSEPORT, socket(7))."""
ContextSource: TypeAlias = ssl.SSLContext | Callable[[], ssl.SSLContext]

_Check: TypeAlias = Callable[[Any, "attrs.Attribute[Any]", Any], None]

NICE = range(-20, 20)
"""What setpriority(2) takes."""


def _one_of(kind: Any) -> _Check:
    names = get_args(kind)

    def check(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value not in names:
            raise ValueError(f"{attribute.name} is one of {', '.join(map(repr, names))}, not {value!r}")

    return check


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _at_least_1(_instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not _is_count(value):
        raise TypeError(f"{attribute.name} must be a whole number, not {value!r}")
    if value < 1:
        raise ValueError(f"{attribute.name} must be at least 1, not {value}")


def _at_least_1_or_none(_instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is None:
        return
    if not _is_count(value):
        raise TypeError(f"{attribute.name} must be a whole number or None, not {value!r}")
    if value < 1:
        raise ValueError(f"{attribute.name} must be at least 1, or None, not {value}")


def _check_flag(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{attribute.name} is True or False, not {value!r}")


def _check_processes(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if isinstance(value, str) and value != "auto":
        raise ValueError(f"processes is a number, 'auto' for one a CPU, or None for this process alone, not {value!r}")
    if value != "auto":
        _at_least_1_or_none(instance, attribute, value)


def _check_balancer(_instance: object, _attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, str):
        if value not in BALANCERS:
            names = ", ".join(map(repr, BALANCERS))
            raise ValueError(f"balancer is one of {names}, or an object with a method pick, not {value!r}")
    elif isinstance(value, type) or not callable(getattr(value, "pick", None)):
        raise TypeError(f"balancer is a name, or an object with a method pick(peer, consumers), not {value!r}")


def _check_priority(_instance: object, _attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is None:
        return
    if not _is_count(value):
        raise TypeError(f"priority must be a whole number or None, not {value!r}")
    if value not in NICE:
        raise ValueError(f"priority is a nice value of {NICE[0]} (first) to {NICE[-1]} (last), not {value}")


def _check_marks(_instance: object, _attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not isinstance(value, Marks):
        raise TypeError(f"marks must be gain_trio.Marks(...) or None, not {value!r}")


def _check_context(_instance: object, _attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, ssl.SSLContext) or (value is not None and not callable(value)):
        check_server_context(value)


def _check_lifespan(_instance: object, _attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None:
        check_lifespan(value)


def _check_graceful_timeout(_instance: object, attribute: attrs.Attribute[Any], value: float) -> None:
    check_timeout(attribute.name, value)


def _check_worker_timeout(_instance: object, attribute: attrs.Attribute[Any], value: float | None) -> None:
    if value is not None:
        checked_seconds(attribute.name, value, positive=True)


def _check_handshake_timeout(_instance: object, _attribute: attrs.Attribute[Any], value: float) -> None:
    check_handshake_timeout(value)


def _check_proxy_timeout(_instance: object, _attribute: attrs.Attribute[Any], value: float) -> None:
    check_proxy_timeout(value)


def _check_metrics(_instance: object, _attribute: attrs.Attribute[Any], value: object) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise TypeError(f"metrics is an address such as 'tcp://127.0.0.1:9100', or None, not {value!r}")
    parse_address(value, schemes=("tcp", "unix", "fd"))


def _senders(value: Iterable[str] | bool) -> tuple[str, ...] | bool:
    """Checked, and no iterator that is empty when it is looked at again."""
    if value is True or value is False:
        return value
    return tuple(map(str, parse_networks(value)))


@final
@attrs.frozen(kw_only=True)
class ServerConfig:
    """The options of :func:`serve`, checked, to be kept, compared, pickled and shared.

    ``serve(handler, address, config=config, workers=2)`` uses its values but for those given beside it;
    ``attrs.evolve(config, workers=2)`` makes another config of it.

    Raises:
      ValueError, TypeError: an option makes no sense; says which one, and what would.
    """

    architecture: Architecture = attrs.field(
        default="reactor",
        validator=_one_of(Architecture),
        metadata=Flag(
            group="who serves",
            parse=str,
            choices=get_args(Architecture),
            help="reactor: one acceptor for each address, a balancer, and the workers; socket_sharding: each worker has a "
            "listener of its own, and the kernel distributes (TCP only)",
        ).beside(),
    )
    """``"reactor"``: one acceptor for each address hands connections to the consumers that ``balancer`` picks.
    ``"socket_sharding"``: each worker has a listener of its own on every address, and the kernel distributes (TCP only)."""
    workers: int = attrs.field(
        default=1,
        validator=_at_least_1,
        metadata=Flag(
            group="who serves", parse=int, metavar="N", help="consumers that share the connections, or shards"
        ).beside(),
    )
    """Consumers, or shards, in each process."""
    processes: int | Literal["auto"] | None = attrs.field(
        default=None,
        validator=_check_processes,
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
    balancer: BalancerName | Balancer = attrs.field(
        default="round_robin",
        validator=_check_balancer,
        metadata=Flag(
            group="who serves",
            parse=str,
            metavar="NAME",
            help=f"of the reactor: {', '.join(BALANCERS)}, or one of your own as package.module:name (a class is called "
            "for it)",
        ).beside(),
    )
    """Chooses the consumer of a connection: ``"round_robin"``, ``"least_connections"``, ``"source_ip_hash"``, or a
    :class:`Balancer` of your own.  With socket sharding the kernel decides."""
    cbpf: bool = attrs.field(
        default=False,
        validator=_check_flag,
        metadata=Flag(
            group="who serves", help="of socket_sharding: choose the shard by the CPU a connection arrives on"
        ).beside(),
    )
    """Socket sharding on Linux: the shard is chosen by the CPU that a connection arrives on (its number modulo the number of
    shards), instead of by a hash of its addresses (``SO_ATTACH_REUSEPORT_CBPF``, socket(7))."""
    cpu_affinity: bool = attrs.field(
        default=False,
        validator=_check_flag,
        metadata=Flag(
            group="worker processes", help="bind each to a CPU of its own, and its listener to what arrives there"
        ).beside(),
    )
    """Bind each worker process to a CPU of its own, and its listener to what arrives there (``SO_INCOMING_CPU``)."""
    priority: int | None = attrs.field(
        default=None,
        validator=_check_priority,
        metadata=Flag(
            group="worker processes",
            parse=int,
            metavar="N",
            help="their nice value, -20 to 19",
            usual="that of this process",
        ).beside(),
    )
    """Nice value of the worker processes, -20 to 19, see setpriority(2); None leaves it as it is."""
    max_connections: int | None = attrs.field(
        default=None,
        validator=_at_least_1_or_none,
        metadata=Flag(
            group="limits",
            parse=int,
            metavar="N",
            help="connections at a time; others wait in the backlog",
            usual="no limit",
        ).beside(),
    )
    """Connections at a time; further ones wait in the kernel's backlog, unaccepted.  None for no limit."""
    backlog: int | None = attrs.field(
        default=None,
        metadata=Flag(
            group="limits",
            parse=int,
            metavar="N",
            help="connections that may wait to be accepted",
            usual="all the system allows",
        ).beside(),
    )
    """Connections that may wait to be accepted, on each listener; None for as many as the system allows."""
    reuse_port: bool = attrs.field(default=False, validator=_check_flag)
    """Set ``SO_REUSEPORT``, so that other servers can share the port.  Socket sharding sets it anyhow."""
    receive_buffer: int | None = None
    """``SO_RCVBUF`` of TCP connections, in bytes, which stops Linux from adjusting it; it doubles the value (socket(7))."""
    send_buffer: int | None = None
    """``SO_SNDBUF``, likewise."""
    keep_alive: float | None = None
    """Seconds without a segment from the peer after which TCP sends a probe, and between two probes (tcp(7)); 1 to 32767,
    rounded up to whole seconds.  None for no probes."""
    idle_timeout: float = attrs.field(
        default=math.inf,
        converter=checked_idle_timeout,
        metadata=Flag(
            group="limits",
            parse=float,
            metavar="S",
            help="seconds without a byte that end a connection",
            usual="of http 60, otherwise none do",
        ).beside(),
    )
    """Seconds that a connection may move no byte in either direction, see :attr:`Connection.idle_timeout`."""
    close_timeout: float = attrs.field(
        default=DEFAULT_CLOSE_TIMEOUT,
        converter=checked_close_timeout,
        metadata=Flag(
            group="limits",
            parse=float,
            metavar="S",
            help="seconds that closing a connection waits for a peer that goes on taking what was sent",
        ).beside(),
    )
    """Seconds that closing a connection waits for a peer that still accepts bytes, see :attr:`Connection.close_timeout`; for
    one that accepts nothing it waits 5."""
    marks: Marks | None = attrs.field(default=None, validator=_check_marks)
    """The bounds of a connection's two queues."""
    mode: int | None = None
    """The permissions of a Unix socket's file, ``0o660`` for example, see :func:`open_listeners`."""
    owner: int | str | None = None
    """The owner of that file, by number or name."""
    group: int | str | None = None
    """Its group, likewise."""
    pass_fds: bool = attrs.field(default=False, validator=_check_flag)
    """Connections of Unix sockets can pass descriptors, see :func:`open_listeners`."""
    proxy_protocol: Iterable[str] | bool = attrs.field(default=False, converter=_senders)
    """The addresses and networks of proxies that send a PROXY protocol header, see :func:`serve`."""
    proxy_timeout: float = attrs.field(default=PROXY_TIMEOUT, validator=_check_proxy_timeout)
    """Seconds that the header may take."""
    ssl_context: ContextSource | None = attrs.field(default=None, validator=_check_context)
    """Serve TLS: a server's context, or a function that makes one.  With ``processes`` it is a function, called once in each
    of them, because a context cannot be pickled."""
    handshake_timeout: float = attrs.field(default=HANDSHAKE_TIMEOUT, validator=_check_handshake_timeout)
    """Seconds that a TLS handshake may take."""
    lifespan: Lifespan | None = attrs.field(
        default=None,
        validator=_check_lifespan,
        metadata=Flag(
            group="who serves",
            parse=str,
            metavar="NAME",
            help="a function of yours as package.module:name, which returns an async context manager: each process that "
            "serves enters it before its first connection, and leaves it after its last",
            usual="",
        ).beside(),
    )
    """A function that returns an async context manager for the lifetime of the server: with ``processes``, of each worker
    process, which unpickles it.  See :func:`serve`."""
    strict: bool = attrs.field(default=False, validator=_check_flag)
    """Let a handler's exception end the server and propagate."""
    graceful_timeout: float = attrs.field(
        default=GRACEFUL_TIMEOUT,
        validator=_check_graceful_timeout,
        metadata=Flag(
            group="limits",
            parse=float,
            metavar="S",
            help="seconds that connections get to finish after the first signal",
            usual=f"{GRACEFUL_TIMEOUT:g}; of callbacks {SHUTDOWN_SECONDS:g}",
        ).beside(),
    )
    """Seconds that connections get to finish after a signal, and when their worker process is replaced."""
    worker_timeout: float | None = attrs.field(
        default=WORKER_TIMEOUT,
        validator=_check_worker_timeout,
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
    signals: bool = attrs.field(default=False, validator=_check_flag)
    """SIGTERM and SIGINT drain the server, and a second one cancels it.  SIGHUP replaces the worker processes one by one; a
    server without worker processes calls an ``ssl_context`` that is a function again, and so loads its certificate."""
    sd_notify: bool = attrs.field(default=False, validator=_check_flag)
    """Report to the service manager that has started this process, if it has set ``NOTIFY_SOCKET`` (sd_notify(3)): that the
    server is up, is being renewed, and ends, its state in a line, and that its event loop goes round.  See :func:`serve`."""
    metrics: str | None = attrs.field(
        default=None,
        validator=_check_metrics,
        metadata=Flag(
            group="log and statistics",
            parse=str,
            metavar="ADDRESS",
            help="serve the statistics to Prometheus, tcp://127.0.0.1:9100 for example; needs gain-trio[metrics]",
            usual="",
        ).beside(),
    )
    """Where to serve the statistics to Prometheus, ``"tcp://127.0.0.1:9100"`` for example."""

    def __attrs_post_init__(self) -> None:
        if self.cbpf and self.architecture != "socket_sharding":
            raise ValueError("cbpf=True chooses among the listeners of architecture='socket_sharding'")
        if self.pass_fds and self.ssl_context is not None:
            raise ValueError("pass_fds=True is not for TLS: descriptors cannot be encrypted")
        self.socket_options()  # which checks what it is made of

    def socket_options(self) -> SocketOptions:
        """What its listening sockets are opened with."""
        return SocketOptions(
            backlog=self.backlog,
            reuse_port=self.reuse_port,
            receive_buffer=self.receive_buffer,
            send_buffer=self.send_buffer,
            keep_alive=self.keep_alive,
            mode=self.mode,
            owner=self.owner,
            group=self.group,
            pass_fds=self.pass_fds,
        )


class ServerOptions(TypedDict, total=False):
    """The fields of :class:`ServerConfig`, as keyword arguments of :func:`serve`."""

    architecture: Architecture
    workers: int
    processes: int | Literal["auto"] | None
    balancer: BalancerName | Balancer
    cbpf: bool
    cpu_affinity: bool
    priority: int | None
    max_connections: int | None
    backlog: int | None
    reuse_port: bool
    receive_buffer: int | None
    send_buffer: int | None
    keep_alive: float | None
    idle_timeout: float
    close_timeout: float
    marks: Marks | None
    mode: int | None
    owner: int | str | None
    group: int | str | None
    pass_fds: bool
    proxy_protocol: Iterable[str] | bool
    proxy_timeout: float
    ssl_context: ContextSource | None
    handshake_timeout: float
    lifespan: Lifespan | None
    strict: bool
    graceful_timeout: float
    worker_timeout: float | None
    signals: bool
    sd_notify: bool
    metrics: str | None


def merged(config: ServerConfig | None, **options: Unpack[ServerOptions]) -> ServerConfig:
    """``config`` with the options that are given beside it.

    Raises:
      TypeError: ``config`` is of another type, or an option is unknown; and the errors of :class:`ServerConfig`.
    """
    for name in options.keys() - attrs.fields_dict(ServerConfig):
        near = difflib.get_close_matches(name, attrs.fields_dict(ServerConfig), n=1)
        cure = f"did you mean {near[0]}=?" if near else "the options are the fields of gain_trio.ServerConfig"
        raise TypeError(f"a server has no option {name!r}: {cure}")
    if config is None:
        return ServerConfig(**options)
    if not isinstance(config, ServerConfig):
        raise TypeError(f"config must be a gain_trio.ServerConfig, not {config!r}")
    return attrs.evolve(config, **options)

"""ServerConfig: all options of a server, checked when the program sets them.

One class for all of it, because a server's options travel: from ``serve(..., workers=4)`` to its acceptors and consumers,
from the command line, and to worker processes, which get them pickled.  An option is written once: its type, default and
check, its docstring, and its flag of ``gain-trio serve``.  Those of sockets are in ``_socket_config.py``, and those of
worker processes in ``_process_config.py``.  :class:`ServerOptions` repeats names and types for type checkers, and a test
compares the two.  What depends on an address (that ``mode=`` is for Unix sockets, and socket sharding for TCP) is checked
where addresses are opened, in ``_transports``.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Callable, Iterable
from typing import Literal, TypeAlias, final, get_args

import attrs

from gain_trio._kernel import documented_fields
from gain_trio._transports import (
    DEFAULT_CLOSE_TIMEOUT,
    Marks,
    checked_close_timeout,
    checked_idle_timeout,
)

from ._balancer import BALANCERS, Balancer, BalancerName
from ._config_checks import (
    MOST_WORKERS,
    at_least,
    at_least_1_or_none,
    check_balancer,
    check_context,
    check_control,
    check_flag,
    check_graceful_timeout,
    check_marks,
    check_metrics,
    check_user,
    lifespan_or_none,
    one_of,
    parse_id,
    parse_path,
    parse_senders,
    path_or_none,
    senders,
    valid_handshake_timeout,
    valid_proxy_timeout,
)
from ._flags import Flag
from ._process_config import ProcessConfig
from ._server_lifespan import Lifespan
from ._time_limits import GRACEFUL_TIMEOUT, HANDSHAKE_TIMEOUT, PROXY_TIMEOUT, SHUTDOWN_SECONDS

Architecture: TypeAlias = Literal["reactor", "socket_sharding"]
"""``"reactor"``: an acceptor for each address, and consumers that share the connections.  ``"socket_sharding"``: each
consumer has acceptors and listeners of its own, and the kernel shares the connections (SO_REUSEPORT, socket(7))."""
ContextSource: TypeAlias = ssl.SSLContext | Callable[[], ssl.SSLContext]
AtMaxConnections: TypeAlias = Literal["wait", "refuse"]
"""What becomes of a client that connects when there are ``max_connections``."""


@final
@documented_fields
@attrs.frozen(kw_only=True)
class ServerConfig(ProcessConfig):
    """The options of :func:`serve`, checked, to be kept, compared, pickled and shared.

    ``serve(handler, address, config=config, workers=2)`` uses its values but for those given beside it;
    ``attrs.evolve(config, workers=2)`` makes another config of it.

    Raises:
      ValueError, TypeError: an option makes no sense; says which one, and what would.
    """

    architecture: Architecture = attrs.field(
        default="reactor",
        validator=one_of(Architecture),
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
        validator=at_least(1, MOST_WORKERS),
        metadata=Flag(
            group="who serves", parse=int, metavar="N", help="consumers that share the connections, or shards"
        ).beside(),
    )
    """Consumers, or shards, in each process."""
    balancer: BalancerName | Balancer = attrs.field(
        default="round_robin",
        validator=check_balancer,
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
        validator=check_flag,
        metadata=Flag(
            group="who serves", help="of socket_sharding: choose the shard by the CPU a connection arrives on"
        ).beside(),
    )
    """Socket sharding on Linux: the shard is chosen by the CPU that a connection arrives on (its number modulo the number of
    shards), instead of by a hash of its addresses (``SO_ATTACH_REUSEPORT_CBPF``, socket(7))."""
    max_connections: int | None = attrs.field(
        default=None,
        validator=at_least_1_or_none,
        metadata=Flag(
            group="limits",
            parse=int,
            metavar="N",
            help="connections at a time; others wait in the backlog",
            usual="no limit",
        ).beside(),
    )
    """Connections at a time; what becomes of further ones says ``at_max_connections``.  None for no limit."""
    at_max_connections: AtMaxConnections = attrs.field(
        default="wait",
        validator=one_of(AtMaxConnections),
        metadata=Flag(
            group="limits",
            parse=str,
            choices=get_args(AtMaxConnections),
            help="wait: further clients wait in the backlog; refuse: they are reset at once, and may go elsewhere",
        ).beside(),
    )
    """``"wait"``: further clients wait in the kernel's backlog, unaccepted, until a connection ends.  ``"refuse"``: they are
    reset at once, and counted as refused, so that a client or a load balancer can turn to another server."""
    max_connections_per_address: int | None = attrs.field(
        default=None,
        validator=at_least_1_or_none,
        metadata=Flag(
            group="limits",
            parse=int,
            metavar="N",
            help="connections at a time from one IPv4 address, or one IPv6 network of 64 bits, in each process",
            usual="no limit",
        ).beside(),
    )
    """Connections at a time from one client, in each process that serves; further ones are reset, and counted as refused.  A
    client is an IPv4 address or an IPv6 network of 64 bits, which is what one customer has; behind a proxy
    (``proxy_protocol``) it is the proxy's client.  Peers on Unix sockets have no limit.  None for no limit."""
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
    marks: Marks | None = attrs.field(default=None, validator=check_marks)
    """The bounds of a connection's two queues."""
    user: int | str | None = attrs.field(
        default=None,
        validator=check_user,
        metadata=Flag(
            group="who serves",
            parse=parse_id,
            metavar="USER[:GROUP]",
            help="become this user when the sockets are open, and before anything is accepted; takes root",
            usual="",
        ).beside(),
    )
    """Become this user when the sockets are open, and before worker processes are started: a number, a name, or a name with
    a group behind a colon.  See :func:`serve`."""
    proxy_protocol: Iterable[str] | bool = attrs.field(
        default=False,
        converter=senders,
        metadata=Flag(
            group="proxies",
            parse=parse_senders,
            words={"all": True},
            metavar="NETWORKS",
            help="require a PROXY protocol header from these peers, addresses and networks with commas between them, and "
            "refuse all others; all: take one from any peer",
            usual="",
        ).beside(),
    )
    """The addresses and networks of proxies that send a PROXY protocol header, see :func:`serve`."""
    proxy_timeout: float = attrs.field(
        default=PROXY_TIMEOUT,
        validator=valid_proxy_timeout,
        metadata=Flag(
            group="proxies", parse=float, metavar="S", help="seconds that a PROXY protocol header may take"
        ).beside(),
    )
    """Seconds that the header may take."""
    ssl_context: ContextSource | None = attrs.field(default=None, validator=check_context)
    """Serve TLS: a server's context, or a function that makes one.  With ``processes`` it is a function, called once in each
    of them, because a context cannot be pickled."""
    handshake_timeout: float = attrs.field(
        default=HANDSHAKE_TIMEOUT,
        validator=valid_handshake_timeout,
        metadata=Flag(group="TLS", parse=float, metavar="S", help="seconds that a handshake may take").beside(),
    )
    """Seconds that a TLS handshake may take."""
    lifespan: Lifespan | None = attrs.field(
        default=None,
        validator=lifespan_or_none,
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
    strict: bool = attrs.field(
        default=False,
        validator=check_flag,
        metadata=Flag(group="who serves", help="let a handler's exception end the server").beside(),
    )
    """Let a handler's exception end the server and propagate."""
    graceful_timeout: float = attrs.field(
        default=GRACEFUL_TIMEOUT,
        validator=check_graceful_timeout,
        metadata=Flag(
            group="limits",
            parse=float,
            metavar="S",
            help="seconds that connections get to finish after the first signal",
            usual=f"{GRACEFUL_TIMEOUT:g}; of callbacks {SHUTDOWN_SECONDS:g}",
        ).beside(),
    )
    """Seconds that connections get to finish after a signal, and when their worker process is replaced."""
    signals: bool = attrs.field(default=False, validator=check_flag)
    """SIGTERM and SIGINT drain the server, and a second one cancels it.  SIGHUP replaces the worker processes one by one; a
    server without worker processes calls an ``ssl_context`` that is a function again, and so loads its certificate."""
    sd_notify: bool = attrs.field(default=False, validator=check_flag)
    """Report to the service manager that has started this process, if it has set ``NOTIFY_SOCKET`` (sd_notify(3)): that the
    server is up, is being renewed, and ends, its state in a line, and that its event loop goes round.  See :func:`serve`."""
    metrics: str | None = attrs.field(
        default=None,
        validator=check_metrics,
        metadata=Flag(
            group="log and statistics",
            parse=str,
            metavar="ADDRESS",
            help="serve the statistics, and what the program has registered with prometheus_client, to Prometheus: "
            "tcp://127.0.0.1:9100 for example; needs gain-trio[metrics]",
            usual="",
        ).beside(),
    )
    """Where to serve the statistics, and the program's own metrics of all processes, to Prometheus:
    ``"tcp://127.0.0.1:9100"`` for example."""
    control: str | None = attrs.field(
        default=None,
        converter=path_or_none,
        validator=check_control,
        metadata=Flag(
            group="log and statistics",
            parse=parse_path,
            metavar="PATH",
            help="open a Unix socket there, for this user alone, through which gain-trio top shows the server at work",
            usual="",
        ).beside(),
    )
    """The path of a Unix socket through which ``gain-trio top`` shows the server at work: its processes, connections and
    requests, and slow handlers with the place where each of them waits.  Only the server's user may connect, and root."""

    def __attrs_post_init__(self) -> None:
        if self.cbpf and self.architecture != "socket_sharding":
            raise ValueError("cbpf=True chooses among the listeners of architecture='socket_sharding'")
        if self.pass_fds and self.ssl_context is not None:
            raise ValueError("pass_fds=True is not for TLS: descriptors cannot be encrypted")
        if self.max_connections is None and self.at_max_connections == "refuse":
            raise ValueError("at_max_connections='refuse' is about the clients beyond max_connections: give that, too")
        if self.max_connections_per_worker is None and self.max_connections_per_worker_jitter:
            raise ValueError("max_connections_per_worker_jitter is added to max_connections_per_worker: give that, too")
        self.socket_options()  # which checks what it is made of

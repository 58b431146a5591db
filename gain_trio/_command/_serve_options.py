"""The arguments of ``gain-trio serve``, and the :class:`ServerConfig` that they amount to."""

from __future__ import annotations

import argparse
import functools
import ssl
from typing import TYPE_CHECKING, Literal, get_args

from gain_trio._server import (
    BALANCERS,
    FORMATS,
    HIGH_PRIORITY,
    LEVELS,
    Architecture,
    Balancer,
    BalancerName,
    ContextSource,
    ServerConfig,
    take_process_priority,
)

from ._handlers import BUILT_IN, find_object
from ._network import add_options as add_network_options
from ._serve_events import add_options as add_events_options

if TYPE_CHECKING:
    from gain_trio._server import ServerOptions

_EPILOG = """\
examples:
  gain-trio serve tcp://127.0.0.1:8080 --handler echo
  gain-trio serve tcp://[::]:443 --handler my_package.web:handler --tls-cert cert.pem --tls-key key.pem
  gain-trio serve tcp://0.0.0.0:8080 --handler app:handler --processes auto --architecture socket_sharding
  gain-trio serve tcp://127.0.0.1:8080 unix:///run/app.sock --handler app:handler --workers 4 --max-connections 1000
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All of them, in groups."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument(
        "address",
        nargs="+",
        metavar="ADDRESS",
        help="where to listen: tcp://HOST:PORT (port 0 lets the kernel choose), unix:///PATH or fd://systemd; or several; "
        "or one udp://HOST:PORT",
    )
    add_network_options(parser)
    parser.add_argument(
        "--handler",
        required=True,
        metavar="NAME",
        help=f"what serves a connection, or a datagram: {', '.join(BUILT_IN)}, or an async function or an "
        "EventHandler as package.module:name",
    )
    _add_architecture(parser.add_argument_group("who serves"))
    _add_processes(parser.add_argument_group("worker processes"))
    add_events_options(parser.add_argument_group("handlers of callbacks"))
    _add_limits(parser.add_argument_group("limits"))
    _add_tls(parser.add_argument_group("TLS"))
    _add_logging(parser.add_argument_group("log and statistics"))


def _add_architecture(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--workers", type=int, default=1, metavar="N", help="consumers that share the connections, or shards (1)"
    )
    group.add_argument(
        "--architecture",
        choices=get_args(Architecture),
        default="reactor",
        help="reactor: one acceptor for each address, a balancer, and the workers; socket_sharding: each worker has a "
        "listener of its own, and the kernel distributes (TCP only)",
    )
    group.add_argument(
        "--balancer",
        default="round_robin",
        metavar="NAME",
        help=f"of the reactor: {', '.join(BALANCERS)}, or one of your own as package.module:name (a class is called for it)",
    )
    group.add_argument(
        "--cbpf", action="store_true", help="of socket_sharding: choose the shard by the CPU a connection arrives on"
    )


def _add_processes(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--processes",
        type=_processes,
        metavar="N",
        help="serve in so many processes, each with --workers; auto for one a CPU (this process alone)",
    )
    group.add_argument(
        "--cpu-affinity",
        action="store_true",
        help="bind each to a CPU of its own, and its listener to what arrives there",
    )
    group.add_argument(
        "--worker-timeout",
        type=_seconds_or_none,
        default=30.0,
        metavar="S",
        help="seconds after which one that does not answer is killed and replaced, or none (30)",
    )
    group.add_argument("--priority", type=int, metavar="N", help="their nice value, -20 to 19 (that of this process)")
    group.add_argument(
        "--process-priority",
        action="store_true",
        help=f"a nice value of {HIGH_PRIORITY} for them, or without --processes for this process; takes CAP_SYS_NICE",
    )


def _processes(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor auto") from None


def _seconds_or_none(text: str) -> float | None:
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of seconds nor none") from None


def _add_limits(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--max-connections", type=int, metavar="N", help="connections at a time; others wait in the backlog (no limit)"
    )
    group.add_argument(
        "--backlog", type=int, metavar="N", help="connections that may wait to be accepted (all the system allows)"
    )
    group.add_argument(
        "--idle-timeout",
        type=float,
        metavar="S",
        help="seconds without a byte that end a connection (of http 60, otherwise none do)",
    )
    group.add_argument(
        "--close-timeout",
        type=float,
        metavar="S",
        help="seconds that closing a connection waits for a peer that goes on taking what was sent (60)",
    )
    group.add_argument(
        "--graceful-timeout",
        type=float,
        metavar="S",
        help="seconds that connections get to finish after the first signal (30; of callbacks 5)",
    )


def _add_tls(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--tls-cert", metavar="FILE", help="serve TLS with this certificate, its chain behind it (PEM)")
    group.add_argument("--tls-key", metavar="FILE", help="its private key, unless it stands in the same file (PEM)")


def _add_logging(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--log-level", choices=LEVELS, default="warning", help="the least that is told on stderr (warning)"
    )
    group.add_argument(
        "--log-format", choices=FORMATS, default="pretty", help="lines for people, or JSON objects (pretty)"
    )
    group.add_argument(
        "--pretty", action="store_const", const="pretty", dest="log_format", help="the same as --log-format pretty"
    )
    group.add_argument(
        "--metrics",
        metavar="ADDRESS",
        help="serve the statistics to Prometheus, tcp://127.0.0.1:9100 for example; needs gain-trio[metrics]",
    )


def config_of(options: argparse.Namespace) -> ServerConfig:
    """What they ask for.

    Raises:
      ValueError: they make no sense together; says why.
    """
    given: ServerOptions = {
        "workers": options.workers,
        "architecture": options.architecture,
        "balancer": _balancer(options.balancer),
        "cbpf": options.cbpf,
        "processes": options.processes,
        "cpu_affinity": options.cpu_affinity,
        "priority": _priority(options),
        "worker_timeout": options.worker_timeout,
        "max_connections": options.max_connections,
        "backlog": options.backlog,
        "ssl_context": _tls(options.tls_cert, options.tls_key, in_workers=options.processes is not None),
        "signals": True,
        "metrics": options.metrics,
    }
    if options.idle_timeout is not None:
        given["idle_timeout"] = options.idle_timeout
    if options.close_timeout is not None:
        given["close_timeout"] = options.close_timeout
    if options.graceful_timeout is not None:
        given["graceful_timeout"] = options.graceful_timeout
    return ServerConfig(**given)


def _priority(options: argparse.Namespace) -> int | None:
    """That of worker processes."""
    if not options.process_priority:
        priority: int | None = options.priority
        return priority
    if options.priority is not None:
        raise ValueError(
            f"--process-priority is a nice value of {HIGH_PRIORITY}, --priority one of yours: give one of them"
        )
    return HIGH_PRIORITY if options.processes is not None else None


def take_priority(options: argparse.Namespace) -> None:
    """Without worker processes ``--process-priority`` is this process's.

    Raises:
      ValueError: this system has no priorities.
      OSError: it may not.
    """
    if options.process_priority and options.processes is None:
        take_process_priority(HIGH_PRIORITY)


def _balancer(name: str) -> Balancer | BalancerName:
    if name in BALANCERS:
        return name
    found = find_object(name, "balancer", BALANCERS)
    balancer: Balancer = found() if isinstance(found, type) else found
    if not callable(getattr(balancer, "pick", None)):
        raise ValueError(f"{name!r} has no method pick(peer, consumers)")
    return balancer


def _tls(certificate: str | None, key: str | None, *, in_workers: bool) -> ContextSource | None:
    if certificate is None:
        if key is not None:
            raise ValueError("--tls-key is the key of a certificate: give --tls-cert, too")
        return None
    context = load_context(
        certificate, key
    )  # what is wrong with the files is told here, and not by every worker process
    return functools.partial(load_context, certificate, key) if in_workers else context


def load_context(certificate: str, key: str | None) -> ssl.SSLContext:
    """A server's context of these files.

    Raises:
      ValueError: they cannot be read, or are none, or do not belong together; says which, and why.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    files = certificate if key is None else f"{certificate} and {key}"
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        cure = "; --tls-key is for a key in a file of its own" if key is None else ""
        reason = error.reason or error
        raise ValueError(f"no certificate with its key in {files} (PEM is wanted): {reason}{cure}") from error
    except OSError as error:
        raise ValueError(f"cannot read {files}: {error.strerror}") from error
    return context

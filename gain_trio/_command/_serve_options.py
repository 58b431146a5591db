"""The arguments of ``gain-trio serve``, and the :class:`ServerConfig` that they amount to."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Collection, Mapping
from typing import Any

import attrs

from gain_trio._server import (
    BALANCERS,
    FORMATS,
    HIGH_PRIORITY,
    LEVELS,
    Balancer,
    BalancerName,
    ContextSource,
    Flag,
    ServerConfig,
    flags_of,
    take_process_priority,
)

from ._handlers import BUILT_IN, find_lifespan, find_object
from ._network import add_options as add_network_options
from ._serve_events import add_options as add_events_options
from ._tls_files import load_context

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
    groups = {
        title: parser.add_argument_group(title)
        for title in (
            "who serves",
            "worker processes",
            "handlers of callbacks",
            "limits",
            "sockets",
            "proxies",
            "TLS",
            "log and statistics",
        )
    }
    add_logging(groups["log and statistics"])
    add_flags(groups, ServerConfig)
    add_process_priority(groups["worker processes"])
    add_events_options(groups["handlers of callbacks"])
    add_tls(groups["TLS"])


def add_process_priority(group: argparse._ArgumentGroup) -> None:
    """The argument ``--process-priority``."""
    group.add_argument(
        "--process-priority",
        action="store_true",
        help=f"a nice value of {HIGH_PRIORITY} for them, or without --processes for this process; takes CAP_SYS_NICE",
    )


def add_flags(
    groups: Mapping[str, argparse._ArgumentGroup], config: type[attrs.AttrsInstance], without: Collection[str] = ()
) -> None:
    """The arguments of the fields of a configuration, but for some.

    A field is no attribute of the parsed options unless its argument was given.
    """
    for name, flag in flags_of(config).items():
        if name not in without:
            _add_flag(groups[flag.group], name, flag, attrs.fields_dict(config)[name].default)


def _add_flag(group: argparse._ArgumentGroup, name: str, flag: Flag, default: object) -> None:
    argument = f"--{(flag.name or name).replace('_', '-')}"
    if flag.parse is None:
        group.add_argument(argument, dest=name, action="store_true", default=argparse.SUPPRESS, help=flag.help)
        return
    usual = flag.usual if flag.usual is not None else format(default, "g" if isinstance(default, float) else "")
    group.add_argument(
        argument,
        dest=name,
        nargs=None if flag.bare is None else "?",
        const=flag.bare,
        type=functools.partial(_parsed, flag),
        metavar=flag.metavar,
        choices=flag.choices,
        default=argparse.SUPPRESS,
        help=f"{flag.help} ({usual})" if usual else flag.help,
    )


def _parsed(flag: Flag, text: str) -> Any:
    """The value of an argument that can be a word, too, or has a message of its own."""
    assert flag.parse is not None
    if text in flag.words:
        return flag.words[text]
    try:
        return flag.parse(text)
    except ValueError as error:
        if flag.parse not in {int, float}:
            raise argparse.ArgumentTypeError(str(error)) from None
        kind = "a number of seconds" if flag.parse is float else "a whole number"
        if not flag.words:
            raise argparse.ArgumentTypeError(f"{text!r} is not {kind}") from None
        raise argparse.ArgumentTypeError(f"{text!r} is neither {kind} nor {' or '.join(flag.words)}") from None


def add_tls(group: argparse._ArgumentGroup) -> None:
    """The arguments of TLS."""
    group.add_argument("--tls-cert", metavar="FILE", help="serve TLS with this certificate, its chain behind it (PEM)")
    group.add_argument("--tls-key", metavar="FILE", help="its private key, unless it stands in the same file (PEM)")
    group.add_argument(
        "--tls-client-ca",
        metavar="FILE",
        help="require a client's certificate, signed by one of these authorities (PEM)",
    )


def add_logging(group: argparse._ArgumentGroup) -> None:
    """The arguments of the log."""
    group.add_argument(
        "--log-level", choices=LEVELS, default="warning", help="the lowest level that is logged on stderr (warning)"
    )
    group.add_argument(
        "--log-format", choices=FORMATS, default="pretty", help="lines for people, or JSON objects (pretty)"
    )
    group.add_argument(
        "--pretty", action="store_const", const="pretty", dest="log_format", help="the same as --log-format pretty"
    )


def config_of(options: argparse.Namespace) -> ServerConfig:
    """What they ask for.

    Raises:
      ValueError: they make no sense together; says why.
    """
    given = {name: value for name, value in vars(options).items() if name in flags_of(ServerConfig)}
    if "balancer" in given:
        given["balancer"] = _balancer(given["balancer"])
    if "lifespan" in given:
        given["lifespan"] = find_lifespan(given["lifespan"])
    in_workers = given.get("processes") is not None
    if options.process_priority:
        if "priority" in given:
            raise ValueError(
                f"--process-priority is a nice value of {HIGH_PRIORITY}, --priority one of yours: give one of them"
            )
        given["priority"] = HIGH_PRIORITY if in_workers else None
    context = _tls(options.tls_cert, options.tls_key, options.tls_client_ca)
    return ServerConfig(**given, ssl_context=context, signals=True, sd_notify=True)


def check_partners(options: argparse.Namespace) -> None:
    """Refuse a flag that is about another one, which is not given.

    Raises:
      ValueError: there is one; says what to give.
    """
    given = vars(options)
    if "proxy_timeout" in given and "proxy_protocol" not in given:
        raise ValueError("--proxy-timeout is for --proxy-protocol, which is not given")
    if "handshake_timeout" in given and options.tls_cert is None:
        raise ValueError("--handshake-timeout is for TLS: give --tls-cert, too")
    if "worker_timeout" in given and given.get("processes") is None and not given.get("reload"):
        raise ValueError("--worker-timeout is for worker processes, and there are none: give --processes, too")
    if "balancer" in given and given.get("architecture") == "socket_sharding":
        raise ValueError("--balancer is for --architecture reactor: with socket_sharding the kernel distributes")


def take_priority(options: argparse.Namespace, config: ServerConfig) -> None:
    """Without worker processes ``--process-priority`` is this process's.

    Raises:
      ValueError: this system has no priorities.
      OSError: it may not.
    """
    if options.process_priority and config.processes is None:
        take_process_priority(HIGH_PRIORITY)


def _balancer(name: str) -> Balancer | BalancerName:
    if name in BALANCERS:
        return name
    found = find_object(name, "balancer", BALANCERS)
    balancer: Balancer = found() if isinstance(found, type) else found
    if not callable(getattr(balancer, "pick", None)):
        raise ValueError(f"{name!r} has no method pick(peer, consumers)")
    return balancer


def _tls(certificate: str | None, key: str | None, client_ca: str | None) -> ContextSource | None:
    if certificate is None:
        if key is not None:
            raise ValueError("--tls-key is the key of a certificate: give --tls-cert, too")
        if client_ca is not None:
            raise ValueError("--tls-client-ca is about the clients of a server with TLS: give --tls-cert, too")
        return None
    # An error in the files is reported here, once, and not by every worker process.
    load_context(certificate, key, client_ca)
    return functools.partial(load_context, certificate, key, client_ca)

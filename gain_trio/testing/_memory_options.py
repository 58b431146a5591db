"""The options of servers that make sense without sockets, processes, signals and metrics."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import attrs

from gain_trio._server import ServerConfig
from gain_trio.callbacks import Config

_OF_SERVERS: Final = frozenset(
    {
        "at_max_connections",
        "balancer",
        "close_timeout",
        "graceful_timeout",
        "handshake_timeout",
        "idle_timeout",
        "lifespan",
        "marks",
        "max_connections",
        "max_connections_per_address",
        "proxy_protocol",
        "proxy_timeout",
        "ssl_context",
        "strict",
        "workers",
    }
)
_OF_CALLBACKS: Final = frozenset(
    {
        "async_handler",
        "load_balancing",
        "logger_level",
        "pool",
        "pool_size",
        "pretty_logger",
        "workers",
        "write_limit",
        "write_policy",
    }
)


_OF_DATAGRAMS: Final = frozenset({"lifespan", "strict", "workers"})


def options_of_servers(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that are fields of :class:`ServerConfig`."""
    names = attrs.fields_dict(ServerConfig)
    return {name: value for name, value in options.items() if name in names}


def check_config(config: ServerConfig) -> None:
    """Raise a :exc:`ValueError` if an option has no meaning in memory."""
    _check(config, ServerConfig(), _OF_SERVERS)


def check_event_config(config: Config) -> None:
    """The same for what only callbacks have."""
    _check(config, Config(), _OF_CALLBACKS)


def check_datagram_options(names: Iterable[str]) -> None:
    """The same for a server of datagrams."""
    _refuse(sorted(set(names) - _OF_DATAGRAMS))


def _check(config: Any, usual: Any, known: Collection[str]) -> None:
    _refuse(
        [
            field.name
            for field in attrs.fields(type(config))
            if field.name not in known and getattr(config, field.name) != getattr(usual, field.name)
        ]
    )


def _refuse(wrong: Sequence[str]) -> None:
    if wrong:
        verb, them = ("is", "it") if len(wrong) == 1 else ("are", "them")
        raise ValueError(
            f"{' and '.join(wrong)} {verb} about sockets, processes or signals, and a server in memory has none: leave "
            f"{them} out"
        )

"""The options of a server as keyword arguments, and the config that they amount to."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, TypedDict

import attrs

from gain_trio._transports import Marks

from ._balancer import Balancer, BalancerName
from ._server_config import Architecture, AtMaxConnections, ContextSource, ServerConfig
from ._server_lifespan import Lifespan

if TYPE_CHECKING:
    from typing_extensions import Unpack


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
    at_max_connections: AtMaxConnections
    max_connections_per_address: int | None
    backlog: int | None
    reuse_port: bool
    receive_buffer: int | None
    send_buffer: int | None
    keep_alive: float | None
    keep_alive_interval: float | None
    keep_alive_count: int | None
    tcp_user_timeout: float | None
    idle_timeout: float
    close_timeout: float
    marks: Marks | None
    mode: int | None
    owner: int | str | None
    group: int | str | None
    user: int | str | None
    pass_fds: bool
    proxy_protocol: Iterable[str] | bool
    proxy_timeout: float
    ssl_context: ContextSource | None
    handshake_timeout: float
    lifespan: Lifespan | None
    strict: bool
    graceful_timeout: float
    worker_timeout: float | None
    max_connections_per_worker: int | None
    max_connections_per_worker_jitter: int
    max_worker_lifetime: float | None
    max_worker_memory: int | None
    signals: bool
    sd_notify: bool
    metrics: str | None
    control: str | None


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

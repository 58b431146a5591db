"""What a program sees of a server that runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import attrs

from gain_trio._transports import Listener

from ._consumer import Consumer


@final
@attrs.frozen
class ServerStatistics:
    """A snapshot of a server's counters."""

    accepted: int
    """Connections taken so far."""
    active: int
    """Connections whose handler runs, or whose TLS handshake does."""
    handler_errors: int
    """Handlers that ended with an exception, other than the next two."""
    broken: int
    """Handlers that ended with a trio.BrokenResourceError: the peer was gone."""
    too_slow: int
    """Handlers that ended with a trio.TooSlowError: a deadline had passed."""
    idle: int
    """Connections that were closed because they moved no byte for too long; their handlers count as broken, if they did not
    notice."""
    refused: int
    """Connections closed before a handler had them: who may send a PROXY protocol header, or what came, was wrong."""
    failed_handshakes: int
    """Connections that had no handler, because their TLS handshake failed or took too long."""
    connections_by_consumer: tuple[int, ...]
    """Connections taken so far, by consumer."""


@final
class Server:
    """A server that runs.  ``nursery.start(gain_trio.serve, ...)`` returns it; cancelling that nursery stops it."""

    def __init__(self, listeners: Sequence[Listener], consumers: Sequence[Consumer]) -> None:
        self._consumers = consumers
        self.addresses: tuple[Any, ...] = tuple(listener.local_address for listener in listeners)
        """Where it listens: one address a listener, as from :meth:`socket.socket.getsockname`."""

    def __repr__(self) -> str:
        return f"<gain_trio.Server on {', '.join(map(str, self.addresses))}>"

    @property
    def active_connections(self) -> int:
        """How many connections are being handled."""
        return sum(consumer.active for consumer in self._consumers)

    def statistics(self) -> ServerStatistics:
        """A snapshot of the counters."""
        return ServerStatistics(
            accepted=sum(consumer.connections for consumer in self._consumers),
            active=self.active_connections,
            handler_errors=sum(consumer.handler_errors for consumer in self._consumers),
            broken=sum(consumer.broken for consumer in self._consumers),
            too_slow=sum(consumer.too_slow for consumer in self._consumers),
            idle=sum(consumer.idle for consumer in self._consumers),
            refused=sum(consumer.refused for consumer in self._consumers),
            failed_handshakes=sum(consumer.failed_handshakes for consumer in self._consumers),
            connections_by_consumer=tuple(consumer.connections for consumer in self._consumers),
        )

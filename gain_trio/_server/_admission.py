"""Connections that are refused because there are enough: in all (``at_max_connections``), or from one address.

A step before the handler refuses a connection, and not the acceptor: behind a proxy the address is known when the proxy's
header has come.  A refused connection is reset, so it costs an accept(2), a task and a close, and its client can turn to
another server at once.
"""

from __future__ import annotations

import ipaddress
import logging
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, Final, final

from gain_trio._transports import Connection, shown

from ._log_throttle import log_throttle, since_last

IPV6_PREFIX: Final = 64
"""Bits of an IPv6 address that are one client's: the network that a customer has (RFC 6177), whose other bits the client
chooses anew as often as it likes."""

logger = logging.getLogger("gain_trio")


@final
class RefusedConnectionError(Exception):
    """There are enough connections; the message says what the limit is."""


@final
class AdmissionStep:
    """What is done with a connection before its handler gets it.

    Args:
      limit: connections of one kind at a time.
      kind_of: returns the kind that a connection is counted under, or None for one that is not counted.
      reason: why one is refused.
    """

    def __init__(self, limit: int, kind_of: Callable[[Connection], Hashable], reason: str) -> None:
        self._limit = limit
        self._kind_of = kind_of
        self._reason = reason
        self._admitted: dict[Connection, Hashable] = {}
        self._counts: Counter[Hashable] = Counter()

    async def prepare(self, connection: Connection) -> Connection:
        """Admit a connection.

        Raises:
          RefusedConnectionError: there are enough of its kind.
          trio.BrokenResourceError: the connection broke.
        """
        kind = self._kind_of(connection)
        if kind is not None:
            if self._counts[kind] >= self._limit:
                self._warn()
                raise RefusedConnectionError(self._reason)
            self._counts[kind] += 1
            self._admitted[connection] = kind
        return connection

    def release(self, connection: Connection) -> None:
        """A connection is over, be it one that was admitted or not."""
        kind = self._admitted.pop(connection, None)
        if kind is not None:
            self._counts[kind] -= 1
            if not self._counts[kind]:
                del self._counts[kind]

    def _warn(self) -> None:
        count = log_throttle(self._reason).count()
        if count is not None:
            logger.warning("new connections are refused: %s%s", shown(self._reason), shown(since_last(count)))


def full_reason(limit: int) -> str:
    """Why a connection is refused when there are too many in all."""
    return f"{limit} connections are open (max_connections)"


def admission_in_all(limit: int) -> AdmissionStep:
    """At most ``limit`` connections."""
    return AdmissionStep(limit, lambda _connection: "all", full_reason(limit))


def admission_by_address(limit: int) -> AdmissionStep:
    """At most ``limit`` connections from one address."""
    reason = f"{limit} connections from its address are open (max_connections_per_address)"
    return AdmissionStep(limit, lambda connection: client_of(connection.remote_address), reason)


def client_of(address: Any) -> ipaddress.IPv4Address | ipaddress.IPv6Network | None:
    """The client that an address stands for; None of a Unix socket."""
    if not isinstance(address, tuple):
        return None
    found = ipaddress.ip_address(str(address[0]).partition("%")[0])
    if isinstance(found, ipaddress.IPv4Address):
        return found
    if found.ipv4_mapped is not None:
        return found.ipv4_mapped
    return ipaddress.IPv6Network((found, IPV6_PREFIX), strict=False)

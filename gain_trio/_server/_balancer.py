"""Balancers: which consumer a connection goes to.

A balancer is called once a connection, before its handler starts: its choice costs nothing later.  It runs in the acceptor,
so a slow one keeps all new connections waiting, and one that raises ends the server: no other choice would be right.
"""

from __future__ import annotations

import hashlib
import ipaddress
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeVar, final, runtime_checkable


@runtime_checkable
class ConsumerView(Protocol):
    """What a balancer sees of a consumer."""

    @property
    def index(self) -> int:
        """Its place among the consumers, from 0."""

    @property
    def active(self) -> int:
        """Its connections that are open now."""

    @property
    def connections(self) -> int:
        """The connections it has been given so far."""


C = TypeVar("C", bound=ConsumerView)


class Balancer(Protocol):
    """Chooses consumers.  Any object with this method is one."""

    def pick(self, peer: Any, consumers: Sequence[ConsumerView], /) -> ConsumerView:
        """The one of ``consumers`` that a connection from ``peer`` goes to.

        Called in the acceptor for every connection; it must not wait.  What it raises ends the server, and so does a
        result that is none of ``consumers``; the connection is closed then.

        Args:
          peer: the other end, as from :meth:`socket.socket.getpeername`: ``(host, port)`` for IPv4, ``(host, port, flow,
            scope)`` for IPv6, of a Unix socket a path, which is ``""`` for nearly all clients.  With the PROXY protocol
            it is the proxy: its header is read later, by the consumer.
          consumers: all there are, always in the same order.
        """


BalancerName: TypeAlias = Literal["round_robin", "least_connections", "source_ip_hash"]


@final
class RoundRobin:
    """Each consumer in turn."""

    def __init__(self) -> None:
        self._next = 0

    def pick(self, _peer: object, consumers: Sequence[C], /) -> C:
        """The consumer whose turn it is."""
        consumer = consumers[self._next % len(consumers)]
        self._next = (self._next + 1) % len(consumers)
        return consumer


@final
class LeastConnections:
    """The consumer with the fewest open connections; among several, the one that has had the fewest so far."""

    def pick(self, _peer: object, consumers: Sequence[C], /) -> C:
        """The least loaded consumer.  Linear in their number."""
        return min(consumers, key=_load)


def _load(consumer: ConsumerView) -> tuple[int, int]:
    return consumer.active, consumer.connections


@final
class SourceIpHash:
    """One consumer for all connections of an IP address, whatever their port, as long as the number of consumers stays.

    An IPv4 address counts the same when it comes by an IPv6 socket (``::ffff:127.0.0.1``), and the scope of a link-local one
    does not count.  The peers of a Unix socket have no address, so each consumer gets them in turn.

    The hash has no key, so that it is the same in every process and after a restart.  An attacker with many addresses can
    choose those that meet at one consumer; the other balancers have no such weakness.
    """

    def __init__(self) -> None:
        self._others = RoundRobin()

    def pick(self, peer: Any, consumers: Sequence[C], /) -> C:
        """The consumer of this address."""
        if not isinstance(peer, tuple):
            return self._others.pick(peer, consumers)
        digest = hashlib.blake2b(_packed(str(peer[0])), digest_size=8).digest()
        return consumers[int.from_bytes(digest, "big") % len(consumers)]


def _packed(host: str) -> bytes:
    if ":" not in host:
        return socket.inet_aton(host)
    address = ipaddress.IPv6Address(host.partition("%")[0])
    return address.packed if address.ipv4_mapped is None else address.ipv4_mapped.packed


BALANCERS: Final[dict[BalancerName, Callable[[], Balancer]]] = {
    "round_robin": RoundRobin,
    "least_connections": LeastConnections,
    "source_ip_hash": SourceIpHash,
}

OWN_BALANCERS: Final = (RoundRobin, LeastConnections, SourceIpHash)
"""Whose choice is all that they do."""


def balancer_of(choice: BalancerName | Balancer) -> Balancer:
    """The balancer that an option stands for."""
    return BALANCERS[choice]() if isinstance(choice, str) else choice


def asks_for_peer(balancer: Balancer) -> bool:
    """Whether the peer's address is worth a system call: two of ours do not look at it."""
    return not isinstance(balancer, RoundRobin | LeastConnections)

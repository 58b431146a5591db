"""From an accepted connection to a consumer: by the balancer, whose answer is not believed unseen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import trio

from gain_trio._transports import Connection

from ._balancer import OWN_BALANCERS, Balancer, RoundRobin, asks_for_peer
from ._consumer import Consumer


@final
class Dispatcher:
    """Hands connections to consumers; shared by the acceptors that have the same ones."""

    def __init__(self, consumers: Sequence[Consumer], balancer: Balancer) -> None:
        self._consumers = tuple(consumers)
        self._balancer = balancer
        self._asks_for_peer = asks_for_peer(balancer)
        self._by_identity = {id(consumer): consumer for consumer in consumers}
        self._fallback = RoundRobin()
        self.only = self._consumers[0] if len(self._consumers) == 1 else None
        """The consumer, if there is but one."""
        # A balancer of the program's is asked also where there is no choice: it may count, or log.
        self._unchosen = self.only if isinstance(balancer, OWN_BALANCERS) else None

    def hand_off(self, connection: Connection) -> None:
        """Give a connection, and the place that was taken for it, to a consumer.

        Raises:
          ValueError: the balancer has returned an object that is not one of the consumers.

        What the balancer raises is raised, too.  Either way the connection is closed then.
        """
        try:
            (self._unchosen or self._pick(connection)).hand_off(connection)
        except BaseException:
            connection._close_now()
            raise

    def _pick(self, connection: Connection) -> Consumer:
        peer: Any = None
        if self._asks_for_peer:
            try:
                peer = connection.direct_remote_address
            except trio.BrokenResourceError:  # it is gone already; the consumer that gets it finds that out
                return self._fallback.pick(None, self._consumers)
        picked = self._balancer.pick(peer, self._consumers)
        consumer = self._by_identity.get(id(picked))
        if consumer is None:
            raise ValueError(
                f"the balancer {self._balancer!r} picked {picked!r} for a connection from {peer}: that is not among the "
                "consumers it was given; pick(peer, consumers) returns one of consumers"
            )
        return consumer

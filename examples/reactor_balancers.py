"""A reactor has one acceptor, four consumers, and a balancer that chooses the consumer of each connection.

    python examples/reactor_balancers.py [BALANCER [tcp://127.0.0.1:0]]

BALANCER is round_robin, least_connections, source_ip_hash, or two_choices, which is made here.  The server sends each client
the number of connections that every consumer has:

    $ nc 127.0.0.1 PORT
    0 1 0 0
"""

import random
import signal
import sys
from collections.abc import Sequence
from typing import Any

import trio

import gain_trio

WORKERS = 4


class TwoChoices:
    """This balancer picks two consumers at random, and chooses the one with fewer connections.

    That is nearly as good as comparing all of them, and takes the same time for any number of them (Mitzenmacher, 2001).
    """

    def pick(self, _peer: Any, consumers: Sequence[gain_trio.ConsumerView]) -> gain_trio.ConsumerView:
        """Return the consumer of a connection from this peer."""
        return min(random.sample(consumers, 2), key=lambda consumer: consumer.active)


class Census:
    """The handler reports on the server that it belongs to."""

    server: gain_trio.Server

    async def tell(self, connection: gain_trio.Connection) -> None:
        """Send the number of connections of each consumer, and wait until the client leaves."""
        counts = self.server.statistics().active_by_consumer
        await connection.send(" ".join(map(str, counts)).encode() + b"\n")
        async for _data in connection.messages():
            pass


async def main(name: str, address: str) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    balancer: Any = TwoChoices() if name == "two_choices" else name
    census = Census()
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            config = gain_trio.ServerConfig(workers=WORKERS, balancer=balancer)
            census.server = await nursery.start(
                lambda task_status: gain_trio.serve(census.tell, address, config=config, task_status=task_status)
            )
            for host, port, *_ in census.server.addresses:
                print(f"listening on {host} port {port}", flush=True)
            await anext(signals)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    arguments = dict(enumerate(sys.argv))
    gain_trio.run(main, arguments.get(1, "two_choices"), arguments.get(2, "tcp://127.0.0.1:0"))

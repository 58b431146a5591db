"""A UDP echo server has a handler, and no connections.

    python examples/udp_echo.py [udp://127.0.0.1:0]

With port 0 the kernel chooses the port, and the server prints it.  Ctrl-C stops the server, which then prints its counters.
"""

import signal
import sys
from typing import Any

import trio

import gain_trio


async def echo(data: bytes, address: Any, endpoint: gain_trio.DatagramEndpoint) -> None:
    """Send a datagram back to its source, unless that is the port of a service, this one's own included.

    With a forged source two services would answer each other for ever.
    """
    if address[1] >= 1024 and address[1] != endpoint.local_address[1]:
        await endpoint.send(data, address)


async def main(address: str) -> None:
    """Serve until Ctrl-C or SIGTERM: cancelling the nursery stops the server."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(gain_trio.serve_datagrams, echo, address)
            host, port, *_ = server.address
            print(f"listening on {host} port {port}", flush=True)
            await anext(signals)
            counted = server.statistics().datagrams
            print(f"{counted.received} received, {counted.sent} sent, {counted.dropped} dropped", flush=True)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    gain_trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "udp://127.0.0.1:0")

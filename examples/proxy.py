"""A TCP proxy has two tasks in one nursery for each connection, one a direction.

    python examples/proxy.py tcp://HOST:PORT [tcp://127.0.0.1:0]

forwards connections to the second address to the first one.  The proxy passes an end of stream on as a half close, so the
other direction goes on until its own end.  When either side breaks, the nursery cancels the other direction.
"""

import signal
import sys
from functools import partial

import trio

import gain_trio


async def forward(source: gain_trio.Connection, target: gain_trio.Connection) -> None:
    """Copy one direction, its end included.  A target that reads slowly slows the source down: send() waits."""
    async for data in source:
        await target.send(data)
    await target.send_eof()


async def proxy(upstream: str, client: gain_trio.Connection) -> None:
    """Serve one client."""
    async with await gain_trio.connect(upstream) as server, trio.open_nursery() as nursery:
        nursery.start_soon(forward, client, server)
        nursery.start_soon(forward, server, client)


async def main(upstream: str, address: str) -> None:
    """Serve until Ctrl-C or SIGTERM: cancelling the nursery stops the server."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(gain_trio.serve, partial(proxy, upstream), address)
            for host, port, *_ in server.addresses:
                print(f"listening on {host} port {port}", flush=True)
            await anext(signals)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    gain_trio.run(main, sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "tcp://127.0.0.1:0")

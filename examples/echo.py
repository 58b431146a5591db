"""An echo server is a handler and a nursery.

    python examples/echo.py [tcp://127.0.0.1:0]

With port 0 the kernel chooses the port, and the server prints it.  Ctrl-C stops the server.
"""

import signal
import sys

import trio

import gain_trio


async def echo(connection: gain_trio.Connection) -> None:
    """Send back all data, until the client ends the stream or the server drains; then the server closes the connection."""
    async for data in connection.messages():
        await connection.send(data)


async def main(address: str) -> None:
    """Serve until Ctrl-C or SIGTERM: cancelling the nursery stops the server."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(gain_trio.serve, echo, address)
            for host, port, *_ in server.addresses:
                print(f"listening on {host} port {port}", flush=True)
            await anext(signals)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    gain_trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:0")

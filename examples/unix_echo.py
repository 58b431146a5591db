"""An echo server on a Unix socket serves the programs of one user, and prints which process connects.

    python examples/unix_echo.py unix:///run/user/1000/echo.sock
    socat - UNIX-CONNECT:/run/user/1000/echo.sock

The mode of the socket's file keeps other users out.  The server replaces a file that a killed server left behind, and
removes its own at its end.  Ctrl-C stops the server.
"""

import signal
import sys

import trio

import gain_trio


async def echo(connection: gain_trio.Connection) -> None:
    """Send back all data, until the client ends the stream; then the server closes the connection."""
    peer = connection.peer_credentials()
    print(f"process {peer.pid} of user {peer.uid}", flush=True)
    async for data in connection.messages():
        await connection.send(data)


async def main(address: str) -> None:
    """Serve until Ctrl-C or SIGTERM: cancelling the nursery stops the server and removes the file."""

    async def serve(*, task_status: trio.TaskStatus[gain_trio.Server]) -> None:
        await gain_trio.serve(echo, address, mode=0o600, task_status=task_status)

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(serve)
            print(f"listening on {server.addresses[0]}", flush=True)
            await anext(signals)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    gain_trio.run(main, sys.argv[1])

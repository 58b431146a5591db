"""A deadline stops this server: cancelling the scope around a server stops it, with everything below it.

    python examples/cancel_scope.py [seconds, 5 by default] [tcp://127.0.0.1:0]

The server counts for its clients, a line every tenth of a second.  When the scope's deadline comes, the server closes the
listener, cancels the handlers where they wait (their ``finally`` blocks run), and closes their connections.
"""

import sys

import trio

import gain_trio


async def count(connection: gain_trio.Connection) -> None:
    """Send a line every tenth of a second for as long as the client listens."""
    number = 0
    try:
        while True:
            await connection.send(f"{number}\n".encode())
            number += 1
            await trio.sleep(0.1)
    except trio.BrokenResourceError:
        pass  # the client is gone
    finally:
        print(f"a handler ended after {number} lines", flush=True)


async def main(seconds: float, address: str) -> None:
    """Serve for this number of seconds."""
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(gain_trio.serve, count, address)
            for host, port, *_ in server.addresses:
                print(f"listening on {host} port {port}", flush=True)
    print("the deadline stopped the server", flush=True)


if __name__ == "__main__":
    gain_trio.run(
        main,
        float(sys.argv[1]) if len(sys.argv) > 1 else 5.0,
        sys.argv[2] if len(sys.argv) > 2 else "tcp://127.0.0.1:0",
    )

"""A server ends gracefully: clients that have asked receive the whole answer, and the server disconnects the others.

    python examples/graceful.py [tcp://127.0.0.1:0 [SECONDS]]

    $ nc 127.0.0.1 PORT
    3
    1
    2
    3

The answer to a number is that number of lines.  At the first Ctrl-C or SIGTERM the server stops accepting, finishes the
answers under way, disconnects clients that have asked nothing, and cuts off answers that take longer than SECONDS (10).  A
second signal cuts off all of them at once.
"""

import contextlib
import functools
import signal
import sys
from collections.abc import AsyncIterator

import trio

import gain_trio

LONGEST_LINE = 100
MOST_LINES = 10_000_000
AT_ONCE = 1000


async def answer(connection: gain_trio.Connection, request: bytes) -> None:
    """Send the number of lines that the client has asked for."""
    count = min(int(request), MOST_LINES)
    for first in range(1, count + 1, AT_ONCE):
        last = min(first + AT_ONCE, count + 1)
        await connection.send(b"".join(b"%d\n" % number for number in range(first, last)))


async def handler(connection: gain_trio.Connection) -> None:
    """Serve a client until it ends the stream or the server drains; answer each request that has arrived."""
    with contextlib.suppress(ValueError):
        async for request in connection.messages(functools.partial(connection.receive_line, max_bytes=LONGEST_LINE)):
            await answer(connection, request)


async def main(address: str, seconds: float) -> None:
    """Serve until a signal, and then drain; a second signal ends the server at once."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(gain_trio.serve, handler, address)
            for host, port, *_ in server.addresses:
                print(f"listening on {host} port {port}", flush=True)
            await anext(signals)
            print(f"draining {server.active_connections} connections", flush=True)
            async with trio.open_nursery() as ending:
                ending.start_soon(cancel_on, signals, nursery.cancel_scope)
                await server.drain(seconds)
                ending.cancel_scope.cancel()
    counts = server.statistics()
    print(f"finished {counts.finished}, cut off {counts.cancelled}", flush=True)


async def cancel_on(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    """Cancel the scope at the second signal."""
    await anext(signals)
    scope.cancel()


if __name__ == "__main__":
    where = sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:0"
    gain_trio.run(main, where, float(sys.argv[2]) if len(sys.argv) > 2 else 10.0)

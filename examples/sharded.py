"""A server runs in several processes, each with a listener of its own on the same port (socket sharding).

    python examples/sharded.py [processes, one a CPU by default] [tcp://127.0.0.1:0]

The kernel shares the connections among the listeners.  Every process has its own Trio run, and its own ring where the
machine has io_uring.  It imports this file to find the handler, so the server starts under ``if __name__ == "__main__"``.
The server replaces a process that dies.

The server answers each line with the number of the process that serves the client.  Ctrl-C and SIGTERM let
connections finish (a second one cuts them off), and SIGHUP replaces the processes one by one, without refusing a
connection::

    kill -HUP <the process id that is printed>
"""

import functools
import os
import sys

import trio

import gain_trio


async def tell_process(connection: gain_trio.Connection) -> None:
    """Answer lines, until the client ends the stream or this process drains."""
    async for _line in connection.messages(connection.receive_line):
        await connection.send(f"process {os.getpid()}\n".encode())


async def main(processes: int | None, address: str) -> None:
    """Serve until a signal."""
    config = gain_trio.ServerConfig(
        architecture="socket_sharding",
        processes=processes or "auto",
        signals=True,
        graceful_timeout=10,
    )
    async with trio.open_nursery() as nursery:
        server = await nursery.start(functools.partial(gain_trio.serve, tell_process, address, config=config))
        for host, port, *_ in server.addresses:
            print(f"listening on {host} port {port}", flush=True)
        print(f"the server is process {os.getpid()}", flush=True)
    counts = server.statistics()
    print(f"served {counts.accepted} connections, by process: {counts.connections_by_consumer}", flush=True)


if __name__ == "__main__":
    gain_trio.run(
        main,
        int(sys.argv[1]) if len(sys.argv) > 1 else None,
        sys.argv[2] if len(sys.argv) > 2 else "tcp://127.0.0.1:0",
    )

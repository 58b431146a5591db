"""A chat server sends every line to all clients, and never waits for a slow reader.

    python examples/chat.py [tcp://127.0.0.1:0]

Each client has an outbox of OUTBOX lines and a task that sends them.  A broadcast only puts lines into outboxes, and so
never waits.  When an outbox is full its client reads too slowly, and the server drops it: it resets the connection, so that
the client sees that it has missed something.  Ctrl-C stops the server.
"""

import functools
import signal
import sys
from itertools import count

import trio

import gain_trio

OUTBOX = 100
LONGEST_LINE = 8192


class Room:
    """The clients of the chat."""

    def __init__(self) -> None:
        self._outboxes: dict[str, trio.MemorySendChannel[bytes]] = {}
        self._connections: dict[str, gain_trio.Connection] = {}
        self._numbers = count(1)

    def broadcast(self, line: str) -> None:
        """Put a line into every outbox, and drop each client whose outbox is full."""
        for name, outbox in list(self._outboxes.items()):
            try:
                outbox.send_nowait(line.encode() + b"\n")
            except trio.WouldBlock:
                print(f"{name} reads too slowly", flush=True)
                self._outboxes.pop(name).close()
                self._connections[name].abort()  # its tasks end with trio.ClosedResourceError

    async def serve(self, connection: gain_trio.Connection) -> None:
        """Serve one client, until it leaves or is dropped."""
        name = f"guest {next(self._numbers)}"
        outbox, lines = trio.open_memory_channel[bytes](OUTBOX)
        self.broadcast(f"* {name} has joined")
        self._outboxes[name], self._connections[name] = outbox, connection
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_lines, connection, lines)
                await self._receive_lines(connection, name)
                nursery.cancel_scope.cancel()
        finally:
            self._outboxes.pop(name, None)
            del self._connections[name]
            self.broadcast(f"* {name} has left")

    async def _receive_lines(self, connection: gain_trio.Connection, name: str) -> None:
        try:
            receive_line = functools.partial(connection.receive_line, max_bytes=LONGEST_LINE)
            async for line in connection.messages(receive_line):
                self.broadcast(f"{name}: {line.decode(errors='replace')}")
                await trio.lowlevel.checkpoint()  # however much one client says, the others have their turn
        except (gain_trio.IncompleteMessage, gain_trio.MessageTooLong) as error:
            print(f"{name}: {error}", flush=True)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            pass  # dropped, or gone


async def send_lines(connection: gain_trio.Connection, lines: trio.MemoryReceiveChannel[bytes]) -> None:
    """Empty an outbox: all lines that are there leave together."""
    try:
        async for line in lines:
            batch = [line]
            while lines.statistics().current_buffer_used:
                batch.append(lines.receive_nowait())
            await connection.send(batch)
    except (trio.ClosedResourceError, trio.BrokenResourceError):
        pass  # dropped, or gone: the receiving side finds out, too


async def main(address: str) -> None:
    """Serve until Ctrl-C or SIGTERM: cancelling the nursery stops the server."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(gain_trio.serve, Room().serve, address)
            for host, port, *_ in server.addresses:
                print(f"listening on {host} port {port}", flush=True)
            await anext(signals)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    gain_trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:0")

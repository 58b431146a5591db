"""The chat of the tutorial at its end: TLS, two processes, and one conversation.

    python examples/chat_processes.py CERTIFICATE KEY [tcp://127.0.0.1:0 [PROCESSES]]

    $ openssl s_client -quiet -connect 127.0.0.1:PORT
    your name?
    ada
    * ada has joined

A client talks to one of the worker processes.  Each process sends what its clients say to the hub, a second server in the
server's own process, and the hub sends each line to all processes.  docs/tutorial.md builds this program step by step.
"""

import contextlib
import functools
import os
import ssl
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import trio

import gain_trio

OUTBOX = 100
LONGEST_LINE = 8192


class Room:
    """Connections that receive the same lines.  A broadcast never waits: a member that reads too slowly is dropped."""

    def __init__(self) -> None:
        self._outboxes: dict[gain_trio.Connection, trio.MemorySendChannel[bytes]] = {}

    def broadcast(self, line: bytes) -> None:
        """Put a line into every outbox, and drop each member whose outbox is full."""
        for connection, outbox in list(self._outboxes.items()):
            try:
                outbox.send_nowait(line)
            except trio.WouldBlock:
                connection.abort()  # its calls raise trio.ClosedResourceError

    @contextlib.contextmanager
    def member(self, connection: gain_trio.Connection) -> Iterator[trio.MemoryReceiveChannel[bytes]]:
        """Be a member for the length of a with statement."""
        self._outboxes[connection], lines = trio.open_memory_channel[bytes](OUTBOX)
        try:
            yield lines
        finally:
            self._outboxes.pop(connection).close()


async def send_lines(connection: gain_trio.Connection, lines: trio.MemoryReceiveChannel[bytes]) -> None:
    """Send what comes out of a channel."""
    async for line in lines:
        await connection.send(line + b"\n")


async def hub(room: Room, connection: gain_trio.Connection) -> None:
    """Serve a worker process: what it sends goes to all of them, itself included."""
    with room.member(connection) as lines:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_lines, connection, lines)
            async for line in connection.messages(connection.receive_line):
                room.broadcast(line)
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()


class Talk:
    """What a worker process holds: its room, and its way to the hub."""

    def __init__(self) -> None:
        self.room = Room()
        self._said, self._lines = trio.open_memory_channel[bytes](OUTBOX)

    async def say(self, line: bytes) -> None:
        """Have all clients of all processes receive a line.  Waits while the hub is behind."""
        await self._said.send(line)

    async def run(self, connection: gain_trio.Connection) -> None:
        """Carry lines to the hub and back."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_lines, connection, self._lines)
            async for line in connection.messages(connection.receive_line):
                self.room.broadcast(line)


@contextlib.asynccontextmanager
async def talk(address: str) -> AsyncIterator[Talk]:
    """The lifespan: each worker process is connected to the hub as long as it serves."""
    async with await gain_trio.connect(address) as connection, trio.open_nursery() as nursery:
        talking = Talk()
        nursery.start_soon(talking.run, connection)
        yield talking
        nursery.cancel_scope.cancel()


async def chat(connection: gain_trio.Connection) -> None:
    """Serve a client."""
    talking: Talk = gain_trio.lifespan_value()
    receive_line = functools.partial(connection.receive_line, max_bytes=LONGEST_LINE)
    connection.read_deadline = trio.current_time() + 60
    await connection.send(b"your name?\n")
    name = await receive_line()
    if not name:
        return
    connection.read_deadline = float("inf")
    try:
        with talking.room.member(connection) as lines:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_lines, connection, lines)
                await talking.say(b"* " + name + b" has joined")
                async for line in connection.messages(receive_line):
                    await talking.say(name + b": " + line)
                nursery.cancel_scope.cancel()
    finally:  # also when the client has vanished, or was dropped
        await talking.say(b"* " + name + b" has left")


def make_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Each process calls it at its start, and again on SIGHUP: that is how a new certificate gets in."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context


async def main(certificate: Path, key: Path, address: str, processes: int) -> None:
    """Serve until SIGTERM or Ctrl-C; then the clients' connections end first, and the hub's last."""
    hub_address = f"unix://@gain-trio-chat-{os.getpid()}"
    config = gain_trio.ServerConfig(
        processes=processes,
        ssl_context=functools.partial(make_context, certificate, key),
        lifespan=functools.partial(talk, hub_address),
        idle_timeout=3600,
        signals=True,
    )
    async with trio.open_nursery() as around:
        await around.start(gain_trio.serve, functools.partial(hub, Room()), hub_address)
        async with trio.open_nursery() as nursery:
            server = await nursery.start(functools.partial(gain_trio.serve, chat, address, config=config))
            for host, port, *_ in server.addresses:
                print(f"listening on {host} port {port}", flush=True)
        around.cancel_scope.cancel()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    gain_trio.run(
        main,
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        sys.argv[3] if len(sys.argv) > 3 else "tcp://127.0.0.1:0",
        int(sys.argv[4]) if len(sys.argv) > 4 else 2,
    )

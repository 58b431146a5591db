"""Connected pairs, and ways to wait for what has no event of its own."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from typing import TypeAlias

import trio
import trio.testing

from gain_trio import Connection, Listener, Marks, connect, open_listeners
from gain_trio._transports._addresses._passed_descriptors import descriptor_closer

Pair: TypeAlias = tuple[Connection, Connection]

MEBIBYTE = 1 << 20
QUIET = 0.05
"""Seconds without progress after which a transfer counts as stopped; if it is not, a test only shows less."""
PATIENCE = 30.0
"""Seconds after which a test gives up waiting for an event."""


def address_of(listener: Listener) -> str:
    """The address by which a client connects to the listener."""
    host, port, *_ = listener.local_address
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


async def open_pair(*, marks: Marks | None = None, client_marks: Marks | None = None) -> Pair:
    """Open the client's connection and the accepted one."""
    [listener] = await open_listeners("tcp://127.0.0.1:0", marks=marks)
    async with listener:
        client = await connect(address_of(listener), marks=client_marks)
        return client, await listener.accept()


async def open_unix_pair(address: str, *, pass_fds: bool = False) -> Pair:
    """Open a pair over a Unix socket with this address."""
    [listener] = await open_listeners(address, pass_fds=pass_fds)
    async with listener:
        client = await connect(address, pass_fds=pass_fds)
        return client, await listener.accept()


async def open_trio_pair(*, marks: Marks | None = None) -> tuple[trio.SocketStream, Connection]:
    """Open a stream of Trio's, which reads only when the test calls it, and the accepted connection."""
    [listener] = await open_listeners("tcp://127.0.0.1:0", marks=marks)
    async with listener:
        client = await trio.open_tcp_stream("127.0.0.1", listener.local_address[1])
        return client, await listener.accept()


@contextlib.contextmanager
def blocking(client: trio.SocketStream) -> Iterator[socket.socket]:
    """The socket of a client, for system calls in which the run does not go on."""
    with socket.socket(fileno=os.dup(client.socket.fileno())) as sock:
        sock.settimeout(PATIENCE)
        yield sock
        sock.settimeout(0)


async def until(condition: Callable[[], bool]) -> None:
    """Let the run go on until the condition holds."""
    with trio.fail_after(PATIENCE):
        while not condition():
            await trio.lowlevel.checkpoint()


async def until_passed_are_closed() -> None:
    """Let the run go on until threads have closed the unwanted descriptors that peers have passed."""
    await until(lambda: descriptor_closer.is_idle)


async def until_queued(connection: Connection, count: int) -> None:
    """Let the run go on until ``count`` bytes are queued unread in the connection."""
    await until(lambda: connection.inbound_buffered >= count)


async def receive_exactly(connection: trio.abc.ReceiveStream, count: int) -> bytes:
    """Receive ``count`` bytes."""
    received = bytearray()
    while len(received) < count:
        data = await connection.receive_some(count - len(received))
        assert data, f"the stream ended after {len(received)} of {count} bytes"
        received += data
    return bytes(received)


async def receive_all(connection: trio.abc.ReceiveStream) -> bytes:
    """Receive everything until the end of the stream."""
    received = bytearray()
    while data := await connection.receive_some():
        received += data
    return bytes(received)


async def clog(connection: Connection) -> None:
    """Send more than any kernel queues, so that the connection's senders have to wait."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.send, bytes(24 * MEBIBYTE))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def fill_kernel(connection: Connection) -> int:
    """Send past the connection's queue until the kernel accepts no more, and return how many bytes it has accepted.

    TCP leaves a window that is smaller than a segment unused until it probes it, 0.2 s later; then there is room again.
    """
    total = 0
    full = 0
    with socket.socket(fileno=os.dup(connection.fileno())) as sock:
        sock.setblocking(False)
        while full < 8:
            before = total
            with contextlib.suppress(BlockingIOError):
                while True:
                    total += sock.send(bytes(65536))
            full = full + 1 if total == before else 0
            await trio.testing.wait_all_tasks_blocked(QUIET)  # the peer's kernel may accept some, which makes room
    return total


def pattern(length: int) -> bytes:
    """Bytes whose period no buffer's size can hide."""
    step = bytes(range(251))
    return (step * (length // len(step) + 1))[:length]

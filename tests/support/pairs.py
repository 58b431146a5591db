"""Connected pairs, and ways to wait for what has no event of its own."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from typing import TypeAlias

import trio
import trio.testing

from gain_trio import Connection, Listener, Marks, connect, open_listeners
from gain_trio._transports._addresses._passed_descriptors import keeper

Pair: TypeAlias = tuple[Connection, Connection]

MEBIBYTE = 1 << 20
QUIET = 0.05
"""Seconds without news after which a transfer is taken for stopped; were it not, a test would only show less."""
PATIENCE = 30.0
"""Seconds after which something that should have happened counts as not happening."""


def address_of(listener: Listener) -> str:
    """The address to connect to."""
    host, port, *_ = listener.local_address
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


async def open_pair(*, marks: Marks | None = None, client_marks: Marks | None = None) -> Pair:
    """The client's connection and the accepted one."""
    [listener] = await open_listeners("tcp://127.0.0.1:0", marks=marks)
    async with listener:
        client = await connect(address_of(listener), marks=client_marks)
        return client, await listener.accept()


async def open_unix_pair(address: str, *, pass_fds: bool = False) -> Pair:
    """The same over a Unix socket with this address."""
    [listener] = await open_listeners(address, pass_fds=pass_fds)
    async with listener:
        client = await connect(address, pass_fds=pass_fds)
        return client, await listener.accept()


async def open_trio_pair(*, marks: Marks | None = None) -> tuple[trio.SocketStream, Connection]:
    """A client that is Trio's, which reads only what it is asked to, and the accepted connection."""
    [listener] = await open_listeners("tcp://127.0.0.1:0", marks=marks)
    async with listener:
        client = await trio.open_tcp_stream("127.0.0.1", listener.local_address[1])
        return client, await listener.accept()


async def until(condition: Callable[[], bool]) -> None:
    """Let the run go on until the condition holds."""
    with trio.fail_after(PATIENCE):
        while not condition():
            await trio.lowlevel.checkpoint()


async def until_passed_are_closed() -> None:
    """Let the run go on until what peers have passed, and no handler wants, has been closed."""
    await until(lambda: keeper.is_idle)


async def until_queued(connection: Connection, count: int) -> None:
    """Let the run go on until so many bytes have been received and not taken."""
    await until(lambda: connection.inbound_buffered >= count)


async def receive_exactly(connection: trio.abc.ReceiveStream, count: int) -> bytes:
    """That many bytes."""
    received = bytearray()
    while len(received) < count:
        data = await connection.receive_some(count - len(received))
        assert data, f"the stream ended after {len(received)} of {count} bytes"
        received += data
    return bytes(received)


async def receive_all(connection: trio.abc.ReceiveStream) -> bytes:
    """Everything until the end of the stream."""
    received = bytearray()
    while data := await connection.receive_some():
        received += data
    return bytes(received)


async def clog(connection: Connection) -> None:
    """Send more than any peer's kernel holds, so that the connection's senders have to wait."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.send, bytes(24 * MEBIBYTE))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def fill_kernel(connection: Connection) -> int:
    """Have the kernel hold all that it takes for this connection, past its queue, and return how much that is.

    A window that is smaller than a segment is left unused until TCP probes it, 0.2 s later; then there is room once more.
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
            await trio.testing.wait_all_tasks_blocked(QUIET)  # the peer's kernel may make room by taking some over
    return total


def pattern(length: int) -> bytes:
    """Bytes with no period that a buffer's size could hide."""
    step = bytes(range(251))
    return (step * (length // len(step) + 1))[:length]

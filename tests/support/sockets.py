"""Sockets of the standard library, and operations on them."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

import trio


@contextlib.contextmanager
def socket_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Open two connected non-blocking sockets, and close them at the end."""
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        yield one, other


def fill(sock: socket.socket) -> int:
    """Write until the kernel accepts no more, and return how many bytes it has accepted."""
    total = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            total += sock.send(bytes(65536))
    return total


def read_available(sock: socket.socket) -> bytes:
    """Read all that has arrived, without waiting."""
    received = bytearray()
    with contextlib.suppress(BlockingIOError):
        while data := sock.recv(65536):
            received += data
    return bytes(received)


def reset(client: trio.SocketStream | socket.socket) -> None:
    """End a connection with RST."""
    sock = client.socket if isinstance(client, trio.SocketStream) else client
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()

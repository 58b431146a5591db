"""Servers of datagrams, and sockets of the standard library that talk to them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import trio

import gain_trio
from gain_trio import DatagramEndpoint, DatagramServer
from support.pairs import until

LOCAL = "udp://127.0.0.1:0"


def url(address: Any) -> str:
    """The text of a socket address."""
    return f"udp://[{address[0]}]:{address[1]}" if ":" in address[0] else f"udp://{address[0]}:{address[1]}"


async def until_counted(endpoint: DatagramEndpoint, count: int) -> None:
    """Let the run go on until ``count`` datagrams have arrived, received or dropped."""

    def arrived() -> int:
        now = endpoint.statistics()
        return now.received + now.dropped + now.oversized

    await until(lambda: arrived() >= count)


async def receive_from(sock: socket.socket) -> tuple[bytes, Any]:
    """Receive a datagram that the run sends to a socket of the standard library."""
    with trio.fail_after(10):
        while True:
            with contextlib.suppress(BlockingIOError):
                return sock.recvfrom(65536)
            await trio.lowlevel.checkpoint()


async def send_back(data: bytes, address: Any, endpoint: DatagramEndpoint) -> None:
    """Answer each datagram with itself."""
    await endpoint.send(data, address)


@contextlib.asynccontextmanager
async def serving_datagrams(handler: Any, address: str = LOCAL, **options: Any) -> AsyncIterator[DatagramServer]:
    """Serve for the duration of a with statement."""
    async with trio.open_nursery() as nursery:
        server = await nursery.start(lambda **status: gain_trio.serve_datagrams(handler, address, **options, **status))
        assert isinstance(server, DatagramServer)
        yield server
        nursery.cancel_scope.cancel()


def is_silent(sock: socket.socket) -> bool:
    """Whether nothing has arrived."""
    try:
        sock.recvfrom(65536)
    except BlockingIOError:
        return True
    return False

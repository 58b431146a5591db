"""Trio's structured concurrency at the speed of io_uring.

A server is a handler and a nursery::

    async def echo(connection):
        async for data in connection:
            await connection.send(data)

    async def main():
        async with trio.open_nursery() as nursery:
            server = await nursery.start(gain_trio.serve, echo, "tcp://127.0.0.1:0")

    gain_trio.run(main)
"""

from ._io_manager import (
    Backend,
    BackendInfo,
    UringStatistics,
    backend_info,
    install,
    run,
    start_guest_run,
    uninstall,
)
from ._kernel import Feature, RingUnavailable
from ._ring import RingOptions
from ._server import Server, ServerStatistics, serve
from ._transports import Connection, Listener, Marks, connect, open_listeners

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "BackendInfo",
    "Connection",
    "Feature",
    "Listener",
    "Marks",
    "RingOptions",
    "RingUnavailable",
    "Server",
    "ServerStatistics",
    "UringStatistics",
    "backend_info",
    "connect",
    "install",
    "open_listeners",
    "run",
    "serve",
    "start_guest_run",
    "uninstall",
]

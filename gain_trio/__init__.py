"""Trio's structured concurrency at the speed of io_uring.

A server is a handler and a nursery::

    async def echo(connection):
        async for data in connection:
            await connection.send(data)

    async def main():
        async with trio.open_nursery() as nursery:
            server = await nursery.start(gain_trio.serve, echo, "tcp://127.0.0.1:0")

    gain_trio.run(main)

A name is imported when it is first used, so a program that imports this package pays for what it uses.
"""

import importlib as _importlib
import typing as _typing

if _typing.TYPE_CHECKING:
    from . import asgi as asgi
    from . import asyncio_bridge as asyncio_bridge
    from . import callbacks as callbacks
    from . import logs as logs
    from . import sockets as sockets
    from . import testing as testing
    from ._io_manager import (
        Backend,
        BackendInfo,
        PieceInfo,
        UringStatistics,
        backend_info,
        install,
        run,
        start_guest_run,
        uninstall,
    )
    from ._kernel import Feature, RingUnavailable
    from ._ring import RingOptions
    from ._server import (
        Balancer,
        ConsumerView,
        DatagramServer,
        DatagramServerStatistics,
        Server,
        ServerConfig,
        ServerOptions,
        ServerStatistics,
        WorkerFailed,
        lifespan_value,
        serve,
        serve_datagrams,
    )
    from ._transports import (
        Connection,
        DatagramEndpoint,
        DatagramStatistics,
        IncompleteMessage,
        Listener,
        Marks,
        MessageTooLong,
        ProxyHeader,
        connect,
        open_datagram_endpoint,
        open_listeners,
    )

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "BackendInfo",
    "Balancer",
    "Connection",
    "ConsumerView",
    "DatagramEndpoint",
    "DatagramServer",
    "DatagramServerStatistics",
    "DatagramStatistics",
    "Feature",
    "IncompleteMessage",
    "Listener",
    "Marks",
    "MessageTooLong",
    "PieceInfo",
    "ProxyHeader",
    "RingOptions",
    "RingUnavailable",
    "Server",
    "ServerConfig",
    "ServerOptions",
    "ServerStatistics",
    "UringStatistics",
    "WorkerFailed",
    "backend_info",
    "connect",
    "install",
    "lifespan_value",
    "open_datagram_endpoint",
    "open_listeners",
    "run",
    "serve",
    "serve_datagrams",
    "start_guest_run",
    "uninstall",
]

_FLOORS = ("._kernel", "._ring", "._io_manager", "._transports", "._server")
"""The packages that the names come from.  Each of them imports the ones before it anyway."""
_MODULES = ("asgi", "asyncio_bridge", "callbacks", "logs", "sockets", "testing")

if not _typing.TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name in __all__:
            for floor in _FLOORS:
                package = _importlib.import_module(floor, __name__)
                if name in package.__all__:
                    globals()[name] = value = getattr(package, name)
                    return value
        if name in _MODULES:
            return _importlib.import_module(f".{name}", __name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_MODULES})

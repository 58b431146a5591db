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
    PeerCredentials,
    ProxyHeader,
    connect,
    open_datagram_endpoint,
    open_listeners,
)
from .asyncio_bridge import ProtocolHandler
from .callbacks import (
    AlreadyRunning,
    BufferEmpty,
    Config,
    Conn,
    ConnectionAlreadyClosed,
    ConnectionClosed,
    EventHandler,
    EventServer,
    InvalidDuration,
    InvalidState,
    NotSupported,
    ShortBuffer,
    SlowReader,
    UnsupportedProtocol,
    listen_and_serve,
    serve_events,
)

__version__ = "0.1.0"

__all__ = [
    "AlreadyRunning",
    "Backend",
    "BackendInfo",
    "Balancer",
    "BufferEmpty",
    "Config",
    "Conn",
    "Connection",
    "ConnectionAlreadyClosed",
    "ConnectionClosed",
    "ConsumerView",
    "DatagramEndpoint",
    "DatagramServer",
    "DatagramServerStatistics",
    "DatagramStatistics",
    "EventHandler",
    "EventServer",
    "Feature",
    "IncompleteMessage",
    "InvalidDuration",
    "InvalidState",
    "Listener",
    "Marks",
    "MessageTooLong",
    "NotSupported",
    "PeerCredentials",
    "ProtocolHandler",
    "ProxyHeader",
    "RingOptions",
    "RingUnavailable",
    "Server",
    "ServerConfig",
    "ServerOptions",
    "ServerStatistics",
    "ShortBuffer",
    "SlowReader",
    "UnsupportedProtocol",
    "UringStatistics",
    "WorkerFailed",
    "backend_info",
    "connect",
    "install",
    "listen_and_serve",
    "open_datagram_endpoint",
    "open_listeners",
    "run",
    "serve",
    "serve_datagrams",
    "serve_events",
    "start_guest_run",
    "uninstall",
]

"""Floor 5: serving."""

from ._balancer import Balancer, ConsumerView
from ._config import ServerConfig, ServerOptions
from ._datagrams import DatagramServer, DatagramServerStatistics, serve_datagrams
from ._processes import WorkerFailed
from ._serve import serve
from ._server import Server
from ._statistics import ServerStatistics

__all__ = [
    "Balancer",
    "ConsumerView",
    "DatagramServer",
    "DatagramServerStatistics",
    "Server",
    "ServerConfig",
    "ServerOptions",
    "ServerStatistics",
    "WorkerFailed",
    "serve",
    "serve_datagrams",
]

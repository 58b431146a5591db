"""Floor 5: serving."""

from ._datagrams import DatagramServer, DatagramServerStatistics, serve_datagrams
from ._serve import serve
from ._server import Server, ServerStatistics

__all__ = [
    "DatagramServer",
    "DatagramServerStatistics",
    "Server",
    "ServerStatistics",
    "serve",
    "serve_datagrams",
]

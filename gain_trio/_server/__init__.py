"""Floor 5: serving."""

from ._serve import serve
from ._server import Server, ServerStatistics

__all__ = ["Server", "ServerStatistics", "serve"]

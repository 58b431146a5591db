"""Connections and servers in memory, for tests of handlers and of clients: no socket, no port, no waiting.

::

    async def test_echo():
        async with gain_trio.testing.serving(echo) as server:
            client = server.connect()
            await client.send(b"hello")
            assert await client.receive_exactly(5) == b"hello"

:func:`serving_callbacks` does the same for an event handler, :func:`serving_app` for a web app, and
:func:`serving_datagrams` for datagrams.  What can go wrong on a network goes wrong when the test says so: see
:class:`Route`.
"""

from ._connection_pair import connection_pair
from ._memory_connection import MemoryConnection
from ._memory_datagrams import MemoryDatagramServer, serving_datagrams
from ._memory_endpoint import DatagramRoute, MemoryEndpoint
from ._memory_server import MemoryServer, serving, serving_app, serving_callbacks
from ._route import Route

__all__ = [
    "DatagramRoute",
    "MemoryConnection",
    "MemoryDatagramServer",
    "MemoryEndpoint",
    "MemoryServer",
    "Route",
    "connection_pair",
    "serving",
    "serving_app",
    "serving_callbacks",
    "serving_datagrams",
]

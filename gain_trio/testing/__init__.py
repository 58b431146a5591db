"""Connections and servers in memory, for tests of handlers and of clients: no socket, no port, no waiting.

::

    async def test_echo():
        async with gain_trio.testing.serving(echo) as server:
            client = server.connect()
            await client.send(b"hello")
            assert await client.receive_exactly(5) == b"hello"

:func:`serving_callbacks` does the same for an event handler, and :func:`serving_app` for a web app.  What can go wrong on a
network goes wrong when the test says so: see :class:`Route`.
"""

from ._connection_pair import connection_pair
from ._memory_connection import MemoryConnection
from ._memory_server import MemoryServer, serving, serving_app, serving_callbacks
from ._route import Route

__all__ = [
    "MemoryConnection",
    "MemoryServer",
    "Route",
    "connection_pair",
    "serving",
    "serving_app",
    "serving_callbacks",
]

"""Serving ASGI apps: web applications written for Starlette, FastAPI, Quart-Trio, Litestar and others.

::

    async def main():
        async with trio.open_nursery() as nursery:
            server = await nursery.start(gain_trio.asgi.serve, app, "tcp://127.0.0.1:8000")

    gain_trio.run(main)
"""

from gain_trio._server import RequestStatistics

from ._asgi_config import AsgiConfig, AsgiOptions
from ._asgi_serve import serve
from ._asgi_types import AsgiApp, ClientDisconnected

__all__ = ["AsgiApp", "AsgiConfig", "AsgiOptions", "ClientDisconnected", "RequestStatistics", "serve"]

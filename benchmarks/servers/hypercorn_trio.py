"""hypercorn_trio.py PORT [accelerated|accelerated-ring]: a trivial ASGI app on Hypercorn's Trio worker.

accelerated: with Trio's own hot path in C, on Trio's I/O manager or on gain_trio's.
"""

import sys
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.trio import serve

BODY = b"Hello, World!"
HEADERS = [(b"content-type", b"text/plain"), (b"content-length", str(len(BODY)).encode())]


async def app(scope: dict[str, Any], _receive: Any, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})


async def main() -> None:
    config = Config()
    config.bind = [f"127.0.0.1:{sys.argv[1]}"]
    config.loglevel = "ERROR"
    await serve(app, config, mode="asgi")  # type: ignore[arg-type]  # Hypercorn's own types of an ASGI app are narrower


if len(sys.argv) > 2:
    import gain_trio

    gain_trio.run(main, backend="io_uring" if "ring" in sys.argv[2] else "trio", accelerate=True)
else:
    trio.run(main)

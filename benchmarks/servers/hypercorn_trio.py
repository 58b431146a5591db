"""hypercorn_trio.py PORT [accelerated|accelerated-ring]: a trivial ASGI app on Hypercorn's Trio worker.

accelerated: with Trio's own hot path in C, on Trio's I/O manager or on gain_trio's.
"""

import sys

import trio
from asgi_app import app
from hypercorn.config import Config
from hypercorn.trio import serve


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

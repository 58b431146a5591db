"""hypercorn_asgi.py PORT MODULE:APP [accelerated|accelerated-ring]: the same on Hypercorn's Trio worker.

accelerated: with Trio's own hot path in C, on Trio's I/O manager or on gain_trio's.
"""

import importlib
import sys

import trio
from hypercorn.config import Config
from hypercorn.trio import serve


async def main() -> None:
    config = Config()
    config.bind = [f"127.0.0.1:{sys.argv[1]}"]
    config.loglevel = "ERROR"
    config.keep_alive_timeout = 120
    module, _, name = sys.argv[2].partition(":")
    await serve(getattr(importlib.import_module(module), name), config, mode="asgi")


if len(sys.argv) > 3:
    import gain_trio

    gain_trio.run(main, backend="io_uring" if "ring" in sys.argv[3] else "trio", accelerate=True)
else:
    trio.run(main)

"""gain_trio_http.py PORT: the plaintext handler of gain-trio serve."""

from __future__ import annotations

import sys

import gain_trio
from gain_trio._http._http_handler import http


async def main(port: int) -> None:
    await gain_trio.serve(http, f"tcp://127.0.0.1:{port}")


gain_trio.run(main, int(sys.argv[1]))

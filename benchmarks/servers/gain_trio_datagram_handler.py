"""gain_trio_datagram_handler.py PORT: echo datagrams in a handler, on gain_trio."""

from __future__ import annotations

import sys
from typing import Any

import gain_trio


async def echo(data: bytes, address: Any, endpoint: gain_trio.DatagramEndpoint) -> None:
    await endpoint.send(data, address)


async def main(port: int) -> None:
    await gain_trio.serve_datagrams(echo, f"udp://127.0.0.1:{port}")


gain_trio.run(main, int(sys.argv[1]))

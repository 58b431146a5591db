"""gain_trio_protocol.py PORT: an asyncio.Protocol without asyncio's loop, on gain_trio."""

from __future__ import annotations

import sys

from asyncio_protocol import Echo

import gain_trio


async def main(port: int) -> None:
    await gain_trio.serve(gain_trio.asyncio_bridge.ProtocolHandler(Echo), f"tcp://127.0.0.1:{port}")


if __name__ == "__main__":
    gain_trio.run(main, int(sys.argv[1]))

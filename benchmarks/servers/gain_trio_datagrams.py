"""gain_trio_datagrams.py PORT: echo datagrams in a Trio task, on gain_trio."""

from __future__ import annotations

import sys

import gain_trio


async def main(port: int) -> None:
    async with await gain_trio.open_datagram_endpoint(f"udp://127.0.0.1:{port}") as endpoint:
        async for data, address in endpoint:
            await endpoint.send(data, address)


gain_trio.run(main, int(sys.argv[1]))

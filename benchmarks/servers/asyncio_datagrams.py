"""asyncio_datagrams.py PORT [asyncio|uvloop]: echo datagrams in callbacks, the fastest asyncio has."""

import asyncio
import sys
from typing import Any, cast

import loops


class Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not isinstance: the transports of other loops need not inherit from asyncio's.
        self.send = cast(asyncio.DatagramTransport, transport).sendto

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.send(data, address)


async def main(port: int) -> None:
    loop = asyncio.get_running_loop()
    transport, _protocol = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", port))
    await asyncio.Event().wait()
    transport.close()


loops.run(sys.argv[2] if len(sys.argv) > 2 else "asyncio", main(int(sys.argv[1])))

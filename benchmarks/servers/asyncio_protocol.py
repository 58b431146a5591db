"""asyncio_protocol.py PORT [asyncio|uvloop|rloop]: echo in callbacks, the fastest asyncio has."""

import asyncio
import sys
from typing import cast

import loops
from listener import BACKLOG, listening_socket


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not isinstance: the transports of other loops need not inherit from asyncio's.
        self.write = cast(asyncio.WriteTransport, transport).write

    def data_received(self, data: bytes) -> None:
        self.write(data)


async def main(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, sock=listening_socket(port), backlog=BACKLOG)
    # Not serve_forever(): rloop's starts serving a second time and loses the socket over it.
    await asyncio.Event().wait()
    server.close()


if __name__ == "__main__":
    loops.run(sys.argv[2] if len(sys.argv) > 2 else "asyncio", main(int(sys.argv[1])))

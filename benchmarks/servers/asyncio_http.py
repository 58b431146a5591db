"""asyncio_http.py PORT [asyncio|uvloop|rloop]: the same requests read, and answered, by the same code in a Protocol."""

import asyncio
import sys
from typing import cast

import loops
from listener import BACKLOG, listening_socket

from gain_trio._http._http_handler import SITE
from gain_trio._http._http_requests import Exchange, Phase


class Http(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not isinstance: the transports of other loops need not inherit from asyncio's.
        self.transport = cast(asyncio.WriteTransport, transport)
        self.exchange = Exchange(SITE)

    def data_received(self, data: bytes) -> None:
        if answers := self.exchange.feed(data):
            self.transport.write(answers)
        if self.exchange.phase is Phase.OVER:
            self.transport.close()


async def main(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Http, sock=listening_socket(port), backlog=BACKLOG)
    # Not serve_forever(): rloop's starts serving a second time and loses the socket over it.
    await asyncio.Event().wait()
    server.close()


loops.run(sys.argv[2] if len(sys.argv) > 2 else "asyncio", main(int(sys.argv[1])))

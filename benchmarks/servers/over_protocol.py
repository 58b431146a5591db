"""over_protocol.py ADDRESS [asyncio|uvloop]: echo in callbacks over TCP, a Unix socket or TLS; see transfer_request.py."""

import asyncio
import sys

import loops
from asyncio_protocol import Echo
from listener import BACKLOG
from transfer_request import open_listener, server_context


async def main(address: str) -> None:
    loop = asyncio.get_running_loop()
    create = loop.create_unix_server if "/" in address else loop.create_server
    server = await create(Echo, sock=open_listener(address), backlog=BACKLOG, ssl=server_context())
    await asyncio.Event().wait()
    server.close()


loops.run(sys.argv[2] if len(sys.argv) > 2 else "asyncio", main(sys.argv[1]))

"""transfer_streams.py ADDRESS FILE [asyncio|uvloop]: large transfers, with StreamReader and StreamWriter."""

import asyncio
import sys
from pathlib import Path

import loops
from listener import BACKLOG, CHUNK
from transfer_request import DONE, HEADER, PIECE, open_listener, pieces, server_context


async def transfer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    direction, count = HEADER.unpack(await reader.readexactly(HEADER.size))
    if direction == b"d":
        for length in pieces(count):
            writer.write(PIECE[:length])
            await writer.drain()
    elif direction == b"f":
        with Path(sys.argv[2]).open("rb", buffering=0) as file:  # noqa: ASYNC230  # in the page cache
            for length in pieces(count):
                writer.write(file.read(length))
                await writer.drain()
    else:
        while count:
            count -= len(await reader.read(CHUNK))
        writer.write(DONE)
    await reader.read(1)  # the client closes
    writer.close()


async def main(address: str) -> None:
    listener = open_listener(address)
    if "/" in address:
        server = await asyncio.start_unix_server(transfer, sock=listener, backlog=BACKLOG, ssl=server_context())
    else:
        server = await asyncio.start_server(transfer, sock=listener, backlog=BACKLOG, ssl=server_context())
    await server.serve_forever()


loops.run(sys.argv[3] if len(sys.argv) > 3 else "asyncio", main(sys.argv[1]))

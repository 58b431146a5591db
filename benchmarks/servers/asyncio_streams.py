"""asyncio_streams.py PORT [asyncio|uvloop|rloop]: echo in a coroutine per connection."""

import asyncio
import sys

import loops
from listener import BACKLOG, CHUNK, listening_socket


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def main(port: int) -> None:
    server = await asyncio.start_server(echo, sock=listening_socket(port), backlog=BACKLOG)
    await server.serve_forever()


loops.run(sys.argv[2] if len(sys.argv) > 2 else "asyncio", main(int(sys.argv[1])))

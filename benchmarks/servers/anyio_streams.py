"""anyio_streams.py PORT [asyncio|uvloop|trio|trio-accelerated|trio-accelerated-ring]: echo in tasks, on AnyIO."""

import socket
import sys

import anyio
from anyio.abc import SocketAttribute, SocketStream
from listener import BACKLOG, CHUNK


async def echo(stream: SocketStream) -> None:
    connection = stream.extra(SocketAttribute.raw_socket)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    async with stream:
        try:
            while True:
                await stream.send(await stream.receive(CHUNK))
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            pass


async def main(port: int) -> None:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port, backlog=BACKLOG)
    await listener.serve(echo)


backend = sys.argv[2] if len(sys.argv) > 2 else "asyncio"
if backend.startswith("trio"):
    if "accelerated" in backend:
        import gain_trio

        gain_trio.install(backend="io_uring" if "ring" in backend else "trio", accelerate=True)
    anyio.run(main, int(sys.argv[1]), backend="trio")
else:
    options = {"use_uvloop": backend == "uvloop"}
    anyio.run(main, int(sys.argv[1]), backend="asyncio", backend_options=options)

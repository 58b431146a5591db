"""trio_streams.py PORT: echo in a task per connection, on Trio's own I/O."""

import sys

import trio
from listener import CHUNK, listening_socket


async def echo(stream: trio.SocketStream) -> None:
    try:
        while data := await stream.receive_some(CHUNK):
            await stream.send_all(data)
    except trio.BrokenResourceError:
        pass


async def main(port: int) -> None:
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening_socket(port)))
    await trio.serve_listeners(echo, [listener])


trio.run(main, int(sys.argv[1]))

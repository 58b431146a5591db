"""trio_streams.py PORT [ring|accelerated|accelerated-ring]: echo in a task per connection, on Trio's own streams.

ring: on gain_trio's I/O manager; accelerated: with Trio's own hot path in C, on Trio's I/O manager or on gain_trio's.
"""

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


if len(sys.argv) > 2:
    import gain_trio

    gain_trio.run(
        main,
        int(sys.argv[1]),
        backend="io_uring" if "ring" in sys.argv[2] else "trio",
        accelerate="accelerated" in sys.argv[2],
    )
else:
    trio.run(main, int(sys.argv[1]))

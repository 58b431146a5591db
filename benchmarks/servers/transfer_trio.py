"""transfer_trio.py ADDRESS FILE: large transfers, on Trio's own streams."""

import contextlib
import sys

import trio
from listener import CHUNK
from transfer_request import DONE, HEADER, PIECE, open_listener, pieces, server_context

Stream = trio.abc.Stream


async def send_file(stream: Stream, count: int) -> None:
    """Trio has nothing for it: the file is read in threads, piece by piece."""
    async with await trio.open_file(sys.argv[2], "rb", buffering=0) as file:
        for length in pieces(count):
            await stream.send_all(await file.read(length))


async def transfer(stream: Stream) -> None:
    header = b""
    while len(header) < HEADER.size:
        received = await stream.receive_some(HEADER.size - len(header))
        if not received:
            return  # the probe, which only checks that the server listens
        header += received
    direction, count = HEADER.unpack(header)
    if direction == b"d":
        for length in pieces(count):
            await stream.send_all(PIECE[:length])
    elif direction == b"f":
        await send_file(stream, count)
    else:
        while count:
            received = await stream.receive_some(CHUNK)
            if not received:
                return
            count -= len(received)
        await stream.send_all(DONE)
    await stream.receive_some(1)  # the client closes


async def serve(stream: Stream) -> None:
    """Serve; with TLS, a generator or a probe that leaves without close_notify raises an error, which is ignored."""
    with contextlib.suppress(trio.BrokenResourceError):
        await transfer(stream)


async def main(address: str) -> None:
    listener: trio.abc.Listener[Stream] = trio.SocketListener(trio.socket.from_stdlib_socket(open_listener(address)))
    context = server_context()
    if context is not None:
        listener = trio.SSLListener(listener, context)
    await trio.serve_listeners(serve, [listener])


trio.run(main, sys.argv[1])

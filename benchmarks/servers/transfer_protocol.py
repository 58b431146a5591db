"""transfer_protocol.py ADDRESS FILE [asyncio|uvloop]: large transfers in callbacks."""

import asyncio
import io
import sys
from pathlib import Path
from typing import cast

import loops
from listener import BACKLOG
from transfer_request import DONE, HEADER, PIECE, open_listener, server_context


class Transfer(asyncio.Protocol):
    """Writes until ``pause_writing()``, and again from ``resume_writing()`` on."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)
        self.header = b""
        self.left = 0  # bytes to send, or to receive
        self.file: io.FileIO | None = None
        self.paused = False

    def data_received(self, data: bytes) -> None:
        if len(self.header) < HEADER.size:
            rest = HEADER.size - len(self.header)
            self.header += data[:rest]
            data = data[rest:]
            if len(self.header) < HEADER.size:
                return
            direction, self.left = HEADER.unpack(self.header)
            if direction == b"f":
                self.file = Path(sys.argv[2]).open("rb", buffering=0)  # noqa: SIM115  # closed when it is sent
            if direction != b"u":
                self.send()
                return
        self.left -= len(data)
        if self.left == 0:
            self.transport.write(DONE)

    def send(self) -> None:
        while self.left and not self.paused:
            if self.file:
                piece = self.file.read(min(self.left, len(PIECE)))
            else:
                piece = PIECE[: self.left]
            self.left -= len(piece)
            self.transport.write(piece)
        if self.file and not self.left:
            self.file.close()
            self.file = None

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self.send()


async def main(address: str) -> None:
    loop = asyncio.get_running_loop()
    listener = open_listener(address)
    if "/" in address:
        server = await loop.create_unix_server(Transfer, sock=listener, backlog=BACKLOG, ssl=server_context())
    else:
        server = await loop.create_server(Transfer, sock=listener, backlog=BACKLOG, ssl=server_context())
    await asyncio.Event().wait()
    server.close()


loops.run(sys.argv[3] if len(sys.argv) > 3 else "asyncio", main(sys.argv[1]))

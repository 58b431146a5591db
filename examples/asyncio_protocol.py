"""A protocol written for asyncio runs unchanged, without asyncio's event loop.

    python examples/asyncio_protocol.py [tcp://127.0.0.1:0]

It keeps words: "set NAME WORD" and "get NAME", a line each, from any client.  With port 0 the kernel chooses the port, and
the server prints it.  Ctrl-C stops the server.
"""

import asyncio
import signal
import sys

import trio

import gain_trio

MAX_LINE = 1000


class Words(asyncio.Protocol):
    """The protocol does not use gain_trio: loop.create_server(Words, host, port) runs it just as well."""

    kept: dict[bytes, bytes] = {}  # noqa: RUF012  # shared by all connections, on purpose

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        print("hello", transport.get_extra_info("peername")[0], flush=True)

    def data_received(self, data: bytes) -> None:
        """Bytes have arrived, which may be half a line, or several."""
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self.transport.write(self.answer(line.split()) + b"\n")
        if len(self.rest) > MAX_LINE:
            self.transport.write(b"too long\n")
            self.transport.close()

    def answer(self, words: list[bytes]) -> bytes:
        """Return the answer to one line."""
        match words:
            case [b"set", name, word]:
                self.kept[name] = word
                return b"ok"
            case [b"get", name]:
                return self.kept.get(name, b"unknown")
        return b"set NAME WORD, or get NAME"

    def pause_writing(self) -> None:
        """The client does not read its answers: stop reading its questions."""
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone, or the server stops."""
        print("goodbye" if exc is None else f"lost: {exc}", flush=True)


async def main(address: str) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(gain_trio.serve, gain_trio.asyncio_bridge.ProtocolHandler(Words), address)
            for host, port, *_ in server.addresses:
                print(f"listening on {host} port {port}", flush=True)
            await anext(signals)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    gain_trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:0")

"""An ASGI server for WebSocket tests, and a client that sends and receives frames by hand."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, TypeAlias

import trio

import gain_trio.asgi
from gain_trio import Server
from support.servers import LOCAL
from support.websocket_frames import BINARY, CLOSE, TEXT, closing, frame, frames, handshake

Message: TypeAlias = dict[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving_websockets(app: App, address: str = LOCAL, **options: Any) -> AsyncIterator[Server]:
    """Serve an app for the duration of a with statement."""
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            lambda **status: gain_trio.asgi.serve(app, address, app_lifespan="off", **options, **status)
        )
        assert isinstance(server, Server)
        yield server
        nursery.cancel_scope.cancel()


class Peer:
    """A client over a stream of Trio's: it reads only when the test calls it."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.received = b""
        self.status = 0
        self.fields: dict[str, str] = {}

    async def request(
        self, fields: Iterable[tuple[bytes, bytes]], rest: bytes = b"", *, path: bytes = b"/path"
    ) -> None:
        """Send the handshake, and something behind it."""
        lines = b"".join(b"%b: %b\r\n" % pair for pair in fields)
        await self.stream.send_all(b"GET %b?a=b HTTP/1.1\r\n%b\r\n%b" % (path, lines, rest))

    async def response(self) -> None:
        """Receive the head of the response."""
        while b"\r\n\r\n" not in self.received:
            data = await self.stream.receive_some()
            assert data, "the connection ended before the response"
            self.received += data
        head, _, self.received = self.received.partition(b"\r\n\r\n")
        line, *lines = head.decode().split("\r\n")
        self.status = int(line.split()[1])
        pairs = [line.partition(": ")[::2] for line in lines]
        self.fields = dict(pairs)
        assert len(pairs) == len(self.fields), "a field twice"

    async def send(self, *data: bytes) -> None:
        """Send frames."""
        await self.stream.send_all(b"".join(data))

    async def text(self, text: str) -> None:
        """Send a message."""
        await self.send(frame(TEXT, text.encode()))

    async def frame(self) -> tuple[int, bytes]:
        """Receive a frame; its opcode and payload."""
        while not (size := whole_frame(self.received)):
            data = await self.stream.receive_some()
            assert data, f"the connection ended with {self.received!r} of a frame"
            self.received += data
        [found] = frames(self.received[:size])
        self.received = self.received[size:]
        return found

    async def message(self) -> str | bytes:
        """Receive a message."""
        opcode, payload = await self.frame()
        assert opcode in (TEXT, BINARY), (opcode, payload)
        return payload.decode() if opcode == TEXT else payload

    async def closed(self) -> tuple[int, str]:
        """Receive a close frame; its code and reason."""
        opcode, payload = await self.frame()
        assert opcode == CLOSE, (opcode, payload)
        return (int.from_bytes(payload[:2], "big"), payload[2:].decode()) if payload else (1005, "")

    async def ended(self) -> None:
        """Receive the end of the stream."""
        assert self.received == b""
        assert await self.stream.receive_some() == b""

    async def answer_close(self, code: int = 1000) -> None:
        """Send a close frame."""
        await self.send(closing(code))


def whole_frame(data: bytes) -> int:
    """The length of the first frame, 0 while it has not arrived whole."""
    if len(data) < 2:
        return 0
    head, size = 2, data[1] & 0x7F
    if size > 125:
        head = 4 if size == 126 else 10
        size = int.from_bytes(data[2:head], "big")
    return head + size if len(data) >= head + size else 0


@contextlib.asynccontextmanager
async def peer_of(
    server: Server, *fields: tuple[bytes, bytes], rest: bytes = b"", path: bytes = b"/path"
) -> AsyncIterator[Peer]:
    """A client of the server that has sent its handshake."""
    stream = await trio.open_tcp_stream("127.0.0.1", server.addresses[0][1])
    async with stream:
        peer = Peer(stream)
        await peer.request(handshake(*fields), rest, path=path)
        yield peer


@contextlib.asynccontextmanager
async def connected(app: App, *fields: tuple[bytes, bytes], **options: Any) -> AsyncIterator[Peer]:
    """A client of the app that has been accepted."""
    async with serving_websockets(app, **options) as server, peer_of(server, *fields) as peer:
        await peer.response()
        assert peer.status == 101
        yield peer


# --- apps ---


async def send_back(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Send back every message."""
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


class Recorder:
    """An app that accepts, and notes what it receives up to the disconnect."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.over = trio.Event()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's
        try:
            assert await receive() == {"type": "websocket.connect"}
            await send({"type": "websocket.accept"})
            while True:
                message = await receive()
                self.messages.append(message)
                if message["type"] == "websocket.disconnect":
                    break
        finally:
            self.over.set()


def disconnect(code: int, reason: str = "") -> Message:
    return {"type": "websocket.disconnect", "code": code, "reason": reason}


def waiting_app(go_on: trio.Event, seen: list[Message]) -> App:
    """Accepts, waits for the event, and then receives up to the disconnect."""

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await go_on.wait()
        while True:
            message = await receive()
            seen.append(message)
            if message["type"] == "websocket.disconnect":
                break

    return app

"""A web app without a framework: a lifespan, a stream of lines, and a WebSocket whose messages all streams show.

    python examples/asgi_app.py [tcp://127.0.0.1:0]
    gain-trio asgi asgi_app:app --app-dir examples

    $ curl -N http://127.0.0.1:PORT/lines
    $ python -m websockets ws://127.0.0.1:PORT/talk      (pip install websockets)

The lifespan makes the room that both of them use, and requests find it in their state.  A stream lasts until its client
goes, or until the time of a drain is up.
"""

import functools
import sys
from typing import Any

import trio

import gain_trio
import gain_trio.asgi

MOST_WAITING = 100
"""Lines that a stream may be behind; one that is further behind misses some."""
TEXT = [(b"content-type", b"text/plain; charset=utf-8")]


class Room:
    """The streams that there are."""

    def __init__(self) -> None:
        self._streams: set[trio.MemorySendChannel[bytes]] = set()

    def say(self, line: bytes) -> int:
        """Send a line to all streams, and return their number."""
        for stream in self._streams:
            try:
                stream.send_nowait(line)
            except trio.WouldBlock:
                print("a slow stream misses a line", flush=True)
        return len(self._streams)

    async def listen(self, send: Any) -> None:
        """Show lines until cancelled."""
        own, lines = trio.open_memory_channel[bytes](MOST_WAITING)
        self._streams.add(own)
        try:
            async for line in lines:
                await send({"type": "http.response.body", "body": line, "more_body": True})
        finally:
            self._streams.remove(own)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """ASGI's entry."""
    if scope["type"] == "lifespan":
        await lifespan(scope, receive, send)
    elif scope["type"] == "websocket":
        await talk(scope["state"]["room"], receive, send)
    elif scope["path"] == "/lines":
        await stream(scope["state"]["room"], receive, send)
    else:
        await send({"type": "http.response.start", "status": 404, "headers": TEXT})
        await send({"type": "http.response.body", "body": b"There is /lines, and the WebSocket /talk.\n"})


async def lifespan(scope: Any, receive: Any, send: Any) -> None:
    """Make the room before the first connection; say so when the last one has ended."""
    await receive()
    scope["state"]["room"] = Room()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    print("the room is closed", flush=True)
    await send({"type": "lifespan.shutdown.complete"})


async def stream(room: Room, receive: Any, send: Any) -> None:
    """A response without an end."""
    await send({"type": "http.response.start", "status": 200, "headers": TEXT})
    await send({"type": "http.response.body", "body": b"welcome\n", "more_body": True})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(room.listen, send)
        while (await receive())["type"] != "http.disconnect":
            pass  # the body of the request
        nursery.cancel_scope.cancel()


async def talk(room: Room, receive: Any, send: Any) -> None:
    """Pass messages on, and answer with the number of streams that show them."""
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] != "websocket.disconnect":
        line = event.get("text") or "(no text)"
        count = room.say(line.encode() + b"\n")
        await send({"type": "websocket.send", "text": f"{count} listen"})


async def main(address: str) -> None:
    """Serve until a signal."""
    serve = functools.partial(gain_trio.asgi.serve, app, address, signals=True, graceful_timeout=5)
    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve)
        for host, port, *_ in server.addresses:
            print(f"listening on {host} port {port}", flush=True)


if __name__ == "__main__":
    gain_trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:0")

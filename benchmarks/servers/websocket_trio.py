"""websocket_trio.py PORT [accelerated|accelerated-ring]: echo of WebSocket messages by trio-websocket."""

import sys

import trio
from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket


async def echo(request: WebSocketRequest) -> None:
    connection = await request.accept()
    try:
        while True:
            await connection.send_message(await connection.get_message())
    except ConnectionClosed:
        pass


async def main() -> None:
    await serve_websocket(echo, "127.0.0.1", int(sys.argv[1]), ssl_context=None)


if len(sys.argv) > 2:
    import gain_trio

    gain_trio.run(main, backend="io_uring" if "ring" in sys.argv[2] else "trio", accelerate=True)
else:
    trio.run(main)

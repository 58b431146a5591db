"""gain_trio_pull.py PORT: echo in a Trio task per connection, on gain_trio."""

from __future__ import annotations

import sys

import gain_trio


async def echo(connection: gain_trio.Connection) -> None:
    async for data in connection.messages():
        await connection.send(data)


async def main(port: int) -> None:
    await gain_trio.serve(echo, f"tcp://127.0.0.1:{port}")


gain_trio.run(main, int(sys.argv[1]))

"""gain_trio_sockets.py PORT: echo in a Trio task per connection, on gain_trio over sockets: plain trio.run, no ring."""

from __future__ import annotations

import sys

import trio

import gain_trio


async def echo(connection: gain_trio.Connection) -> None:
    while data := await connection.receive():
        await connection.send(data)


async def main(port: int) -> None:
    await gain_trio.serve(echo, f"tcp://127.0.0.1:{port}")


trio.run(main, int(sys.argv[1]))

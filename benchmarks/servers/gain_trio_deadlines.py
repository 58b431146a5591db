"""gain_trio_deadlines.py PORT: gain_trio_pull.py with a read deadline that is moved with every message."""

from __future__ import annotations

import sys

import trio

import gain_trio


async def echo(connection: gain_trio.Connection) -> None:
    connection.read_deadline = trio.current_time() + 30
    while data := await connection.receive():
        connection.read_deadline = trio.current_time() + 30
        await connection.send(data)


async def main(port: int) -> None:
    await gain_trio.serve(echo, f"tcp://127.0.0.1:{port}")


gain_trio.run(main, int(sys.argv[1]))

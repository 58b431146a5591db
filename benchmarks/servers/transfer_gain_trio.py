"""transfer_gain_trio.py ADDRESS FILE [sockets]: large transfers, on gain_trio; with ``sockets`` in a plain trio.run."""

from __future__ import annotations

import sys

import trio
from transfer_request import DONE, HEADER, PIECE, pieces, server_context

import gain_trio


async def transfer(connection: gain_trio.Connection) -> None:
    direction, count = HEADER.unpack(await connection.receive_exactly(HEADER.size))
    if direction == b"d":
        for length in pieces(count):
            await connection.send(PIECE[:length])
        await connection.flush()
    elif direction == b"f":
        await connection.send_file(sys.argv[2], 0, count)
    else:
        while count:
            count -= len(await connection.receive())
        await connection.send(DONE)
    await connection.receive()  # the client closes


async def main(address: str) -> None:
    where = f"unix://{address}" if "/" in address else f"tcp://127.0.0.1:{address}"
    await gain_trio.serve(transfer, where, ssl_context=server_context())


if len(sys.argv) > 3:
    trio.run(main, sys.argv[1])
else:
    gain_trio.run(main, sys.argv[1])

"""over_gain_trio.py ADDRESS [callbacks]: echo over TCP, a Unix socket or TLS; see transfer_request.py."""

from __future__ import annotations

import sys

from transfer_request import server_context

import gain_trio


async def echo(connection: gain_trio.Connection) -> None:
    while data := await connection.receive():
        await connection.send(data)


class Echo(gain_trio.callbacks.EventHandler):
    def on_read(self, conn: gain_trio.callbacks.Conn, n: int) -> None:
        conn.write(conn.next(n))


async def main(address: str) -> None:
    await gain_trio.serve(echo, address, ssl_context=server_context())


if __name__ == "__main__":
    where = f"unix://{sys.argv[1]}" if "/" in sys.argv[1] else f"tcp://127.0.0.1:{sys.argv[1]}"
    if sys.argv[2:] == ["callbacks"]:
        gain_trio.callbacks.listen_and_serve(where, Echo(), ssl_context=server_context())
    else:
        gain_trio.run(main, where)

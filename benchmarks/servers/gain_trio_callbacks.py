"""gain_trio_callbacks.py PORT: echo in a callback, on gain_trio."""

from __future__ import annotations

import sys

import gain_trio


class Echo(gain_trio.callbacks.EventHandler):
    def on_read(self, conn: gain_trio.callbacks.Conn, n: int) -> None:
        conn.write(conn.next(n))


gain_trio.callbacks.listen_and_serve(f"tcp://127.0.0.1:{sys.argv[1]}", Echo())

"""Callbacks serve HTTP: the plaintext test of the TechEmpower Framework Benchmarks.

    python examples/callback_http.py [tcp://127.0.0.1:0]

    wrk -t 1 -c 64 -d 5 http://127.0.0.1:PORT/plaintext

With port 0 the kernel chooses the port, and the server prints it.  Ctrl-C stops the server.
"""

import sys

import trio

import gain_trio

# `gain-trio serve --handler http` reads and answers requests with the same code, without any I/O.  Another program would use
# a library such as h11 in the same way: bytes in, bytes out.
from gain_trio._http._http_handler import REQUEST_TIMEOUT, SITE
from gain_trio._http._http_requests import Exchange, Phase

IDLE, OVER = Phase.IDLE, Phase.OVER  # found once: in an enum that takes Python longer than to answer a usual request


class Http(gain_trio.callbacks.EventHandler):
    """Each connection has an exchange, the state of its current request."""

    def on_start(self, server: gain_trio.callbacks.EventServer) -> None:
        """The server listens."""
        for host, port, *_ in server.addresses:
            print(f"listening on {host} port {port}", flush=True)

    def on_accept(self, conn: gain_trio.callbacks.Conn) -> None:
        """A client has connected."""
        conn.set_context(Exchange(SITE))

    def on_read(self, conn: gain_trio.callbacks.Conn, n: int) -> None:
        """Bytes have arrived: a request, several, or a piece of one."""
        exchange: Exchange = conn.context
        was_idle = exchange.phase is IDLE
        if answers := exchange.feed(conn.next(n)):
            conn.write(answers)
        phase = exchange.phase
        if phase is OVER:
            conn.close()
        elif was_idle is not (phase is IDLE):  # a request in pieces has a deadline
            conn.set_read_deadline(trio.current_time() + REQUEST_TIMEOUT if was_idle else None)


if __name__ == "__main__":
    gain_trio.callbacks.listen_and_serve(sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:0", Http())

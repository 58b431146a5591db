"""An echo server made of callbacks serves two clients of its own, and then shuts down.

    python examples/callback_echo.py [tcp://127.0.0.1:0]

The program needs no async and no await: the server calls the callbacks when data has arrived, and sends their writes while
they go on.  The clients are threads.
"""

import socket
import sys
import threading

import gain_trio

CLIENTS = 2
MESSAGE = b"echo"


class Echo(gain_trio.callbacks.EventHandler):
    """The handler answers each client once, and counts the bytes sent."""

    def __init__(self) -> None:
        self._bytes_sent = 0

    def on_start(self, server: gain_trio.callbacks.EventServer) -> None:
        """The server listens: start the clients."""
        self._server = server
        for _ in range(CLIENTS):
            threading.Thread(target=run_client, args=(server.addresses[0],)).start()

    def on_accept(self, conn: gain_trio.callbacks.Conn) -> None:
        """A client has connected."""
        say(f"new connection from {conn.remote_addr[0]}")

    def on_read(self, conn: gain_trio.callbacks.Conn, n: int) -> None:
        """Bytes have arrived."""
        say(f"{n} bytes received")
        conn.write(conn.next(n))

    def on_write(self, conn: gain_trio.callbacks.Conn, n: int) -> None:
        """The kernel has accepted bytes of the answer."""
        self._bytes_sent += n
        say(f"{n} bytes sent")
        conn.close()

    def on_close(self, conn: gain_trio.callbacks.Conn, err: BaseException | None) -> None:
        """A connection is over; perhaps it was the last."""
        say(f"connection to {conn.remote_addr[0]} closed: {err or 'in good order'}")
        if self._bytes_sent >= CLIENTS * len(MESSAGE):
            self._server.async_shutdown()


def say(line: str) -> None:
    """Print a line in one piece, while other threads print, too."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def run_client(address: tuple[str, int]) -> None:
    """Send the message, and wait for it to come back."""
    with socket.create_connection(address, timeout=30) as client:
        client.sendall(MESSAGE)
        answer = b""
        while data := client.recv(100):
            answer += data
    say(f"a client got {answer.decode()!r}")


if __name__ == "__main__":
    gain_trio.callbacks.listen_and_serve(sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:0", Echo())

"""A key-value server of lines has two limits: the length of a line, and the time that a client may take.

    python examples/line_server.py [tcp://127.0.0.1:0 [SECONDS]]

    $ nc 127.0.0.1 PORT
    set colour blue
    ok
    get colour
    blue
    quit

A client has SECONDS (10) to send each line and to read each answer.  The server reports an exceeded limit, and closes the
connection.
"""

import functools
import signal
import sys

import trio

import gain_trio

LONGEST_LINE = 1000
MOST_KEYS = 10_000


class Store:
    """The keys and their values."""

    def __init__(self, seconds: float) -> None:
        self._values: dict[bytes, bytes] = {}
        self._seconds = seconds

    def answer(self, line: bytes) -> bytes:
        """Carry out the command of a line, and return its answer."""
        match line.split(b" ", 2):
            case [b"get", key]:
                return self._values.get(key, b"error: there is no such key")
            case [b"set", key, value]:
                if key not in self._values and len(self._values) == MOST_KEYS:
                    return b"error: there are too many keys"
                self._values[key] = value
                return b"ok"
        return b"error: write get KEY, set KEY VALUE or quit"

    async def serve(self, connection: gain_trio.Connection) -> None:
        """Serve one client."""
        try:
            connection.set_deadline(trio.current_time() + self._seconds)
            async for line in connection.messages(functools.partial(connection.receive_line, max_bytes=LONGEST_LINE)):
                if line == b"quit":
                    break
                connection.set_deadline(trio.current_time() + self._seconds)
                await connection.send(self.answer(line) + b"\n")
        except trio.TooSlowError:
            await self.refuse(connection, b"error: too slow")
        except gain_trio.MessageTooLong as error:
            await self.refuse(connection, b"error: %s" % str(error).encode())
        except gain_trio.IncompleteMessage:
            pass  # the client has left in the middle of a line, and reads no answer

    async def refuse(self, connection: gain_trio.Connection, reason: bytes) -> None:
        """Send the reason, before the server closes the connection.  Further data of the client stays unread."""
        connection.set_deadline(trio.current_time() + self._seconds)
        await connection.send(reason + b"\n")


async def main(address: str, seconds: float) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    store = Store(seconds)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(gain_trio.serve, store.serve, address)
            for host, port, *_ in server.addresses:
                print(f"listening on {host} port {port}", flush=True)
            await anext(signals)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    where = sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:0"
    gain_trio.run(main, where, float(sys.argv[2]) if len(sys.argv) > 2 else 10.0)

"""A guest book: each line that a client sends is an entry in a file, which one task of each process writes.

    python examples/lifespan.py BOOK [tcp://127.0.0.1:0 [PROCESSES]]

    $ nc 127.0.0.1 PORT
    a nice place
    thank you

The lifespan opens the file before the server accepts its first connection, and closes it after the last one has ended.  At a
signal the handlers end first, so every line that a client was thanked for is in the book.
"""

import contextlib
import functools
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import trio

import gain_trio

LONGEST_LINE = 200
MOST_WAITING = 100


class Book:
    """The lifespan: it opens the book, and its value is a channel for entries.

    With worker processes each of them unpickles this object, and calls it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextlib.asynccontextmanager
    async def __call__(self) -> AsyncIterator[trio.MemorySendChannel[bytes]]:
        """Open the book, and close it when the server has ended."""
        send, receive = trio.open_memory_channel[bytes](MOST_WAITING)
        async with await trio.open_file(self._path, "ab") as file, trio.open_nursery() as nursery, send:
            nursery.start_soon(self._write, file, receive)
            yield send
        # The end of the block closes the channel, waits until the task has written the rest, and closes the file.
        print(f"process {os.getpid()} has closed the book", flush=True)

    async def _write(self, file: Any, entries: trio.MemoryReceiveChannel[bytes]) -> None:
        async for entry in entries:
            await file.write(entry + b"\n")
            await file.flush()


async def handler(connection: gain_trio.Connection) -> None:
    """Put each line of a client into the book."""
    book: trio.MemorySendChannel[bytes] = gain_trio.lifespan_value()
    async for line in connection.messages(functools.partial(connection.receive_line, max_bytes=LONGEST_LINE)):
        await book.send(line)
        await connection.send(b"thank you\n")


async def main(path: Path, address: str, processes: int | None) -> None:
    """Serve until a signal."""
    config = gain_trio.ServerConfig(lifespan=Book(path), processes=processes, signals=True, graceful_timeout=10)
    async with trio.open_nursery() as nursery:
        server = await nursery.start(functools.partial(gain_trio.serve, handler, address, config=config))
        for host, port, *_ in server.addresses:
            print(f"listening on {host} port {port}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    gain_trio.run(
        main,
        Path(sys.argv[1]),
        sys.argv[2] if len(sys.argv) > 2 else "tcp://127.0.0.1:0",
        int(sys.argv[3]) if len(sys.argv) > 3 else None,
    )

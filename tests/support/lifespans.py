"""Lifespans for servers, also for worker processes, which write what they do into a file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import trio

import gain_trio
from gain_trio import Connection


@contextlib.asynccontextmanager
async def named() -> AsyncIterator[str]:
    """The simplest one."""
    yield "the value"


@attrs.frozen
class Recorded:
    """A lifespan that appends a line to a file when it begins and when it ends, with the id of its process.

    While there is a file ``hold`` beside it the lifespan does not begin; with a file ``fail`` it fails to begin, and with a
    file ``fail_at_end`` it fails to end.
    """

    path: Path

    def __call__(self) -> contextlib.AbstractAsyncContextManager[int]:
        return self._run()

    @contextlib.asynccontextmanager
    async def _run(self) -> AsyncIterator[int]:
        self._record("enters")
        while self.path.with_name("hold").exists():  # noqa: ASYNC110 - another process removes it
            await trio.sleep(0.01)
        if self.path.with_name("fail").exists():
            raise LookupError("the database is missing")
        self._record("begins")
        try:
            yield os.getpid()
        finally:
            await trio.lowlevel.checkpoint()  # which raises when it is not shielded from a cancellation
            self._record("ends")
        if self.path.with_name("fail_at_end").exists():
            raise LookupError("the database does not close")

    def _record(self, what: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{what} {os.getpid()}\n")

    def lines(self) -> list[str]:
        """What happened so far, in all processes."""
        return self.path.read_text().splitlines() if self.path.exists() else []

    def of(self, what: str) -> list[int]:
        """The processes in which this happened."""
        return [int(line.split()[1]) for line in self.lines() if line.split()[0] == what]


async def tell_value(connection: Connection) -> None:
    """Answer every byte with the lifespan's value, in 8 digits."""
    while data := await connection.receive():
        await connection.send(b"%08d" % gain_trio.lifespan_value() * len(data))


async def stay(connection: Connection) -> None:
    """Wait until the client ends the connection, whether the server drains or not."""
    await connection.receive()

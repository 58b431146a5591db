"""Protocols of asyncio's shape that write down what is called, and connections that they run on."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import trio
import trio.testing

from gain_trio import Connection
from gain_trio.asyncio_bridge import ProtocolHandler

from .pairs import PATIENCE, Pair, open_pair

Call = tuple[Any, ...]


class Recorder(asyncio.Protocol):
    """Writes down what is called."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.lost = threading.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.calls.append(("made",))

    def data_received(self, data: bytes) -> None:
        assert type(data) is bytes
        assert data
        if self.calls[-1][0] == "data":
            self.calls[-1] = ("data", self.calls[-1][1] + data)  # the pieces are the network's affair
        else:
            self.calls.append(("data", data))

    def eof_received(self) -> bool | None:
        self.calls.append(("eof",))
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append(("lost", exc))
        self.lost.set()

    def pause_writing(self) -> None:
        self.calls.append(("pause",))

    def resume_writing(self) -> None:
        self.calls.append(("resume",))

    @property
    def names(self) -> list[str]:
        return [call[0] for call in self.calls]


class Echo(Recorder):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.write(data)


class Buffered(asyncio.BufferedProtocol):
    """Three bytes at a time."""

    def __init__(self) -> None:
        self.recorder = Recorder()
        self.calls, self.lost = self.recorder.calls, self.recorder.lost
        self.buffer = bytearray(3)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.recorder.connection_made(transport)

    def get_buffer(self, _sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        assert 1 <= nbytes <= 3
        data = bytes(self.buffer[:nbytes])
        self.recorder.data_received(data)
        self.recorder.transport.write(data)

    def eof_received(self) -> bool | None:
        return self.recorder.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.recorder.connection_lost(exc)


class Running:
    """A protocol that runs on one end of a pair."""

    def __init__(self, client: Connection, protocol: Recorder) -> None:
        self.client = client
        self.connection: Connection
        self.protocol = protocol
        self.error: BaseException | None = None
        self.ended = trio.Event()

    @property
    def transport(self) -> asyncio.Transport:
        return self.protocol.transport

    async def run(self, connection: Connection, **options: int) -> None:
        self.connection = connection
        try:
            await ProtocolHandler(lambda: self.protocol, **options)(connection)
        except Exception as error:
            self.error = error
        finally:
            self.ended.set()


@contextlib.asynccontextmanager
async def running(
    protocol: Recorder, opened: Callable[[], Awaitable[Pair]] = open_pair, **options: int
) -> Any:  # an async generator of Running
    client, connection = await opened()
    run = Running(client, protocol)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(run.run, connection, **options))
            await trio.testing.wait_all_tasks_blocked()
            yield run
            nursery.cancel_scope.cancel()
    client.abort()
    connection.abort()

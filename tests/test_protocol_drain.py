"""A server of protocols that drains: idle connections end at once, busy ones when they are idle."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import trio
import trio.lowlevel
from support import worker_handlers as handlers
from support.certificates import certificate, client_context, server_context
from support.pairs import receive_all, receive_exactly, until
from support.servers import serving
from trio.testing import wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection, Server
from gain_trio.asyncio_bridge import ProtocolHandler, _idle_detection
from gain_trio.callbacks import EventHandler

pytestmark = [pytest.mark.connections, pytest.mark.usefixtures("forked_workers")]

SOON = 25.0
"""Seconds that a drain may take which nothing holds up; :data:`FOREVER` is what it would take otherwise."""
FOREVER = 1000.0

Dial: TypeAlias = Callable[[], Awaitable[Connection]]


class Recorder(asyncio.Protocol):
    """Answers nothing by itself."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.received = b""
        self.lost: list[Exception | None] = []
        made.append(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


class Lines(Recorder):
    """Answers each line."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        *lines, self.received = self.received.split(b"\n")
        for line in lines:
            self.transport.write(line.upper() + b"\n")


made: list[Any] = []


@pytest.fixture(params=["tcp", "unix", "tls"])
def transport(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    made.clear()
    options: dict[str, dict[str, Any]] = {
        "tcp": {"address": "tcp://127.0.0.1:0"},
        "unix": {"address": f"unix://{tmp_path}/s"},
        "tls": {"address": "tcp://127.0.0.1:0", "ssl_context": server_context()},
    }
    chosen: str = request.param
    return options[chosen]


@contextlib.asynccontextmanager
async def serving_protocols(factory: Any, options: dict[str, Any], **more: Any) -> AsyncIterator[tuple[Server, Dial]]:
    handler = factory if callable(factory) and not isinstance(factory, type) else ProtocolHandler(factory)
    with trio.fail_after(2 * SOON):
        async with serving(handler, **options, **more) as server:

            async def dial() -> Connection:
                address = options["address"]
                if address.startswith("tcp"):
                    address = f"tcp://127.0.0.1:{server.addresses[0][1]}"
                context = client_context() if "ssl_context" in options else None
                return await gain_trio.connect(address, ssl_context=context)

            yield server, dial


@contextlib.asynccontextmanager
async def asked(factory: Any, options: dict[str, Any], question: bytes) -> AsyncIterator[tuple[Server, Connection]]:
    """A server of protocols, and a client whose first words have arrived."""
    async with serving_protocols(factory, options) as (server, dial):
        async with await dial() as client:
            await client.send(question)
            await until(lambda: bool(made and made[0].received))
            yield server, client


@contextlib.asynccontextmanager
async def draining(server: Server) -> AsyncIterator[trio.Event]:
    """Drains meanwhile, and is over within :data:`SOON`; the event says that it is."""
    over = trio.Event()

    async def drain() -> None:
        await server.drain(FOREVER)
        over.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drain)
        await wait_all_tasks_blocked()
        yield over
        with trio.fail_after(SOON):
            await over.wait()


async def test_an_answered_connection_ends(transport: dict[str, Any]) -> None:
    async with serving_protocols(Lines, transport) as (server, dial):
        async with await dial() as client:
            await client.send(b"hello\n")
            assert await client.receive_line() == b"HELLO"
            async with draining(server):
                assert await receive_all(client) == b""
            assert made[0].lost == [None]


async def test_a_silent_connection_ends(transport: dict[str, Any]) -> None:
    async with serving_protocols(Lines, transport) as (server, dial):
        async with await dial() as client:
            await until(lambda: bool(made))
            async with draining(server):
                assert await receive_all(client) == b""


async def test_the_first_words_of_a_fresh_connection_are_answered(
    transport: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_idle_detection, "FIRST_WORDS", FOREVER)
    async with serving_protocols(Lines, transport) as (server, dial):
        async with await dial() as client:
            await until(lambda: bool(made))
            async with draining(server) as over:
                await client.send(b"hello\n")
                assert not over.is_set()
                assert await receive_all(client) == b"HELLO\n"


async def test_an_answer_that_is_being_worked_on_is_waited_for(transport: dict[str, Any]) -> None:
    async with asked(Recorder, transport, b"question") as (server, client):
        async with draining(server) as over:
            await trio.sleep(3 * _idle_detection.QUIET)
            assert not over.is_set()
            assert not made[0].transport.is_closing()
            made[0].transport.write(b"answer")
            assert await receive_all(client) == b"answer"


async def test_an_answer_in_pieces_is_complete(transport: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    async with asked(Recorder, transport, b"question") as (server, client):
        async with draining(server) as over:
            with monkeypatch.context() as patch:  # no pause of this machine's is too long
                patch.setattr(_idle_detection, "QUIET", FOREVER)
                for number in range(9):
                    made[0].transport.write(b"%d" % number)
                    assert await receive_exactly(client, 1) == b"%d" % number
                    await wait_all_tasks_blocked()
                    assert not over.is_set()
            made[0].transport.write(b"9")
            assert await receive_all(client) == b"9"


async def test_half_a_request_is_waited_for(transport: dict[str, Any]) -> None:
    async with asked(Lines, transport, b"hel") as (server, client):
        async with draining(server) as over:
            await trio.sleep(3 * _idle_detection.QUIET)
            assert not over.is_set()
            await client.send(b"lo\n")
            assert await receive_all(client) == b"HELLO\n"


async def test_what_is_unsent_is_sent(transport: dict[str, Any]) -> None:
    size = 12 << 20
    async with asked(Recorder, transport, b"question") as (server, client):
        made[0].transport.write(bytes(size))
        async with draining(server) as over:
            await trio.sleep(3 * _idle_detection.QUIET)
            assert not over.is_set()
            assert len(await receive_all(client)) == size
    assert made[0].lost == [None]


async def test_what_is_undelivered_is_delivered(transport: dict[str, Any]) -> None:
    async with serving_protocols(Lines, transport) as (server, dial):
        async with await dial() as client:
            await client.send(b"one\n")
            assert await client.receive_line() == b"ONE"
            made[0].transport.pause_reading()
            await client.send(b"two\n")
            connection = made[0].transport._connection
            await until(lambda: connection.inbound_buffered > 0)
            async with draining(server) as over:
                await trio.sleep(3 * _idle_detection.QUIET)
                assert not over.is_set()
                made[0].transport.resume_reading()
                assert await receive_all(client) == b"TWO\n"


async def test_a_paused_connection_without_anything_queued_ends(transport: dict[str, Any]) -> None:
    async with serving_protocols(Lines, transport) as (server, dial):
        async with await dial() as client:
            await client.send(b"one\n")
            assert await client.receive_line() == b"ONE"
            made[0].transport.pause_reading()
            async with draining(server):
                assert await receive_all(client) == b""


@pytest.mark.parametrize("answered", ["before", "after"])
async def test_a_connection_whose_peer_has_ended_its_side(tmp_path: Path, answered: str) -> None:
    class KeepsOpen(Recorder):
        ended = False

        def eof_received(self) -> bool:
            self.ended = True
            return True

    made.clear()
    async with serving_protocols(KeepsOpen, {"address": f"unix://{tmp_path}/s"}) as (server, dial):
        async with await dial() as client:
            await client.send(b"question")
            await client.send_eof()
            await until(lambda: bool(made and made[0].ended))
            if answered == "before":
                made[0].transport.write(b"answer")
            async with draining(server):
                if answered == "after":
                    await trio.sleep(3 * _idle_detection.QUIET)
                    made[0].transport.write(b"answer")
                assert await receive_all(client) == b"answer"


async def test_the_peers_end_while_it_drains(transport: dict[str, Any]) -> None:
    async with serving_protocols(Recorder, transport) as (server, dial):
        client = await dial()
        await client.send(b"question")
        await until(lambda: bool(made and made[0].received))
        async with draining(server) as over:
            await trio.lowlevel.checkpoint()
            assert not over.is_set()
            await client.aclose()
    assert made[0].lost == [None]


async def test_a_buffered_protocol(transport: dict[str, Any]) -> None:
    class Buffered(asyncio.BufferedProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport: Any = transport
            self.buffer = bytearray(100)

        def get_buffer(self, _sizehint: int) -> bytearray:
            return self.buffer

        def buffer_updated(self, nbytes: int) -> None:
            self.transport.write(bytes(self.buffer[:nbytes]))

    async with serving_protocols(Buffered, transport) as (server, dial):
        async with await dial() as client:
            await client.send(b"hello")
            assert await receive_exactly(client, 5) == b"hello"
            async with draining(server):
                assert await receive_all(client) == b""


# --- a protocol that knows more ---


async def test_a_protocol_that_ends_by_itself(transport: dict[str, Any]) -> None:
    class Knows(Lines):
        asked = 0

        def server_draining(self) -> bool:
            self.asked += 1
            self.transport.write(b"one moment\n")
            return True

    async with serving_protocols(Knows, transport) as (server, dial):
        async with await dial() as client:
            await client.send(b"hello\n")
            assert await client.receive_line() == b"HELLO"
            async with draining(server) as over:
                assert await client.receive_line() == b"one moment"
                await trio.sleep(3 * _idle_detection.QUIET)
                assert not over.is_set()
                await client.send(b"still here\n")
                assert await client.receive_line() == b"STILL HERE"
                made[0].transport.close()
                assert await receive_all(client) == b""
            assert made[0].asked == 1


async def test_a_protocol_that_ends_at_once(transport: dict[str, Any]) -> None:
    class Knows(Recorder):
        def server_draining(self) -> None:
            self.transport.write(b"bye")
            self.transport.close()

    async with asked(Knows, transport, b"hello") as (server, client):
        async with draining(server):
            assert await receive_all(client) == b"bye"


async def test_what_it_raises_ends_the_connection(transport: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    class Fails(Recorder):
        def server_draining(self) -> bool:
            raise LookupError("what it raises")

    async with serving_protocols(Fails, transport) as (server, dial):
        async with await dial() as client:
            await until(lambda: bool(made))
            async with draining(server):
                with contextlib.suppress(trio.BrokenResourceError):
                    assert await receive_all(client) == b""
    assert "what it raises" in caplog.text
    assert isinstance(made[0].lost[0], LookupError)


# --- where it is ---


async def test_a_handler_that_calls_it(transport: dict[str, Any]) -> None:
    protocols = ProtocolHandler(Lines)

    async def handler(connection: Connection) -> None:
        await connection.flush()
        await protocols(connection)

    async with serving_protocols(handler, transport) as (server, dial):
        async with await dial() as client:
            await client.send(b"hello\n")
            assert await client.receive_line() == b"HELLO"
            async with draining(server):
                assert await receive_all(client) == b""


async def test_of_two_servers_one_drains(transport: dict[str, Any]) -> None:
    handler = ProtocolHandler(Lines)
    async with serving_protocols(handler, transport) as (server, dial), serving(handler) as other:
        async with await dial() as client, await gain_trio.connect(f"tcp://127.0.0.1:{other.addresses[0][1]}") as stays:
            for one in (client, stays):
                await one.send(b"hello\n")
                assert await one.receive_line() == b"HELLO"
            async with draining(server):
                assert await receive_all(client) == b""
            await stays.send(b"again\n")
            assert await stays.receive_line() == b"AGAIN"


@pytest.mark.slow
async def test_in_worker_processes(transport: dict[str, Any], tmp_path: Path) -> None:
    more: dict[str, Any] = {"processes": 2}
    if "ssl_context" in transport:
        chain = tmp_path / "chain.pem"
        chain.write_bytes(certificate().private_key_and_cert_chain_pem.bytes())
        more["ssl_context"] = functools.partial(handlers.load_context, str(chain))
    async with serving_protocols(handlers.EchoProtocol, {**transport, **more}) as (server, dial):
        async with await dial() as silent, await dial() as client:
            await client.send(b"hello")
            assert (await receive_exactly(client, 13))[8:] == b"hello"
            async with draining(server):
                assert await receive_all(client) == b""
                assert await receive_all(silent) == b""


@pytest.mark.parametrize("async_handler", [False, True])
async def test_idle_connections_of_callbacks(transport: dict[str, Any], async_handler: bool) -> None:
    class Echo(EventHandler):
        def on_read(self, conn: gain_trio.callbacks.Conn, n: int) -> None:
            conn.write(conn.next(n))

    with trio.fail_after(2 * SOON):
        async with trio.open_nursery() as nursery:
            config = gain_trio.callbacks.Config(async_handler=async_handler)
            options = dict(transport)
            address = options.pop("address")
            server = await nursery.start(
                lambda **status: gain_trio.callbacks.serve(Echo(), address, config=config, **options, **status)
            )
            if address.startswith("tcp"):
                address = f"tcp://127.0.0.1:{server.addresses[0][1]}"
            context = client_context() if options else None
            async with (
                await gain_trio.connect(address, ssl_context=context) as silent,
                await gain_trio.connect(address, ssl_context=context) as client,
            ):
                await client.send(b"hello")
                assert await receive_exactly(client, 5) == b"hello"
                async with draining(server._server):
                    assert await receive_all(client) == b""
                    assert await receive_all(silent) == b""
            nursery.cancel_scope.cancel()

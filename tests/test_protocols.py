"""Protocols of asyncio's shape as handlers: the same calls, in the same order, with the same meaning."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing
from support.pairs import PATIENCE, QUIET, open_pair, receive_exactly, until
from support.processes import TIMEOUT, connect, read_all, read_exactly
from support.protocols import Buffered, Call, Echo, Recorder, running
from support.sockets import reset

import gain_trio
from gain_trio import Connection
from gain_trio._callback_base import deliver_by
from gain_trio._callback_base._delivering import Deliver
from gain_trio.asyncio_bridge import ProtocolHandler, _transport
from gain_trio.asyncio_bridge._transport import ProtocolTransport

pytestmark = pytest.mark.connections


# --- the same under asyncio's own event loop ---


class KeepsOpen(Recorder):
    def eof_received(self) -> bool | None:
        super().eof_received()
        self.transport.write(b"after the end")
        self.transport.close()
        self.transport.write(b"never")
        return True


class ClosesAtOnce(Recorder):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.write(b"bye")
        self.transport.close()
        self.transport.close()
        assert self.transport.is_closing()
        assert not self.lost.is_set()


class AbortsOnData(Recorder):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.write(b"perhaps")
        self.transport.abort()
        self.transport.abort()
        self.transport.close()
        assert not self.lost.is_set()


class HalfCloses(Recorder):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport.can_write_eof()
        self.transport.writelines([b"all ", bytearray(b"there "), memoryview(b"is")])
        self.transport.write_eof()
        self.transport.write_eof()
        with pytest.raises(RuntimeError, match="after write_eof"):
            self.transport.write(b"more")


class PausesInBetween(Recorder):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.pause_reading()
        self.transport.pause_reading()
        self.calls.append(("reading", self.transport.is_reading()))
        self.transport.resume_reading()
        self.transport.resume_reading()
        self.calls.append(("reading", self.transport.is_reading()))


class Switches(Recorder):
    """Hands over to another protocol after the first line."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if b"\n" in data:
            other = Echo()
            other.calls, other.lost, other.transport = self.calls, self.lost, self.transport
            self.calls.append(("switch",))
            self.transport.set_protocol(other)
            assert self.transport.get_protocol() is other
            self.transport.write(b"switched\n")


class ClosesWhenPaused(Recorder):
    """Writing is resumed all the same: others may wait for that."""

    paused = threading.Event()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.write(bytes(8 << 20))

    def pause_writing(self) -> None:
        super().pause_writing()
        self.transport.close()
        self.paused.set()


def read_when_paused(client: socket.socket) -> bytes:
    """Read after the transport has paused the protocol: a client that reads at once may take all that is written."""
    ClosesWhenPaused.paused.clear()
    client.sendall(b"hello")
    assert ClosesWhenPaused.paused.wait(TIMEOUT)
    return read_all(client)


class Limits(Recorder):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        limits: list[dict[str, int]] = [
            {},
            {"high": 100},
            {"low": 100},
            {"high": 0},
            {"high": 10, "low": 10},
            {"low": 0},
        ]
        self.calls.append(("default", self.transport.get_write_buffer_limits()))
        for chosen in limits:
            self.transport.set_write_buffer_limits(**chosen)
            self.calls.append(("limits", self.transport.get_write_buffer_limits()))
        for wrong in ({"high": 1, "low": 2}, {"high": -1}, {"low": -1}):
            with pytest.raises(ValueError, match="must be"):
                self.transport.set_write_buffer_limits(**wrong)
        self.calls.append(("unsent", self.transport.get_write_buffer_size()))
        self.transport.close()


class Asks(Recorder):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        info = self.transport.get_extra_info
        sock = info("socket")
        self.calls += [
            ("here", info("sockname") == sock.getsockname()),
            ("there", info("peername") == sock.getpeername()),
            ("socket", sock.family, sock.type, sock.proto, sock.gettimeout(), sock.fileno() >= 0),
            ("option", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)),
            ("no TLS", info("cipher"), info("ssl_object", "none"), info("nonsense"), info("nonsense", 5)),
        ]
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.calls.append(("set", sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)))
        with pytest.raises(ValueError, match="block"):
            sock.setblocking(True)
        self.transport.close()


class WritesNonsense(Recorder):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        for nonsense in ("text", 5, None):
            with pytest.raises(TypeError):
                self.transport.write(cast("bytes", nonsense))
        self.transport.write(b"")
        data = bytearray(b"kept")
        self.transport.write(data)
        data[:] = b"lost"
        self.transport.close()


def end(client: socket.socket) -> bytes:
    client.shutdown(socket.SHUT_WR)
    return read_all(client)


def end_with_reset(client: socket.socket) -> bytes:
    reset(client)
    return b""


def greet(client: socket.socket, then: Callable[[socket.socket], bytes]) -> bytes:
    """Say hello and wait for what comes back of it, so that what follows is another receive."""
    client.sendall(b"hello")
    return read_exactly(client, 5) + then(client)


def ask(client: socket.socket) -> bytes:
    client.sendall(b"hello")
    with contextlib.suppress(ConnectionResetError):
        return read_all(client)
    return b"reset"


def switch(client: socket.socket) -> bytes:
    client.sendall(b"first\n")
    answer = read_exactly(client, 9)
    client.sendall(b"second")
    return answer + read_exactly(client, 6) + end(client)


SCENARIOS: dict[str, tuple[Callable[[], Recorder | Buffered], Callable[[socket.socket], bytes]]] = {
    "nothing said": (Recorder, end),
    "an echo": (Echo, functools.partial(greet, then=end)),
    "a reset": (Echo, functools.partial(greet, then=end_with_reset)),
    "kept open after the end": (KeepsOpen, end),
    "closed at once": (ClosesAtOnce, end),
    "aborted": (AbortsOnData, lambda client: ask(client) and b"over"),
    "half-closed": (HalfCloses, lambda client: read_all(client) + (client.sendall(b"late") or end(client))),
    "paused in between": (PausesInBetween, lambda client: client.sendall(b"hello") or end(client)),
    "another protocol": (Switches, switch),
    "buffered": (Buffered, functools.partial(greet, then=end)),
    "closed when paused": (ClosesWhenPaused, read_when_paused),
    "limits": (Limits, read_all),
    "questions": (Asks, read_all),
    "nonsense": (WritesNonsense, read_all),
}


def under_asyncio(factory: Callable[[], Recorder | Buffered], client: Callable[[socket.socket], bytes]) -> Any:
    made: list[Recorder | Buffered] = []

    def remembered() -> asyncio.BaseProtocol:
        made.append(factory())
        return made[-1]

    async def main() -> bytes:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(remembered, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()

        def talk() -> bytes:
            with connect(*address) as sock:
                answer = client(sock)
            assert made[0].lost.wait(TIMEOUT)
            return answer

        try:
            return await loop.run_in_executor(None, talk)
        finally:
            server.close()

    return asyncio.run(main()), made[0].calls


def on_trio(factory: Callable[[], Recorder | Buffered], client: Callable[[socket.socket], bytes]) -> Any:
    made: list[Recorder | Buffered] = []

    def remembered() -> asyncio.BaseProtocol:
        made.append(factory())
        return made[-1]

    async def main() -> bytes:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                server = await nursery.start(gain_trio.serve, ProtocolHandler(remembered), "tcp://127.0.0.1:0")

                def talk() -> bytes:
                    with connect(*server.addresses[0]) as sock:
                        answer = client(sock)
                    assert made[0].lost.wait(TIMEOUT)
                    return answer

                answer = await trio.to_thread.run_sync(talk)
                nursery.cancel_scope.cancel()
        return answer

    return trio.run(main), made[0].calls


def comparable(calls: list[Call]) -> list[Call]:
    """Exceptions are compared by type and errno."""
    return [
        tuple((type(item), getattr(item, "errno", None)) if isinstance(item, Exception) else item for item in call)
        for call in calls
    ]


@pytest.mark.parametrize(("factory", "client"), SCENARIOS.values(), ids=SCENARIOS)
def test_the_calls_are_those_that_asyncio_makes(
    factory: Callable[[], Recorder | Buffered], client: Callable[[socket.socket], bytes]
) -> None:
    expected, calls = under_asyncio(factory, client)
    answer, ours = on_trio(factory, client)
    assert comparable(ours) == comparable(calls)
    assert answer == expected


# --- what else there is ---


async def test_a_buffer_without_room_is_an_error() -> None:
    class Full(Buffered):
        def get_buffer(self, _sizehint: int) -> bytearray:
            return bytearray()

    protocol = Full()
    async with running(cast("Recorder", protocol)) as run:
        await run.client.send(b"hello")
        await run.ended.wait()
        assert isinstance(run.error, RuntimeError)
    assert protocol.calls[-1] == ("lost", run.error)


async def test_a_buffered_protocol_that_pauses_gets_the_rest_later() -> None:
    class Pauses(Buffered):
        def buffer_updated(self, nbytes: int) -> None:
            self.recorder.data_received(bytes(self.buffer[:nbytes]))
            self.recorder.transport.pause_reading()

    protocol = Pauses()
    async with running(cast("Recorder", protocol)) as run:
        await run.client.send(b"onetwothree")
        for count in (3, 6, 9, 11):
            await until(lambda count=count: len(protocol.calls[-1][-1]) == count)  # type: ignore[misc]
            await trio.testing.wait_all_tasks_blocked(QUIET)
            assert protocol.calls[-1] == ("data", b"onetwothree"[:count])
            protocol.recorder.transport.resume_reading()


async def test_a_buffered_protocol_that_is_resumed_at_once_gets_the_rest_too() -> None:
    class Pauses(Buffered):
        def buffer_updated(self, nbytes: int) -> None:
            self.recorder.data_received(bytes(self.buffer[:nbytes]))
            self.recorder.transport.pause_reading()
            resume = self.recorder.transport.resume_reading
            if nbytes == 2:
                resume()
            else:
                trio.lowlevel.current_trio_token().run_sync_soon(resume)

    protocol = Pauses()
    async with running(cast("Recorder", protocol)) as run:
        sent = b""
        for piece in (b"onetwothree", b"four", b"fivefive"):
            await run.client.send(piece)
            sent += piece
            await until(lambda sent=sent: protocol.calls[-1] == ("data", sent))  # type: ignore[misc]


async def test_short_messages_are_delivered_by_the_loop_that_callbacks_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the ring it is in C: a task that waits by itself for each message costs twice as much."""
    entered = []

    def counted(connection: Connection) -> Deliver:
        deliver = deliver_by(connection)

        async def deliver_counted(*arguments: Any) -> int:
            entered.append(connection)
            return await deliver(*arguments)

        return deliver_counted

    monkeypatch.setattr(_transport, "deliver_by", counted)
    protocol = Echo()
    async with running(protocol) as run:
        for number in range(50):
            await run.client.send(b"%2d" % number)
            assert await run.client.receive_exactly(2) == b"%2d" % number
        assert len(entered) == 1
        protocol.transport.pause_reading()
        await run.client.send(b"paused")
        await trio.testing.wait_all_tasks_blocked(QUIET)
        protocol.transport.resume_reading()
        assert await run.client.receive_exactly(6) == b"paused"
        await trio.testing.wait_all_tasks_blocked()
        assert len(entered) == 2


async def test_a_protocol_need_not_inherit_from_asyncios() -> None:
    calls = []

    class Plain:
        def connection_made(self, transport: asyncio.Transport) -> None:
            calls.append(transport)

        def data_received(self, data: bytes) -> None:
            calls[0].write(data)

        def eof_received(self) -> None: ...

        def connection_lost(self, exc: Exception | None) -> None:
            calls.append(exc)  # type: ignore[arg-type]

    client, connection = await open_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ProtocolHandler(Plain), connection)  # type: ignore[arg-type]
        await client.send(b"hello")
        assert await receive_exactly(client, 5) == b"hello"
        await client.aclose()
    assert calls[1:] == [None]


async def test_there_is_no_event_loop() -> None:
    class Asks(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            asyncio.get_running_loop()

    async with running(Asks()) as run:
        await run.ended.wait()
        assert isinstance(run.error, RuntimeError)
        assert "no running event loop" in str(run.error)


@pytest.mark.slow
def test_a_handler_can_be_given_to_worker_processes() -> None:
    handler = ProtocolHandler(Echo, write_limit=5)
    copy = pickle.loads(pickle.dumps(handler))
    assert repr(copy) == repr(handler) == "<gain_trio.asyncio_bridge.ProtocolHandler(Echo)>"
    assert vars(copy) == vars(handler)


def test_the_transport_has_every_method_of_asyncios() -> None:
    missing = [
        name for name in dir(asyncio.Transport) if not name.startswith("_") and name not in vars(ProtocolTransport)
    ]
    assert not missing


# --- a protocol of another project ---

LANGUAGE_SERVER = """
import logging
import warnings

warnings.simplefilter("ignore")  # pygls has some

from lsprotocol import types
from pygls.server import LanguageServer

import gain_trio

logging.basicConfig(level=logging.ERROR, format="%(message)s")
server = LanguageServer("upper", "1")


@server.feature(types.TEXT_DOCUMENT_HOVER)
def hover(ls, params):
    line = ls.workspace.get_text_document(params.text_document.uri).lines[params.position.line]
    return types.Hover(contents=types.MarkupContent(kind=types.MarkupKind.PlainText, value=line.upper()))


async def main():
    import trio

    async with trio.open_nursery() as nursery:
        served = await nursery.start(gain_trio.serve, gain_trio.asyncio_bridge.ProtocolHandler(server.lsp), "tcp://127.0.0.1:0")
        print(served.addresses[0][1], flush=True)


gain_trio.run(main)
"""


@pytest.fixture
def language_server(tmp_path: Path) -> Iterator[Any]:
    from support.processes import running as program_running

    path = tmp_path / "language_server.py"
    path.write_text(LANGUAGE_SERVER)
    with program_running(path) as program:
        yield program


@pytest.mark.slow
def test_a_language_server_of_pygls_runs_on_it(language_server: Any) -> None:
    """pygls' protocol is an asyncio.Protocol, as pygls' own start_tcp() gives it to create_server()."""
    import json

    with connect("127.0.0.1", int(language_server.line())) as client:

        def send(**message: object) -> None:
            body = json.dumps({"jsonrpc": "2.0", **message}).encode()
            client.sendall(b"Content-Length: %d\r\n\r\n" % len(body) + body)

        def receive() -> Any:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += read_exactly(client, 1)
            length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
            return json.loads(read_exactly(client, length))

        send(id=1, method="initialize", params={"processId": None, "rootUri": None, "capabilities": {}})
        answer = receive()
        assert answer["id"] == 1
        assert answer["result"]["capabilities"]["hoverProvider"]
        assert answer["result"]["serverInfo"] == {"name": "upper", "version": "1"}
        send(method="initialized", params={})
        document = {"uri": "file:///x", "languageId": "text", "version": 1, "text": "one\ntwo words\n"}
        send(method="textDocument/didOpen", params={"textDocument": document})
        where = {"textDocument": {"uri": "file:///x"}, "position": {"line": 1, "character": 0}}
        for number in range(2, 50):  # pipelined
            send(id=number, method="textDocument/hover", params=where)
        for number in range(2, 50):
            answer = receive()
            assert (answer["id"], answer["result"]["contents"]["value"].strip()) == (number, "TWO WORDS")
    # When the client is gone this protocol calls sys.exit(1), and that ends the program, as under asyncio.
    status, _out, err = language_server.end()
    assert status == 1
    assert "Connection to the client is lost" in err

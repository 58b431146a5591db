"""The handlers of the examples, on gain_trio.testing: what would take seconds, or a peer that misbehaves."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio
from support.certificates import TLS_1_3, client_context, server_context
from support.examples import EXAMPLES
from support.http_answers import GET, answers
from support.pairs import MEBIBYTE, pattern, receive_all
from support.servers import echo
from support.websocket_frames import TEXT, frame, frames
from trio.testing import MockClock, wait_all_tasks_blocked

import gain_trio
from gain_trio import Marks
from gain_trio._http._http_handler import REQUEST_TIMEOUT
from gain_trio._server import Handler
from gain_trio.testing import MemoryConnection, MemoryServer, serving, serving_app, serving_callbacks, serving_datagrams

pytestmark = pytest.mark.one_backend


def example(name: str) -> ModuleType:
    """The module of an example, whose program does not run."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def ask(client: MemoryConnection, line: bytes) -> bytes | None:
    await client.send(line + b"\n")
    return await client.receive_line()


# --- line_server.py ---


async def test_the_store_answers_each_line() -> None:
    async with serving(example("line_server").Store(10).serve, strict=True) as server:
        client, other = server.connect(), server.connect()
        assert await ask(client, b"set colour deep blue") == b"ok"
        assert await ask(other, b"get colour") == b"deep blue"
        assert await ask(client, b"get size") == b"error: there is no such key"
        assert await ask(client, b"put") == b"error: write get KEY, set KEY VALUE or quit"
        await client.send(b"quit\n")
        assert await client.receive() == b""


async def test_the_store_takes_a_line_in_any_pieces() -> None:
    async with serving(example("line_server").Store(10).serve, strict=True) as server:
        client = server.connect()
        client.outgoing.largest_piece = 1
        assert await ask(client, b"set a 1") == b"ok"


async def test_a_client_of_the_store_that_is_silent_is_refused(autojump_clock: MockClock) -> None:
    async with serving(example("line_server").Store(10).serve, strict=True) as server:
        client = server.connect()
        start = trio.current_time()
        assert await receive_all(client) == b"error: too slow\n"
        assert trio.current_time() - start == pytest.approx(10)


async def test_a_line_that_is_too_long_is_refused() -> None:
    async with serving(example("line_server").Store(10).serve, strict=True) as server:
        client = server.connect()
        await client.send(bytes(2000))
        assert await receive_all(client) == b"error: a message is longer than 1000 bytes\n"


@pytest.mark.parametrize("count", [0, 3])
async def test_a_client_of_the_store_that_is_lost_harms_no_other(count: int) -> None:
    async with serving(example("line_server").Store(10).serve) as server:
        client, other = server.connect(), server.connect()
        await client.send(b"set")
        await wait_all_tasks_blocked()
        client.outgoing.reset_after = count
        if count:
            with pytest.raises(trio.BrokenResourceError):
                await ask(client, b" colour blue")
        await wait_all_tasks_blocked()
        now = server.server.statistics()
        assert (now.broken, now.handler_errors) == (1, 0)
        assert await ask(other, b"get colour") == b"error: there is no such key"


# --- chat.py ---


async def test_the_chat_drops_a_client_that_does_not_read(capsys: pytest.CaptureFixture[str]) -> None:
    module = example("chat")
    small = Marks(receive_high=1000, receive_low=100, send_high=1000)
    async with serving(module.Room().serve, strict=True, marks=small) as server:
        reader = server.connect()
        assert await ask(reader, b"hello") == b"guest 1: hello"
        slow = server.connect()
        assert await reader.receive_line() == b"* guest 2 has joined"
        slow.incoming.room = 0
        answers = [await ask(reader, b"%050d" % number) for number in range(2 * module.OUTBOX)]
        assert b"* guest 2 has left" in answers
        with pytest.raises(trio.BrokenResourceError):
            await slow.receive()
    assert capsys.readouterr().out == "guest 2 reads too slowly\n"


# --- proxy.py ---


@contextlib.asynccontextmanager
async def proxying(
    monkeypatch: pytest.MonkeyPatch, upstream: Handler | None, **options: Any
) -> AsyncIterator[MemoryServer[gain_trio.Server]]:
    """The proxy, in front of a server of this handler, or of none."""
    module = example("proxy")

    async def proxy(connection: gain_trio.Connection) -> None:
        await module.proxy("tcp://upstream:80", connection)

    async with serving(upstream or echo, strict=True) as behind:
        if upstream is None:
            behind.server.stop_accepting()

        async def connect(_address: str) -> MemoryConnection:
            return behind.connect()

        monkeypatch.setattr(gain_trio, "connect", connect)
        async with serving(proxy, **options) as server:
            yield server


async def test_the_proxy_passes_half_closes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def upstream(connection: gain_trio.Connection) -> None:
        await connection.send(b"got " + await receive_all(connection))

    async with proxying(monkeypatch, upstream, strict=True) as server:
        client = server.connect()
        await client.send(b"hello")
        await client.send_eof()
        assert await receive_all(client) == b"got hello"


async def test_the_proxy_passes_the_servers_half_close_on_first(monkeypatch: pytest.MonkeyPatch) -> None:
    replies: list[bytes] = []

    async def upstream(connection: gain_trio.Connection) -> None:
        await connection.send(b"greeting")
        await connection.send_eof()
        replies.append(await receive_all(connection))

    async with proxying(monkeypatch, upstream, strict=True) as server:
        client = server.connect()
        assert await receive_all(client) == b"greeting"
        await client.send(b"reply")
        await client.send_eof()
        await wait_all_tasks_blocked()
        assert replies == [b"reply"]


async def test_the_proxy_carries_much_in_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Marks(receive_high=1000, receive_low=100, send_high=1000)
    async with proxying(monkeypatch, echo, strict=True, marks=small) as server, trio.open_nursery() as nursery:
        client = server.connect()
        nursery.start_soon(client.send, pattern(MEBIBYTE))
        assert await client.receive_exactly(MEBIBYTE) == pattern(MEBIBYTE)


async def test_the_proxy_closes_the_client_when_there_is_no_upstream(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with proxying(monkeypatch, None) as server:
        assert await server.connect().receive() == b""
        assert await server.connect().receive() == b"", "the server has gone on"
    assert caplog.text.count("failed with ConnectionRefusedError") == 2


# --- echo.py ---


@pytest.mark.parametrize("largest_piece", [1, None])
async def test_the_echo_sends_back_what_arrives(largest_piece: int | None) -> None:
    async with serving(example("echo").echo, strict=True) as server:
        client = server.connect()
        client.outgoing.largest_piece = largest_piece
        await client.send(b"hello")
        await client.send_eof()
        assert await receive_all(client) == b"hello"


# --- cancel_scope.py ---


async def test_the_count_ends_with_the_client_or_with_the_server(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(example("cancel_scope").count, strict=True) as server:
        first, second = server.connect(), server.connect()
        start = trio.current_time()
        assert [await first.receive_line() for _ in range(3)] == [b"0", b"1", b"2"]
        assert trio.current_time() - start == pytest.approx(0.2)
        first.abort()
        await trio.sleep(1)
        assert capsys.readouterr().out.startswith("a handler ended after ")
        assert await second.receive_line() == b"0"
    assert capsys.readouterr().out.startswith("a handler ended after ")


# --- graceful.py ---


async def test_a_drain_finishes_answers_and_disconnects_who_has_asked_nothing() -> None:
    async with serving(example("graceful").handler, strict=True) as server, trio.open_nursery() as nursery:
        silent, busy = server.connect(), server.connect()
        busy.incoming.room = 0
        await busy.send(b"3\n")
        await wait_all_tasks_blocked()
        nursery.start_soon(server.server.drain, 10)
        assert await silent.receive() == b""
        busy.incoming.room = None
        assert await receive_all(busy) == b"1\n2\n3\n"


async def test_an_answer_that_takes_too_long_is_cut_off(autojump_clock: MockClock) -> None:
    async with serving(example("graceful").handler) as server:
        client = server.connect()
        client.incoming.room = 0
        await client.send(b"10000000\n")
        await wait_all_tasks_blocked()
        await server.server.drain(10)
        assert server.server.statistics().cancelled == 1


async def test_a_client_that_sends_no_number_is_disconnected() -> None:
    async with serving(example("graceful").handler, strict=True) as server:
        client = server.connect()
        assert await ask(client, b"many") is None


# --- lifespan.py ---


async def test_the_book_has_each_line_that_a_client_was_thanked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = example("lifespan")
    async with serving(module.handler, lifespan=module.Book(tmp_path / "book")) as server:
        client = server.connect()
        assert await ask(client, b"a nice place") == b"thank you"
        client.abort()
    assert (tmp_path / "book").read_bytes() == b"a nice place\n"
    assert capsys.readouterr().out == f"process {os.getpid()} has closed the book\n"


# --- asyncio_protocol.py ---


async def test_the_protocol_takes_a_line_in_pieces_and_refuses_a_long_one(capsys: pytest.CaptureFixture[str]) -> None:
    module = example("asyncio_protocol")
    async with serving(gain_trio.asyncio_bridge.ProtocolHandler(module.Words)) as server:
        client, other = server.connect(), server.connect()
        client.outgoing.largest_piece = 2
        assert await ask(client, b"set colour blue") == b"ok"
        assert await ask(other, b"get colour") == b"blue"
        await other.send(bytes(2000))
        assert await receive_all(other) == b"too long\n"
        client.abort()
        await wait_all_tasks_blocked()
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["hello 127.0.0.1", "hello 127.0.0.1", "goodbye", "lost: [Errno 104] Connection reset by peer"]


# --- udp_echo.py ---


async def test_the_udp_echo_does_not_answer_services() -> None:
    async with serving_datagrams(example("udp_echo").echo, strict=True) as server:
        client, service = server.connect(), server.connect(source_address=("127.0.0.1", 53))
        await service.send(b"for ever")
        await client.send(b"once")
        assert (await client.receive())[0] == b"once"
        assert (service.incoming.carried, server.server.statistics().handled) == (0, 2)


# --- callback_http.py ---


async def test_http_by_callbacks_answers_every_request_in_order(autojump_clock: MockClock) -> None:
    async with serving_callbacks(example("callback_http").Http(), strict=True) as server:
        client = server.connect()
        for path in (b"/plaintext", b"/nothing", b"/"):
            await client.send(b"GET %b HTTP/1.1\r\nHost: here\r\nContent-Length: 7\r\n\r\nskipped" % path)
        await client.send(GET * 20 + GET[:10])
        await client.send(GET[10:-2] + b"Connection: close\r\n\r\n")
        found = answers(await receive_all(client))
        assert [answer.status for answer in found] == [200, 404, 200, *[200] * 21]
        assert [answer.body == b"Hello, World!" for answer in found] == [True, False, True, *[True] * 21]


async def test_http_by_callbacks_takes_a_request_in_single_bytes_and_refuses_another() -> None:
    async with serving_callbacks(example("callback_http").Http(), strict=True) as server:
        client, other = server.connect(), server.connect()
        for byte in GET:
            await client.send(bytes([byte]))
            await wait_all_tasks_blocked()
        [answer] = answers(await client.receive())
        assert answer.body == b"Hello, World!"
        await other.send(b"nonsense\r\n\r\n")
        assert (await receive_all(other)).startswith(b"HTTP/1.1 400 ")


async def test_a_request_by_callbacks_that_does_not_end_is_too_slow(autojump_clock: MockClock) -> None:
    async with serving_callbacks(example("callback_http").Http()) as server:
        client = server.connect()
        await client.send(GET[:10])
        start = trio.current_time()
        assert await receive_all(client) == b""
        assert trio.current_time() - start == pytest.approx(REQUEST_TIMEOUT)


# --- asgi_app.py ---


async def opened(client: MemoryConnection) -> MemoryConnection:
    """The client, which has opened the WebSocket of the app."""
    await client.send(
        b"GET /talk HTTP/1.1\r\nHost: here\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert (await client.receive_until(b"\r\n\r\n", max_bytes=4096)).startswith(b"HTTP/1.1 101 ")
    return client


async def say(client: MemoryConnection, text: bytes) -> bytes:
    """Say it by the WebSocket; the answer."""
    await client.send(frame(TEXT, text))
    [(_opcode, answer)] = frames(await client.receive())
    return answer


async def test_the_web_app_streams_what_is_said_to_its_websocket(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving_app(example("asgi_app").app, strict=True) as server:
        stream, talk, other = server.connect(), await opened(server.connect()), server.connect()
        await stream.send(b"GET /lines HTTP/1.1\r\nHost: here\r\n\r\n")
        assert (await stream.receive_until(b"welcome\n\r\n", max_bytes=4096)).startswith(b"HTTP/1.1 200 ")
        await wait_all_tasks_blocked()
        assert await say(talk, b"hello") == b"1 listen"
        assert await stream.receive_until(b"hello\n\r\n", max_bytes=4096)
        stream.abort()
        await wait_all_tasks_blocked()
        assert await say(talk, b"hello?") == b"0 listen"
        await other.send(b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        assert b" 404 " in await receive_all(other)
    assert capsys.readouterr().out == "the room is closed\n"


async def test_a_stream_of_the_web_app_that_reads_slowly_misses_lines(capsys: pytest.CaptureFixture[str]) -> None:
    module = example("asgi_app")
    small = Marks(send_high=1)
    async with serving_app(module.app, strict=True, marks=small) as server:
        slow, talk = server.connect(), await opened(server.connect())
        await slow.send(b"GET /lines HTTP/1.1\r\nHost: here\r\n\r\n")
        assert await slow.receive_until(b"welcome\n\r\n", max_bytes=4096)
        slow.incoming.room = 0
        await wait_all_tasks_blocked()
        for _ in range(module.MOST_WAITING + 3):
            assert await say(talk, b"hello") == b"1 listen"
    assert "a slow stream misses a line\n" in capsys.readouterr().out


# --- reactor_balancers.py ---


async def test_each_of_two_choices_is_a_consumer_and_the_census_counts_them() -> None:
    module = example("reactor_balancers")
    census = module.Census()
    async with serving(census.tell, strict=True, workers=module.WORKERS, balancer=module.TwoChoices()) as server:
        census.server = server.server
        for number in range(1, 9):
            line = await server.connect().receive_line()
            assert line is not None
            counts = [*map(int, line.split())]
            assert (len(counts), sum(counts)) == (module.WORKERS, number)


# --- sharded.py ---


async def test_a_line_is_answered_by_the_process_that_serves() -> None:
    async with serving(example("sharded").tell_process, strict=True) as server:
        assert await ask(server.connect(), b"who?") == b"process %d" % os.getpid()


# --- tls_echo.py ---


async def test_tls_is_the_servers_affair(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(example("tls_echo").echo, strict=True, ssl_context=server_context(TLS_1_3)) as server:
        client = trio.SSLStream(server.connect(), client_context(), server_hostname="localhost", https_compatible=True)
        await client.send_all(b"hello")
        assert await client.receive_some() == b"hello"
        assert capsys.readouterr().out == "TLSv1.3 with 127.0.0.1\n"


# --- chat_processes.py ---


async def test_the_chat_of_two_processes_is_one_conversation(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    module = example("chat_processes")
    async with serving(functools.partial(module.hub, module.Room()), strict=True) as hub:

        async def connect(_address: str) -> MemoryConnection:
            return hub.connect()

        monkeypatch.setattr(gain_trio, "connect", connect)
        lifespan = functools.partial(module.talk, "unix://hub")
        async with (
            serving(module.chat, lifespan=lifespan) as here,
            serving(module.chat, lifespan=lifespan) as there,
        ):
            ada, ben = here.connect(), there.connect()
            for client, name in ((ada, b"ada"), (ben, b"ben")):
                assert await client.receive_line() == b"your name?"
                assert await ask(client, name) == b"* " + name + b" has joined"
            assert await ada.receive_line() == b"* ben has joined"
            assert await ask(ada, b"hello") == b"ada: hello"
            assert await ben.receive_line() == b"ada: hello"
            silent = here.connect()
            assert await silent.receive_line() == b"your name?"
            assert await silent.receive() == b"", "a client has a minute to say its name"
            ben.abort()
            assert await ada.receive_line() == b"* ben has left"

"""The handlers of the examples, on gain_trio.testing: what would take seconds, or a peer that misbehaves."""

from __future__ import annotations

import functools
import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest
import trio
from support.certificates import TLS_1_3, client_context, server_context
from support.examples import EXAMPLES
from support.pairs import receive_all
from trio.testing import MockClock, wait_all_tasks_blocked

import gain_trio
from gain_trio import Marks
from gain_trio.testing import MemoryConnection, serving

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


async def test_the_proxy_passes_half_closes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def upstream(connection: gain_trio.Connection) -> None:
        await connection.send(b"got " + await receive_all(connection))

    async with serving(upstream, strict=True) as behind:

        async def connect(_address: str) -> MemoryConnection:
            return behind.connect()

        module = example("proxy")
        monkeypatch.setattr(gain_trio, "connect", connect)

        async def proxy(connection: gain_trio.Connection) -> None:
            await module.proxy("tcp://upstream:80", connection)

        async with serving(proxy, strict=True) as server:
            client = server.connect()
            await client.send(b"hello")
            await client.send_eof()
            assert await receive_all(client) == b"got hello"


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

"""The handlers of the examples, on gain_trio.testing: what would take seconds, or a peer that misbehaves."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
import trio
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

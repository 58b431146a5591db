"""The wait between two messages: it ends with the stream, with a drain, and loses nothing."""

from __future__ import annotations

import functools
import gc
import math
import os
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from support.certificates import client_context, server_context
from support.pairs import receive_all, until
from support.servers import serving
from trio.testing import MockClock, wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection, Server
from gain_trio._transports._connections._deadlines import DeadlineKeeper

pytestmark = pytest.mark.connections

KINDS = ["tcp", "unix", "pass_fds", "tls", "tls over unix"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def serving_over(
    handler: Callable[[Connection], Awaitable[object]], kind: str, folder: Path, **options: Any
) -> AsyncIterator[tuple[Server, Callable[[], Awaitable[Connection]]]]:
    address = f"unix://{folder}/socket" if "unix" in kind or kind == "pass_fds" else "tcp://127.0.0.1:0"
    client_options: dict[str, Any] = {}
    if "tls" in kind:
        options["ssl_context"] = server_context()
        client_options = {"ssl_context": client_context(), "server_hostname": "localhost"}
    if kind == "pass_fds":
        options["pass_fds"] = True
    async with serving(handler, address, **options) as server:
        if address.startswith("tcp"):
            address = f"tcp://127.0.0.1:{server.addresses[0][1]}"
        yield server, functools.partial(gain_trio.connect, address, **client_options)


async def answer_lines(connection: Connection) -> None:
    async for line in connection.messages(connection.receive_line):
        await connection.send(line.upper() + b"\n")


async def answer_waiting(connection: Connection) -> None:
    while await connection.wait_data():
        line = await connection.receive_line()
        assert line is not None
        await connection.send(line.upper() + b"\n")


async def answer_pieces(connection: Connection) -> None:
    async for data in connection.messages():
        await connection.send(data.upper())


async def has_data(connection: Connection) -> bool:
    return await connection.wait_data()


async def has_piece(connection: Connection) -> bool:
    return await anext(connection.messages(), b"") != b""


async def has_line(connection: Connection) -> bool:
    return await anext(connection.messages(connection.receive_line), b"") != b""


waiting = pytest.mark.parametrize("wait", [has_data, has_piece, has_line])
Wait = Callable[[Connection], Awaitable[bool]]


@pytest.mark.parametrize("handler", [answer_lines, answer_waiting, answer_pieces])
async def test_idle_connections_end_at_once_when_the_server_drains(
    handler: Callable[[Connection], Awaitable[None]], kind: str, tmp_path: Path
) -> None:
    async with serving_over(handler, kind, tmp_path) as (server, connect):
        clients = [await connect() for _ in range(3)]
        for client in clients:
            await client.send(b"hello\n")
            assert await client.receive_exactly(6) == b"HELLO\n"
        await server.drain(math.inf)
        for client in clients:
            assert await receive_all(client) == b""
            await client.aclose()
        assert server.statistics().finished == 3


async def test_what_has_arrived_is_answered(kind: str, tmp_path: Path) -> None:
    go_on, first = trio.Event(), trio.Event()

    async def slow(connection: Connection) -> None:
        async for line in connection.messages(connection.receive_line):
            first.set()
            await go_on.wait()
            await connection.send(line.upper() + b"\n")

    async with serving_over(slow, kind, tmp_path) as (server, connect), trio.open_nursery() as nursery:
        client = await connect()
        await client.send(b"one\ntwo\nthree\n")
        await first.wait()
        nursery.start_soon(server.drain, math.inf)
        await server.draining.wait()
        go_on.set()
        assert await receive_all(client) == b"ONE\nTWO\nTHREE\n"
        await client.aclose()
        assert server.statistics().finished == 1


async def test_a_client_that_has_just_connected_is_served(kind: str, tmp_path: Path) -> None:
    async with serving_over(answer_lines, kind, tmp_path) as (server, connect), trio.open_nursery() as nursery:
        client = await connect()
        await until(lambda: server.active_connections == 1)
        await wait_all_tasks_blocked()
        nursery.start_soon(server.drain, math.inf)
        await server.draining.wait()
        await wait_all_tasks_blocked(0.01)
        await client.send(b"hello\n")
        assert await receive_all(client) == b"HELLO\n"
        await client.aclose()


async def test_a_client_that_never_sends_has_a_second(kind: str, tmp_path: Path, autojump_clock: MockClock) -> None:
    async with serving_over(answer_lines, kind, tmp_path) as (server, connect):
        client = await connect()
        await until(lambda: server.active_connections == 1)
        await wait_all_tasks_blocked()
        start = trio.current_time()
        await server.drain(math.inf)
        assert 1 <= trio.current_time() - start < 2
        assert await receive_all(client) == b""
        await client.aclose()
        assert server.statistics().finished == 1


async def test_a_handshake_under_way_is_finished_and_served() -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            functools.partial(gain_trio.serve, answer_lines, "tcp://127.0.0.1:0", ssl_context=server_context())
        )
        plain = await trio.open_tcp_stream(*server.addresses[0])
        await until(lambda: server.active_connections == 1)
        nursery.start_soon(server.drain, math.inf)
        await server.draining.wait()
        client = trio.SSLStream(plain, client_context(), server_hostname="localhost")
        await client.do_handshake()
        await wait_all_tasks_blocked(0.01)
        await client.send_all(b"hello\n")
        assert await client.receive_some() == b"HELLO\n"
        assert await client.receive_some() == b""
        await client.aclose()


async def test_a_proxy_header_is_no_message(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            functools.partial(gain_trio.serve, answer_lines, "tcp://127.0.0.1:0", proxy_protocol=True)
        )
        client = await trio.open_tcp_stream(*server.addresses[0])
        await client.send_all(b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 80\r\n")
        await until(lambda: server.active_connections == 1)
        await wait_all_tasks_blocked()
        nursery.start_soon(server.drain, math.inf)
        await server.draining.wait()
        await wait_all_tasks_blocked()
        await client.send_all(b"hello\n")
        assert await receive_all(client) == b"HELLO\n"
        await client.aclose()


@waiting
@pytest.mark.parametrize("sent", [b"", b"hello\n"])
async def test_the_deadline_of_the_program_is_its_own(
    sent: bytes, wait: Wait, kind: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The deadline raises when it passes, and stays as before when a drain has ended the wait."""
    seen: list[object] = []

    async def handler(connection: Connection) -> None:
        if sent:
            assert await connection.receive_exactly(len(sent)) == sent
        connection.read_deadline = trio.current_time() + 0.5
        with pytest.raises(trio.TooSlowError):
            await wait(connection)
        deadline = connection.read_deadline = trio.current_time() + 100
        seen.extend([await wait(connection), connection.read_deadline == deadline])
        with pytest.raises(trio.TooSlowError):
            await connection.receive()
        seen.append(trio.current_time() >= deadline)

    async with serving_over(handler, kind, tmp_path) as (server, connect):
        client = await connect()
        if sent:
            await client.send(sent)
        await trio.sleep(1)
        await server.drain(math.inf)
        await client.aclose()
    assert seen == [False, True, True]


@waiting
async def test_a_nearer_deadline_of_the_program_is_raised_during_a_drain(
    wait: Wait, kind: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async def handler(connection: Connection) -> None:
        await connection.draining.wait()
        connection.read_deadline = trio.current_time() + 0.25
        await wait(connection)

    async with serving_over(handler, kind, tmp_path) as (server, connect):
        client = await connect()
        await until(lambda: server.active_connections == 1)
        await wait_all_tasks_blocked()
        await server.drain(math.inf)
        assert server.statistics().too_slow == 1
        await client.aclose()


@waiting
async def test_cancelling_the_wait_loses_nothing(wait: Wait, kind: str, tmp_path: Path) -> None:
    async def handler(connection: Connection) -> None:
        for _ in range(3):
            with trio.move_on_after(0) as scope:
                await wait(connection)
            assert scope.cancelled_caught
        await answer_lines(connection)

    async with serving_over(handler, kind, tmp_path) as (server, connect):
        client = await connect()
        await client.send(b"hello\n")
        assert await client.receive_exactly(6) == b"HELLO\n"
        await server.drain(math.inf)
        assert await receive_all(client) == b""
        await client.aclose()


async def test_the_end_and_the_beginning_of_messages(kind: str, tmp_path: Path) -> None:
    results: list[object] = []
    ended = trio.Event()

    async def handler(connection: Connection) -> None:
        results.append(await connection.wait_data())
        results.append(await connection.wait_data())
        results.append(await connection.receive_exactly(3))
        results.append(await connection.wait_data())
        results.append(await connection.wait_data())
        results.append([data async for data in connection.messages()])
        ended.set()

    async with serving_over(handler, kind, tmp_path) as (_server, connect):
        client = await connect()
        await client.send(b"abc")
        await client.aclose()
        await ended.wait()
    assert results == [True, True, b"abc", False, False, []]


@waiting
@pytest.mark.parametrize("other", [has_data, has_piece, has_line])
async def test_a_second_task_is_refused_and_the_first_is_still_ended(
    wait: Wait, other: Wait, kind: str, tmp_path: Path
) -> None:
    async def handler(connection: Connection) -> None:
        await connection.receive_exactly(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, connection)
            await wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await other(connection)
            with pytest.raises(trio.BusyResourceError):
                await connection.receive()
            await connection.send(b"x")

    async with serving_over(handler, kind, tmp_path, strict=True) as (server, connect):
        client = await connect()
        await client.send(b"x")
        await client.receive_exactly(1)
        await server.drain(math.inf)
        await client.aclose()
        assert server.statistics().finished == 1


@waiting
async def test_a_wait_beside_another_receive_is_refused_and_marks_nothing(
    wait: Wait, kind: str, tmp_path: Path
) -> None:
    async def handler(connection: Connection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.receive)
            await wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await wait(connection)
            await connection.send(b"x")

    async with serving_over(handler, kind, tmp_path, strict=True) as (server, connect):
        client = await connect()
        await client.receive_exactly(1)
        await client.send(b"x")
        await server.drain(math.inf)
        await client.aclose()


async def test_messages_can_end_by_what_receives_them(tmp_path: Path) -> None:
    got: list[bytes] = []

    async def handler(connection: Connection) -> None:
        async def until_quit() -> bytes | None:
            line = await connection.receive_line(max_bytes=100)
            return None if line == b"quit" else line

        got.extend([line async for line in connection.messages(until_quit)])
        async for line in connection.messages(functools.partial(connection.receive_line, max_bytes=4)):
            got.append(line)
        with pytest.raises(TypeError, match="async function"):
            connection.messages(b"\n")  # type: ignore[call-overload]

    async with serving_over(handler, "tcp", tmp_path, strict=True) as (server, connect):
        client = await connect()
        await client.send(b"one\n\nquit\nabc\n")
        await client.send_eof()
        assert await receive_all(client) == b""
        await client.aclose()
        await until(lambda: server.active_connections == 0)
    assert got == [b"one", b"", b"abc"]


async def test_descriptors_stay_with_their_message(tmp_path: Path) -> None:
    """A wait for data takes no byte, so a message and its descriptors are received by one call."""
    received: list[tuple[bytes, int]] = []

    async def handler(connection: Connection) -> None:
        while await connection.wait_data():
            data, descriptors = await connection.receive_fds(100, 10)
            received.append((data, len(descriptors)))
            for descriptor in descriptors:
                os.close(descriptor)
            await connection.send(b"ok")

    async with serving_over(handler, "pass_fds", tmp_path) as (server, _connect):
        async with await gain_trio.connect(f"unix://{tmp_path}/socket", pass_fds=True) as client:
            for _ in range(2):
                await client.send_fds(b"hello", [0, 0])
                assert await client.receive_exactly(2) == b"ok"
            await server.drain(math.inf)
    assert received == [(b"hello", 2)] * 2


async def test_a_reset_is_raised(tmp_path: Path) -> None:
    async with serving_over(answer_lines, "tcp", tmp_path) as (server, connect):
        client = await connect()
        await until(lambda: server.active_connections == 1)
        client.abort()
        await until(lambda: server.active_connections == 0)
        assert server.statistics().broken == 1


async def test_a_cut_tls_stream_is_no_clean_end() -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            functools.partial(gain_trio.serve, answer_lines, "tcp://127.0.0.1:0", ssl_context=server_context())
        )
        plain = await trio.open_tcp_stream(*server.addresses[0])
        client = trio.SSLStream(plain, client_context(), server_hostname="localhost")
        await client.do_handshake()
        await plain.aclose()
        await until(lambda: server.statistics().broken == 1)
        nursery.cancel_scope.cancel()


async def test_a_connection_of_its_own_waits_until_the_end() -> None:
    """Without a server there is no drain."""
    async with trio.open_nursery() as nursery:
        server = await nursery.start(gain_trio.serve, answer_lines, "tcp://127.0.0.1:0")
        async with await gain_trio.connect(f"tcp://127.0.0.1:{server.addresses[0][1]}") as client:
            await client.send(b"a\n")
            assert await client.wait_data()
            assert client.next() == b"A\n"
            nursery.start_soon(server.drain, math.inf)
            assert not await client.wait_data()


@waiting
async def test_a_wait_that_a_drain_has_ended_leaves_the_connection_as_it_was(
    wait: Wait, kind: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The wait ends again and again, and a receive that has nothing to do with messages goes on."""
    goodbye: list[bytes] = []

    async def handler(connection: Connection) -> None:
        await connection.receive_exactly(1)
        for _ in range(3):
            assert not await wait(connection)
            assert connection.read_deadline == math.inf
        await connection.send(b"bye")
        goodbye.append(await connection.receive())

    async with serving_over(handler, kind, tmp_path, strict=True) as (server, connect), trio.open_nursery() as nursery:
        client = await connect()
        await client.send(b"x")
        await wait_all_tasks_blocked()
        nursery.start_soon(server.drain, math.inf)
        assert await client.receive_exactly(3) == b"bye"
        await trio.sleep(10)
        await client.send(b"and bye")
        await until(lambda: bool(goodbye))
        await client.aclose()
    assert goodbye == [b"and bye"]


@waiting
async def test_a_wait_that_is_cancelled_during_a_drain_puts_the_deadline_back(
    wait: Wait, kind: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The peer has sent nothing, so the wait has a second, of which it uses a part."""
    seen: list[object] = []

    async def handler(connection: Connection) -> None:
        await connection.draining.wait()
        with trio.move_on_after(0.5) as scope:
            await wait(connection)
        seen.extend([scope.cancelled_caught, connection.read_deadline])

    async with serving_over(handler, kind, tmp_path) as (server, connect):
        client = await connect()
        await until(lambda: server.active_connections == 1)
        await wait_all_tasks_blocked()
        await server.drain(math.inf)
        await client.aclose()
    assert seen == [True, math.inf]


async def test_a_call_that_was_made_before_the_drain_and_is_awaited_during_it(kind: str, tmp_path: Path) -> None:
    seen: list[bytes] = []

    async def handler(connection: Connection) -> None:
        await connection.receive_exactly(1)
        first, second = connection.messages().__anext__(), connection.messages().__anext__()
        await connection.send(b"y")
        await connection.draining.wait()
        await connection._wait_first()
        seen.append(await first)
        with pytest.raises(StopAsyncIteration):
            await second

    async with serving_over(handler, kind, tmp_path, strict=True) as (server, connect), trio.open_nursery() as nursery:
        client = await connect()
        await client.send(b"x")
        await client.receive_exactly(1)
        nursery.start_soon(server.drain, math.inf)
        await server.draining.wait()
        await client.send(b"arrives during the drain")
        assert await receive_all(client) == b""
        await client.aclose()
    assert seen == [b"arrives during the drain"]


async def test_an_iteration_can_be_left_and_begun_again(kind: str, tmp_path: Path) -> None:
    pieces: list[bytes] = []
    ended = trio.Event()

    async def handler(connection: Connection) -> None:
        messages = connection.messages()
        assert aiter(messages) is messages
        for _ in range(2):
            async for piece in messages:
                pieces.append(piece)
                await connection.send(b"got it")
                break
        async for piece in connection:
            pieces.append(piece)
            await connection.send(b"got it")
        ended.set()

    async with serving_over(handler, kind, tmp_path) as (_server, connect):
        client = await connect()
        for piece in (b"one", b"two", b"three"):
            await client.send(piece)
            assert await client.receive_exactly(6) == b"got it"
        await client.aclose()
        await ended.wait()
    assert pieces == [b"one", b"two", b"three"]


async def test_a_connection_is_freed_with_the_iteration_in_its_context(kind: str, tmp_path: Path) -> None:
    dead: list[weakref.ref[Connection]] = []

    async def handler(connection: Connection) -> None:
        connection.context = connection.messages()
        dead.append(weakref.ref(connection))

    async with serving_over(handler, kind, tmp_path) as (server, connect):
        client = await connect()
        assert await receive_all(client) == b""
        await client.aclose()
        await until(lambda: server.active_connections == 0)
    gc.collect()
    assert dead[0]() is None


@waiting
async def test_a_drain_can_begin_while_the_wait_does(
    wait: Wait, kind: str, tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a signal's handler or a finalizer, which may run in the code in Python that keeps deadlines."""
    seen: list[object] = []
    watch = DeadlineKeeper.watch

    async def handler(connection: Connection) -> None:
        await connection.receive_exactly(1)

        def begin_drain(keeper: DeadlineKeeper, *args: Any) -> None:
            monkeypatch.setattr(DeadlineKeeper, "watch", watch)
            connection._begin_drain()
            watch(keeper, *args)

        start = trio.current_time()
        connection.read_deadline = deadline = start + 100
        monkeypatch.setattr(DeadlineKeeper, "watch", begin_drain)
        seen.extend([await wait(connection), trio.current_time() - start, connection.read_deadline - deadline])
        seen.append(DeadlineKeeper.watch is watch)

    async with serving_over(handler, kind, tmp_path, strict=True) as (_server, connect):
        client = await connect()
        await client.send(b"x")
        assert await receive_all(client) == b""
        await client.aclose()
    assert seen == [False, 0, 0, True]

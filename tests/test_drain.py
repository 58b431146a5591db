"""The ends of a server: drained, stopped, cancelled.  Nothing is lost that need not be, and nothing is left."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from support.certificates import client_context, server_context
from support.descriptors import open_descriptors
from support.pairs import MEBIBYTE, clog, pattern, receive_all, receive_exactly, until
from support.servers import LOCAL, connect, echo, serving
from trio.testing import MockClock, wait_all_tasks_blocked

import gain_trio
import gain_trio.testing
from gain_trio import Connection, Server, UringStatistics

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

pytestmark = pytest.mark.connections

RESPONSE = pattern(6 * MEBIBYTE)
"""More than kernels and queues can store, so that it is in flight until the client reads it."""


async def refuses(server: Server, address: tuple[Any, ...] | None = None) -> bool:
    """Whether the server refuses new connections."""
    try:
        await (await trio.open_tcp_stream(*(address or server.addresses[0])[:2])).aclose()
    except OSError:
        return True
    return False


async def answer_requests(connection: Connection) -> None:
    """A response a line, until the client ends or the server drains."""
    while not connection.draining.is_set() and await connection.receive_line() is not None:
        await connection.send(RESPONSE)


async def last_words(connection: Connection) -> None:
    """Wait for the drain, and tell the client."""
    await connection.send(b"hello")
    await connection.draining.wait()
    await connection.send(b"goodbye")


async def stubborn(connection: Connection) -> None:
    """Take no notice."""
    await connection.send(b"hello")
    await trio.sleep_forever()


# --- drain ---


@pytest.mark.parametrize("options", [{}, {"workers": 3}, {"architecture": "socket_sharding", "workers": 2}], ids=str)
async def test_responses_in_flight_arrive_whole(options: dict[str, Any]) -> None:
    async with trio.open_nursery() as nursery:
        ended = trio.Event()

        async def run(*, task_status: trio.TaskStatus[Server]) -> None:
            await gain_trio.serve(answer_requests, LOCAL, **options, task_status=task_status)
            ended.set()

        server = await nursery.start(run)
        clients = [await trio.open_tcp_stream(*server.addresses[0]) for _ in range(5)]
        for client in clients:
            await client.send_all(b"please\n")
            assert await receive_exactly(client, 1000) == RESPONSE[:1000]
        nursery.start_soon(server.drain, math.inf)
        await server.draining.wait()
        assert await refuses(server)
        assert not ended.is_set()
        for client in clients:
            assert await receive_all(client) == RESPONSE[1000:]
            await client.aclose()
        await ended.wait()
        assert server.statistics().closed["finished"] == 5
        assert server.active_connections == 0


async def test_a_connection_can_see_that_it_should_finish() -> None:
    async with serving(last_words, workers=2) as server:
        clients = [await connect(server) for _ in range(4)]
        for client in clients:
            assert await client.receive_exactly(5) == b"hello"
        assert not server.draining.is_set()
        await server.drain(math.inf)
        assert server.draining.is_set()
        for client in clients:
            assert await receive_all(client) == b"goodbye"
            await client.aclose()


async def test_tls_connections_see_it_too() -> None:
    async with serving(last_words, ssl_context=server_context()) as server:
        address = f"tcp://127.0.0.1:{server.addresses[0][1]}"
        async with await gain_trio.connect(
            address, ssl_context=client_context(), server_hostname="localhost"
        ) as client:
            assert await client.receive_exactly(5) == b"hello"
            await server.drain(math.inf)
            assert await receive_all(client) == b"goodbye"


async def test_a_connection_without_a_server_is_never_told() -> None:
    async with serving(last_words) as server, await connect(server) as client:
        assert await client.receive_exactly(5) == b"hello"
        own = client.draining
        assert own is client.draining
        await server.drain(math.inf)
        assert not own.is_set()


async def test_drain_without_connections_is_done_at_once(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(gain_trio.serve, echo, LOCAL)
        await server.drain(1000)
        assert trio.current_time() < 1
        await until_gone(nursery)


async def until_gone(nursery: trio.Nursery) -> None:
    await until(lambda: not nursery.child_tasks)


@pytest.mark.parametrize("seconds", [0, 0.5, 60])
async def test_when_the_time_is_up_the_rest_is_cancelled(autojump_clock: MockClock, seconds: float) -> None:
    cleaned_up = []

    async def handler(connection: Connection) -> None:
        try:
            await stubborn(connection)
        finally:
            cleaned_up.append(trio.current_time())

    async with serving(handler) as server:
        client = await trio.open_tcp_stream(*server.addresses[0])
        assert await receive_exactly(client, 5) == b"hello"
        start = trio.current_time()
        await server.drain(seconds)
        assert seconds <= trio.current_time() - start < seconds + 1
        assert cleaned_up
        assert server.statistics().cancelled == 1
        assert await receive_all(client) == b""
        await client.aclose()


async def break_when_cancelled(connection: Connection) -> None:
    """Make another exception of the cancellation, as a failure to clean up does."""
    try:
        await stubborn(connection)
    finally:
        raise trio.BrokenResourceError


async def test_what_a_drain_cuts_off_is_counted_and_logged_once(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    kinds = iter([stubborn, last_words, stubborn, break_when_cancelled])

    async def handler(connection: Connection) -> None:
        await next(kinds)(connection)

    async with gain_trio.testing.serving(handler) as memory:
        clients = [memory.connect() for _ in range(4)]
        for client in clients:
            assert await client.receive_exactly(5) == b"hello"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(memory.server.drain, 100)
            await trio.sleep(3)
            nursery.start_soon(memory.server.drain, 4)
        assert memory.server.cut_off == memory.server.statistics().cut_off == 3
    [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "cuts off 3 connections, which have not ended within the 7 seconds" in line
    assert "\n" not in line


async def test_a_drain_with_time_enough_cuts_nothing_off(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(connection: Connection) -> None:
        await last_words(connection)
        await trio.sleep(9.9)

    async with gain_trio.testing.serving(handler) as memory:
        client = memory.connect()
        assert await client.receive_exactly(5) == b"hello"
        await memory.server.drain(10)
        assert memory.server.cut_off == memory.server.statistics().cut_off == 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_cancellation_while_a_server_drains_counts_as_asked_for(autojump_clock: MockClock) -> None:
    async def handler(connection: Connection) -> None:
        try:
            await stubborn(connection)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(100)  # longer than the drain

    with trio.CancelScope() as scope:
        async with gain_trio.testing.serving(handler) as memory, trio.open_nursery() as nursery:
            client = memory.connect()
            assert await client.receive_exactly(5) == b"hello"
            nursery.start_soon(memory.server.drain, 10)
            await memory.server.draining.wait()
            scope.cancel()
    assert memory.server.statistics().cancelled == 1
    assert memory.server.cut_off == 0


async def test_a_peer_that_does_not_begin_tls_is_not_counted(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(echo, ssl_context=server_context()) as server:
        async with await trio.open_tcp_stream(*server.addresses[0]):
            await until(lambda: server.active_connections == 1)
            await wait_all_tasks_blocked()  # it waits for the handshake
            await server.drain(0)
        assert server.statistics().cancelled == 1
        assert server.cut_off == 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_draining_again_can_only_shorten_the_time(autojump_clock: MockClock) -> None:
    async with serving(stubborn) as server:
        async with await trio.open_tcp_stream(*server.addresses[0]) as client:
            assert await receive_exactly(client, 5) == b"hello"
            start = trio.current_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.drain, 100)
                await server.draining.wait()
                nursery.start_soon(server.drain, 1000)
                await trio.sleep(3)
                nursery.start_soon(server.drain, 10)
            assert 13 <= trio.current_time() - start < 14
    await server.drain(5)  # it has ended long ago


async def test_a_drain_whose_caller_is_cancelled_goes_on(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(gain_trio.serve, stubborn, LOCAL)
        async with await trio.open_tcp_stream(*server.addresses[0]) as client:
            assert await receive_exactly(client, 5) == b"hello"
            with trio.move_on_after(1):
                await server.drain(10)
            assert server.active_connections == 1
            assert await refuses(server)
            assert await receive_all(client) == b""
            assert 10 <= trio.current_time() < 12
            await until_gone(nursery)


@pytest.mark.parametrize(
    ("seconds", "error"), [(-1, ValueError), (math.nan, ValueError), ("30", TypeError), (None, TypeError)]
)
async def test_a_bad_timeout(seconds: Any, error: type[Exception]) -> None:
    async with serving(echo) as server, await connect(server) as client:
        with pytest.raises(error, match="timeout"):
            await server.drain(seconds)
        await client.send(b"still there")
        assert await client.receive() == b"still there"
        assert not server.draining.is_set()


async def test_an_error_while_it_drains_propagates_when_it_is_strict() -> None:
    class DeliberateError(Exception):
        pass

    async def handler(connection: Connection) -> None:
        await last_words(connection)
        raise DeliberateError

    with pytest.raises(ExceptionGroup) as caught:
        async with serving(handler, strict=True) as server:
            async with await trio.open_tcp_stream(*server.addresses[0]) as client:
                assert await receive_exactly(client, 5) == b"hello"
                await server.drain(math.inf)
                await trio.sleep_forever()
    assert caught.value.split(DeliberateError)[1] is None


async def test_a_handler_that_drains_its_own_server(autojump_clock: MockClock) -> None:
    """The handler waits for itself, and the server cancels it when the time is up."""
    servers: list[Server] = []

    async def handler(connection: Connection) -> None:
        await servers[0].drain(5)

    async with trio.open_nursery() as nursery:
        servers.append(await nursery.start(gain_trio.serve, handler, LOCAL))
        async with await trio.open_tcp_stream(*servers[0].addresses[0]) as client:
            assert await receive_all(client) == b""
            await until_gone(nursery)
            assert servers[0].statistics().cancelled == 1


# --- stop_accepting ---


async def test_stop_accepting_is_immediate_and_leaves_connections_alone() -> None:
    async with serving(echo, [LOCAL, "tcp://127.0.0.2:0"], workers=2) as server:
        client = await connect(server)
        await until(lambda: server.active_connections == 1)
        server.stop_accepting()
        for address in server.addresses:
            assert await refuses(server, address)
        server.stop_accepting()
        await client.send(b"hello")
        assert await client.receive() == b"hello"
        assert not client.draining.is_set()
        assert not server.draining.is_set()
        await client.aclose()
        await until(lambda: server.active_connections == 0)
        await wait_all_tasks_blocked()
        await server.drain(0)


async def test_what_has_been_accepted_is_served_all_the_same() -> None:
    """A multishot accept takes ahead; those connections are not lost when the server stops accepting."""
    async with serving(echo) as server:
        clients = [await trio.open_tcp_stream(*server.addresses[0]) for _ in range(40)]
        await until(lambda: server.statistics().accepted > 0)
        taken = server.statistics().accepted
        server.stop_accepting()
        served = 0
        for client in clients:
            async with client:
                try:
                    await client.send_all(b"hello")
                    assert await receive_exactly(client, 5) == b"hello"
                    served += 1
                except trio.BrokenResourceError:
                    pass
        assert served == server.statistics().accepted >= taken > 0


# --- nothing is left ---


def in_flight() -> int:
    """Operations of the run's ring."""
    found: object = trio.lowlevel.current_statistics().io_statistics
    return found.operations_in_flight if isinstance(found, UringStatistics) else 0


def all_tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


async def end_by_cancelling(_server: Server, scope: trio.CancelScope) -> None:
    scope.cancel()


async def end_by_draining(server: Server, _scope: trio.CancelScope) -> None:
    await server.drain(0)


async def end_after_stopping(server: Server, scope: trio.CancelScope) -> None:
    server.stop_accepting()
    scope.cancel()


async def end_by_both(server: Server, scope: trio.CancelScope) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.drain, 1000)
        await server.draining.wait()
        scope.cancel()


@pytest.mark.parametrize("end", [end_by_cancelling, end_by_draining, end_after_stopping, end_by_both])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"workers": 2, "max_connections": 8},
        {"architecture": "socket_sharding", "workers": 3},
        {"ssl_context": server_context()},
        {"proxy_protocol": True},
    ],
    ids=["plain", "limited", "sharding", "TLS", "PROXY"],
)
async def test_when_serve_returns_nothing_is_left(
    options: dict[str, Any], end: Callable[[Server, trio.CancelScope], Awaitable[None]]
) -> None:
    """No descriptor, task, or operation of the ring: not a little later, but then.

    The clients are sockets without connections of gain_trio, so that whatever is in flight is the server's.
    """
    async with serving(echo, idle_timeout=1000) as server:  # what is made once a run is made now
        async with await connect(server) as client:
            await client.send(b"x")
            await client.receive()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        await wait_all_tasks_blocked()
        tasks, operations, descriptors = all_tasks(), in_flight(), open_descriptors()
        clients = [trio.socket.socket() for _ in range(12)]
        ended = False

        async def run(*, task_status: trio.TaskStatus[Server]) -> None:
            nonlocal ended
            serve = gain_trio.serve(clog_some, LOCAL, idle_timeout=1000, **options, task_status=task_status)
            with scope:
                await serve
            left = [each for each in open_descriptors() if each not in descriptors]
            assert len(left) == len(clients), left
            assert in_flight() == operations
            ended = True

        scope = trio.CancelScope()
        server = await nursery.start(run)
        for client in clients:
            await client.connect(server.addresses[0])
        with_handlers = min(len(clients), options.get("max_connections", math.inf))
        await until(lambda: server.active_connections == with_handlers)
        await wait_all_tasks_blocked()
        await end(server, scope)
        await until(lambda: ended)
        assert server.active_connections == 0
        assert server.statistics().accepted == sum(server.statistics().closed.values())
        for client in clients:
            client.close()
        await wait_all_tasks_blocked()
        assert all_tasks() == tasks
        assert open_descriptors() == descriptors
        nursery.cancel_scope.cancel()


async def clog_some(connection: Connection) -> None:
    """Some handlers wait to receive, and some have more to send than goes."""
    if connection.remote_address[1] % 2:
        await connection.receive()
    else:
        await clog(connection)
        await trio.sleep_forever()


async def test_cancelling_is_immediate(autojump_clock: MockClock) -> None:
    async with serving(clog_some) as server:
        clients = [await trio.open_tcp_stream(*server.addresses[0]) for _ in range(10)]
        await until(lambda: server.active_connections == 10)
        await wait_all_tasks_blocked()
        start = trio.current_time()
    assert trio.current_time() - start < 0.001
    assert server.active_connections == 0
    assert await refuses(server)
    for client in clients:
        await client.aclose()

"""serve(): handlers, their errors, the nursery tree, and the end."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import sys
from contextlib import suppress
from typing import Any

import pytest
import trio
from support.descriptors import no_descriptors_left
from support.pairs import (
    MEBIBYTE,
    PATIENCE,
    clog,
    fill_kernel,
    open_trio_pair,
    pattern,
    receive_all,
    receive_exactly,
    until,
)
from support.servers import LOCAL, connect, echo, serving
from trio.testing import wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection, Marks, Server
from gain_trio._transports._peer_progress import STALL

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup, ExceptionGroup

pytestmark = [pytest.mark.connections, pytest.mark.features]


# --- serving ---


async def test_start_returns_a_server() -> None:
    async with serving(echo) as server:
        [(host, port)] = server.addresses
        assert host == "127.0.0.1"
        assert port > 0
        assert str(port) in repr(server)
        async with await connect(server) as client:
            await client.send(b"hello")
            assert await client.receive() == b"hello"


async def test_statistics() -> None:
    async with serving(echo, workers=2) as server:
        nothing = server.statistics()
        assert (nothing.accepted, nothing.active, nothing.handler_errors) == (0, 0, 0)
        assert nothing.connections_by_consumer == (0, 0)
        clients = [await connect(server) for _ in range(3)]
        await until(lambda: server.statistics().accepted == 3)
        assert server.active_connections == server.statistics().active == 3
        await clients.pop().aclose()
        await until(lambda: server.active_connections == 2)
        now = server.statistics()
        assert (now.accepted, now.active, now.handler_errors) == (3, 2, 0)
        assert nothing.accepted == 0, "it is a snapshot"
        with pytest.raises(AttributeError):
            now.accepted = 7  # type: ignore[misc]
        for client in clients:
            await client.aclose()


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
async def test_round_robin(workers: int) -> None:
    async with serving(echo, workers=workers) as server:
        for count in range(1, 16):
            async with await connect(server):
                await until(lambda count=count: server.statistics().accepted == count)  # type: ignore[misc]
            expected = tuple(count // workers + (number < count % workers) for number in range(workers))
            assert server.statistics().connections_by_consumer == expected


async def test_many_clients() -> None:
    data = pattern(30_000)

    async def exchange(server: Server) -> None:
        async with await connect(server) as client, trio.open_nursery() as nursery:
            nursery.start_soon(client.send, data)
            assert await receive_exactly(client, len(data)) == data

    async with serving(echo, workers=3) as server:
        async with trio.open_nursery() as clients:
            for _ in range(100):
                clients.start_soon(exchange, server)
        await until(lambda: server.active_connections == 0)
        assert server.statistics().accepted == 100


async def test_several_servers_in_a_run() -> None:
    async def shout(connection: Connection) -> None:
        async for data in connection:
            await connection.send(data.upper())

    async with serving(echo) as first, serving(shout) as second:
        for server, answer in ((first, b"hello"), (second, b"HELLO")):
            async with await connect(server) as client:
                await client.send(b"hello")
                assert await client.receive() == answer


async def test_options_reach_the_listener() -> None:
    sizes: list[int] = []
    filled = trio.Event()

    async def handler(connection: Connection) -> None:
        await fill_kernel(connection)
        await connection.send(b"x" * 4)
        sizes.append(connection.outbound_buffered)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.send, b"y")
            await wait_all_tasks_blocked()
            sizes.append(connection.outbound_buffered)
            assert nursery.child_tasks, "it waits"
            nursery.cancel_scope.cancel()
        filled.set()

    async with serving(handler, marks=Marks(send_high=5), reuse_port=True, backlog=3) as server:
        async with serving(handler, reuse_port=True):
            async with await connect(server) as client:
                await filled.wait()
                assert (await receive_all(client)).endswith(b"\0xxxxy")
    assert sizes == [4, 5]


async def test_handlers_that_are_objects() -> None:
    class Handler:
        async def __call__(self, connection: Connection) -> None:
            await connection.send(b"from an object")

        async def method(self, connection: Connection) -> str:
            await connection.send(b"from a method")
            return "what it returns does not matter"

    for handler, expected in ((Handler(), b"from an object"), (Handler().method, b"from a method")):
        async with serving(handler) as server, await connect(server) as client:
            assert await receive_all(client) == expected


# --- the end of a handler ---


async def test_what_a_handler_leaves_unsent_is_flushed() -> None:
    data = pattern(24 * MEBIBYTE)
    returned = trio.Event()

    async def handler(connection: Connection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.send, data)
            await wait_all_tasks_blocked()
            assert connection.outbound_buffered > Marks().send_high
            nursery.cancel_scope.cancel()
        returned.set()

    async with serving(handler) as server, await connect(server) as client:
        await returned.wait()
        assert server.active_connections == 1
        assert await receive_all(client) == data
        await until(lambda: server.active_connections == 0)
        assert server.statistics().handler_errors == 0


async def test_flushing_a_client_that_does_not_read_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    async with serving(clog) as server:
        client = await trio.open_tcp_stream("127.0.0.1", server.addresses[0][1])
        start = trio.current_time()
        await until_active(server, 1)
        await until_active(server, 0)
        assert trio.current_time() - start >= STALL
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(client)
        await client.aclose()


async def until_active(server: Server, count: int) -> None:
    """Wait for a number of connections, without a busy loop, so that the mock clock can jump."""
    for _ in range(1000):
        if server.active_connections == count:
            return
        await trio.sleep(0.1)
    pytest.fail("it does not happen")


@pytest.mark.parametrize("how", ["aclose", "abort"])
async def test_a_handler_that_closes_its_connection(how: str, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(connection: Connection) -> None:
        if how == "aclose":
            await connection.send(b"bye")
            await connection.aclose()
        else:
            connection.abort()

    async with serving(handler) as server, await connect(server) as client:
        if how == "aclose":
            assert await receive_all(client) == b"bye"
        else:
            with pytest.raises(trio.BrokenResourceError):
                await client.receive()
        await until(lambda: server.active_connections == 0)
        assert server.statistics().handler_errors == 0
    assert caplog.records == []


class DeliberateError(Exception):
    pass


async def test_a_handlers_error_ends_its_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(connection: Connection) -> None:
        async for data in connection:
            if data == b"fail":
                raise DeliberateError("on request")
            await connection.send(data)

    async with serving(handler) as server, await connect(server) as other:
        async with await connect(server) as client:
            await client.send(b"fail")
            assert await client.receive() == b""
        await until(lambda: server.active_connections == 1)
        assert server.statistics().handler_errors == 1
        await other.send(b"still there")
        assert await other.receive() == b"still there"
    [record] = caplog.records
    assert (record.name, record.levelno) == ("gain_trio", logging.ERROR)
    assert "handler" in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], DeliberateError)
    assert "on request" in caplog.text
    assert 'raise DeliberateError("on request")' in caplog.text, "with its traceback"


async def test_a_handler_error_with_unsent_data_resets(caplog: pytest.LogCaptureFixture) -> None:
    """The reset shows the client that the data it has received is incomplete."""
    clogged = trio.Event()

    async def handler(connection: Connection) -> None:
        await clog(connection)
        clogged.set()
        raise DeliberateError

    async with serving(handler) as server, await connect(server) as client:
        await clogged.wait()
        await until(lambda: server.statistics().handler_errors == 1)
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(client)


async def test_an_error_in_a_handlers_nursery(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise DeliberateError("in a child")

    async def handler(connection: Connection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.receive)
            nursery.start_soon(fail)

    async with serving(handler) as server:
        async with await connect(server) as client:
            assert await client.receive() == b""
        await until(lambda: server.statistics().handler_errors == 1)
    [record] = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ExceptionGroup)
    assert "in a child" in caplog.text


async def test_a_broken_connection_is_no_error_of_the_handler(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gain_trio")
    async with serving(echo) as server:
        client = await connect(server)
        client.abort()
        await until(lambda: server.statistics().broken == 1)
        assert server.statistics().handler_errors == 0
    [record] = caplog.records
    assert record.levelno == logging.INFO
    assert record.exc_info is None, "a peer must not be able to fill the log with tracebacks"
    assert "reset" in record.getMessage()


async def test_strict_propagates(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(connection: Connection) -> None:
        await connection.receive()
        raise DeliberateError

    with pytest.raises(ExceptionGroup) as caught:
        async with serving(handler, strict=True) as server, await connect(server) as client:
            await client.send(b"x")
            await trio.sleep(PATIENCE)
    assert caught.value.split(DeliberateError)[1] is None
    assert len(caplog.records) == 1


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
async def test_what_is_no_exception_propagates(error: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    async def handler(connection: Connection) -> None:
        await connection.receive()
        raise error

    with pytest.raises(BaseExceptionGroup) as caught:
        async with serving(handler) as server, await connect(server) as client:
            await client.send(b"x")
            await trio.sleep(PATIENCE)
    assert caught.value.split(error)[1] is None
    assert caplog.records == []


async def test_a_group_is_taken_apart(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(error: BaseException) -> None:
        raise error

    async def handler(connection: Connection) -> None:
        await connection.receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail, DeliberateError("logged"))
            nursery.start_soon(fail, SystemExit("propagates"))

    with pytest.raises(BaseExceptionGroup) as caught:
        async with serving(handler) as server, await connect(server) as client:
            await client.send(b"x")
            await trio.sleep(PATIENCE)
    assert caught.value.split(SystemExit)[1] is None
    assert "logged" in caplog.text
    assert "propagates" not in caplog.text


# --- the end of a server ---


def test_cancelling_closes_everything(no_descriptor_leak: None, resume_in_place: bool) -> None:
    cancelled = 0

    async def handler(connection: Connection) -> None:
        nonlocal cancelled
        await connection.send(b"welcome")
        try:
            await connection.receive()
        except trio.Cancelled:
            cancelled += 1
            raise

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(gain_trio.serve, handler, LOCAL)
            clients = [await connect(server) for _ in range(20)]
            for client in clients:
                assert await client.receive() == b"welcome"
            nursery.cancel_scope.cancel()
        assert cancelled == 20
        assert server.active_connections == 0
        for client in clients:
            assert await client.receive() == b""
            await client.aclose()
        with pytest.raises(OSError, match="connect"):
            await connect(server)

    gain_trio.run(main, resume_in_place=resume_in_place)


async def test_cancelling_with_unsent_data_resets() -> None:
    clogged = trio.Event()

    async def handler(connection: Connection) -> None:
        await clog(connection)
        clogged.set()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        server = await nursery.start(gain_trio.serve, handler, LOCAL)
        client = await trio.open_tcp_stream("127.0.0.1", server.addresses[0][1])
        await clogged.wait()
        nursery.cancel_scope.cancel()
    with pytest.raises(trio.BrokenResourceError):
        await receive_all(client)
    await client.aclose()


async def test_cancelling_while_clients_arrive() -> None:
    """Connections that are accepted and not handed off yet, or handed off and not started, are closed too."""
    for count in range(20):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(gain_trio.serve, echo, LOCAL)
            clients = []
            for _ in range(count):
                client = socket.socket()
                client.settimeout(10)
                client.connect(server.addresses[0])
                clients.append(client)
            for _ in range(count % 4):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        for client in clients:
            with client, suppress(ConnectionResetError):
                assert client.recv(1) == b""


async def test_a_cancelled_handler_may_say_goodbye() -> None:
    async def handler(connection: Connection) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await connection.send(b"goodbye")
                await connection.aclose()

    async with trio.open_nursery() as nursery:
        server = await nursery.start(gain_trio.serve, handler, LOCAL)
        client = await connect(server)
        await until(lambda: bool(server.active_connections == 1))
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert await receive_all(client) == b"goodbye"
    await client.aclose()


# --- the tree ---


def tasks_below(task: trio.lowlevel.Task) -> list[trio.lowlevel.Task]:
    """Its children and theirs."""
    found = []
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            found += [child, *tasks_below(child)]
    return found


async def test_the_nursery_tree() -> None:
    root = trio.lowlevel.current_root_task()
    assert root is not None
    async with trio.open_nursery() as nursery:
        server = await nursery.start(lambda **status: gain_trio.serve(echo, LOCAL, workers=2, **status))
        clients = [await connect(server) for _ in range(4)]
        await until(lambda: bool(server.active_connections == 4))

        acceptors = [task for task in tasks_below(root) if task.name.startswith("gain_trio acceptor")]
        consumers = [task for task in tasks_below(root) if task.name.startswith("gain_trio consumer")]
        assert [str(server.addresses[0]) in task.name for task in acceptors] == [True]
        assert sorted(task.name for task in consumers) == ["gain_trio consumer 0", "gain_trio consumer 1"]
        server_nurseries = {id(task.parent_nursery) for task in acceptors + consumers}
        assert len(server_nurseries) == 1
        assert acceptors[0].parent_nursery is not None
        assert acceptors[0].parent_nursery.parent_task.parent_nursery is nursery
        for consumer in consumers:
            handlers = tasks_below(consumer)
            assert [task.name for task in handlers] == ["echo", "echo"]
            assert {task.parent_nursery for task in handlers} == set(consumer.child_nurseries)
        assert tasks_below(acceptors[0]) == []

        for client in clients:
            await client.aclose()
        nursery.cancel_scope.cancel()


# --- what it refuses ---


@pytest.mark.parametrize(
    "handler",
    [None, 5, "handler", gain_trio.callbacks.EventHandler, gain_trio.callbacks.EventHandler(), asyncio.Protocol],
)
async def test_a_bad_handler(handler: Any) -> None:
    with pytest.raises(
        TypeError, match=r"the handler must be an async function .*callbacks\.serve\(.*ProtocolHandler\("
    ):
        await gain_trio.serve(handler, LOCAL)


@pytest.mark.parametrize(("workers", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("1", TypeError)])
def test_bad_workers(workers: Any, error: type[Exception], no_descriptor_leak: None) -> None:
    async def main() -> None:
        with pytest.raises(error):
            await gain_trio.serve(echo, LOCAL, workers=workers)

    gain_trio.run(main)


@pytest.mark.parametrize("address", ["127.0.0.1:80", "tcp://127.0.0.1", "http://127.0.0.1:80"])
async def test_a_bad_address(address: str) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        await gain_trio.serve(echo, address)


async def test_a_busy_port() -> None:
    async with serving(echo) as server, trio.open_nursery() as nursery:
        with pytest.raises(OSError, match="cannot listen on") as caught:
            await nursery.start(gain_trio.serve, echo, f"tcp://127.0.0.1:{server.addresses[0][1]}")
        assert caught.value.errno == errno.EADDRINUSE


# --- out of descriptors ---


async def test_out_of_descriptors(caplog: pytest.LogCaptureFixture) -> None:
    """The server logs it, and serves the client when descriptors are free again."""
    async with serving(echo) as server:
        client = socket.socket()
        client.setblocking(False)
        with no_descriptors_left():
            with pytest.raises(BlockingIOError):
                client.connect(server.addresses[0])
            await until(lambda: len(caplog.records) >= 1)
            assert server.statistics().accepted == 0
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(client))
        await stream.send_all(b"hello")
        assert await receive_exactly(stream, 5) == b"hello"
        await stream.aclose()
    message = caplog.records[0].getMessage()
    assert "cannot accept connections" in message
    assert "EMFILE" in message
    assert str(server.addresses[0]) in message
    assert os.strerror(errno.EMFILE) in message
    assert "0.1 seconds" in message


async def test_it_serves_trios_own_clients() -> None:
    client, served = await open_trio_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo, served)
        await client.send_all(b"hello")
        assert await receive_exactly(client, 5) == b"hello"
        await client.send_eof()
    await served.aclose()
    await client.aclose()

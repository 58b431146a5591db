"""A server's counters and log: causes, bytes, the ring's figures; and records that a JSON formatter can show."""

from __future__ import annotations

import functools
import itertools
import json
import logging
import math
import pickle
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
from support.certificates import client_context, server_context
from support.pairs import MEBIBYTE, Pair, open_pair, pattern, receive_all, receive_exactly, until
from support.servers import connect, echo, serving
from support.sockets import reset
from trio.testing import MockClock

import gain_trio
from gain_trio import BackendInfo, Connection, ServerStatistics, UringStatistics
from gain_trio._io_manager import current_manager
from gain_trio._server._connection_limit import ConnectionLimit
from gain_trio._server._consumer import Consumer, ConsumerSettings
from gain_trio.logs import JsonFormatter

pytestmark = pytest.mark.connections


class DeliberateError(Exception):
    pass


async def end_somehow(connection: Connection) -> None:
    """End in the way that the client requests."""
    match await connection.receive_line():
        case b"error":
            raise DeliberateError
        case b"group":
            async with trio.open_nursery():
                raise DeliberateError
        case b"too slow":
            connection.read_deadline = trio.current_time()
            await connection.receive()
        case b"finish":
            return
    await connection.receive()


async def test_every_connection_has_one_cause(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(end_somehow, idle_timeout=30) as server:
        for how in (b"finish", b"error", b"group", b"too slow", b"idle"):
            client = await trio.open_tcp_stream(*server.addresses[0])
            await client.send_all(how + b"\n")
            assert await receive_all(client) == b"", "which takes the idle one 30 seconds"
            await client.aclose()
        broken, cancelled = [await trio.open_tcp_stream(*server.addresses[0]) for _ in range(2)]
        await broken.send_all(b"broken\n")
        await until(lambda: server.active_connections == 2)
        reset(broken)
        await until(lambda: server.active_connections == 1)
        await server.drain(1)
        await cancelled.aclose()
        now = server.statistics()
    assert now.closed == {
        "finished": 1,
        "error": 2,
        "broken": 1,
        "too_slow": 1,
        "idle": 1,
        "cancelled": 1,
        "refused": 0,
        "failed_handshake": 0,
    }
    assert (now.handler_errors, now.broken, now.too_slow, now.idle, now.cancelled) == (2, 1, 1, 1, 1)
    assert sum(now.closed.values()) == now.accepted - now.active == 7


async def test_refused_and_failed_handshakes() -> None:
    options: dict[str, Any] = {"proxy_protocol": True, "ssl_context": server_context()}
    async with serving(echo, **options) as server:
        for wrong in (b"no header\r\n" * 20, b"PROXY UNKNOWN\r\n" + b"no TLS\r\n" * 20):
            async with await connect(server) as client:
                await client.send(wrong)
                try:
                    await receive_all(client)
                except trio.BrokenResourceError:
                    pass
        await until(lambda: server.active_connections == 0)
        now = server.statistics()
        assert (now.closed["refused"], now.closed["failed_handshake"], now.accepted) == (1, 1, 2)


# --- bytes ---


async def test_bytes_of_a_pair(pair: Pair) -> None:
    client, served = pair
    data = pattern(3 * MEBIBYTE + 5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, data)
        assert await receive_exactly(served, len(data)) == data
    await client.flush()
    assert (client.bytes_sent, client.bytes_received) == (len(data), 0)
    assert (served.bytes_sent, served.bytes_received) == (0, len(data))
    await served.send(b"answer")
    assert await client.receive_exactly(6) == b"answer"
    await client.send(memoryview(b"more"))
    assert await served.receive_into(bytearray(10)) == 4
    assert served.discard() == 0
    await client.aclose()
    await served.aclose()
    assert (client.bytes_sent, client.bytes_received) == (len(data) + 4, 6)
    assert (served.bytes_sent, served.bytes_received) == (6, len(data) + 4)


async def test_bytes_of_a_server() -> None:
    """Of open connections and of those that are over; and a handler that closes its connection itself loses none."""

    async def handler(connection: Connection) -> None:
        await connection.send(await connection.receive_exactly(1000) + b"!")
        if await connection.receive_exactly(1) == b"c":
            await connection.aclose()

    async with serving(handler, workers=2) as server:
        clients = [await connect(server) for _ in range(4)]
        for client in clients:
            await client.send(bytes(1000))
            assert len(await client.receive_exactly(1001)) == 1001
        now = server.statistics()
        assert (now.bytes_received, now.bytes_sent) == (4000, 4004)
        for client, how in zip(clients, (b"c", b"r", b"c", b"r"), strict=True):
            await client.send(how)
            assert await receive_all(client) == b""
            await client.aclose()
        await until(lambda: server.active_connections == 0)
        now = server.statistics()
        assert (now.bytes_received, now.bytes_sent) == (4004, 4004)
    assert server.statistics().bytes_sent == 4004, "also when it has ended"


async def test_of_tls_the_bytes_on_the_wire_count() -> None:
    counted: list[tuple[int, int]] = []

    async def handler(connection: Connection) -> None:
        await echo(connection)
        counted.append((connection.bytes_received, connection.bytes_sent))

    async with serving(handler, ssl_context=server_context()) as server:
        address = f"tcp://127.0.0.1:{server.addresses[0][1]}"
        async with await gain_trio.connect(
            address, ssl_context=client_context(), server_hostname="localhost"
        ) as client:
            await client.send(b"hello")
            assert await client.receive_exactly(5) == b"hello"
            assert client.bytes_sent > 5
        await until(lambda: server.active_connections == 0)
        now = server.statistics()
        [(received, sent)] = counted
        assert 5 < received <= now.bytes_received
        assert 5 < sent <= now.bytes_sent


# --- snapshots ---


async def test_the_rings_figures(backend: BackendInfo) -> None:
    async with serving(echo) as server, await connect(server) as client:
        await client.send(b"hello")
        assert await client.receive() == b"hello"
        rings = server.statistics().rings
        if backend.tier == "none":
            assert rings == ()
        else:
            [ring] = rings
            assert isinstance(ring, UringStatistics)
            assert ring.completions > 0
            assert attrs.asdict(ring).keys() == attrs.asdict(trio.lowlevel.current_statistics().io_statistics).keys()


async def test_snapshots_are_added_up_and_pickled() -> None:
    async with serving(echo, workers=2) as one, serving(echo) as other:
        for server in (one, one, other):
            async with await connect(server) as client:
                await client.send(b"hello")
                assert await client.receive() == b"hello"
        await until(lambda: one.active_connections == other.active_connections == 0)
        parts = [one.statistics(), other.statistics()]
    total = ServerStatistics.total(pickle.loads(pickle.dumps(parts)))
    assert (total.accepted, total.active, total.finished) == (3, 0, 3)
    assert (total.bytes_received, total.bytes_sent) == (15, 15)
    assert total.connections_by_consumer == (1, 1, 1)
    assert total.rings == parts[0].rings + parts[1].rings
    nothing = ServerStatistics.total([])
    assert sum(nothing.closed.values()) == nothing.accepted == 0
    assert ServerStatistics.total([nothing, total]) == total


def test_statistics_after_the_run() -> None:
    async def main() -> gain_trio.Server:
        async with serving(echo, workers=2) as server, await connect(server) as client:
            await client.send(b"hello")
            await client.receive()
        return server

    server = trio.run(main)
    now = server.statistics()
    assert (now.accepted, now.active, now.bytes_sent) == (1, 0, 5)


# --- asked for by another thread ---


class AppearsMeanwhile:
    """The part of a connection or a wait that the server counts.  Another one begins while the server counts this one."""

    _successor = None
    """TLS has not been begun on it."""

    def __init__(self, begin: Callable[[], object]) -> None:
        self._begin = begin

    def _count(self) -> int:
        self._begin()
        return 1

    bytes_received = bytes_sent = waits = property(_count)


async def test_connections_may_come_while_bytes_are_counted() -> None:
    consumer = Consumer(0, ConsumerSettings(echo))
    opened: dict[Any, Any] = consumer._open
    for _ in range(3):
        opened[AppearsMeanwhile(lambda: opened.update({object(): None}))] = None
    assert consumer.bytes_received == 3
    for each in [each for each in opened if not isinstance(each, AppearsMeanwhile)]:
        del opened[each]
    assert consumer.bytes_sent == 3


@pytest.mark.full_ring
async def test_tasks_may_begin_to_wait_while_they_are_counted() -> None:
    manager = current_manager("a test")
    assert manager is not None
    found = manager.statistics()
    for waiters in manager._waiters.values():
        numbers = itertools.count(1 << 30)
        begin = functools.partial(lambda waiters, numbers: waiters.setdefault(next(numbers)), waiters, numbers)
        waiters.update({-number: AppearsMeanwhile(begin) for number in (1, 2, 3)})  # type: ignore[misc]
    try:
        now = manager.statistics()
    finally:
        for waiters in manager._waiters.values():
            for number in [each for each in waiters if not 0 <= each < 1 << 30]:
                del waiters[number]
    assert now.tasks_waiting_read == found.tasks_waiting_read + 3
    assert now.tasks_waiting_write == found.tasks_waiting_write + 3


@pytest.mark.parametrize("look", ["statistics", "active_connections", "addresses"])
async def test_a_server_of_callbacks_may_end_between_two_looks(monkeypatch: pytest.MonkeyPatch, look: str) -> None:
    async with serving(echo) as running:
        answers = iter([running, None])
        server = gain_trio.callbacks.EventServer(gain_trio.callbacks.EventHandler())
        monkeypatch.setattr(
            gain_trio.callbacks.EventServer, "_server", property(lambda _: next(answers)), raising=False
        )
        found, expected = getattr(server, look), getattr(running, look)
        assert (found() == expected()) if callable(found) else (found == expected)


# --- the log ---


def details(record: logging.LogRecord) -> dict[str, Any]:
    """The fields of a record, as a JSON formatter writes them."""
    shown: dict[str, Any] = json.loads(JsonFormatter().format(record))
    return shown


def record_with(extra: dict[str, Any], error: BaseException | None = None) -> logging.LogRecord:
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    return logging.getLogger("x").makeRecord("x", logging.WARNING, "f", 1, "text", (), exc_info, extra=extra)


def test_an_extra_does_not_take_the_place_of_what_a_line_says() -> None:
    found = details(record_with({"level": "debug", "time": 1, "exception": "none", "peer": "p"}))
    assert (found["level"], found["level_"], found["time_"], found["exception_"]) == ("warning", "debug", 1, "none")
    assert found["time"] != 1
    assert found["peer"] == "p"
    assert "exception" not in found


def test_what_json_does_not_have_is_written_as_text() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    for value in (math.nan, -math.inf, {(1, 2): 3}, cycle):
        text = JsonFormatter().format(record_with({"given": value, "other": 1.5}))
        found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        assert (found["given"], found["other"], found["message"]) == (str(value), 1.5, "text")


def test_an_object_without_a_text_loses_no_line() -> None:
    class Textless:
        def __repr__(self) -> str:
            raise DeliberateError

    found = details(record_with({"given": Textless(), "nested": [Textless()], "other": 1}))
    assert (found["given"].rpartition(".")[2], found["nested"], found["other"]) == ("Textless>", "<list>", 1)


def test_an_exception_that_was_never_raised_is_written() -> None:
    assert details(record_with({}, ValueError("the reason")))["exception"] == "ValueError: the reason"


async def test_connections_are_logged_with_their_particulars(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="gain_trio")
    async with serving(end_somehow, workers=2) as server:
        client = await trio.open_tcp_stream(*server.addresses[0])
        peer = "{}:{}".format(*client.socket.getsockname())
        await client.send_all(b"error\n")
        assert await receive_all(client) == b""
        await client.aclose()
        await until(lambda: server.active_connections == 0)
    found = [details(record) for record in caplog.records if hasattr(record, "connection")]
    opened, failed, closed = found
    assert [each["level"] for each in found] == ["debug", "error", "debug"]
    for each in found:
        assert (each["connection"], each["peer"], each["consumer"]) == (1, peer, 0)
        assert each["logger"] == "gain_trio"
    assert "cause" not in opened
    assert failed["cause"] == closed["cause"] == "error"
    assert "DeliberateError" in failed["exception"]
    assert (closed["bytes_received"], closed["bytes_sent"]) == (6, 0)
    assert peer in opened["message"]
    assert "(error)" in closed["message"]


async def test_levels(caplog: pytest.LogCaptureFixture) -> None:
    """Events of the network are logged as info, and details as debug."""
    caplog.set_level(logging.DEBUG, logger="gain_trio")
    async with serving(end_somehow) as server:
        client = await trio.open_tcp_stream(*server.addresses[0])
        await client.send_all(b"broken\n")
        await until(lambda: server.active_connections == 1)
        reset(client)
        await until(lambda: server.statistics().broken == 1)
        await server.drain(0)
    levels = {record.levelno: record.getMessage() for record in caplog.records}
    assert set(levels) == {logging.DEBUG, logging.INFO}
    [broke] = [record for record in caplog.records if getattr(record, "cause", "") == "broken" and record.levelno > 10]
    assert broke.levelno == logging.INFO


def test_the_json_formatter_takes_what_json_cannot() -> None:
    record = logging.makeLogRecord(
        {"name": "x", "levelname": "INFO", "msg": "%s at %s", "args": ("it", 5), "set": {1}, "stack_info": "here"}
    )
    shown = details(record)
    assert (shown["message"], shown["set"], shown["stack"]) == ("it at 5", "{1}", "here")
    assert shown["time"].endswith("+00:00")


async def test_a_connection_that_comes_when_the_server_is_being_cancelled_is_reset_and_counted() -> None:
    """An acceptor may have one in the very tick in which a deadline cancels all tasks, and consumers may be faster."""
    limit = ConnectionLimit(1)
    consumer = Consumer(0, ConsumerSettings(echo, limit=limit))
    async with trio.open_nursery() as nursery:
        await nursery.start(consumer.run)
        nursery.cancel_scope.cancel()
    connection, peer = await open_pair()
    async with peer:
        assert limit.take()
        consumer.hand_off(connection)
        with pytest.raises(trio.BrokenResourceError):
            await peer.receive()
    assert (consumer.connections, consumer.active, consumer.closed["cancelled"], limit.free) == (1, 0, 1, 1)

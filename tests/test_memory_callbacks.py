"""gain_trio.testing.serving_callbacks: event handlers in memory, with the driver and the errors of a server of sockets."""

from __future__ import annotations

import errno
import threading
from typing import Any

import pytest
import trio
from support.certificates import client_context, server_context
from support.descriptors import open_descriptors
from support.event_servers import AsyncRecorder, Recorder
from support.pairs import MEBIBYTE, pattern, receive_all
from support.workers import raises_alone
from trio.testing import MockClock, wait_all_tasks_blocked

from gain_trio import Connection, Marks, ServerStatistics
from gain_trio._transports._tls._tls_handshake import client_handshake
from gain_trio.callbacks import Config, Conn, EventHandler, EventServer, SlowReader
from gain_trio.testing import MemoryServer, serving_callbacks

pytestmark = [pytest.mark.connections, pytest.mark.one_backend]

SMALL = Marks(receive_high=1000, receive_low=100, send_high=1000)


BOTH = pytest.mark.parametrize("make", [Recorder, AsyncRecorder])


def write_back(conn: Conn, n: int) -> None:
    conn.write(conn.next(n))


def counters(server: MemoryServer[EventServer]) -> ServerStatistics:
    found = server.server.statistics()
    assert isinstance(found, ServerStatistics)
    return found


def cause_number(error: BaseException | None) -> int | None:
    """The errno of what on_close got."""
    return error.errno if isinstance(error, OSError) else None


@BOTH
async def test_callbacks_answer_and_hear_of_the_end(make: type[Recorder]) -> None:
    recorder = make({"on_read": write_back})
    before = open_descriptors()
    async with serving_callbacks(recorder) as server:
        assert isinstance(server.server, EventServer)
        assert recorder.server is server.server, "on_start has returned"
        client = server.connect()
        for _ in range(3):
            await client.send(b"hello")
            assert await client.receive_exactly(5) == b"hello"
        assert open_descriptors() == before
        await client.send_eof()
        assert await client.receive() == b""
        await wait_all_tasks_blocked()
        assert counters(server).accepted == 1
    assert recorder.numbers() == (1, 3, 3, 1), "accepted, read, written and closed"
    assert recorder.reasons == [None]


async def test_a_conn_of_memory_has_addresses_and_no_descriptor() -> None:
    found: list[Any] = []

    def look(conn: Conn) -> None:
        conn.set_no_delay(True)
        conn.set_keep_alive_period(30)
        conn.set_read_buffer(5000)
        found.extend((conn.fd, conn.local_addr, conn.remote_addr))

    recorder = Recorder({"on_accept": look})
    async with serving_callbacks(recorder) as server:
        server.connect(source_address=("192.0.2.1", 7))
        await wait_all_tasks_blocked()
    assert found == [-1, ("127.0.0.1", 80), ("192.0.2.1", 7)]
    assert not recorder.unexpected


async def test_a_large_message_comes_in_pieces_and_is_answered_whole() -> None:
    recorder = Recorder({"on_read": write_back})
    async with serving_callbacks(recorder, write_limit=2 * MEBIBYTE) as server, trio.open_nursery() as nursery:
        client = server.connect()
        nursery.start_soon(client.send, pattern(MEBIBYTE))
        assert await client.receive_exactly(MEBIBYTE) == pattern(MEBIBYTE)
    assert recorder.counts["on_read"] > 1


@BOTH
async def test_a_message_in_short_reads(make: type[Recorder]) -> None:
    def answer_lines(conn: Conn, _n: int) -> None:
        while b"\n" in conn.peek():
            conn.write(conn.next(conn.peek().index(b"\n") + 1).upper())

    recorder = make({"on_read": answer_lines})
    async with serving_callbacks(recorder) as server:
        client = server.connect()
        client.outgoing.room = 0
        await client.send(b"ab\ncd\n")
        for _ in range(6):
            client.outgoing.room = 1
            await wait_all_tasks_blocked()
        assert await client.receive_exactly(6) == b"AB\nCD\n"
    assert recorder.counts["on_read"] == 6


@BOTH
async def test_a_client_that_is_lost(make: type[Recorder]) -> None:
    recorder = make({"on_read": lambda conn, n: conn.discard(n)})
    async with serving_callbacks(recorder) as server:
        client = server.connect()
        client.outgoing.reset_after = 3
        with pytest.raises(trio.BrokenResourceError):
            await client.send(b"hello")
        await wait_all_tasks_blocked()
        assert server.server.active_connections == 0
        assert counters(server).broken == 1
    assert recorder.numbers() == (1, 1, 0, 1)
    assert [cause_number(reason) for reason in recorder.reasons] == [errno.ECONNRESET]


@pytest.mark.parametrize("policy", ["close", "raise"])
async def test_a_client_that_does_not_read(policy: Any) -> None:
    refused: list[Exception] = []

    def flood(conn: Conn, n: int) -> None:
        conn.discard(n)
        try:
            for _ in range(3):
                conn.write(bytes(1000))
        except SlowReader as error:
            refused.append(error)
            conn.close()

    recorder = Recorder({"on_read": flood})
    async with serving_callbacks(recorder, write_limit=1500, write_policy=policy) as server:
        client = server.connect()
        client.incoming.room = 0
        await client.send(b"x")
        await wait_all_tasks_blocked()
        if policy == "raise":
            client.incoming.room = None
            assert len(await receive_all(client)) == 2000
        else:
            with pytest.raises(trio.BrokenResourceError):
                await receive_all(client)
            [reason] = recorder.reasons
            refused.append(reason)  # type: ignore[arg-type]  # the assertion says which it is
    [slow] = refused
    assert isinstance(slow, SlowReader)
    assert "Config.write_limit is 1500" in str(slow)


async def test_writes_are_reported_when_the_peer_has_taken_them() -> None:
    written: list[int] = []
    recorder = Recorder({"on_read": write_back, "on_write": lambda _conn, n: written.append(n)})
    async with serving_callbacks(recorder) as server:
        client = server.connect()
        client.incoming.room = 2
        await client.send(b"hello")
        await wait_all_tasks_blocked()
        assert written == [2]
        client.incoming.room = None
        await wait_all_tasks_blocked()
        assert written == [2, 3]


async def test_a_silent_client_takes_no_time(autojump_clock: MockClock) -> None:
    recorder = Recorder({"on_accept": lambda conn: conn.set_read_deadline(trio.current_time() + 3600)})
    async with serving_callbacks(recorder) as server:
        start = trio.current_time()
        assert await server.connect().receive() == b""
        assert trio.current_time() - start == pytest.approx(3600)
    assert [type(reason) for reason in recorder.reasons] == [trio.TooSlowError]


async def test_a_write_deadline(autojump_clock: MockClock) -> None:
    def answer(conn: Conn, n: int) -> None:
        conn.set_write_deadline(trio.current_time() + 100)
        write_back(conn, n)

    recorder = Recorder({"on_read": answer})
    async with serving_callbacks(recorder) as server:
        client = server.connect()
        client.incoming.room = 0
        await client.send(b"x")
        start = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):
            await client.receive()
        assert trio.current_time() - start == pytest.approx(100, abs=2)
    assert [type(reason) for reason in recorder.reasons] == [trio.TooSlowError]


async def test_on_read_in_threads_writes_to_memory() -> None:
    own = threading.get_ident()
    threads: set[int] = set()

    def answer(conn: Conn, n: int) -> None:
        threads.add(threading.get_ident())
        write_back(conn, n)

    recorder = Recorder({"on_read": answer})
    async with serving_callbacks(recorder, async_handler=True, pool=True, pool_size=2) as server:
        client = server.connect()
        for _ in range(3):
            await client.send(b"hello")
            assert await client.receive_exactly(5) == b"hello"
    assert threads
    assert own not in threads
    assert not recorder.unexpected


async def test_a_shutdown_answers_what_has_arrived() -> None:
    recorder = Recorder({"on_read": write_back})
    async with serving_callbacks(recorder, graceful_timeout=10) as server:
        client = server.connect()
        await client.send(b"x")
        assert await client.receive() == b"x"
        server.server.async_shutdown()
        assert await client.receive() == b""
        with pytest.raises(ConnectionRefusedError):
            server.connect()
    assert recorder.reasons == [None]


async def test_callbacks_with_tls() -> None:
    recorder = Recorder({"on_read": write_back})
    async with serving_callbacks(recorder, ssl_context=server_context()) as server:
        plain = server.connect()
        client = await client_handshake(plain, client_context(), Marks(), "it", "localhost", https_compatible=False)
        await client.send(b"hello")
        assert await client.receive_exactly(5) == b"hello"
        await client.aclose()
        await wait_all_tasks_blocked()
    assert recorder.numbers() == (1, 1, 1, 1)


async def test_limits_and_errors_of_accept(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder({"on_read": write_back})
    async with serving_callbacks(recorder, max_connections=1) as server:
        server.fail_accept(errno.EMFILE)
        first, second = server.connect(), server.connect()
        await second.send(b"2")
        await first.send(b"1")
        assert await first.receive() == b"1"
        assert server.server.active_connections == 1
        await first.aclose()
        assert await second.receive() == b"2"
    [record] = caplog.records
    assert "EMFILE" in record.getMessage()


async def test_a_callback_that_raises_closes_its_connection_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_conn: Conn, _n: int) -> None:
        raise LookupError("the callback's own")

    async with serving_callbacks(Recorder({"on_read": fail})) as server:
        client = server.connect()
        await client.send(b"x")
        assert await receive_all(client) == b""
    assert "the callback's own" in caplog.text


async def test_with_strict_the_error_of_a_callback_leaves_the_block() -> None:
    def fail(_conn: Conn, _n: int) -> None:
        raise LookupError("the callback's own")

    with raises_alone(LookupError, "the callback's own"):
        async with serving_callbacks(Recorder({"on_read": fail}), strict=True) as server:
            await server.connect().send(b"x")
            await trio.sleep_forever()


async def test_what_leaves_on_start_is_raised_as_it_is() -> None:
    class Fails(EventHandler):
        def on_start(self, _server: EventServer) -> None:
            raise LookupError("no database")

    with pytest.raises(LookupError, match="no database"):
        async with serving_callbacks(Fails()):
            pytest.fail("the block begins when on_start has returned")


async def test_options_are_those_of_a_config_and_what_stands_beside_it() -> None:
    recorder = AsyncRecorder({"on_read": write_back})
    config = Config(workers=2, write_limit=10)
    async with serving_callbacks(recorder, config=config, marks=SMALL) as server:
        for _ in range(4):
            client = server.connect()
            await client.send(b"x")
            assert await client.receive() == b"x"
        assert counters(server).connections_by_consumer == (2, 2)
        assert _served_marks(server) is SMALL


def _served_marks(server: MemoryServer[Any]) -> Marks:
    client: Any = server.connect()
    served: Connection = client._peer
    return served._marks


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tcp_keep_alive": 5}, ValueError, "tcp_keep_alive is about sockets, processes or signals.*leave it out"),
        ({"cpu_affinity": True}, ValueError, "cpu_affinity is about"),
        ({"architecture": "socket_sharding"}, ValueError, "architecture is about"),
        ({"max_sq_entries": 8, "cbpf": True}, ValueError, "cbpf and max_sq_entries are about.*leave them out"),
        ({"processes": 2}, ValueError, "processes is about"),
        ({"control": "/run/x"}, ValueError, "control is about"),
        ({"write_limits": 5}, TypeError, "no option 'write_limits'"),
        ({"config": 5}, TypeError, "config must be a gain_trio.callbacks.Config"),
    ],
)
async def test_options_that_make_no_sense(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        async with serving_callbacks(Recorder(), **options):
            pytest.fail("it serves")


async def test_a_handler_of_connections_is_no_event_handler() -> None:
    async def handler(_connection: Connection) -> None: ...

    wrong: Any = handler
    with pytest.raises(TypeError, match="EventHandler"):
        async with serving_callbacks(wrong):
            pytest.fail("it serves")

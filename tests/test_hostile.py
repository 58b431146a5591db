"""Clients and callbacks at their worst: none stops a server, holds a connection for ever, or loses bytes."""

from __future__ import annotations

import asyncio
import functools
import logging
import re

import pytest
import trio
from support.event_runs import called, dial, in_time, serving_events
from support.event_servers import Recorder
from support.http_answers import GET, statuses
from support.pairs import pattern, receive_all, receive_exactly, until
from trio.testing import MockClock, wait_all_tasks_blocked

import gain_trio
from gain_trio import Marks
from gain_trio._http import _http_handler as _http
from gain_trio._http._http_handler import http
from gain_trio.asyncio_bridge import ProtocolHandler
from gain_trio.callbacks import Conn, SlowReader

pytestmark = pytest.mark.connections

LOCAL = "tcp://127.0.0.1:0"
SMALL_MARKS = Marks(receive_high=1000, receive_low=100)


# --- callbacks ---


async def test_an_on_write_that_always_writes_leaves_their_turn_to_others_and_ends() -> None:
    def on_write(conn: Conn, _n: int) -> None:
        conn.write(b"x")

    recorder = Recorder({"on_accept": lambda conn: (conn.set_linger(1), conn.write(b"x")), "on_write": on_write})
    async with serving_events(recorder) as server:
        client = await dial(server)
        await called(recorder, "on_write", 100)
        await client.send_eof()
        await called(recorder, "on_close")
        await client.aclose()
    assert [type(reason) for reason in recorder.reasons] == [SlowReader]
    assert not recorder.unexpected


async def test_an_on_write_that_writes_when_its_server_is_cancelled_has_not_failed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = Recorder()
    async with trio.open_nursery() as nursery:

        def on_read(conn: Conn, n: int) -> None:
            conn.write(conn.next(n))
            nursery.cancel_scope.cancel()

        recorder.behaviour = {"on_read": on_read, "on_write": lambda conn, _n: conn.write(b"more")}
        server = await nursery.start(gain_trio.callbacks.serve, recorder, LOCAL)
        client = await dial(server)
        await client.send_all(b"x")
        await trio.sleep_forever()
    await client.aclose()
    assert recorder.counts["on_close"] == 1
    assert not recorder.unexpected
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("seconds", [1, 1000])
async def test_an_async_on_close_that_has_begun_has_its_time_when_the_server_is_cancelled(
    seconds: float, autojump_clock: MockClock
) -> None:
    begun, ended = trio.Event(), []

    class Careful(Recorder):
        async def on_close(self, _conn: Conn, _err: BaseException | None) -> None:
            begun.set()
            await trio.sleep(seconds)
            ended.append(seconds)

    async with serving_events(Careful()) as server:
        client = await dial(server)
        await client.aclose()
        await begun.wait()
        before = trio.current_time()
    assert trio.current_time() - before == pytest.approx(min(seconds, 5))
    assert ended == ([seconds] if seconds < 5 else [])


async def test_what_an_async_on_close_raises_is_logged_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    class Fails(Recorder):
        async def on_close(self, conn: Conn, err: BaseException | None) -> None:
            await trio.lowlevel.checkpoint()
            self._called("on_close", conn, err)
            raise KeyError("in on_close")

    recorder = Fails()
    async with serving_events(recorder) as server:
        client = await dial(server)
        await client.aclose()
        await until(lambda: server.statistics().handler_errors == 1)
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info is not None
    assert record.exc_info[0] is KeyError
    caplog.clear()


# --- callbacks in threads, that do not take what has arrived ---


async def test_a_stalled_connection_is_told_what_was_written_and_can_read_then() -> None:
    """Back-pressure by hand: nothing is taken before the answer has left."""
    received = bytearray()

    def on_write(conn: Conn, _n: int) -> None:
        received.extend(conn.next())

    recorder = Recorder({"on_read": lambda conn, _n: conn.write(b"!"), "on_write": on_write})
    async with serving_events(recorder, async_handler=True, marks=SMALL_MARKS) as server:
        client = await dial(server)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, pattern(200_000))
            await until(lambda: len(received) == 200_000)
        await client.aclose()
        await called(recorder, "on_close")
    assert bytes(received) == pattern(200_000)
    assert not recorder.unexpected


async def test_a_stalled_connection_can_be_idle(autojump_clock: MockClock) -> None:
    recorder = Recorder()
    async with serving_events(recorder, async_handler=True, marks=SMALL_MARKS, idle_timeout=30) as server:
        going, ended = await dial(server), await dial(server)
        await going.send_all(bytes(2000))
        await ended.send_all(bytes(1000))
        await until(lambda: recorder.counts["on_read"] >= 2)
        await ended.send_eof()
        await in_time(lambda: recorder.counts["on_close"] == 2)
        await going.aclose()
        await ended.aclose()
    assert [type(reason) for reason in recorder.reasons] == [TimeoutError, TimeoutError]


async def test_what_a_stalled_connection_holds_can_be_taken_after_the_peer_has_ended() -> None:
    conns: list[Conn] = []
    seen: list[bytes] = []

    def on_read(conn: Conn, n: int) -> None:
        if conns:
            seen.append(conn.next(n))
        conns.append(conn)

    recorder = Recorder({"on_read": on_read})
    async with serving_events(recorder, async_handler=True, marks=SMALL_MARKS) as server:
        client = await dial(server)
        await client.send_all(pattern(1500)[:1000])
        await until(lambda: recorder.counts["on_read"] >= 1 and conns[0].inbound_buffered == 1000)
        await wait_all_tasks_blocked()
        await client.send_all(pattern(1500)[1000:])
        await client.send_eof()
        await wait_all_tasks_blocked()
        assert recorder.numbers() == (1, 1, 0, 0)
        assert conns[0].next() == pattern(1500)[:1000]
        await called(recorder, "on_close")
        await client.aclose()
    assert b"".join(seen) == pattern(1500)[1000:]
    assert recorder.reasons == [None]


# --- protocols ---


class KeepsOpen(asyncio.Protocol):
    """Goes on after the peer has ended its side, and has nothing to say."""

    def __init__(self, *, pause: bool, lost: list[Exception | None]) -> None:
        self.pause = pause
        self.lost = lost

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if self.pause:
            transport.pause_reading()

    def eof_received(self) -> bool:
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


@pytest.mark.parametrize("pause", [False, True], ids=["reading", "paused"])
async def test_a_protocol_that_keeps_a_connection_open_can_be_idle(pause: bool, autojump_clock: MockClock) -> None:
    lost: list[Exception | None] = []
    handler = ProtocolHandler(functools.partial(KeepsOpen, pause=pause, lost=lost))
    async with trio.open_nursery() as nursery:
        server = await nursery.start(functools.partial(gain_trio.serve, handler, LOCAL, idle_timeout=30))
        client = await trio.open_tcp_stream("127.0.0.1", server.addresses[0][1])
        await client.send_all(b"x")
        await client.send_eof()
        before = trio.current_time()
        await in_time(lambda: bool(lost))
        assert trio.current_time() - before <= 61
        await until(lambda: server.statistics().idle == 1)
        await client.aclose()
        nursery.cancel_scope.cancel()
    assert [type(error) for error in lost] == [TimeoutError]


# --- the handler http ---


async def test_requests_that_overlap_what_is_received_have_their_time_each(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(gain_trio.serve, http, LOCAL)
        client = await gain_trio.connect(f"tcp://127.0.0.1:{server.addresses[0][1]}")
        await client.send(GET[:9])
        for _ in range(10):
            await trio.sleep(_http.REQUEST_TIMEOUT / 2)
            await client.send(GET[9:] + GET[:9])
        await client.send(GET[9:])
        await client.send_eof()
        assert statuses(await receive_all(client)) == [200] * 11
        await client.aclose()
        nursery.cancel_scope.cancel()


async def test_who_does_not_take_its_answers_is_reset(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(gain_trio.serve, http, LOCAL)
        client = await trio.open_tcp_stream("127.0.0.1", server.addresses[0][1])
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await client.send_all(GET * 1000)
        await until(lambda: server.statistics().too_slow == 1)
        await client.aclose()
        nursery.cancel_scope.cancel()


def without_date(answer: bytes) -> bytes:
    """An answer without its time, in which a second may have begun."""
    kept, count = re.subn(rb"\r\nDate: [^\r]+", b"", answer)
    assert count == 1
    return kept


async def test_draining_ends_idle_connections_and_lets_requests_end(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(gain_trio.serve, http, LOCAL)
        address = f"tcp://127.0.0.1:{server.addresses[0][1]}"
        idle, asking, silent = [await gain_trio.connect(address) for _ in range(3)]
        for client in (idle, asking):
            await client.send(GET)
            answer = await client.receive_until(b"Hello, World!")
            assert statuses(answer) == [200]
        await asking.send(GET[:10])
        await wait_all_tasks_blocked()
        nursery.start_soon(server.drain, 1000)
        for client in (idle, silent):
            assert await client.receive() == b""
            await client.aclose()
        await trio.sleep(10)
        await asking.send(GET[10:])
        assert without_date(await receive_exactly(asking, len(answer))) == without_date(answer)
        assert await asking.receive() == b""
        await asking.aclose()
        before = trio.current_time()
        await until(lambda: server.active_connections == 0)
        assert trio.current_time() - before <= _http.REQUEST_TIMEOUT

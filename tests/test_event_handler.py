"""Callbacks in a nursery: their errors, and what ends a connection; TLS, Unix sockets and datagrams."""

from __future__ import annotations

import logging
import os
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
import trio
from support.certificates import client_context, server_context
from support.event_runs import BOTH, THREADS, called, dial, in_time, serving_events, write_back
from support.event_servers import Recorder
from support.pairs import MEBIBYTE, pattern, receive_all, receive_exactly, until
from support.servers import LOCAL
from support.sockets import reset
from trio.testing import MockClock, wait_all_tasks_blocked

import gain_trio
from gain_trio._callback_base import PacedDelivery
from gain_trio.callbacks import Conn, EventHandler, EventServer, SlowReader

pytestmark = pytest.mark.connections


# --- how a connection ends ---


@BOTH
@THREADS
async def test_a_reset_is_told_with_its_error(make: type[Recorder], async_handler: bool) -> None:
    recorder = make({"on_read": write_back})
    async with serving_events(recorder, async_handler=async_handler) as server:
        client = await dial(server)
        await client.send_all(b"hello")
        assert await receive_exactly(client, 5) == b"hello"
        reset(client)
        await called(recorder, "on_close")
        await until(lambda: server.active_connections == 0)
    [error] = recorder.reasons
    assert isinstance(error, ConnectionResetError)
    assert recorder.numbers()[3] == 1


async def test_what_came_before_a_reset_is_told_before_it() -> None:
    seen: list[bytes] = []
    recorder = Recorder({"on_read": lambda conn, n: seen.append(conn.next(n))})
    async with serving_events(recorder) as server:
        client = await dial(server)
        await client.send_all(b"last words")
        await called(recorder, "on_read")
        reset(client)
        await called(recorder, "on_close")
    assert b"".join(seen) == b"last words"


async def test_the_rest_is_not_read_when_a_write_has_found_the_peer_gone(tmp_path: Path) -> None:
    is_gone = trio.Event()
    sizes: list[int] = []

    class Answers(EventHandler):
        async def on_accept(self, _conn: Conn) -> None:
            await is_gone.wait()

        def on_read(self, conn: Conn, n: int) -> None:
            sizes.append(conn.discard(n))
            conn.write(b"answer")

    async with serving_events(Answers(), f"unix://{tmp_path}/socket") as server:
        async with await gain_trio.connect(server.addresses[0]) as client:
            await client.send(bytes(8 * PacedDelivery.FIRST))
        await wait_all_tasks_blocked()
        is_gone.set()
        await until(lambda: server.active_connections == 0)
    assert len(sizes) == 1
    assert sizes[0] <= PacedDelivery.FIRST


@THREADS
async def test_cancelling_calls_on_close_for_every_connection_once(async_handler: bool) -> None:
    closed: list[tuple[Conn, BaseException | None]] = []
    recorder = Recorder({"on_close": lambda conn, err: closed.append((conn, err))})
    async with serving_events(recorder, async_handler=async_handler, workers=3) as server:
        clients = [await dial(server) for _ in range(20)]
        await called(recorder, "on_accept", 20)
    assert len({conn for conn, _err in closed}) == len(closed) == 20
    assert {err for _conn, err in closed} == {None}
    assert {conn.remote_addr for conn, _err in closed} == {client.socket.getsockname() for client in clients}
    for client in clients:
        assert await client.receive_some() == b""
        await client.aclose()


async def test_an_async_on_close_may_wait_while_the_server_is_cancelled() -> None:
    ended: list[Conn] = []

    class Careful(Recorder):
        async def on_close(self, conn: Conn, err: BaseException | None) -> None:
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            ended.append(conn)
            assert err is None

    recorder = Careful()
    async with serving_events(recorder) as server:
        client = await dial(server)
        await called(recorder, "on_accept")
    assert len(ended) == 1
    await client.aclose()


async def test_an_async_on_close_cannot_keep_a_cancelled_server_for_ever(autojump_clock: MockClock) -> None:
    class Stubborn(Recorder):
        async def on_close(self, _conn: Conn, _err: BaseException | None) -> None:
            await trio.sleep_forever()

    recorder = Stubborn()
    async with serving_events(recorder) as server:
        client = await dial(server)
        await called(recorder, "on_accept")
        before = trio.current_time()
    assert trio.current_time() - before == pytest.approx(5)
    await client.aclose()


async def test_cancelling_with_something_unsent_says_so() -> None:
    recorder = Recorder({"on_accept": lambda conn: conn.write(bytes(32 * MEBIBYTE))})
    async with serving_events(recorder) as server:
        client = await dial(server)
        await called(recorder, "on_accept")
        await wait_all_tasks_blocked()
    [error] = recorder.reasons
    assert isinstance(error, ConnectionAbortedError)
    with pytest.raises(trio.BrokenResourceError):
        await receive_all(client)
    await client.aclose()


@BOTH
@THREADS
@pytest.mark.parametrize("where", ["on_accept", "on_read", "on_write"])
async def test_an_exception_closes_its_connection_only(
    where: str, make: type[Recorder], async_handler: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Mishap(Exception):
        pass

    def fail_once(conn: Conn, *_: object) -> None:
        if recorder.counts[where] == 0:
            raise Mishap("once")

    def on_read(conn: Conn, n: int) -> None:
        write_back(conn, n)
        if where == "on_read":
            fail_once(conn)

    recorder = make({"on_read": on_read} if where == "on_read" else {"on_read": on_read, where: fail_once})
    async with serving_events(recorder, async_handler=async_handler) as server:
        first = await dial(server)
        try:
            await first.send_all(b"hello")
            await receive_all(first)
        except trio.BrokenResourceError:
            pass
        await called(recorder, "on_close")
        second = await dial(server)
        await second.send_all(b"hello")
        assert await receive_exactly(second, 5) == b"hello"
        await first.aclose()
        await second.aclose()
        await called(recorder, "on_close", 2)
        assert server.statistics().handler_errors == 1  # type: ignore[union-attr]
    assert isinstance(recorder.reasons[0], Mishap)
    assert recorder.reasons[1:] == [None]
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert record.exc_info[0] is Mishap


async def test_an_exception_in_on_close_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_conn: Conn, _err: object) -> None:
        raise ZeroDivisionError

    recorder = Recorder({"on_close": fail})
    async with serving_events(recorder) as server:
        for number in range(1, 3):
            await (await dial(server)).aclose()
            await called(recorder, "on_close", number)
        await until(lambda: server.active_connections == 0)
    assert [record.levelno for record in caplog.records if record.exc_info] == [logging.ERROR] * 2
    assert recorder.counts["on_close"] == 2


async def test_an_exception_in_on_start_ends_the_server() -> None:
    def fail(_server: EventServer) -> None:
        raise LookupError("no configuration") from KeyError("file")

    with pytest.raises(LookupError, match="no configuration") as caught:
        await gain_trio.callbacks.serve(Recorder({"on_start": fail}), LOCAL)
    assert isinstance(caught.value.__cause__, KeyError)


async def test_keyboard_interrupt_is_not_kept() -> None:
    def interrupt(conn: Conn, n: int) -> None:
        raise KeyboardInterrupt

    recorder = Recorder({"on_read": interrupt})
    with pytest.raises(BaseException) as caught:
        async with serving_events(recorder) as server:
            client = await dial(server)
            await client.send_all(b"!")
            await trio.sleep_forever()
    assert "KeyboardInterrupt" in repr(caught.value)
    assert [type(reason) for reason in recorder.reasons] == [KeyboardInterrupt]
    await client.aclose()


@THREADS
async def test_close_sends_fin_at_once_though_the_task_waits(async_handler: bool) -> None:
    """The program closes from another task, and while a receive is pending."""
    conns: list[Conn] = []
    recorder = Recorder({"on_accept": conns.append})
    async with serving_events(recorder, async_handler=async_handler) as server:
        client = await dial(server)
        await called(recorder, "on_accept")
        await wait_all_tasks_blocked()
        conns[0].close()
        assert await client.receive_some() == b""
        await called(recorder, "on_close")
        await client.aclose()
    assert recorder.reasons == [None]


async def test_a_connection_closed_by_another_connections_callback() -> None:
    conns: list[Conn] = []

    def kick(conn: Conn, n: int) -> None:
        conn.next(n)
        for other in conns:
            if other is not conn:
                other.write(b"bye")
                other.close()

    recorder = Recorder({"on_accept": conns.append, "on_read": kick})
    async with serving_events(recorder) as server:
        first = await dial(server)
        await called(recorder, "on_accept")
        second = await dial(server)
        await called(recorder, "on_accept", 2)
        await second.send_all(b"kick")
        assert await receive_all(first) == b"bye"
        await first.aclose()
        await second.aclose()
        await called(recorder, "on_close", 2)
    assert recorder.reasons == [None, None]


async def test_what_was_written_arrives_though_the_peer_has_shut_down() -> None:
    data = pattern(4 * MEBIBYTE)
    recorder = Recorder({"on_read": lambda conn, n: (conn.discard(n), conn.write(data))})
    async with serving_events(recorder) as server:
        client = await dial(server)
        await client.send_all(b"?")
        await client.send_eof()
        assert await receive_all(client) == data
        await client.aclose()
        await called(recorder, "on_close")
    assert recorder.reasons == [None]


async def test_the_numbers_of_on_write_add_up() -> None:
    data = pattern(4 * MEBIBYTE)
    written: list[int] = []
    recorder = Recorder(
        {"on_accept": lambda conn: (conn.write(data), conn.close()), "on_write": lambda _conn, n: written.append(n)}
    )
    async with serving_events(recorder) as server:
        client = await dial(server)
        assert await receive_all(client) == data
        await called(recorder, "on_close")
        await client.aclose()
    assert sum(written) == len(data)
    assert 0 not in written


async def test_a_closed_connection_that_is_not_read_is_reset_after_a_time(autojump_clock: MockClock) -> None:
    recorder = Recorder({"on_accept": lambda conn: (conn.write(bytes(32 * MEBIBYTE)), conn.close())})
    async with serving_events(recorder) as server:
        client = await dial(server)
        before = trio.current_time()
        await called(recorder, "on_accept")
        await in_time(lambda: bool(recorder.reasons))
        assert trio.current_time() - before == pytest.approx(5, abs=1)
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(client)
        await client.aclose()
    assert [type(reason) for reason in recorder.reasons] == [SlowReader]


async def test_a_time_to_linger_bounds_the_end(autojump_clock: MockClock) -> None:
    def on_accept(conn: Conn) -> None:
        conn.set_linger(60)
        conn.write(bytes(32 * MEBIBYTE))
        conn.close()

    recorder = Recorder({"on_accept": on_accept})
    async with serving_events(recorder) as server:
        client = await dial(server)
        before = trio.current_time()
        await called(recorder, "on_accept")
        await in_time(lambda: bool(recorder.reasons))
        assert trio.current_time() - before == pytest.approx(60, abs=2)
        await client.aclose()
    assert not recorder.unexpected


@pytest.mark.parametrize("end", ["close", "error", "deadline", "reset", "cancelled"])
async def test_no_end_waits_in_close_2_for_the_peer(end: str) -> None:
    """A lingering close(2) would block the run, so every closed socket has a linger time of 0, whatever the end is."""
    copies: list[socket.socket] = []

    def on_read(conn: Conn, n: int) -> None:
        conn.discard(n)
        conn.set_linger(3600)
        copies.append(socket.socket(fileno=os.dup(conn.fd)))
        conn.write(b"taken by the kernel")

    def on_write(conn: Conn, _n: int) -> None:
        if end == "close":
            conn.close()
        elif end == "error":
            raise LookupError("the program's own")
        elif end == "deadline":
            conn.set_read_deadline(trio.current_time())

    recorder = Recorder({"on_read": on_read, "on_write": on_write})
    async with serving_events(recorder) as server:
        client = await dial(server)
        await client.send_all(b"?")
        await called(recorder, "on_write")
        if end == "reset":
            reset(client)
        if end != "cancelled":
            await called(recorder, "on_close")
    [copy] = copies
    with copy:
        is_on, seconds = struct.unpack("ii", copy.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))
    assert not is_on or seconds == 0
    await client.aclose()


async def test_the_properties_reach_the_socket() -> None:
    seen: list[bytes | int] = []

    def on_accept(conn: Conn) -> None:
        conn.set_linger(7)
        conn.set_no_delay(False)
        conn.set_keep_alive_period(11)
        with socket.socket(fileno=socket.dup(conn.fd)) as sock:
            seen.append(sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))
            seen.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            seen.append(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
            seen.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL))
        conn.set_linger(-1)
        with socket.socket(fileno=socket.dup(conn.fd)) as sock:
            seen.append(sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 4))
        for bad in (0, -1, 0.5, float("inf"), float("nan")):
            with pytest.raises(gain_trio.callbacks.InvalidDuration, match="at least 1"):
                conn.set_keep_alive_period(bad)

    recorder = Recorder({"on_accept": on_accept})
    async with serving_events(recorder) as server:
        client = await dial(server)
        await called(recorder, "on_accept")
        await client.aclose()
    assert not recorder.unexpected
    assert seen == [struct.pack("ii", 1, 7), 0, 1, 11, struct.pack("i", 0)]


# --- other transports ---


@BOTH
@THREADS
async def test_tls(make: type[Recorder], async_handler: bool) -> None:
    data = pattern(MEBIBYTE)
    recorder = make({"on_accept": lambda conn: conn.write(b"welcome"), "on_read": write_back})
    async with serving_events(
        recorder, ssl_context=server_context(), async_handler=async_handler, write_limit=4 * MEBIBYTE
    ) as server:
        address = f"tcp://127.0.0.1:{server.addresses[0][1]}"
        client = await gain_trio.connect(address, ssl_context=client_context())
        assert await receive_exactly(client, 7) == b"welcome"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, data)
            assert await receive_exactly(client, len(data)) == data
        await client.aclose()
        await called(recorder, "on_close")
    assert recorder.reasons == [None]
    assert recorder.counts["on_write"] >= 2
    assert not recorder.unexpected


async def test_on_write_is_not_told_of_what_tls_sends_of_its_own() -> None:
    conns: list[Any] = []
    written: list[int] = []

    def on_accept(conn: Any) -> None:
        conns.append(conn)
        conn._connection._below._send_nowait(b"as tickets and answers are sent")

    recorder = Recorder({"on_accept": on_accept, "on_write": lambda _conn, n: written.append(n)})
    async with serving_events(recorder, ssl_context=server_context()) as server:
        address = f"tcp://127.0.0.1:{server.addresses[0][1]}"
        client = await gain_trio.connect(address, ssl_context=client_context())
        await called(recorder, "on_accept")
        await wait_all_tasks_blocked()
        assert conns[0].outbound_buffered == 0
        conns[0].write(b"hello")
        await called(recorder, "on_write")
        client.abort()
    assert written == [5]


async def test_tls_closes_behind_what_was_written() -> None:
    data = pattern(4 * MEBIBYTE)
    recorder = Recorder({"on_accept": lambda conn: (conn.write(data), conn.close())})
    async with serving_events(recorder, ssl_context=server_context()) as server:
        address = f"tcp://127.0.0.1:{server.addresses[0][1]}"
        client = await gain_trio.connect(address, ssl_context=client_context())
        assert await receive_all(client) == data
        await client.aclose()
        await called(recorder, "on_close")
    assert recorder.reasons == [None]


@THREADS
async def test_unix(tmp_path: Path, async_handler: bool) -> None:
    recorder = Recorder({"on_accept": lambda conn: not_tcp(conn), "on_read": write_back})

    def not_tcp(conn: Conn) -> None:
        with pytest.raises(gain_trio.callbacks.NotSupported, match="TCP"):
            conn.set_no_delay(True)
        with pytest.raises(gain_trio.callbacks.NotSupported, match="TCP"):
            conn.set_keep_alive_period(60)

    async with serving_events(recorder, f"unix://{tmp_path}/app.sock", async_handler=async_handler):
        client = await gain_trio.connect(f"unix://{tmp_path}/app.sock")
        await client.send(b"hello")
        assert await receive_exactly(client, 5) == b"hello"
        await client.aclose()
        await called(recorder, "on_close")
    assert recorder.numbers() == (1, 1, 1, 1)
    assert not recorder.unexpected


async def test_an_error_in_a_datagrams_callback(caplog: pytest.LogCaptureFixture) -> None:
    def on_read(conn: Conn, n: int) -> None:
        if conn.next(n) == b"bad":
            raise ZeroDivisionError
        conn.write(b"good")

    recorder = Recorder({"on_read": on_read})
    async with serving_events(recorder, "udp://127.0.0.1:0") as server:
        with trio.socket.socket(type=socket.SOCK_DGRAM) as client:
            await client.connect(server.addresses[0])
            await client.send(b"bad")
            await client.send(b"fine")
            assert await client.recv(100) == b"good"
    assert [record.exc_info is not None for record in caplog.records] == [True]
    assert recorder.numbers() == (0, 2, 1, 0)


async def test_what_a_datagrams_callback_writes_is_one_datagram() -> None:
    def on_read(conn: Conn, n: int) -> None:
        assert n == conn.inbound_buffered
        conn.write(b"one ")
        conn.write(bytearray(b"datagram"))
        with pytest.raises(ValueError, match="a datagram holds"):
            conn.write(bytes(65536))
        with pytest.raises(gain_trio.callbacks.NotSupported):
            conn.set_deadline(1)
        with pytest.raises(gain_trio.callbacks.NotSupported):
            conn.set_no_delay(True)
        conn.close()

    recorder = Recorder({"on_read": on_read})
    async with serving_events(recorder, "udp://127.0.0.1:0", socket_recv_buffer_size=1 << 20) as server:
        with trio.socket.socket(type=socket.SOCK_DGRAM) as client:
            await client.connect(server.addresses[0])
            await client.send(b"")
            assert await client.recv(100) == b"one datagram"
    assert not recorder.unexpected


async def test_tls_from_other_threads() -> None:
    conns: list[Conn] = []
    recorder = Recorder({"on_accept": conns.append})

    def use(conn: Conn) -> None:
        for number in range(100):
            conn.write(b"%03d " % number)
        conn.close()

    async with serving_events(recorder, ssl_context=server_context()) as server:
        address = f"tcp://127.0.0.1:{server.addresses[0][1]}"
        client = await gain_trio.connect(address, ssl_context=client_context())
        await called(recorder, "on_accept")
        await trio.to_thread.run_sync(use, conns[0])
        assert await receive_all(client) == b"".join(b"%03d " % number for number in range(100))
        await client.aclose()
        await called(recorder, "on_close")
    assert recorder.reasons == [None]


async def test_a_callbacks_nursery_that_is_cancelled_is_no_error() -> None:
    class Busy(Recorder):
        async def on_read(self, conn: Conn, n: int) -> None:
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(trio.sleep_forever)
                self._called("on_read", conn, n)

    recorder = Busy()
    async with serving_events(recorder) as server:
        client = await dial(server)
        await client.send_all(b"?")
        await called(recorder, "on_read")
        await wait_all_tasks_blocked()
    assert recorder.reasons == [None]
    await client.aclose()

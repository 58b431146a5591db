"""Callbacks in a nursery: their errors, what ends a connection, and the limits."""

from __future__ import annotations

import errno
import gc
import logging
import os
import socket
import struct
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
from support.certificates import client_context, server_context
from support.descriptors import descriptor_limit, next_descriptor
from support.event_runs import BOTH, THREADS, called, dial, in_time, serving_events, write_back
from support.event_servers import Recorder
from support.pairs import MEBIBYTE, PATIENCE, fill_kernel, pattern, receive_all, receive_exactly, until
from support.runs import WaitCounter
from support.servers import LOCAL
from support.sockets import reset
from trio.testing import MockClock, wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection, Marks
from gain_trio._callback_base import PacedDelivery
from gain_trio.callbacks import Conn, ConnectionClosed, EventHandler, EventServer, SlowReader
from gain_trio.callbacks._stream_conn import StreamConn
from gain_trio.callbacks._stream_driver import StreamDriver

pytestmark = pytest.mark.connections

T = TypeVar("T")


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


# --- limits ---


async def test_a_slow_reader_is_closed() -> None:
    """The reader costs no more than the limit and one write, and the server goes on."""
    unsent: list[int] = []

    def flood(conn: Conn, n: int) -> None:
        conn.discard(n)
        while conn.write(bytes(65536)):
            unsent.append(conn.outbound_buffered)

    recorder = Recorder({"on_read": flood})
    async with serving_events(recorder, write_limit=MEBIBYTE) as server:
        client = await dial(server)
        await client.send_all(b"?")
        await called(recorder, "on_close")
        await until(lambda: server.active_connections == 0)
        assert server.statistics().too_slow == 1  # type: ignore[union-attr]
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(client)
        await client.aclose()
    [error] = recorder.reasons
    assert isinstance(error, SlowReader)
    assert "Config.write_limit" in str(error)
    assert max(unsent) <= MEBIBYTE + 65536
    assert not recorder.unexpected


async def test_a_slow_reader_may_be_the_programs_affair() -> None:
    caught: list[SlowReader] = []

    def flood(conn: Conn, n: int) -> None:
        conn.discard(n)
        written = 0
        try:
            while True:
                written += conn.write(bytes(65536))
        except SlowReader as error:
            caught.append(error)
            totals.append(written)

    totals: list[int] = []
    recorder = Recorder({"on_read": flood})
    async with serving_events(recorder, write_limit=MEBIBYTE, write_policy="raise") as server:
        client = await dial(server)
        for turn in range(1, 3):  # it goes on when the kernel has made room
            await client.send_all(b"?")
            await called(recorder, "on_read", turn)
            assert await receive_exactly(client, totals[-1]) == bytes(totals[-1])
        await client.aclose()
        await called(recorder, "on_close")
    assert len(caught) == 2
    assert recorder.reasons == [None]


async def test_one_write_is_never_cut_in_two() -> None:
    data = pattern(8 * MEBIBYTE)
    recorder = Recorder({"on_accept": lambda conn: conn.write(data)})
    async with serving_events(recorder, write_limit=1) as server:
        client = await dial(server)
        assert await receive_exactly(client, len(data)) == data
        await client.aclose()
        await called(recorder, "on_close")
    assert recorder.reasons == [None]


async def test_a_slow_reader_among_others_ends_alone() -> None:
    """A broadcast does not fail because of one of its receivers, nor of one that is gone."""
    conns: list[Conn] = []

    def broadcast(conn: Conn, n: int) -> None:
        conn.discard(n)
        for other in tuple(conns):
            other.write(bytes(MEBIBYTE))

    recorder = Recorder(
        {"on_accept": conns.append, "on_read": broadcast, "on_close": lambda conn, _err: conns.remove(conn)}
    )
    async with serving_events(recorder, write_limit=16 * MEBIBYTE) as server:
        slow = await dial(server)
        await called(recorder, "on_accept")
        quick = await dial(server)
        await called(recorder, "on_accept", 2)
        turns = 0
        while not recorder.reasons:
            await quick.send_all(b"!")
            await receive_exactly(quick, MEBIBYTE)
            turns += 1
            assert turns < 100
        await quick.send_all(b"!")
        await receive_exactly(quick, MEBIBYTE)
        await quick.aclose()
        await slow.aclose()
        await called(recorder, "on_close", 2)
    assert [type(reason) for reason in recorder.reasons] == [SlowReader, type(None)]
    assert not recorder.unexpected


@THREADS
async def test_who_never_reads_is_sent_no_more_than_a_bound(
    async_handler: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The server warns of it once, and receives again when the program reads."""
    conns: list[Conn] = []
    recorder = Recorder({"on_accept": conns.append})
    marks = Marks(receive_high=64 << 10, receive_low=32 << 10)
    async with serving_events(recorder, marks=marks, async_handler=async_handler) as server:
        connection = await gain_trio.connect(f"tcp://127.0.0.1:{server.addresses[0][1]}")
        await called(recorder, "on_accept")
        total = await fill_kernel(connection)
        assert conns[0].inbound_buffered < total
        assert conns[0].inbound_buffered <= 4 * MEBIBYTE
        assert len([r for r in caplog.records if "unread" in r.getMessage()]) == 1
        recorder.behaviour["on_read"] = lambda conn, _n: taken.append(len(conn.next()))
        taken = [len(conns[0].next())]
        await until(lambda: sum(taken) >= total)
        connection.abort()


@BOTH
@THREADS
async def test_one_that_is_never_read_ends_with_its_reset(make: type[Recorder], async_handler: bool) -> None:
    recorder = make()
    marks = Marks(receive_high=64 << 10, receive_low=32 << 10)
    async with serving_events(recorder, marks=marks, async_handler=async_handler) as server:
        connection = await gain_trio.connect(f"tcp://127.0.0.1:{server.addresses[0][1]}")
        await called(recorder, "on_accept")
        await fill_kernel(connection)
        connection.abort()
        await called(recorder, "on_close")
        await until(lambda: server.active_connections == 0)
    [error] = recorder.reasons
    assert isinstance(error, ConnectionResetError)


async def test_one_that_is_never_read_can_still_be_closed() -> None:
    conns: list[Conn] = []
    recorder = Recorder({"on_accept": conns.append})
    async with serving_events(recorder, marks=Marks(receive_high=4096, receive_low=0), async_handler=True) as server:
        client = await dial(server)
        await client.send_all(bytes(16384))
        await called(recorder, "on_accept")
        await called(recorder, "on_read")
        await wait_all_tasks_blocked()
        conns[0].close()
        await called(recorder, "on_close")
        await client.aclose()


def take_every_descriptor() -> list[int]:
    """Up to the limit."""
    taken = []
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        while True:
            taken.append(os.dup(0))
    return taken


async def test_out_of_descriptors_nothing_spins(caplog: pytest.LogCaptureFixture) -> None:
    counter = WaitCounter()
    recorder = Recorder({"on_read": write_back})
    with descriptor_limit(next_descriptor() + 8):  # the kernel notes the limit when an accept is armed
        async with serving_events(recorder) as server:
            client = socket.socket()
            client.setblocking(False)
            taken = take_every_descriptor()
            try:
                with pytest.raises(BlockingIOError):
                    client.connect(server.addresses[0])
                await until(lambda: len(caplog.records) >= 1)
                trio.lowlevel.add_instrument(counter)
                await trio.sleep(1)
                trio.lowlevel.remove_instrument(counter)
            finally:
                for descriptor in taken:
                    os.close(descriptor)
            assert counter.waits < 200, "ten pauses of 0.1 s, and a few waits each"
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(client))
            await stream.send_all(b"hello")
            assert await receive_exactly(stream, 5) == b"hello"
            await stream.aclose()
    assert "EMFILE" in caplog.records[0].getMessage()


# --- deadlines ---


async def test_a_read_deadline(autojump_clock: MockClock) -> None:
    def later(conn: Conn, *_: object) -> None:
        conn.set_read_deadline(trio.current_time() + 10)

    recorder = Recorder({"on_accept": later, "on_read": later})
    async with serving_events(recorder) as server:
        client = await dial(server)
        await called(recorder, "on_accept")
        before = trio.current_time()
        await trio.sleep(7)
        await client.send_all(b"x")
        await called(recorder, "on_read")
        assert await client.receive_some() == b""
        assert trio.current_time() - before == pytest.approx(17, abs=1)
        await client.aclose()
    assert [type(reason) for reason in recorder.reasons] == [trio.TooSlowError]


async def test_a_write_deadline(autojump_clock: MockClock) -> None:
    def on_accept(conn: Conn) -> None:
        conn.set_write_deadline(trio.current_time() + 5)
        conn.set_write_deadline(trio.current_time() + 20)
        conn.write(bytes(32 * MEBIBYTE))

    recorder = Recorder({"on_accept": on_accept})
    async with serving_events(recorder, write_limit=64 * MEBIBYTE) as server:
        client = await dial(server)
        await called(recorder, "on_accept")
        before = trio.current_time()
        await in_time(lambda: bool(recorder.reasons))
        assert trio.current_time() - before == pytest.approx(20, abs=2)
        await client.aclose()
    assert [type(reason) for reason in recorder.reasons] == [trio.TooSlowError]


async def test_write_deadlines_take_no_task_each(autojump_clock: MockClock) -> None:
    def on_accept(conn: Conn) -> None:
        for seconds in (50, 40, 60):
            conn.set_write_deadline(trio.current_time() + seconds)

    def keepers() -> list[str]:
        root = trio.lowlevel.current_root_task()
        assert root is not None
        names = (task.name for nursery in root.child_nurseries for task in nursery.child_tasks)
        return [name for name in names if "deadline" in name]

    recorder = Recorder({"on_accept": on_accept})
    async with serving_events(recorder) as server:
        clients = [await dial(server) for _ in range(20)]
        await called(recorder, "on_accept", 20)
        assert keepers() == ["gain_trio deadline keeper"]
        await trio.sleep(100)
        assert not recorder.reasons, "there was nothing to write"
        for client in clients:
            await client.aclose()


async def test_a_connection_that_had_a_write_deadline_is_gone_when_it_is_over() -> None:
    """The memory of the connection is freed at its end, and not at the next garbage collection."""
    alive: list[weakref.ref[Conn]] = []

    class Dated(EventHandler):
        def on_accept(self, conn: Conn) -> None:
            conn.set_write_deadline(trio.current_time() + 1000)
            alive.append(weakref.ref(conn))

    gc.disable()
    try:
        async with serving_events(Dated()) as server:
            for _ in range(5):
                await (await dial(server)).aclose()
            await until(lambda: len(alive) == 5 and server.active_connections == 0)
            await wait_all_tasks_blocked()
            assert sum(conn() is not None for conn in alive) <= 1, "the last one may be in a local variable"
    finally:
        gc.enable()


async def test_deadlines_of_what_is_in_time(autojump_clock: MockClock) -> None:
    def on_accept(conn: Conn) -> None:
        conn.set_deadline(trio.current_time() + 5)
        conn.set_read_deadline(None)
        conn.write(b"in time")
        with pytest.raises(ValueError, match="nan"):
            conn.set_deadline(float("nan"))

    recorder = Recorder({"on_accept": on_accept})
    async with serving_events(recorder) as server:
        client = await dial(server)
        assert await receive_exactly(client, 7) == b"in time"
        await trio.sleep(60)
        assert not recorder.reasons
        await client.aclose()
        await called(recorder, "on_close")
    assert recorder.reasons == [None]
    assert not recorder.unexpected


async def test_an_idle_connection(autojump_clock: MockClock) -> None:
    recorder = Recorder()
    async with serving_events(recorder, idle_timeout=30) as server:
        client = await dial(server)
        assert await client.receive_some() == b""
        await called(recorder, "on_close")
        await client.aclose()
    assert [type(reason) for reason in recorder.reasons] == [TimeoutError]


# --- threads ---


async def test_threads_write_in_order_and_close_behind() -> None:
    expected = b"".join(b"%05d " % number for number in range(2000))

    def on_read(conn: Conn, n: int) -> None:
        assert threading.current_thread() is not main
        conn.discard(n)
        for number in range(2000):
            assert conn.write(b"%05d " % number) == 6
        conn.close()
        with pytest.raises(ConnectionClosed):
            conn.write(b"too late")
        with pytest.raises(gain_trio.callbacks.ConnectionAlreadyClosed):
            conn.close()

    main = threading.current_thread()
    recorder = Recorder({"on_read": on_read})
    async with serving_events(recorder, async_handler=True) as server:
        client = await dial(server)
        await client.send_all(b"?")
        assert await receive_all(client) == expected
        await called(recorder, "on_close")
        await client.aclose()
    assert recorder.reasons == [None]
    assert not recorder.unexpected


def in_a_thread(function: Callable[..., T], *arguments: object) -> T:
    """Call it in a thread, while this one waits: the run cannot go on meanwhile."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *arguments).result(PATIENCE)


async def test_what_a_thread_has_written_is_sent_before_a_close() -> None:
    def on_read(conn: Conn, n: int) -> None:
        conn.discard(n)
        assert in_a_thread(conn.write, b"one, ") == 5
        assert in_a_thread(conn.write, b"two") == 3
        assert conn.outbound_buffered == 8
        conn.close()

    recorder = Recorder({"on_read": on_read})
    async with serving_events(recorder) as server:
        client = await dial(server)
        await client.send_all(b"?")
        assert await receive_all(client) == b"one, two"
        await called(recorder, "on_close")
        await client.aclose()
    assert recorder.reasons == [None]
    assert not recorder.unexpected


async def test_what_a_thread_has_written_is_sent_before_what_the_run_writes_then() -> None:
    def on_read(conn: Conn, n: int) -> None:
        conn.discard(n)
        for _ in range(2):
            in_a_thread(conn.write, b"thread, ")
            conn.write(b"run, ")
        conn.write(b"run; ")

    recorder = Recorder({"on_read": on_read})
    async with serving_events(recorder) as server:
        client = await dial(server)
        await client.send_all(b"?")
        assert await receive_exactly(client, 31) == b"thread, run, thread, run, run; "
        await client.aclose()
    assert not recorder.unexpected


@pytest.mark.parametrize("on_write", [False, True])
async def test_what_a_thread_has_written_when_the_peer_has_ended_is_sent(on_write: bool) -> None:
    """The last moment for it is a callback's in the end itself: the run's next step closes the connection."""
    written: list[int] = []
    turns = iter([b"from", b" a", b" thread"])

    def on_read(conn: Conn, n: int) -> None:
        conn.discard(n)
        conn.write(b"answer ")
        if not on_write:
            in_a_thread(conn.write, b"from a thread")

    def told(conn: Conn, n: int) -> None:
        written.append(n)
        if (data := next(turns, b"")) and on_write:
            in_a_thread(conn.write, data)

    recorder = Recorder({"on_read": on_read, "on_write": told})
    async with serving_events(recorder) as server:
        client = await dial(server)
        await client.send_all(b"?")
        await client.send_eof()
        assert await receive_all(client) == b"answer from a thread"
        await called(recorder, "on_close")
        await client.aclose()
    assert sum(written) == 20
    assert recorder.reasons == [None]
    assert not recorder.unexpected


async def test_what_a_thread_writes_just_before_the_end_is_sent_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the last look at what is unsent and the close."""
    look = StreamDriver._has_unsent
    counts: list[int] = []

    async def look_and_be_overtaken(driver: StreamDriver, conn: StreamConn, connection: Connection) -> bool:
        is_unsent = await look(driver, conn, connection)
        if not is_unsent and not counts:
            counts.append(in_a_thread(conn.write, b"in time"))
        return is_unsent

    monkeypatch.setattr(StreamDriver, "_has_unsent", look_and_be_overtaken)
    recorder = Recorder()
    async with serving_events(recorder) as server:
        client = await dial(server)
        await client.send_eof()
        assert await receive_all(client) == b"in time"
        await called(recorder, "on_close")
        await client.aclose()
    assert counts == [7]
    assert recorder.reasons == [None]


async def test_what_a_thread_has_written_counts_as_unsent_when_a_callback_fails() -> None:
    def on_read(conn: Conn, n: int) -> None:
        conn.discard(n)
        in_a_thread(conn.write, bytes(8 * MEBIBYTE))
        raise LookupError("the program's own")

    recorder = Recorder({"on_read": on_read})
    async with serving_events(recorder) as server:
        client = await dial(server)
        await client.send_all(b"?")
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(client)
        await client.aclose()
    assert [type(reason) for reason in recorder.reasons] == [LookupError]


@pytest.mark.parametrize("policy", ["close", "raise"])
async def test_threads_are_bounded_like_everybody(policy: str) -> None:
    counts: list[int] = []
    refused: list[SlowReader] = []

    def flood(conn: Conn, n: int) -> None:
        conn.discard(n)
        written = 0
        try:
            while taken := conn.write(bytes(65536)):
                written += taken
                assert conn.outbound_buffered <= 8 * MEBIBYTE
                assert written < 256 * MEBIBYTE
        except SlowReader as error:
            refused.append(error)
        counts.append(written)

    recorder = Recorder({"on_read": flood})
    async with serving_events(recorder, async_handler=True, write_limit=MEBIBYTE, write_policy=policy) as server:
        client = await dial(server)
        await client.send_all(b"?")
        await until(lambda: bool(counts))
        if policy == "close":
            await called(recorder, "on_close")
        await client.aclose()
    assert not recorder.unexpected
    assert len(refused) == (policy == "raise")
    assert isinstance(recorder.reasons[0], SlowReader) == (policy == "close")


async def test_everything_but_reading_works_from_any_thread() -> None:
    conns: list[Conn] = []
    recorder = Recorder({"on_accept": conns.append})

    def use(conn: Conn) -> None:
        assert conn.write(b"from outside") == 12
        conn.set_no_delay(True)
        conn.set_read_buffer(65536)
        conn.set_deadline(None)
        assert conn.local_addr == server.addresses[0]
        assert conn.remote_addr[0] == "127.0.0.1"
        conn.close()

    async with serving_events(recorder) as server:
        client = await dial(server)
        await called(recorder, "on_accept")
        await trio.to_thread.run_sync(use, conns[0])
        assert await receive_all(client) == b"from outside"
        await called(recorder, "on_close")
        await client.aclose()
    with pytest.raises(ConnectionClosed):
        await trio.to_thread.run_sync(conns[0].write, b"late")


async def test_no_more_threads_than_the_pool_has() -> None:
    inside = 0
    most = 0
    lock = threading.Lock()
    both = threading.Barrier(2, timeout=30)

    def on_read(conn: Conn, n: int) -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        both.wait()  # two are here at a time, so it is really two
        with lock:
            inside -= 1
        write_back(conn, n)

    recorder = Recorder({"on_read": on_read})
    async with serving_events(recorder, async_handler=True, pool=True, pool_size=2) as server:
        clients = [await dial(server) for _ in range(8)]
        for client in clients:
            await client.send_all(b"x")
        for client in clients:
            assert await receive_exactly(client, 1) == b"x"
            await client.aclose()
    assert most == 2
    assert not recorder.unexpected


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

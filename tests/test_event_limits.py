"""Callbacks in a nursery: limits and deadlines."""

from __future__ import annotations

import errno
import gc
import os
import socket
import weakref

import pytest
import trio
from support.descriptors import descriptor_limit, next_descriptor
from support.event_runs import BOTH, THREADS, called, dial, in_time, serving_events, write_back
from support.event_servers import Recorder
from support.pairs import MEBIBYTE, fill_kernel, pattern, receive_all, receive_exactly, until
from support.runs import WaitCounter
from trio.testing import MockClock, wait_all_tasks_blocked

import gain_trio
from gain_trio import Marks
from gain_trio.callbacks import Conn, EventHandler, SlowReader

pytestmark = pytest.mark.connections


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

"""Callbacks in a nursery: writes and closes from other threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest
import trio
from support.event_runs import called, dial, serving_events, write_back
from support.event_servers import Recorder
from support.pairs import MEBIBYTE, PATIENCE, receive_all, receive_exactly, until

import gain_trio
from gain_trio import Connection
from gain_trio.callbacks import Conn, ConnectionClosed, SlowReader
from gain_trio.callbacks._stream_conn import StreamConn
from gain_trio.callbacks._stream_driver import StreamDriver

pytestmark = pytest.mark.connections

T = TypeVar("T")


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


async def answer_of(on_read: Callable[[Conn, int], None]) -> bytes:
    """What a client gets of a server whose ``on_read`` ends the connection, with no reason and without a failure."""
    recorder = Recorder({"on_read": on_read})
    async with serving_events(recorder) as server:
        client = await dial(server)
        await client.send_all(b"?")
        answer = await receive_all(client)
        await called(recorder, "on_close")
        await client.aclose()
    assert recorder.reasons == [None]
    assert not recorder.unexpected
    return answer


async def test_what_a_thread_has_written_is_sent_before_a_close() -> None:
    def on_read(conn: Conn, n: int) -> None:
        conn.discard(n)
        assert in_a_thread(conn.write, b"one, ") == 5
        assert in_a_thread(conn.write, b"two") == 3
        assert conn.outbound_buffered == 8
        conn.close()

    assert await answer_of(on_read) == b"one, two"


async def test_code_that_comes_amid_a_write_can_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finalizer that writes to the same conn, at the moment in which the run is asked to send: nothing is lost."""
    in_run_soon = StreamConn._in_run_soon

    def write_first(conn: StreamConn, function: Callable[..., None], *arguments: object) -> None:
        monkeypatch.undo()
        assert conn.write(b"from the finalizer, ") == 20
        in_run_soon(conn, function, *arguments)

    def on_read(conn: Conn, n: int) -> None:
        conn.discard(n)
        monkeypatch.setattr(StreamConn, "_in_run_soon", write_first)
        assert in_a_thread(conn.write, b"from the thread") == 15
        assert conn.outbound_buffered == 35
        conn.close()

    assert await answer_of(on_read) == b"from the finalizer, from the thread"


async def test_code_that_comes_amid_a_close_can_close_another_conn() -> None:
    """A finalizer or a signal's handler, for example: conns share a lock."""

    def on_accept(conn: Conn) -> None:
        conns.append(conn)
        if len(conns) < 2:
            return
        for one, other in (conns, conns[::-1]):
            assert isinstance(one, StreamConn)
            assert isinstance(other, StreamConn)
            with one._lock:
                assert other._lock.acquire(blocking=False)
                try:
                    other.close()
                finally:
                    other._lock.release()

    conns: list[Conn] = []
    recorder = Recorder({"on_accept": on_accept})
    async with serving_events(recorder) as server:
        clients = [await dial(server) for _ in range(2)]
        for client in clients:
            assert await receive_all(client) == b""
            await client.aclose()
        await until(lambda: len(recorder.reasons) == 2)
    assert recorder.reasons == [None, None]
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

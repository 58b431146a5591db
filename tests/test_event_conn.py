"""The calls of a conn: the same whatever it goes over, and wherever on_read runs."""

from __future__ import annotations

import contextlib
import gc
import io
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import trio
from support.event_runs import called, dial, serving_events
from support.event_servers import Recorder, WritesUntilBroken
from support.pairs import PATIENCE, receive_all
from support.sockets import reset

import gain_trio
from gain_trio.callbacks import BufferEmpty, Conn, ConnectionAlreadyClosed, ConnectionClosed, ShortBuffer

pytestmark = pytest.mark.connections

DATA = b"0123456789"


class Pieces(io.RawIOBase):
    """A writer that accepts a given number of bytes at a time; None means that it would have to wait."""

    def __init__(self, *counts: int | None) -> None:
        self.counts = list(counts)
        self.taken = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> Any:
        count = self.counts.pop(0)
        self.taken += bytes(data)[: count or 0]
        return count


class Lazy:
    """A writer whose write returns nothing."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []

    def write(self, data: bytes, /) -> None:
        self.taken.append(data)


class Liar:
    def write(self, data: bytes, /) -> int:
        return len(data) + 1


def takes_what_it_asks_for(conn: Conn) -> None:
    assert conn.inbound_buffered == 10
    assert conn.next(3) == b"012"
    assert conn.peek(2) == b"34"
    assert conn.peek(100) == conn.peek() == conn.peek(0) == conn.peek(-5) == b"3456789"
    assert conn.inbound_buffered == 7
    assert conn.next() == b"3456789"
    assert conn.next() == conn.next(0) == conn.next(-1) == conn.peek() == b""
    assert conn.inbound_buffered == 0


def everything_is_next_of_nothing(conn: Conn) -> None:
    assert conn.next(0) == DATA


def takes_no_part_of_too_little(conn: Conn) -> None:
    with pytest.raises(ShortBuffer, match="11 bytes were asked for, and 10 have arrived"):
        conn.next(11)
    assert issubclass(ShortBuffer, BufferError)
    assert conn.next(10) == DATA
    with pytest.raises(ShortBuffer):
        conn.next(1)


def takes_other_numbers_too(conn: Conn) -> None:
    assert conn.next(True) == b"0"
    too_many: Any = (1, 2)
    for arguments in (("1",), (1.5,), too_many):
        with pytest.raises(TypeError):
            conn.next(*arguments)
    with pytest.raises(ShortBuffer):
        conn.next(1 << 40)
    assert conn.next() == DATA[1:]


def discards(conn: Conn) -> None:
    assert conn.discard(0) == 0
    assert conn.discard(2) == 2
    assert conn.peek() == b"23456789"
    assert conn.discard(100) == 8
    assert conn.discard(1) == conn.discard(-1) == 0


def discards_everything(conn: Conn) -> None:
    assert conn.discard(-3) == 10
    assert conn.inbound_buffered == 0


def reads_into_a_buffer(conn: Conn) -> None:
    assert conn.read(bytearray()) == 0
    small = bytearray(4)
    assert conn.read(small) == 4
    assert small == b"0123"
    large = bytearray(b"x" * 8)
    assert conn.read(memoryview(large)) == 6
    assert large == b"456789xx"
    with pytest.raises(BufferEmpty):
        conn.read(small)
    assert issubclass(BufferEmpty, BlockingIOError)
    assert conn.read(bytearray()) == 0
    with pytest.raises(BufferError, match="writable"):
        conn.read(b"constant")


def writes_to_a_file(conn: Conn) -> None:
    file = io.BytesIO()
    assert conn.write_to(file) == 10
    assert file.getvalue() == DATA
    with pytest.raises(BufferEmpty):
        conn.write_to(file)


def writes_to_one_that_takes_less(conn: Conn) -> None:
    pieces = Pieces(4, None, 6)
    assert conn.write_to(pieces) == 4
    assert conn.write_to(pieces) == 0
    assert conn.inbound_buffered == 6
    assert conn.write_to(pieces) == 6
    assert pieces.taken == DATA


def writes_to_whatever_has_a_write(conn: Conn) -> None:
    with pytest.raises(ValueError, match="11 of 10"):
        conn.write_to(Liar())
    lazy = Lazy()
    assert conn.write_to(lazy) == 10
    assert lazy.taken == [DATA]


def has_a_context(conn: Conn) -> None:
    assert conn.context is None
    conn.set_context(conn)
    assert conn.context is conn
    conn.set_context(None)


def refuses_what_is_no_bytes(conn: Conn) -> None:
    for what in ("text", 5, None, [1]):
        with pytest.raises(TypeError):
            conn.write(what)  # type: ignore[arg-type]
    assert conn.outbound_buffered == 0


def looks_like_something(conn: Conn) -> None:
    assert "gain_trio.callbacks.Conn" in repr(conn)
    assert conn in weakref.WeakSet([conn])
    assert conn.fd >= 0


USES: list[Callable[[Conn], None]] = [
    takes_what_it_asks_for,
    everything_is_next_of_nothing,
    takes_no_part_of_too_little,
    takes_other_numbers_too,
    discards,
    discards_everything,
    reads_into_a_buffer,
    writes_to_a_file,
    writes_to_one_that_takes_less,
    writes_to_whatever_has_a_write,
    has_a_context,
    refuses_what_is_no_bytes,
    looks_like_something,
]


@pytest.mark.parametrize("async_handler", [False, True], ids=["in the run", "in threads"])
@pytest.mark.parametrize("network", ["tcp", "udp"])
@pytest.mark.parametrize("use", USES)
async def test_reading(use: Callable[[Conn], None], network: str, async_handler: bool) -> None:
    recorder = Recorder({"on_read": lambda conn, _n: use(conn)})
    async with serving_events(recorder, f"{network}://127.0.0.1:0", async_handler=async_handler) as server:
        kind = trio.socket.SOCK_DGRAM if network == "udp" else trio.socket.SOCK_STREAM
        with trio.socket.socket(type=kind) as client:
            await client.connect(server.addresses[0])
            await client.send(DATA)
            await called(recorder, "on_read")
    assert not recorder.unexpected


@pytest.mark.parametrize("async_handler", [False, True], ids=["in the run", "in threads"])
async def test_what_is_left_stays_and_is_told_once(async_handler: bool) -> None:
    told: list[tuple[int, int]] = []

    def on_read(conn: Conn, n: int) -> None:
        told.append((n, conn.inbound_buffered))
        if conn.inbound_buffered == 30:
            conn.write(conn.next())

    recorder = Recorder({"on_read": on_read})
    async with serving_events(recorder, async_handler=async_handler) as server:
        client = await dial(server)
        for number in range(1, 4):
            await client.send_all(DATA)
            await called(recorder, "on_read", number)
        await client.send_eof()
        assert await receive_all(client) == DATA * 3
        await client.aclose()
        await called(recorder, "on_close")
    assert told == [(10, 10), (10, 20), (10, 30)]


@pytest.mark.parametrize("async_handler", [False, True], ids=["in the run", "in threads"])
async def test_writing(async_handler: bool) -> None:
    """Everything that is bytes, in order, and not changed by what happens to it afterwards."""
    seen: list[int] = []

    def on_read(conn: Conn, _n: int) -> None:
        changing = bytearray(b"bytearray ")
        seen.append(conn.write(changing))
        changing[:] = b"----------"
        large = bytearray(b"L" * 100_000)
        seen.append(conn.write(large))
        large[:] = b"-" * 100_000
        seen.append(conn.write(memoryview(b"view of half")[:5]))
        seen.append(conn.write(memoryview(bytes(8)).cast("I")))
        seen.append(conn.write(b""))
        seen.append(conn.write(b"B" * 50_000))
        seen.append(conn.read_from(io.BytesIO(b"F" * 200_000)))
        conn.close()

    recorder = Recorder({"on_read": on_read})
    async with serving_events(recorder, async_handler=async_handler) as server:
        client = await dial(server)
        await client.send_all(b"?")
        data = await receive_all(client)
        await client.aclose()
        await called(recorder, "on_close")
    assert data == b"bytearray " + b"L" * 100_000 + b"view " + bytes(8) + b"B" * 50_000 + b"F" * 200_000
    assert seen == [10, 100_000, 5, 8, 0, 50_000, 200_000]
    assert not recorder.unexpected


@pytest.mark.parametrize("async_handler", [False, True], ids=["in the run", "in threads"])
async def test_closed(async_handler: bool) -> None:
    def is_closed(conn: Conn, *_: object) -> None:
        calls: list[Callable[[], object]] = [
            conn.next,
            conn.peek,
            lambda: conn.discard(1),
            lambda: conn.read(bytearray(5)),
            lambda: conn.write_to(io.BytesIO()),
            lambda: conn.write(b"late"),
            lambda: conn.read_from(io.BytesIO(b"late")),
            lambda: conn.set_read_buffer(4096),
            lambda: conn.set_write_buffer(4096),
            lambda: conn.set_linger(1),
            lambda: conn.set_keep_alive_period(60),
            lambda: conn.set_no_delay(True),
            lambda: conn.set_deadline(None),
            lambda: conn.set_read_deadline(5),
            lambda: conn.set_write_deadline(5),
        ]
        for number, call in enumerate(calls):
            with pytest.raises(ConnectionClosed):
                call()
                raise AssertionError(f"call {number} went through")
        with pytest.raises(ConnectionAlreadyClosed):
            conn.close()
        assert (conn.inbound_buffered, conn.fd) == (0, -1)
        assert conn.context == "kept"
        assert conn.local_addr == server.addresses[0]
        assert conn.remote_addr == client.socket.getsockname()
        assert "closed" in repr(conn)

    def on_read(conn: Conn, _n: int) -> None:
        conn.set_context("kept")
        conn.write(b"bye")
        conn.close()
        is_closed(conn)

    recorder = Recorder({"on_read": on_read, "on_write": is_closed, "on_close": is_closed})
    async with serving_events(recorder, async_handler=async_handler) as server:
        client = await dial(server)
        await client.send_all(DATA)
        assert await receive_all(client) == b"bye"
        await called(recorder, "on_close")
        await client.aclose()
    assert issubclass(ConnectionAlreadyClosed, ConnectionClosed)
    assert issubclass(ConnectionClosed, trio.ClosedResourceError)
    assert recorder.numbers() == (1, 1, 1, 1)
    assert not recorder.unexpected


async def test_writing_to_a_closed_one_keeps_nothing() -> None:
    """A server that writes to all of its connections meets many closed ones, and none may keep the message."""

    class Data(bytearray):
        pass

    conns: list[Conn] = []
    recorder = Recorder({"on_accept": conns.append})
    async with serving_events(recorder) as server:
        await (await dial(server)).aclose()
        await called(recorder, "on_close")
        [conn] = conns
        data = Data(b"late")
        is_there = weakref.ref(data)
        gc.disable()
        try:
            with contextlib.suppress(ConnectionClosed):
                conn.write(data)
            del data
            assert is_there() is None
        finally:
            gc.enable()


async def test_writing_to_one_that_was_reset_is_no_error() -> None:
    """on_close tells of it; until then nothing is taken."""

    def on_close(conn: Conn, _err: object) -> None:
        with pytest.raises(ConnectionClosed):
            conn.write(b"late")

    recorder = WritesUntilBroken({"on_close": on_close})
    async with serving_events(recorder) as server:
        client = await dial(server)
        await client.send_all(b"?")
        assert await client.receive_some() != b""
        reset(client)
        await called(recorder, "on_close")
    assert recorder.numbers()[1] == 1
    assert not recorder.unexpected


async def test_a_conn_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Conn()  # type: ignore[abstract]
    assert gain_trio.callbacks.Conn is Conn


def test_the_package_is_imported_anew() -> None:
    """As a reloader does; the compiled modules stay."""
    program = (
        "import sys, gain_trio.callbacks\n"
        "for name in [name for name in sys.modules if name.partition('.')[0] == 'gain_trio']:\n"
        "    del sys.modules[name]\n"
        "import gain_trio.callbacks"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE)

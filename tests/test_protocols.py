"""Protocols of asyncio's shape as handlers: the same calls, in the same order, with the same meaning."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import pickle
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing
from support.certificates import open_tls_pair
from support.pairs import PATIENCE, QUIET, Pair, fill_kernel, open_pair, receive_all, receive_exactly, until
from support.processes import TIMEOUT, connect, read_all, read_exactly
from support.sockets import reset

import gain_trio
from gain_trio import Connection, Marks
from gain_trio.asyncio_bridge import ProtocolHandler
from gain_trio.asyncio_bridge._transport import ProtocolTransport
from gain_trio.callbacks import SlowReader

pytestmark = pytest.mark.connections

Call = tuple[Any, ...]


class Recorder(asyncio.Protocol):
    """Writes down what is called."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.lost = threading.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.calls.append(("made",))

    def data_received(self, data: bytes) -> None:
        assert type(data) is bytes
        assert data
        if self.calls[-1][0] == "data":
            self.calls[-1] = ("data", self.calls[-1][1] + data)  # the pieces are the network's affair
        else:
            self.calls.append(("data", data))

    def eof_received(self) -> bool | None:
        self.calls.append(("eof",))
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append(("lost", exc))
        self.lost.set()

    def pause_writing(self) -> None:
        self.calls.append(("pause",))

    def resume_writing(self) -> None:
        self.calls.append(("resume",))

    @property
    def names(self) -> list[str]:
        return [call[0] for call in self.calls]


# --- the same under asyncio's own event loop ---


class Echo(Recorder):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.write(data)


class KeepsOpen(Recorder):
    def eof_received(self) -> bool | None:
        super().eof_received()
        self.transport.write(b"after the end")
        self.transport.close()
        self.transport.write(b"never")
        return True


class ClosesAtOnce(Recorder):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.write(b"bye")
        self.transport.close()
        self.transport.close()
        assert self.transport.is_closing()
        assert not self.lost.is_set()


class AbortsOnData(Recorder):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.write(b"perhaps")
        self.transport.abort()
        self.transport.abort()
        self.transport.close()
        assert not self.lost.is_set()


class HalfCloses(Recorder):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport.can_write_eof()
        self.transport.writelines([b"all ", bytearray(b"there "), memoryview(b"is")])
        self.transport.write_eof()
        self.transport.write_eof()
        with pytest.raises(RuntimeError, match="after write_eof"):
            self.transport.write(b"more")


class PausesInBetween(Recorder):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.pause_reading()
        self.transport.pause_reading()
        self.calls.append(("reading", self.transport.is_reading()))
        self.transport.resume_reading()
        self.transport.resume_reading()
        self.calls.append(("reading", self.transport.is_reading()))


class Switches(Recorder):
    """Hands over to another protocol after the first line."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if b"\n" in data:
            other = Echo()
            other.calls, other.lost, other.transport = self.calls, self.lost, self.transport
            self.calls.append(("switch",))
            self.transport.set_protocol(other)
            assert self.transport.get_protocol() is other
            self.transport.write(b"switched\n")


class Buffered(asyncio.BufferedProtocol):
    """Three bytes at a time."""

    def __init__(self) -> None:
        self.recorder = Recorder()
        self.calls, self.lost = self.recorder.calls, self.recorder.lost
        self.buffer = bytearray(3)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.recorder.connection_made(transport)

    def get_buffer(self, _sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        assert 1 <= nbytes <= 3
        data = bytes(self.buffer[:nbytes])
        self.recorder.data_received(data)
        self.recorder.transport.write(data)

    def eof_received(self) -> bool | None:
        return self.recorder.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.recorder.connection_lost(exc)


class ClosesWhenPaused(Recorder):
    """Writing is resumed all the same: others may wait for that."""

    paused = threading.Event()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.write(bytes(8 << 20))

    def pause_writing(self) -> None:
        super().pause_writing()
        self.transport.close()
        self.paused.set()


def read_when_paused(client: socket.socket) -> bytes:
    """Read after the transport has paused the protocol: a client that reads at once may take all that is written."""
    ClosesWhenPaused.paused.clear()
    client.sendall(b"hello")
    assert ClosesWhenPaused.paused.wait(TIMEOUT)
    return read_all(client)


class Limits(Recorder):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        limits: list[dict[str, int]] = [
            {},
            {"high": 100},
            {"low": 100},
            {"high": 0},
            {"high": 10, "low": 10},
            {"low": 0},
        ]
        self.calls.append(("default", self.transport.get_write_buffer_limits()))
        for chosen in limits:
            self.transport.set_write_buffer_limits(**chosen)
            self.calls.append(("limits", self.transport.get_write_buffer_limits()))
        for wrong in ({"high": 1, "low": 2}, {"high": -1}, {"low": -1}):
            with pytest.raises(ValueError, match="must be"):
                self.transport.set_write_buffer_limits(**wrong)
        self.calls.append(("unsent", self.transport.get_write_buffer_size()))
        self.transport.close()


class Asks(Recorder):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        info = self.transport.get_extra_info
        sock = info("socket")
        self.calls += [
            ("here", info("sockname") == sock.getsockname()),
            ("there", info("peername") == sock.getpeername()),
            ("socket", sock.family, sock.type, sock.proto, sock.gettimeout(), sock.fileno() >= 0),
            ("option", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)),
            ("no TLS", info("cipher"), info("ssl_object", "none"), info("nonsense"), info("nonsense", 5)),
        ]
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.calls.append(("set", sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)))
        with pytest.raises(ValueError, match="block"):
            sock.setblocking(True)
        self.transport.close()


class WritesNonsense(Recorder):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        for nonsense in ("text", 5, None):
            with pytest.raises(TypeError):
                self.transport.write(cast("bytes", nonsense))
        self.transport.write(b"")
        data = bytearray(b"kept")
        self.transport.write(data)
        data[:] = b"lost"
        self.transport.close()


def end(client: socket.socket) -> bytes:
    client.shutdown(socket.SHUT_WR)
    return read_all(client)


def end_with_reset(client: socket.socket) -> bytes:
    reset(client)
    return b""


def greet(client: socket.socket, then: Callable[[socket.socket], bytes]) -> bytes:
    """Say hello and wait for what comes back of it, so that what follows is another receive."""
    client.sendall(b"hello")
    return read_exactly(client, 5) + then(client)


def ask(client: socket.socket) -> bytes:
    client.sendall(b"hello")
    with contextlib.suppress(ConnectionResetError):
        return read_all(client)
    return b"reset"


def switch(client: socket.socket) -> bytes:
    client.sendall(b"first\n")
    answer = read_exactly(client, 9)
    client.sendall(b"second")
    return answer + read_exactly(client, 6) + end(client)


SCENARIOS: dict[str, tuple[Callable[[], Recorder | Buffered], Callable[[socket.socket], bytes]]] = {
    "nothing said": (Recorder, end),
    "an echo": (Echo, functools.partial(greet, then=end)),
    "a reset": (Echo, functools.partial(greet, then=end_with_reset)),
    "kept open after the end": (KeepsOpen, end),
    "closed at once": (ClosesAtOnce, end),
    "aborted": (AbortsOnData, lambda client: ask(client) and b"over"),
    "half-closed": (HalfCloses, lambda client: read_all(client) + (client.sendall(b"late") or end(client))),
    "paused in between": (PausesInBetween, lambda client: client.sendall(b"hello") or end(client)),
    "another protocol": (Switches, switch),
    "buffered": (Buffered, functools.partial(greet, then=end)),
    "closed when paused": (ClosesWhenPaused, read_when_paused),
    "limits": (Limits, read_all),
    "questions": (Asks, read_all),
    "nonsense": (WritesNonsense, read_all),
}


def under_asyncio(factory: Callable[[], Recorder | Buffered], client: Callable[[socket.socket], bytes]) -> Any:
    made: list[Recorder | Buffered] = []

    def remembered() -> asyncio.BaseProtocol:
        made.append(factory())
        return made[-1]

    async def main() -> bytes:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(remembered, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()

        def talk() -> bytes:
            with connect(*address) as sock:
                answer = client(sock)
            assert made[0].lost.wait(TIMEOUT)
            return answer

        try:
            return await loop.run_in_executor(None, talk)
        finally:
            server.close()

    return asyncio.run(main()), made[0].calls


def on_trio(factory: Callable[[], Recorder | Buffered], client: Callable[[socket.socket], bytes]) -> Any:
    made: list[Recorder | Buffered] = []

    def remembered() -> asyncio.BaseProtocol:
        made.append(factory())
        return made[-1]

    async def main() -> bytes:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                server = await nursery.start(gain_trio.serve, ProtocolHandler(remembered), "tcp://127.0.0.1:0")

                def talk() -> bytes:
                    with connect(*server.addresses[0]) as sock:
                        answer = client(sock)
                    assert made[0].lost.wait(TIMEOUT)
                    return answer

                answer = await trio.to_thread.run_sync(talk)
                nursery.cancel_scope.cancel()
        return answer

    return trio.run(main), made[0].calls


def comparable(calls: list[Call]) -> list[Call]:
    """Exceptions are compared by type and errno."""
    return [
        tuple((type(item), getattr(item, "errno", None)) if isinstance(item, Exception) else item for item in call)
        for call in calls
    ]


@pytest.mark.parametrize(("factory", "client"), SCENARIOS.values(), ids=SCENARIOS)
def test_the_calls_are_those_that_asyncio_makes(
    factory: Callable[[], Recorder | Buffered], client: Callable[[socket.socket], bytes]
) -> None:
    expected, calls = under_asyncio(factory, client)
    answer, ours = on_trio(factory, client)
    assert comparable(ours) == comparable(calls)
    assert answer == expected


# --- one connection at a time ---


class Running:
    """A protocol that runs on one end of a pair."""

    def __init__(self, client: Connection, protocol: Recorder) -> None:
        self.client = client
        self.connection: Connection
        self.protocol = protocol
        self.error: BaseException | None = None
        self.ended = trio.Event()

    @property
    def transport(self) -> asyncio.Transport:
        return self.protocol.transport

    async def run(self, connection: Connection, **options: int) -> None:
        self.connection = connection
        try:
            await ProtocolHandler(lambda: self.protocol, **options)(connection)
        except Exception as error:
            self.error = error
        finally:
            self.ended.set()


@contextlib.asynccontextmanager
async def running(
    protocol: Recorder, opened: Callable[[], Awaitable[Pair]] = open_pair, **options: int
) -> Any:  # an async generator of Running
    client, connection = await opened()
    run = Running(client, protocol)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(run.run, connection, **options))
            await trio.testing.wait_all_tasks_blocked()
            yield run
            nursery.cancel_scope.cancel()
    client.abort()
    connection.abort()


async def test_cancelling_it_tells_the_protocol_once() -> None:
    protocol = Recorder()
    async with running(protocol):
        assert protocol.names == ["made"]
    assert protocol.calls == [("made",), ("lost", None)]


@pytest.mark.parametrize("where", ["connection_made", "data_received", "eof_received"])
async def test_an_exception_resets_the_connection_and_is_told(where: str) -> None:
    protocol = Recorder()
    error = LookupError(where)

    def fail(*_arguments: object) -> None:
        if where != "eof_received":
            protocol.calls.append(("failed",))
        raise error

    setattr(protocol, where, fail)
    async with running(protocol) as run:
        with contextlib.suppress(trio.BrokenResourceError):
            await run.client.send(b"hello")
            await run.client.send_eof()
        await run.ended.wait()
        assert run.error is error
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(run.client)
    assert protocol.calls[-1] == ("lost", error)
    assert protocol.names.count("lost") == 1


async def test_an_exception_in_connection_lost_is_the_handlers() -> None:
    class Fails(Recorder):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            raise LookupError("at the end")

    async with running(Fails()) as run:
        await run.client.send_eof()
        await run.ended.wait()
        assert isinstance(run.error, LookupError)


async def test_the_server_logs_and_counts_what_a_protocol_raises(caplog: pytest.LogCaptureFixture) -> None:
    class Fails(Recorder):
        def data_received(self, _data: bytes) -> None:
            raise LookupError("the protocol's own")

    async with trio.open_nursery() as nursery:
        server = await nursery.start(gain_trio.serve, ProtocolHandler(Fails), "tcp://127.0.0.1:0")
        host, port = server.addresses[0]
        async with await gain_trio.connect(f"tcp://{host}:{port}") as client:
            await client.send(b"hello")
            with pytest.raises(trio.BrokenResourceError):
                await receive_all(client)
        await until(lambda: server.active_connections == 0)
        assert server.statistics().handler_errors == 1
        nursery.cancel_scope.cancel()
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "ProtocolHandler(" in record.getMessage()
    assert "Fails" in record.getMessage()


async def test_a_reset_is_an_oserror_to_the_protocol_and_a_broken_connection_to_the_server() -> None:
    protocol = Recorder()
    async with running(protocol) as run:
        run.client.abort()
        await run.ended.wait()
        assert isinstance(run.error, trio.BrokenResourceError)
    [_made, (_lost, error)] = protocol.calls
    assert isinstance(error, ConnectionResetError)


# --- reading ---


async def test_nothing_is_delivered_while_reading_is_paused() -> None:
    protocol = Recorder()
    async with running(protocol) as run:
        run.transport.pause_reading()
        assert not run.transport.is_reading()
        await run.client.send(b"one")
        await trio.testing.wait_all_tasks_blocked(QUIET)
        await run.client.send(b"two")
        await trio.testing.wait_all_tasks_blocked(QUIET)
        assert protocol.names == ["made"]
        run.transport.resume_reading()
        assert protocol.names == ["made"]  # not from within
        await until(lambda: protocol.calls[-1] == ("data", b"onetwo"))
        await run.client.send(b"three")
        await until(lambda: protocol.calls[-1] == ("data", b"onetwothree"))


async def test_resuming_in_the_moment_in_which_bytes_arrive_loses_none() -> None:
    protocol = Recorder()
    sent = b""
    async with running(protocol) as run:
        for number in range(60):
            run.transport.pause_reading()
            if number % 2:
                await trio.testing.wait_all_tasks_blocked()
            piece = b"%d," % number
            await run.client.send(piece)
            for _ in range(number % 7):
                await trio.lowlevel.checkpoint()
            run.transport.resume_reading()
            sent += piece
            await until(lambda: protocol.calls[-1] == ("data", sent))


async def test_the_end_comes_after_the_bytes_and_not_while_reading_is_paused() -> None:
    protocol = Recorder()
    async with running(protocol) as run:
        run.transport.pause_reading()
        await run.client.send(b"last words")
        await run.client.send_eof()
        await trio.testing.wait_all_tasks_blocked(QUIET)
        assert protocol.names == ["made"]
        run.transport.resume_reading()
        await run.ended.wait()
        assert protocol.calls == [("made",), ("data", b"last words"), ("eof",), ("lost", None)]


async def test_a_protocol_that_never_reads_slows_its_peer_down() -> None:
    class Counts(Recorder):
        received = 0

        def data_received(self, data: bytes) -> None:
            self.received += len(data)

    protocol = Counts()
    everything = 64 << 20
    async with running(protocol) as run:
        run.transport.pause_reading()
        sent = trio.Event()

        async def send() -> None:
            await run.client.send_all(bytes(everything))
            await run.client.flush()
            sent.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked(QUIET)
            assert not sent.is_set()
            assert run.connection.inbound_buffered <= 4 << 20
            assert not protocol.received
            run.transport.resume_reading()
            await until(lambda: protocol.received == everything)
        assert sent.is_set()


async def test_a_reset_behind_a_full_queue_comes_after_what_is_read_then() -> None:
    protocol = Recorder()
    async with running(protocol) as run:
        run.transport.pause_reading()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run.client.send, bytes(24 << 20))
            await until(lambda: run.connection.inbound_buffered >= Marks().receive_high)
            await trio.testing.wait_all_tasks_blocked(QUIET)
            nursery.cancel_scope.cancel()
        run.client.abort()
        await trio.testing.wait_all_tasks_blocked(QUIET)
        assert protocol.names == ["made"]
        run.transport.resume_reading()
        await run.ended.wait()
    assert protocol.names == ["made", "data", "lost"]
    assert len(protocol.calls[1][1]) >= Marks().receive_high
    assert isinstance(protocol.calls[2][1], ConnectionResetError)


async def test_pausing_in_the_callback_holds_what_comes_next() -> None:
    class OneAtATime(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.pause_reading()

    protocol = OneAtATime()
    async with running(protocol) as run:
        await run.client.send(b"one")
        await until(lambda: protocol.calls[-1] == ("data", b"one"))
        await run.client.send(b"two")
        await trio.testing.wait_all_tasks_blocked(QUIET)
        assert protocol.calls[-1] == ("data", b"one")
        run.transport.resume_reading()
        await until(lambda: protocol.calls[-1] == ("data", b"onetwo"))
        assert not run.transport.is_reading()


async def test_closing_while_reading_is_paused_ends_it() -> None:
    protocol = Recorder()
    async with running(protocol) as run:
        run.transport.pause_reading()
        await run.client.send(b"unread")
        await trio.testing.wait_all_tasks_blocked(QUIET)
        run.transport.close()
        await run.ended.wait()
    assert protocol.calls == [("made",), ("lost", None)]


async def test_a_reset_is_noticed_while_reading_is_paused() -> None:
    protocol = Recorder()
    async with running(protocol) as run:
        run.transport.pause_reading()
        await trio.testing.wait_all_tasks_blocked()
        run.client.abort()
        await run.ended.wait()
    assert protocol.names == ["made", "lost"]
    assert isinstance(protocol.calls[-1][1], ConnectionResetError)


# --- writing ---


async def test_flow_control_tells_when_to_pause_and_when_to_resume() -> None:
    protocol = Recorder()
    async with running(protocol) as run:
        run.transport.set_write_buffer_limits(high=100_000, low=20_000)
        written = await fill_kernel(run.connection)
        while protocol.names == ["made"]:
            assert run.transport.get_write_buffer_size() <= 100_000
            run.transport.write(bytes(50_000))  # called from within the write that goes beyond the mark
            written += 50_000
        assert protocol.names == ["made", "pause"]
        assert run.transport.get_write_buffer_size() > 100_000
        run.transport.write(b"more")
        written += 4
        assert protocol.names == ["made", "pause"]  # once
        await trio.testing.wait_all_tasks_blocked(QUIET)
        assert protocol.names == ["made", "pause"]
        await receive_exactly(run.client, written)
        await until(lambda: protocol.names == ["made", "pause", "resume"])
        assert run.transport.get_write_buffer_size() <= 20_000
        while protocol.names[-1] != "pause":  # and again
            run.transport.write(bytes(50_000))


@pytest.mark.parametrize("state", ["reading is paused", "the peer has ended its side", "both"])
async def test_writing_is_resumed_whatever_reading_does(state: str) -> None:
    class KeepsItsSide(Recorder):
        def eof_received(self) -> bool | None:
            super().eof_received()
            return True

    protocol = KeepsItsSide()
    async with running(protocol) as run:
        if state != "the peer has ended its side":
            run.transport.pause_reading()
        if state != "reading is paused":
            await run.client.send_eof()
            await trio.testing.wait_all_tasks_blocked(QUIET)
        written = 0
        for _ in range(3):
            while protocol.names[-1] != "pause":
                run.transport.write(bytes(1 << 20))
                written += 1 << 20
            await receive_exactly(run.client, written)
            written = 0
            await until(lambda: protocol.names[-1] == "resume")
        run.transport.resume_reading()
        run.transport.write(b"the end")
        run.transport.close()
        assert await receive_all(run.client) == b"the end"
        await run.client.aclose()
        await run.ended.wait()
        assert protocol.calls[-1] == ("lost", None)
        assert run.error is None


async def test_a_high_mark_of_0_pauses_whenever_something_is_unsent() -> None:
    protocol = Recorder()
    async with running(protocol) as run:
        run.transport.write(bytes(24 << 20))
        assert protocol.names == ["made", "pause"]
        await receive_exactly(run.client, 24 << 20)
        await until(lambda: protocol.names == ["made", "pause", "resume"])
        run.transport.write(bytes(24 << 20))
        run.transport.set_write_buffer_limits(high=0)
        assert run.transport.get_write_buffer_limits() == (0, 0)
        await receive_exactly(run.client, 24 << 20)
        await until(lambda: protocol.names == ["made", "pause", "resume"] * 1 + ["pause", "resume"])
        assert run.transport.get_write_buffer_size() == 0


async def test_lowering_the_mark_below_what_is_unsent_pauses() -> None:
    protocol = Recorder()
    async with running(protocol) as run:
        run.transport.set_write_buffer_limits(high=1 << 30)
        run.transport.write(bytes(24 << 20))
        assert protocol.names == ["made"]
        run.transport.set_write_buffer_limits(high=1 << 20)
        assert protocol.names == ["made", "pause"]


@pytest.mark.parametrize("call", ["pause_writing", "resume_writing"])
async def test_an_exception_in_flow_control_is_logged_and_that_is_all(
    call: str, caplog: pytest.LogCaptureFixture
) -> None:
    protocol = Recorder()
    setattr(protocol, call, lambda: 1 / 0)
    async with running(protocol) as run:
        run.transport.write(bytes(24 << 20))
        await receive_exactly(run.client, 24 << 20)
        await until(lambda: run.transport.get_write_buffer_size() == 0)
        await until(lambda: any(record.exc_info for record in caplog.records))
        run.transport.write(b"goes on")
        assert await receive_exactly(run.client, 7) == b"goes on"
    assert f"{call}() of the protocol" in caplog.text


async def test_closing_sends_what_was_written_first() -> None:
    protocol = Recorder()
    async with running(protocol) as run:
        run.transport.write(bytes(24 << 20))
        run.transport.close()
        assert run.transport.is_closing()
        run.transport.write(b"dropped")
        assert len(await receive_all(run.client)) == 24 << 20
        await run.ended.wait()
        assert run.error is None
    assert protocol.names == ["made", "pause", "resume", "lost"]
    assert protocol.calls[-1] == ("lost", None)


async def test_closing_with_a_peer_that_does_not_read_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    protocol = Recorder()
    client, connection = await open_pair()
    run = Running(client, protocol)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.run, connection)
        await trio.testing.wait_all_tasks_blocked()
        begun = trio.current_time()
        run.transport.write(bytes(64 << 20))
        run.transport.close()
        await run.ended.wait()
        assert trio.current_time() - begun == pytest.approx(5)
    assert isinstance(protocol.calls[-1][1], TimeoutError)
    assert isinstance(run.error, trio.BrokenResourceError)
    with pytest.raises(trio.BrokenResourceError):
        await receive_all(client)
    client.abort()


async def test_half_closing_waits_for_what_was_written() -> None:
    protocol = Recorder()
    async with running(protocol) as run:
        run.transport.write(bytes(24 << 20))
        run.transport.write_eof()
        await trio.testing.wait_all_tasks_blocked()
        assert len(await receive_all(run.client)) == 24 << 20
        await run.client.send(b"the other direction is open")
        await until(lambda: protocol.calls[-1] == ("data", b"the other direction is open"))
        with pytest.raises(RuntimeError):
            run.transport.write(b"more")
        await run.client.send_eof()
        await run.ended.wait()
    assert protocol.calls[-2:] == [("eof",), ("lost", None)]


async def test_aborting_resets_the_connection_and_is_told_soon() -> None:
    protocol = Recorder()
    async with running(protocol) as run:
        run.transport.write(bytes(24 << 20))
        run.transport.abort()
        assert protocol.names[-1] != "lost"
        run.transport.write(b"dropped")
        assert run.transport.get_write_buffer_size() == 0
        assert run.transport.get_extra_info("peername", "gone") is not None
        await run.ended.wait()
        assert run.error is None
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(run.client)
    assert protocol.calls[-1] == ("lost", None)


async def test_what_is_unsent_has_a_limit() -> None:
    protocol = Recorder()
    async with running(protocol, write_limit=8 << 20) as run:
        written = 0
        while not run.transport.is_closing():
            assert written < 1 << 30
            run.transport.write(bytes(1 << 20))
            written += 1 << 20
        await run.ended.wait()
        assert isinstance(run.error, SlowReader)
    assert protocol.names == ["made", "pause", "lost"]
    assert isinstance(protocol.calls[-1][1], SlowReader)
    with pytest.raises(ValueError, match="write_limit"):
        ProtocolHandler(Recorder, write_limit=0)
    with pytest.raises(TypeError, match="factory"):
        ProtocolHandler(Recorder())  # type: ignore[arg-type]


async def test_a_write_to_a_peer_that_is_gone_is_told_by_connection_lost() -> None:
    class KeepsItsSide(Recorder):
        def eof_received(self) -> bool | None:
            super().eof_received()
            return True

    protocol = KeepsItsSide()
    async with running(protocol) as run:
        await run.client.aclose()
        await until(lambda: protocol.names == ["made", "eof"])
        while not run.ended.is_set():  # the first write is answered by a reset
            run.transport.write(b"hello there?")
            await trio.testing.wait_all_tasks_blocked(QUIET)
        assert isinstance(run.error, trio.BrokenResourceError)
    assert isinstance(protocol.calls[-1][1], OSError)
    assert protocol.calls[-1][1].errno in (errno.EPIPE, errno.ECONNRESET)


async def test_protocols_of_different_connections_write_to_each_other() -> None:
    members: list[Recorder] = []

    class Chat(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            members.append(self)

        def data_received(self, data: bytes) -> None:
            for each in members:
                each.transport.write(data)

        def connection_lost(self, _exc: Exception | None) -> None:
            members.remove(self)

    async with trio.open_nursery() as nursery:
        server = await nursery.start(gain_trio.serve, ProtocolHandler(Chat), "tcp://127.0.0.1:0")
        host, port = server.addresses[0]
        clients = [await gain_trio.connect(f"tcp://{host}:{port}") for _ in range(10)]
        await until(lambda: len(members) == 10)
        for client in clients:
            await client.send(b"hello")
        for client in clients:
            assert await receive_exactly(client, 50) == b"hello" * 10
            await client.aclose()
        await until(lambda: not members)
        nursery.cancel_scope.cancel()


# --- what else there is ---


async def test_a_buffer_without_room_is_an_error() -> None:
    class Full(Buffered):
        def get_buffer(self, _sizehint: int) -> bytearray:
            return bytearray()

    protocol = Full()
    async with running(cast("Recorder", protocol)) as run:
        await run.client.send(b"hello")
        await run.ended.wait()
        assert isinstance(run.error, RuntimeError)
    assert protocol.calls[-1] == ("lost", run.error)


async def test_a_buffered_protocol_that_pauses_gets_the_rest_later() -> None:
    class Pauses(Buffered):
        def buffer_updated(self, nbytes: int) -> None:
            self.recorder.data_received(bytes(self.buffer[:nbytes]))
            self.recorder.transport.pause_reading()

    protocol = Pauses()
    async with running(cast("Recorder", protocol)) as run:
        await run.client.send(b"onetwothree")
        for count in (3, 6, 9, 11):
            await until(lambda count=count: len(protocol.calls[-1][-1]) == count)  # type: ignore[misc]
            await trio.testing.wait_all_tasks_blocked(QUIET)
            assert protocol.calls[-1] == ("data", b"onetwothree"[:count])
            protocol.recorder.transport.resume_reading()


async def test_a_protocol_need_not_inherit_from_asyncios() -> None:
    calls = []

    class Plain:
        def connection_made(self, transport: asyncio.Transport) -> None:
            calls.append(transport)

        def data_received(self, data: bytes) -> None:
            calls[0].write(data)

        def eof_received(self) -> None: ...

        def connection_lost(self, exc: Exception | None) -> None:
            calls.append(exc)  # type: ignore[arg-type]

    client, connection = await open_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ProtocolHandler(Plain), connection)  # type: ignore[arg-type]
        await client.send(b"hello")
        assert await receive_exactly(client, 5) == b"hello"
        await client.aclose()
    assert calls[1:] == [None]


async def test_there_is_no_event_loop() -> None:
    class Asks(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            asyncio.get_running_loop()

    async with running(Asks()) as run:
        await run.ended.wait()
        assert isinstance(run.error, RuntimeError)
        assert "no running event loop" in str(run.error)


async def test_over_tls() -> None:
    class Curious(Echo):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            info = transport.get_extra_info
            assert info("cipher") == info("ssl_object").cipher()
            assert isinstance(info("sslcontext"), ssl.SSLContext)
            assert info("compression", "default") is None
            assert info("peercert") is None
            assert info("ssl_object").version() == "TLSv1.3"
            with pytest.raises(AttributeError, match="no 'write'"):
                info("ssl_object").write(b"no")
            assert not self.transport.can_write_eof()
            with pytest.raises(NotImplementedError):
                self.transport.write_eof()

        def eof_received(self) -> bool | None:
            super().eof_received()
            return True  # which has no effect with TLS

    protocol = Curious()
    async with running(protocol, open_tls_pair) as run:
        assert "ProtocolTransport open" in repr(run.transport)
        await run.client.send(b"hello")
        assert await receive_exactly(run.client, 5) == b"hello"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run.client.send, bytes(4 << 20))
            await receive_exactly(run.client, 4 << 20)
        await run.client.aclose()
        await run.ended.wait()
        assert run.error is None
    assert (protocol.names[0], protocol.names[-2:]) == ("made", ["eof", "lost"])
    assert protocol.calls[-1] == ("lost", None)


@pytest.mark.parametrize("high", [None, 0, 1 << 20])
async def test_over_tls_writing_is_resumed(high: int | None) -> None:
    """Whatever a protocol that obeys has written before it was told to pause: it writes nothing that could be told of."""

    class Obeys(Recorder):
        left = 24 << 20

        def resume_writing(self) -> None:
            super().resume_writing()
            self.go_on()

        def go_on(self) -> None:
            while self.left and self.names[-1] != "pause":
                self.left -= 1 << 14
                self.transport.write(bytes(1 << 14))
            if not self.left:
                self.transport.close()

    protocol = Obeys()
    async with running(protocol, open_tls_pair) as run:
        run.transport.set_write_buffer_limits(high)
        protocol.go_on()
        assert protocol.names[-1] == "pause"
        assert len(await receive_all(run.client)) == 24 << 20
        await run.ended.wait()
    assert protocol.calls[-1] == ("lost", None)


async def test_over_tls_a_close_is_told_from_a_cut() -> None:
    """close_notify distinguishes the two; without it the end would be an error for the peer."""
    protocol = Echo()
    async with running(protocol, open_tls_pair) as run:
        await run.client.send(b"hello")
        assert await receive_exactly(run.client, 5) == b"hello"
        run.transport.write(b", and that is all")
        run.transport.close()
        assert await receive_all(run.client) == b", and that is all"
        await run.ended.wait()
        assert run.error is None
    assert protocol.calls[-1] == ("lost", None)


async def test_over_tls_the_peers_end_is_answered_by_one() -> None:
    protocol = Echo()
    async with running(protocol, open_tls_pair) as run:
        await run.client.send(b"hello")
        assert await receive_exactly(run.client, 5) == b"hello"
        run.client._close_notify()
        assert await receive_all(run.client._below)  # encrypted as it is, it can be nothing else
        await run.ended.wait()
        assert run.error is None
    assert protocol.names[-2:] == ["eof", "lost"]


async def test_over_tls_a_peer_that_does_not_take_the_end_is_waited_for_as_long(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """close_notify cannot leave, though all that was written could; the 5 seconds are for both."""
    protocol = Recorder()
    client, connection = await open_tls_pair()
    run = Running(client, protocol)
    await fill_kernel(connection._below)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.run, connection)
        await trio.testing.wait_all_tasks_blocked()
        begun = trio.current_time()
        run.transport.close()
        await run.ended.wait()
        assert trio.current_time() - begun == pytest.approx(5)
    assert isinstance(protocol.calls[-1][1], TimeoutError)
    assert isinstance(run.error, trio.BrokenResourceError)
    with pytest.raises(trio.BrokenResourceError):
        await receive_all(client._below)
    client.abort()


async def test_over_tls_an_abort_is_no_close() -> None:
    protocol = Recorder()
    async with running(protocol, open_tls_pair) as run:
        run.transport.abort()
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(run.client)
        await run.ended.wait()
        assert run.error is None
    assert protocol.calls[-1] == ("lost", None)


@pytest.mark.slow
def test_a_handler_can_be_given_to_worker_processes() -> None:
    handler = ProtocolHandler(Echo, write_limit=5)
    copy = pickle.loads(pickle.dumps(handler))
    assert repr(copy) == repr(handler) == "<gain_trio.asyncio_bridge.ProtocolHandler(Echo)>"
    assert vars(copy) == vars(handler)


def test_the_transport_has_every_method_of_asyncios() -> None:
    missing = [
        name for name in dir(asyncio.Transport) if not name.startswith("_") and name not in vars(ProtocolTransport)
    ]
    assert not missing


# --- a protocol of another project ---

LANGUAGE_SERVER = """
import logging
import warnings

warnings.simplefilter("ignore")  # pygls has some

from lsprotocol import types
from pygls.server import LanguageServer

import gain_trio

logging.basicConfig(level=logging.ERROR, format="%(message)s")
server = LanguageServer("upper", "1")


@server.feature(types.TEXT_DOCUMENT_HOVER)
def hover(ls, params):
    line = ls.workspace.get_text_document(params.text_document.uri).lines[params.position.line]
    return types.Hover(contents=types.MarkupContent(kind=types.MarkupKind.PlainText, value=line.upper()))


async def main():
    import trio

    async with trio.open_nursery() as nursery:
        served = await nursery.start(gain_trio.serve, gain_trio.asyncio_bridge.ProtocolHandler(server.lsp), "tcp://127.0.0.1:0")
        print(served.addresses[0][1], flush=True)


gain_trio.run(main)
"""


@pytest.fixture
def language_server(tmp_path: Path) -> Iterator[Any]:
    from support.processes import running as program_running

    path = tmp_path / "language_server.py"
    path.write_text(LANGUAGE_SERVER)
    with program_running(path) as program:
        yield program


@pytest.mark.slow
def test_a_language_server_of_pygls_runs_on_it(language_server: Any) -> None:
    """pygls' protocol is an asyncio.Protocol, as pygls' own start_tcp() gives it to create_server()."""
    import json

    with connect("127.0.0.1", int(language_server.line())) as client:

        def send(**message: object) -> None:
            body = json.dumps({"jsonrpc": "2.0", **message}).encode()
            client.sendall(b"Content-Length: %d\r\n\r\n" % len(body) + body)

        def receive() -> Any:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += read_exactly(client, 1)
            length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
            return json.loads(read_exactly(client, length))

        send(id=1, method="initialize", params={"processId": None, "rootUri": None, "capabilities": {}})
        answer = receive()
        assert answer["id"] == 1
        assert answer["result"]["capabilities"]["hoverProvider"]
        assert answer["result"]["serverInfo"] == {"name": "upper", "version": "1"}
        send(method="initialized", params={})
        document = {"uri": "file:///x", "languageId": "text", "version": 1, "text": "one\ntwo words\n"}
        send(method="textDocument/didOpen", params={"textDocument": document})
        where = {"textDocument": {"uri": "file:///x"}, "position": {"line": 1, "character": 0}}
        for number in range(2, 50):  # pipelined
            send(id=number, method="textDocument/hover", params=where)
        for number in range(2, 50):
            answer = receive()
            assert (answer["id"], answer["result"]["contents"]["value"].strip()) == (number, "TWO WORDS")
    # When the client is gone this protocol calls sys.exit(1), and that ends the program, as under asyncio.
    status, _out, err = language_server.end()
    assert status == 1
    assert "Connection to the client is lost" in err

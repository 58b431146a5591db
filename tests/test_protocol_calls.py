"""A protocol on one connection: its errors, its reading and its writing."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging

import pytest
import trio
import trio.testing
from support.pairs import QUIET, fill_kernel, open_pair, receive_all, receive_exactly, until
from support.protocols import Recorder, Running, running

import gain_trio
from gain_trio import Marks
from gain_trio.asyncio_bridge import ProtocolHandler
from gain_trio.callbacks import SlowReader

pytestmark = pytest.mark.connections


# --- one connection at a time ---


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
    await fill_kernel(connection)
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

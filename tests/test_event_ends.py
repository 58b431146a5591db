"""The end of servers of callbacks: by shutdown, drain and signals, in one process and in several."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from support.event_servers import Recorder
from support.pairs import PATIENCE, open_pair, receive_all, receive_exactly, until
from support.processes import connect as connect_blocking
from support.processes import run, running
from support.worker_handlers import Unhurried
from support.workers import ARCHITECTURES, children
from trio.testing import MockClock, wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection, Marks
from gain_trio.callbacks import Config, Conn, EventHandler, EventServer, InvalidState, _stream_driver
from gain_trio.callbacks import _event_server as server_module
from gain_trio.callbacks._event_server import callbacks_of
from gain_trio.callbacks._stream_driver import StreamDriver

pytestmark = [pytest.mark.connections, pytest.mark.usefixtures("forked_workers")]

LOCAL = "tcp://127.0.0.1:0"
THREADS = pytest.mark.parametrize("async_handler", [False, True], ids=["in the run", "in threads"])


async def start(nursery: trio.Nursery, handler: EventHandler, address: str = LOCAL, **options: Any) -> EventServer:
    server = await nursery.start(lambda **status: gain_trio.callbacks.serve(handler, address, **options, **status))
    assert isinstance(server, EventServer)
    return server


async def connect(server: EventServer | gain_trio.Server) -> Connection:
    host, port = server.addresses[0]
    return await gain_trio.connect(f"tcp://{host}:{port}")


async def refuses(address: tuple[Any, ...]) -> bool:
    try:
        await (await trio.open_tcp_stream(*address)).aclose()
    except OSError:
        return True
    return False


# --- worker processes ---


@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_callbacks_in_other_processes_run_to_their_end(architecture: str, tmp_path: Path) -> None:
    go_on, closed = tmp_path / "go on", tmp_path / "closed"
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            server = await start(nursery, Unhurried(go_on, closed), processes=1, architecture=architecture)
            address = server.addresses[0]
            async with await connect(server) as client, await connect(server) as idle:
                go_on.touch()
                await idle.send(b"hello")
                assert await receive_exactly(idle, 14) == b"begun and done"
                go_on.unlink()
                await client.send(b"hello")
                assert await receive_exactly(client, 5) == b"begun"
                server.async_shutdown()
                assert await receive_all(idle) == b"", "so the process knows"
                assert await refuses(address)
                go_on.touch()
                assert await receive_all(client) == b" and done"
        # callbacks.serve() has returned
    assert closed.read_text() == "None"
    assert children() == []


async def test_connections_in_other_processes_that_are_idle_do_not_hold_the_end_up(tmp_path: Path) -> None:
    go_on = tmp_path / "go on"
    go_on.touch()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            options = {"processes": 1, "graceful_timeout": float("inf")}
            server = await start(nursery, Unhurried(go_on, tmp_path / "closed"), **options)
            async with await connect(server) as client:
                await client.send(b"hello")
                assert await receive_exactly(client, 14) == b"begun and done"
                server.async_shutdown()
                assert await receive_all(client) == b""


async def test_callbacks_in_other_processes_that_do_not_end_are_cancelled(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            options = {"processes": 1, "graceful_timeout": 0.05}
            server = await start(nursery, Unhurried(tmp_path / "never", closed), **options)
            async with await connect(server) as client:
                await client.send(b"hello")
                assert await receive_exactly(client, 5) == b"begun"
                await trio.to_thread.run_sync(server.shutdown)
                assert await receive_all(client) == b""
    assert closed.read_text() == "None"
    assert server.cut_off == 1


@pytest.mark.slow
async def test_a_process_that_is_replaced_closes_what_is_idle(tmp_path: Path) -> None:
    go_on = tmp_path / "go on"
    go_on.touch()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            options = {"processes": 1, "graceful_timeout": float("inf")}
            server = await start(nursery, Unhurried(go_on, tmp_path / "closed"), **options)
            async with await connect(server) as client:
                await client.send(b"hello")
                assert await receive_exactly(client, 14) == b"begun and done"
                await server._server._renew()
                assert await receive_all(client) == b""
            async with await connect(server) as client:
                await client.send(b"hello")
                assert await receive_exactly(client, 14) == b"begun and done"
            server.async_shutdown()


# --- datagrams ---


async def test_callbacks_of_datagrams_have_their_time(mock_clock: MockClock) -> None:
    inside, over = trio.Event(), trio.Event()

    class Endless(EventHandler):
        async def on_read(self, _conn: Conn, _n: int) -> None:
            inside.set()
            try:
                await trio.sleep_forever()
            finally:
                over.set()

    async with trio.open_nursery() as nursery:
        server = await start(nursery, Endless(), "udp://127.0.0.1:0", graceful_timeout=60)
        with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as client:
            await client.sendto(b"?", server.addresses[0])
            await inside.wait()
        server.async_shutdown()
        await wait_all_tasks_blocked()
        mock_clock.jump(59)
        await wait_all_tasks_blocked(0.05)
        assert not over.is_set()
        mock_clock.jump(1)
        await over.wait()
    assert server.cut_off == 1


async def test_connections_that_do_not_end_in_time_are_counted(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    inside = trio.Event()

    class Endless(EventHandler):
        async def on_read(self, _conn: Conn, _n: int) -> None:
            inside.set()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        server = await start(nursery, Endless(), graceful_timeout=60)
        async with await connect(server), await connect(server) as client:
            await client.send(b"?")
            await inside.wait()
            await until(lambda: server.active_connections == 2)
            server.async_shutdown()
            await until(lambda: server.active_connections == 1)  # the one that is idle ends at once
            await wait_all_tasks_blocked()
            mock_clock.jump(60)
            assert await receive_all(client) == b""
    assert server.cut_off == 1
    [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "cuts off 1 connections, which have not ended within the 60 seconds" in line


@pytest.mark.parametrize(
    ("seconds", "error"), [(-1, ValueError), (float("nan"), ValueError), ("5", TypeError), (True, TypeError)]
)
def test_a_time_to_end_that_is_none(seconds: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="graceful_timeout"):
        EventServer(EventHandler(), graceful_timeout=seconds)


# --- a server that drains ---


@THREADS
async def test_what_has_arrived_is_told_when_the_server_drains(async_handler: bool) -> None:
    inside, go_on = threading.Event(), threading.Event()
    heard: list[bytes] = []

    class Slow(Recorder):
        def on_read(self, conn: Conn, n: int) -> None:
            heard.append(conn.next(n))
            conn.write(b"heard")
            if async_handler and len(heard) == 1:
                inside.set()
                go_on.wait(PATIENCE)

    class SlowInTheRun(Slow):
        async def on_read(self, conn: Conn, n: int) -> None:  # type: ignore[override]
            super().on_read(conn, n)
            if len(heard) == 1:
                inside.set()
                await until(go_on.is_set)

    recorder = Slow() if async_handler else SlowInTheRun()
    driver = StreamDriver(callbacks_of(recorder), Config(async_handler=async_handler), Marks())
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(gain_trio.serve, driver, LOCAL)
            async with await connect(server) as client:
                await client.send(b"one")
                await until(inside.is_set)
                server._begin_to_drain(float("inf"))
                await client.send(b"two")
                await client.flush()
                go_on.set()
                assert await receive_all(client) == b"heardheard"
    assert heard == [b"one", b"two"]
    assert recorder.reasons == [None]


@THREADS
async def test_a_connection_that_comes_while_the_server_drains_is_served(
    async_handler: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_stream_driver, "FIRST_SECONDS", PATIENCE)
    recorder = Recorder({"on_read": lambda conn, n: conn.write(conn.next(n).upper())})
    driver = StreamDriver(callbacks_of(recorder), Config(async_handler=async_handler), Marks())
    early, late = await open_pair(), await open_pair()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(gain_trio.serve, driver, LOCAL)
            server._hand_off(early[1])
            await until(lambda: recorder.counts["on_accept"] == 1)
            server._begin_to_drain(float("inf"))
            await wait_all_tasks_blocked()
            server._hand_off(late[1])
            await until(lambda: recorder.counts["on_accept"] == 2)
            for client, _served in (late, early):  # neither has said anything before
                await client.send(b"please")
                assert await receive_all(client) == b"PLEASE"
                await client.aclose()
    assert recorder.reasons == [None, None]
    assert not recorder.unexpected


async def test_a_connection_that_says_nothing_does_not_keep_a_server_that_drains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_stream_driver, "FIRST_SECONDS", 0.0)
    recorder = Recorder()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(
                gain_trio.serve, StreamDriver(callbacks_of(recorder), Config(), Marks()), LOCAL
            )
            async with await connect(server) as client:
                await until(lambda: recorder.counts["on_accept"] == 1)
                await server.drain(float("inf"))
                assert await receive_all(client) == b""
    assert recorder.reasons == [None]


async def test_a_signal_that_drains_ends_idle_connections() -> None:
    recorder = Recorder({"on_read": lambda conn, n: conn.write(conn.next(n))})
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            server = await start(nursery, recorder, signals=True, graceful_timeout=float("inf"))
            async with await connect(server) as client:
                await client.send(b"here")
                assert await receive_exactly(client, 4) == b"here"
                os.kill(os.getpid(), signal.SIGTERM)
                assert await receive_all(client) == b""
    assert recorder.reasons == [None]


# --- signals ---

PROGRAM = """
import sys
from pathlib import Path
import trio
import gain_trio
import gain_trio._command._cli

class Handler(gain_trio.callbacks.EventHandler):
    def on_start(self, server):
        print(*server.addresses[0], flush=True)
    async def on_read(self, conn, n):
        print("begun", flush=True)
        try:
            await trio.sleep_forever()
        finally:
            print("cut off", flush=True)
    async def on_close(self, conn, err):
        while not Path(sys.argv[1]).exists():
            await trio.sleep(0.01)

handler = Handler()
if __name__ == "__main__":
    START
    print("down", flush=True)
"""

IN_PROGRAMS = [
    'gain_trio.callbacks.EventServer(handler, graceful_timeout=3600).start_as_main_process("tcp://127.0.0.1:0")',
    'gain_trio.callbacks.listen_and_serve("tcp://127.0.0.1:0", handler, graceful_timeout=3600)',
    'gain_trio._command._cli.main(["serve", "tcp://127.0.0.1:0", "--handler", "program:handler"])',
]


def wait_until_it_has_stopped_listening(host: str, port: int) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            connect_blocking(host, port).close()
        except OSError:
            return
        time.sleep(0.01)
    raise AssertionError("it still listens")


@pytest.mark.parametrize("start", IN_PROGRAMS, ids=["start_as_main_process", "listen_and_serve", "the command"])
def test_the_second_signal_cancels_and_those_after_it_do_no_harm(start: str, tmp_path: Path) -> None:
    program, go_on = tmp_path / "program.py", tmp_path / "go on"
    program.write_text(PROGRAM.replace("START", start))
    with running(program, go_on, cwd=tmp_path) as process:
        host, port = process.line().split()
        if "_cli" in start:
            assert process.line().startswith("serving")
        with connect_blocking(host, int(port)) as client:
            client.sendall(b"?")
            assert process.line() == "begun"
            process.interrupt(signal.SIGTERM)
            wait_until_it_has_stopped_listening(host, int(port))
            process.interrupt(signal.SIGTERM)
            assert process.line() == "cut off"
            process.interrupt(signal.SIGTERM)
            go_on.touch()
            assert process.end() == (0, "down\n", "")


# --- shut down while it starts ---


class OverAtOnce(EventHandler):
    async def on_start(self, server: EventServer) -> None:
        server.async_shutdown()
        await trio.sleep_forever()


@pytest.mark.parametrize("start", [EventServer.start, EventServer.start_as_main_process])
def test_a_program_that_is_shut_down_in_an_on_start_that_waits(start: Callable[[EventServer, str], None]) -> None:
    start(EventServer(OverAtOnce()), LOCAL)


@pytest.mark.parametrize("start", [EventServer.start, EventServer.start_as_main_process])
@pytest.mark.parametrize("name", ["check_network", "serve_connections"])
def test_a_program_that_is_shut_down_before_it_listens(
    start: Callable[[EventServer, str], None], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread shuts it down, before the run has the server, and after that."""
    server = EventServer(EventHandler())
    called = getattr(server_module, name)

    def shut_down_and_call(*arguments: Any, **options: Any) -> object:
        server.async_shutdown()
        return called(*arguments, **options)

    monkeypatch.setattr(server_module, name, shut_down_and_call)
    start(server, LOCAL)
    assert not server.is_running


async def test_one_that_is_shut_down_in_on_start_has_started_for_whoever_started_it() -> None:
    async with trio.open_nursery() as nursery:
        server = await start(nursery, OverAtOnce())
    assert "not started" in repr(server)


async def test_one_that_is_cancelled_in_on_start_has_not_started() -> None:
    class Waiting(EventHandler):
        async def on_start(self, server: EventServer) -> None:  # noqa: ARG002 - the callback's signature
            scope.cancel()
            await trio.sleep_forever()

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await start(nursery, Waiting())
            raise AssertionError("it has not")
    assert scope.cancelled_caught


def test_the_command_whose_server_is_shut_down_in_on_start(tmp_path: Path) -> None:
    (tmp_path / "over.py").write_text(OVER)
    status, _out, err = run("-m", "gain_trio", "serve", LOCAL, "--handler", "over:OverAtOnce", cwd=tmp_path)
    assert (status, err) == (0, "")


OVER = """
import gain_trio
import trio

class OverAtOnce(gain_trio.callbacks.EventHandler):
    async def on_start(self, server):
        server.async_shutdown()
        await trio.sleep_forever()
"""


# --- who must not wait for the end ---


async def shut_down_in_a_thread(server: EventServer) -> None:
    with pytest.raises(InvalidState, match="async_shutdown"):
        await trio.to_thread.run_sync(server.shutdown)


async def shut_down_in_a_thread_of_a_task(server: EventServer) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shut_down_in_a_thread, server)


@pytest.mark.parametrize("attempt", [shut_down_in_a_thread, shut_down_in_a_thread_of_a_task])
@pytest.mark.parametrize("network", ["tcp", "udp"])
async def test_a_callback_that_waits_for_a_thread_that_would_wait_for_it(
    attempt: Callable[[EventServer], Awaitable[None]], network: str
) -> None:
    attempts: list[str] = []

    class Impatient(EventHandler):
        async def on_start(self, server: EventServer) -> None:
            self.server = server
            await attempt(server)
            attempts.append("on_start")

        async def on_read(self, conn: Conn, n: int) -> None:
            conn.discard(n)
            await attempt(self.server)
            attempts.append("on_read")
            self.server.async_shutdown()

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            server = await start(nursery, Impatient(), f"{network}://127.0.0.1:0")
            kind = trio.socket.SOCK_DGRAM if network == "udp" else trio.socket.SOCK_STREAM
            with trio.socket.socket(type=kind) as client:
                await client.connect(server.addresses[0])
                await client.send(b"?")
                while server.is_running:
                    await trio.lowlevel.checkpoint()
    assert attempts == ["on_start", "on_read"]


async def test_tasks_beside_the_server_may_wait_for_its_end() -> None:
    """They may also if the server runs in the task that owns their nursery."""
    ended: list[str] = []

    class Telling(EventHandler):
        async def on_start(self, server: EventServer) -> None:
            send.send_nowait(server)
            await trio.lowlevel.checkpoint()

    async def end() -> None:
        server = await receive.receive()
        await trio.to_thread.run_sync(server.shutdown)
        ended.append("shutdown")

    send, receive = trio.open_memory_channel[EventServer](1)
    with send, receive, trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end)
            await gain_trio.callbacks.serve(Telling(), LOCAL)
    assert ended == ["shutdown"]

"""EventServer as a program's, its states, and what it can be told."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import pickle
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import trio
from support.event_runs import write_back
from support.event_servers import Recorder, dial, started
from support.pairs import PATIENCE
from support.processes import connect, read_exactly, running
from trio.testing import MockClock, wait_all_tasks_blocked

import gain_trio
from gain_trio.callbacks import (
    AlreadyRunning,
    Config,
    Conn,
    EventHandler,
    EventServer,
    InvalidState,
    UnsupportedProtocol,
)
from gain_trio.callbacks._event_config import FIELDS, merged, ring_options, serve_options
from gain_trio.callbacks._event_server import callbacks_of
from gain_trio.callbacks._stream_driver import StreamDriver

pytestmark = pytest.mark.connections

LOCAL = "tcp://127.0.0.1:0"


# --- states ---


def test_a_server_can_be_started_again() -> None:
    recorder = Recorder({"on_read": write_back})
    server = EventServer(recorder)
    for turn in range(1, 4):
        assert not server.is_running
        assert server.addresses == ()
        thread = threading.Thread(target=server.start, args=(LOCAL,))
        thread.start()
        recorder.wait_for(on_start=turn)
        assert server.is_running
        with dial(server) as client:
            client.sendall(b"again")
            assert read_exactly(client, 5) == b"again"
        server.shutdown()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_a_second_start_is_refused() -> None:
    recorder = Recorder({"on_read": write_back})
    with started(recorder) as server:
        with pytest.raises(AlreadyRunning, match="running"):
            server.start(LOCAL)
        with dial(server) as client:  # and does no harm
            client.sendall(b"still")
            assert read_exactly(client, 5) == b"still"
    assert issubclass(AlreadyRunning, InvalidState)
    assert issubclass(InvalidState, RuntimeError)


def test_the_statistics_are_there_while_it_runs() -> None:
    recorder = Recorder()
    with started(recorder) as server:
        with dial(server):
            recorder.wait_for(on_accept=1)
            assert server.statistics().active == 1
        recorder.wait_for(on_close=1)
        assert "running" in repr(server)
    with pytest.raises(InvalidState, match="not started"):
        server.statistics()


def test_shutting_down_what_does_not_run() -> None:
    server = EventServer(Recorder())
    server.shutdown()
    server.async_shutdown()


@pytest.mark.parametrize("async_handler", [False, True], ids=["in the run", "in threads"])
def test_a_callback_that_would_wait_for_itself(async_handler: bool) -> None:
    def on_read(conn: Conn, n: int) -> None:
        conn.write(conn.next(n))
        with pytest.raises(InvalidState, match="async_shutdown"):
            server.shutdown()
        server.async_shutdown()

    recorder = Recorder({"on_read": on_read})
    with started(recorder, async_handler=async_handler) as server:
        with dial(server) as client:
            client.sendall(b"stop")
            assert read_exactly(client, 4) == b"stop", "what was written is sent"
            assert client.recv(1) == b""
        recorder.wait_for(on_close=1)
    assert recorder.numbers() == (1, 1, 1, 1)


def test_shutdown_lets_callbacks_end() -> None:
    inside = threading.Event()
    go_on = threading.Event()
    ended: list[str] = []

    def on_read(conn: Conn, n: int) -> None:
        inside.set()
        go_on.wait(PATIENCE)
        ended.append("on_read")
        conn.write(b"done")

    recorder = Recorder({"on_read": on_read})
    with started(recorder, async_handler=True) as server:
        with dial(server) as client:
            client.sendall(b"?")
            assert inside.wait(PATIENCE)
            server.async_shutdown()
            assert not server.is_running
            go_on.set()
            assert read_exactly(client, 4) == b"done"
            assert client.recv(1) == b""
    assert ended == ["on_read"]


def test_shut_down_in_on_start() -> None:
    recorder = Recorder({"on_start": lambda server: server.async_shutdown()})
    EventServer(recorder).start(LOCAL)
    assert recorder.counts["on_start"] == 1


@pytest.mark.parametrize(("options", "seconds"), [({}, 5), ({"graceful_timeout": 60}, 60)])
async def test_callbacks_that_do_not_end_are_cancelled(
    options: dict[str, float], seconds: float, mock_clock: MockClock
) -> None:
    inside, over = trio.Event(), trio.Event()

    class Endless(EventHandler):
        async def on_read(self, conn: Conn, n: int) -> None:  # noqa: ARG002 - the callback's signature
            inside.set()
            try:
                await trio.sleep_forever()
            finally:
                over.set()

    async with trio.open_nursery() as nursery:
        server = await nursery.start(lambda **status: gain_trio.callbacks.serve(Endless(), LOCAL, **options, **status))
        host, port = server.addresses[0]
        async with await gain_trio.connect(f"tcp://{host}:{port}") as client:
            await client.send(b"?")
            await inside.wait()
            server.async_shutdown()
            await wait_all_tasks_blocked()
            mock_clock.jump(seconds - 1)
            await wait_all_tasks_blocked(0.05)
            assert not over.is_set()
            mock_clock.jump(1)
            await over.wait()


async def test_shutdown_ends_serve() -> None:
    recorder = Recorder()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(gain_trio.callbacks.serve, recorder, LOCAL)
            await trio.to_thread.run_sync(server.shutdown)
            assert not server.is_running


async def test_a_server_that_runs_in_a_run_is_not_started_there() -> None:
    server = EventServer(Recorder())
    with pytest.raises(RuntimeError, match="run"):
        server.start(LOCAL)
    assert not server.is_running
    server.shutdown()


def test_the_main_process_is_the_main_thread() -> None:
    caught: list[BaseException] = []

    def start() -> None:
        try:
            EventServer(Recorder()).start_as_main_process(LOCAL)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join(PATIENCE)
    assert "main thread" in str(caught[0])


PROGRAM = """
import sys
import gain_trio

class Handler(gain_trio.callbacks.EventHandler):
    def on_start(self, server):
        print(*server.addresses[0], flush=True)
    def on_read(self, conn, n):
        conn.write(conn.next(n))
    def on_close(self, conn, err):
        print("closed", err, flush=True)

START
print("down", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "start",
    [
        'gain_trio.callbacks.EventServer(Handler()).start_as_main_process("tcp://127.0.0.1:0")',
        'gain_trio.callbacks.listen_and_serve("tcp://127.0.0.1:0", Handler(), workers=2)',
    ],
    ids=["start_as_main_process", "listen_and_serve"],
)
def test_a_program_ends_on_a_signal(start: str, number: signal.Signals, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace("START", start))
    with running(program) as process:
        host, port = process.line().split()
        with connect(host, int(port)) as client:
            client.sendall(b"hello")
            assert client.recv(5) == b"hello"
            process.interrupt(number)
            assert client.recv(5) == b""
            assert process.end() == (0, "closed None\ndown\n", "")


# --- what is wrong ---


@pytest.mark.parametrize(
    ("address", "cure"),
    [
        ("sctp://127.0.0.1:0", "tcp://, udp://, unix:// or fd://"),
        ("127.0.0.1:0", "tcp://, udp://, unix:// or fd://"),
        ("", "tcp://, udp://, unix:// or fd://"),
        ("tcp4://127.0.0.1:0", r"write tcp://.*0\.0\.0\.0"),
        ("udp6://[::1]:0", r"write udp://.*\[::\]"),
    ],
)
async def test_an_address_of_another_network(address: str, cure: str) -> None:
    with pytest.raises(UnsupportedProtocol, match=cure):
        await gain_trio.callbacks.serve(Recorder(), address)
    assert issubclass(UnsupportedProtocol, ValueError)


def test_what_is_wrong_is_raised_plainly() -> None:
    server = EventServer(Recorder())
    with pytest.raises(UnsupportedProtocol):
        server.start("sctp://127.0.0.1:0")
    with pytest.raises(ValueError, match="port"):
        server.start("tcp://127.0.0.1:99999")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(OSError, match="in use"):
            server.start(f"tcp://127.0.0.1:{taken.getsockname()[1]}")
    assert not server.is_running


class Generating(EventHandler):
    def on_read(self, conn: Conn, n: int) -> Any:
        yield conn.next(n)


class Attribute(EventHandler):
    on_close = "no function"  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (EventHandler, "is a class: write EventHandler"),
        (object(), "has no on_start"),
        (None, "has no on_start"),
        (Generating(), "is a generator"),
        (Attribute(), "has no on_close"),
    ],
)
def test_a_handler_that_is_none(handler: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        EventServer(handler)


async def test_callbacks_may_be_objects() -> None:
    """A handler need not be a subclass, nor a callback a method."""
    seen: list[object] = []

    class Later:
        async def __call__(self, conn: Conn) -> None:
            await trio.lowlevel.checkpoint()
            seen.append(conn)

    class Duck:
        on_accept = Later()

        def __init__(self) -> None:
            self.on_start = self.on_read = self.on_write = self.on_close = lambda *_: None

    handler: Any = Duck()
    async with trio.open_nursery() as nursery:
        server = await nursery.start(gain_trio.callbacks.serve, handler, LOCAL)
        async with await trio.open_tcp_stream("127.0.0.1", server.addresses[0][1]):
            with trio.fail_after(PATIENCE):
                while not seen:
                    await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


# --- the config ---


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"architecture": "threads"}, ValueError, "'reactor', 'socket_sharding'"),
        ({"workers": 0}, ValueError, "at least 1"),
        ({"workers": 1.5}, TypeError, "whole number"),
        ({"async_handler": 1}, TypeError, "True or False"),
        ({"pool_size": 0}, ValueError, "at least 1"),
        ({"socket_recv_buffer_size": -1}, ValueError, "at least 0"),
        ({"tcp_keep_alive": 0.5}, ValueError, "at least 1"),
        ({"tcp_keep_alive": float("nan")}, ValueError, "at least 1"),
        ({"logger_level": "LOUD"}, ValueError, "level"),
        ({"logger_level": True}, TypeError, "level"),
        ({"max_sq_entries": 0}, ValueError, "at least 1"),
        ({"write_limit": 0}, ValueError, "at least 1"),
        ({"write_policy": "drop"}, ValueError, "'close', 'raise'"),
    ],
)
def test_an_option_that_makes_no_sense(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Config(**options)
    with pytest.raises(error, match=message):
        EventServer(Recorder(), Config(), **options)


def test_a_config_that_is_none() -> None:
    with pytest.raises(TypeError, match=r"gain_trio\.callbacks\.Config"):
        EventServer(Recorder(), {"workers": 2})  # type: ignore[arg-type]


async def test_an_option_that_nobody_knows() -> None:
    with pytest.raises(TypeError, match="colour"):
        await gain_trio.callbacks.serve(Recorder(), LOCAL, colour="red")


async def test_the_priority_of_a_server_in_one_process_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, int, int]] = []

    def refuse(which: int, who: int, value: int) -> None:
        taken.append((which, who, value))
        raise PermissionError(errno.EACCES, "no privilege")

    monkeypatch.setattr(os, "setpriority", refuse)
    with pytest.raises(PermissionError, match="CAP_SYS_NICE"):
        await gain_trio.callbacks.serve(Recorder(), LOCAL, process_priority=True)
    assert taken == [(os.PRIO_PROCESS, 0, -19)]


def test_gains_fifteen_options_have_their_place() -> None:
    options: dict[str, Any] = {
        "architecture": "socket_sharding",
        "async_handler": True,
        "pool": True,
        "cpu_affinity": True,
        "process_priority": True,
        "workers": 3,
        "cbpf": True,
        "load_balancing": "least_connections",
        "socket_recv_buffer_size": 4096,
        "socket_send_buffer_size": 8192,
        "tcp_keep_alive": 60,
        "logger_level": "info",
        "pretty_logger": True,
        "max_sq_entries": 512,
        "max_cq_events": 2048,
    }
    assert len(options) == 15
    assert options.keys() < FIELDS
    config, others = merged(Config(workers=7), {**options, "strict": True})
    assert others == {"strict": True}
    assert config.logger_level == "INFO"
    assert serve_options(config, others) == {
        "architecture": "socket_sharding",
        "workers": 3,
        "cbpf": True,
        "cpu_affinity": True,
        "processes": "auto",
        "priority": -19,
        "balancer": "least_connections",
        "receive_buffer": 4096,
        "send_buffer": 8192,
        "keep_alive": 60,
        "strict": True,
    }
    assert serve_options(config, {"processes": 2})["processes"] == 2, "what is given wins"
    assert serve_options(Config(), {}) == {}
    ring = ring_options(config)
    assert ring is not None
    assert (ring.entries, ring.completion_entries) == (512, 2048)
    assert ring_options(Config()) is None
    with pytest.raises(AttributeError):
        config.workers = 1  # type: ignore[misc]


async def test_the_ring_is_the_runs() -> None:
    with pytest.raises(ValueError, match="RingOptions"):
        await gain_trio.callbacks.serve(Recorder(), LOCAL, max_sq_entries=64)


def test_a_ring_of_the_servers_own() -> None:
    with started(Recorder({"on_read": write_back}), max_sq_entries=8, max_cq_events=16) as server:
        clients = [dial(server) for _ in range(20)]
        for client in clients:
            client.sendall(b"small ring")
        for client in clients:
            assert read_exactly(client, 10) == b"small ring"
            client.close()


async def test_the_log_is_as_told_while_the_server_runs(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("gain_trio")
    before = logger.level, list(logger.handlers)
    async with trio.open_nursery() as nursery:
        await nursery.start(
            lambda task_status: gain_trio.callbacks.serve(
                Recorder(), LOCAL, logger_level="debug", pretty_logger=True, task_status=task_status
            )
        )
        assert logger.level == logging.DEBUG
        logger.debug("for people")
        nursery.cancel_scope.cancel()
    assert (logger.level, logger.handlers) == before
    [line] = [line for line in capsys.readouterr().err.splitlines() if "for people" in line]
    assert "DEBUG" in line


def test_the_level_of_the_log_when_servers_end_in_the_order_they_began(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("gain_trio")
    caplog.set_level(logging.CRITICAL, "gain_trio")  # and put back after the test
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        first.enter_context(started(Recorder(), logger_level="ERROR"))
        assert logger.level == logging.ERROR
        second.enter_context(started(Recorder(), logger_level="DEBUG"))
        with started(Recorder()):
            assert logger.level == logging.DEBUG
        first.close()
        assert logger.level == logging.DEBUG
        first.enter_context(started(Recorder(), logger_level="INFO"))
        second.close()
        assert logger.level == logging.INFO
        first.close()
        assert logger.level == logging.CRITICAL


class Plain(EventHandler):
    def __init__(self, name: str) -> None:
        self.name = name


def test_what_serves_is_pickled_for_worker_processes() -> None:
    driver = StreamDriver(callbacks_of(Plain("one")), Config(write_limit=5), gain_trio.Marks())
    again = pickle.loads(pickle.dumps(driver))
    handler = again.callbacks.handler
    assert isinstance(handler, Plain)
    assert handler.name == "one"
    assert repr(again) == "Plain"

"""Worker processes that hang: they get no connections, are killed and replaced, and hold no end of the server up."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from support import worker_handlers as handlers
from support.pairs import PATIENCE, receive_exactly
from support.processes import running
from support.servers import LOCAL, connect, serving
from support.workers import ARCHITECTURES, children, process_of, raises_alone, soon, watch, watched

import gain_trio
from gain_trio import Server, WorkerFailed
from gain_trio._server._processes import _heartbeat, _supervisor, _worker_process
from gain_trio._server._processes._heartbeat import HeartbeatMonitor

pytestmark = [
    pytest.mark.connections,
    pytest.mark.slow,
    pytest.mark.one_backend,
    pytest.mark.usefixtures("no_process_is_late", "forked_workers"),
]


def stop(pid: int) -> None:
    """Stop a process, and return when it is: a SIGTERM that comes before that would be faster."""
    os.kill(pid, signal.SIGSTOP)
    while "\nState:\tT" not in Path(f"/proc/{pid}/status").read_text():
        os.sched_yield()


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that is stopped for the length of the block, if it lives that long."""
    stop(pid)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


async def is_late(server: Server, count: int = 1) -> None:
    await soon(lambda: server._late_processes() == count)


class Gate:
    """Holds processes up that begin."""

    def __init__(self, path: Path) -> None:
        self._gate = path / "gate"
        self._told = path / "told"
        self.handler = handlers.WhenUnpickled(
            handlers.tell_process, handlers.tell_and_wait_while, self._gate, self._told
        )

    async def hold_successor(self) -> tuple[int, int]:
        """Kill the only process, and return its number and that of its successor, which is held up."""
        [old] = children()
        self._gate.touch()
        os.kill(old, signal.SIGKILL)
        await soon(self._told.exists)
        return old, int(self._told.read_text())

    def open(self) -> None:
        self._gate.unlink()


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


@contextlib.asynccontextmanager
async def ending(handler: Any, **options: Any) -> AsyncIterator[Server]:
    """A server that ends by itself, and is expected to have killed a worker process."""
    with raises_alone(WorkerFailed, "had to be killed"):
        async with trio.open_nursery() as nursery:
            yield await nursery.start(functools.partial(_serve, handler, options))


async def _serve(handler: Any, options: dict[str, Any], *, task_status: Any) -> None:
    await gain_trio.serve(handler, LOCAL, task_status=task_status, **options)


# --- how it is counted ---


def test_beats_are_a_third_of_what_makes_a_process_late() -> None:
    assert _heartbeat.interval(30) == _heartbeat.interval(None) == pytest.approx(2 / 3)
    assert _heartbeat.interval(3) == pytest.approx(1 / 3)
    assert _heartbeat.interval(0.001) == _heartbeat.SHORTEST


@pytest.mark.parametrize("timeout", [None, 0.1, 1, 30, float("inf")])
def test_a_pulse(timeout: float | None) -> None:
    monitor = HeartbeatMonitor(timeout)
    watched.add(monitor)
    late = hung = 0
    while not monitor.is_late:
        monitor.tick()
        late += 1
    assert late == 3
    monitor.reset()
    assert not monitor.is_late
    while not monitor.is_hung and hung < 1000:
        monitor.tick()
        hung += 1
    if timeout in (None, float("inf")):
        assert hung == 1000
    else:
        assert (hung - 1) * monitor.interval >= float(timeout or 0) - 1e-9


def test_the_time_to_begin_follows_the_timeout() -> None:
    assert _supervisor.start_timeout(30) == _supervisor.start_timeout(None) == 120
    assert _supervisor.start_timeout(0.1) == _supervisor.SHORTEST_START


# --- a process that is late ---


@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_a_late_process_gets_no_connections_until_it_answers(
    architecture: str, caplog: pytest.LogCaptureFixture
) -> None:
    options: Any = {"processes": 2, "architecture": architecture, "worker_timeout": None}
    async with serving(handlers.tell_process, **options) as server:
        late, other = children()
        watch(server, late)
        with stopped(late):
            await is_late(server)
            assert server._process_counts() == (1, 0)
            for _ in range(20):
                async with await connect(server) as client:
                    assert await process_of(client) == other
        await is_late(server, 0)
        seen: set[int] = set()
        with trio.fail_after(PATIENCE):
            while late not in seen:
                async with await connect(server) as client:
                    seen.add(await process_of(client))
        assert children() == [late, other], "nothing was killed"
    assert f"worker process {late} does not answer" in caplog.text
    assert f"worker process {late} answers again" in caplog.text


async def test_what_a_late_process_has_not_taken_goes_to_another_one() -> None:
    async with serving(handlers.tell_process, processes=2, worker_timeout=None) as server:
        late, other = children()
        watch(server, late)
        with stopped(late):
            clients = [await connect(server) for _ in range(10)]  # half of them are on their way to it by now, or soon
            with trio.fail_after(PATIENCE):
                for client in clients:
                    assert await process_of(client) == other
        for client in clients:
            client.abort()
        await soon(lambda: server.active_connections == 0)
        assert server.statistics().accepted == 10


async def test_with_one_process_connections_wait_until_it_answers() -> None:
    async with serving(handlers.tell_process, processes=1, worker_timeout=None) as server:
        [pid] = children()
        watch(server, pid)
        with stopped(pid):
            early = await connect(server)
            await is_late(server)
            late = await connect(server)
        for client in (early, late):
            async with client:
                assert await process_of(client) == pid


# --- a process that hangs ---


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("handler", [handlers.block, handlers.spin], ids=["sleeps", "spins"])
async def test_a_process_that_hangs_is_killed_and_replaced(
    handler: Any, architecture: str, caplog: pytest.LogCaptureFixture
) -> None:
    options: Any = {"processes": 2, "architecture": architecture, "worker_timeout": None}
    async with serving(handler, **options) as server:
        client = await connect(server)
        pid = int(await receive_exactly(client, 8))
        watch(server, pid, 1.5)
        await soon(lambda: server._process_counts() == (2, 1))
        assert pid not in children()
        assert server.statistics().hung_workers == 1
        client.abort()
    [record] = [record for record in caplog.records if "has not answered for 1.5 seconds" in record.getMessage()]
    assert record.levelname == "ERROR"
    assert str(pid) in record.getMessage()


async def test_a_process_that_hangs_while_it_drains_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    options: Any = {"processes": 1, "graceful_timeout": 3600, "worker_timeout": None}
    async with serving(handlers.tell_process, **options) as server:
        [old] = children()
        client = await connect(server)
        assert await process_of(client) == old
        await server._renew()
        watch(server, old, 1.5)
        with stopped(old):
            await soon(lambda: old not in children())
        assert server.statistics().hung_workers == 1
        assert server._process_counts() == (1, 0)
        client.abort()


async def test_without_a_timeout_nothing_is_killed() -> None:
    async with serving(handlers.tell_process, processes=1, worker_timeout=None) as server:
        watch(server, *children())
        [worker] = [worker for supervisor in server._pool.supervisors for worker in supervisor.workers]  # type: ignore[attr-defined]
        for _ in range(10_000):
            worker._heartbeats.tick()
        assert worker._heartbeats.is_late
        assert not worker._heartbeats.is_hung
        await is_late(server, 0)


async def test_a_process_that_hangs_while_it_begins_is_killed_and_tried_again(
    gate: Gate, mock_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    mock_clock.rate = 1.0  # for what the processes do; the time to begin is over when the test says so
    async with serving(gate.handler, processes=1) as server:
        old, booting = await gate.hold_successor()
        with stopped(booting):
            mock_clock.jump(_supervisor.start_timeout(30))
            await soon(lambda: booting not in children())
        gate.open()
        async with await connect(server) as client:
            assert await process_of(client) not in {old, booting}
        assert server.statistics().failed_starts == 1
    assert "(it had 120 seconds)" in caplog.text


# --- the end of the server ---


async def test_a_drain_kills_what_does_not_answer_when_the_time_is_up(caplog: pytest.LogCaptureFixture) -> None:
    async with ending(handlers.block, processes=2) as server:
        client = await connect(server)
        pid = int(await receive_exactly(client, 8))
        watch(server, pid)
        await is_late(server)
        await server.drain(0.5)
    assert f"worker process {pid} has not ended in time, and is killed" in caplog.text
    assert server.statistics().hung_workers == 1
    assert children() == []
    client.abort()


async def test_a_drain_with_a_stopped_process() -> None:
    async with ending(handlers.tell_process, processes=2) as server:
        [first, _second] = children()
        watch(server, first)
        stop(first)
        await is_late(server)
        await server.drain(0.5)
    assert children() == []


async def test_a_drain_while_a_process_that_hangs_begins(gate: Gate) -> None:
    async with ending(gate.handler, processes=1) as server:
        _old, booting = await gate.hold_successor()
        stop(booting)
        await server.drain(3600)
    assert children() == []


async def test_a_drain_while_a_process_begins_is_a_good_end(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_worker_process, "UNWANTED_GRACE", PATIENCE)
    async with trio.open_nursery() as nursery:
        server = await nursery.start(functools.partial(_serve, gate.handler, {"processes": 1}))
        await gate.hold_successor()
        await server.drain(3600)
    assert children() == []


async def test_a_process_that_somebody_kills_while_the_server_drains_is_a_bad_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with raises_alone(WorkerFailed, "cut connections off at its end: the process was killed by SIGKILL"):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(functools.partial(_serve, handlers.tell_process, {"processes": 1}))
            client = await connect(server)
            pid = await process_of(client)
            nursery.start_soon(server.drain, 3600)
            await server.draining.wait()
            os.kill(pid, signal.SIGKILL)
    assert f"worker process 0 ({pid}) was killed by SIGKILL when it was to end" in caplog.text
    client.abort()


async def test_what_was_killed_and_replaced_before_is_no_bad_end() -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            functools.partial(_serve, handlers.tell_process, {"processes": 1, "worker_timeout": None})
        )
        [old] = children()
        watch(server, old, 1)
        stop(old)
        await soon(lambda: server._process_counts() == (1, 1))
        await server.drain(PATIENCE)


@pytest.mark.parametrize("signals", [1, 2], ids=["one signal", "two signals"])
@pytest.mark.parametrize("handler", ["block", "BlockingEvents"])
def test_the_command_says_by_its_exit_status_that_it_had_to_kill(handler: str, signals: int) -> None:
    arguments = ["--handler", f"support.worker_handlers:{handler}", "--processes", "1", "--worker-timeout", "none"]
    timeout = "1" if signals == 1 else "3600"
    with running(
        "-m", "gain_trio", "serve", LOCAL, *arguments, "--graceful-timeout", timeout, cwd=Path(__file__).parent
    ) as server:
        port = int(server.line().split(";")[0].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
            client.sendall(b"?")
            assert len(client.recv(8)) == 8
            server.interrupt(signal.SIGTERM)
            if signals == 2:
                server.interrupt(signal.SIGINT)
            status, _out, err = server.end()
    assert status == 1, err
    assert "had to be killed" in err


TOLD_TO_END = """
import functools, logging, sys
sys.path.insert(0, sys.argv[1])
import trio
import gain_trio
from gain_trio._server._processes import _worker_process
from support import worker_handlers as handlers


class Events(handlers.BusyThreads):
    def on_start(self, server):
        print(server.addresses[0][1])


async def main():
    async with trio.open_nursery() as nursery:
        serve = functools.partial(gain_trio.serve, handlers.wait_in_thread, "tcp://127.0.0.1:0", signals=True)
        server = await nursery.start(functools.partial(serve, graceful_timeout=3600, **options))
        print(server.addresses[0][1])


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    _worker_process.WORKER_GRACE = 0.3
    options = {"processes": 1, "worker_timeout": None}
    if sys.argv[2] == "serve":
        gain_trio.run(main)
    else:
        options |= {"async_handler": True, "graceful_timeout": 3600}
        gain_trio.callbacks.listen_and_serve("tcp://127.0.0.1:0", Events(), **options)
"""


@pytest.mark.parametrize("is_stopped", [False, True], ids=["busy", "and stopped"])
@pytest.mark.parametrize("kind", ["serve", "listen_and_serve"])
def test_a_server_that_two_signals_end_and_that_kills_fails(kind: str, is_stopped: bool, tmp_path: Path) -> None:
    """Both signals come at once.  A process that is late is killed in the same moment."""
    program = tmp_path / "server.py"
    program.write_text(TOLD_TO_END)
    with running(program, Path(__file__).parent, kind) as server:
        port = int(server.line())
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
            client.sendall(b"?")
            pid = int(client.recv(8))
            with stopped(pid) if is_stopped else contextlib.nullcontext():
                if is_stopped:
                    assert f"worker process {pid} does not answer" in server.line()
                with stopped(server.pid):
                    server.interrupt(signal.SIGTERM)
                    server.interrupt(signal.SIGINT)  # of two of a kind one would be lost
                status, out, err = server.end()
    assert f"worker process {pid} has not ended in time, and is killed" in out
    assert status == 1, err
    assert "WorkerFailed: the server has cut connections off at its end: 1 of its worker processes" in err

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
from support import worker_handlers as handlers
from support.pairs import PATIENCE, receive_exactly
from support.processes import running
from support.servers import LOCAL, connect, serving
from support.workers import ARCHITECTURES, children, process_of, raises_alone, soon

import gain_trio
from gain_trio import Server, WorkerFailed
from gain_trio._server._processes import _heartbeat, _supervisor
from gain_trio._server._processes._heartbeat import HeartbeatMonitor

pytestmark = [pytest.mark.connections, pytest.mark.slow]


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
    options: Any = {"processes": 2, "architecture": architecture, "worker_timeout": 1.5}
    async with serving(handler, **options) as server:
        client = await connect(server)
        pid = int(await receive_exactly(client, 8))
        await soon(lambda: server._process_counts() == (2, 1))
        assert pid not in children()
        assert server.statistics().hung_workers == 1
        client.abort()
    [record] = [record for record in caplog.records if "has not answered for 1.5 seconds" in record.getMessage()]
    assert record.levelname == "ERROR"
    assert str(pid) in record.getMessage()


async def test_a_process_that_hangs_while_it_drains_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    options: Any = {"processes": 1, "graceful_timeout": 3600, "worker_timeout": 1.5}
    async with serving(handlers.tell_process, **options) as server:
        [old] = children()
        client = await connect(server)
        assert await process_of(client) == old
        await server._renew()
        with stopped(old):
            await soon(lambda: old not in children())
        assert server.statistics().hung_workers == 1
        assert server._process_counts() == (1, 0)
        client.abort()


async def test_without_a_timeout_nothing_is_killed() -> None:
    async with serving(handlers.tell_process, processes=1, worker_timeout=None) as server:
        [worker] = [worker for supervisor in server._pool.supervisors for worker in supervisor.workers]  # type: ignore[attr-defined]
        for _ in range(10_000):
            worker._heartbeats.tick()
        assert worker._heartbeats.is_late
        assert not worker._heartbeats.is_hung
        await is_late(server, 0)


async def test_a_process_that_hangs_while_it_begins_is_killed_and_tried_again(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_supervisor, "SHORTEST_START", 3.0)
    async with serving(gate.handler, processes=1, worker_timeout=0.5) as server:
        old, booting = await gate.hold_successor()
        with stopped(booting):
            await soon(lambda: booting not in children())
        gate.open()
        async with await connect(server) as client:
            assert await process_of(client) not in {old, booting}
        assert server.statistics().failed_starts >= 1
    assert "(it had 3 seconds)" in caplog.text


# --- the end of the server ---


async def test_a_drain_kills_what_does_not_answer_when_the_time_is_up(caplog: pytest.LogCaptureFixture) -> None:
    async with ending(handlers.block, processes=2) as server:
        client = await connect(server)
        pid = int(await receive_exactly(client, 8))
        await is_late(server)
        await server.drain(0.5)
    assert f"worker process {pid} has not ended in time, and is killed" in caplog.text
    assert server.statistics().hung_workers == 1
    assert children() == []
    client.abort()


async def test_a_drain_with_a_stopped_process() -> None:
    async with ending(handlers.tell_process, processes=2) as server:
        [first, _second] = children()
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


async def test_a_drain_while_a_process_begins_is_a_good_end(gate: Gate) -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(functools.partial(_serve, gate.handler, {"processes": 1}))
        await gate.hold_successor()
        await server.drain(3600)
    assert children() == []


async def test_what_was_killed_and_replaced_before_is_no_bad_end() -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            functools.partial(_serve, handlers.tell_process, {"processes": 1, "worker_timeout": 1})
        )
        [old] = children()
        stop(old)
        await soon(lambda: server._process_counts() == (1, 1))
        await server.drain(5)


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

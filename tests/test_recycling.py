"""Worker processes that are replaced when they have served enough, one at a time and the successor first."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import trio
from support.servers import LOCAL, echo, serving
from support.worker_handlers import tell_process
from support.workers import clients_of, soon

import gain_trio
from gain_trio import ServerConfig, ServerStatistics
from gain_trio._server._process_usage import resident_memory
from gain_trio._server._processes import _recycling
from gain_trio._server._processes._recycling import Recycler, check_memory_is_known
from gain_trio._server._processes._worker_failed import WorkerFailed
from gain_trio._server._time_limits import LONGEST_PAUSE, RECYCLE_INTERVAL, SOON

pytestmark = [pytest.mark.connections, pytest.mark.one_backend]

MEBIBYTE = 1 << 20


class Worker:
    """A process as far as the recycler looks at it."""

    def __init__(self, pid: int, accepted: int = 0) -> None:
        self.pid = pid
        self.ready_at = trio.current_time()
        self.statistics = attrs.evolve(ServerStatistics.total([]), accepted=accepted)


class Supervisor:
    """Has a new process in the place of the old one after a second, unless that is to fail."""

    def __init__(self, index: int, log: list[str]) -> None:
        self.index = index
        self.serves = True
        self.current = Worker(100 * index)
        self.draining: list[Worker] = []
        self.failures = 0
        self._log = log

    @property
    def workers(self) -> tuple[Worker, ...]:
        return (*self.draining, self.current)

    async def replace(self) -> None:
        self._log.append(f"{self.index} begins")
        await trio.sleep(1)
        if self.failures:
            self.failures -= 1
            raise WorkerFailed("it cannot begin", "no memory")
        self._log.append(f"{self.index} ends")
        self.current = Worker(self.current.pid + 1)


@pytest.fixture
def log() -> list[str]:
    return []


def recycler(config: ServerConfig, *supervisors: Any) -> Recycler:
    return Recycler(config, supervisors, trio.Lock())


async def run_for(seconds: float, *recyclers: Recycler) -> None:
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for one in recyclers:
                nursery.start_soon(one.run)


async def test_one_after_the_other(
    log: list[str], autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gain_trio")
    supervisors = [Supervisor(index, log) for index in range(3)]
    for supervisor in supervisors[:2]:
        supervisor.current = Worker(supervisor.current.pid, accepted=10)
    supervisors[2].current = Worker(200, accepted=9)
    one = recycler(ServerConfig(max_connections_per_worker=10), *supervisors)
    await run_for(10, one)
    assert log == ["0 begins", "0 ends", "1 begins", "1 ends"]
    assert one.recycled == 2
    assert caplog.messages[0] == (
        "worker process 0 (0) is replaced: it has had 10 connections (max_connections_per_worker)"
    )


async def test_the_number_is_another_for_each_process(
    log: list[str], autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: Iterator[int] = iter([0, 5, 3, 0])
    monkeypatch.setattr(_recycling.random, "randint", lambda _least, _most: next(drawn))
    supervisor = Supervisor(0, log)
    config = ServerConfig(max_connections_per_worker=10, max_connections_per_worker_jitter=5)
    one = recycler(config, supervisor)
    for limit in (10, 15, 13):
        for accepted in (limit - 1, limit):
            supervisor.current.statistics = attrs.evolve(supervisor.current.statistics, accepted=accepted)
            await run_for(2, one)
    assert one.recycled == 3


async def test_a_lifetime(log: list[str], autojump_clock: trio.testing.MockClock) -> None:
    supervisor = Supervisor(0, log)
    one = recycler(ServerConfig(max_worker_lifetime=60), supervisor)
    await run_for(60, one)
    assert one.recycled == 0
    await run_for(2, one)
    assert one.recycled == 1
    await run_for(124, one)
    assert one.recycled == 3


async def test_memory(log: list[str], autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = {100: 10 * MEBIBYTE, 101: MEBIBYTE}
    monkeypatch.setattr(_recycling, "resident_memory", memory.get)  # None of one that is gone
    supervisors = [Supervisor(1, log), Supervisor(2, log)]
    one = recycler(ServerConfig(max_worker_memory=10 * MEBIBYTE), *supervisors)
    await run_for(SOON, one)
    assert not log
    memory[100] += 1
    await run_for(5, one)
    assert log == ["1 begins", "1 ends"]


async def test_a_limit_that_is_too_low_for_any_process(
    log: list[str],
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its processes are replaced now and then, and the log says what to do."""
    monkeypatch.setattr(_recycling, "resident_memory", lambda _pid: MEBIBYTE)
    await run_for(3 * (SOON + 1), recycler(ServerConfig(max_worker_memory=1000), Supervisor(0, log)))
    assert 2 <= log.count("0 begins") <= 3
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings[0].startswith(
        "max_worker_memory is 1000 bytes, and a worker process has 1048576 when it has hardly begun"
    )


async def test_a_drain_that_takes_long_holds_up_no_other_process(
    log: list[str], autojump_clock: trio.testing.MockClock
) -> None:
    supervisors = [Supervisor(0, log), Supervisor(1, log)]
    for supervisor in supervisors:
        supervisor.current = Worker(supervisor.current.pid, accepted=5)
    supervisors[0].draining.append(Worker(7))
    one = recycler(ServerConfig(max_connections_per_worker=5), *supervisors)
    await run_for(5, one)
    assert log == ["1 begins", "1 ends"]
    supervisors[0].draining.clear()
    await run_for(5, one)
    assert log[2:] == ["0 begins", "0 ends"]


async def test_a_successor_that_cannot_begin_is_tried_again(
    log: list[str], autojump_clock: trio.testing.MockClock
) -> None:
    supervisor = Supervisor(0, log)
    supervisor.current = Worker(1, accepted=5)
    supervisor.failures = 2
    one = recycler(ServerConfig(max_connections_per_worker=5), supervisor)
    start = trio.current_time()
    await run_for(3 * (1 + LONGEST_PAUSE + RECYCLE_INTERVAL), one)
    assert log == ["0 begins"] * 3 + ["0 ends"]
    assert one.recycled == 1
    assert trio.current_time() - start > 2 * LONGEST_PAUSE


async def test_no_process_that_does_not_serve(log: list[str], autojump_clock: trio.testing.MockClock) -> None:
    supervisor = Supervisor(0, log)
    supervisor.current = Worker(1, accepted=5)
    supervisor.serves = False
    await run_for(5, recycler(ServerConfig(max_connections_per_worker=5), supervisor))
    assert not log


def test_the_memory_of_a_process() -> None:
    assert MEBIBYTE < (resident_memory(_recycling.os.getpid()) or 0) < 1 << 40
    assert resident_memory(2**22 + 1) is None


def test_a_system_that_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_recycling, "resident_memory", lambda _pid: None)
    with pytest.raises(ValueError, match=r"max_worker_memory reads /proc.*leave it out"):
        check_memory_is_known()


@pytest.mark.parametrize(
    "option", [{"max_connections_per_worker": 5}, {"max_worker_lifetime": 60}, {"max_worker_memory": 1 << 30}]
)
async def test_without_worker_processes_there_is_nothing_to_recycle(option: dict[str, Any]) -> None:
    assert ServerConfig(**option).recycles
    with pytest.raises(ValueError, match="there are none: give processes=, too"):
        await gain_trio.serve(echo, LOCAL, **option)


def test_a_server_that_recycles_nothing() -> None:
    assert not ServerConfig().recycles


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.slow
async def test_a_process_that_has_had_enough_connections() -> None:
    async with serving(tell_process, processes=1, max_connections_per_worker=3) as server:
        [supervisor] = server._pool.supervisors  # type: ignore[attr-defined]
        first = supervisor.current
        async with clients_of(server, 3):
            await soon(lambda: server.statistics().recycled_workers == 1)  # counted when the new one serves
            assert supervisor.current is not first
            assert supervisor.serves
            async with clients_of(server, 1):
                pass
        await server.drain(math.inf)
    assert server.statistics().accepted == 4

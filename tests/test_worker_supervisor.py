"""The supervisors of worker processes: which death counts, when a successor starts, and what may be missing for that."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import trio
from support import worker_handlers as handlers
from support.descriptors import descriptor_limit, next_descriptor, open_descriptors
from support.pairs import PATIENCE, receive_all, receive_exactly
from support.servers import LOCAL, connect, echo, serving
from support.workers import ARCHITECTURES, Exit, children, process_of, soon

import gain_trio
from gain_trio import ServerConfig, WorkerFailed
from gain_trio._server._dispatcher import Dispatcher
from gain_trio._server._processes import _supervisor, _worker_pool, _worker_process
from gain_trio._server._processes._accepted_socket import AcceptedSocket
from gain_trio._server._processes._control_messages import Failed, ReportMetrics
from gain_trio._server._processes._supervisor import WorkerSupervisor
from gain_trio._server._processes._worker_process import WorkerState
from gain_trio._server._processes._worker_reports import WorkerReports

pytestmark = [
    pytest.mark.connections,
    pytest.mark.slow,
    pytest.mark.one_backend,
    pytest.mark.usefixtures("no_process_is_late", "forked_workers"),
]


async def test_a_successor_is_tried_again_while_a_process_that_was_sent_a_sigterm_drains(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flag = tmp_path / "flag"
    handler = handlers.WhenUnpickled(handlers.tell_process_until_told, handlers.complain_if, flag)
    async with serving(handler, processes=1, graceful_timeout=3600) as server:
        async with await connect(server) as client:
            old = int(await receive_exactly(client, 8))
            flag.touch()
            os.kill(old, signal.SIGTERM)
            assert await receive_exactly(client, 8) == b"draining"
            await soon(lambda: caplog.text.count("is tried again: LookupError: this program cannot start") > 4)
            flag.unlink()
            with trio.fail_after(PATIENCE):
                async with await connect(server) as other:
                    assert int(await receive_exactly(other, 8)) != old
            await client.send(b"?X")  # all the time the old one has gone on with what it had
            assert int(await receive_exactly(client, 8)) == old
            assert await receive_all(client) == b""
        await soon(lambda: old not in children())
        assert server._process_counts() == (1, 0), "nothing has died that served"


async def test_a_process_that_dies_while_its_successor_is_being_started_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate = tmp_path / "gate"
    handler = handlers.WhenUnpickled(handlers.tell_process, handlers.wait_while, gate)
    async with serving(handler, processes=1) as server, trio.open_nursery() as nursery:
        [old] = children()
        gate.touch()
        nursery.start_soon(server._renew)
        await soon(lambda: len(children()) == 2)
        os.kill(old, signal.SIGKILL)
        await soon(lambda: f"({old}) was killed by SIGKILL, and is replaced" in caplog.text)
        gate.unlink()
        await soon(lambda: server._process_counts() == (1, 1))
    assert caplog.text.count("and is replaced") == 1


class Process:
    """A worker process as far as its supervisor can see.  It begins to serve or does not, and stays or is gone at once."""

    def __init__(
        self, supervisor: WorkerSupervisor, number: int, *, begins: bool, stays: bool, is_lost: bool = False
    ) -> None:
        self._supervisor = supervisor
        self._begins = begins
        self.pid = number
        self.backend = "none"
        self.state = WorkerState.STARTING
        self.ready_at: float | None = None
        self.failure = None if stays else Failed("it was not long", "")
        self.end = "exited with status 1"
        self.statistics = None
        self.metrics = WorkerReports(ReportMetrics)
        self.has_served = self.has_reported_failure = False
        self.was_lost = is_lost
        self.was_started = True
        self.was_asked_to_leave = self.was_told_to_drain = False
        self.may_begin = trio.Event()
        self._told_to_end = trio.Event()
        if stays or begins:
            self.may_begin.set()
        if not stays:
            self._told_to_end.set()

    async def run(self) -> None:
        await self.may_begin.wait()
        if self._begins:
            self.ready_at = trio.current_time()
            self.state = WorkerState.READY
            if not self._told_to_end.is_set():
                self._supervisor.note()
                await self._told_to_end.wait()
        self.state = WorkerState.ENDED

    def drain(self, _timeout: float) -> None:
        self.was_told_to_drain = self.state is not WorkerState.ENDED
        self._told_to_end.set()


class Supervised:
    """A supervisor whose processes are these: each is made with the next of ``options``."""

    def __init__(self, *options: dict[str, bool]) -> None:
        self._options = list(options)
        self.made: list[Process] = []
        self.failures: list[WorkerFailed] = []
        self.bad_ends: list[str] = []
        self.supervisor = WorkerSupervisor(
            0,
            self._make,
            strict=False,
            graceful_timeout=1,
            changed=self._note,
            fail=self.failures.append,
            ended_badly=lambda failure, _was_cancelled: self.bad_ends.append(str(failure)),
        )

    def _make(self, supervisor: WorkerSupervisor) -> Any:
        self.made.append(Process(supervisor, len(self.made), **self._options[len(self.made)]))
        return self.made[-1]

    def _note(self) -> None:
        self.supervisor.note()


async def test_a_process_that_is_dead_before_anybody_looks_has_begun_to_serve() -> None:
    brief, lasting = {"begins": True, "stays": False}, {"begins": True, "stays": True}
    supervised = Supervised(brief, brief, lasting)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervised.supervisor.supervise)
        await soon(lambda: supervised.supervisor.serves)
        nursery.cancel_scope.cancel()
    assert (supervised.supervisor.restarts, supervised.supervisor.current, supervised.failures) == (
        2,
        supervised.made[2],
        [],
    )


async def test_a_process_that_always_dies_at_once_ends_the_server() -> None:
    brief = {"begins": True, "stays": False}
    supervised = Supervised(*[brief] * 20)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervised.supervisor.supervise)
        await soon(lambda: bool(supervised.failures))
        nursery.cancel_scope.cancel()
    assert len(supervised.made) == _supervisor.ATTEMPTS
    assert "worker process 0 died as soon as it served, 4 times in a row: it was not long" in str(
        supervised.failures[0]
    )


async def test_a_program_that_dies_as_soon_as_it_serves_ends_the_server() -> None:
    handler = handlers.WhenUnpickled(echo, handlers.die_soon)
    with pytest.raises(
        WorkerFailed, match=r"(could not begin to serve|as soon as it served, .*): .* exited with status 3"
    ):
        await gain_trio.serve(handler, LOCAL, processes=1)
    assert children() == []


@pytest.mark.parametrize("handler", [handlers.end_process, handlers.end_process_at_once], ids=["later", "at once"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_a_process_that_dies_of_what_it_serves_is_replaced_as_often_as_it_takes(
    architecture: str, handler: Any
) -> None:
    async with serving(handler, processes=1, architecture=architecture) as server:
        for number in range(_supervisor.ATTEMPTS + 2):
            await soon(lambda number=number: server._process_counts() == (1, number))  # type: ignore[misc]
            async with await connect(server) as client:
                with contextlib.suppress(trio.BrokenResourceError):
                    assert await receive_all(client) in {b"", b"bye"}
            await soon(lambda number=number: server._process_counts()[1] == number + 1)  # type: ignore[misc]


async def test_a_process_that_somebody_kills_while_it_is_replaced_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    lost, lasting = {"begins": True, "stays": True, "is_lost": True}, {"begins": True, "stays": True}
    supervised = Supervised(lost, lasting)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervised.supervisor.supervise)
        await soon(lambda: supervised.supervisor.serves)
        await supervised.supervisor.replace()
        await soon(lambda: len(supervised.supervisor.workers) == 1)
        nursery.cancel_scope.cancel()
    assert "worker process 0 (0) exited with status 1 when it was to end" in caplog.text
    assert supervised.bad_ends == [
        "worker process 0 has cut connections off at its end: the process exited with status 1"
    ]
    assert supervised.failures == []


async def test_who_asks_while_a_start_fails_is_not_told_of_it_when_the_next_one_succeeds() -> None:
    failing, lasting = {"begins": False, "stays": False}, {"begins": True, "stays": True}
    supervised = Supervised(lasting, failing, lasting)

    async def be_refused() -> None:
        with pytest.raises(WorkerFailed, match="it was not long"):
            await supervised.supervisor.replace()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervised.supervisor.supervise)
        await soon(lambda: supervised.supervisor.serves)
        async with trio.open_nursery() as asking:
            asking.start_soon(be_refused)
            await soon(lambda: len(supervised.made) == 2)
            asking.start_soon(supervised.supervisor.replace)
            await trio.testing.wait_all_tasks_blocked()
            supervised.made[1].may_begin.set()
        nursery.cancel_scope.cancel()
    assert (supervised.supervisor.restarts, supervised.supervisor.current, supervised.failures) == (
        0,
        supervised.made[2],
        [],
    )


# --- want of something, and errors of others ---


async def test_without_room_for_its_channel_no_process_is_started(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_sock: socket.socket) -> Any:
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    control = _worker_process.ControlChannel
    async with serving(handlers.tell_process, processes=1) as server:
        [pid] = children()
        monkeypatch.setattr(_worker_process, "ControlChannel", refuse)
        os.kill(pid, signal.SIGKILL)
        await soon(lambda: caplog.text.count("cannot be started: No buffer space available") > 1)
        assert children() == []
        monkeypatch.setattr(_worker_process, "ControlChannel", control)
        async with await connect(server) as client:
            assert await process_of(client) != pid
    assert children() == []


async def test_without_descriptors_to_accept_for_a_dead_process_it_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate = tmp_path / "gate"
    handler = handlers.WhenUnpickled(handlers.tell_process, handlers.wait_while, gate)
    copies_of = _worker_pool.copies_of
    refusals = [OSError(errno.EMFILE, os.strerror(errno.EMFILE))] * 2

    def refuse_at_first(sockets: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return copies_of(sockets)

    monkeypatch.setattr(_worker_pool, "copies_of", refuse_at_first)
    async with serving(handler, processes=2, architecture="socket_sharding") as server:
        victim, other = children()
        gate.touch()
        gone = Exit(victim)
        os.kill(victim, signal.SIGKILL)
        await gone.wait()
        await soon(lambda: not refusals)
        for _ in range(20):
            async with await connect(server) as client:
                assert await process_of(client) == other
        gate.unlink()
    assert caplog.text.count("cannot accept for worker process") == 1


def test_copies_are_made_of_all_or_none() -> None:
    descriptors = open_descriptors()
    with socket.socket() as first, socket.socket() as second:
        with descriptor_limit(next_descriptor() + 1), pytest.raises(OSError, match="Too many open files"):
            _worker_pool.copies_of([first, second])
        copies = _worker_pool.copies_of([first, second])
        for copy in copies:
            copy.close()
    assert len(copies) == 2
    assert open_descriptors() == descriptors


async def test_when_the_balancer_fails_all_that_were_given_back_are_reset() -> None:
    class Failing:
        def pick(self, _peer: Any, _consumers: Any, /) -> Any:
            raise LookupError("lost its head")

    launch: Any = None
    pool = _worker_pool.WorkerPool(launch, ServerConfig(balancer=Failing()), [[]], 1, ())
    pool._dispatcher = Dispatcher([], pool._balancer)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
        with pytest.raises(LookupError):
            pool.given_back([AcceptedSocket(listener.accept()[0]) for _ in clients])
        for client in clients:
            with client, pytest.raises(ConnectionResetError):
                client.recv(1)

"""Worker processes that die, are replaced, drain and are cancelled: what becomes of connections and of the processes."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from support import worker_handlers as handlers
from support.descriptors import open_descriptors
from support.pairs import PATIENCE, receive_all, receive_exactly
from support.processes import running
from support.servers import LOCAL, connect, echo, serving
from support.workers import ARCHITECTURES, Exit, children, clients_of, process_of, raises_alone, soon

import gain_trio
from gain_trio import Connection, Server, WorkerFailed
from gain_trio._server._processes import _supervisor, _worker_launcher, _worker_process

MANY = 200

pytestmark = [
    pytest.mark.connections,
    pytest.mark.slow,
    pytest.mark.one_backend,
    pytest.mark.usefixtures("no_process_is_late", "forked_workers"),
]


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that does not end when it is told to is killed soon."""
    monkeypatch.setattr(_worker_process, "WORKER_GRACE", 0.3)


class Load:
    """Clients that connect, ask and leave, one after the other; what went wrong for any of them."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.answered = 0
        self.processes: set[int] = set()
        self.complaints: list[BaseException] = []

    async def run(self) -> None:
        while True:
            try:
                async with await connect(self._server) as client:
                    self.processes.add(await process_of(client))
                    self.answered += 1
            except (OSError, trio.BrokenResourceError, AssertionError) as error:
                self.complaints.append(error)

    async def goes_on(self) -> None:
        """Until some more have been answered."""
        wanted = self.answered + 50
        await soon(lambda: self.answered >= wanted)


async def is_cut(client: Connection) -> bool:
    """Whether it ends without a word."""
    try:
        return await receive_all(client) == b""
    except trio.BrokenResourceError:
        return True


# --- death ---


@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_of_many_connections_only_those_of_the_killed_process_are_lost(
    architecture: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(handlers.tell_process, processes=2, architecture=architecture) as server:
        async with clients_of(server, MANY) as clients, trio.open_nursery() as nursery:
            owners = [await process_of(client) for client in clients]
            victim = owners[0]
            await soon(lambda: server.active_connections == MANY)  # what a process has not reported is lost with it
            load = Load(server)
            for _ in range(4):
                nursery.start_soon(load.run)
            await load.goes_on()
            os.kill(victim, signal.SIGKILL)
            for client, owner in zip(clients, owners, strict=True):
                if owner == victim:
                    assert await is_cut(client)
                else:
                    assert await process_of(client) == owner
            await load.goes_on()  # new ones are served
            await soon(lambda: victim not in children() and len(children()) == 2)
            [successor] = set(children()) - set(owners)
            await soon(lambda: successor in load.processes)
            for client, owner in zip(clients, owners, strict=True):
                if owner != victim:
                    assert await process_of(client) == owner
            nursery.cancel_scope.cancel()
        await soon(lambda: server.active_connections == 0)
        end = server.statistics()
        assert end.accepted == sum(end.closed.values())
        assert end.cancelled >= owners.count(victim), "what a killed process had open counts as cancelled"
    assert f"({victim}) was killed by SIGKILL, and is replaced" in caplog.text
    assert children() == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_a_connection_that_no_handler_had_is_served_by_another_process(architecture: str, tmp_path: Path) -> None:
    """While a successor is slow to begin, the others serve for it, also what comes through its own listener."""
    gate = tmp_path / "gate"
    handler = handlers.WhenUnpickled(handlers.tell_process, handlers.wait_while, gate)
    async with serving(handler, processes=2, architecture=architecture) as server:
        victim, other = children()
        gate.touch()
        gone = Exit(victim)
        os.kill(victim, signal.SIGKILL)
        await gone.wait()  # what it takes before it is gone is lost with it
        for _ in range(40):  # with sharding, about half of them come through the listener of the dead process
            async with await connect(server) as client:
                assert await process_of(client) == other
        gate.unlink()
        seen: set[int] = set()
        with trio.fail_after(PATIENCE):
            while len(seen) < 2:
                async with await connect(server) as client:
                    seen.add(await process_of(client))
        assert victim not in seen


async def test_with_one_process_new_connections_wait_for_its_successor() -> None:
    for architecture in ARCHITECTURES:
        async with serving(handlers.tell_process, processes=1, architecture=architecture) as server:
            for _ in range(3):
                [victim] = children()
                gone = Exit(victim)
                os.kill(victim, signal.SIGKILL)
                await gone.wait()
                async with await connect(server) as client:
                    assert await process_of(client) != victim


async def test_what_a_blocked_process_has_not_taken_goes_to_another_when_it_dies(short_grace: None) -> None:
    class First:
        """All to the first process, as long as there is one."""

        def pick(self, _peer: Any, consumers: Any, /) -> Any:
            return consumers[0]

    async with serving(handlers.block, processes=2, balancer=First()) as server:
        async with await connect(server) as first:
            victim = int(await receive_exactly(first, 8))
            waiting = [await connect(server) for _ in range(5)]  # accepted, handed off, and not taken
            os.kill(victim, signal.SIGKILL)
            answers: list[bytes] = []
            async with trio.open_nursery() as nursery:

                async def wait_for_answer(client: Connection) -> None:
                    answers.append(await receive_exactly(client, 8))
                    nursery.cancel_scope.cancel()

                for client in waiting:  # the one whose handler runs first blocks its process, too
                    nursery.start_soon(wait_for_answer, client)
            assert int(answers[0]) != victim
            for client in waiting:
                client.abort()


async def test_a_process_that_cannot_be_understood_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(handlers.disturb, processes=1) as server:
        async with await connect(server) as first:
            pid = int(await receive_exactly(first, 8))
            assert await is_cut(first)
        async with await connect(server) as second:
            assert int(await receive_exactly(second, 8)) != pid
    assert "is replaced" in caplog.text


async def test_what_a_terminal_sends_to_all_processes_is_the_servers_affair() -> None:
    async with serving(handlers.tell_process, processes=1) as server, clients_of(server, 1) as [client]:
        pid = await process_of(client)
        for number in (signal.SIGINT, signal.SIGHUP):
            os.kill(pid, number)
            assert await process_of(client) == pid
    async with serving(handlers.tell_signals, processes=1) as server, await connect(server) as client:
        assert await receive_all(client) == b"True True\n", "and programs that a handler starts do not ignore it"


async def test_a_process_that_always_dies_ends_the_server_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    descriptors = open_descriptors()
    handler = handlers.WhenUnpickled(echo, handlers.die)
    with pytest.raises(WorkerFailed, match="could not begin to serve: the process was killed by SIGKILL"):
        await gain_trio.serve(handler, LOCAL, processes=2)
    assert "is tried again" in caplog.text
    assert children() == []
    assert len(open_descriptors()) <= len(descriptors) + 4, "Trio's threads"


@pytest.mark.parametrize(
    "error", [RuntimeError("can't start new thread"), MemoryError(), OSError(errno.EAGAIN, "too many")], ids=repr
)
async def test_a_process_for_which_there_is_no_thread_is_tried_again(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    open_process = trio.lowlevel.open_process
    errors = [error] * 2

    async def refuse(*arguments: Any, **options: Any) -> Any:
        if errors:
            raise errors.pop()
        return await open_process(*arguments, **options)

    async with serving(handlers.tell_process, processes=1) as server:
        [pid] = children()
        monkeypatch.setattr(trio.lowlevel, "open_process", refuse)
        os.kill(pid, signal.SIGKILL)
        async with await connect(server) as client:
            assert await process_of(client) != pid
    assert caplog.text.count("it cannot be started") == 2


async def test_what_is_lacking_to_start_a_process_may_come_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = _worker_launcher.WorkerLauncher.start

    async def refuse(*_arguments: Any) -> Any:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with serving(handlers.tell_process, processes=1) as server:
        [pid] = children()
        monkeypatch.setattr(_worker_launcher.WorkerLauncher, "start", refuse)
        os.kill(pid, signal.SIGKILL)
        await soon(lambda: caplog.text.count("cannot be started: Too many open files") > _supervisor.ATTEMPTS)
        monkeypatch.setattr(_worker_launcher.WorkerLauncher, "start", start)
        async with await connect(server) as client:
            assert await process_of(client) != pid
    monkeypatch.setattr(_worker_launcher.WorkerLauncher, "start", refuse)
    with pytest.raises(WorkerFailed, match="Too many open files"):
        await gain_trio.serve(echo, LOCAL, processes=2)


async def test_draining_while_a_process_is_about_to_end(
    mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    mock_clock.rate = 1.0  # for what the process does; its time to end is over when the test says so
    monkeypatch.setattr(_worker_process, "WORKER_GRACE", 10 * PATIENCE)
    with raises_alone(WorkerFailed, "had to be killed"):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(
                lambda **status: gain_trio.serve(handlers.hang_up_on_the_server, LOCAL, processes=1, **status)
            )
            client = await connect(server)
            await soon(lambda: server._process_counts() == (0, 0))  # it has hung up, and has time to end
            nursery.start_soon(server.drain, 0)
            await server.draining.wait()
            mock_clock.jump(10 * PATIENCE)
            assert await is_cut(client)
            client.abort()
    assert children() == []


async def test_a_program_that_cannot_start_ends_the_server_with_its_traceback() -> None:
    handler = handlers.WhenUnpickled(echo, handlers.complain)
    with pytest.raises(WorkerFailed) as caught:
        await gain_trio.serve(handler, LOCAL, processes=2)
    assert caught.value.reason == "LookupError: this program cannot start"
    assert "in complain" in caught.value.worker_traceback
    assert caught.value.worker_traceback in str(caught.value)
    assert children() == []


@pytest.mark.parametrize("do", [handlers.complain_if, handlers.die_if], ids=["raises", "is killed"])
@pytest.mark.parametrize("victims", [1, 2], ids=["one dies", "all die"])
async def test_processes_that_cannot_start_any_more_end_no_server_that_was_up(
    do: Any, victims: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flag = tmp_path / "flag"
    handler = handlers.WhenUnpickled(handlers.tell_process, do, flag)
    async with serving(handler, processes=2) as server:
        pids = children()
        client = await connect(server)
        kept = await process_of(client)
        pids.sort(key=lambda pid: pid == kept)  # which is killed last
        flag.touch()
        for pid in pids[:victims]:
            os.kill(pid, signal.SIGKILL)
        await soon(lambda: server.statistics().failed_starts > _supervisor.ATTEMPTS)
        if victims == 1:
            assert await process_of(client) == kept, "the other one goes on"
            assert server._process_counts() == (1, 1)
            async with await connect(server) as other:
                assert await process_of(other) == kept
        client.abort()
        waiting = await connect(server)
        flag.unlink()
        assert await process_of(waiting) not in pids[:victims]
        await soon(lambda: server._process_counts() == (2, victims))
        waiting.abort()
    assert caplog.text.count("could not begin to serve, and is tried again") > _supervisor.ATTEMPTS
    if do is handlers.complain_if:
        assert 1 <= caplog.text.count("Traceback") <= victims, "the same traceback is logged once in each place"


async def test_a_handler_that_is_none_any_more_serves_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flag = tmp_path / "flag"
    async with serving(handlers.NoneIfThere(handlers.tell_process, flag), processes=2) as server:
        client = await connect(server)
        kept = await process_of(client)
        flag.touch()
        [other] = [pid for pid in children() if pid != kept]
        os.kill(other, signal.SIGKILL)
        await soon(lambda: server.statistics().failed_starts > 1)
        for _ in range(4):
            async with await connect(server) as other_client:
                assert await process_of(other_client) == kept
        flag.unlink()
        await soon(lambda: server._process_counts() == (2, 1))
        client.abort()
    assert "5 cannot be called" in caplog.text


async def test_strict_lets_a_handlers_exception_end_the_server() -> None:
    with raises_alone(WorkerFailed, "the handler's own"):
        async with serving(handlers.fail, processes=2, strict=True) as server:
            async with await connect(server) as client:
                await client.send(b"?")
                await trio.sleep_forever()
    assert children() == []


def test_the_pause_before_a_restart_grows_up_to_a_limit() -> None:
    pauses = [_supervisor.pause_before(deaths) for deaths in range(1, 40)]
    assert pauses[0] == 0, "the first time it is replaced at once"
    assert pauses == sorted(pauses)
    assert pauses[-1] == _supervisor.LONGEST_PAUSE


# --- replacement ---


@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_sighup_replaces_all_and_no_connection_is_refused_or_cut(architecture: str) -> None:
    async with serving(
        handlers.tell_process_until_told, processes=2, architecture=architecture, signals=True, graceful_timeout=60
    ) as server:
        before = set(children())
        # Those that stay, each with a process that is to be replaced.
        staying = []
        for _ in range(MANY):
            client = await connect(server)
            staying.append((client, int(await receive_exactly(client, 8))))
        complaints: list[object] = []
        seen: set[int] = set()

        async def come_and_go() -> None:
            while True:
                try:
                    async with await connect(server) as client:
                        seen.add(int(await receive_exactly(client, 8)))
                        await client.send(b"X")
                        await receive_all(client)
                except (OSError, trio.BrokenResourceError, AssertionError) as error:
                    complaints.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(come_and_go)
            await soon(lambda: seen == before)
            os.kill(os.getpid(), signal.SIGHUP)
            for client, _pid in staying:  # all are told to finish, and none is cut
                with trio.fail_after(PATIENCE):
                    assert await receive_exactly(client, 8) == b"draining"
            for client, pid in staying:
                await client.send(b"?")
                assert int(await receive_exactly(client, 8)) == pid
            await soon(lambda: len(seen - before) == 2)
            nursery.cancel_scope.cancel()
        assert complaints == []
        exits = [Exit(pid) for pid in before]
        for client, _pid in staying:
            await client.send(b"X")
            assert await receive_all(client) == b""
            await client.aclose()
        for gone in exits:  # long before the 60 seconds are over
            await gone.wait()
        await soon(lambda: len(children()) == 2)
        assert not before & set(children())


async def test_a_roll_that_fails_leaves_the_old_processes_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flag = tmp_path / "flag"
    handler = handlers.WhenUnpickled(handlers.tell_process, handlers.complain_if, flag)
    options: Any = {"processes": 2, "signals": True, "graceful_timeout": 0.05}
    async with serving(handler, **options) as server, clients_of(server, 2) as clients:
        before = children()
        flag.touch()
        os.kill(os.getpid(), signal.SIGHUP)
        await soon(lambda: "are not replaced" in caplog.text)
        assert "this program cannot start" in caplog.text
        assert {await process_of(client) for client in clients} == set(before)
        await soon(lambda: children() == before)
        flag.unlink()
        os.kill(os.getpid(), signal.SIGHUP)
        await soon(lambda: len(children()) == 2 and not set(children()) & set(before))
        async with await connect(server) as client:
            assert await process_of(client) in children()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_a_process_that_is_sent_a_sigterm_drains_and_is_replaced(architecture: str) -> None:
    async with serving(
        handlers.tell_process_until_told, processes=2, architecture=architecture, graceful_timeout=60
    ) as server:
        clients: dict[int, Connection] = {}
        with trio.fail_after(PATIENCE):
            while len(clients) < 2:
                client = await connect(server)
                pid = int(await receive_exactly(client, 8))
                if pid in clients:
                    await client.aclose()
                else:
                    clients[pid] = client
        old, other = clients
        gone = Exit(old)
        os.kill(old, signal.SIGTERM)
        assert await receive_exactly(clients[old], 8) == b"draining"
        await soon(lambda: len(children()) == 3)
        await clients[old].send(b"?X")
        assert int(await receive_exactly(clients[old], 8)) == old
        assert await receive_all(clients[old]) == b""
        await gone.wait()
        await clients[other].send(b"?")
        assert int(await receive_exactly(clients[other], 8)) == other
        assert len(children()) == 2
        for client in clients.values():
            client.abort()


async def test_what_has_not_finished_in_time_is_cancelled() -> None:
    async with serving(handlers.tell_process, processes=1, signals=True, graceful_timeout=0.05) as server:
        async with clients_of(server, 3) as clients:
            os.kill(os.getpid(), signal.SIGHUP)
            for client in clients:
                assert await is_cut(client)
        await soon(lambda: server.statistics().cut_off == 3)
        await server.drain(60)
        assert server.cut_off == 0, "its own end had time enough"


# --- draining ---


@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_sigterm_lets_answers_arrive_whole(architecture: str) -> None:
    answer = b"".join(bytes([number]) * 16384 for number in range(64))
    whole = 0

    async def ask(client: Connection) -> None:
        nonlocal whole
        await client.send(b"?")
        begun = await receive_exactly(client, 1)
        begun_by.append(client)
        await asked.wait()
        assert begun + await receive_exactly(client, len(answer) - 1) == answer
        await client.aclose()
        whole += 1

    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            lambda **status: gain_trio.serve(
                handlers.answer_large, LOCAL, processes=2, architecture=architecture, signals=True, **status
            )
        )
        clients = [await connect(server) for _ in range(40)]
        begun_by: list[Connection] = []
        asked = trio.Event()
        for client in clients:
            nursery.start_soon(ask, client)
        await soon(lambda: len(begun_by) == len(clients))
        os.kill(os.getpid(), signal.SIGTERM)
        with trio.fail_after(PATIENCE):
            await server.draining.wait()
        asked.set()
    # serve() has returned, by itself
    assert whole == len(clients)
    assert children() == []
    with pytest.raises(OSError, match="connect"):
        await connect(server)


async def test_drain_waits_for_connections_and_then_ends_the_processes() -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            lambda **status: gain_trio.serve(handlers.tell_process_until_told, LOCAL, processes=2, **status)
        )
        clients = [await connect(server) for _ in range(4)]
        for client in clients:
            await receive_exactly(client, 8)
        nursery.start_soon(server.drain, 60)
        for client in clients:
            assert await receive_exactly(client, 8) == b"draining"
        assert len(children()) == 2
        for client in clients:
            await client.send(b"X")
            assert await receive_all(client) == b""
            await client.aclose()
    assert children() == []
    assert server.statistics().finished == 4
    assert server.active_connections == 0


async def test_what_a_process_logs_at_its_end_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        caplog.clear()
        with caplog.at_level(logging.INFO, "gain_trio"):
            async with trio.open_nursery() as nursery:
                server = await nursery.start(lambda **status: gain_trio.serve(echo, LOCAL, processes=1, **status))
                await server.drain(60)
        last = [record.getMessage() for record in caplog.records if record.processName == "gain_trio worker 0"][-1]
        assert "drained" in last


async def test_a_second_drain_can_shorten_the_first(caplog: pytest.LogCaptureFixture) -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            lambda **status: gain_trio.serve(handlers.tell_process, LOCAL, processes=2, **status)
        )
        async with clients_of(server, 2):
            nursery.start_soon(server.drain, 3600)
            await server.draining.wait()
            await server.drain(0)
    assert children() == []
    assert server.cut_off == server.statistics().cut_off == 2
    lines = [line for line in caplog.messages if "cuts off" in line]
    assert len(lines) == 2, "one a process"
    assert all("cuts off 1 connections" in line for line in lines)


async def until_refused(server: Server) -> None:
    """Wait until no process listens any more; a connection that is made meanwhile is closed."""
    with trio.fail_after(PATIENCE):
        while True:
            try:
                (await connect(server)).abort()
            except OSError:
                return
            await trio.sleep(0.01)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_stop_accepting_leaves_connections_alone(architecture: str) -> None:
    async with serving(handlers.tell_process, processes=2, architecture=architecture) as server:
        async with clients_of(server, 4) as clients:
            server.stop_accepting()
            await until_refused(server)
            for client in clients:
                assert await process_of(client) in children()


async def test_stop_accepting_reaches_a_process_that_is_being_started(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    handler = handlers.WhenUnpickled(handlers.tell_process, handlers.wait_while, gate)
    async with serving(handler, processes=1, architecture="socket_sharding") as server:
        [victim] = children()
        gate.touch()
        os.kill(victim, signal.SIGKILL)
        await soon(lambda: len(children()) == 1 and children() != [victim])
        server.stop_accepting()
        gate.unlink()
        await until_refused(server)
        await soon(lambda: server._process_counts() == (1, 1))


@pytest.mark.parametrize(
    "where",
    [(_supervisor.WorkerSupervisor, "_begin"), (_worker_launcher.WorkerLauncher, "start")],
    ids=["decided", "started"],
)
async def test_stop_accepting_when_a_process_is_about_to_be_started(
    where: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    do = getattr(*where)

    async def stop_accepting_first(*arguments: Any) -> Any:
        server.stop_accepting()
        return await do(*arguments)

    async with serving(handlers.tell_process, processes=1, architecture="socket_sharding") as server:
        monkeypatch.setattr(*where, stop_accepting_first)
        os.kill(children()[0], signal.SIGKILL)
        await soon(lambda: server._process_counts() == (1, 1))
        await until_refused(server)


# --- cancelling ---


@pytest.mark.parametrize("handler", [handlers.block, handlers.shielded], ids=["blocks", "is shielded"])
async def test_a_process_that_does_not_end_is_killed(handler: Any, short_grace: None) -> None:
    async with serving(handler, processes=2) as server:
        client = await connect(server)
        pid = int(await receive_exactly(client, 8))
        gone = Exit(pid)
    await gone.wait()
    assert children() == []
    client.abort()


async def test_cancelling_while_processes_are_starting_leaves_nothing(tmp_path: Path, short_grace: None) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    handler = handlers.WhenUnpickled(echo, handlers.wait_while, gate)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: gain_trio.serve(handler, LOCAL, processes=2))
        await soon(lambda: len(children()) == 2)
        nursery.cancel_scope.cancel()
    assert children() == []


# --- a server that is killed ---

ORPHANS = """
import sys
import trio
import gain_trio
from support import worker_handlers


async def main():
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            lambda **status: gain_trio.serve(
                getattr(worker_handlers, sys.argv[1]), "tcp://127.0.0.1:0", processes=2, **status)
        )
        print(server.addresses[0][1], flush=True)


if __name__ == "__main__":
    gain_trio.run(main)
"""


@pytest.mark.parametrize("handler", ["tell_process", "block"])
async def test_a_server_that_is_killed_leaves_no_process(handler: str, tmp_path: Path) -> None:
    program = tmp_path / "server.py"
    program.write_text(f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{ORPHANS}")
    with running(program, handler) as process:
        line = await trio.to_thread.run_sync(process.line)
        exits = []
        clients = []
        pids: set[int] = set()
        for _ in range(2):
            client = await gain_trio.connect(f"tcp://127.0.0.1:{int(line)}")
            await client.send(b"?")
            pids.add(int(await receive_exactly(client, 8)))
            clients.append(client)
        assert len(pids) == 2
        exits = [Exit(pid) for pid in pids]
        process.interrupt(signal.SIGKILL)
        for gone in exits:
            await gone.wait()
        for client in clients:
            client.abort()


# --- programs ---

UNGUARDED = """
import trio
import gain_trio

async def handler(connection):
    pass

async def main():
    await gain_trio.serve(handler, "tcp://127.0.0.1:0", processes=1)

gain_trio.run(main)
"""


async def test_a_program_without_a_guard_is_told(tmp_path: Path) -> None:
    program = tmp_path / "unguarded.py"
    program.write_text(UNGUARDED)
    completed = await trio.run_process([sys.executable, program], capture_stderr=True, check=False)
    assert completed.returncode == 1
    text = completed.stderr.decode()
    assert re.search(r"WorkerFailed: .* could not begin to serve: RuntimeError: .*if __name__ == \"__main__\"", text), (
        text
    )


async def test_a_handler_in_the_program_itself(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        UNGUARDED.replace("    pass", "    await connection.send(__name__.encode())")
        .replace(
            "    await gain_trio.serve(handler",
            "    async with trio.open_nursery() as nursery:\n"
            "        server = await nursery.start(start)\n"
            "        print(server.addresses[0][1], flush=True)\n\n"
            "async def start(**status):\n    await gain_trio.serve(handler",
        )
        .replace("processes=1)", "processes=1, **status)")
        .replace("gain_trio.run(main)", 'if __name__ == "__main__":\n    gain_trio.run(main)')
    )
    process = await trio.lowlevel.open_process([sys.executable, "-W", "error", program], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        port = int(await process.stdout.receive_some(100))
        async with await gain_trio.connect(f"tcp://127.0.0.1:{port}") as client:
            assert await receive_all(client) == b"__mp_main__"
    finally:
        process.kill()
        await process.wait()
        if process.stdout is not None:
            await process.stdout.aclose()

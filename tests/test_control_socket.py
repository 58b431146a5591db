"""control=: the socket by which a server's user looks at it."""

from __future__ import annotations

import errno
import functools
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from support import watching, worker_handlers
from support.asgi_serving import serving_app
from support.certificates import client_context, server_context
from support.datagrams import LOCAL as LOCAL_UDP
from support.pairs import PATIENCE, receive_all, receive_exactly, until
from support.processes import ROOT
from support.servers import LOCAL, connect, echo, serving
from support.watching import ASK, answer_to, look, look_until, query_database, slow_handlers, watcher
from support.websocket_servers import peer_of
from support.workers import ARCHITECTURES, clients_of, soon, watch

import gain_trio
from gain_trio import Connection, ServerConfig
from gain_trio._server import _control_socket, _handler_tasks
from gain_trio._server._control_socket import Misuse, check_request
from gain_trio._server._processes import _snapshot_gathering
from gain_trio._server._task_frames import waiting_place
from gain_trio._transports._addresses import _unix
from gain_trio.callbacks import Conn, EventHandler

pytestmark = pytest.mark.connections


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every handler is slow at once, and every look is a new one, without a pause."""
    monkeypatch.setattr(_handler_tasks, "SLOW", 0.0)
    monkeypatch.setattr(_handler_tasks, "_seconds_since_data", lambda _connection: 1.0)
    monkeypatch.setattr(_control_socket, "FRESH", 0.0)
    monkeypatch.setattr(_control_socket, "PAUSE", 0.0)


def write(path: Path, text: str) -> None:
    path.write_text(text)


def read(path: Path) -> str:
    return path.read_text()


def is_there(path: Path) -> bool:
    return path.exists()


# --- what there is to see ---


@pytest.mark.usefixtures("at_once")
async def test_a_server_in_one_process(path: Path) -> None:
    async with serving(echo, control=path) as server:
        async with await connect(server) as client:
            await client.send(b"12345")
            await receive_exactly(client, 5)
            seen = await look(path)
            assert (seen["version"], seen["state"]) == (1, "serving")
            assert seen["addresses"] == [f"127.0.0.1:{server.addresses[0][1]}"]
            connections = seen["connections"]
            assert (connections["accepted"], connections["active"], connections["closed"]["finished"]) == (1, 1, 0)
            assert connections["bytes_received"] == connections["bytes_sent"] == 5
            assert (seen["requests"], seen["datagrams"], seen["restarts"]) == (None, None, 0)
            [process] = seen["processes"]
            assert (process["pid"], process["worker"], process["state"]) == (os.getpid(), None, "serving")
            assert process["connections"] == connections
            assert 0 < process["cpu_seconds"] < 10000
            assert 1 << 20 < process["memory_bytes"] < 1 << 36
            assert process["handler"] == "echo"
            assert slow_handlers(seen) == []
            assert len(seen["rings"]) == (gain_trio.backend_info().backend == "io_uring")
            assert all(ring["submissions"] > 0 for ring in seen["rings"])


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_the_sums_are_those_of_all_processes(architecture: str, path: Path) -> None:
    async with serving(worker_handlers.tell_process, control=path, processes=2, architecture=architecture) as server:
        async with clients_of(server, 6):
            seen = await look(path)
            own, *workers = seen["processes"]
            assert (own["pid"], own["worker"], own["connections"]) == (os.getpid(), None, None)
            assert sorted(worker["worker"] for worker in workers) == [0, 1]
            assert {worker["state"] for worker in workers} == {"serving"}
            for name, total in (("active", 6), ("accepted", 6), ("bytes_received", 6), ("bytes_sent", 48)):
                assert seen["connections"][name] == total
                assert sum(worker["connections"][name] for worker in workers) == total
            assert len(seen["rings"]) == sum(len(worker["rings"]) for worker in workers)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers", "no_process_is_late")
async def test_a_worker_that_is_stopped_is_late_and_holds_up_no_second_look(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_control_socket, "FRESH", 0.0)
    async with serving(worker_handlers.tell_process, control=path, processes=2) as server:
        async with clients_of(server, 2):
            seen = await look(path)
            stopped = seen["processes"][1]
            os.kill(stopped["pid"], signal.SIGSTOP)
            try:
                seen = await look(path)  # which waits for it
                assert states(seen)[stopped["pid"]] == "late"
                assert seen["processes"][1]["connections"] == stopped["connections"], "what it said last"
                assert seen["connections"]["active"] == 2
                assert sorted(states(seen).values()) == ["late", "serving", "serving"]
                monkeypatch.setattr(_snapshot_gathering, "LOOKING", 10 * PATIENCE)
                assert states(await look(path))[stopped["pid"]] == "late"  # which does not
            finally:
                os.kill(stopped["pid"], signal.SIGCONT)
            await look_until(path, lambda seen: set(states(seen).values()) == {"serving"})


def states(seen: Any) -> dict[int, str]:
    return {process["pid"]: process["state"] for process in seen["processes"]}


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers", "no_process_is_late")
async def test_a_worker_whose_event_loop_is_held_up_is_late(path: Path) -> None:
    async with serving(worker_handlers.block, control=path, processes=1) as server:
        async with await connect(server) as client:
            pid = int(await receive_exactly(client, 8))
            watch(server, pid)
            assert states(await look(path))[pid] == "late"
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("processes", [None, 1])
async def test_a_server_that_drains(processes: int | None, path: Path) -> None:
    handler = worker_handlers.tell_process_until_told
    async with serving(handler, control=path, processes=processes) as server:
        client = await connect(server)
        await receive_exactly(client, 8)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.drain, PATIENCE)
            seen = await look_until(path, lambda seen: seen["state"] == "draining")
            assert seen["processes"][-1]["state"] == "draining"
            assert seen["connections"]["active"] == 1
            await client.send(b"X")
            await receive_all(client)
            await client.aclose()
        await until(lambda: not is_there(path))


@pytest.mark.usefixtures("at_once")
async def test_a_server_that_accepts_no_more_drains(path: Path) -> None:
    async with serving(echo, control=path) as server:
        server.stop_accepting()
        assert (await look(path))["state"] == "draining"


@pytest.mark.usefixtures("at_once")
async def test_a_server_of_datagrams(path: Path) -> None:
    async with trio.open_nursery() as nursery:
        serve = functools.partial(gain_trio.serve_datagrams, watching.slow_datagram, LOCAL_UDP, control=str(path))
        server = await nursery.start(serve)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"12345", server.address)
            seen = await look_until(path, lambda seen: seen["datagrams"]["active"] == 1)
            assert (seen["connections"], seen["requests"]) == (None, None)
            assert seen["datagrams"]["datagrams"]["received_bytes"] == 5
            assert len(seen["rings"]) == (gain_trio.backend_info().backend == "io_uring")
            [handler] = slow_handlers(seen)
            assert handler["peer"] == f"127.0.0.1:{sender.getsockname()[1] or ''}".replace("0.0.0.0", "127.0.0.1")
            assert handler["at"].endswith("query_database")
        nursery.cancel_scope.cancel()
    assert not is_there(path)


class Callbacks(EventHandler):
    async def on_read(self, conn: Conn, n: int) -> None:
        conn.write(bytes(conn.next(n)))
        await watching.query_database()


@pytest.mark.usefixtures("at_once")
async def test_a_server_of_callbacks(path: Path) -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(functools.partial(gain_trio.callbacks.serve, Callbacks(), LOCAL, control=path))
        async with await connect(server) as client, await connect(server) as idle:
            await client.send(b"x")
            await receive_exactly(client, 1)
            [handler] = slow_handlers(await look(path))
            assert handler["at"].endswith("query_database")
            assert idle.local_address[1] != handler["peer"]
        nursery.cancel_scope.cancel()


# --- slow handlers ---


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    "handler",
    [watching.slow, watching.slow_in_nursery, watching.slow_in_generator],
    ids=lambda handler: handler.__name__,
)
@pytest.mark.parametrize("has_tls", [False, True])
async def test_a_slow_handler_is_shown_where_it_waits(handler: Any, has_tls: bool, path: Path) -> None:
    options: dict[str, Any] = {"ssl_context": server_context()} if has_tls else {}
    async with serving(handler, control=path, **options) as server:
        client = await connect(server)
        if has_tls:
            client = await client.start_tls(client_context(), server_hostname="localhost")
        async with client:
            await client.send(b"?")
            await receive_exactly(client, 1)
            [slow] = slow_handlers(await look(path))
            assert slow["peer"] == f"127.0.0.1:{client.local_address[1]}"
            assert (slow["connection"], slow["waits_for"], slow["unsent"], slow["request"]) == (1, "other", 0, None)
            line = query_line()
            assert slow["at"] == f"{watching.__file__}:{line} query_database"
            names = [frame.rpartition(" ")[2] for frame in slow["frames"]]
            assert names[0] == handler.__name__
            assert "query_database" in names
            assert all(int(frame.rpartition(" ")[0].rpartition(":")[2]) > 0 for frame in slow["frames"])


def query_line() -> int:
    """The line of query_database() that waits."""
    lines = Path(watching.__file__).read_text().splitlines()
    return lines.index("    await trio.sleep_forever()") + 1


@pytest.mark.usefixtures("at_once")
async def test_the_programs_own_awaitables_are_not_touched(path: Path) -> None:
    async with serving(watching.slow_in_untouchable, control=path) as server:
        async with await connect(server) as client:
            await client.send(b"?")
            await receive_exactly(client, 1)
            [slow] = slow_handlers(await look(path))
            assert slow["at"].endswith(" slow_in_untouchable")


@pytest.mark.usefixtures("at_once")
async def test_a_look_that_fails_is_logged_and_ends_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(echo, control=path) as server:
        tasks = server._consumers[0]._settings.tasks
        monkeypatch.setattr(tasks, "look", lambda _processes: 1 // 0)
        seen = await look(path)
        assert (seen["state"], slow_handlers(seen)) == ("serving", [])
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        "slow handlers cannot be shown"
    ]


@pytest.mark.usefixtures("at_once")
async def test_a_failed_look_at_datagrams_is_logged_and_the_rest_is_shown(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with trio.open_nursery() as nursery:
        serve = functools.partial(gain_trio.serve_datagrams, watching.slow_datagram, LOCAL_UDP, control=str(path))
        server = await nursery.start(serve)
        monkeypatch.setattr(server._tasks, "look", lambda _processes: 1 // 0)
        for _ in range(2):
            seen = await look(path)
            assert (seen["state"], seen["datagrams"]["handled"], slow_handlers(seen)) == ("serving", 0, [])
        nursery.cancel_scope.cancel()
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        "slow handlers cannot be shown"
    ], "once, however many look"


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    "handler", [echo, watching.idle_in_messages, watching.idle_in_a_child], ids=lambda handler: handler.__name__
)
async def test_a_handler_that_waits_for_its_peer_is_not_slow(handler: Any, path: Path) -> None:
    async with serving(handler, control=path) as server:
        async with await connect(server) as client:
            await client.send(b"x")
            await receive_exactly(client, 1)
            [process] = (await look(path))["processes"]
            assert (process["examined"], process["slow_handlers"]) == (1, [])


@pytest.mark.usefixtures("at_once")
async def test_a_peer_that_does_not_read_is_shown_with_what_is_unsent(path: Path) -> None:
    async with serving(watching.send_much, control=path) as server:
        async with await connect(server) as client:
            await client.send(b"?")
            await receive_exactly(client, 1)
            seen = await look_until(path, lambda seen: slow_handlers(seen) and slow_handlers(seen)[0]["unsent"])
            [slow] = slow_handlers(seen)
            assert slow["waits_for"] == "peer"
            client.abort()


@pytest.mark.slow
async def test_the_kernel_says_how_long_ago_a_byte_moved(path: Path) -> None:
    async with serving(watching.slow, control=path) as server:
        async with await connect(server) as client:
            await client.send(b"?")
            await receive_exactly(client, 1)
            began = trio.current_time()
            seen = await look_until(path, slow_handlers)
            assert 1.0 <= slow_handlers(seen)[0]["seconds"] <= trio.current_time() - began + 0.1


@pytest.mark.usefixtures("at_once")
async def test_what_a_peer_chose_is_escaped(path: Path, tmp_path: Path) -> None:
    listening = tmp_path / "app.sock"
    async with serving(watching.slow, f"unix://{listening}", control=path):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.bind(str(tmp_path / "\x1b[31m[red]\n"))
            client.setblocking(False)
            client.connect(str(listening))
            client.send(b"?")
            [slow] = slow_handlers(await look_until(path, slow_handlers))
            assert slow["peer"].endswith(r"\x1b[31m[red]\n")


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("task_per_request", [False, True])
async def test_a_request_is_shown_without_its_query(task_per_request: bool, path: Path) -> None:
    async with serving_app(watching.app, control=path, task_per_request=task_per_request) as server:
        async with await connect(server) as client, await connect(server) as idle:
            await idle.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await idle.receive_until(b"ok", max_bytes=1000)
            await client.send(b"GET /slow%1b%0a?token=secret HTTP/1.1\r\nHost: x\r\n\r\n")
            seen = await look_until(path, lambda seen: seen["requests"]["in_progress"])
            assert (seen["requests"]["completed"], seen["requests"]["by_status"]["2xx"]) == (1, 1)
            [slow] = slow_handlers(seen)
            assert slow["request"] == r"GET /slow\x1b\n"
            assert slow["at"] == f"{watching.__file__}:{query_line()} query_database"
            client.abort()


@pytest.mark.usefixtures("at_once")
async def test_a_request_whose_body_does_not_come(path: Path) -> None:
    async with serving_app(watching.app, control=path) as server:
        async with await connect(server) as client:
            await client.send(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n1")
            [slow] = slow_handlers(await look_until(path, slow_handlers))
            assert (slow["request"], slow["waits_for"]) == ("POST /body", "peer")


@pytest.mark.usefixtures("at_once")
async def test_a_websocket_is_shown_by_its_handshake(path: Path) -> None:
    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await query_database()

    async with serving_app(app, control=path) as server, peer_of(server, path=b"/chat") as peer:
        await peer.response()
        assert peer.status == 101
        seen = await look_until(path, slow_handlers)
        assert seen["requests"]["in_progress"] == 1
        [slow] = slow_handlers(seen)
        assert (slow["request"], slow["waits_for"]) == ("GET /chat", "other")


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
async def test_slow_handlers_of_worker_processes(path: Path) -> None:
    async with serving(watching.slow, control=path, processes=2) as server:
        clients = [await connect(server) for _ in range(2)]
        for client in clients:
            await client.send(b"?")
            await receive_exactly(client, 1)
        seen = await look_until(path, lambda seen: len(slow_handlers(seen)) == 2)
        assert [len(process["slow_handlers"]) for process in seen["processes"]] == [0, 1, 1]
        assert {slow["at"] for slow in slow_handlers(seen)} == {f"{watching.__file__}:{query_line()} query_database"}
        for client in clients:
            client.abort()


@pytest.mark.usefixtures("at_once")
async def test_a_look_is_limited_and_has_its_turns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_handler_tasks, "MOST_EXAMINED", 4)
    monkeypatch.setattr(_handler_tasks, "MOST_REPORTED", 1)

    async def handler(connection: Connection) -> None:
        while (data := await connection.receive()) != b"s":
            await connection.send(data)
        await connection.send(data)
        await watching.query_database()

    async with serving(handler, control=path) as server:
        clients = [await connect(server) for _ in range(10)]
        for client in clients:
            await client.send(b"s" if client is clients[-1] else b"x")
            await receive_exactly(client, 1)
        found = []
        for _ in range(5):
            [process] = (await look(path))["processes"]
            assert process["examined"] <= 4 + 1
            found.append([slow["connection"] for slow in process["slow_handlers"]])
        assert found == [[], [], [10], [10], [10]], "one that was found is looked at again"
        for client in clients:
            client.abort()


@pytest.mark.usefixtures("at_once")
async def test_the_steps_of_a_look_are_limited(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_handler_tasks, "MOST_STEPS", 30)
    monkeypatch.setattr(_handler_tasks, "LEAST_STEPS", 1)
    async with serving(watching.slow, control=path) as server:
        clients = [await connect(server) for _ in range(6)]
        for client in clients:
            await client.send(b"?")
            await receive_exactly(client, 1)
        numbers: set[int] = set()
        for _ in range(20):
            [process] = (await look(path))["processes"]
            assert process["examined"] < 6
            numbers |= {slow["connection"] for slow in process["slow_handlers"]}
        assert numbers == {1, 2, 3, 4, 5, 6}, "each has its turn"
        for client in clients:
            client.abort()


async def test_the_steps_at_all_children_are_counted() -> None:
    left, right = gain_trio.testing.connection_pair()
    async with left, right, trio.open_nursery() as nursery:

        async def parent(task_status: trio.TaskStatus[trio.lowlevel.Task]) -> None:
            async with trio.open_nursery() as children:
                for _ in range(5):
                    children.start_soon(watching.query_database)
                task_status.started(trio.lowlevel.current_task())

        task = await nursery.start(parent)
        await trio.testing.wait_all_tasks_blocked()
        children = task.child_nurseries[0].child_tasks
        without_peer = waiting_place(task, None)
        assert without_peer.at is not None
        assert without_peer.at.endswith(" query_database")
        of_children = sum(waiting_place(child, None).steps for child in children)
        assert waiting_place(task, left).steps == without_peer.steps + of_children
        nursery.cancel_scope.cancel()


async def test_nothing_is_noted_where_no_socket_was_asked_for() -> None:
    async with serving(echo) as server:
        assert server._consumers[0]._settings.tasks is None


async def test_what_is_over_is_forgotten(path: Path) -> None:
    async with serving(echo, control=path) as server:
        tasks = server._consumers[0]._settings.tasks
        assert tasks is not None
        async with await connect(server) as client:
            await client.send(b"x")
            await receive_exactly(client, 1)
            assert len(tasks._running) == 1
        await until(lambda: not server.active_connections)
        assert not tasks._running


# --- who may look ---


async def test_the_file_is_the_users_alone_from_the_beginning(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []
    give = _unix._give

    def seen(name: str, *arguments: Any) -> None:
        modes.append(stat.S_IMODE(os.lstat(name).st_mode))
        give(name, *arguments)

    monkeypatch.setattr(_unix, "_give", seen)
    before = os.umask(0)
    try:
        async with serving(echo, control=path):
            assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600
            assert modes == [0o600], "right behind bind(2)"
    finally:
        os.umask(before)
    assert not is_there(path)


@pytest.mark.parametrize(("user", "is_refused"), [("own", False), (0, False), (4711, True)])
async def test_a_peer_is_the_servers_user_or_root(
    user: Any, is_refused: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = os.geteuid() if user == "own" else user
    credentials = gain_trio.sockets.PeerCredentials(1, uid, 0)
    async with serving(echo, control=path):
        client = await watcher(path)
        monkeypatch.setattr(Connection, "peer_credentials", lambda _self: credentials)
        async with client:
            await client.send(ASK)
            answer = json.loads(await client.receive_until(b"\n", max_bytes=1 << 20))
            assert ("error" in answer) is is_refused
            if is_refused:
                assert answer["error"].endswith(f"you are user {uid}: ask as its user, or as root")


async def test_a_socket_that_a_dead_server_left_is_replaced_and_nothing_else(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(path))
    os.utime(path)
    async with serving(echo, control=path):
        assert (await look(path))["state"] == "serving"
        with pytest.raises(BaseException) as caught:
            async with serving(echo, control=path):
                pass
        assert "a server is listening there" in repr(caught.value)
    write(path, "precious")
    with pytest.raises(BaseException) as caught:
        async with serving(echo, control=path):
            pass
    assert "not a socket" in repr(caught.value)
    assert read(path) == "precious"


async def test_a_path_that_cannot_be_listened_on_ends_the_server(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot listen on unix://.*/none/control\.sock") as caught:
        await gain_trio.serve(echo, LOCAL, control=tmp_path / "none" / "control.sock")
    assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        (9100, TypeError, "control is the path of a Unix socket"),
        ("control.sock", ValueError, "does not begin at the root: write all of it, '/run"),
        ("unix:///run/app/control.sock", ValueError, "write the path alone, '/run/app/control.sock'"),
        ("", ValueError, "is empty"),
        ("/x" * 100, ValueError, "choose a shorter one"),
        ("/a\0b", ValueError, "NUL"),
    ],
)
def test_paths_that_are_none(value: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        ServerConfig(control=value)


def test_a_look_imports_nothing(tmp_path: Path) -> None:
    """A user that the server has become may not be able to read Python's own files."""
    path = tmp_path / "s"
    program = f"""
import json, socket, sys, trio, gain_trio

class NoMore:
    def find_spec(self, name, path=None, target=None):
        raise ImportError(f"{{name}} is imported too late")

def ask():
    client = socket.socket(socket.AF_UNIX)
    client.settimeout({PATIENCE})
    client.connect({str(path)!r})
    client.sendall({ASK!r})
    answer = b""
    while not answer.endswith(b"\\n"):
        data = client.recv(1 << 20)
        assert data, "no answer"
        answer += data
    return json.loads(answer)

async def handler(connection):
    pass

async def main():
    async with trio.open_nursery() as nursery:
        serve = lambda **status: gain_trio.serve(handler, "tcp://127.0.0.1:0", control={str(path)!r}, **status)
        await nursery.start(serve)
        await trio.to_thread.run_sync(lambda: None)
        sys.meta_path.insert(0, NoMore())
        answer = await trio.to_thread.run_sync(ask)
        assert answer["processes"][0]["memory_bytes"] > 0
        assert answer["processes"][0]["cpu_seconds"] >= 0
        nursery.cancel_scope.cancel()

gain_trio.run(main)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=6 * PATIENCE)


async def test_the_log_names_what_serves_watchers(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(echo, control=path) as server:
        monkeypatch.setattr(server, "_snapshot", lambda: 1 // 0)
        async with await watcher(path) as client:
            await client.send(ASK)
            assert await receive_all(client) == b""
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.getMessage().startswith("handler gain_trio control failed with ZeroDivisionError")


# --- misuse ---


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"GET / HTTP/1.1\r\n", "a request is an object of JSON on one line"),
        (b"\n", "a request is an object of JSON on one line"),
        (b"[1]\n", "a request is an object of JSON on one line"),
        (b"[" * 1000 + b"\n", "a request is an object of JSON on one line"),
        (b"\xff\xfe\n", "a request is an object of JSON on one line"),
        (b"9" * 1000 + b"\n", "a request is an object of JSON on one line"),
        (b"{}\n", "this server has version 1 of the protocol, and the request none"),
        (b'{"version": 2, "request": "snapshot"}\n', "this server has version 1 of the protocol, and the request 2"),
        (b'{"version": "\\u001b[31m"}\n', r"and the request \\x1b\[31m"),
        (b'{"version": 1e999, "request": "snapshot"}\n', "and the request inf"),
        (b'{"version": 1, "request": "stop"}\n', 'this server knows one request, "snapshot"'),
        (b'{"version": 1, "request": ["snapshot"]}\n', 'this server knows one request, "snapshot"'),
        (b"x" * (_control_socket.LARGEST_REQUEST + 1), "a request has at most 1024 bytes"),
    ],
)
async def test_a_malformed_request_gets_one_line(
    line: bytes, reason: str, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(echo, control=path):
        async with await watcher(path) as client:
            await client.send(line)
            answer = await receive_all(client)
        assert answer.count(b"\n") == 1
        [(_, version), (_, error)] = json.loads(answer).items()
        assert version == 1
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(error)
    assert not [record for record in caplog.records if record.levelname in {"WARNING", "ERROR"}]


def test_what_is_understood() -> None:
    check_request(b'{"request": "snapshot", "version": 1, "more": null}')
    with pytest.raises(Misuse):
        check_request(b"null")


async def test_a_watcher_that_goes_in_the_middle_of_a_request(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(echo, control=path):
        async with await watcher(path) as client:
            await client.send(ASK[:10])
        assert (await look(path))["state"] == "serving"
    assert not [record for record in caplog.records if record.levelname in {"WARNING", "ERROR"}]


async def test_the_number_of_watchers_is_limited(path: Path) -> None:
    async with serving(echo, control=path):
        clients = [await watcher(path) for _ in range(_control_socket.MOST_WATCHERS)]
        for client in clients:
            assert (await answer_to(client))["state"] == "serving"
        async with await watcher(path) as one_more:
            [answer] = (await receive_all(one_more)).splitlines()
            assert "8 others look at this server already" in json.loads(answer)["error"]
        await clients.pop().aclose()
        await until_it_may_look(path)
        for client in clients:
            client.abort()


async def until_it_may_look(path: Path) -> None:
    with trio.fail_after(PATIENCE):
        while "error" in await look(path):
            await trio.lowlevel.checkpoint()


async def test_a_watcher_that_asks_for_nothing_is_sent_away(path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with serving(echo, control=path):
        began = trio.current_time()
        async with await watcher(path) as client:
            [answer] = (await receive_all(client)).splitlines()
        assert json.loads(answer)["error"] == "no request has come for 60 seconds"
        assert trio.current_time() - began == pytest.approx(60)


def counted_looks(server: Any, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times at which a server is looked at from now on."""
    looks: list[float] = []
    snapshot = server._snapshot

    async def counted() -> Any:
        looks.append(trio.current_time())
        return await snapshot()

    monkeypatch.setattr(server, "_snapshot", counted)
    return looks


async def ask_on_and_on(path: Path, times: list[float]) -> None:
    """A watcher that never pauses, and notes the time of each look that it gets."""
    async with await watcher(path) as client:
        while True:
            await client.send(ASK)
            times.append(json.loads(await client.receive_until(b"\n", max_bytes=1 << 20))["time"])


async def test_watchers_that_never_pause_get_each_look_once(
    path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(echo, control=path) as server:
        looks = counted_looks(server, monkeypatch)
        seen: list[list[float]] = [[] for _ in range(_control_socket.MOST_WATCHERS)]
        with trio.move_on_after(10):
            async with trio.open_nursery() as nursery:
                for times in seen:
                    nursery.start_soon(ask_on_and_on, path, times)
    assert 8 < len(looks) <= 10 / _control_socket.FRESH + 1
    for times in seen:
        assert len(times) > 8, "none of them starves"
        assert times == sorted(set(times)), "and none gets a look twice"
        assert set(times) <= set(looks)


async def test_watchers_that_connect_anew_for_each_request_wait_for_their_turn(
    path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(echo, control=path) as server:
        looks = counted_looks(server, monkeypatch)
        answers = 0
        with trio.move_on_after(10):
            async with await watcher(path) as other:  # while it is there, the last look is kept
                await answer_to(other)
                while True:
                    await look(path)
                    answers += 1
    assert 100 < answers <= 10 / _control_socket.PAUSE + 1
    assert len(looks) <= 10 / _control_socket.FRESH + 1


async def test_a_watcher_that_asks_for_much_at_once_waits_for_each_look(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(echo, control=path):
        async with await watcher(path) as client:
            began = trio.current_time()
            await client.send(20 * ASK)
            for _ in range(20):
                await client.receive_until(b"\n", max_bytes=1 << 20)
            assert trio.current_time() - began == pytest.approx(19 * _control_socket.FRESH, rel=0.02)


async def test_a_watcher_that_does_not_read_holds_one_answer_and_is_cut_off(
    path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    send = _control_socket._ControlHandler._send

    async def sent(self: Any, connection: Connection, answer: bytes) -> bool:
        answer += bytes(8 << 20)
        held.append(connection.outbound_buffered)
        return await send(self, connection, answer)

    monkeypatch.setattr(_control_socket._ControlHandler, "_send", sent)
    async with serving(echo, control=path):
        client = await watcher(path)
        began = trio.current_time()
        await client.send(10 * ASK)
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await trio.sleep(1)
                await client.send(b" ")
        assert trio.current_time() - began < _control_socket.ANSWER_TIMEOUT + 3
        assert held == [0]
        client.abort()


async def test_watchers_share_a_look(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_control_socket, "FRESH", 3600.0)
    async with serving(echo, control=path) as server:
        looks = counted_looks(server, monkeypatch)
        async with await watcher(path) as one, await watcher(path) as other:
            first = await answer_to(one)
            assert await answer_to(other) == first
            assert len(looks) == 1
        await until_closed(path)
        await look(path)
        assert len(looks) == 2, "the last watcher takes the answer along"


async def until_closed(path: Path) -> None:
    """Wait until the server has seen the end of all watchers."""
    for _ in range(10):
        await trio.testing.wait_all_tasks_blocked()


@pytest.mark.slow
def test_the_file_is_removed_by_a_signal_too(path: Path) -> None:
    from support.processes import running

    with running("-m", "gain_trio", "serve", LOCAL, "--handler", "echo", "--control", path, cwd=ROOT) as program:
        assert program.line().startswith("serving echo")
        assert path.is_socket()
        program.interrupt()
        assert program.end()[0] == 0
    assert not is_there(path)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
async def test_a_worker_that_died_is_counted_and_its_successor_is_seen(path: Path) -> None:
    async with serving(worker_handlers.tell_process, control=path, processes=1) as server:
        [_own, worker] = (await look(path))["processes"]
        os.kill(worker["pid"], signal.SIGKILL)
        await soon(lambda: server._process_counts() == (1, 1))
        seen = await look_until(path, lambda seen: seen["restarts"] == 1 and len(seen["processes"]) == 2)
        assert seen["processes"][1]["pid"] != worker["pid"]

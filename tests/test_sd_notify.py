"""serve(sd_notify=True): what a service manager gets, at a NOTIFY_SOCKET of the test's own."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio
from support.pairs import PATIENCE
from support.processes import TIMEOUT, connect, read_all, running
from support.servers import LOCAL, echo, serving
from support.worker_handlers import block
from support.workers import soon

import gain_trio

pytestmark = [pytest.mark.connections, pytest.mark.one_backend]


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket of a service manager, which NOTIFY_SOCKET names."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(TIMEOUT)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


def lines_of(report: bytes) -> dict[str, str]:
    return dict(line.split("=", 1) for line in report.decode().split("\n"))


async def next_report(manager: socket.socket) -> dict[str, str]:
    with trio.fail_after(PATIENCE):
        await trio.lowlevel.wait_readable(manager)
    return lines_of(manager.recv(4096))


async def test_a_server_reports_its_start_and_its_end(manager: socket.socket) -> None:
    async with serving(echo, sd_notify=True) as server:
        port = server.addresses[0][1]
        serving_on = f"serving on 127.0.0.1:{port}: 0 connections"
        assert await next_report(manager) == {"READY": "1", "MAINPID": str(os.getpid()), "STATUS": serving_on}
        assert "NOTIFY_SOCKET" not in os.environ
        await server.drain(math.inf)
        assert await next_report(manager) == {"STOPPING": "1", "STATUS": "draining: 0 connections"}


async def test_a_server_that_is_cancelled_reports_its_end(manager: socket.socket) -> None:
    async with serving(echo, sd_notify=True):
        await next_report(manager)
    assert await next_report(manager) == {"STOPPING": "1"}


async def test_the_next_server_of_the_process_reports_too(manager: socket.socket) -> None:
    for _ in range(2):
        async with serving(echo, sd_notify=True):
            assert "READY" in await next_report(manager)
        assert "STOPPING" in await next_report(manager)


async def test_a_renewal_is_reported(manager: socket.socket) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    async with serving(echo, sd_notify=True, signals=True):
        await next_report(manager)
        os.kill(os.getpid(), signal.SIGHUP)
        report = await next_report(manager)
        now = int(report.pop("MONOTONIC_USEC"))
        assert before <= now <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        assert report == {"RELOADING": "1"}
        assert await next_report(manager) == {"READY": "1"}
        os.kill(os.getpid(), signal.SIGTERM)
        assert await next_report(manager) == {"STOPPING": "1", "STATUS": "draining: 0 connections"}


async def test_a_renewal_before_the_server_is_up_reports_nothing(
    manager: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    """A READY=1 for it would have the service manager start what depends on the server."""
    caplog.set_level(logging.INFO, "gain_trio")

    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        os.kill(os.getpid(), signal.SIGHUP)
        with trio.fail_after(PATIENCE):
            while "SIGHUP is ignored" not in caplog.text:
                await trio.lowlevel.checkpoint()
        yield

    async with serving(echo, sd_notify=True, signals=True, lifespan=lifespan):
        assert "MAINPID" in await next_report(manager)


async def test_a_name_in_the_abstract_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{tmp_path}/notify")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{tmp_path}/notify")
        async with serving(echo, sd_notify=True):
            assert "READY" in await next_report(manager)


async def test_a_queue_that_is_full_is_waited_for(
    manager: socket.socket, autojump_clock: trio.testing.MockClock
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        others = 0
        try:
            while True:
                other.sendto(b"X=1", manager.getsockname())
                others += 1
        except BlockingIOError:
            pass
        async with serving(echo, sd_notify=True):
            await trio.sleep(1)
            for _ in range(others):
                assert await next_report(manager) == {"X": "1"}
            assert "READY" in await next_report(manager)


# --- the watchdog ---


async def test_the_event_loop_shows_that_it_goes_round(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    async with serving(echo, sd_notify=True) as server:
        start = trio.current_time()
        assert "READY" in await next_report(manager)
        times = []
        for _ in range(4):
            assert await next_report(manager) == {"WATCHDOG": "1"}
            times.append(trio.current_time() - start)
        assert times == pytest.approx([0, 1.5, 3, 4.5], abs=0.1)
        assert os.environ.keys().isdisjoint({"WATCHDOG_USEC", "WATCHDOG_PID"})
        async with await gain_trio.connect(f"tcp://127.0.0.1:{server.addresses[0][1]}"):
            report = await next_report(manager)
            assert report.pop("STATUS").endswith(": 1 connections")
            assert report == {"WATCHDOG": "1"}


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({}, ""),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, ""),
        ({"WATCHDOG_USEC": "0"}, "WATCHDOG_USEC is a number of microseconds, not '0'"),
        ({"WATCHDOG_USEC": "1e6"}, "WATCHDOG_USEC is a number of microseconds, not '1e6'"),
    ],
)
async def test_no_watchdog(
    variables: dict[str, str],
    line: str,
    *,
    manager: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    async with serving(echo, sd_notify=True):
        assert "READY" in await next_report(manager)
        await trio.sleep(10)
    assert "STOPPING" in await next_report(manager)
    assert [record.getMessage() for record in caplog.records] == (
        [f"the service manager's watchdog is left out: {line}"] if line else []
    )


# --- what goes wrong ---


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("{}/none", "No such file or directory"),
        ("{}", "Connection refused|Protocol wrong type"),
        ("/" + "x" * 200, "AF_UNIX path too long"),
        ("vsock:2:1234", "only a path and an @abstract name are known"),
        ("unixgram:/run/x", "only a path and an @abstract name are known"),
    ],
)
async def test_a_service_manager_that_is_not_there_gets_a_line(
    name: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", name.format(tmp_path))
    async with serving(echo, sd_notify=True) as server:
        await server.drain(0)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert re.match(f"the service manager gets no report: NOTIFY_SOCKET is .*({reason})", record.getMessage())


@pytest.mark.parametrize("address", [None, ""])
async def test_without_a_service_manager_nothing_is_done(
    address: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setattr("gain_trio._server._service_manager._speaker._taken", {})
    async with serving(echo, sd_notify=True) as server:
        await server.drain(0)
    assert not caplog.records


async def test_one_server_of_a_process_reports(manager: socket.socket) -> None:
    async with serving(echo, sd_notify=True):
        with pytest.raises(RuntimeError, match=r"one server of a process.*leave it out here"):
            await gain_trio.serve(echo, LOCAL, sd_notify=True)
    async with serving(echo, sd_notify=True):
        pass


# --- with worker processes ---


@pytest.mark.slow
async def test_a_worker_process_that_hangs_is_the_servers_affair(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed and replaced, and meanwhile the server's own event loop shows that it goes round."""
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    options = {"processes": 1, "worker_timeout": 0.3, "sd_notify": True}
    async with serving(block, **options) as server:
        report = await next_report(manager)
        assert report["STATUS"].endswith(": 0 connections, 1 of 1 worker processes")
        async with await gain_trio.connect(f"tcp://127.0.0.1:{server.addresses[0][1]}") as client:
            await client.send(b"x")
            beats = 0
            while not server.statistics().hung_workers:
                beats += "WATCHDOG" in await next_report(manager)
            assert beats >= 3
        await soon(lambda: server._process_counts() == (1, 1))
        while not (await next_report(manager)).get("STATUS", "").endswith("1 of 1 worker processes"):
            pass


LAUNCHER = """
import os, socket, sys

listening = socket.create_server(("127.0.0.1", 0))
os.dup2(listening.fileno(), 20)
os.dup2(20, 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", WATCHDOG_PID=str(os.getpid()), SERVED="1")
command = [sys.executable, "-W", "error", "-m", "gain_trio", "serve", "fd://systemd", *sys.argv[1:]]
os.execv(sys.executable, command)
"""
HANDLER = """
import os

async def tell_environment(connection):
    await connection.send(" ".join(os.environ).encode())
"""


@pytest.mark.slow
def test_the_command_under_systemd(manager: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Type=notify-reload, WatchdogSec= and socket activation: start, reload, stop."""
    (tmp_path / "told.py").write_text(HANDLER)
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    monkeypatch.setenv("WATCHDOG_USEC", "400000")

    def received(wanted: str) -> dict[str, str]:
        while True:
            report = lines_of(manager.recv(4096))
            if wanted in report:
                return report
            assert report.keys() <= {"WATCHDOG", "STATUS"}

    arguments = ("--handler", "told:tell_environment", "--processes", "1")
    with running(tmp_path / "launcher.py", *arguments, cwd=tmp_path) as program:
        report = received("READY")
        assert report["MAINPID"] == str(program.pid)
        found = re.fullmatch(r"serving on 127\.0\.0\.1:(\d+): 0 connections, 1 of 1 worker processes", report["STATUS"])
        assert found is not None
        received("WATCHDOG")
        with connect("127.0.0.1", int(found[1])) as client:
            names = set(read_all(client).decode().split())
        assert "SERVED" in names
        assert names.isdisjoint({"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS"})
        program.interrupt(signal.SIGHUP)
        assert int(received("RELOADING")["MONOTONIC_USEC"]) > 0
        received("READY")
        program.interrupt(signal.SIGTERM)
        assert "draining" in received("STOPPING")["STATUS"]
        status, _out, err = program.end()
        assert (status, err) == (0, "")


HOLDER = """
import pathlib

async def hold_up(connection):
    await connection.receive()
    pathlib.Path("held").touch()
    open("released").close()  # waits until the test opens it, too
"""


@pytest.mark.slow
def test_a_server_that_is_held_up_misses_its_watchdog(
    manager: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "holder.py").write_text(HOLDER)
    os.mkfifo(tmp_path / "released")
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    with running(
        "-m", "gain_trio", "serve", "tcp://127.0.0.1:0", "--handler", "holder:hold_up", cwd=tmp_path
    ) as program:
        found = re.search(r":(\d+);", program.line())
        assert found is not None
        while "WATCHDOG" not in lines_of(manager.recv(4096)):
            pass
        with connect("127.0.0.1", int(found[1])) as client:
            client.sendall(b"x")
            manager.settimeout(0.05)
            while not (tmp_path / "held").exists():
                with contextlib.suppress(TimeoutError):
                    manager.recv(4096)
            manager.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                while manager.recv(4096):  # what was on its way
                    pass
            manager.settimeout(1)  # of which twenty reports would come
            with pytest.raises(TimeoutError):
                manager.recv(4096)
            (tmp_path / "released").open("w").close()
            assert read_all(client) == b""
        manager.settimeout(TIMEOUT)
        while "WATCHDOG" not in lines_of(manager.recv(4096)):
            pass
        program.interrupt(signal.SIGTERM)
        assert program.end()[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["udp://127.0.0.1:0"], ["tcp://127.0.0.1:0", "--async-handler"]], ids=["UDP", "callbacks"]
)
def test_the_command_with_other_servers(arguments: list[str], manager: socket.socket) -> None:
    """Those that obey no signals themselves."""
    with running("-m", "gain_trio", "serve", *arguments, "--handler", "echo") as program:
        report = lines_of(manager.recv(4096))
        assert (report["READY"], report["MAINPID"]) == ("1", str(program.pid))
        assert report["STATUS"].startswith("serving on 127.0.0.1:")
        program.interrupt(signal.SIGHUP)
        assert "RELOADING" in lines_of(manager.recv(4096))
        assert lines_of(manager.recv(4096)) == {"READY": "1"}
        program.interrupt(signal.SIGTERM)
        assert lines_of(manager.recv(4096)) == {"STOPPING": "1"}
        assert program.end()[0] == 0

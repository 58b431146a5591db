"""The command gain-trio, run for real."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.certificates import certificate, client_context
from support.processes import TIMEOUT, Program, command, connect, read_all, read_exactly, run, running

import gain_trio
from gain_trio._command._cli import main

pytestmark = [pytest.mark.slow, pytest.mark.one_backend]

SERVE = ("-m", "gain_trio", "serve")
ANY_PORT = "tcp://127.0.0.1:0"

HANDLERS = """
import asyncio
import os

import trio

import gain_trio

NOT_CALLABLE = 1

async def greet(connection):
    await connection.send(b"hello from a module")

async def fail(connection):
    raise LookupError("the handler's own")

async def stubborn(connection):
    try:
        await connection.send(b"ready")
        await trio.sleep_forever()
    finally:
        print("cleaned up", flush=True)

class Namespace:
    greet = staticmethod(greet)

class Last:
    def pick(self, peer, consumers):
        return consumers[-1]

last = Last()

async def which(connection):
    name = trio.lowlevel.current_task().parent_nursery.parent_task.name
    await connection.send(name.encode())

class Shout(gain_trio.callbacks.EventHandler):
    def on_read(self, conn, n):
        conn.write(conn.next(n).upper())

shouting = Shout()

class Where(gain_trio.callbacks.EventHandler):
    def on_accept(self, conn):
        conn.write(str(os.getpid()).encode())
        conn.close()

class Endless(gain_trio.callbacks.EventHandler):
    async def on_accept(self, conn):
        conn.write(b"ready")
        await trio.sleep_forever()

class Words(asyncio.Protocol):
    pass

async def tell_niceness(connection):
    await connection.send(str(os.getpriority(os.PRIO_PROCESS, 0)).encode())
"""

ONCE = """
open("imported", "x").close()  # by the command, and so by no worker process

async def greet(connection):
    await connection.send(b"hello")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a module of handlers, to stand in."""
    (tmp_path / "my_handlers.py").write_text(HANDLERS)
    return tmp_path


def where_it_serves(program: Program, handler: str = "echo") -> tuple[str, int]:
    """The address that the command prints for its server."""
    line = program.line()
    assert line, program.end()
    return address_in(line, handler)


def address_in(line: str, handler: str) -> tuple[str, int]:
    """The address in a line of the command's output."""
    match = re.fullmatch(rf"serving {re.escape(handler)} on tcp://\[?(.+?)\]?:(\d+); Ctrl-C stops it", line)
    assert match, line
    return match[1], int(match[2])


@contextlib.contextmanager
def redirected(redirection: str, path: Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """The command with its standard output elsewhere."""
    command = [
        "sh",
        "-c",
        f'exec "$@" {redirection}',
        "sh",
        sys.executable,
        *SERVE,
        f"unix://{path}",
        "--handler",
        "echo",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def echoes_until_it_is_told_to_end(process: subprocess.Popen[str], path: Path) -> str:
    """What it complained."""
    patience = time.monotonic() + TIMEOUT
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(TIMEOUT)
        while client.connect_ex(
            str(path)
        ):  # the test cannot read the line that says where it serves, so it waits by connecting
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < patience
            time.sleep(0.01)
        client.sendall(b"hello")
        assert read_exactly(client, 5) == b"hello"
    process.send_signal(signal.SIGTERM)
    _out, complained = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0
    return complained


def test_it_serves_though_nobody_reads_where(tmp_path: Path) -> None:
    """``gain-trio serve | head -0``."""
    reading, writing = os.pipe()
    os.close(reading)
    path = tmp_path / "app.sock"
    try:
        with redirected("", path, stdout=writing) as process:
            assert echoes_until_it_is_told_to_end(process, path) == ""
    finally:
        os.close(writing)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    ("redirection", "reason"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")]
)
def test_it_serves_though_it_cannot_say_where(tmp_path: Path, redirection: str, reason: str) -> None:
    path = tmp_path / "app.sock"
    with redirected(redirection, path) as process:
        [line] = echoes_until_it_is_told_to_end(process, path).splitlines()
    assert line.endswith(f"WARNING gain_trio: it serves, but cannot say so: standard output: {reason}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_echoes_and_a_signal_ends_it_with_status_0(number: signal.Signals) -> None:
    with running(*SERVE, ANY_PORT, "--handler", "echo") as program:
        with connect(*where_it_serves(program)) as client:
            client.sendall(b"hello")
            assert read_exactly(client, 5) == b"hello"
            program.interrupt(number)  # while the connection is open
            assert program.end() == (0, "", "")
            assert read_all(client) == b""


def test_a_signal_cancels_handlers_which_clean_up(folder: Path) -> None:
    with running(*SERVE, ANY_PORT, "--handler", "my_handlers:stubborn", cwd=folder) as program:
        with connect(*where_it_serves(program, "my_handlers:stubborn")) as client:
            assert read_exactly(client, 5) == b"ready"
            program.interrupt()
            program.interrupt(signal.SIGTERM)  # the first lets it finish, which it never does
            assert program.end() == (0, "cleaned up\n", "")


@pytest.mark.parametrize("processes", [(), ("--processes", "1")], ids=str)
def test_a_handler_that_does_not_finish_in_time_is_cancelled(folder: Path, processes: tuple[str, ...]) -> None:
    arguments = ("--handler", "my_handlers:stubborn", "--graceful-timeout", "0.01", *processes)
    with running(*SERVE, ANY_PORT, *arguments, cwd=folder) as program:
        with connect(*where_it_serves(program, "my_handlers:stubborn")) as client:
            assert read_exactly(client, 5) == b"ready"
            program.interrupt(signal.SIGTERM)
            status, out, errors = program.end()
    assert (status, out) == (1, "cleaned up\n")
    [line] = errors.splitlines()
    assert re.search(r"cuts off 1 connections, which have not ended within the 0\.0\d* seconds that they had", line)


def test_a_callback_that_does_not_finish_in_time_is_cancelled(folder: Path) -> None:
    arguments = ("--handler", "my_handlers:Endless", "--graceful-timeout", "0.01")
    with running(*SERVE, ANY_PORT, *arguments, cwd=folder) as program:
        with connect(*where_it_serves(program, "my_handlers:Endless")) as client:
            assert read_exactly(client, 5) == b"ready"
            program.interrupt(signal.SIGTERM)
            status, _out, errors = program.end()
    assert status == 1
    assert "cuts off 1 connections" in errors


def test_connections_are_shared_by_workers() -> None:
    with running(*SERVE, ANY_PORT, "--handler", "echo", "--workers", "3", "--backlog", "16") as program:
        address = where_it_serves(program)
        for number in range(7):
            with connect(*address) as client:
                client.sendall(b"%d" % number)
                client.shutdown(socket.SHUT_WR)
                assert read_all(client) == b"%d" % number


@pytest.mark.parametrize("name", ["my_handlers:Last", "my_handlers:last"])
def test_a_balancer_of_ones_own(folder: Path, name: str) -> None:
    arguments = ("--handler", "my_handlers:which", "--workers", "3", "--balancer", name)
    with running(*SERVE, ANY_PORT, *arguments, cwd=folder) as program:
        address = where_it_serves(program, "my_handlers:which")
        for _ in range(2):
            with connect(*address) as client:
                assert read_all(client) == b"gain_trio consumer 2"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--architecture", "socket_sharding", "--workers", "2", "--cbpf"),
        ("--balancer", "source_ip_hash", "--workers", "2"),
        ("--max-connections", "1", "--idle-timeout", "60"),
    ],
    ids=" ".join,
)
def test_options_of_a_server(arguments: tuple[str, ...]) -> None:
    with running(*SERVE, ANY_PORT, "--handler", "echo", *arguments) as program:
        address = where_it_serves(program)
        for number in range(4):
            with connect(*address) as client:
                client.sendall(b"%d" % number)
                assert read_exactly(client, 1) == b"%d" % number
        program.interrupt()
        assert program.end() == (0, "", "")


def test_several_addresses(folder: Path) -> None:
    path = folder / "app.sock"
    with running(*SERVE, ANY_PORT, f"unix://{path}", "--handler", "echo") as program:
        address = where_it_serves(program)
        assert program.line() == f"serving echo on unix://{path}; Ctrl-C stops it"
        with connect(*address) as client, socket.socket(socket.AF_UNIX) as local:
            local.connect(str(path))
            for each in (client, local):
                each.sendall(b"hello")
                assert read_exactly(each, 5) == b"hello"
            program.interrupt()
            assert program.end() == (0, "", "")
            assert read_all(client) == read_all(local) == b""
    assert not path.exists()


@pytest.mark.parametrize("key_apart", [True, False])
def test_tls(folder: Path, key_apart: bool) -> None:
    chain, key = folder / "chain.pem", folder / "key.pem"
    certificate().cert_chain_pems[0].write_to_path(chain)
    certificate().private_key_pem.write_to_path(key)
    if not key_apart:
        certificate().private_key_pem.write_to_path(chain, append=True)
    arguments = ["--tls-cert", chain, *(["--tls-key", key] if key_apart else [])]
    with running(*SERVE, ANY_PORT, "--handler", "echo", *arguments) as program:
        with connect(*where_it_serves(program)) as client:
            with client_context().wrap_socket(client, server_hostname="localhost") as secure:
                secure.sendall(b"hello")
                assert secure.recv(5) == b"hello"


@pytest.mark.parametrize("style", ["pretty", "json"])
def test_the_log(folder: Path, style: str) -> None:
    arguments = ("--handler", "my_handlers:fail", "--log-level", "debug", "--log-format", style)
    with running(*SERVE, ANY_PORT, *arguments, cwd=folder) as program:
        with connect(*where_it_serves(program, "my_handlers:fail")) as client:
            peer = "{}:{}".format(*client.getsockname())
            assert read_all(client) == b""
        program.interrupt()
        status, _out, err = program.end()
    assert status == 0
    if style == "pretty":
        assert re.search(rf" DEBUG gain_trio: connection 1 from {re.escape(peer)} is open$", err, re.MULTILINE)
        assert re.search(r"^LookupError: the handler's own$", err, re.MULTILINE)
        return
    found = [json.loads(line) for line in err.splitlines()]
    [closed] = [each for each in found if "bytes_received" in each]
    assert (closed["peer"], closed["cause"], closed["consumer"]) == (peer, "error", 0)
    assert any("LookupError" in each.get("exception", "") for each in found)


def test_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with running(*SERVE, "tcp://[::1]:0", "--handler", "echo") as program:
        host, port = where_it_serves(program)
        assert host == "::1"
        with connect(host, port) as client:
            client.sendall(b"six")
            assert read_exactly(client, 3) == b"six"


@pytest.mark.parametrize("name", ["my_handlers:greet", "my_handlers:Namespace.greet"])
def test_a_handler_of_ones_own_is_found_where_one_stands(folder: Path, name: str) -> None:
    with running(*SERVE, ANY_PORT, "--handler", name, cwd=folder) as program:
        with connect(*where_it_serves(program, name)) as client:
            assert read_all(client) == b"hello from a module"


def test_the_http_handler_answers_another_programs_requests() -> None:
    with running(*SERVE, "127.0.0.1:0", "--network", "tcp", "--handler", "http") as program:
        client = http.client.HTTPConnection(*where_it_serves(program, "http"), timeout=TIMEOUT)
        for path, status in (("/plaintext", 200), ("/nothing", 404), ("/", 200)):
            client.request("GET", path)
            response = client.getresponse()
            assert response.status == status
            assert (response.read() == b"Hello, World!") is (status == 200)
        client.close()


@pytest.mark.parametrize("options", [["--async-handler"], ["--async-handler", "--pool"]])
def test_the_built_in_handlers_run_in_worker_threads(options: list[str]) -> None:
    with (
        running(*SERVE, ANY_PORT, "--handler", "echo", *options) as program,
        connect(*where_it_serves(program)) as client,
    ):
        client.sendall(bytes(1 << 20))
        assert read_exactly(client, 1 << 20) == bytes(1 << 20)
        program.interrupt()
        assert program.end() == (0, "", "")
    with (
        running(*SERVE, ANY_PORT, "--handler", "http", *options) as program,
        connect(*where_it_serves(program, "http")) as client,
    ):
        client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n" * 2 + b"GET /x HTTP/1.0\r\n\r\n")
        received = read_all(client)
        assert re.findall(rb"HTTP/1.1 (\d+) ", received) == [b"200", b"200", b"404"]


@pytest.mark.parametrize("name", ["my_handlers:Shout", "my_handlers:shouting"])
def test_an_event_handler_is_served_over_tcp_and_udp(folder: Path, name: str) -> None:
    with running(*SERVE, ANY_PORT, "--handler", name, cwd=folder) as program:
        with connect(*where_it_serves(program, name)) as client:
            client.sendall(b"hello")
            assert read_exactly(client, 5) == b"HELLO"
    with running(*SERVE, "udp://127.0.0.1:0", "--handler", name, cwd=folder) as program:
        match = re.search(r"udp://127\.0\.0\.1:(\d+);", program.line())
        assert match
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.settimeout(TIMEOUT)
            client.connect(("127.0.0.1", int(match[1])))
            client.send(b"hello")
            assert client.recv(100) == b"HELLO"


UDP_ARGUMENTS = [
    ["udp://127.0.0.1:0"],
    ["127.0.0.1:0", "--network", "udp", "--workers", "2"],
    ["udp://127.0.0.1:0", "--architecture", "socket_sharding", "--workers", "3", "--cbpf"],
]


@pytest.mark.parametrize("arguments", UDP_ARGUMENTS)
def test_datagrams_are_echoed(arguments: list[str]) -> None:
    with running(*SERVE, *arguments, "--handler", "echo") as program:
        match = re.fullmatch(r"serving echo on udp://127\.0\.0\.1:(\d+); Ctrl-C stops it", program.line())
        assert match
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.settimeout(TIMEOUT)
            client.connect(("127.0.0.1", int(match[1])))
            for data in (b"one", b"", b"two"):
                client.send(data)
                assert client.recv(100) == data
        program.interrupt()
        assert program.end() == (0, "", "")


def test_a_path_is_served_as_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "echo.sock"
    with running(*SERVE, path, "--network", "unix", "--handler", "echo") as program:
        assert program.line() == f"serving echo on unix://{path}; Ctrl-C stops it"
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(TIMEOUT)
            client.connect(str(path))
            client.sendall(b"hello")
            assert read_exactly(client, 5) == b"hello"


def test_a_handler_that_fails_is_logged_and_the_server_goes_on(folder: Path) -> None:
    with running(*SERVE, ANY_PORT, "--handler", "my_handlers:fail", cwd=folder) as program:
        address = where_it_serves(program, "my_handlers:fail")
        for _ in range(2):
            with connect(*address) as client:
                assert read_all(client) == b""
        program.interrupt()
        status, _out, err = program.end()
        assert status == 0
        assert err.count("LookupError: the handler's own") == 2


def test_a_busy_port_is_named_without_a_traceback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = "tcp://{}:{}".format(*other.getsockname())
        port = other.getsockname()[1]
        expected = (
            f"gain-trio: cannot listen on {address}: Address already in use; another program listens there: "
            f"ss -ltnp 'sport = :{port}' names it\n"
        )
        assert run(*SERVE, address, "--handler", "echo") == (1, "", expected)


def test_a_host_that_does_not_exist_is_named() -> None:
    status, out, err = run(*SERVE, "tcp://no-such-host.invalid:0", "--handler", "echo")
    assert (status, out) == (1, "")
    assert re.fullmatch(r"gain-trio: cannot listen on tcp://no-such-host\.invalid:0: .+\n", err)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["127.0.0.1:80", "--handler", "echo"], "'127.0.0.1:80' is not an address: it has no scheme"),
        (["http://127.0.0.1:80", "--handler", "echo"], "the scheme must be tcp"),
        (["tcp://127.0.0.1:0", "--network", "udp", "--handler", "echo"], "is not of --network udp"),
        (["127.0.0.1", "--network", "tcp", "--handler", "echo"], "come a host and a port"),
        (["run/x.sock", "--network", "unix", "--handler", "echo"], "unix://"),
        ([ANY_PORT, "--handler", "echo", "--pool"], "--pool bounds the threads of --async-handler"),
        ([ANY_PORT, "--handler", "my_handlers:greet", "--async-handler"], "'my_handlers:greet' is none"),
        (["udp://127.0.0.1:0", "--handler", "http"], "the handler 'http' needs connections"),
        (["udp://127.0.0.1:0", "--handler", "http", "--async-handler"], "the handler 'http' needs connections"),
        (["udp://127.0.0.1:0", "--handler", "ecco"], "unknown handler 'ecco': it is echo, or package.module:function"),
        (["udp://127.0.0.1:0", "--handler", "echo", "--backlog", "5"], "--backlog is for connections"),
        (["tcp://127.0.0.1", "--handler", "echo"], "come a host and a port"),
        (["tcp://127.0.0.1:65536", "--handler", "echo"], "a port is at most 65535"),
        ([ANY_PORT, "--handler", "ecco"], "unknown handler 'ecco': it is echo, http, or package.module:function"),
        ([ANY_PORT, "--handler", "no_such_module:x"], "cannot import the handler's module 'no_such_module'"),
        ([ANY_PORT, "--handler", "my_handlers:missing"], "the module 'my_handlers' has no 'missing'"),
        ([ANY_PORT, "--handler", "my_handlers:NOT_CALLABLE"], "'my_handlers:NOT_CALLABLE' is not a function"),
        (
            [ANY_PORT, "--handler", "my_handlers:Words"],
            "write handler = gain_trio.asyncio_bridge.ProtocolHandler(MyProtocol)",
        ),
        (["udp://127.0.0.1:0", "--handler", "my_handlers:Words"], "'my_handlers:Words' is a class"),
        ([ANY_PORT, "--handler", "echo", "--workers", "0"], "workers must be at least 1, not 0"),
        ([ANY_PORT, "--handler", "echo", "--backlog", "0"], "--backlog must be at least 1, not 0"),
        ([ANY_PORT, "tcp://nowhere", "--handler", "echo"], "'tcp://nowhere' is not an address"),
        ([ANY_PORT, "--handler", "echo", "--balancer", "fair"], "unknown balancer 'fair': it is round_robin, "),
        ([ANY_PORT, "--handler", "echo", "--balancer", "my_handlers:fail"], "has no method pick(peer, consumers)"),
        (
            [ANY_PORT, "--handler", "echo", "--cbpf"],
            "--cbpf chooses among the listeners of --architecture socket_sharding",
        ),
        ([ANY_PORT, "--handler", "echo", "--graceful-timeout", "-1"], "--graceful-timeout is at least 0 seconds"),
        ([ANY_PORT, "--handler", "echo", "--max-connections", "0"], "--max-connections must be at least 1"),
        ([ANY_PORT, "--handler", "echo", "--idle-timeout", "0"], "--idle-timeout is more than 0 seconds"),
        ([ANY_PORT, "--handler", "echo", "--tls-key", "key.pem"], "give --tls-cert, too"),
        (
            [ANY_PORT, "--handler", "echo", "--tls-cert", "none.pem"],
            "cannot read none.pem, the file of --tls-cert: No such file or directory",
        ),
        (
            [ANY_PORT, "--handler", "echo", "--tls-cert", "my_handlers.py"],
            "there is no certificate in my_handlers.py: --tls-cert is a PEM file",
        ),
        (
            ["unix://@a", "--handler", "echo", "--architecture", "socket_sharding"],
            "socket sharding is for TCP: unix://@a cannot have several listeners",
        ),
    ],
)
def test_what_cannot_be_served_ends_with_status_1_and_one_line(folder: Path, arguments: list[str], reason: str) -> None:
    status, out, err = command("serve", *arguments, cwd=folder)
    assert (status, out) == (1, "")
    assert err.startswith("gain-trio: ")
    assert reason in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [[], ["dance"], ["serve"], ["serve", ANY_PORT], ["serve", ANY_PORT, "--handler", "echo", "--workers", "x"]],
)
def test_a_command_that_is_none_ends_with_status_2_and_one_line(arguments: list[str]) -> None:
    status, out, err = command(*arguments)
    assert (status, out) == (2, "")
    assert re.fullmatch(r"(gain-trio(?: serve)?): error: .+ \(\1 --help\)\n", err)


def test_help_names_the_options_and_the_handlers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    for word in (
        "ADDRESS",
        "--network",
        "--handler",
        "http",
        "--workers",
        "--backlog",
        "echo",
        "socket_sharding",
        "examples:",
    ):
        assert word in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"gain-trio {gain_trio.__version__}\n"


def test_the_command_is_installed() -> None:
    command = Path(sysconfig.get_path("scripts")) / "gain-trio"
    result = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=TIMEOUT, check=True)
    assert result.stdout == f"gain-trio {gain_trio.__version__}\n"


# --- worker processes ---


@pytest.mark.parametrize("architecture", ["reactor", "socket_sharding"])
def test_processes_serve_and_a_signal_ends_them_with_status_0(folder: Path, architecture: str) -> None:
    arguments = ("--handler", "my_handlers:greet", "--processes", "2", "--architecture", architecture)
    with running(*SERVE, ANY_PORT, *arguments, cwd=folder) as program:
        address = where_it_serves(program, "my_handlers:greet")
        for _ in range(4):
            with connect(*address) as client:
                assert read_all(client) == b"hello from a module"
        program.interrupt(signal.SIGTERM)
        assert program.end() == (0, "", "")


def test_a_hangup_replaces_processes_of_callbacks(folder: Path) -> None:
    arguments = ("--handler", "my_handlers:Where", "--processes", "1")
    with running(*SERVE, ANY_PORT, *arguments, cwd=folder) as program:
        address = where_it_serves(program, "my_handlers:Where")
        with connect(*address) as client:
            first = read_all(client)
        program.interrupt(signal.SIGHUP)
        answer = first
        while answer == first:  # until the successor serves; no client is refused meanwhile
            with connect(*address) as client:
                answer = read_all(client)
        assert answer.isdigit()
        program.interrupt()
        assert program.end() == (0, "", "")


@pytest.mark.parametrize(
    ("address", "handler"),
    [(ANY_PORT, "my_handlers:Shout"), ("udp://127.0.0.1:0", "my_handlers:Shout"), ("udp://127.0.0.1:0", "echo")],
)
def test_a_hangup_does_nothing_to_a_server_without_processes(folder: Path, address: str, handler: str) -> None:
    with running(*SERVE, address, "--handler", handler, "--log-level", "info", cwd=folder) as program:
        assert program.line().startswith(f"serving {handler} on ")
        program.interrupt(signal.SIGHUP)
        program.interrupt()
        status, _out, err = program.end()
        assert status == 0
        # The second signal may come before the first has been attended to: then the server does not serve any more.
        assert len(re.findall(r"SIGHUP .*(: nothing is done|does not serve any more)\n", err)) == 1


def test_what_processes_log_is_logged_by_the_command(folder: Path) -> None:
    arguments = ("--handler", "my_handlers:fail", "--processes", "2", "--log-format", "json")
    with running(*SERVE, ANY_PORT, *arguments, cwd=folder) as program:
        with connect(*where_it_serves(program, "my_handlers:fail")) as client:
            assert read_all(client) == b""
        program.interrupt()
        status, _out, err = program.end()
    assert status == 0
    [entry] = [json.loads(line) for line in err.splitlines()]
    assert (entry["level"], entry["cause"]) == ("error", "error")
    assert "LookupError: the handler's own" in entry["exception"]


def test_processes_that_cannot_start_are_an_error(folder: Path) -> None:
    (folder / "once.py").write_text(ONCE)
    arguments = ("--handler", "once:greet", "--processes", "1", "--priority", "19")
    status, out, err = run(*SERVE, ANY_PORT, *arguments, cwd=folder)
    assert (status, out) == (1, "")
    assert re.search("could not begin to serve: FileExistsError: .*imported", err)


@pytest.mark.parametrize("processes", [(), ("--processes", "1")], ids=["this", "worker"])
def test_process_priority(folder: Path, processes: tuple[str, ...]) -> None:
    """It takes a privilege that the tests may have or not."""
    arguments = ("--handler", "my_handlers:tell_niceness", "--process-priority", *processes)
    with running(*SERVE, ANY_PORT, *arguments, cwd=folder) as program:
        line = program.line()
        if line:
            with connect(*address_in(line, "my_handlers:tell_niceness")) as client:
                assert read_all(client) == b"-19"
            program.interrupt()
            assert program.end() == (0, "", "")
        else:
            status, _out, err = program.end()
            assert status == 1
            assert "cannot take the priority -19: Permission denied; " in err
            assert "takes the privilege CAP_SYS_NICE" in err


def test_pretty_is_a_format_of_the_log(folder: Path) -> None:
    arguments = ("--handler", "my_handlers:fail", "--log-format", "json", "--pretty")
    with running(*SERVE, ANY_PORT, *arguments, cwd=folder) as program:
        with connect(*where_it_serves(program, "my_handlers:fail")) as client:
            assert read_all(client) == b""
        program.interrupt()
        status, _out, err = program.end()
    assert status == 0
    assert re.match(r"\S+ \S+ ERROR ", err), err


def test_metrics_are_served(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = ("--handler", "echo", "--processes", "2", "--cpu-affinity", "--metrics", f"tcp://127.0.0.1:{port}")
    with running(*SERVE, ANY_PORT, *arguments) as program:
        where_it_serves(program)
        with connect("127.0.0.1", port) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert b"\ngain_trio_worker_processes 2.0\n" in read_all(client)
        program.interrupt()
        assert program.end() == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--processes", "many"), "'many' is neither a whole number nor auto"),
        (("--processes", "0"), "processes must be at least 1"),
        (("--cpu-affinity",), "give --processes, too"),
        (("--priority", "99", "--processes", "1"), "priority is a nice value"),
        (
            ("--process-priority", "--priority", "5"),
            "--process-priority is a nice value of -19, --priority one of yours",
        ),
        (("--metrics", "nowhere"), "'nowhere' is not an address"),
        (
            ("--tls-cert", "none.pem", "--processes", "2"),
            "gain-trio: cannot read none.pem, the file of --tls-cert: No such file or directory\n",
        ),
    ],
)
def test_options_of_processes_that_make_no_sense(arguments: tuple[str, ...], complaint: str) -> None:
    status, out, err = command("serve", ANY_PORT, "--handler", "echo", *arguments)
    assert status in (1, 2)
    assert out == ""
    assert complaint in err

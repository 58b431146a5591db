"""The command gain-trio, run for real."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sysconfig
from pathlib import Path

import pytest
from processes import TIMEOUT, Program, connect, read_all, read_exactly, run, running

import gain_trio
from gain_trio._faces._cli import main

SERVE = ("-m", "gain_trio", "serve")
ANY_PORT = "tcp://127.0.0.1:0"

HANDLERS = """
import trio

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
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a module of handlers, to stand in."""
    (tmp_path / "my_handlers.py").write_text(HANDLERS)
    return tmp_path


def serving(program: Program, handler: str = "echo") -> tuple[str, int]:
    """Where the command says that it serves."""
    line = program.line()
    match = re.fullmatch(rf"serving {re.escape(handler)} on tcp://\[?(.+?)\]?:(\d+); Ctrl-C stops it", line)
    assert match, line or program.end()
    return match[1], int(match[2])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_echoes_and_a_signal_ends_it_with_status_0(number: signal.Signals) -> None:
    with running(*SERVE, ANY_PORT, "--handler", "echo") as program:
        with connect(*serving(program)) as client:
            client.sendall(b"hello")
            assert read_exactly(client, 5) == b"hello"
            program.interrupt(number)  # while the connection is open
            assert program.end() == (0, "", "")
            assert read_all(client) == b""


def test_a_signal_cancels_handlers_which_clean_up(folder: Path) -> None:
    with running(*SERVE, ANY_PORT, "--handler", "my_handlers:stubborn", cwd=folder) as program:
        with connect(*serving(program, "my_handlers:stubborn")) as client:
            assert read_exactly(client, 5) == b"ready"
            program.interrupt()
            assert program.end() == (0, "cleaned up\n", "")


def test_connections_are_shared_by_workers() -> None:
    with running(*SERVE, ANY_PORT, "--handler", "echo", "--workers", "3", "--backlog", "16") as program:
        address = serving(program)
        for number in range(7):
            with connect(*address) as client:
                client.sendall(b"%d" % number)
                client.shutdown(socket.SHUT_WR)
                assert read_all(client) == b"%d" % number


def test_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with running(*SERVE, "tcp://[::1]:0", "--handler", "echo") as program:
        host, port = serving(program)
        assert host == "::1"
        with connect(host, port) as client:
            client.sendall(b"six")
            assert read_exactly(client, 3) == b"six"


@pytest.mark.parametrize("name", ["my_handlers:greet", "my_handlers:Namespace.greet"])
def test_a_handler_of_ones_own_is_found_where_one_stands(folder: Path, name: str) -> None:
    with running(*SERVE, ANY_PORT, "--handler", name, cwd=folder) as program:
        with connect(*serving(program, name)) as client:
            assert read_all(client) == b"hello from a module"


def test_a_handler_that_fails_is_logged_and_the_server_goes_on(folder: Path) -> None:
    with running(*SERVE, ANY_PORT, "--handler", "my_handlers:fail", cwd=folder) as program:
        address = serving(program, "my_handlers:fail")
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
        expected = f"gain-trio: cannot listen on {address}: Address already in use\n"
        assert run(*SERVE, address, "--handler", "echo") == (1, "", expected)


def test_a_host_that_does_not_exist_is_named() -> None:
    status, out, err = run(*SERVE, "tcp://no-such-host.invalid:0", "--handler", "echo")
    assert (status, out) == (1, "")
    assert re.fullmatch(r"gain-trio: cannot listen on tcp://no-such-host\.invalid:0: .+\n", err)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["127.0.0.1:80", "--handler", "echo"], "'127.0.0.1:80' is no address: it has no scheme"),
        (["http://127.0.0.1:80", "--handler", "echo"], "the scheme must be tcp"),
        (["tcp://127.0.0.1", "--handler", "echo"], "come a host and a port"),
        (["tcp://127.0.0.1:65536", "--handler", "echo"], "a port is at most 65535"),
        ([ANY_PORT, "--handler", "ecco"], "unknown handler 'ecco': it is echo, or package.module:function"),
        ([ANY_PORT, "--handler", "no_such_module:x"], "cannot import the handler's module 'no_such_module'"),
        ([ANY_PORT, "--handler", "my_handlers:missing"], "the module 'my_handlers' has no 'missing'"),
        ([ANY_PORT, "--handler", "my_handlers:NOT_CALLABLE"], "'my_handlers:NOT_CALLABLE' is no function"),
        ([ANY_PORT, "--handler", "echo", "--workers", "0"], "workers must be at least 1, not 0"),
        ([ANY_PORT, "--handler", "echo", "--backlog", "0"], "backlog must be at least 1, or None, not 0"),
    ],
)
def test_what_cannot_be_served_ends_with_status_1_and_one_line(folder: Path, arguments: list[str], reason: str) -> None:
    status, out, err = run(*SERVE, *arguments, cwd=folder)
    assert (status, out) == (1, "")
    assert err.startswith("gain-trio: ")
    assert reason in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [[], ["dance"], ["serve"], ["serve", ANY_PORT], ["serve", ANY_PORT, "--handler", "echo", "--workers", "x"]],
)
def test_a_command_that_is_none_ends_with_status_2_and_the_usage(arguments: list[str]) -> None:
    status, out, err = run("-m", "gain_trio", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("usage: gain-trio ")


def test_help_names_the_options_and_the_handlers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    for word in ("address", "--handler", "--workers", "--backlog", "echo"):
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

"""The command gain-trio asgi, run for real, and its arguments."""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.certificates import certificate, client_context
from support.processes import TIMEOUT, Program, command, connect, read_exactly, run, running

from gain_trio import ServerConfig
from gain_trio._command import _asgi_command
from gain_trio._command._asgi_command import DEFAULT_ADDRESS, asgi_config_of
from gain_trio._command._own_errors import is_of_the_program
from gain_trio._command._serve_options import config_of
from gain_trio._server import flags_of
from gain_trio.asgi import AsgiConfig

pytestmark = [pytest.mark.slow, pytest.mark.one_backend]

ASGI = ("-m", "gain_trio", "asgi")
ANY_PORT = "tcp://127.0.0.1:0"

APPS = """
import os

import trio


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        print("ends", flush=True)
        await send({"type": "lifespan.shutdown.complete"})
        return
    client = scope["client"][0] if scope["client"] else None
    body = f"{VERSION} {os.getpid()} {client} {scope['scheme']} {scope['root_path']} {scope['path']}"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body.encode()})


async def endless(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        await trio.sleep_forever()


async def cannot_start(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})
        raise ValueError("the database is missing")


async def cannot_end(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        raise ValueError("the database does not close")


def create():
    return app


VERSION = "first"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "web.py").write_text(APPS)
    (tmp_path / "broken.py").write_text('def fail():\n    raise ImportError("a part is missing")\n\n\nfail()\n')
    return tmp_path


def port_of(program: Program, name: str = "web:app") -> int:
    line = program.line()
    match = re.fullmatch(rf"serving {re.escape(name)} on tcp://127\.0\.0\.1:(\d+); Ctrl-C stops it", line)
    assert match, (line, program.end())
    return int(match[1])


def get(port: int, target: str = "/", **fields: str) -> list[str]:
    """The words of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    connection.request("GET", target, headers={"Connection": "close", **fields})
    response = connection.getresponse()
    assert response.status == 200
    words = response.read().decode().split(" ")
    connection.close()
    return words


def until_answer_is(port: int, version: str) -> list[str]:
    """Ask until this version of the app answers; no request is refused meanwhile."""
    patience = time.monotonic() + TIMEOUT
    while (words := get(port))[0] != version:
        assert time.monotonic() < patience
        time.sleep(0.02)
    return words


# --- serving ---


def test_a_request_that_does_not_end_in_time_makes_it_status_1(folder: Path) -> None:
    with running(*ASGI, "web:endless", ANY_PORT, "--graceful-timeout", "0.01", cwd=folder) as program:
        with connect("127.0.0.1", port_of(program, "web:endless")) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_exactly(client, 12) == b"HTTP/1.1 200"
            program.interrupt(signal.SIGTERM)
            status, _out, errors = program.end()
    assert status == 1
    assert "cuts off 1 connections" in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_and_a_signal_ends_it_with_status_0(folder: Path, number: signal.Signals) -> None:
    with running(*ASGI, "web:app", ANY_PORT, cwd=folder) as program:
        port = port_of(program)
        assert get(port, "/a?b") == ["first", *get(port)[1:2], "127.0.0.1", "http", "", "/a"]
        program.interrupt(number)
        assert program.end() == (0, "ends\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("web:app", ANY_PORT, "--workers", "2"),
        ("web:app", "--workers", "2", ANY_PORT),
        ("--workers", "2", "web:app", ANY_PORT),
        ("web:create", "--factory", ANY_PORT),
        ("web:app", "--lifespan", "off", ANY_PORT),
    ],
)
def test_addresses_stand_before_and_behind_options(folder: Path, arguments: tuple[str, ...]) -> None:
    with running(*ASGI, *arguments, cwd=folder) as program:
        port = port_of(program, "web:create" if "--factory" in arguments else "web:app")
        assert get(port)[0] == "first"
        program.interrupt(signal.SIGTERM)
        assert program.end() == (0, "" if "off" in arguments else "ends\n", "")


@pytest.mark.parametrize("processes", [(), ("--processes", "2")])
def test_the_app_is_found_in_a_folder(folder: Path, processes: tuple[str, ...]) -> None:
    with running(*ASGI, "web:app", ANY_PORT, "--app-dir", folder, *processes) as program:
        assert get(port_of(program))[0] == "first"
        program.interrupt(signal.SIGTERM)
        status, out, err = program.end()
    assert (status, err) == (0, "")
    assert out.count("ends") == (2 if processes else 1)


def test_tls(folder: Path) -> None:
    chain = folder / "chain.pem"
    chain.write_bytes(certificate().private_key_and_cert_chain_pem.bytes())
    with running(*ASGI, "web:app", ANY_PORT, "--tls-cert", chain, cwd=folder) as program:
        connection = http.client.HTTPSConnection(
            "localhost", port_of(program), timeout=TIMEOUT, context=client_context()
        )
        connection.request("GET", "/")
        assert connection.getresponse().read().split()[3] == b"https"
        connection.close()
        program.interrupt(signal.SIGTERM)
        assert program.end()[0] == 0


def test_a_hangup_replaces_processes(folder: Path) -> None:
    with running(*ASGI, "web:app", ANY_PORT, "--processes", "1", cwd=folder) as program:
        port = port_of(program)
        first = get(port)[1]
        (folder / "web.py").write_text(APPS.replace('VERSION = "first"', 'VERSION = "second"'))
        program.interrupt(signal.SIGHUP)
        assert until_answer_is(port, "second")[1] != first
        program.interrupt(signal.SIGTERM)
        assert program.end()[0] == 0


def test_it_ends_after_its_requests(folder: Path) -> None:
    with running(*ASGI, "web:app", ANY_PORT, "--max-requests", "2", cwd=folder) as program:
        port = port_of(program)
        assert get(port)[0] == get(port)[0] == "first"
        assert program.end() == (0, "ends\n", "")


# --- proxies and the access log ---


@pytest.mark.parametrize("processes", [(), ("--processes", "1")])
def test_the_access_log_is_on_standard_output(folder: Path, processes: tuple[str, ...]) -> None:
    with running(*ASGI, "web:app", ANY_PORT, "--access-log", *processes, cwd=folder) as program:
        port = port_of(program)
        get(port, '/a"b?c', **{"User-Agent": "m\xe9"})
        program.interrupt(signal.SIGTERM)
        status, out, _err = program.end()
    assert status == 0
    [line] = [line for line in out.splitlines() if line != "ends"]
    assert re.fullmatch(
        r'127\.0\.0\.1 - - \[[^]]+\] "GET /a\\x22b\?c HTTP/1\.1" 200 \d+ "-" "m\\xE9" \d\.\d{6}', line
    ), line


def test_the_access_log_as_json_and_what_proxies_say(folder: Path) -> None:
    arguments = ("--access-log", "json", "--proxy-headers", "--root-path", "/api")
    with running(*ASGI, "web:app", ANY_PORT, *arguments, cwd=folder) as program:
        port = port_of(program)
        fields = {"X-Forwarded-For": "192.0.2.1, 198.51.100.7", "X-Forwarded-Proto": "https"}
        assert get(port, "/x", **fields)[2:] == ["198.51.100.7", "https", "/api", "/api/x"]
        program.interrupt(signal.SIGTERM)
        status, out, _err = program.end()
    assert status == 0
    [entry] = [json.loads(line) for line in out.splitlines() if line != "ends"]
    assert (entry["client"], entry["method"], entry["status"]) == ("198.51.100.7", "GET", 200)


def test_proxies_that_are_not_trusted_are_not_believed(folder: Path) -> None:
    arguments = ("--proxy-headers", "forwarded", "--forwarded-allow-ips", "10.0.0.0/8,unix")
    with running(*ASGI, "web:app", ANY_PORT, *arguments, cwd=folder) as program:
        assert get(port_of(program), Forwarded="for=192.0.2.1;proto=https")[2:4] == ["127.0.0.1", "http"]
        program.interrupt(signal.SIGTERM)
        assert program.end()[0] == 0


def test_an_access_log_that_cannot_be_written_fails_no_request(folder: Path) -> None:
    code = (
        "import os, sys; from gain_trio._command import main, _announcing; from gain_trio._command import _announcing\n"
        "class Closing:\n"
        "    def write(self, text): sys.stderr.write(text)\n"
        "    def flush(self): pass\n"
        "    encoding = 'utf-8'\n"
        "os.close(1); os.open('/dev/full', os.O_WRONLY); sys.stdout = Closing()\n"
        f"sys.exit(main(['asgi', 'web:app', 'unix://{folder}/socket', '--access-log', '--max-requests', '1']))"
    )
    with running("-c", code, cwd=folder) as program:
        import socket

        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(TIMEOUT)
            patience = time.monotonic() + TIMEOUT
            while client.connect_ex(f"{folder}/socket"):
                assert time.monotonic() < patience
                time.sleep(0.01)
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        status, _out, err = program.end()
    assert status == 0
    assert "lines of the access log are lost: No space left on device" in err


# --- reloading ---


def test_a_changed_file_is_loaded_and_a_broken_one_is_not(folder: Path) -> None:
    pytest.importorskip("watchfiles")
    with running(*ASGI, "web:app", ANY_PORT, "--reload", cwd=folder) as program:
        port = port_of(program)
        first = get(port)[1]
        (folder / "web.py").write_text(APPS.replace('VERSION = "first"', 'VERSION = "second"'))
        second = until_answer_is(port, "second")[1]
        assert second != first
        assert program.line() == "reloading: web.py changed"
        (folder / "web.py").write_text('print("is imported", flush=True)\nraise LookupError("this code is broken")\n')
        while program.line() != "is imported":
            continue
        assert get(port)[:2] == ["second", second], "the old code goes on"
        (folder / "web.py").write_text(APPS.replace('VERSION = "first"', 'VERSION = "third"'))
        until_answer_is(port, "third")
        program.interrupt(signal.SIGINT)
        status, _out, err = program.end()
    assert status == 0
    assert "goes on, because its successor failed: " in err
    assert "LookupError: this code is broken" in err


def test_reloading_needs_watchfiles(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    status, out, err = command("asgi", "web:app", ANY_PORT, "--reload", cwd=folder)
    assert (status, out) == (1, "")
    assert re.fullmatch(r"gain-trio: --reload needs the package watchfiles \(.*\): pip install watchfiles\n", err)


# --- failures ---


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("web:missing",), "the module 'web' has no 'missing'"),
        (("nowhere:app",), "there is no module 'nowhere'"),
        (("web",), "package.module:name"),
        (("web:VERSION",), "an ASGI app is an async function"),
        (("web:app", "udp://127.0.0.1:0"), "udp"),
        (("web:app", "--reload-dir", "."), "--reload-dir is for --reload"),
        (("web:app", "--max-requests-jitter", "3"), "--max-requests-jitter is for --max-requests"),
        (("web:app", "--forwarded-allow-ips", "unix"), "--forwarded-allow-ips is for --proxy-headers"),
        (("web:app", "--proxy-host"), "--proxy-host is for --proxy-headers"),
        (("web:app", "--root-path", "api"), "--root-path begins with a slash"),
        (("web:app", "--tls-key", "key"), "--tls-key is the key of a certificate"),
    ],
)
def test_what_cannot_be_served_ends_with_status_1_and_one_line(
    folder: Path, arguments: tuple[str, ...], reason: str
) -> None:
    status, out, err = command("asgi", *arguments, cwd=folder)
    assert (status, out) == (1, "")
    assert err.startswith("gain-trio: ")
    assert reason in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ("web:app", ANY_PORT, "--nonsense"),
            "gain-trio asgi: error: unrecognized arguments: --nonsense (gain-trio asgi --help)\n",
        ),
        (("web:app", "--limit-unraed=9"), "--limit-unraed=9; did you mean --limit-unread? ("),
        (("web:app", "--lifespan", "maybe"), "invalid choice: 'maybe'"),
        (("web:app", "--forwarded-allow-ips", "nowhere"), "trusted proxies are named by address or network"),
        (("web:app", "--date-header", "perhaps"), "'perhaps' is neither yes nor no"),
        (("web:app", "--timeout-head", "soon"), "'soon' is neither a number of seconds nor none"),
        ((), "APP"),
    ],
)
def test_wrong_arguments_end_with_status_2(arguments: tuple[str, ...], complaint: str) -> None:
    status, out, err = command("asgi", *arguments)
    assert (status, out) == (2, "")
    assert complaint in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("processes", [(), ("--processes", "1")])
def test_an_app_that_cannot_start_has_a_traceback(folder: Path, processes: tuple[str, ...]) -> None:
    status, out, err = run(*ASGI, "web:cannot_start", ANY_PORT, *processes, cwd=folder)
    assert (status, out) == (1, "")
    assert "Traceback" in err
    assert "in cannot_start" in err
    assert "ValueError: the database is missing" in err


def test_a_module_that_cannot_be_imported_has_a_traceback(folder: Path) -> None:
    status, out, err = run(*ASGI, "broken:app", ANY_PORT, cwd=folder)
    assert (status, out) == (1, "")
    assert 'broken.py", line 2, in fail' in err
    assert err.endswith("gain-trio: a part is missing\n")


@pytest.mark.parametrize("processes", [(), ("--processes", "1")])
def test_an_app_that_cannot_end_ends_with_status_1(folder: Path, processes: tuple[str, ...]) -> None:
    with running(*ASGI, "web:cannot_end", ANY_PORT, *processes, cwd=folder) as program:
        port_of(program, "web:cannot_end")
        program.interrupt(signal.SIGTERM)
        status, _out, err = program.end()
    assert status == 1
    assert "ValueError: the database does not close" in err


def test_errors_of_the_program_are_those_raised_in_its_code() -> None:
    def raised(function: Any) -> Exception:
        with pytest.raises(Exception) as caught:
            function()
        error = caught.value
        assert error.__traceback__ is not None
        return error.with_traceback(error.__traceback__.tb_next)  # without this test's own frame

    def of_the_program() -> None:
        raise ValueError

    assert is_of_the_program(raised(of_the_program))
    assert not is_of_the_program(raised(lambda: ServerConfig(workers=0)).with_traceback(None))


# --- the arguments ---


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    _asgi_command.add_parser(parser.add_subparsers())
    return parser.parse_args(["asgi", "web:app", *arguments])


GIVEN: dict[str, tuple[list[str], Any]] = {
    "factory": ([], True),
    "root_path": (["/api"], "/api"),
    "date_header": (["no"], False),
    "server_header": (["me"], "me"),
    "limit_head": (["9999"], 9999),
    "limit_unread": (["9"], 9),
    "limit_ahead": (["9"], 9),
    "timeout_head": (["1.5"], 1.5),
    "timeout_body": (["1.5"], 1.5),
    "timeout_keep_alive": (["1.5"], 1.5),
    "timeout_send": (["1.5"], 1.5),
    "cancel_on_disconnect": ([], True),
    "task_per_request": ([], True),
    "app_lifespan": (["on"], "on"),
    "proxy_headers": (["forwarded"], "forwarded"),
    "forwarded_allow_ips": (["*", "--proxy-headers"], True),
    "proxy_host": (["--proxy-headers"], True),
    "access_log": (["json"], "json"),
    "websockets": (["no"], False),
    "ws_max_size": (["9"], 9),
    "ws_max_queue": (["9"], 9),
    "ws_ping_interval": (["none"], math.inf),
    "ws_ping_timeout": (["1.5"], 1.5),
    "ws_close_timeout": (["1.5"], 1.5),
    "ws_per_message_deflate": (["no"], False),
    "max_requests": (["7"], 7),
    "max_requests_jitter": (["7", "--max-requests", "7"], 7),
}


def test_without_arguments_an_app_has_the_defaults_of_the_fields() -> None:
    options = parsed()
    assert asgi_config_of(options) == AsgiConfig(access_log_descriptor=1)
    assert config_of(options) == ServerConfig(signals=True, sd_notify=True)
    assert DEFAULT_ADDRESS == "tcp://127.0.0.1:8000"
    assert options.address == []


@pytest.mark.parametrize("name", flags_of(AsgiConfig))
def test_an_argument_sets_the_field_that_it_stands_beside(name: str) -> None:
    arguments, value = GIVEN[name]
    flag = flags_of(AsgiConfig)[name].name or name
    config = asgi_config_of(parsed(f"--{flag.replace('_', '-')}", *arguments))
    assert getattr(config, name) == value != getattr(AsgiConfig(), name)


@pytest.mark.parametrize(("word", "value"), [("auto", None), ("yes", True), ("no", False)])
def test_websockets_are_automatic_demanded_or_refused(word: str, value: bool | None) -> None:
    assert asgi_config_of(parsed("--websockets", word)).websockets is value


def test_bare_arguments_have_a_value() -> None:
    config = asgi_config_of(parsed("--proxy-headers", "--access-log"))
    assert (config.proxy_headers, config.access_log) == ("x-forwarded", "text")


def test_the_help_has_all_of_them() -> None:
    status, out, _err = command("asgi", "--help")
    assert status == 0
    for name, flag in flags_of(AsgiConfig).items():
        assert f"--{(flag.name or name).replace('_', '-')}" in out
    assert os.linesep in out

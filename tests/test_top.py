"""gain-trio top: what it shows, and what it says where it cannot."""

from __future__ import annotations

import contextlib
import copy
import errno
import fcntl
import functools
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.processes import ROOT, TIMEOUT, running

from gain_trio._command import _top_client as top_client
from gain_trio._command import main
from gain_trio._command._top_view import Column, Row, Table, UnknownAnswer, as_text, view_of

pytestmark = pytest.mark.no_run

RING = {"submissions": 100, "enter_calls": 50, "operations_in_flight": 7}
CLOSED = dict.fromkeys(
    ("finished", "error", "broken", "too_slow", "idle", "cancelled", "refused", "failed_handshake"), 0
)
SLOW = {
    "connection": 17,
    "peer": "127.0.0.1:5000",
    "seconds": 12.34,
    "waits_for": "other",
    "unsent": 0,
    "request": "GET /report",
    "at": "/srv/app/web.py:14 query",
    "frames": ["/srv/app/web.py:8 app", "/srv/app/web.py:14 query", "/lib/trio/_timeouts.py:111 sleep"],
}


def connections(**figures: Any) -> dict[str, Any]:
    return {"accepted": 0, "active": 0, "closed": CLOSED, "cut_off": 0, "bytes_received": 0, "bytes_sent": 0, **figures}


def requests(**figures: Any) -> dict[str, Any]:
    return {"in_progress": 0, "completed": 0, "by_status": {"2xx": 0, "5xx": 0}, "seconds": 0.0, **figures}


def process(**figures: Any) -> dict[str, Any]:
    return {
        "pid": 4711,
        "worker": None,
        "state": "serving",
        "cpu_seconds": 1.0,
        "memory_bytes": 40 << 20,
        "handler": "app",
        "connections": connections(),
        "requests": None,
        "datagrams": None,
        "rings": [RING],
        "slow_handlers": [],
        "examined": 0,
        **figures,
    }


def snapshot(**figures: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "time": 100.0,
        "state": "serving",
        "addresses": ["127.0.0.1:8080"],
        "restarts": 0,
        "connections": connections(),
        "requests": None,
        "datagrams": None,
        "rings": [RING],
        "processes": [process()],
        **figures,
    }


def lines_of(now: Any, before: Any = None) -> dict[str, str]:
    return dict(view_of(now, before).lines)


def rows_of(now: Any, before: Any = None) -> list[dict[str, str]]:
    """The rows of the table of processes, by the titles of their columns."""
    table = view_of(now, before).processes
    return [dict(zip([column.title for column in table.columns], row.cells, strict=True)) for row in table.rows]


# --- the view ---


def test_rates_are_differences_by_the_second() -> None:
    before = snapshot(connections=connections(accepted=100, bytes_received=1000, bytes_sent=0))
    now = snapshot(
        time=102.0, connections=connections(accepted=170, active=12, bytes_received=3048, bytes_sent=4 << 20)
    )
    lines = lines_of(now, before)
    assert lines["connections"] == "12 open, 35/s accepted, 170 in all"
    assert lines["bytes"] == "1.0 KiB/s in, 2.0 MiB/s out"


def test_the_first_screen_has_no_rates() -> None:
    assert lines_of(snapshot())["connections"] == "0 open, -/s accepted, 0 in all"
    assert rows_of(snapshot())[0]["cpu"] == "-"


def test_a_process_and_its_ring() -> None:
    figures = {"submissions": 300, "enter_calls": 51, "operations_in_flight": 9}
    now = snapshot(time=101.0, processes=[process(cpu_seconds=1.25, rings=[figures])])
    [row] = rows_of(now, snapshot())
    assert (row["process"], row["state"], row["pid"]) == ("server", "serving", "4711")
    assert (row["cpu"], row["memory"]) == ("25.0%", "40.0 MiB")
    assert (row["ring ops/s"], row["enters/s"], row["in flight"]) == ("200", "1.0", "9")


def test_a_successor_has_no_rates_of_its_predecessor() -> None:
    before = snapshot(processes=[process(pid=1, worker=0, connections=connections(accepted=1000))])
    now = snapshot(time=101.0, processes=[process(pid=2, worker=0, connections=connections(accepted=5))])
    [row] = rows_of(now, before)
    assert (row["process"], row["accepted/s"]) == ("worker 0", "-")


def test_processes_that_serve_nothing_or_have_not_answered() -> None:
    nothing = {"connections": None, "requests": None, "rings": [], "handler": None}
    now = snapshot(
        requests=requests(),
        processes=[
            process(**nothing),
            process(**nothing, pid=None, worker=0, state="starting", cpu_seconds=None, memory_bytes=None),
            process(worker=1, state="late", requests=requests(in_progress=3)),
        ],
    )
    own, starting, late = rows_of(now, now)
    assert (own["open"], own["requests/s"], own["ring ops/s"]) == ("-", "-", "-")
    assert (starting["pid"], starting["memory"], starting["state"]) == ("-", "-", "starting")
    assert (late["busy"], late["state"]) == ("3", "late")
    assert lines_of(now)["server"] == "serving on 127.0.0.1:8080, 2 worker processes, 1 late"
    assert lines_of(snapshot(processes=[process(worker=0)]))["server"] == "serving on 127.0.0.1:8080, 1 worker process"
    assert [row.mood for row in view_of(now).processes.rows] == ["usual", "mark", "alarm"]


def test_requests() -> None:
    before = snapshot(requests=requests(completed=100, seconds=1.0))
    by_status = {"2xx": 195, "5xx": 5, "3xx": 0}
    now = snapshot(time=101.0, requests=requests(completed=200, seconds=3.5, in_progress=4, by_status=by_status))
    assert lines_of(now, before)["requests"] == "100/s, 4 in progress, 25.0 ms each, 195 2xx, 5 5xx"


def test_datagrams() -> None:
    inner = {"queued": 3, "dropped": 2, "received_bytes": 0, "sent_bytes": 0}
    figures = {"handled": 10, "active": 1, "handler_errors": 4, "datagrams": inner}
    now = snapshot(connections=None, datagrams=figures, processes=[process(connections=None, datagrams=figures)])
    later = copy.deepcopy(now) | {"time": 101.0}
    later["datagrams"]["handled"] = 60
    assert lines_of(later, now)["datagrams"] == "50/s handled, 1 in progress, 3 queued, 2 dropped, 4 errors"
    assert rows_of(later, now)[0]["busy"] == "1"


def test_how_connections_ended() -> None:
    closed = {**CLOSED, "finished": 5, "too_slow": 2, "error": 1}
    now = snapshot(restarts=2, state="draining", connections=connections(closed=closed, cut_off=3))
    assert lines_of(now)["ended"] == "5 finished, 1 error, 2 too slow, 3 of them cut off by a drain"
    assert lines_of(now)["server"] == "draining on 127.0.0.1:8080, 2 died and were replaced"
    assert view_of(now).mood == "warn"


def test_slow_handlers_of_all_processes_the_slowest_first() -> None:
    waits = {**SLOW, "seconds": 3600.0, "waits_for": "peer", "unsent": 2048, "request": None}
    now = snapshot(processes=[process(slow_handlers=[SLOW]), process(worker=0, slow_handlers=[waits])])
    first, second = view_of(now).slow.rows
    assert first.cells == (
        "1:00:00",
        "127.0.0.1:5000 #17",
        "worker 0",
        "app",
        "app/web.py:14 query, for its peer to read 2.0 KiB",
    )
    assert second.cells == ("12.3 s", "127.0.0.1:5000 #17", "server", "GET /report", "app/web.py:14 query")
    assert second.below == "app/web.py:8 app > app/web.py:14 query > trio/_timeouts.py:111 sleep"


def test_what_comes_from_a_server_is_escaped() -> None:
    evil = "\x1b[2J\n\u202e[bold]"
    slow = {**SLOW, "peer": evil, "request": evil, "at": f"{evil}:1 f", "frames": [f"/{evil}/x.py:1 {evil}"]}
    now = snapshot(state=evil, addresses=[evil], processes=[process(state=evil, handler=evil, slow_handlers=[slow])])
    for character in as_text(view_of(now, now)):
        assert character == "\n" or character.isprintable()
    assert r"\x1b[2J\n\u202e[bold]" in as_text(view_of(now, now))


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"version": 1},
        snapshot(processes=[{}]),
        snapshot(processes=7),
        snapshot(time="now"),
        snapshot(connections=connections(active="\x1b[2J")),
        snapshot(processes=[process(slow_handlers=[{"seconds": 1}])]),
        snapshot(processes=[process(rings=[{}])]),
        snapshot(addresses=None),
        snapshot(connections=connections(active=float("inf"))),
    ],
)
def test_an_answer_of_another_form_is_refused(answer: Any) -> None:
    with pytest.raises(UnknownAnswer, match="not of this protocol"):
        view_of(answer, snapshot())


def test_columns_of_less_importance_go_first() -> None:
    columns = (Column("a"), Column("bbbb", rank=1), Column("cc", rank=2))
    table = Table("t", columns, (Row(("1", "2", "3")),))
    assert [len(table.fit(width).columns) for width in (11, 10, 7, 6, 1)] == [3, 2, 2, 1, 1]
    assert table.fit(6).rows[0].cells == ("1",)


def test_rows_beyond_the_screen_are_counted() -> None:
    table = Table("t", (Column("a"),), tuple(Row((str(number),), below="x" * (number % 2)) for number in range(4)))
    assert [row.cells[0] for row in table.cut(6).rows] == ["0", "1", "2", "3"]
    assert [row.cells[0] for row in table.cut(5).rows] == ["0", "1", "2", "... 1 more"]
    assert [row.cells[0] for row in table.cut(2).rows] == ["0", "... 3 more"]


# --- the command ---


@contextlib.contextmanager
def answering(path: Path, *answers: bytes) -> Iterator[list[bytes]]:
    """A server that answers the lines of one client with these, and hangs up."""
    requests: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            with contextlib.suppress(OSError), listener.accept()[0] as client, client.makefile("rwb") as file:
                client.settimeout(TIMEOUT)
                for line in answers:
                    requests.append(file.readline())
                    file.write(line)
                    file.flush()

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield requests
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join(TIMEOUT)
            assert not thread.is_alive()


def line(answer: Any) -> bytes:
    return json.dumps(answer).encode() + b"\n"


def test_once_is_text_with_rates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s"
    later = snapshot(time=100.5, connections=connections(accepted=10))
    with answering(path, line(snapshot()), line(later)) as requests:
        assert main(["top", str(path), "--once", "--interval", "1"]) == 0
    assert [json.loads(request) for request in requests] == [{"version": 1, "request": "snapshot"}] * 2
    out, err = capsys.readouterr()
    assert err == ""
    assert "connections  0 open, 20/s accepted, 10 in all\n" in out


def test_json_is_what_the_server_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s"
    with answering(path, line(snapshot(more="\x1b\u202e"))):
        assert main(["top", str(path), "--json", "--once"]) == 0
    out, _ = capsys.readouterr()
    assert json.loads(out) == snapshot(more="\x1b\u202e")
    assert out.count("\n") == 1
    assert out.strip().isprintable()


def test_json_again_and_again_until_the_server_has_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s"
    with answering(path, line(snapshot()), line(snapshot(time=101.0))):
        assert main(["top", str(path), "--json", "--interval", "1"]) == 1
    out, err = capsys.readouterr()
    assert [json.loads(one)["time"] for one in out.splitlines()] == [100.0, 101.0]
    assert err == f"gain-trio: the server at {path} has ended\n"


def test_the_path_may_come_from_the_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GAIN_TRIO_CONTROL", str(tmp_path / "none"))
    assert main(["top", "--once"]) == 1
    assert f"there is no control socket at {tmp_path / 'none'}" in capsys.readouterr().err
    monkeypatch.delenv("GAIN_TRIO_CONTROL")
    assert main(["top", "--once"]) == 1
    assert "give the PATH of the server's --control, or set GAIN_TRIO_CONTROL" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\n", "is no control socket of gain_trio: give the PATH of --control"),
        (b"[]\n", "is no control socket of gain_trio"),
        (b"[" * 100000 + b"\n", "is no control socket of gain_trio"),
        (line({"version": 2}), "has version 2 of the protocol and this gain-trio version 1: use the gain-trio that"),
        (line({"version": 1, "error": "no \x1b[2J"}), r"refuses: no \x1b[2J"),
        (line({"version": 1}), "the answer is not of this protocol"),
        (b"", "has ended"),
    ],
)
def test_servers_that_cannot_be_understood(
    answer: bytes, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s"
    with answering(path, *([answer] * 2 if answer else [b""])):
        assert main(["top", str(path), "--once", "--interval", "1"]) == 1
    out, err = capsys.readouterr()
    assert reason in err
    assert (out, err.count("\n")) == ("", 1)


def test_an_answer_without_an_end(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(top_client, "LONGEST_ANSWER", 1 << 20)
    path = tmp_path / "s"
    with answering(path, b"x" * (4 << 20)):
        assert main(["top", str(path), "--once"]) == 1
    assert "is no control socket of gain_trio" in capsys.readouterr().err


def test_a_server_that_is_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(top_client, "PATIENCE", 0.1)
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        assert main(["top", str(path), "--once"]) == 1
    assert "does not answer: it is starting still, stopped, or held up" in capsys.readouterr().err


def test_places_where_no_server_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left, file = tmp_path / "left", tmp_path / "file"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(left))
    file.write_text("")
    datagrams = tmp_path / "datagrams"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(datagrams))
        for path, reason in {
            left: "no server listens at .* any more: start it again with --control",
            file: "is no control socket of gain_trio",
            tmp_path: "is no control socket of gain_trio",
            datagrams: "is no control socket of gain_trio",
            tmp_path / "none": "start the server with --control .*none, or give the PATH that it has",
            file / "x": "there is no control socket at",
            f"unix://{tmp_path}/s": f"there is no control socket at unix://.*: give the path alone, {tmp_path}/s\n",
            tmp_path / ("x" * 200): "cannot connect to .*: AF_UNIX path too long; give a shorter one",
            tmp_path / "\x1b[2J": r"no control socket at .*\\x1b\[2J",
        }.items():
            assert main(["top", str(path), "--once"]) == 1
            out, err = capsys.readouterr()
            assert re.search(reason, err), err
            assert (out, err.count("\n")) == ("", 1)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_a_socket_of_another_user(number: int, tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("")
    user = top_client._owner(str(path))
    assert top_client._why_not(str(path), OSError(number, "")) == (
        f"{path} is not for this user: run gain-trio top as {user}, or as root"
    )
    assert "as the server's user, or" in top_client._why_not(str(path / "x"), OSError(number, ""))


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to become another user")
def test_another_user_may_not_look(tmp_path: Path) -> None:
    python = shutil.which("python3", path="/usr/bin:/bin")  # the tests' own may be where another user cannot read it
    if python is None:
        pytest.skip("the system has no Python that another user can run")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "s"
        arguments = ("-m", "gain_trio", "serve", "tcp://127.0.0.1:0", "--handler", "echo", "--control", path)
        with running(*arguments, cwd=ROOT) as server:
            assert server.line().startswith("serving echo")
            code = (
                "import socket; client = socket.socket(socket.AF_UNIX); "
                f"client.settimeout(20); client.connect({str(path)!r}); print(client.recv(1000).decode())"
            )
            ask = functools.partial(subprocess.run, [python, "-c", code], user="nobody", capture_output=True, text=True)
            assert "PermissionError: [Errno 13]" in ask(check=False).stderr, "the kernel refuses the file's mode"
            path.chmod(0o666)
            assert "you are user 65534: ask as its user, or as root" in ask(check=False).stdout, (
                "the server asks the kernel"
            )
            server.interrupt()
            server.end()


def test_without_a_terminal_there_is_no_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", str(tmp_path / "s")]) == 1
    assert capsys.readouterr().err == "gain-trio: standard output is no terminal: give --once or --json\n"


def test_without_rich_there_is_a_line_that_says_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich" or name.endswith("_top_screen")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert main(["top", str(tmp_path / "s")]) == 1
    err = capsys.readouterr().err
    assert err == (
        'gain-trio: the screen needs the package rich: pip install "gain-trio[top]"; --once and --json do without\n'
    )
    path = tmp_path / "s"
    with answering(path, line(snapshot()), line(snapshot())):
        assert main(["top", str(path), "--once", "--interval", "1"]) == 0


@pytest.mark.parametrize("interval", ["0", "0.9", "31", "nan", "inf", "soon", "-1"])
def test_intervals_that_make_no_sense(interval: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["top", "x", f"--interval={interval}"])
    assert "is no number of seconds from 1 to 30" in capsys.readouterr().err


# --- the screen ---


IN_TERMINAL = (
    "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "from gain_trio._command import main; sys.exit(main())"
)
"""The command, with its standard input as the controlling terminal, whose Ctrl-C is a signal."""


class Terminal:
    """A pseudo terminal with a program in it."""

    def __init__(self, *arguments: str, lines: int = 40, columns: int = 120) -> None:
        self._own, self._other = pty.openpty()
        self._text = b""
        self.resize(lines, columns)
        self.before = termios.tcgetattr(self._other)
        # pytest-xdist gives its processes a COLUMNS, which says more than the terminal does.
        inherited = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
        environment = {**inherited, "TERM": "xterm", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", IN_TERMINAL, "top", *arguments],
            stdin=self._other,
            stdout=self._other,
            stderr=self._other,
            env=environment,
        )

    def resize(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self._own, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, keys: bytes) -> None:
        os.write(self._own, keys)

    def until(self, wanted: Callable[[str], bool]) -> str:
        """What it has printed since the last call, when it has printed what is wanted."""
        end = time.monotonic() + TIMEOUT
        while not wanted(self._text.decode(errors="replace")):
            assert time.monotonic() < end, self._text
            if select.select([self._own], [], [], 1)[0]:
                self._text += os.read(self._own, 65536)
        text, self._text = self._text.decode(errors="replace"), b""
        return text

    def end(self) -> int:
        """Its exit status, with the terminal as it was before."""
        deadline = time.monotonic() + TIMEOUT
        while self.process.poll() is None:
            assert time.monotonic() < deadline
            if select.select([self._own], [], [], 0.05)[0]:
                self._text += os.read(self._own, 65536)
        assert termios.tcgetattr(self._other) == self.before
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._own)
        os.close(self._other)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Path]:
    """The control socket of a server that runs."""
    path = tmp_path / "s"
    arguments = ("-m", "gain_trio", "serve", "tcp://127.0.0.1:0", "--handler", "echo", "--control", path)
    with running(*arguments, cwd=ROOT) as program:
        assert program.line().startswith("serving echo")
        yield path


def last_screen(text: str) -> str:
    """What was written since the title of the table of processes, the last time."""
    return text.rpartition("processes")[2]


@pytest.mark.slow
@pytest.mark.parametrize("end", [b"q", b"\x03", signal.SIGTERM, signal.SIGINT])
def test_a_screen_until_a_key_or_a_signal(end: Any, server: Path) -> None:
    with contextlib.closing(Terminal(str(server), "--interval", "1")) as terminal:
        text = terminal.until(lambda text: "no slow handlers" in text and "0/s accepted" in text)
        assert "\x1b[?1049h" in text, "the alternate screen"
        assert "pid" in text
        terminal.resize(20, 40)
        terminal.until(lambda text: "no slow" in last_screen(text) and "pid" not in last_screen(text))
        if isinstance(end, bytes):
            terminal.press(end)
        else:
            terminal.process.send_signal(end)
        assert terminal.end() == 0
        assert "\x1b[?1049l" in terminal.until(lambda _text: True)


@pytest.mark.slow
def test_a_server_that_ends_ends_the_screen_with_a_line(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with answering(path, line(snapshot()), line(snapshot(time=101.0))):
        with contextlib.closing(Terminal(str(path), "--interval", "1")) as terminal:
            assert terminal.end() == 1
            text = terminal.until(lambda text: "has ended" in text)
            assert text.rstrip().endswith(f"gain-trio: the server at {path} has ended")
            assert text.index("\x1b[?1049l") < text.index("has ended"), "on the usual screen"


@pytest.mark.slow
def test_a_server_that_does_not_answer_freezes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        with contextlib.closing(Terminal(str(path))) as terminal:
            terminal.until(lambda text: "no answer for" in text)
            terminal.press(b"q")
            assert terminal.end() == 0

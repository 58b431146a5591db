"""Nothing that a peer has chosen reaches a line of the log as it is."""

from __future__ import annotations

import ast
import io
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import support.fuzz  # noqa: F401  # the profile of Hypothesis
import trio
from hypothesis import given
from hypothesis import strategies as st
from support.pairs import until

import gain_trio
from gain_trio import Connection, DatagramEndpoint
from gain_trio._server._logging import LineFormatter
from gain_trio._server._processes import _log_forwarding
from gain_trio._server._processes._control_messages import LogRecords
from gain_trio._transports._addresses._shown import MOST, shown, shown_lines, shown_traceback

pytestmark = pytest.mark.connections

HOSTILE = "x\n2026-01-01 00:00:00 ERROR gain_trio: forged\r\x1b[31m\u202e\u2028\x85\x9b\0"
"""A newline, a return, escape sequences of 7 and 8 bits, a change of direction, other line separators, a NUL."""
HARMFUL = "\r\x1b\u202e\u2028\x85\x9b\0"
PATIENCE = 10

# --- the function ---


@pytest.mark.slow
@given(st.text() | st.binary() | st.integers() | st.floats() | st.tuples(st.text(), st.integers()) | st.none())
def test_anything_is_shown_on_a_line(value: Any) -> None:
    text = shown(value)
    assert text.isprintable()
    assert len(text) <= 10 * MOST + 40
    if isinstance(value, str) and len(value) <= MOST and value.isprintable():
        assert text == value


def test_what_is_shown() -> None:
    assert shown("a\nb\x1b[0m\\ \u00e9 \u65e5") == "a\\nb\\x1b[0m\\ \u00e9 \u65e5"
    assert shown("\udc80\u202e") == "\\udc80\\u202e"
    assert shown(("::1", 80)) == "('::1', 80)"
    assert shown("x" * 1000) == "x" * MOST + "... (1000 characters)"
    assert shown("\0" * 1000, 3) == "\\x00\\x00\\x00... (1000 characters)"


def test_what_has_no_text_is_shown() -> None:
    class Nameless:
        def __str__(self) -> str:
            raise ZeroDivisionError

    assert shown(Nameless()).endswith("Nameless, whose str() raised ZeroDivisionError>")


def test_several_lines_are_indented() -> None:
    assert shown_lines("a\nb\x1b\n\n") == "    a\n    b\\x1b"
    assert shown_lines("a\n" * 100, 5).endswith("    ... (200 characters)")


def fail(text: str, cause: BaseException | None) -> None:
    raise LookupError(text) from cause


def failed(text: str) -> BaseException:
    """An exception with a cause, a traceback and, where there are such, a note."""
    try:
        fail(text, ValueError(text))
    except LookupError as error:
        error.add_note(text) if hasattr(error, "add_note") else None
        return error
    raise AssertionError


def check_text(text: str) -> None:
    """Check that no line begins like a record, and that no character controls a terminal."""
    assert "forged" in text
    assert not set(HARMFUL) & set(text)
    assert not any(line.startswith("2026-01-01 00:00:00 ERROR gain_trio: forged") for line in text.split("\n"))


def test_a_traceback_is_shown() -> None:
    text = shown_traceback(failed(HOSTILE))
    check_text(text)
    assert "\nTraceback (most recent call last):\n  File " in text
    assert "\nThe above exception was the direct cause of the following exception:\n" in text
    assert "\nLookupError: x\n    2026-01-01" in text
    long = shown_traceback(failed("x" * 100_000))
    assert len(long) < 20_000
    assert "... [cut]" in long


def test_a_line_for_people() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter("%(levelname)s %(name)s: %(message)s"))
    error = failed(HOSTILE)
    handler.handle(
        logging.LogRecord("program", logging.ERROR, "", 0, "%s", (HOSTILE,), (type(error), error, error.__traceback__))
    )
    assert stream.getvalue().startswith("ERROR program: x\n    2026-01-01 ")
    assert "\nLookupError: x\n    2026" in stream.getvalue()
    check_text(stream.getvalue())


# --- on each surface ---


def check_log(caplog: pytest.LogCaptureFixture, *words: str) -> None:
    """All lines of the package, as any formatter has them."""
    records = [record for record in caplog.records if record.name == "gain_trio"]
    texts = [logging.Formatter("%(message)s").format(record) for record in records]
    assert all(any(word in text for text in texts) for word in words), texts
    for record, text in zip(records, texts, strict=True):
        assert record.getMessage().isprintable()
        assert not set(HARMFUL) & set(text)
        assert not any(line.startswith("2026-01-01 00:00:00 ERROR gain_trio: forged") for line in text.split("\n"))


async def refuse(data: bytes, _address: Any, _endpoint: DatagramEndpoint) -> None:
    """Fail by what has come."""
    raise ValueError(data.decode())


async def answer(data: bytes, address: Any, endpoint: DatagramEndpoint) -> None:
    """Try to."""
    await endpoint.send(data, address)


@pytest.mark.parametrize("handler", [refuse, answer])
async def test_the_path_of_a_datagrams_sender(
    handler: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "gain_trio")
    monkeypatch.chdir(tmp_path)
    path = HOSTILE.rstrip("\0")
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            lambda **status: gain_trio.serve_datagrams(handler, f"unix://{tmp_path}/server", **status)
        )
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.bind(path)
            client.connect("server")
            client.send(HOSTILE.encode())
            os.unlink(path)  # so that it cannot be answered
            await until(lambda: server.statistics().handled == 1)
        nursery.cancel_scope.cancel()
    check_log(caplog, "forged")


async def test_what_a_handler_raises(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(connection: Connection) -> None:
        raise ValueError((await connection.receive()).decode())

    await _talk(handler, HOSTILE.encode())
    check_log(caplog, "forged")


async def test_why_a_connection_broke(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "gain_trio")

    async def handler(connection: Connection) -> None:
        text = (await connection.receive()).decode()
        raise trio.BrokenResourceError(text) from OSError(text)

    await _talk(handler, HOSTILE.encode())
    check_log(caplog, "forged")


@pytest.mark.parametrize(
    "data",
    [
        b"PROXY TCP4 1.2.3.4\x1b[31m 1.2.3.4 1 1\r\n",
        b"PROXY TCP4 %s 1.2.3.4 1 1\r\n" % "\u202e\x85".encode(),
        b"PROXY \x1b\0\n",
        b"\x1b[31mGET / HTTP/1.1\r\n\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x12" + bytes(12) + b"\x02\x00\x03\xff\x1b\n",
    ],
)
async def test_what_is_no_proxy_header(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    await _talk(trio.sleep, data, proxy_protocol=True)
    check_log(caplog, "is refused")


async def _talk(handler: Any, data: bytes, **options: Any) -> None:
    """Send this to a server, and wait until it has closed the connection."""
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            lambda **status: gain_trio.serve(handler, "tcp://127.0.0.1:0", **options, **status)
        )
        async with await gain_trio.connect(f"tcp://127.0.0.1:{server.addresses[0][1]}") as client:
            await client.send(data)
            with trio.fail_after(PATIENCE), pytest.raises((trio.BrokenResourceError, gain_trio.IncompleteMessage)):
                await client.receive_exactly(1)
        nursery.cancel_scope.cancel()


def test_what_a_worker_process_had_to_say_at_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    forwarder = _log_forwarding.LogForwarder()
    forwarder.emit(logging.LogRecord("program", logging.ERROR, "", 0, "%s", (HOSTILE,), None))
    forwarder.give_up()
    [line] = capsys.readouterr().err.splitlines()
    assert line.isprintable()
    assert "forged" in line


def test_what_a_worker_process_says(caplog: pytest.LogCaptureFixture) -> None:
    record = logging.LogRecord("gain_trio", logging.ERROR, "", 0, "%s", (shown(HOSTILE),), None)
    _log_forwarding.log_for(LogRecords((_log_forwarding._portable(record),), 0))
    check_log(caplog, "forged")


# --- in every line of the source ---

PACKAGE = Path(gain_trio.__file__).parent
FLOORS_WITH_PEERS = ("_transports", "_http", "_server", "callbacks", "asyncio_bridge", "_command")
METHODS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
SHOWING = {"shown", "shown_lines", "shown_traceback"}
OWN = {"pid", "strerror", "backend"}
"""Attributes that the kernel, or this package, has given their value."""


def log_calls() -> Iterator[tuple[str, ast.Call]]:
    for floor in FLOORS_WITH_PEERS:
        assert (PACKAGE / floor).is_dir(), "it has another name now"
        for path in sorted((PACKAGE / floor).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    of = ast.unparse(node.func.value)
                    if of.rpartition(".")[2] in {"logger", "_logger"} and node.func.attr in METHODS:
                        yield f"{path.relative_to(PACKAGE)}:{node.lineno}", node


def is_shown(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        return name in SHOWING or (name == "map" and ast.unparse(node.args[0]) in SHOWING)
    if isinstance(node, ast.Starred | ast.FormattedValue | ast.IfExp | ast.JoinedStr):
        parts = [part for part in ast.iter_child_nodes(node) if part is not getattr(node, "test", None)]
        return all(is_shown(part) for part in parts if isinstance(part, ast.expr))
    if isinstance(node, ast.Name | ast.Attribute):
        name = node.id if isinstance(node, ast.Name) else node.attr
        return name in OWN or name.isupper()
    return isinstance(node, ast.Constant)


def formats(text: str) -> list[str]:
    """The letters of a format's conversions, in order."""
    letters = []
    rest = text.replace("%%", "")
    while "%" in rest:
        rest = rest.partition("%")[2].lstrip("-+ #0123456789.*")
        letters.append(rest[:1])
    return letters


def test_every_line_of_the_log_shows_what_is_in_it() -> None:
    calls = list(log_calls())
    assert len(calls) > 15
    raw = []
    for place, call in calls:
        text, *arguments = call.args[1:] if ast.unparse(call.func).endswith(".log") else call.args
        if isinstance(text, ast.JoinedStr):
            raw.append(f"{place}: an f-string")
        letters = formats(str(text.value)) if isinstance(text, ast.Constant) else ["s"] * len(arguments)
        for letter, argument in zip(letters, arguments, strict=not any(isinstance(a, ast.Starred) for a in arguments)):
            if letter not in "dgfx" and not (letter == "s" and is_shown(argument)):
                raw.append(f"{place}: %{letter} of {ast.unparse(argument)}")
    assert not raw, "use %s of shown(value), of gain_trio._transports"

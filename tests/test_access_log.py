"""The lines of the access log: their form, and that a client cannot forge one."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fuzz import given, st

from gain_trio.asgi._access_log import MOST, MOST_BUFFERED, AccessForm, AccessLog, BufferedLines

pytestmark = pytest.mark.one_backend

NOW = 1_700_000_000.25
LINE = re.compile(
    r"(\S+) - - \[(\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d \+0000)\] "
    r'"(\S+) (.*) HTTP/(\S+)" (\d+) (\d+) "([^"]*)" "([^"]*)" (\d+\.\d{6})'
)


def scope(**changes: Any) -> dict[str, Any]:
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/a b",
        "raw_path": b"/a%20b",
        "query_string": b"x=1",
        "headers": [(b"host", b"here"), (b"user-agent", b"curl/8"), (b"referer", b"http://there/")],
        "client": ("192.0.2.1", 1234),
        **changes,
    }


def line_of(form: AccessForm, request: dict[str, Any], status: int = 200, size: int = 13) -> str:
    lines: list[str] = []
    times = iter([5.0, 5.0123456])
    log = AccessLog(lines.append, form=form, clock=lambda: NOW, timer=lambda: next(times))
    log.ended(log.began(request), request, status, size, None)
    [line] = lines
    assert line.isascii()
    assert line.isprintable()
    return line


def test_text() -> None:
    assert line_of("text", scope()) == (
        '192.0.2.1 - - [14/Nov/2023:22:13:20 +0000] "GET /a%20b?x=1 HTTP/1.1" 200 13 "http://there/" "curl/8" 0.012346'
    )


def test_text_without_what_a_client_may_leave_out() -> None:
    request = scope(headers=[], query_string=b"", client=None)
    assert line_of("text", request, 404, 0) == (
        '- - - [14/Nov/2023:22:13:20 +0000] "GET /a%20b HTTP/1.1" 404 0 "-" "-" 0.012346'
    )


def test_a_websocket() -> None:
    request = scope(type="websocket", scheme="wss")
    del request["method"]
    assert '"GET /a%20b?x=1 HTTP/1.1" 101 0' in line_of("text", request, 101, 0)
    assert json.loads(line_of("json", request, 101, 0))["scheme"] == "wss"


def test_json() -> None:
    assert json.loads(line_of("json", scope())) == {
        "time": "2023-11-14T22:13:20.250Z",
        "client": "192.0.2.1",
        "method": "GET",
        "scheme": "http",
        "host": "here",
        "target": "/a%20b?x=1",
        "http_version": "1.1",
        "status": 200,
        "bytes": 13,
        "seconds": 0.012346,
        "referer": "http://there/",
        "user_agent": "curl/8",
    }


def test_json_without_what_a_client_may_leave_out() -> None:
    found = json.loads(line_of("json", scope(headers=[], client=None)))
    assert [found[name] for name in ("client", "host", "referer", "user_agent")] == [None] * 4


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b'say "hello"', r"say \x22hello\x22"),
        (b"back\\slash", r"back\x5Cslash"),
        (b"tab\there", r"tab\x09here"),
        (b"caf\xc3\xa9", r"caf\xC3\xA9"),
        (b"\x1b[31mred", r"\x1B[31mred"),
        (b"\x7f", r"\x7F"),
        (b"", ""),
    ],
)
def test_escapes(value: bytes, shown: str) -> None:
    match = LINE.fullmatch(line_of("text", scope(headers=[(b"user-agent", value)])))
    assert match is not None
    assert match[9] == shown


def test_the_first_of_several_fields_counts() -> None:
    request = scope(headers=[(b"user-agent", b"one"), (b"user-agent", b"two")])
    assert '"one"' in line_of("text", request)


def test_a_long_value_is_cut() -> None:
    request = scope(raw_path=b"/" + b"a" * 10_000, headers=[(b"user-agent", b"b" * 10_000)])
    assert len(line_of("text", request)) < 2 * MOST + 200
    assert len(line_of("json", request)) < 2 * MOST + 400


@given(st.binary(max_size=60), st.binary(max_size=60), st.binary(max_size=60), st.sampled_from(["text", "json"]))
def test_no_client_can_forge_a_line(target: bytes, agent: bytes, referer: bytes, form: AccessForm) -> None:
    headers = [(b"user-agent", agent), (b"referer", referer)]
    line = line_of(form, scope(raw_path=target, query_string=b"", headers=headers))
    if form == "text":
        match = LINE.fullmatch(line)
        assert match is not None
        assert unescaped(match[4]) == target
        assert (unescaped(match[8]), unescaped(match[9])) == (referer, agent)
    else:
        found = json.loads(line)
        assert found["target"] == target.decode("latin-1")
        assert (found["referer"], found["user_agent"]) == (referer.decode("latin-1"), agent.decode("latin-1"))


def unescaped(text: str) -> bytes:
    return re.sub(rb"\\x([0-9A-F]{2})", lambda match: bytes((int(match[1], 16),)), text.encode("ascii"))


def test_the_time_is_made_anew_with_each_second() -> None:
    lines: list[str] = []
    times = iter([100.0, 100.9, 101.0, 99.0])
    log = AccessLog(lines.append, clock=lambda: next(times))
    for _ in range(4):
        log.ended(log.began(scope()), scope(), 200, 0, None)
    assert [re.findall(r":(\d\d) \+", line)[0] for line in lines] == ["40", "40", "41", "39"]


def test_there_are_two_forms() -> None:
    with pytest.raises(ValueError, match="text"):
        AccessLog(form="xml")  # type: ignore[arg-type]


def test_programs_have_a_logger(caplog: pytest.LogCaptureFixture) -> None:
    log = AccessLog()
    with caplog.at_level(logging.INFO, "gain_trio.access"):
        log.ended(log.began(scope()), scope(raw_path=b"/%s%d"), 200, 1, None)
    [record] = caplog.records
    assert (record.name, record.levelname) == ("gain_trio.access", "INFO")
    assert "/%s%d" in record.getMessage()


# --- lines for a descriptor ---


@pytest.fixture
def lines_and_file(tmp_path: Path) -> Iterator[tuple[BufferedLines, Path]]:
    path = tmp_path / "access.log"
    with path.open("wb") as file:
        yield BufferedLines(file.fileno()), path


def test_lines_are_written_when_they_are_flushed(lines_and_file: tuple[BufferedLines, Path]) -> None:
    lines, path = lines_and_file
    lines("one")
    lines("two")
    assert path.read_bytes() == b""
    lines.flush()
    assert path.read_bytes() == b"one\ntwo\n"
    lines("three")
    lines.flush()
    lines.flush()
    assert path.read_bytes() == b"one\ntwo\nthree\n"


def test_buffered_lines_are_bounded_and_written_whole(
    lines_and_file: tuple[BufferedLines, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, path = lines_and_file
    written: list[int] = []
    write = os.write

    def short_write(descriptor: int, data: memoryview) -> int:
        written.append(len(data))
        return write(descriptor, data[:30_000])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short_write)
        for number in range(MOST_BUFFERED // 16):
            lines(f"{number:15d}")
    assert written == [MOST_BUFFERED, MOST_BUFFERED - 30_000, MOST_BUFFERED - 60_000]
    assert path.read_bytes().split() == [b"%d" % number for number in range(MOST_BUFFERED // 16)]


def test_lines_that_cannot_be_written_are_dropped() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    lines = BufferedLines(writing)
    lines("lost")
    with pytest.raises(BrokenPipeError):
        lines.flush()
    lines.flush()
    os.close(writing)

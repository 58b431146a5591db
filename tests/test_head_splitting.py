"""Heads of requests, split and recognised in C: on any bytes the same as in Python, which is the specification."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.fuzz import cut

from gain_trio._http import Limits, RequestMemory, RequestReader
from gain_trio._http._head_splitting import (
    FRAMING,
    PLAIN,
    SECRET,
    Line,
    begins,
    begins_in_python,
    read_fields,
    read_fields_in_python,
    repeated,
    repeated_in_python,
    split_head,
    split_in_python,
)
from gain_trio._kernel import heads

pytestmark = [
    pytest.mark.skipif(heads is None, reason="the compiled modules are not built here"),
    pytest.mark.one_backend,
]

HEAD = b"GET /a HTTP/1.1\r\nHost: here\r\nX: \xe4 y\t\r\n\r\n"
PARTS = [
    *(b"GET", b"x" * 32, b"x" * 33, b" ", b"  ", b"\t", b"/", b"/a?b", b"*", b"#", b"http://here", b"\xe4", b"\x7f"),
    *(b" HTTP/1.", b" HTTP/1.1", b" HTTP/1.0", b" HTTP/1.2", b" HTTP/2.0", b" http/1.1", b"0", b"1"),
    *(b"\r\n", b"\r\n\r\n", b"\r", b"\n", b"\0", b":", b"Host: here", b"X:", b"X: y", b" folded", b"a b: c", b"", HEAD),
]
"""What heads are made of, and what could be taken for it."""


def changed(data: bytes, changes: list[tuple[int, int]]) -> bytes:
    """Some bytes replaced."""
    found = bytearray(data)
    for place, byte in changes:
        found[place % len(found)] = byte
    return bytes(found)


ANYTHING = (
    st.lists(st.sampled_from(PARTS), max_size=12).map(b"".join)
    | st.builds(changed, st.just(HEAD * 2), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=3))
    | st.binary(max_size=40)
)


@given(ANYTHING, st.integers(0, 100))
def test_a_head_is_split_as_in_python(data: bytes, position: int) -> None:
    position = min(position, len(data))
    assert split_head(data, position) == split_in_python(data, position)
    assert split_head(data, 0) == split_in_python(data, 0)


@pytest.mark.parametrize("place", range(len(HEAD)))
def test_no_byte_of_a_head_can_be_another_one_unless_in_python_it_can(place: int) -> None:
    for byte in range(256):
        other = HEAD[:place] + bytes([byte]) + HEAD[place + 1 :]
        assert split_head(other, 0) == split_in_python(other, 0), (place, byte)
    assert split_head(HEAD[:place], 0) is None
    assert split_head(HEAD + HEAD, place) == split_in_python(HEAD + HEAD, place)


def test_a_head_is_split_into_its_parts() -> None:
    assert split_head(b"??" + HEAD + b"??", 2) == (b"GET", b"/a", b"1", HEAD[17:-2], len(HEAD) + 2)


KEYS = [HEAD, HEAD + b"\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\r\n\r\n", b"x\r\n\r\n", b"xx\r\n\r\n"]


@given(
    st.lists(st.sampled_from(KEYS), max_size=4),
    st.lists(st.sampled_from([*KEYS, b"\r\n", b"x", b"y\r\n\r\n"]), max_size=8).map(b"".join),
    st.integers(0, 60),
    st.integers(0, 60),
)
@example([HEAD], HEAD * 3, 0, 60)
@example([HEAD], HEAD * 3, 0, len(HEAD) - 1)
@example([b"\r\n\r\n"], b"\r\n\r\n\r\n", 0, 60)
def test_repeated_heads_are_found_as_in_python(keys: list[bytes], data: bytes, position: int, most: int) -> None:
    # A memory holds heads whose end is in them once.
    memory = {key: object() for key in keys if key.find(b"\r\n\r\n") == len(key) - 4}
    position = min(position, len(data))
    assert repeated(memory, data, position, most) == repeated_in_python(memory, data, position, most)


@given(st.sampled_from(KEYS) | st.binary(max_size=4), st.sampled_from(KEYS), st.integers(0, 60))
@example(HEAD + HEAD, HEAD, len(HEAD))
@example(HEAD + HEAD[:-1], HEAD, len(HEAD))
@example(HEAD, b"", len(HEAD))
def test_a_head_begins_where_it_does_in_python(data: bytes, whole: bytes, position: int) -> None:
    position = min(position, len(data))
    assert begins(data, position, whole) is begins_in_python(data, position, whole)
    assert begins(data + whole, len(data), whole)


@pytest.mark.parametrize(
    ("function", "arguments", "error"),
    [
        ("split_head", (), TypeError),
        ("split_head", (HEAD,), TypeError),
        ("split_head", (bytearray(HEAD), 0), TypeError),
        ("split_head", (HEAD, "0"), TypeError),
        ("split_head", (HEAD, -1), ValueError),
        ("split_head", (HEAD, len(HEAD) + 1), ValueError),
        ("split_head", (HEAD, 1 << 70), OverflowError),
        ("repeated", ({}, HEAD, 0), TypeError),
        ("repeated", ([], HEAD, 0, 9), TypeError),
        ("repeated", ({}, "", 0, 9), TypeError),
        ("repeated", ({}, HEAD, len(HEAD) + 1, 9), ValueError),
        ("repeated", ({}, HEAD, 0, -1), ValueError),
        ("repeated", ({}, HEAD, 0, None), TypeError),
        ("begins", (HEAD, 0), TypeError),
        ("begins", (HEAD, 0, ""), TypeError),
        ("begins", ("", 0, HEAD), TypeError),
        ("begins", (HEAD, len(HEAD) + 1, HEAD), ValueError),
        ("read_fields", (b"", {}, []), TypeError),
        ("read_fields", ("", {}, [], len), TypeError),
        ("read_fields", (b"", [], [], len), TypeError),
        ("read_fields", (b"", {}, {}, len), TypeError),
        ("read_fields", (b"a:\r\n", {}, [], None), TypeError),
        ("read_fields", (b"a:\r\n", {}, [], len), TypeError),
        ("read_fields", (b"a:\r\n", {b"a:": 1}, [], len), TypeError),
        ("read_fields", (b"a:\r\n", {b"a:": ((b"a", b""), 0)}, [], len), TypeError),
        ("read_fields", (b"a:\r\n", {b"a:": ((b"a", b""), "0", b"a:")}, [], len), TypeError),
        ("read_fields", (b"a:\r\n", {}, [None], len), TypeError),
    ],
)
def test_what_is_no_head_and_no_memory_is_refused(
    function: str, arguments: tuple[Any, ...], error: type[Exception]
) -> None:
    with pytest.raises(error):
        getattr(heads, function)(*arguments)


def test_no_reference_is_kept_or_lost() -> None:
    found = object()
    memory = {HEAD: found}
    data = HEAD * 3 + b"x"
    before = sys.getrefcount(found), sys.getrefcount(data)
    for _ in range(100):
        assert heads.repeated(memory, data, 0, 60) == ([found] * 3, 3 * len(HEAD))
        assert heads.repeated({}, data, 0, 60) == ([], 0)
        assert heads.split_head(data, 1) is not None
        assert heads.split_head(data, 3 * len(HEAD)) is None
    assert (sys.getrefcount(found), sys.getrefcount(data)) == before


# --- fields ---

LINES = [b"Host: here", b"X: y", b"X: z", b"Cookie: a", b"Te: b", b"", b"\r", b"\n", b"x" * 300, b"a\rb"]


def read_line(line: bytes) -> Line:
    """What a line means, as far as this test is concerned."""
    kinds = {b"H": FRAMING, b"T": FRAMING, b"C": SECRET}
    return (line[:1], line[1:]), kinds.get(line[:1], PLAIN), line


@given(st.lists(st.lists(st.sampled_from(LINES), max_size=8), max_size=8), st.booleans())
def test_fields_are_read_as_in_python(heads_: list[list[bytes]], ends: bool) -> None:
    known: dict[bytes, Line] = {}
    recent: list[Line] = []
    asked: list[bytes] = []

    def read(line: bytes) -> Line:
        asked.append(line)
        found = read_line(line)
        if len(known) < 4:
            known[line] = found
        return found

    for lines in heads_:
        data = b"".join(line + b"\r\n" for line in lines)
        data = data if ends else data[:-2]
        expected = read_fields_in_python(data, {}, [], read_line)
        assert read_fields(data, known, recent, read) == expected
        assert read_fields_in_python(data, known, recent, read) == expected
        assert all(known.get(line) == (field, kind, line) for field, kind, line in recent)
    assert all(asked.count(line) == 1 for line in known)


def test_what_one_client_repeats_is_found_where_it_was() -> None:
    known = {line: read_line(line) for line in (b"%d" % number for number in range(50))}
    recent: list[Line] = []
    data = b"".join(b"%d\r\n" % number for number in range(50))
    expected = read_fields_in_python(data, known, [], read_line)
    for _ in range(2):
        assert heads.read_fields(data, known, recent, read_line) == expected
        assert [line for _pair, _kind, line in recent] == [b"%d" % number for number in range(32)]
    known.clear()  # the lines are the same still
    asked: list[bytes] = []
    assert heads.read_fields(data, known, recent, lambda line: (asked.append(line), read_line(line))[1]) == expected
    assert asked == [b"%d" % number for number in range(32, 50)]


def test_a_line_that_cannot_be_read_loses_no_reference() -> None:
    known = {b"a": read_line(b"a")}
    recent: list[Line] = []
    entry = known[b"a"]
    before = sys.getrefcount(entry)

    def fail(line: bytes) -> Line:
        recent.clear()  # in the middle of it
        raise RuntimeError(line)

    for _ in range(10):
        with pytest.raises(RuntimeError, match="b'b'"):
            heads.read_fields(b"a\r\nb\r\n", known, recent, fail)
    assert sys.getrefcount(entry) == before
    for _ in range(10):
        heads.read_fields(b"a\r\na\r\n", known, recent, fail)
    recent.clear()
    assert sys.getrefcount(entry) == before


# --- the reader's use of it ---

OTHER = b"GET /b HTTP/1.1\r\nHost: here\r\n\r\n"
POST = b"POST /c HTTP/1.1\r\nHost: here\r\nContent-Length: 2\r\n\r\n"


def read(pieces: list[bytes], memory: RequestMemory) -> tuple[list[bytes], int]:
    """The targets of the requests, and how many of them were recognised."""
    reader = RequestReader(memory, Limits())
    targets: list[bytes] = []
    recognised = 0
    for piece in pieces:
        if reader.in_body:
            reader.feed(piece)
            reader.take_body()
            if reader.in_body:
                continue
        else:
            found = reader.feed_repeated(piece)
            recognised += len(found)
            targets += [request.target for request in found]
        while (request := reader.next_request()) is not None:
            targets.append(request.target)
            reader.take_body()
            if reader.in_body:
                break
    return targets, recognised


def test_repeated_requests_are_recognised_up_to_the_first_other_one() -> None:
    memory = RequestMemory()
    assert read([HEAD + OTHER], memory) == ([b"/a", b"/b"], 0)
    assert read([HEAD * 2 + OTHER * 3 + HEAD], memory) == ([b"/a"] * 2 + [b"/b"] * 3 + [b"/a"], 6)
    assert read([HEAD + POST + b"hi" + HEAD], memory) == ([b"/a", b"/c", b"/a"], 1)
    assert read([HEAD + b"\r\n" + OTHER], memory) == ([b"/a", b"/b"], 1)


@given(
    st.lists(st.sampled_from([HEAD, OTHER, POST + b"hi", b"\r\n" + HEAD]), max_size=8), st.lists(st.integers(0, 300))
)
def test_pieces_and_memories_make_no_difference(requests: list[bytes], places: list[int]) -> None:
    memory = RequestMemory()
    data = b"".join(requests)
    expected = read([data], RequestMemory())[0]
    assert len(expected) == len(requests)
    for _ in range(3):
        assert read(cut(data, places), memory)[0] == expected


def test_a_connection_whose_requests_all_differ_stops_to_look() -> None:
    memory = RequestMemory()
    assert read([HEAD], memory) == ([b"/a"], 0)
    different = [b"GET /%d HTTP/1.1\r\nHost: here\r\n\r\n" % number for number in range(8)]
    assert read([*different, HEAD], memory)[1] == 0
    assert read([*different[:3], HEAD], memory)[1] == 4

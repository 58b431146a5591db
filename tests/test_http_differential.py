"""The reader of requests beside h11 and llhttp: it reads no request that either refuses, and all read the others alike."""

from __future__ import annotations

import unittest.mock
from collections.abc import Iterable
from typing import TypeAlias

import h11
import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.fuzz import cut, examples, places

from gain_trio._http import Limits, Refused, RequestMemory, RequestReader, _request_reader

pytestmark = pytest.mark.no_run

Read: TypeAlias = tuple[bytes, bytes, bytes, tuple[tuple[bytes, bytes], ...], bytes]
"""A request: its method, target, minor version, fields and body."""

MEMORY = RequestMemory()
"""One for all, as the connections of a server share it."""


class Conversation:
    """Requests that were read, and whether the last one was refused."""

    def __init__(self) -> None:
        self.requests: list[Read] = []
        self.refused = False


def read_here(pieces: Iterable[bytes], memory: RequestMemory = MEMORY) -> Conversation:
    """Read requests by the project's reader."""
    talk = Conversation()
    reader = RequestReader(memory, Limits())
    current = None
    body = b""
    try:
        for piece in pieces:
            request = reader.feed_request(piece) if current is None else reader.feed(piece)
            while True:
                if current is None:
                    if request is None:
                        break
                    current, body = request, b""
                body += reader.take_body()
                if reader.in_body:
                    break
                framing = current.framing
                talk.requests.append((current.method, current.target, b"%d" % framing.minor, current.pairs, body))
                current = None
                if framing.closes or framing.upgrades:
                    return talk
                request = reader.next_request()
    except Refused:
        talk.refused = True
    return talk


def read_by_h11(pieces: Iterable[bytes]) -> Conversation:
    """Read requests by h11."""
    talk = Conversation()
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=100_000)
    request: h11.Request | None = None
    body = b""
    try:
        for piece in pieces:
            connection.receive_data(piece)
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED:
                    break
                if isinstance(event, h11.Request):
                    request, body = event, b""
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    assert request is not None
                    fields = tuple((name, value) for name, value in request.headers)
                    talk.requests.append((request.method, request.target, request.http_version[2:], fields, body))
                    if connection.their_state is not h11.DONE:
                        return talk
                    connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
                    connection.send(h11.EndOfMessage())
                    if connection.our_state is not h11.DONE:
                        return talk
                    connection.start_next_cycle()
    except h11.RemoteProtocolError:
        talk.refused = True
    return talk


class Events:
    """What llhttp calls."""

    def __init__(self, talk: Conversation) -> None:
        self.talk = talk
        self.parser = httptools.HttpRequestParser(self)
        self.closes = False
        self.on_message_begin()

    def on_message_begin(self) -> None:
        self.target = self.body = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.in_trailers = False

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.in_trailers:
            self.fields.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self.in_trailers = True
        self.version = self.parser.get_http_version()

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        method, minor = self.parser.get_method(), self.version[2:].encode()
        if not self.closes:
            self.talk.requests.append((method, self.target, minor, tuple(self.fields), self.body))
        self.closes = self.closes or not self.parser.should_keep_alive()


def read_by_llhttp(pieces: Iterable[bytes]) -> Conversation:
    """Read requests by llhttp, the parser of Node.js."""
    talk = Conversation()
    events = Events(talk)
    try:
        for piece in pieces:
            events.parser.feed_data(piece)
            if events.closes:
                break
    except httptools.HttpParserUpgrade:
        return talk
    except httptools.HttpParserError:
        talk.refused = not events.closes  # it refuses bytes behind the last request, which are unread here
    return talk


METHODS = [b"GET", b"POST", b"HEAD", b"OPTIONS", b"PUT", b"M-SEARCH", b"CONNECT"]
TARGETS = [
    b"/",
    b"/a?b",
    b"*",
    b"http://here/x",
    b"http://here",
    b"https://h:1/?q",
    b"/%41",
    b"a",
    b"/#f",
    b"/\xe4",
    b"//",
]
VERSIONS = [b"HTTP/1.1"] * 8 + [b"HTTP/1.0", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1"]
LINES = [
    b"Host: here",
    b"Host: here",
    b"Host: here",
    b"host:here:1",
    b"Host: a b",
    b"Content-Length: 5",
    b"Content-Length: 05",
    b"Content-Length: 5, 5",
    b"Content-Length:",
    b"Content-Length: +5",
    b"Content-Length : 5",
    b"content-length: \t3 \t",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: Chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: ,chunked",
    b"Transfer-Encoding: chunked,",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding:\x0bchunked",
    b"Transfer-Encoding: identity",
    b"Connection: close",
    b"Connection: keep-alive",
    b"Connection: upgrade",
    b"Upgrade: h2c",
    b"Expect: 100-continue",
    b"Cookie: a=b; c=d",
    b"X-Field: value",
    b"X-Field:value with spaces \t",
    b"X-Field: \xe4\xff",
    b"X-Field: a\x00b",
    b"X-Field: a\x7fb",
    b"X-Field:",
    b" folded",
    b"no colon",
    b": no name",
    b"X(y): z",
]
ENDS = [b"\r\n"] * 20 + [b"\n", b"\r", b"\r\r\n"]
BODIES = [
    b"",
    b"",
    b"hello",
    b"hi",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"3;a=b\r\nabc\r\n0\r\nX: y\r\n\r\n",
    b'2;a="b;c";d\r\nab\r\n0\r\n\r\n',
    b"5 \r\nhello\r\n0\r\n\r\n",
    b"5 ;a\r\nhello\r\n0\r\n\r\n",
    b"05\r\nhello\r\n0\r\n\r\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b"5\nhello\n0\n\n",
    b"5\r\nhello!\r\n0\r\n\r\n",
    b"0\r\nContent-Length: 5\r\n\r\n",
    b"0\r\nX : y\r\n\r\n",
    b"0\r\n\r\n",
    b"-1\r\n\r\n",
]

END = st.sampled_from(ENDS)
HEAD_LINE = st.tuples(
    st.sampled_from(METHODS[:2] * 3 + METHODS), st.sampled_from(TARGETS[:2] * 5 + TARGETS), st.sampled_from(VERSIONS)
).map(b" ".join)
REQUEST = st.tuples(
    st.tuples(HEAD_LINE, END),
    st.just((b"Host: here", b"\r\n")) | st.just((b"", b"")),
    st.lists(st.tuples(st.sampled_from(LINES), END), max_size=4).map(
        lambda lines: (b"".join(map(b"".join, lines)), b"")
    ),
    st.tuples(END, st.sampled_from(BODIES)),
).map(lambda parts: b"".join(map(b"".join, parts)))


def mutated(data: bytes, changes: list[tuple[int, int, int]]) -> bytes:
    """Some bytes replaced, left out or put in."""
    changed = bytearray(data)
    for kind, place, byte in changes:
        at = place % (len(changed) + 1)
        if kind == 0:
            changed[at:at] = bytes([byte])
        elif kind == 1:
            changed[at : at + 1] = b""
        else:
            changed[at : at + 1] = bytes([byte])
    return bytes(changed)


TALK = st.builds(
    mutated,
    st.lists(REQUEST, min_size=1, max_size=3).map(b"".join),
    st.just([]) | st.lists(st.tuples(st.integers(0, 2), st.integers(0, 400), st.integers(0, 255)), max_size=2),
)


def comparable(read: Read) -> Read:
    """A request as readers can agree on it: h11 has the name of a coding in lower case, and this reader replaces the host of
    a request for a URL, as RFC 9112 wants it.
    """
    method, target, minor, fields, body = read
    has_own_host = target.startswith(b"/") or target == b"*"
    lowered = ((name, value.lower() if name == b"transfer-encoding" else value) for name, value in fields)
    return method, target, minor, tuple(field for field in lowered if has_own_host or field[0] != b"host"), body


@examples(400)
@given(TALK, places(600))
@example(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", [5])
@example(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n", [])
@example(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;\x0b\r\na\r\n0\r\n\r\n", [])
def test_no_reader_reads_a_request_otherwise(data: bytes, cuts: list[int]) -> None:
    here, whole = read_here(cut(data, cuts)), read_here([data], RequestMemory())
    assert (here.requests, here.refused) == (whole.requests, whole.refused), "pieces and memories do not matter"
    # h11 refuses the empty line before a request that RFC 9112, 2.2, wants ignored.
    with unittest.mock.patch.object(_request_reader, "MAX_EMPTY_LINES", 0):
        here = read_here([data])
    # llhttp knows a list of methods.
    methods = [method for method, *_ in here.requests]
    count = next((index for index, method in enumerate(methods) if method not in METHODS), len(methods))
    for other in (read_by_h11([data]), read_by_llhttp([data])):
        for index, mine in enumerate(here.requests[:count]):
            assert index < len(other.requests), "a request is read that another reader refuses"
            assert comparable(mine) == comparable(other.requests[index])


@pytest.mark.parametrize("read", [read_here, read_by_h11, read_by_llhttp])
def test_each_reader_reads_a_usual_conversation(read: object) -> None:
    data = (
        b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
        b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"
        b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nho\r\n0\r\n\r\n"
    )
    talk = read([data])  # type: ignore[operator]
    assert [(method, target, body) for method, target, _minor, _fields, body in talk.requests] == [
        (b"GET", b"/a", b""),
        (b"POST", b"/b", b"hi"),
        (b"POST", b"/c", b"ho"),
    ]
    assert not talk.refused

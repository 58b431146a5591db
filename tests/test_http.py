"""The handler http of the command: requests in, answers out."""

from __future__ import annotations

import email.utils
import re
import ssl
from collections.abc import Callable, Iterator
from http import HTTPStatus

import h11
import pytest
import trio
import trio.testing
from support.certificates import client_context, server_context
from support.fuzz import given, st
from support.http_answers import GET, answers, statuses
from support.pairs import PATIENCE, open_pair, receive_all, until

import gain_trio
from gain_trio import Connection
from gain_trio._http import _http_handler as _http
from gain_trio._http._http_handler import IDLE_TIMEOUT, Plaintext, http
from gain_trio._http._http_requests import MAX_BODY, Exchange, Phase
from gain_trio._http._linger import LINGER_SECONDS
from gain_trio._http._request_reader import MAX_HEAD
from gain_trio.testing import serving

pytestmark = [pytest.mark.connections, pytest.mark.one_backend]

NOW = 1_700_000_000.0
DATE = b"Tue, 14 Nov 2023 22:13:20 GMT"
OK = (
    b"HTTP/1.1 200 OK\r\nServer: gain_trio\r\nDate: " + DATE + b"\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: 13\r\n\r\nHello, World!"
)
POST = b"POST / HTTP/1.1\r\nHost: here\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def exchange() -> Exchange:
    return Exchange(Plaintext(lambda: NOW))


# --- what is answered ---


def test_the_answer_to_the_byte() -> None:
    assert exchange().feed(GET) == OK


@pytest.mark.parametrize(
    "target",
    [
        b"/",
        b"/plaintext",
        b"/?x=1",
        b"/plaintext?",
        b"http://here/plaintext",
        b"HTTP://here",
        b"http://here?x=/nothing",
    ],
)
def test_the_text_is_found_under_its_names(target: bytes) -> None:
    [answer] = answers(exchange().feed(b"GET " + target + b" HTTP/1.1\r\nHost: here\r\n\r\n"))
    assert (answer.status, answer.body) == (200, b"Hello, World!")
    assert answer.fields["date"] == DATE.decode()
    assert answer.fields["server"] == "gain_trio"
    assert answer.fields["content-type"].startswith("text/plain")


@pytest.mark.parametrize(
    "target", [b"/nothing", b"/plaintext/", b"//", b"/%70laintext", b"http://here/x?/", b"https://here:1/x"]
)
def test_what_is_not_there_is_404_and_the_connection_goes_on(target: bytes) -> None:
    talk = exchange()
    got = talk.feed(b"GET " + target + b" HTTP/1.1\r\nHost: here\r\n\r\n" + GET)
    assert statuses(got) == [404, 200]
    assert talk.phase is Phase.IDLE


def test_head_is_answered_like_get_without_the_body() -> None:
    head = b"HEAD /%s HTTP/1.1\r\nHost: here\r\n\r\n"
    got = exchange().feed(head % b"" + head % b"nothing" + head % b"?query" + GET)
    first, missing, query, last = answers(got, "HEAD", "HEAD", "HEAD", "GET")
    assert (first.status, first.fields["content-length"], first.body) == (200, "13", b"")
    assert (missing.status, missing.body) == (404, b"")
    assert (query.status, query.body) == (200, b"")
    assert last.body == b"Hello, World!"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "get", "X-OWN"])
def test_other_methods_are_405_and_say_what_is_allowed(method: str) -> None:
    [answer] = answers(exchange().feed(method.encode() + b" / HTTP/1.1\r\nHost: here\r\n\r\n"), method)
    assert (answer.status, answer.fields["allow"]) == (405, "GET, HEAD")


def test_each_pipelined_request_is_answered_in_order() -> None:
    targets = [b"/", b"/nothing", b"/plaintext", b"/x"] * 50
    got = exchange().feed(b"".join(b"GET " + target + b" HTTP/1.1\r\nHost: here\r\n\r\n" for target in targets))
    assert statuses(got) == [404 if target in (b"/nothing", b"/x") else 200 for target in targets]


def test_a_batch_is_answered_like_the_equal_one_of_another_connection_before() -> None:
    site = Plaintext(lambda: NOW)
    batches = [GET * 3, GET, GET * 3, b"HEAD" + GET[3:] + GET, GET * 3]
    for batch in batches * 2:
        assert Exchange(site).feed(batch) == exchange().feed(batch)
    talk = Exchange(site)
    assert talk.feed(GET * 3) == OK * 3
    assert (talk.phase, talk.has_answered) == (Phase.IDLE, True)
    assert talk.feed(POST + b"Content-Length: %d\r\n\r\n" % len(GET * 3)) == b""
    assert statuses(talk.feed(GET * 3)) == [405]  # a body
    assert talk.feed(GET[:-2]) == b""
    assert statuses(talk.feed(GET * 3)) == [400]  # not the beginning of a request


def test_a_batch_that_ends_the_connection_ends_the_next_one_too() -> None:
    site = Plaintext(lambda: NOW)
    for _ in range(3):
        talk = Exchange(site)
        assert statuses(talk.feed(GET + GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))) == [200, 200]
        assert talk.phase is Phase.OVER
        assert talk.feed(GET * 2) == b""


def test_no_long_batch_is_remembered() -> None:
    site = Plaintext(lambda: NOW)
    talk = Exchange(site)
    for _ in range(3):
        assert talk.feed(GET * 3) == OK * 3
    assert site.known.batch == (GET * 3, OK * 3)
    assert talk.feed(GET * 1000) == OK * 1000
    assert site.known.batch == (GET * 3, OK * 3)


# --- the time ---


def test_the_date_is_computed_once_a_second_and_is_of_that_second() -> None:
    times = iter([100.0, 100.2, 100.9, 101.0, 101.5, 100.5])
    calls = 0
    real = email.utils.formatdate

    def counted(*arguments: object, **named: object) -> str:
        nonlocal calls
        calls += 1
        return real(*arguments, **named)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("email.utils.formatdate", counted)
        talk = Exchange(Plaintext(lambda: next(times)))
        dates = [answers(talk.feed(GET * 3))[-1].fields["date"] for _ in range(6)]
    assert [date[-6:-4] for date in dates] == ["40", "40", "40", "41", "41", "40"]
    assert calls == 3  # a clock that is set back has another second, too


def test_what_is_made_once_a_second_is_there_for_another_thread_meanwhile() -> None:
    """The first requests, in two threads: here the second one is answered amidst the first one's."""
    site = Plaintext(lambda: NOW)
    real = email.utils.formatdate
    others: list[bytes] = []

    def interrupted(*arguments: object, **named: object) -> str:
        patch.undo()
        others.append(Exchange(site).feed(GET))
        return real(*arguments, **named)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("email.utils.formatdate", interrupted)
        assert Exchange(site).feed(GET) == OK
    assert others == [OK]


# --- keep-alive ---


@pytest.mark.parametrize(
    ("request_line", "field", "said"),
    [
        (b"HTTP/1.1", b"", None),
        (b"HTTP/1.1", b"Connection: keep-alive\r\n", None),
        (b"HTTP/1.1", b"connection:  CLOSE \r\n", "close"),
        (b"HTTP/1.1", b"Connection: keep-alive, close\r\n", "close"),
        (b"HTTP/1.1", b"Connection: x\r\nConnection: close\r\n", "close"),
        (b"HTTP/1.1", b"Connection: closed\r\n", None),
        (b"HTTP/1.1", b"Connection: Upgrade\r\nUpgrade: h2c\r\n", None),
        (b"HTTP/1.0", b"", "close"),
        (b"HTTP/1.0", b"Connection: Keep-Alive\r\n", "keep-alive"),
        (b"HTTP/1.0", b"Connection: keep-alive, close\r\n", "close"),
        (b"HTTP/1.0", b"Connection: x\r\n", "close"),
    ],
)
def test_who_keeps_the_connection(request_line: bytes, field: bytes, said: str | None) -> None:
    talk = exchange()
    first = b"GET / " + request_line + b"\r\nHost: here\r\n" + field + b"\r\n"
    got = answers(talk.feed(first + GET))
    assert got[0].fields.get("connection") == said
    assert len(got) == (1 if said == "close" else 2)
    assert talk.phase is (Phase.OVER if said == "close" else Phase.IDLE)
    if said == "close":
        assert talk.feed(GET) == b""


def test_the_same_fields_again_mean_the_same_only_in_the_same_version() -> None:
    talk = exchange()
    assert talk.feed(GET * 3) == OK * 3
    old = GET.replace(b"HTTP/1.1", b"HTTP/1.0")
    [answer] = answers(talk.feed(old + GET))
    assert answer.fields["connection"] == "close"
    talk = exchange()
    kept = b"GET / HTTP/1.%d\r\nHost: here\r\nConnection: keep-alive\r\n\r\n"
    got = answers(talk.feed(kept % 0 + kept % 1 + kept % 1 + kept % 0 + GET[:-2] + b"Connection: close\r\n\r\n" + GET))
    assert [answer.fields.get("connection") for answer in got] == ["keep-alive", None, None, "keep-alive", "close"]


def test_http_1_0_needs_no_host() -> None:
    assert statuses(exchange().feed(b"GET / HTTP/1.0\r\n\r\n")) == [200]


# --- bodies ---


@pytest.mark.parametrize(
    "body",
    [
        POST + b"Content-Length: 5\r\n\r\nhello",
        POST + b"Content-Length: 0\r\n\r\n",
        POST + b"Content-Length: 39\r\n\r\n" + GET,  # a request in a body is none
        CHUNKED + b"0\r\n\r\n",
        CHUNKED + b"5\r\nhello\r\n3;name=value\r\n...\r\n000\r\n\r\n",
        CHUNKED + b'a;x="y\\"z";z\r\n0123456789\r\n0\r\nX-Trailer: yes\r\nAnother:\r\n\r\n',
        CHUNKED + b"27\r\n" + GET + b"\r\n0\r\n\r\n",
    ],
)
def test_bodies_are_skipped(body: bytes) -> None:
    assert len(GET) == 39
    talk = exchange()
    assert statuses(talk.feed(GET + body + GET), "GET", "POST", "GET") == [200, 405, 200]
    assert talk.phase is Phase.IDLE
    assert statuses(talk.feed(body), "POST") == [405]


def test_a_client_that_asks_is_told_to_go_on() -> None:
    talk = exchange()
    ask = POST + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    assert talk.feed(GET + ask) == OK + CONTINUE
    assert talk.phase is Phase.UNFINISHED
    assert statuses(talk.feed(b"hi")) == [405]
    assert statuses(talk.feed(ask + b"hi")) == [405]  # it has not waited
    assert statuses(talk.feed(POST + b"Expect: 100-continue\r\n\r\n")) == [405]  # there is no body
    assert talk.feed(POST + b"Transfer-Encoding: chunked\r\nExpect: 100-Continue\r\n\r\n") == CONTINUE
    assert statuses(talk.feed(b"0\r\n\r\n")) == [405]
    talk.feed(POST + b"Content-Length: 2\r\n\r\n")
    assert statuses(talk.feed(b"hi")) == [405]  # what the one before expected is forgotten
    assert statuses(talk.feed(b"GET / HTTP/1.0\r\nExpect: magic\r\n\r\n")) == [200]


# --- what is refused ---

LONG = b"x" * MAX_HEAD
REFUSED = {
    "no request": (400, b"hello there\r\n\r\n"),
    "binary": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "a long method": (400, b"M" * 100),
    "a space first": (400, b" GET / HTTP/1.1\r\nHost: here\r\n\r\n"),
    "two spaces": (400, b"GET  / HTTP/1.1\r\nHost: here\r\n\r\n"),
    "a space in the target": (400, b"GET /a b HTTP/1.1\r\nHost: here\r\n\r\n"),
    "HTTP/0.9": (400, b"GET /\r\n\r\n"),
    "HTTP/2.0": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "HTTP/1.2": (505, b"GET / HTTP/1.2\r\nHost: here\r\n\r\n"),
    "HTTP/3.1": (505, b"GET / HTTP/3.1\r\nHost: here\r\n\r\n"),
    "http in lower case": (400, b"GET / http/1.1\r\nHost: here\r\n\r\n"),
    "bare LF": (400, b"GET / HTTP/1.1\nHost: here\n\n"),
    "bare LF in a field": (400, b"GET / HTTP/1.1\r\nHost: here\nX: y\r\n\r\n"),
    "bare CR": (400, b"GET / HTTP/1.1\r\nHost: here\rX: y\r\n\r\n"),
    "NUL": (400, b"GET / HTTP/1.1\r\nHost: here\r\nX: a\0b\r\n\r\n"),
    "no Host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two Hosts": (400, b"GET / HTTP/1.1\r\nHost: here\r\nHost: here\r\n\r\n"),
    "two Hosts in 1.0": (400, b"GET / HTTP/1.0\r\nHost: here\r\nHost: here\r\n\r\n"),
    "a Host that is none": (400, b"GET / HTTP/1.1\r\nHost: he re\r\n\r\n"),
    "a space before the colon": (400, b"GET / HTTP/1.1\r\nHost : here\r\n\r\n"),
    "a folded field": (400, b"GET / HTTP/1.1\r\nHost: here\r\nX: y\r\n  z\r\n\r\n"),
    "a field without a name": (400, b"GET / HTTP/1.1\r\nHost: here\r\n: y\r\n\r\n"),
    "a field without a colon": (400, b"GET / HTTP/1.1\r\nHost: here\r\nX\r\n\r\n"),
    "length and chunks": (400, POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "chunks in 1.0": (400, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "two lengths": (400, POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n"),
    "a list of lengths": (400, POST + b"Content-Length: 5, 5\r\n\r\n"),
    "a negative length": (400, POST + b"Content-Length: -5\r\n\r\n"),
    "a signed length": (400, POST + b"Content-Length: +5\r\n\r\n"),
    "no length": (400, POST + b"Content-Length:\r\n\r\n"),
    "a length of many digits": (400, POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n"),
    "too long a body": (413, POST + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % (MAX_BODY + 1)),
    "a longer method than there is": (400, b"M" * 33 + b" / HTTP/1.1\r\nHost: here\r\n\r\n"),
    "two empty lines": (400, b"\r\n\r\n" + GET),
    "a star": (400, b"GET * HTTP/1.1\r\nHost: here\r\n\r\n"),
    "a target without a slash": (400, b"GET plaintext HTTP/1.1\r\nHost: here\r\n\r\n"),
    "a target with a fragment": (400, b"GET /#x HTTP/1.1\r\nHost: here\r\n\r\n"),
    "a target with a byte above ASCII": (400, b"GET /\xe4 HTTP/1.1\r\nHost: here\r\n\r\n"),
    "a target of another scheme": (400, b"GET ftp://here/ HTTP/1.1\r\nHost: here\r\n\r\n"),
    "a target with a user": (400, b"GET http://me@here/ HTTP/1.1\r\nHost: here\r\n\r\n"),
    "a target without an authority": (400, b"GET http:///x HTTP/1.1\r\nHost: here\r\n\r\n"),
    "CONNECT": (501, b"CONNECT here:443 HTTP/1.1\r\nHost: here\r\n\r\n"),
    "CONNECT with a path": (501, b"CONNECT / HTTP/1.1\r\nHost: here\r\n\r\n"),
    "white space after a chunk size": (400, CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n"),
    "white space before an extension": (400, CHUNKED + b"5 ;x\r\nhello\r\n0\r\n\r\n"),
    "an extension that is none": (400, CHUNKED + b'5;x="\r\nhello\r\n0\r\n\r\n'),
    "a length in the trailers": (400, CHUNKED + b"0\r\nContent-Length: 5\r\n\r\n"),
    "a coding in the trailers": (400, CHUNKED + b"0\r\ntransfer-encoding: chunked\r\n\r\n"),
    "a host in the trailers": (400, CHUNKED + b"0\r\nHost: there\r\n\r\n"),
    "many empty lines": (400, b"\r\n" * 1000),
    "an empty coding before": (400, POST + b"Transfer-Encoding: ,chunked\r\n\r\n"),
    "an empty coding behind": (400, POST + b"Transfer-Encoding: chunked,\r\n\r\n"),
    "an empty coding in between": (400, POST + b"Transfer-Encoding: chunked, ,chunked\r\n\r\n"),
    "an empty coding in a field of its own": (400, POST + b"Transfer-Encoding:\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "no coding": (400, POST + b"Transfer-Encoding: \t\r\n\r\n"),
    "a coding with a parameter": (400, POST + b"Transfer-Encoding: chunked;q=1\r\n\r\n"),
    "a coding in quotes": (400, POST + b'Transfer-Encoding: "chunked"\r\n\r\n'),
    "a coding with a control character": (400, POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n"),
    "a coding behind a non-breaking space": (400, POST + b"Transfer-Encoding: \xa0chunked\r\n\r\n"),
    "another coding": (400, POST + b"Transfer-Encoding: xchunked\r\n\r\n"),
    "identity": (400, POST + b"Transfer-Encoding: identity\r\n\r\n"),
    "an empty expectation": (400, POST + b"Content-Length: 5\r\nExpect: ,100-continue\r\n\r\n"),
    "a length and an empty one": (400, POST + b"Content-Length: 5\r\nContent-Length:\r\n\r\n"),
    "a length in hexadecimal": (400, POST + b"Content-Length: 0x5\r\n\r\n"),
    "a length with an underscore": (400, POST + b"Content-Length: 1_0\r\n\r\n"),
    "a length with a comma": (400, POST + b"Content-Length: 5,\r\n\r\n"),
    "a folded length": (400, POST + b"Content-Length:\r\n 5\r\n\r\n"),
    "a length with a NUL": (400, POST + b"Content-Length: 5\0\r\n\r\n"),
    "a length, and chunks in another case": (400, POST + b"content-length: 5\r\nTRANSFER-ENCODING: chunked\r\n\r\n"),
    "a coding whose name has a space behind": (400, POST + b"Transfer-Encoding : chunked\r\n\r\n"),
    "a coding in a folded field": (400, POST + b"X: y\r\n Transfer-Encoding: chunked\r\n\r\n"),
    "a line with a space before the fields": (400, b"GET / HTTP/1.1\r\n Host: here\r\n\r\n"),
    "two spaces in the request line": (400, b"GET  / HTTP/1.1\r\nHost: here\r\n\r\n"),
    "a tab in the request line": (400, b"GET\t/ HTTP/1.1\r\nHost: here\r\n\r\n"),
    "a space after the version": (400, b"GET / HTTP/1.1 \r\nHost: here\r\n\r\n"),
    "white space before a chunk size": (400, CHUNKED + b" 5\r\nhello\r\n"),
    "a signed chunk size": (400, CHUNKED + b"+5\r\nhello\r\n"),
    "a chunk size with an underscore": (400, CHUNKED + b"0_5\r\nhello\r\n"),
    "a bare LF after a chunk size": (400, CHUNKED + b"5\nhello\r\n0\r\n\r\n"),
    "bare LFs and no CR LF in a chunked body": (400, CHUNKED + b"5\nhello\n0\n\n"),
    "bare LFs and no CR LF in trailers": (400, CHUNKED + b"0\r\nX: y\n\n"),
    "a bare CR after a chunk size": (400, CHUNKED + b"5\rXhello\r\n0\r\n\r\n"),
    "a bare LF in an extension": (400, CHUNKED + b"5;x\nhello\r\n0\r\n\r\n"),
    "a bare LF after a chunk": (400, CHUNKED + b"5\r\nhello\n0\r\n\r\n"),
    "a bare LF after the last chunk": (400, CHUNKED + b"0\r\nX: y\n\r\n"),
    "a trailer with a space before its colon": (400, CHUNKED + b"0\r\nX : y\r\n\r\n"),
    "gzip": (501, POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n"),
    "chunked, and then gzip": (400, POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n"),
    "chunked twice": (400, POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "no chunk size": (400, CHUNKED + b"\r\n"),
    "a chunk size that is none": (400, CHUNKED + b"0x5\r\nhello\r\n"),
    "a chunk size of many digits": (400, CHUNKED + b"0" * 17 + b"\r\n"),
    "a long extension": (400, CHUNKED + b"5;" + b"x" * 300),
    "a chunk longer than its size": (400, CHUNKED + b"4\r\nhello\r\n"),
    "chunks too long": (413, CHUNKED + b"%x\r\n" % (MAX_BODY + 1)),
    "a trailer that is none": (400, CHUNKED + b"0\r\nno trailer\r\n"),
    "a long trailer": (431, CHUNKED + b"0\r\nX: " + LONG),
    "many trailers": (431, CHUNKED + b"0\r\n" + b"X: y\r\n" * MAX_HEAD),
    "an expectation": (417, POST + b"Content-Length: 5\r\nExpect: a miracle\r\n\r\n"),
    "a long target": (414, b"GET /" + LONG),
    "a long target, whole": (414, b"GET /" + LONG + b" HTTP/1.1\r\nHost: here\r\n\r\n"),
    "a long field": (431, b"GET / HTTP/1.1\r\nHost: here\r\nX: " + LONG),
    "a long field, whole": (431, b"GET / HTTP/1.1\r\nHost: here\r\nX: " + LONG + b"\r\n\r\n"),
    "many fields": (431, b"GET / HTTP/1.1\r\nHost: here\r\n" + b"X: y\r\n" * MAX_HEAD),
    "a long head that is malformed": (431, b"GET / HTTP/1.1\r\nHost : here\r\nX: " + LONG + b"\r\n\r\n"),
}


def in_pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.mark.parametrize("size", [1 << 20, 7, 1])
@pytest.mark.parametrize(("status", "request_"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_answered_once_and_the_connection_is_over(status: int, request_: bytes, size: int) -> None:
    talk = exchange()
    size = max(size, len(request_) // 500)  # of a long one, most pieces make no difference
    got = b"".join(talk.feed(piece) for piece in in_pieces(GET + request_, size))
    first, refusal = answers(got)
    assert (first.status, refusal.status) == (200, status)
    assert refusal.fields["connection"] == "close"
    assert refusal.body.endswith(b"\n")
    assert talk.phase is Phase.OVER
    assert (talk.feed(GET), talk.feed_eof(), talk.too_slow()) == (b"", b"", b"")


HEAD_CHUNKED = b"HEAD / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"
REFUSED_HEADS = {
    "no Host": (400, b"HEAD / HTTP/1.1\r\n\r\n"),
    "malformed": (400, b"HEAD / HTTP/1.1\r\nHost : here\r\n\r\n"),
    "behind an empty line": (400, b"\r\nHEAD / HTTP/1.1\r\n\r\n"),
    "HTTP/2.0": (505, b"HEAD / HTTP/2.0\r\n\r\n"),
    "too long a body": (413, b"HEAD / HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY + 1)),
    "a long field": (431, b"HEAD / HTTP/1.1\r\nHost: here\r\nX: " + LONG),
    "no chunk size": (400, HEAD_CHUNKED + b"x\r\n"),
    "no trailer": (400, HEAD_CHUNKED + b"0\r\nGET \r\n"),
}


@pytest.mark.parametrize("size", [1 << 20, 7, 1])
@pytest.mark.parametrize(("status", "request_"), REFUSED_HEADS.values(), ids=REFUSED_HEADS)
def test_a_refusal_of_a_head_has_no_body(status: int, request_: bytes, size: int) -> None:
    """RFC 9110, 9.3.2.  Another project's parser would take a body for the next response."""
    talk = exchange()
    size = max(size, len(request_) // 500)
    got = b"".join(talk.feed(piece) for piece in in_pieces(GET + request_, size))
    first, refusal = answers(got, "GET", "HEAD")
    assert (first.status, refusal.status) == (200, status)
    assert refusal.fields["content-length"] != "0"
    assert talk.phase is Phase.OVER


@pytest.mark.parametrize("end", [Exchange.feed_eof, Exchange.too_slow])
@pytest.mark.parametrize("request_", [b"HEAD /", HEAD_CHUNKED + b"5\r\nGET "], ids=["its head", "its body"])
def test_an_unfinished_head_request_is_refused_without_a_body(
    request_: bytes, end: Callable[[Exchange], bytes]
) -> None:
    talk = exchange()
    assert talk.feed(request_) == b""
    (refusal,) = answers(end(talk), "HEAD")
    assert refusal.status in {400, 408}


def test_a_body_that_begins_like_a_head_request_makes_none_of_its_own() -> None:
    talk = exchange()
    (refusal,) = answers(talk.feed(CHUNKED + b"HEAD \r\n"))
    assert (refusal.status, refusal.body[-1:]) == (400, b"\n")


def test_what_is_sent_within_the_limits_is_taken() -> None:
    talk = exchange()
    start = b"GET / HTTP/1.1\r\nHost: here\r\nX: "
    assert talk.feed(start + b"y" * (MAX_HEAD - len(start) - 4) + b"\r\n\r\n") == OK
    assert statuses(talk.feed(POST + b"Content-Length: %d\r\n\r\n" % MAX_BODY + bytes(MAX_BODY))) == [405]
    assert statuses(talk.feed(CHUNKED + b"%x\r\n" % MAX_BODY + bytes(MAX_BODY) + b"\r\n0\r\n\r\n")) == [405]


def test_an_empty_line_before_a_request_is_ignored() -> None:
    assert exchange().feed(b"\r\n" + GET + b"\r\n" + GET + b"\r\n") == OK + OK
    talk = exchange()
    for line in (b"\r", b"\n", GET, b"\r\n"):
        talk.feed(line)
    assert talk.phase is Phase.IDLE
    assert statuses(talk.feed(b"\r\n")) == [400]
    assert talk.phase is Phase.OVER


@pytest.mark.parametrize("batch", [GET, GET * 2])
def test_an_empty_line_before_each_request_is_ignored_also_where_it_repeats_the_last_one(batch: bytes) -> None:
    site = Plaintext(lambda: NOW)
    talk = Exchange(site)
    for _ in range(4):
        assert talk.feed(b"\r\n") == b""
        Exchange(site).feed(batch)
        assert talk.feed(GET) == OK
    assert statuses(talk.feed(b"\r\n" + b"\r\n")) == [400]


# --- pieces ---

TALK = (
    GET
    + b"\r\n"
    + POST
    + b"Content-Length: 5\r\n\r\nhello"
    + CHUNKED
    + b"5;x=y\r\nhello\r\n0\r\nX: y\r\n\r\n"
    + b"HEAD /nothing HTTP/1.1\r\nHost: here\r\n\r\n"
    + b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    + GET
)


def test_it_does_not_matter_where_the_pieces_are_cut() -> None:
    whole = exchange().feed(TALK)
    assert statuses(whole, "GET", "POST", "POST", "HEAD") == [200, 405, 405, 404, 200, 200]
    for cut in range(len(TALK)):
        talk = exchange()
        assert talk.feed(TALK[:cut]) + talk.feed(TALK[cut:]) == whole, cut
    for size in range(1, 50):
        talk = exchange()
        assert b"".join(talk.feed(piece) for piece in in_pieces(TALK, size)) == whole, size
        assert talk.phase is Phase.IDLE


TOKEN = st.text("abcXYZ019!#$%&'*+-.^_`|~", min_size=1, max_size=8)
VALUE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=20)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["GET", "HEAD", "POST"]),
            st.sampled_from(["/", "/plaintext", "/nothing"]),
            st.lists(st.tuples(TOKEN.map(lambda name: "X-" + name), VALUE), max_size=5),
            st.none() | st.binary(max_size=50),
            st.booleans(),
        ),
        max_size=6,
    ),
    st.integers(1, 200),
)
def test_what_another_library_sends_is_answered(
    requests: list[tuple[str, str, list[tuple[str, str]], bytes | None, bool]], size: int
) -> None:
    sent = b""
    expected = []
    for method, target, fields, body, chunked in requests:
        framing = [("Transfer-Encoding", "chunked")] if chunked else [("Content-Length", str(len(body or b"")))]
        headers = [("Host", "here"), *fields, *(framing if body is not None else [])]
        writer = h11.Connection(h11.CLIENT)
        sent += writer.send(h11.Request(method=method, target=target, headers=headers)) or b""
        if body:
            sent += writer.send(h11.Data(data=body)) or b""
        sent += writer.send(h11.EndOfMessage()) or b""
        expected.append(404 if target == "/nothing" else 405 if method == "POST" else 200)
    talk = exchange()
    got = b"".join(talk.feed(piece) for piece in in_pieces(sent, size))
    assert statuses(got, *(method for method, *_ in requests)) == expected
    assert talk.phase is Phase.IDLE


@given(st.binary(max_size=200), st.integers(1, 50))
def test_any_bytes_are_taken_without_an_accident(data: bytes, size: int) -> None:
    for start in (b"", b"GET / HTTP/1.1\r\n", POST, CHUNKED):
        talk = exchange()
        for piece in in_pieces(start + data, size):
            talk.feed(piece)
        talk.feed_eof()
        assert talk.phase is Phase.OVER


# --- on a connection ---


async def served(client: Connection, connection: Connection, sent: bytes) -> bytes:
    """Everything that comes back when this is sent, and then nothing more."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(http, connection)
        await client.send(sent)
        await client.send_eof()
        received = await receive_all(client)
        await client.aclose()
    return received


@pytest.mark.slow
async def test_a_client_that_ends_its_side_gets_all_its_answers() -> None:
    client, connection = await open_pair()
    async with client, connection:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send, GET * 5000)
                nursery.start_soon(_serve_and_close, connection)
                received = b""
                while received.count(b"Hello, World!") < 5000:
                    received += await client.receive()
                await client.send_eof()
                assert await receive_all(client) == b""
    assert statuses(received) == [200] * 5000


async def _serve_and_close(connection: Connection) -> None:
    await http(connection)
    await connection.aclose()


async def test_an_unfinished_request_at_the_end_is_refused() -> None:
    client, connection = await open_pair()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_serve_and_close, connection)
            await client.send(GET + b"GET / HT")
            await client.send_eof()
            assert statuses(await receive_all(client)) == [200, 400]
    await client.aclose()


async def test_a_refusal_arrives_whole_whatever_else_the_client_sends() -> None:
    """Were the connection closed with bytes unread, a reset would overtake the answer."""
    client, connection = await open_pair()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_serve_and_close, connection)
            await client.send(b"GET / HTTP/1.1\r\n\r\n" + bytes(1024 * 1024))
            assert statuses(await receive_all(client)) == [400]  # and the end of the stream, without an error
            await client.aclose()


async def test_a_client_that_never_ends_its_side_is_waited_for_a_while(autojump_clock: trio.testing.MockClock) -> None:
    client, connection = await open_pair()
    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_serve_and_close, connection)
        await client.send(GET[:-2] + b"Connection: close\r\n\r\n")
        assert statuses(await receive_all(client)) == [200]
    assert trio.current_time() - begun == pytest.approx(LINGER_SECONDS)
    client.abort()


async def test_a_request_that_takes_too_long_is_told_so(autojump_clock: trio.testing.MockClock) -> None:
    client, connection = await open_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_serve_and_close, connection)
        await client.send(GET)
        await trio.sleep(10 * _http.REQUEST_TIMEOUT)  # between requests there is time
        await client.send(GET + b"GET / ")
        begun = trio.current_time()
        for byte in b"HTTP/1.1\r\nHost:":
            await trio.sleep(1)
            await client.send(bytes([byte]))
        received = await receive_all(client)
        assert trio.current_time() - begun == pytest.approx(_http.REQUEST_TIMEOUT)
        assert statuses(received) == [200, 200, 408]
        await client.aclose()


async def test_a_request_in_time_sets_the_clock_back(autojump_clock: trio.testing.MockClock) -> None:
    client, connection = await open_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_serve_and_close, connection)
        await client.send(GET[:10])
        await trio.sleep(1)
        await client.send(GET[10:])
        await trio.sleep(10 * _http.REQUEST_TIMEOUT)
        await client.send(GET)
        await client.send_eof()
        assert statuses(await receive_all(client)) == [200, 200]
        await client.aclose()


@pytest.mark.parametrize("sent", [b"", GET, b"\r\n", POST + b"Content-Length: 5\r\n\r\nhello"])
async def test_a_silent_client_is_let_go(autojump_clock: trio.testing.MockClock, sent: bytes) -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(lambda **status: gain_trio.serve(http, "tcp://127.0.0.1:0", **status))
        host, port = server.addresses[0]
        async with await gain_trio.connect(f"tcp://{host}:{port}") as client:
            await client.send(sent)
            start = trio.current_time()
            while True:
                try:
                    if not await client.receive():
                        break
                except trio.BrokenResourceError:
                    break
            assert IDLE_TIMEOUT - 1 <= trio.current_time() - start <= IDLE_TIMEOUT + 2
        await until(lambda: server.statistics().idle == 1)
        nursery.cancel_scope.cancel()


async def test_the_servers_own_idle_timeout_comes_first(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            lambda **status: gain_trio.serve(http, "tcp://127.0.0.1:0", idle_timeout=300, **status)
        )
        host, port = server.addresses[0]
        async with await gain_trio.connect(f"tcp://{host}:{port}") as client:
            await trio.sleep(200)
            await client.send(GET)
            assert statuses(await client.receive()) == [200]
        nursery.cancel_scope.cancel()


async def test_over_tls() -> None:
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(_tls_server)
            host, port = server.addresses[0]
            async with await gain_trio.connect(
                f"tcp://{host}:{port}", ssl_context=client_context(), server_hostname="localhost"
            ) as client:
                await client.send(GET + b"GET / HTTP/1.0\r\n\r\n")
                assert statuses(await receive_all(client)) == [200, 200]
            nursery.cancel_scope.cancel()


async def _tls_server(task_status: trio.TaskStatus[gain_trio.Server]) -> None:
    context: ssl.SSLContext = server_context()
    await gain_trio.serve(http, "tcp://127.0.0.1:0", ssl_context=context, task_status=task_status)


def test_every_status_has_a_phrase() -> None:
    for status in (400, 404, 405, 408, 413, 414, 417, 431, 501, 505):
        line = Plaintext(lambda: NOW).refusal(HTTPStatus(status), "x", with_body=True).partition(b"\r\n")[0]
        assert re.fullmatch(rb"HTTP/1\.1 [0-9]{3} [A-Z][A-Za-z -]+", line), line


# --- in memory ---


async def test_a_large_body_in_memory() -> None:
    """A connection without a descriptor is not one that was reset."""
    async with serving(http, strict=True) as server:
        client = server.connect()
        await client.send(POST + b"Content-Length: 20000\r\n\r\n" + bytes(20000))
        assert b"405 Method Not Allowed" in await client.receive_until(b"\r\n\r\n")


async def test_an_answer_is_not_late_because_one_long_ago_had_to_wait(autojump_clock: trio.testing.MockClock) -> None:
    async with serving(http, strict=True) as server:
        client = server.connect()
        client.incoming.room = 0
        await client.send(GET * 200)
        await trio.testing.wait_all_tasks_blocked()
        client.incoming.room = None
        for _ in range(200):
            await client.receive_until(b"Hello, World!")
        await trio.sleep(_http.ANSWER_TIMEOUT + 1)
        client.incoming.room = 10
        await client.send(POST + b"Connection: close\r\nContent-Length: 0\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()
        client.incoming.room = None
        assert b"Connection: close" in await receive_all(client)
        await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert server.server.statistics().finished == 1

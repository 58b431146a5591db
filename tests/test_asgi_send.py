"""The `send` of ASGI apps in C: with any messages the same as in Python, which is the specification."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import pytest
import trio
from support.exchanges import USUAL, Recorder, driven, exchange_over, requested
from support.fuzz import example, examples, given, st

from gain_trio._http import Request
from gain_trio._kernel import heads
from gain_trio.asgi._asgi_types import ClientDisconnected
from gain_trio.asgi._exchange import DONE, EXCHANGE_DEFAULTS, HELD, JOINED, NOTHING, HttpExchange
from gain_trio.asgi._http_connection import HttpConnection
from gain_trio.asgi._response_heads import STATUS_LINES, Stamp

pytestmark = [
    pytest.mark.skipif(heads is None, reason="the compiled modules are not built here"),
    pytest.mark.one_backend,
]

Message = dict[str, Any]


def state_of(exchange: HttpExchange) -> dict[str, object]:
    """All that a later message, or the end of the request, goes by."""
    kept = EXCHANGE_DEFAULTS.keys() - {"headers"}  # Python keeps them in another shape
    if exchange.phase == DONE:
        kept -= {"_left"}
    return {name: getattr(exchange, name) for name in kept}


REQUESTS = [
    (requested(), True),
    (requested(b"HEAD / HTTP/1.1"), False),
    (requested(b"GET / HTTP/1.1", b"Connection: close"), False),
    (requested(b"GET / HTTP/1.0"), False),
]
NAMES = [b"content-type", b"X-Token", b"content-length", b"Content-Length", b"connection", b"Transfer-Encoding"]
NAMES += [b"date", b"Server", b"set-cookie", b"", b"a b", b"x:", b"\xe4", b"x\r\n", b"datf", b"contenT-lengtH"]
VALUES = [
    b"text/plain",
    b"",
    b" \t a b\t",
    b"\xe4",
    b"a\rb",
    b"a\nb",
    b"\0",
    b"\x7f",
    b"close",
    b"chunked",
    b"keep-alive",
]
VALUES += [b"0", b"5", b"05", b"+5", b" 5 ", b"5 5", b"9" * 18, b"9" * 19, b"-5", b"5\n"]
FIELD = st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES))
ODD_FIELD = st.sampled_from([(b"x",), (b"x", "y"), ("x", b"y"), (b"x", b"y", b"z"), b"xy", (bytearray(b"X"), b"y"), 5])
HEADERS = (
    st.lists(FIELD | FIELD.map(list), max_size=4)
    | st.lists(FIELD, max_size=3).map(tuple)
    | st.lists(FIELD | ODD_FIELD, max_size=3)
    | st.sampled_from([None, 5, {b"x": b"y"}, [(b"x", b"y" * 70_000)]])
)
STATUS = st.sampled_from(
    [200, 200, HTTPStatus.OK, 404, 205, 0, 299, 204, 304, 199, 1000, -5, True, "200", 2.5, None, 1 << 70]
)
BODY = st.sampled_from(
    [b"", b"hello", b"x" * (JOINED + 1), bytearray(b"hello"), memoryview(b"hello"), "hello", None, 5]
)
STARTS = st.fixed_dictionaries(
    {"type": st.just("http.response.start")},
    optional={"status": STATUS, "headers": HEADERS, "trailers": st.sampled_from([False, True, 0, None])},
)
BODIES = st.fixed_dictionaries(
    {"type": st.just("http.response.body")},
    optional={"body": BODY, "more_body": st.sampled_from([False, False, True, 0, None])},
)
OTHERS = st.sampled_from(
    [{}, {"type": None}, {"type": 5}, {"type": "x"}, {"type": "http.response.trailers", "headers": []}]
)


@examples(800)
@given(
    st.lists(STARTS | BODIES | BODIES | OTHERS, max_size=4) | st.tuples(STARTS, BODIES).map(list),
    st.sampled_from(REQUESTS),
    st.booleans(),
    st.fixed_dictionaries({"gone": st.booleans(), "date": st.booleans(), "server": st.sampled_from(["", "test"])}),
)
@example(USUAL, REQUESTS[0], False, {})
@example([*USUAL, USUAL[0]], REQUESTS[0], False, {})  # which is ignored, in a turn of its own
def test_messages_are_sent_as_in_python(
    messages: list[Message], asked: tuple[Request, bool], drains: bool, options: dict[str, Any]
) -> None:
    request, usual = asked
    found = []
    for in_python in (False, True):
        connection = Recorder(drains=drains)
        exchange = exchange_over(connection, request, usual=usual, **options)
        send = exchange.send_in_python if in_python else exchange.send
        outcomes = [driven(send(dict(message))) for message in messages]
        found.append((outcomes, connection.sent, state_of(exchange)))
    assert found[0] == found[1]


@pytest.mark.parametrize("status", sorted({*STATUS_LINES, 204, 304, 299}))
def test_each_status_has_the_head_that_python_gives_it(status: int) -> None:
    sent = []
    for in_python in (False, True):
        connection = Recorder()
        exchange = exchange_over(connection)
        send = exchange.send_in_python if in_python else exchange.send
        for message in ({"type": "http.response.start", "status": status}, {"type": "http.response.body"}):
            assert driven(send(message)) == ("returned", "None")
        sent.append(connection.sent)
    assert sent[0] == sent[1]


def refuse(_message: Message) -> Any:
    raise AssertionError("the usual response was left to Python")


def test_the_usual_response_is_written_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    # A test that imports the package anew has its classes taken for those of send().
    heads.configure(HttpExchange, HttpConnection, Stamp, EXCHANGE_DEFAULTS, STATUS_LINES, (NOTHING, HELD, DONE), JOINED)
    monkeypatch.setattr(HttpExchange, "send_in_python", lambda _self, message: refuse(message))
    connection = Recorder()
    exchange = exchange_over(connection)
    fields = [(b"Content-Type", b" text/plain"), [b"content-length", b"5"], (b"server", b"mine")]
    assert driven(exchange.send({"type": "http.response.start", "status": 200, "headers": fields}))[0] == "returned"
    assert connection.sent == b""
    assert driven(exchange.send({"type": "http.response.body", "body": b"hello"}))[0] == "returned"
    assert connection.sent == (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 5\r\nserver: mine\r\n"
        b"date: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\nhello"
    )
    assert exchange.phase == DONE
    assert exchange.size == 5


def test_date_and_deadlines_are_renewed_on_the_way() -> None:
    now = 5.0
    connection = Recorder()
    for _ in range(2):
        exchange = exchange_over(connection, clock=lambda: now)
        for message in USUAL:
            assert driven(exchange.send(message))[0] == "returned"
        assert exchange.http.renew_at == now + 1.0
        assert exchange.http.stamp.until == now + 0.75
        assert connection.write_deadline == now + exchange.http.config.timeout_send + 1.0
        now = 7


@pytest.mark.parametrize("error", [trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError])
def test_a_client_that_is_gone_is_an_oserror_with_its_cause(error: type[Exception]) -> None:
    cause = error("x")
    exchange = exchange_over(Recorder(failure=cause))
    assert driven(exchange.send(USUAL[0]))[0] == "returned"
    with pytest.raises(ClientDisconnected) as caught:
        exchange.send(USUAL[1]).send(None)
    assert caught.value.__cause__ is cause
    assert exchange.is_incomplete
    assert exchange.is_told_gone
    assert exchange.http.is_gone


def test_a_send_that_another_one_keeps_from_beginning_leaves_the_response_whole() -> None:
    exchange = exchange_over(Recorder(failure=trio.BusyResourceError("x")))
    assert driven(exchange.send(USUAL[0]))[0] == "returned"
    assert driven(exchange.send(USUAL[1])) == ("BusyResourceError", "x")
    assert not exchange.is_incomplete


def test_a_clock_that_fails_fails_the_call() -> None:
    def fail() -> float:
        raise LookupError("no time")

    connection = Recorder()
    exchange = exchange_over(connection, clock=fail)
    assert driven(exchange.send(USUAL[0]))[0] == "returned"
    assert driven(exchange.send(USUAL[1])) == ("LookupError", "no time")
    assert connection.sent == b""
    assert exchange.phase == HELD


async def test_a_response_that_is_cancelled_is_incomplete() -> None:
    connection = Recorder()
    connection.block = trio.Event()
    exchange = exchange_over(connection)
    await exchange.send(USUAL[0])
    with trio.CancelScope() as scope:
        scope.cancel()
        await exchange.send(USUAL[1])
    assert scope.cancelled_caught
    assert exchange.is_incomplete
    assert connection.sent == b""


def test_configuring_refuses_classes_without_the_slots() -> None:
    class Other:
        pass

    given_: tuple[Any, ...] = (EXCHANGE_DEFAULTS, STATUS_LINES, (NOTHING, HELD, DONE), JOINED)
    try:
        with pytest.raises(TypeError, match="has no slot connection"):
            heads.configure(HttpExchange, Other, Stamp, *given_)
        exchange = exchange_over(Recorder())  # by name, and Python sends
        assert [driven(exchange.send(message))[0] for message in USUAL] == ["returned"] * 2
        with pytest.raises(ValueError, match="three digits"):
            heads.configure(HttpExchange, HttpConnection, Stamp, EXCHANGE_DEFAULTS, {1000: b""}, *given_[2:])
    finally:
        heads.configure(HttpExchange, HttpConnection, Stamp, *given_)

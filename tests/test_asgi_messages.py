"""gain_trio.asgi: messages that make no sense, come too late, or come from several tasks at a time."""

from __future__ import annotations

import http
from pathlib import Path
from typing import Any

import pytest
import trio
from support.asgi_serving import (
    BODY,
    PIECE,
    TEXT,
    ask,
    client_of,
    closing,
    head_of_response,
    hello,
    raw_answer,
    request,
    serving_app,
    tracebacks,
)
from support.http_answers import answers
from support.pairs import receive_all, until
from trio.testing import wait_all_tasks_blocked

from gain_trio import Marks
from gain_trio.asgi import ClientDisconnected

pytestmark = pytest.mark.connections


def start(status: Any = 200, headers: Any = ()) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": headers}


# --- the start of a response ---


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (start(headers=[("x", b"y")]), TypeError),
        (start(headers=[(b"x", "y")]), TypeError),
        (start(headers=[(b"x", None)]), TypeError),
        (start(headers=[[b"x", b"y\r\nz: 1"]]), ValueError),
        (start(headers=[(b"x y", b"z")]), ValueError),
        (start(headers=[(b":status", b"200")]), ValueError),
        (start(headers=[(b"x",)]), ValueError),
        (start(headers=5), TypeError),
        (start(headers=[(b"content-length", b"5")] * 2), ValueError),
        (start(headers=[(b"content-length", b"-5")]), ValueError),
        (start(status="200"), ValueError),
        (start(status=200.0), ValueError),
        (start(status=101), ValueError),
        ({"type": "http.response.start"}, KeyError),
    ],
)
async def test_a_start_that_makes_no_sense_is_refused_at_once(message: Any, error: type[Exception]) -> None:
    refused = 0

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        nonlocal refused
        with pytest.raises(error):
            await send(message)
        refused += 1
        await send(TEXT)
        await send(BODY)

    async with serving_app(app) as server:
        got = await ask(server, request() + closing())
    assert [answer.status for answer in got] == [200, 200]
    assert refused == 2


async def test_fields_are_those_that_the_app_had_when_it_sent_them() -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        headers = [[b"x-name", b"then"]]
        await send(start(headers=headers))
        headers[0][1] = b"now"
        headers.append([b"x-more", b"now"])
        await send(BODY)

    async with serving_app(app) as server:
        for answer in await ask(server, request() + closing()):
            assert answer.fields["x-name"] == "then"
            assert "x-more" not in answer.fields


async def test_a_status_of_an_enumeration_is_a_status() -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send(start(http.HTTPStatus.CREATED))
        await send(BODY)

    async with serving_app(app) as server:
        received = await raw_answer(server, request() + closing())
    assert received.count(b"HTTP/1.1 201 Created\r\n") == 2


@pytest.mark.parametrize("coding", [b"chunked", b"gzip, chunked", b"identity"])
@pytest.mark.parametrize("length", [b"", b"13"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_the_transfer_encoding_is_the_servers(coding: bytes, length: bytes, version: str) -> None:
    fields = [(b"Transfer-Encoding", coding), (b"content-length", length)][: 2 if length else 1]

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send(start(headers=fields))
        await send(BODY)

    async with serving_app(app) as server:
        [answer] = await ask(server, request("GET", "/", "Connection: close", version=version))
    in_chunks = version == "1.1" and not length and coding == b"chunked"
    assert answer.body == b"Hello, World!"
    assert answer.fields.get("transfer-encoding") == ("chunked" if in_chunks else None)


@pytest.mark.parametrize("status", [204, 205, 304])
@pytest.mark.parametrize("in_pieces", [False, True])
async def test_the_body_of_a_status_without_one_is_left_out(status: int, in_pieces: bool, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"null")

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        await send(start(status, [(b"content-length", b"4")] if scope["path"] == "/length" else []))
        if scope["path"] == "/file":
            await send({"type": "http.response.pathsend", "path": str(tmp_path / "file")})
        else:
            await send({"type": "http.response.body", "body": b"null", "more_body": in_pieces})
            if in_pieces:
                await send({"type": "http.response.body"})

    async with serving_app(app) as server:
        sent = request() * 2 + request("GET", "/length") + request("GET", "/file") + closing()
        received = await raw_answer(server, sent)
    got = answers(received)
    assert [answer.status for answer in got] == [status] * 5
    assert b"null" not in received
    if status == 205:  # a client that does not know it reads a body, RFC 9112, 6.3
        assert [answer.fields["content-length"] for answer in got] == ["0"] * 5
    assert b"transfer-encoding" not in received


# --- after the response ---


@pytest.mark.parametrize(
    "message",
    [
        TEXT,
        BODY,
        PIECE,
        {"type": "http.response.trailers", "headers": []},
        {"type": "http.response.early_hint", "links": []},
        {"type": "http.response.pathsend", "path": "/dev/null"},
    ],
)
async def test_a_message_after_the_response_is_ignored(message: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await hello(scope, receive, send)
        await send(message)

    async with serving_app(app) as server:
        got = await ask(server, request() + closing())
    assert [(answer.status, answer.body) for answer in got] == [(200, b"Hello, World!")] * 2
    assert not tracebacks(caplog)


async def test_an_app_that_sends_on_and_on_stops_no_other_task() -> None:
    is_over = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await hello(scope, receive, send)
        while not is_over.is_set():
            await send(BODY)

    async with serving_app(app) as server:
        async with client_of(server) as client:
            await client.send(request())
            await head_of_response(client)
        is_over.set()


async def test_a_message_that_is_none_is_an_error_after_the_response_too(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await hello(scope, receive, send)
        await send({"type": "http.response.push", "path": "/"})

    async with serving_app(app) as server:
        [answer] = await ask(server, request())
        assert answer.status == 200
        await until(lambda: server.statistics().handler_errors == 1)
    assert "after the response is complete" in str(tracebacks(caplog)[0].exc_info)


async def test_a_body_is_not_received_after_the_response() -> None:
    told: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await hello(scope, receive, send)
        told.extend([await receive(), await receive()])

    async with serving_app(app) as server:
        got = await ask(server, request("POST", "/", "Content-Length: 2", body=b"hi") + closing(), "POST")
    assert [answer.status for answer in got] == [200, 200]
    assert told == [{"type": "http.disconnect"}] * 4


async def test_every_message_to_a_client_that_is_gone_raises_an_os_error(caplog: pytest.LogCaptureFixture) -> None:
    raised = 0

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        nonlocal raised
        while (await receive())["type"] != "http.disconnect":
            pass
        for message in (TEXT, BODY, PIECE, TEXT, {"type": "http.response.early_hint", "links": []}):
            with pytest.raises(ClientDisconnected):
                await send(message)
            raised += 1
        with pytest.raises(RuntimeError, match="nonsense"):
            await send({"type": "nonsense"})
        raised += 1

    async with serving_app(app) as server:
        async with client_of(server) as client:
            await client.send(request())
            await client.flush()
            await client.aclose()
        await until(lambda: raised == 6)
        await until(lambda: not server.active_connections)
    assert not tracebacks(caplog)


# --- several tasks ---


@pytest.mark.parametrize("options", [{}, {"cancel_on_disconnect": True}], ids=str)
async def test_several_tasks_may_send(options: Any) -> None:
    """The client reads when all of them wait: the connection's outbound queue is full."""
    tasks, pieces = 5, 20

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        async def send_pieces(letter: bytes) -> None:
            for _ in range(pieces):
                await send({"type": "http.response.body", "body": letter * 10_000, "more_body": True})

        await send(TEXT)
        async with trio.open_nursery() as nursery:
            for number in range(tasks):
                nursery.start_soon(send_pieces, b"%d" % number)
        await send({"type": "http.response.body"})

    marks = Marks(receive_high=4096, receive_low=1024, send_high=20_000)
    async with serving_app(app, marks=marks, **options) as server, client_of(server, marks=marks) as client:
        await client.send(closing())
        await wait_all_tasks_blocked()
        [answer] = answers(await receive_all(client))
    assert len(answer.body) == tasks * pieces * 10_000
    for number in range(tasks):
        assert answer.body.count(b"%d" % number * 10_000) == pieces


async def test_a_piece_that_was_not_sent_cuts_the_response() -> None:
    """A task is cancelled before its turn: what it would have sent is missing."""
    many = b"x" * 10_000_000

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send(TEXT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, {"type": "http.response.body", "body": many, "more_body": True})
            await wait_all_tasks_blocked()
            with trio.CancelScope() as scope:
                scope.cancel()
                await send(PIECE)
            assert scope.cancelled_caught
            reads.set()
        await send({"type": "http.response.body"})

    reads = trio.Event()
    async with serving_app(app) as server, client_of(server) as client:
        await client.send(closing())
        await reads.wait()
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(client)


async def test_nothing_is_sent_in_the_middle_of_a_file(tmp_path: Path) -> None:
    size = 10_000_000
    (tmp_path / "file").write_bytes(b"x" * size)

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send(TEXT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, {"type": "http.response.pathsend", "path": str(tmp_path / "file")})
            await client_has_head.wait()
            with pytest.raises(RuntimeError, match="while a file is sent"):
                await send(PIECE)
            reads.set()

    client_has_head, reads = trio.Event(), trio.Event()
    async with serving_app(app) as server, client_of(server) as client:
        await client.send(closing())
        await head_of_response(client)
        client_has_head.set()
        await reads.wait()
        assert await receive_all(client) == b"x" * size


@pytest.mark.parametrize("options", [{}, {"cancel_on_disconnect": True}], ids=str)
@pytest.mark.parametrize("goes", [False, True])
async def test_several_tasks_may_wait_for_the_end(options: Any, goes: bool, caplog: pytest.LogCaptureFixture) -> None:
    """As an event stream does: one task waits for the client to go, and another one looks before each event."""
    told: list[str] = []
    waiting = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()

        async def watch() -> None:
            told.append((await receive())["type"])

        async def cancel(scope: trio.CancelScope) -> None:
            await wait_all_tasks_blocked()
            scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(watch)
            with trio.CancelScope() as first:
                nursery.start_soon(cancel, first)
                await receive()
            await wait_all_tasks_blocked()
            with trio.CancelScope() as look:
                look.cancel()
                await receive()
            assert first.cancelled_caught
            assert look.cancelled_caught
            waiting.set()
            if not goes:
                await hello(scope, receive, send)

    async with serving_app(app, **options) as server, client_of(server) as client:
        await client.send(request())
        await waiting.wait()
        if goes:
            client.abort()
            await until(lambda: not server.active_connections)
        else:
            await client.send(closing())
            await receive_all(client)
    assert told == ["http.disconnect"] * (3 if goes else 6)
    assert not tracebacks(caplog)

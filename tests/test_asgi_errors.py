"""gain_trio.asgi: errors of apps, before, in and after the response."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from support.asgi_serving import (
    BODY,
    FEW,
    PIECE,
    TEXT,
    Broken,
    ask,
    client_of,
    fails_at_once,
    head_of_response,
    hello,
    receive_hello,
    request,
    serving_app,
    tracebacks,
)
from support.certificates import client_context, server_context
from support.http_answers import answers
from support.pairs import MEBIBYTE, QUIET, open_pair, receive_all, until

import gain_trio
from gain_trio import IncompleteMessage, Marks, MessageTooLong
from gain_trio._server import only_one_of
from gain_trio.asgi import AsgiConfig
from gain_trio.asgi._asgi_handler import AsgiHandler

pytestmark = pytest.mark.connections


async def fails_after_the_start(_scope: Any, _receive: Any, send: Any) -> None:
    await send(TEXT)
    raise Broken("after the start")


async def returns_nothing(_scope: Any, _receive: Any, _send: Any) -> None:
    return


async def sends_no_body(_scope: Any, _receive: Any, send: Any) -> None:
    await send(TEXT)


async def sends_a_body_first(_scope: Any, _receive: Any, send: Any) -> None:
    await send(BODY)


async def starts_twice(_scope: Any, _receive: Any, send: Any) -> None:
    await send(TEXT)
    await send(TEXT)


async def sends_nonsense(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "websocket.send"})


async def splits_the_response(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y\r\nz: 1")]})
    await send(BODY)


async def has_a_bad_name(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x y", b"z")]})
    await send(BODY)


async def has_text_for_bytes(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [("x", "y")]})
    await send(BODY)


async def has_two_lengths(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"13")] * 2})
    await send(BODY)


async def has_a_body_of_text(_scope: Any, _receive: Any, send: Any) -> None:
    await send(TEXT)
    await send({"type": "http.response.body", "body": "text"})


async def has_a_status_that_is_none(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 99, "headers": []})
    await send(BODY)


async def has_a_body_that_is_too_long(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send(BODY)


async def has_a_body_that_is_too_short(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"50")]})
    await send(BODY)


@pytest.mark.parametrize(
    "app",
    [
        fails_at_once,
        fails_after_the_start,
        returns_nothing,
        sends_no_body,
        sends_a_body_first,
        starts_twice,
        sends_nonsense,
        splits_the_response,
        has_a_bad_name,
        has_text_for_bytes,
        has_two_lengths,
        has_a_body_of_text,
        has_a_status_that_is_none,
        has_a_body_that_is_too_long,
        has_a_body_that_is_too_short,
    ],
)
async def test_an_error_before_anything_was_sent_is_a_500(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with serving_app(app) as server:
        for _ in range(2):
            [answer] = await ask(server, request() + request())
            assert (answer.status, answer.fields["connection"]) == (500, "close")
        await until(lambda: server.statistics().handler_errors == 2)
    assert len(tracebacks(caplog)) == 2
    assert app.__qualname__ in tracebacks(caplog)[0].getMessage()
    assert tracebacks(caplog)[0].exc_info


@pytest.mark.parametrize("watched", [True, False])
async def test_an_error_is_a_500_for_a_client_that_has_ended_its_side(watched: bool) -> None:
    fails = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/fails":
            raise Broken
        await hello(scope, receive, send)
        await fails.wait()
        if not watched:
            await receive()
            with trio.CancelScope() as cancelled:
                cancelled.cancel()
                await receive()

    async with serving_app(app, cancel_on_disconnect=watched) as server, client_of(server) as client:
        await client.send(request("POST", "/", "Content-Length: 2", body=b"ok") + request("GET", "/fails"))
        await client.send_eof()
        await receive_hello(client)
        await trio.testing.wait_all_tasks_blocked()
        fails.set()
        [answer] = answers(await receive_all(client))
        assert answer.status == 500
        await until(lambda: server.statistics().handler_errors == 1)


@pytest.mark.parametrize("too_long", [True, False])
async def test_an_error_in_the_body_cuts_the_response(too_long: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"1500")] if too_long else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send(PIECE)
        if too_long:
            await send(PIECE)
        raise Broken

    async with serving_app(app) as server, client_of(server) as client:
        await client.send(request())
        received = b""
        with pytest.raises(trio.BrokenResourceError):
            while True:
                received += await client.receive()
        # What the app has sent arrives, in front of the reset.
        assert received.startswith(b"HTTP/1.1 200 ")
        assert received.count(b"x" * 1000) == 1
        await until(lambda: server.statistics().handler_errors == 1)
    assert len(tracebacks(caplog)) == 1


async def test_an_error_cuts_the_response_of_a_client_that_does_not_read(mock_clock: trio.testing.MockClock) -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send(TEXT)
        await send({"type": "http.response.body", "body": bytes(24 * MEBIBYTE), "more_body": True})
        raise Broken

    room = Marks(send_high=32 * MEBIBYTE)  # so that the app's send() does not wait
    async with serving_app(app, marks=room, timeout_send=10, patience=1000) as server:
        async with client_of(server, marks=FEW) as client:
            await client.send(request())
            assert await client.receive()
            while not server.statistics().handler_errors:
                await trio.testing.wait_all_tasks_blocked(QUIET)
                mock_clock.jump(1)
            assert 10 <= mock_clock.current_time() < 20


@pytest.mark.parametrize("tls", [False, True])
async def test_a_response_that_an_error_follows_arrives_at_a_slow_client(
    mock_clock: trio.testing.MockClock, tls: bool
) -> None:
    size = 24 * MEBIBYTE

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
        await send({"type": "http.response.body", "body": bytes(size)})
        raise Broken

    room = Marks(send_high=32 * MEBIBYTE)  # so that the app's send() does not wait
    options: Any = {"ssl_context": server_context()} if tls else {}
    own: Any = {"ssl_context": client_context(), "server_hostname": "localhost"} if tls else {}
    async with serving_app(app, marks=room, patience=1000, **options) as server:
        client = await gain_trio.connect(f"tcp://127.0.0.1:{server.addresses[0][1]}", marks=FEW, **own)
        try:
            await client.send(request())
            received = len(await client.receive())
            await trio.testing.wait_all_tasks_blocked(QUIET)
            mock_clock.jump(5)
            await trio.testing.wait_all_tasks_blocked(QUIET)
            while received < size:
                data = await client.receive()
                assert data, f"the end after {received} bytes"
                received += len(data)
        finally:
            client.abort()


async def test_a_response_that_an_error_follows_arrives_though_the_body_is_unread() -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await hello(_scope, _receive, send)
        raise Broken

    body = bytes(2_000_000)
    async with serving_app(app) as server, client_of(server) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, request("POST", "/", f"Content-Length: {len(body)}", body=body))
            [answer] = answers(await receive_all(client))
        assert (answer.status, answer.body) == (200, b"Hello, World!")
        await client.aclose()
        await until(lambda: server.statistics().handler_errors == 1)


async def test_an_error_after_the_response_leaves_the_response_whole(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await hello(scope, receive, send)
        raise Broken("in the background")

    async with serving_app(app) as server:
        [answer] = await ask(server, request() + request())
        assert (answer.status, answer.body) == (200, b"Hello, World!")
        await until(lambda: server.statistics().handler_errors == 1)
    assert len(tracebacks(caplog)) == 1


async def test_an_error_is_logged_though_the_server_is_cancelled_during_its_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving_app(fails_at_once) as server:
        client = await gain_trio.connect(f"tcp://127.0.0.1:{server.addresses[0][1]}")
        await client.send(request())
        await head_of_response(client)  # and the server waits for its end
    client.abort()
    [record] = tracebacks(caplog)
    assert isinstance(causes_of(record)[-1], Broken)


async def test_a_cancellation_during_the_answer_to_an_error_is_delivered_behind_it() -> None:
    handler = AsgiHandler(fails_at_once, AsgiConfig(app_lifespan="off"))
    client, connection = await open_pair()

    async def cancel(scope: trio.CancelScope) -> None:
        await client.send(request())
        await head_of_response(client)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(cancel, scope)
            with pytest.raises(Broken):
                await handler(connection)
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    client.abort()
    connection.abort()


DATABASE: dict[str, Callable[[], Exception]] = {
    "slow": trio.TooSlowError,
    "broken": lambda: trio.BrokenResourceError("the database"),
    "incomplete": lambda: IncompleteMessage(3, 9),
    "too long": lambda: MessageTooLong(9),
}
"""What a connection of the app's own raises."""


@pytest.mark.parametrize("has_answered", [False, True])
@pytest.mark.parametrize("options", [{}, {"cancel_on_disconnect": True}, {"task_per_request": True}], ids=str)
@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("make", DATABASE)
async def test_what_breaks_inside_the_app_is_not_the_clients_fault(
    make: str, group: bool, options: Any, has_answered: bool, caplog: pytest.LogCaptureFixture
) -> None:
    error = DATABASE[make]()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if has_answered:
            await hello(scope, receive, send)
        if not group:
            raise error
        async with trio.open_nursery():
            raise error

    async with serving_app(app, **options) as server:
        [answer] = await ask(server, request())
        assert answer.status == (200 if has_answered else 500)
        await until(lambda: server.statistics().handler_errors == 1)
        statistics = server.statistics()
        assert (statistics.broken, statistics.too_slow) == (0, 0)
    [record] = tracebacks(caplog)
    assert "the app has failed with" in str(record.exc_info)
    assert error in causes_of(record)


def causes_of(record: logging.LogRecord) -> list[BaseException]:
    """The exception of a record, and what it is from."""
    assert record.exc_info
    found, error = [], record.exc_info[1]
    while error is not None:
        error = only_one_of(error)
        found.append(error)
        error = error.__cause__
    return found


async def test_strict_lets_such_an_error_end_the_server_too() -> None:
    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        raise trio.TooSlowError

    with pytest.raises(BaseException) as caught:
        async with serving_app(app, strict=True) as server:
            await ask(server, request())
            await trio.sleep_forever()
    assert caught.group_contains(RuntimeError, match="the app has failed with")  # type: ignore[attr-defined]


async def test_strict_lets_an_error_end_the_server() -> None:
    with pytest.raises(BaseException) as caught:
        async with serving_app(fails_at_once, strict=True) as server:
            await ask(server, request())
            await trio.sleep_forever()
    assert caught.group_contains(Broken, match="at once")  # type: ignore[attr-defined]

"""gain_trio.asgi: each wait has its own limit of time, whatever else the connection does meanwhile."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from support.asgi_serving import (
    BODY,
    FEW,
    TEXT,
    client_of,
    closing,
    head_of_response,
    hello,
    receive_hello,
    request,
    serving_app,
)
from support.http_answers import answers
from support.pairs import receive_all, until

import gain_trio
import gain_trio.testing
from gain_trio import Connection, Server
from gain_trio.asgi import AsgiConfig, ClientDisconnected
from gain_trio.asgi._asgi_handler import AsgiHandler

pytestmark = pytest.mark.connections

PIECE = {"type": "http.response.body", "body": b"x", "more_body": True}


async def sleep_until_cancelled(begun: trio.Event, cancelled: trio.Event) -> None:
    """What an app does that its client's going is to cancel."""
    begun.set()
    try:
        await trio.sleep_forever()
    finally:
        cancelled.set()


async def pass_time(mock_clock: trio.testing.MockClock, seconds: float) -> None:
    await trio.testing.wait_all_tasks_blocked(0.01)
    mock_clock.jump(seconds)
    await trio.testing.wait_all_tasks_blocked(0.01)


async def send_in_pieces(server: Server, client: Connection) -> None:
    before = server.statistics().bytes_received
    whole = request()
    await client.send(whole[:20])
    await until(lambda: server.statistics().bytes_received == before + 20)
    await trio.testing.wait_all_tasks_blocked()
    await client.send(whole[20:])
    await receive_hello(client)


# --- a head in pieces ---


async def test_a_connection_is_idle_after_a_head_in_pieces(mock_clock: trio.testing.MockClock) -> None:
    async with serving_app(hello, timeout_keep_alive=5, timeout_head=20) as server, client_of(server) as client:
        await send_in_pieces(server, client)
        await pass_time(mock_clock, 6.1)
        assert await receive_all(client) == b""
        await until(lambda: not server.active_connections)
        assert server.statistics().finished == 1


async def test_a_drain_ends_a_connection_after_a_head_in_pieces() -> None:
    async with serving_app(hello) as server, client_of(server) as client:
        await send_in_pieces(server, client)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.drain, math.inf)
            assert await receive_all(client) == b""
            await client.aclose()


async def test_a_client_may_go_after_a_head_in_pieces() -> None:
    async with serving_app(hello) as server, client_of(server) as client:
        await send_in_pieces(server, client)
        await client.send_eof()
        assert await receive_all(client) == b""


# --- the client is watched ---


@pytest.mark.parametrize("behind", [False, True])
async def test_a_watched_client_may_be_silent_while_the_app_sends(
    mock_clock: trio.testing.MockClock, behind: bool
) -> None:
    begun, goes_on = trio.Event(), trio.Event()

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await trio.testing.wait_all_tasks_blocked()  # the watch has begun
        await send(TEXT)
        if not behind:
            await send(PIECE)
        else:
            await send(BODY)
        begun.set()
        await goes_on.wait()
        if not behind:
            await send(BODY)

    options = {"cancel_on_disconnect": True, "timeout_keep_alive": 5, "patience": math.inf}
    async with serving_app(app, **options) as server, client_of(server) as client:
        await client.send(request())
        await begun.wait()
        await pass_time(mock_clock, 60)
        goes_on.set()
        await client.send(request("GET", "/", "Connection: close"))
        assert len(answers(await receive_all(client))) == 2
        await client.aclose()
        await until(lambda: not server.active_connections)
        assert server.statistics().handler_errors == 0


async def test_a_watched_client_that_goes_after_a_large_body_is_gone() -> None:
    begun, cancelled = trio.Event(), trio.Event()

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        message = await receive()
        size = len(message["body"])
        while message["more_body"]:
            message = await receive()
            size += len(message["body"])
        assert size == 5000
        await sleep_until_cancelled(begun, cancelled)

    async with serving_app(app, cancel_on_disconnect=True, limit_ahead=1000) as server:
        async with client_of(server) as client:
            await client.send(request("POST", "/", "Content-Length: 5000", body=bytes(5000)))
            await begun.wait()
            await trio.testing.wait_all_tasks_blocked()
        await cancelled.wait()


async def test_a_watch_goes_on_when_a_waiting_body_is_taken_at_once() -> None:
    """The watch has stopped before the app asks for the body, which it then gets whole."""
    asks, begun, cancelled = trio.Event(), trio.Event(), trio.Event()

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        await asks.wait()
        message = await receive()
        assert (len(message["body"]), message["more_body"]) == (5000, False)
        await sleep_until_cancelled(begun, cancelled)

    async with serving_app(app, cancel_on_disconnect=True, limit_ahead=1000) as server:
        async with client_of(server) as client:
            await client.send(request("POST", "/", "Content-Length: 5000", body=bytes(5000)))
            await until(lambda: server.statistics().bytes_received > 5000)
            await trio.testing.wait_all_tasks_blocked()
            asks.set()
            await begun.wait()
        await cancelled.wait()


# --- the app sends while it receives ---


async def test_sending_does_not_hurry_the_body(mock_clock: trio.testing.MockClock) -> None:
    got: list[bytes] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        async def receive_the_rest() -> None:
            got.append((await receive())["body"])

        got.append((await receive())["body"])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive_the_rest)
            await trio.testing.wait_all_tasks_blocked()
            await send(TEXT)
            await send(PIECE)
        await send(BODY)

    async with serving_app(app, timeout_body=30, timeout_keep_alive=5) as server, client_of(server) as client:
        await client.send(request("POST", "/", "Content-Length: 10", "Connection: close", body=b"hello"))
        await head_of_response(client)
        await pass_time(mock_clock, 7)
        await client.send(b"world")
        assert (await receive_all(client)).endswith(b"Hello, World!\r\n0\r\n\r\n")
    assert got == [b"hello", b"world"]


async def test_sending_does_not_put_the_limit_of_the_body_off(mock_clock: trio.testing.MockClock) -> None:
    told: list[str] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        async def receive_the_rest() -> None:
            told.append((await receive())["type"])
            nursery.cancel_scope.cancel()

        await receive()
        await send(TEXT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive_the_rest)
            while True:
                await send(PIECE)
                await trio.sleep(1)

    async with serving_app(app, timeout_body=10, timeout_keep_alive=5) as server, client_of(server) as client:
        await client.send(request("POST", "/", "Content-Length: 10", body=b"hello"))
        await head_of_response(client)
        for _ in range(11):
            await pass_time(mock_clock, 1.01)
        assert told == ["http.disconnect"]


async def test_a_second_receive_does_not_touch_the_first() -> None:
    errors: list[BaseException] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            try:
                await receive()
            except trio.BusyResourceError as error:
                errors.append(error)
            await client.send(b"0123456789")
        await hello(_scope, receive, send)

    async with serving_app(app) as server, client_of(server) as client:
        await client.send(request("POST", "/", "Content-Length: 10"))
        await receive_hello(client)
    assert len(errors) == 1


# --- the wait for the next request ---


@pytest.mark.parametrize("kind", ["behind", "in"])
async def test_the_wait_for_a_request_begins_when_the_app_is_done(
    mock_clock: trio.testing.MockClock, kind: str
) -> None:
    begun, goes_on = trio.Event(), trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if kind == "behind":
            await hello(scope, receive, send)
        begun.set()
        await goes_on.wait()
        if kind == "in":
            await hello(scope, receive, send)

    async with serving_app(app, timeout_keep_alive=5, patience=math.inf) as server, client_of(server) as client:
        await client.send(request())
        await begun.wait()
        await pass_time(mock_clock, 60)
        goes_on.set()
        await receive_hello(client)
        await pass_time(mock_clock, 4.9)
        assert server.active_connections == 1
        await client.send(request())
        await receive_hello(client)
        await pass_time(mock_clock, 6.1)
        assert await receive_all(client) == b""


# --- files ---


async def test_a_client_that_does_not_read_a_file_is_reset(tmp_path: Path) -> None:
    errors: list[BaseException] = []
    with (tmp_path / "file").open("wb") as file:
        file.truncate(100_000_000)

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send(TEXT)
        try:
            await send({"type": "http.response.pathsend", "path": str(tmp_path / "file")})
        except ClientDisconnected as error:
            errors.append(error)
            raise

    async with serving_app(app, timeout_send=0.2) as server, client_of(server, marks=FEW) as client:
        await client.send(request())
        await until(lambda: bool(errors))
    assert str(errors[0]) == "the client reads too slowly"


@pytest.mark.parametrize("kind", ["file", "body"])
async def test_a_client_that_reads_slowly_gets_all_of_it(
    kind: str, tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    size = 30_000_000
    with (tmp_path / "file").open("wb") as file:
        file.truncate(size)

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send(TEXT)
        if kind == "file":
            await send({"type": "http.response.pathsend", "path": str(tmp_path / "file")})
        else:
            await send({"type": "http.response.body", "body": bytes(size)})

    serving = serving_app(app, timeout_send=60, timeout_keep_alive=5, patience=math.inf)
    async with serving as server, client_of(server, marks=FEW) as client:
        await client.send(closing())
        await head_of_response(client)
        received = 0
        for _ in range(10):
            await pass_time(mock_clock, 15)
            received += len(await client.receive_exactly(size // 10))
        assert received == size
        assert await receive_all(client) == b""


async def test_a_body_that_moves_is_not_cut_off_with_small_marks_either(autojump_clock: trio.testing.MockClock) -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send(TEXT)
        await send({"type": "http.response.body", "body": bytes(100_000)})

    handler = AsgiHandler(app, AsgiConfig(timeout_send=60, app_lifespan="off"))
    marks = gain_trio.Marks(send_high=4096)
    async with gain_trio.testing.serving(handler, marks=marks, strict=True) as server:
        client = server.connect()
        client.incoming.room = 0
        await client.send(closing())
        for _ in range(8):
            await trio.sleep(15)
            client.incoming.room = 10_000
        client.incoming.room = None
        assert len(await receive_all(client)) > 100_000


async def test_an_app_that_asks_on_and_on_stops_no_other_task() -> None:
    is_over = False

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await hello(_scope, receive, send)
        while not is_over:
            await receive()

    async with serving_app(app) as server, client_of(server) as client:
        await client.send(request())
        await receive_hello(client)
        is_over = True
        await client.send(request())
        await receive_hello(client)


async def test_an_app_that_asks_for_ever_can_be_cancelled() -> None:
    asked: list[str] = []

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        while True:
            asked.append((await receive())["type"])

    async with serving_app(app) as server:
        async with client_of(server) as client:
            await client.send(request())
            await until(lambda: asked == ["http.request"])
        await until(lambda: asked.count("http.disconnect") > 10)

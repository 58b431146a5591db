"""gain_trio.testing.serving_app: ASGI apps in memory, by HTTP and WebSockets byte for byte."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import trio
from support.asgi_serving import BODY, PIECE, TEXT, Broken, fails_at_once, hello, tracebacks
from support.certificates import client_context, server_context
from support.descriptors import open_descriptors
from support.http_answers import answers
from support.pairs import receive_all
from support.websocket_frames import CLOSE, closing, frame, frames
from support.websocket_frames import TEXT as TEXT_FRAME
from support.workers import raises_alone
from trio.testing import MockClock, wait_all_tasks_blocked

from gain_trio import Server, ServerConfig
from gain_trio.asgi import AsgiConfig
from gain_trio.testing import MemoryConnection, serving_app

pytestmark = pytest.mark.one_backend

GET = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"
UPGRADE = (
    b"GET /talk HTTP/1.1\r\nHost: here\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def echo_body(_scope: Any, receive: Any, send: Any) -> None:
    body = b""
    while (event := await receive()).get("more_body"):
        body += event["body"]
    await send(TEXT)
    await send({"type": "http.response.body", "body": body + event.get("body", b"")})


async def until_gone(_scope: Any, receive: Any, send: Any) -> None:
    """An app whose response has no end of its own."""
    await send(TEXT)
    while (await receive())["type"] != "http.disconnect":
        pass
    print("gone")


async def shout(scope: Any, receive: Any, send: Any) -> None:
    """A WebSocket that answers in upper case, and says how it ended."""
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": event["text"].upper()})
    print(event["code"])


async def opened(client: MemoryConnection) -> MemoryConnection:
    """Ask for a WebSocket, and read the head of the answer."""
    await client.send(UPGRADE)
    assert (await client.receive_until(b"\r\n\r\n", max_bytes=4096)).startswith(b"HTTP/1.1 101 ")
    return client


async def test_requests_of_one_connection() -> None:
    before = open_descriptors()
    async with serving_app(hello, app_lifespan="off") as server:
        assert isinstance(server.server, Server)
        client = server.connect()
        await client.send(GET + GET + LAST)
        received = await receive_all(client)
        assert open_descriptors() == before
    assert [(answer.status, answer.body) for answer in answers(received)] == [(200, b"Hello, World!")] * 3


async def test_the_scope_has_the_client_and_the_server() -> None:
    found: list[Any] = []

    async def look(scope: Any, _receive: Any, send: Any) -> None:
        found.extend((scope["client"], scope["server"], scope["scheme"], scope["root_path"]))
        await send(TEXT)
        await send(BODY)

    async with serving_app(look, app_lifespan="off", asgi=AsgiConfig(root_path="/below")) as server:
        client = server.connect(source_address=("192.0.2.1", 7))
        await client.send(LAST)
        await receive_all(client)
    assert found == [("192.0.2.1", 7), ("127.0.0.1", 80), "http", "/below"]


async def test_a_request_in_single_bytes() -> None:
    async with serving_app(echo_body, app_lifespan="off") as server:
        client = server.connect()
        client.outgoing.largest_piece = 1
        await client.send(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        [answer] = answers(await receive_all(client), "POST")
    assert answer.body == b"hello"


async def test_a_client_that_is_lost_in_the_middle_of_a_body(caplog: pytest.LogCaptureFixture) -> None:
    async with serving_app(echo_body, app_lifespan="off") as server:
        client = server.connect()
        head = b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 1000\r\n\r\n"
        client.outgoing.reset_after = len(head) + 10
        with pytest.raises(trio.BrokenResourceError):
            await client.send(head + bytes(20))
        await wait_all_tasks_blocked()
        assert server.server.active_connections == 0
    assert not tracebacks(caplog)


async def test_an_app_is_not_told_of_bytes_that_a_slow_client_has_not_taken(autojump_clock: MockClock) -> None:
    sent: list[int] = []

    async def stream(_scope: Any, _receive: Any, send: Any) -> None:
        await send(TEXT)
        for number in range(10_000):
            await send(PIECE)
            sent.append(number)

    async with serving_app(stream, app_lifespan="off", timeout_send=30) as server:
        client = server.connect()
        client.incoming.room = 0
        await client.send(GET)
        start = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):
            await client.receive()
        assert 29 < trio.current_time() - start < 40
    assert 0 < len(sent) < 10_000


async def test_a_client_that_says_nothing_has_the_time_of_a_head(autojump_clock: MockClock) -> None:
    async with serving_app(hello, app_lifespan="off", timeout_head=60) as server:
        client = server.connect()
        await client.send(GET[:10])
        start = trio.current_time()
        [answer] = answers(await receive_all(client))
        assert trio.current_time() - start == pytest.approx(60, abs=2)
    assert answer.status == 408


async def test_the_lifespan_is_around_the_block() -> None:
    steps: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                assert (await receive())["type"] == f"lifespan.{step}"
                steps.append(step)
                scope["state"]["step"] = step
                await send({"type": f"lifespan.{step}.complete"})
            return
        steps.append(scope["state"]["step"])
        await hello(scope, receive, send)

    async with serving_app(app, app_lifespan="on") as server:
        assert steps == ["startup"]
        client = server.connect()
        await client.send(LAST)
        await receive_all(client)
    assert steps == ["startup", "startup", "shutdown"]


async def test_an_app_that_cannot_start_is_raised_as_it_is() -> None:
    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    with pytest.raises(RuntimeError, match="could not start: no database"):
        async with serving_app(app):
            pytest.fail("it serves")


async def test_the_error_of_an_app_is_an_answer_and_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async with serving_app(fails_at_once, app_lifespan="off") as server:
        client = server.connect()
        await client.send(GET)
        [answer] = answers(await receive_all(client))
        await client.aclose()
        await wait_all_tasks_blocked()
    assert answer.status == 500
    assert len(tracebacks(caplog)) == 1


async def test_with_strict_the_error_of_an_app_leaves_the_block() -> None:
    with raises_alone(Broken, "at once"):
        async with serving_app(fails_at_once, app_lifespan="off", strict=True) as server:
            await server.connect().send(GET)
            await trio.sleep_forever()


async def test_a_drain_lets_a_response_end() -> None:
    async with serving_app(echo_body, app_lifespan="off") as server, trio.open_nursery() as nursery:
        busy, idle = server.connect(), server.connect()
        await busy.send(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 2\r\n\r\na")
        await idle.send(GET)
        assert (await idle.receive()).startswith(b"HTTP/1.1 200 ")
        await wait_all_tasks_blocked()
        nursery.start_soon(server.server.drain, 10)
        assert await idle.receive() == b""
        await busy.send(b"b")
        [answer] = answers(await receive_all(busy), "POST")
    assert (answer.body, answer.fields["connection"]) == (b"ab", "close")


async def test_a_server_that_has_served_enough_ends(autojump_clock: MockClock) -> None:
    async with serving_app(hello, app_lifespan="off", max_requests=2, graceful_timeout=5) as server:
        client = server.connect()
        await client.send(GET + GET)
        assert len(answers(await receive_all(client))) == 2
        with pytest.raises(ConnectionRefusedError):
            server.connect()


async def test_https() -> None:
    async with serving_app(hello, app_lifespan="off", ssl_context=server_context()) as server:
        plain = server.connect()
        client = trio.SSLStream(plain, client_context(), server_hostname="localhost", https_compatible=True)
        await client.send_all(LAST)
        received = b""
        while data := await client.receive_some():
            received += data
    [answer] = answers(received)
    assert answer.body == b"Hello, World!"


async def test_errors_of_accept_and_limits(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async with serving_app(hello, app_lifespan="off", config=ServerConfig(max_connections=1)) as server:
        server.fail_accept(errno.EMFILE)
        first, second = server.connect(), server.connect()
        await second.send(LAST)
        await first.send(GET)
        assert (await first.receive()).startswith(b"HTTP/1.1 200 ")
        await first.aclose()
        assert (await receive_all(second)).startswith(b"HTTP/1.1 200 ")
    assert sum("EMFILE (Too many open files); trying again" in record.getMessage() for record in caplog.records) == 1


async def test_the_app_learns_that_its_client_is_gone(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving_app(until_gone, app_lifespan="off") as server:
        client = server.connect()
        await client.send(GET)
        await wait_all_tasks_blocked()
        client.outgoing.reset_after = 0
        await wait_all_tasks_blocked()
        assert capsys.readouterr().out == "gone\n"


# --- WebSockets ---


async def test_a_websocket(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving_app(shout, app_lifespan="off") as server:
        client = await opened(server.connect())
        await client.send(frame(TEXT_FRAME, b"hello"))
        assert frames(await client.receive()) == [(TEXT_FRAME, b"HELLO")]
        await client.send(closing(1001))
        assert frames(await receive_all(client)) == [(CLOSE, b"\x03\xe9")]
    assert capsys.readouterr().out == "1001\n"


async def test_a_frame_in_single_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving_app(shout, app_lifespan="off") as server:
        client = await opened(server.connect())
        client.outgoing.largest_piece = 1
        await client.send(frame(TEXT_FRAME, b"hel", fin=False) + frame(0, b"lo"))
        assert frames(await client.receive()) == [(TEXT_FRAME, b"HELLO")]
        client.abort()
        await wait_all_tasks_blocked()
    assert capsys.readouterr().out == "1006\n"


async def test_a_websocket_whose_client_has_vanished(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving_app(shout, app_lifespan="off", ws_ping_interval=20, ws_ping_timeout=10) as server:
        client = await opened(server.connect())
        start = trio.current_time()
        await receive_all(client)
        assert trio.current_time() - start == pytest.approx(30, abs=1)
    assert capsys.readouterr().out == "1006\n"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"processes": 2}, ValueError, "processes is about sockets, processes or signals.*leave it out"),
        ({"metrics": "tcp://127.0.0.1:0"}, ValueError, "metrics is about"),
        ({"config": ServerConfig(keep_alive=5)}, ValueError, "keep_alive is about"),
        ({"timeout_heads": 5}, TypeError, "timeout_head"),
        ({"asgi": 5}, TypeError, "asgi must be a gain_trio.asgi.AsgiConfig"),
        ({"config": 5}, TypeError, "config must be a gain_trio.ServerConfig"),
    ],
)
async def test_options_that_make_no_sense(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        async with serving_app(hello, **options):
            pytest.fail("it serves")


async def test_a_handler_of_connections_is_no_app() -> None:
    async def handler(_connection: Any) -> None: ...

    wrong: Any = handler
    with pytest.raises(TypeError, match="an ASGI app is an async function of scope, receive and send"):
        async with serving_app(wrong):
            pytest.fail("it serves")

"""The end of a WebSocket of an ASGI app: by the client, by the app, by a drain."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import trio
from support.pairs import PATIENCE, receive_all, until
from support.sockets import reset
from support.websocket_frames import BINARY, CLOSE, CONT, PING, TEXT, closing, frame, handshake
from support.websocket_servers import (
    Message,
    Peer,
    Receive,
    Recorder,
    Send,
    connected,
    disconnect,
    peer_of,
    serving_websockets,
)
from trio.testing import MockClock, wait_all_tasks_blocked

from gain_trio.asgi import ClientDisconnected
from gain_trio.asgi._websocket import AWAY
from gain_trio.asgi._websocket_codec import MAX_FRAMES

pytestmark = pytest.mark.connections

Scope = dict[str, Any]


# --- the end ---


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (closing(1000, b"bye"), disconnect(1000, "bye")),
        (closing(), disconnect(1005)),
        (closing(4321), disconnect(4321)),
    ],
)
async def test_a_client_closes(data: bytes, message: Message) -> None:
    app = Recorder()
    async with connected(app) as peer:
        await peer.send(frame(TEXT, b"last"), data)
        assert (await peer.frame())[0] == CLOSE
        await peer.ended()
        await app.over.wait()
    assert app.messages == [{"type": "websocket.receive", "text": "last"}, message]
    assert type(app.messages[-1]["code"]) is int  # and no member of an enumeration


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(TEXT, b"\xff"), 1007),
        (frame(TEXT, b"a", mask=None), 1002),
        (frame(BINARY, bytes(2000)), 1009),
        (frame(BINARY, bytes(600), fin=False) + frame(CONT, bytes(600)), 1009),
        (frame(3), 1002),
    ],
)
async def test_a_client_that_breaks_a_rule(data: bytes, code: int) -> None:
    app = Recorder()
    async with connected(app, ws_max_size=1000) as peer:
        await peer.send(data, bytes(100_000))
        assert (await peer.closed())[0] == code
        await peer.ended()
        await app.over.wait()
    assert [message["code"] for message in app.messages] == [code]


async def test_a_client_that_vanishes() -> None:
    app = Recorder()
    async with connected(app) as peer:
        await peer.send(frame(TEXT, b"half")[:-1])
        await peer.stream.aclose()
        await app.over.wait()
    assert app.messages == [disconnect(1006)]


async def test_a_client_that_vanishes_with_a_ping_unanswered_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer fails, in the app's call of receive()."""
    is_gone, messages = trio.Event(), []

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await is_gone.wait()
        messages.append(await receive())
        is_over.set()

    is_over = trio.Event()
    with trio.fail_after(PATIENCE):
        async with serving_websockets(app, f"unix://{tmp_path}/socket") as server:
            async with await trio.open_unix_socket(server.addresses[0]) as stream:
                peer = Peer(stream)
                await peer.request(handshake())
                await peer.response()
                await peer.send(frame(PING, b"p"))
            await wait_all_tasks_blocked()
            is_gone.set()
            await is_over.wait()
    assert messages == [disconnect(1006)]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_many_frames_of_a_client_that_has_vanished_are_not_read(mock_clock: MockClock) -> None:
    """The clock stands still, so that the app is not away."""
    assert mock_clock.rate == 0
    is_gone, is_over = trio.Event(), trio.Event()
    messages: list[Message] = []

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await is_gone.wait()
        messages.append(await receive())
        is_over.set()

    async with connected(app) as peer:
        many = frame(TEXT, b"a", fin=False) + frame(CONT, fin=False) * 10 * MAX_FRAMES + frame(CONT)
        await peer.send(many)
        await wait_all_tasks_blocked()
        reset(peer.stream)
        await wait_all_tasks_blocked()
        is_gone.set()
        await is_over.wait()
    assert messages == [disconnect(1006)]


async def test_sending_to_a_client_that_vanished_raises_an_os_error(caplog: pytest.LogCaptureFixture) -> None:
    vanished = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        try:
            while True:
                await send({"type": "websocket.send", "bytes": bytes(100_000)})
        finally:
            vanished.set()

    with caplog.at_level(logging.INFO):
        async with connected(app) as peer:
            await peer.stream.aclose()
            with trio.fail_after(PATIENCE):
                await vanished.wait()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_the_app_closes_and_the_client_answers() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "last"})
        await send({"type": "websocket.close", "code": 3001, "reason": "so"})
        await trio.sleep_forever()

    async with connected(app) as peer:
        assert await peer.message() == "last"
        assert await peer.closed() == (3001, "so")
        await peer.send(frame(TEXT, b"under way"), frame(PING, b"p"), closing(3001))
        await peer.ended()  # although the app still runs


@pytest.mark.parametrize(
    ("reason", "sent"),
    [
        ("x" * 123, "x" * 123),
        ("x" * 124, "x" * 123),
        ("x" * 122 + "\xe4", "x" * 122),
        ("\U0001f40c" * 100, "\U0001f40c" * 30),
    ],
)
async def test_a_reason_that_is_too_long_for_a_frame_is_cut(reason: str, sent: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 3001, "reason": reason})

    async with connected(app) as peer:
        assert await peer.closed() == (3001, sent)
        await peer.answer_close()
        await peer.ended()


async def test_a_task_that_receives_learns_of_the_close_by_another(mock_clock: MockClock) -> None:
    ended = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                assert await receive() == disconnect(1000)
                ended.set()

            nursery.start_soon(listen)
            await wait_all_tasks_blocked()
            await send({"type": "websocket.close"})

    async with connected(app) as peer:
        assert await peer.closed() == (1000, "")
        await ended.wait()  # the client has not answered


async def test_a_client_that_does_not_answer_a_close_is_not_waited_for_longer(mock_clock: MockClock) -> None:
    over = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})
        over.set()

    async with connected(app, ws_close_timeout=7.0) as peer:
        assert await peer.closed() == (1000, "")
        await over.wait()
        await wait_all_tasks_blocked()
        mock_clock.jump(6.9)
        await peer.text("not a close")
        await wait_all_tasks_blocked()
        mock_clock.jump(0.2)
        await peer.ended()


async def test_an_app_that_fails_closes_with_1011(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        raise ZeroDivisionError("the app's own")

    async with connected(app) as peer:
        assert await peer.closed() == (1011, "")
        await peer.answer_close(1011)
        await peer.ended()
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ZeroDivisionError)


async def test_an_error_is_logged_though_the_server_is_cancelled_before_the_client_has_closed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        raise LookupError("of the app")

    async with serving_websockets(app) as server:
        stream = await trio.open_tcp_stream("127.0.0.1", server.addresses[0][1])
        peer = Peer(stream)
        await peer.request(handshake())
        await peer.response()
        assert await peer.closed() == (1011, "")
    await stream.aclose()
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "of the app" in str(record.exc_info)


@pytest.mark.parametrize("accepts", [False, True])
@pytest.mark.parametrize("error", [trio.TooSlowError, trio.BrokenResourceError])
async def test_what_breaks_inside_the_app_is_not_the_clients_fault(
    accepts: bool, error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        if accepts:
            await send({"type": "websocket.accept"})
        raise error

    async with serving_websockets(app) as server, peer_of(server) as peer:
        await peer.response()
        assert peer.status == (101 if accepts else 500)
        if accepts:
            assert await peer.closed() == (1011, "")
            await peer.answer_close(1011)
        await until(lambda: server.statistics().handler_errors == 1)
        assert (server.statistics().broken, server.statistics().too_slow) == (0, 0)
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info
    assert "the app has failed with" in str(record.exc_info)


async def test_an_app_that_fails_before_it_accepts_is_500(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError("the app's own")

    async with serving_websockets(app) as server, peer_of(server) as peer:
        await peer.response()
        assert peer.status == 500
        assert await receive_all(peer.stream) == b""
        assert peer.received == b"Internal Server Error\n"
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1


async def test_an_app_that_returns_without_an_answer_is_500(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()

    async with serving_websockets(app) as server, peer_of(server) as peer:
        await peer.response()
        assert peer.status == 500
    assert "without" in caplog.text


# --- drain ---


async def test_a_drain_closes_with_1012() -> None:
    app = Recorder()
    async with serving_websockets(app) as server, peer_of(server) as peer:
        await peer.response()
        await peer.text("before")
        await until(lambda: bool(app.messages))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.drain, 30)
            assert (await peer.closed())[0] == 1012
            with trio.fail_after(PATIENCE):
                await app.over.wait()  # the client has not answered
            await peer.answer_close(1012)
            await peer.ended()
    assert [message.get("code") for message in app.messages] == [None, 1012]


async def test_a_drain_closes_a_busy_websocket(mock_clock: MockClock) -> None:
    """One whose client sends all the time, and whose app is not in receive()."""
    left = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await left.wait()
        count = 0
        while (await receive())["type"] == "websocket.receive":
            count += 1
        assert count >= 1

    async with serving_websockets(app) as server, peer_of(server) as peer:
        await peer.response()
        await peer.send(frame(TEXT, b"x") * 100)
        await wait_all_tasks_blocked()
        mock_clock.jump(AWAY + 0.01)
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.drain, 3000)
            await wait_all_tasks_blocked()
            left.set()
            assert (await peer.closed())[0] == 1012
            await peer.answer_close(1012)
            await peer.ended()


async def test_a_drain_closes_a_websocket_whose_app_only_sends(mock_clock: MockClock) -> None:
    gone = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        try:
            while True:
                await send({"type": "websocket.send", "text": "tick"})
                await trio.sleep(1)
        except ClientDisconnected:
            gone.set()
            raise

    async with serving_websockets(app) as server, peer_of(server) as peer:
        await peer.response()
        assert await peer.message() == "tick"
        await wait_all_tasks_blocked()
        mock_clock.jump(AWAY + 0.01)
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.drain, 3000)
            assert (await peer.closed())[0] == 1012
            await peer.answer_close(1012)
            await peer.ended()
            mock_clock.jump(1)
            await gone.wait()

"""A WebSocket of an ASGI app: its messages, its ends, and what happens while the app does something else."""

from __future__ import annotations

import logging
import math
import zlib
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from support.pairs import PATIENCE, receive_all, until
from support.servers import serving
from support.sockets import reset
from support.websocket_frames import BINARY, CLOSE, CONT, DEFLATE, PING, PONG, TEXT, closing, frame, handshake
from support.websocket_servers import App, Message, Peer, Receive, Send, connected, peer_of, serving_websockets
from trio.testing import MockClock, wait_all_tasks_blocked

from gain_trio import Connection
from gain_trio.asgi import AsgiConfig, ClientDisconnected
from gain_trio.asgi._asgi_handler import AsgiHandler
from gain_trio.asgi._websocket import AWAY, MAX_EARLY
from gain_trio.asgi._websocket_codec import MAX_FRAMES, WebSocketCodec
from gain_trio.asgi._websocket_pings import PeerState, PingSchedule

pytestmark = pytest.mark.connections

Scope = dict[str, Any]


async def send_back(scope: Scope, receive: Receive, send: Send) -> None:
    """Send back every message."""
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


class Recorder:
    """An app that accepts, and notes what it receives up to the disconnect."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.over = trio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's
        try:
            assert await receive() == {"type": "websocket.connect"}
            await send({"type": "websocket.accept"})
            while True:
                message = await receive()
                self.messages.append(message)
                if message["type"] == "websocket.disconnect":
                    break
        finally:
            self.over.set()


def disconnect(code: int, reason: str = "") -> Message:
    return {"type": "websocket.disconnect", "code": code, "reason": reason}


# --- messages ---


async def test_messages_come_back() -> None:
    async with connected(send_back) as peer:
        await peer.text("grün")
        assert await peer.message() == "grün"
        await peer.send(frame(BINARY, b"\x00\xff"), frame(TEXT, b"two"), frame(TEXT, b"three", fin=False))
        assert await peer.message() == b"\x00\xff"
        assert await peer.message() == "two"
        await peer.send(frame(CONT, b", four"))
        assert await peer.message() == "three, four"
        await peer.answer_close(1001)
        assert await peer.closed() == (1001, "")
        await peer.ended()


async def test_a_large_message_comes_back_whole() -> None:
    async with connected(send_back, ws_max_size=1 << 22) as peer:
        large = bytes(range(256)) * (1 << 14)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.send, frame(BINARY, large, mask=bytes(4)))
            assert await peer.message() == large


async def test_many_messages_in_one_piece_come_back_in_order() -> None:
    async with connected(send_back) as peer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.send, b"".join(frame(TEXT, b"%d" % number) for number in range(5000)))
            for number in range(5000):
                assert await peer.message() == str(number)


async def test_messages_behind_the_handshake_are_the_apps() -> None:
    async with serving_websockets(send_back) as server, peer_of(server, rest=frame(TEXT, b"early")) as peer:
        await peer.response()
        assert await peer.message() == "early"


async def test_with_compression_the_server_compresses() -> None:
    async with connected(send_back, DEFLATE) as peer:
        assert "permessage-deflate" in peer.fields["sec-websocket-extensions"]
        await peer.text("plain" * 50)
        opcode_and_bits, payload = await peer.frame()
        assert opcode_and_bits == 0x40 | TEXT
        assert len(payload) < 50


async def test_the_status_of_the_handshake_is_observed() -> None:
    seen: list[tuple[str, int, BaseException | None]] = []

    class Observer:
        def began(self, scope: Scope) -> str:
            assert scope["type"] == "websocket"
            return "token"

        def ended(self, token: str, scope: Scope, status: int, size: int, error: BaseException | None) -> None:  # noqa: ARG002 - as in the protocol
            assert scope["type"] == "websocket"
            seen.append((token, status, error))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        if scope["path"] == "/path":
            await send({"type": "websocket.accept"})
        raise ZeroDivisionError

    handler = AsgiHandler(app, AsgiConfig())
    handler.observer = Observer()
    async with serving(handler) as server:
        async with peer_of(server) as peer:
            await peer.response()
            assert await peer.closed() == (1011, "")
            await peer.answer_close(1011)
            await peer.ended()
        async with peer_of(server, path=b"/other") as peer:
            await peer.response()
            assert peer.status == 500
            await receive_all(peer.stream)
        stream = await trio.open_tcp_stream("127.0.0.1", server.addresses[0][1])
        async with stream:
            await Peer(stream).request(handshake(drop=[b"sec-websocket-key"]))
            await receive_all(stream)
        await until(lambda: len(seen) == 3)
    assert [(token, status, type(error)) for token, status, error in seen] == [
        ("token", 101, ZeroDivisionError),
        ("token", 500, ZeroDivisionError),
        ("token", 400, type(None)),
    ]


async def test_an_app_may_have_tasks_that_send_and_one_that_receives() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})

        async def sender(number: int) -> None:
            for _ in range(50):
                await send({"type": "websocket.send", "bytes": bytes([number]) * 100_000})

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(sender, number)
            assert (await receive())["text"] == "hello"
        await send({"type": "websocket.send", "text": "done"})
        await receive()

    async with connected(app) as peer:
        await peer.send(frame(TEXT, b"hello"), frame(PING, b"p"))
        counts = dict.fromkeys(range(4), 0)
        pongs = 0
        while True:
            opcode, payload = await peer.frame()
            if opcode == PONG:
                pongs += 1
            elif opcode == TEXT:
                break
            else:
                assert payload == payload[:1] * 100_000
                counts[payload[0]] += 1
        assert counts == dict.fromkeys(range(4), 50)
        if not pongs:
            assert await peer.frame() == (PONG, b"p")
        await peer.answer_close()
        assert await peer.closed() == (1000, "")


async def test_two_tasks_cannot_receive() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await receive()
            await send({"type": "websocket.send", "text": "busy"})

    async with connected(app) as peer:
        assert await peer.message() == "busy"
        await peer.answer_close()
        assert await peer.closed() == (1000, "")


async def test_cancelling_a_receive_loses_no_message() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while len(seen) < 100:
            with trio.CancelScope() as scope_of_receive:
                scope_of_receive.cancel()
                message = await receive()
                seen.append(message["text"])
            await trio.lowlevel.checkpoint()

    async with connected(app) as peer:
        for number in range(100):
            await peer.send(frame(PING, b"p"), frame(TEXT, b"%d" % number))
        for _ in range(100):
            assert await peer.frame() == (PONG, b"p")
        assert await peer.closed() == (1000, "")
    assert seen == [str(number) for number in range(100)]


@pytest.mark.parametrize("deflate", [False, True])
async def test_a_cancelled_send_leaves_the_next_ones_whole(deflate: bool) -> None:
    """With compression every frame refers to those before it, so one that was made is sent."""
    cancelled = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        with trio.CancelScope() as limit:
            limit.cancel()
            await send({"type": "websocket.send", "text": "cancelled cancelled"})
        assert limit.cancelled_caught
        cancelled.set()
        for _ in range(3):
            await send({"type": "websocket.send", "text": "cancelled cancelled not"})

    async with connected(app, *([DEFLATE] if deflate else [])) as peer:
        found = []
        while (received := await peer.frame())[0] & 0x0F == TEXT:
            found.append(received[1])
        assert len(found) == (4 if deflate else 3)
        if deflate:
            decoder = zlib.decompressobj(wbits=-12)
            texts = [decoder.decompress(data + b"\x00\x00\xff\xff") for data in found]
            assert texts == [b"cancelled cancelled", *[b"cancelled cancelled not"] * 3]


async def test_what_the_app_cannot_send() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        with pytest.raises(RuntimeError, match="connecting"):
            await send({"type": "websocket.send", "text": "early"})
        for headers in (
            [(b"a b", b"c")],
            [(b"a", b"b\r\nc: d")],
            [(b"connection", b"x")],
            [(b"Sec-WebSocket-Protocol", b"x")],
        ):
            with pytest.raises(ValueError, match="field"):
                await send({"type": "websocket.accept", "headers": headers})
        for name in ("a b", "", "a\r\n", "é"):
            with pytest.raises(ValueError, match="token"):
                await send({"type": "websocket.accept", "subprotocol": name})
        await send({"type": "websocket.accept"})
        with pytest.raises(RuntimeError, match="open"):
            await send({"type": "websocket.accept"})
        with pytest.raises(RuntimeError, match="open"):
            await send({"type": "http.response.start", "status": 200})
        with pytest.raises(TypeError, match="text"):
            await send({"type": "websocket.send", "text": None})
        with pytest.raises(TypeError):
            await send({"type": "websocket.send", "bytes": "text"})
        with pytest.raises(UnicodeEncodeError):
            await send({"type": "websocket.send", "text": "\ud800"})
        with pytest.raises(ValueError, match="1006"):
            await send({"type": "websocket.close", "code": 1006})
        await send({"type": "websocket.send", "bytes": bytearray(b"array")})
        await send({"type": "websocket.send", "bytes": memoryview(b"view")})
        await send({"type": "websocket.close", "code": 4000, "reason": "done"})
        with pytest.raises(OSError, match="4000"):
            await send({"type": "websocket.send", "text": "late"})
        await send({"type": "websocket.close"})
        with pytest.raises(RuntimeError, match="over"):
            await send({"type": "websocket.accept"})
        assert await receive() == disconnect(4000, "done")
        assert await receive() == disconnect(4000, "done")

    async with connected(app) as peer:
        assert await peer.message() == b"array"
        assert await peer.message() == b"view"
        assert await peer.closed() == (4000, "done")
        await peer.answer_close()
        await peer.ended()


# --- the handshake ---


async def test_the_scope() -> None:
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await receive()
        await send({"type": "websocket.accept", "subprotocol": "b", "headers": [(b"x-own", b"1")]})

    offered = (b"sec-websocket-protocol", b"a, b ,c"), (b"sec-websocket-protocol", b"d")
    async with connected(app, *offered) as peer:
        assert peer.fields["sec-websocket-protocol"] == "b"
        assert peer.fields["x-own"] == "1"
        assert peer.fields["upgrade"] == "websocket"
        assert peer.fields["connection"].lower() == "upgrade"
        assert peer.fields["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        assert await peer.closed() == (1000, "")
    [scope] = scopes
    assert (scope["type"], scope["scheme"]) == ("websocket", "ws")
    assert scope["subprotocols"] == ["a", "b", "c", "d"]
    assert scope["extensions"] == {"websocket.http.response": {}}
    assert "method" not in scope


@pytest.mark.parametrize(("drop", "status"), [(b"sec-websocket-key", 400), (b"sec-websocket-version", 400)])
async def test_a_handshake_that_is_none_does_not_reach_the_app(drop: bytes, status: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        pytest.fail("the app was called")

    async with serving_websockets(app) as server:
        stream = await trio.open_tcp_stream("127.0.0.1", server.addresses[0][1])
        async with stream:
            peer = Peer(stream)
            await peer.request(handshake(drop=[drop]))
            await peer.response()
            assert peer.status == status
            assert peer.fields["sec-websocket-version"] == "13"


async def test_a_close_before_accepting_is_403() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.close", "code": 1008})
        with pytest.raises(OSError, match="closed"):
            await send({"type": "websocket.send", "text": "late"})

    async with serving_websockets(app) as server, peer_of(server) as peer:
        await peer.response()
        assert peer.status == 403
        await peer.ended()


async def test_a_response_that_denies() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.http.response.start", "status": 401, "headers": [(b"x-why", b"who")]})
        with pytest.raises(RuntimeError, match="denying"):
            await send({"type": "websocket.accept"})
        await send({"type": "websocket.http.response.body", "body": b"no ", "more_body": True})
        await send({"type": "websocket.http.response.body", "body": b"entry"})
        assert (await receive())["type"] == "websocket.disconnect"

    async with serving_websockets(app) as server, peer_of(server) as peer:
        await peer.response()
        assert (peer.status, peer.fields["x-why"]) == (401, "who")
        body = peer.received + await receive_all(peer.stream)
        assert body == b"3\r\nno \r\n5\r\nentry\r\n0\r\n\r\n"


async def test_a_client_that_goes_before_it_is_accepted() -> None:
    ended = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        assert await receive() == disconnect(1006)
        await send({"type": "websocket.close"})
        ended.set()

    async with serving_websockets(app) as server:
        async with peer_of(server, rest=frame(TEXT, b"impatient")):
            pass
        with trio.fail_after(PATIENCE):
            await ended.wait()


async def test_what_a_client_sends_before_it_is_accepted_is_bounded() -> None:
    asked = trio.Event()
    go_on = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        async with trio.open_nursery() as nursery:
            received: list[Message] = []

            async def first() -> None:
                received.append(await receive())

            nursery.start_soon(first)
            asked.set()
            await go_on.wait()
            await wait_all_tasks_blocked()
            await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": str(len(received[0]["bytes"]))})

    async with serving_websockets(app) as server, peer_of(server) as peer:
        await asked.wait()
        await peer.send(frame(BINARY, bytes(4 * MAX_EARLY), mask=bytes(4)))
        go_on.set()
        await peer.response()
        assert await peer.message() == str(4 * MAX_EARLY)


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


# --- while the app does not receive ---


def waiting_app(go_on: trio.Event, seen: list[Message]) -> App:
    """Accepts, waits for the event, and then receives up to the disconnect."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await go_on.wait()
        while True:
            message = await receive()
            seen.append(message)
            if message["type"] == "websocket.disconnect":
                break

    return app


async def test_pings_are_answered_while_the_app_does_not_receive(mock_clock: MockClock) -> None:
    go_on, seen = trio.Event(), []
    async with connected(waiting_app(go_on, seen)) as peer:
        await peer.send(frame(PING, b"1"))
        await wait_all_tasks_blocked()
        mock_clock.jump(AWAY + 0.01)
        assert await peer.frame() == (PONG, b"1")
        await peer.send(frame(TEXT, b"a"), frame(PING, b"2"))  # at once, now
        assert await peer.frame() == (PONG, b"2")
        go_on.set()
        await until(lambda: len(seen) == 1)
        await peer.text("b")
        await until(lambda: len(seen) == 2)
        await peer.text("c")
        await until(lambda: len(seen) == 3)
        await peer.answer_close()
        assert await peer.closed() == (1000, "")
        await until(lambda: len(seen) == 4)
    assert [message.get("text") for message in seen] == ["a", "b", "c", None]


async def test_a_close_is_answered_while_the_app_does_not_receive(mock_clock: MockClock) -> None:
    go_on, seen = trio.Event(), []
    async with connected(waiting_app(go_on, seen)) as peer:
        await peer.send(frame(TEXT, b"a"), closing(1001))
        await wait_all_tasks_blocked()
        mock_clock.jump(AWAY + 0.01)
        assert await peer.closed() == (1001, "")
        await peer.ended()
        go_on.set()
        await until(lambda: len(seen) == 2)
    assert [message.get("text", message.get("code")) for message in seen] == ["a", 1001]


async def test_a_receive_that_is_cancelled_leaves_the_pings_to_be_answered(mock_clock: MockClock) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        with trio.move_on_after(1):
            await receive()
        await trio.sleep_forever()

    async with connected(app) as peer:
        await wait_all_tasks_blocked()
        mock_clock.jump(1)
        await wait_all_tasks_blocked()
        mock_clock.jump(AWAY + 0.01)
        await peer.send(frame(PING, b"1"))
        assert await peer.frame() == (PONG, b"1")


async def test_messages_are_queued_up_to_a_bound(mock_clock: MockClock) -> None:
    go_on, seen = trio.Event(), []
    async with connected(waiting_app(go_on, seen), ws_max_queue=3, ws_ping_interval=1e6) as peer:
        await peer.send(*(frame(TEXT, b"%d" % number) for number in range(3)), frame(PING, b"unread"))
        await wait_all_tasks_blocked()
        mock_clock.jump(AWAY + 0.01)
        await wait_all_tasks_blocked()
        with trio.move_on_after(0) as limit:
            await peer.frame()
        assert limit.cancelled_caught  # the ping stands behind three messages
        go_on.set()
        assert await peer.frame() == (PONG, b"unread")
        await until(lambda: len(seen) == 3)


async def test_a_client_that_sends_without_end_is_slowed_down(mock_clock: MockClock) -> None:
    go_on, seen = trio.Event(), []
    async with connected(waiting_app(go_on, seen), ws_ping_interval=1e6) as peer:
        sent = 0

        async def flood() -> None:
            nonlocal sent
            while True:
                await peer.send(frame(BINARY, bytes(65_000), mask=bytes(4)))
                sent += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            await wait_all_tasks_blocked(0.05)
            mock_clock.jump(AWAY + 0.01)
            await wait_all_tasks_blocked(0.05)
            stopped_at = sent
            await wait_all_tasks_blocked(0.05)
            assert sent == stopped_at
            assert not seen
            go_on.set()
            await until(lambda: len(seen) > stopped_at and sent > stopped_at)
            nursery.cancel_scope.cancel()


async def test_a_sender_waits_for_a_client_that_does_not_read() -> None:
    sent: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        for number in range(400):
            await send({"type": "websocket.send", "bytes": bytes(100_000)})
            sent.append(number)

    async with connected(app) as peer:
        await wait_all_tasks_blocked(0.05)
        assert len(sent) < 400
        for _ in range(400):
            assert len(await peer.message()) == 100_000
        assert await peer.closed() == (1000, "")


async def test_pings_are_taken_while_a_sender_waits() -> None:
    """The reader does not wait for the sender: it leaves it the last pong."""
    received = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                assert (await receive())["text"] == "behind the pings"
                received.set()

            nursery.start_soon(listen)
            for _ in range(200):
                await send({"type": "websocket.send", "bytes": bytes(100_000)})

    async with connected(app) as peer:
        await wait_all_tasks_blocked(0.05)
        for number in range(1000):
            await peer.send(frame(PING, b"%4d" % number + bytes(100)))
        await peer.text("behind the pings")
        with trio.fail_after(PATIENCE):
            await received.wait()
        pongs = []
        while (found := await peer.frame())[0] != CLOSE:
            if found[0] == PONG:
                pongs.append(found[1][:4])
        assert 0 < len(pongs) < 1000
        assert pongs[-1] == b" 999"


@pytest.mark.parametrize("drains", [False, True])
async def test_a_close_while_a_pong_waits_for_a_client_that_does_not_read(
    drains: bool, mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    filling, close, seen = trio.CancelScope(), trio.Event(), []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        with filling:
            while True:
                await send({"type": "websocket.send", "bytes": bytes(100_000)})
        await close.wait()
        await send({"type": "websocket.close", "code": 4000})
        seen.append(await receive())

    async with serving_websockets(app) as server, peer_of(server) as peer, trio.open_nursery() as nursery:
        await peer.response()
        await wait_all_tasks_blocked(0.05)
        filling.cancel()
        await peer.send(frame(PING, b"1"))
        await wait_all_tasks_blocked(0.05)
        mock_clock.jump(AWAY + 0.01)
        await wait_all_tasks_blocked(0.05)  # a task reads for the app, and its pong waits
        close.set()
        await wait_all_tasks_blocked(0.05)
        if drains:
            nursery.start_soon(server.drain, 3000)
            await wait_all_tasks_blocked(0.05)
        while (found := await peer.frame())[0] != CLOSE:
            assert found[0] == BINARY or found == (PONG, b"1")
        assert int.from_bytes(found[1], "big") == 4000
        await peer.answer_close(4000)
        await peer.ended()
        await until(lambda: server.statistics().active == 0)
        assert server.statistics().handler_errors == 0
    assert seen == [disconnect(4000)]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_other_tasks_run_while_many_frames_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    turns, had_more = 0, []
    next_message = WebSocketCodec.next_message

    def counting(self: WebSocketCodec) -> Message | None:
        if self.has_more:
            had_more.append(turns)
        return next_message(self)  # type: ignore[return-value]  # a dict

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})

        async def take_turns() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_turns)
            assert (await receive())["text"] == "last"
            nursery.cancel_scope.cancel()

    monkeypatch.setattr(WebSocketCodec, "next_message", counting)
    many = frame(PONG) * (5 * MAX_FRAMES) + frame(TEXT, b"last")
    async with serving_websockets(app) as server, peer_of(server, rest=many) as peer:
        await peer.response()
        assert await peer.closed() == (1000, "")
    assert had_more
    assert (
        max(Counter(had_more).values()) <= 2
    )  # in a round of Trio's loop this task may be before the other, or behind it


# --- pings of the server ---


async def test_a_client_that_answers_pings_stays(mock_clock: MockClock) -> None:
    app = Recorder()
    async with connected(app, ws_ping_interval=10, ws_ping_timeout=5) as peer:
        for _ in range(5):
            await wait_all_tasks_blocked()
            mock_clock.jump(10)
            opcode, payload = await peer.frame()
            assert opcode == PING
            await peer.send(frame(PONG, payload))
            count = len(app.messages)
            await peer.text("here")
            await until(lambda count=count: len(app.messages) > count)  # type: ignore[misc]
            mock_clock.jump(0.1)
        assert [message["type"] for message in app.messages] == ["websocket.receive"] * 5
        await peer.answer_close()
        assert await peer.closed() == (1000, "")


async def test_a_client_that_answers_no_ping_has_vanished(mock_clock: MockClock) -> None:
    app = Recorder()
    async with connected(app, ws_ping_interval=10, ws_ping_timeout=5, ws_close_timeout=2) as peer:
        await wait_all_tasks_blocked()
        mock_clock.jump(10)
        assert (await peer.frame())[0] == PING
        await wait_all_tasks_blocked()
        assert app.messages == []
        mock_clock.jump(5)
        with trio.fail_after(PATIENCE):
            await app.over.wait()
        assert (await peer.closed())[0] == 1011
        await peer.ended()
    assert app.messages == [disconnect(1006)]


class Accepting:
    """A connection as far as pings look at it."""

    def __init__(self, sent: int) -> None:
        self.bytes_received = 0
        self.bytes_sent = self.left = sent

    def _unacknowledged(self) -> int:
        return self.left


def test_a_client_that_accepts_what_is_in_front_of_a_ping_has_not_vanished() -> None:
    connection = Accepting(4000)
    pings = PingSchedule(AsgiConfig(ws_ping_interval=20, ws_ping_timeout=20), cast("Connection", connection))
    pings.begin(0)
    assert pings.look(20, is_sending=True, is_full=False) is PeerState.PING
    for now in (40, 60, 80):
        connection.left -= 1000
        assert pings.look(now, is_sending=True, is_full=False) is PeerState.PING
    assert pings.look(100, is_sending=True, is_full=False) is PeerState.GONE


async def test_a_client_that_reads_slowly_gets_all_and_then_the_close(mock_clock: MockClock) -> None:
    size, count = 100_000, 80

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        for _ in range(count):
            await send({"type": "websocket.send", "bytes": bytes(size)})
        await send({"type": "websocket.close"})

    async with connected(app, ws_ping_interval=math.inf) as peer:
        for number in range(count):
            if number % 10 == 0:
                await wait_all_tasks_blocked(0.01)
                mock_clock.jump(4)
                await peer.send(frame(PONG))  # to a server that has closed the connection it would be the end of all
            assert await peer.message() == bytes(size)
        assert await peer.closed() == (1000, "")
        await peer.answer_close()
        await peer.ended()


async def test_no_pings_with_an_infinite_interval(mock_clock: MockClock) -> None:
    app = Recorder()
    async with connected(app, ws_ping_interval=float("inf")) as peer:
        await wait_all_tasks_blocked()
        mock_clock.jump(1e7)
        await peer.text("here")
        await until(lambda: bool(app.messages))
        await peer.answer_close()
        assert await peer.closed() == (1000, "")


async def test_a_client_that_the_server_does_not_read_from_has_not_vanished(mock_clock: MockClock) -> None:
    go_on, seen = trio.Event(), []
    async with connected(waiting_app(go_on, seen), ws_max_queue=1, ws_ping_interval=10, ws_ping_timeout=5) as peer:
        await peer.send(frame(TEXT, b"a"), frame(TEXT, b"b"))
        await wait_all_tasks_blocked()
        for _ in range(5):
            mock_clock.jump(10)
            assert (await peer.frame())[0] == PING
            await wait_all_tasks_blocked()
        go_on.set()
        await until(lambda: len(seen) == 2)
        await peer.answer_close()
        assert await peer.closed() == (1000, "")


# --- options ---


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"ws_max_size": 0}, ValueError),
        ({"ws_max_size": 1.5}, TypeError),
        ({"ws_max_queue": 0}, ValueError),
        ({"ws_max_queue": True}, TypeError),
        ({"ws_ping_interval": 0}, ValueError),
        ({"ws_ping_timeout": float("nan")}, ValueError),
        ({"ws_ping_timeout": "1"}, TypeError),
        ({"ws_close_timeout": 0}, ValueError),
        ({"ws_per_message_deflate": 1}, TypeError),
    ],
)
def test_options_are_checked(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        AsgiConfig(**options)

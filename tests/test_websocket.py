"""A WebSocket of an ASGI app: its handshake, its messages and its options."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
import trio
from support.pairs import PATIENCE, receive_all, until
from support.servers import serving
from support.websocket_frames import BINARY, CONT, DEFLATE, PING, PONG, TEXT, closing, frame, handshake
from support.websocket_servers import (
    Message,
    Peer,
    Receive,
    Send,
    connected,
    disconnect,
    peer_of,
    send_back,
    serving_websockets,
)
from trio.testing import MockClock, wait_all_tasks_blocked

from gain_trio.asgi import AsgiConfig
from gain_trio.asgi._asgi_handler import AsgiHandler
from gain_trio.asgi._websocket import MAX_EARLY

pytestmark = pytest.mark.connections

Scope = dict[str, Any]


# --- messages ---


async def test_an_app_that_asks_on_and_on_stops_no_other_task() -> None:
    asked: list[str] = []

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            asked.append((await receive())["type"])

    async with connected(app) as peer:
        await peer.send(closing(1000))
        await until(lambda: asked.count("websocket.disconnect") > 10)


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
    is_over = trio.Event()

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
        with pytest.raises(ValueError, match="not both"):
            await send({"type": "websocket.send", "bytes": b"", "text": "text"})
        with pytest.raises(UnicodeEncodeError):
            await send({"type": "websocket.send", "text": "\ud800"})
        with pytest.raises(ValueError, match="1006"):
            await send({"type": "websocket.close", "code": 1006})
        await send({"type": "websocket.send", "bytes": bytearray(b"array")})
        await send({"type": "websocket.send", "bytes": memoryview(b"view")})
        await send({"type": "websocket.close", "code": 4000, "reason": "done"})
        for kind in ("websocket.send", "websocket.accept", "websocket.http.response.start"):
            with pytest.raises(OSError, match="4000"):
                await send({"type": kind, "text": "late"})
        await send({"type": "websocket.close"})
        with pytest.raises(RuntimeError, match="over"):
            await send({"type": "websocket.nonsense"})
        assert await receive() == disconnect(4000, "done")
        assert await receive() == disconnect(4000, "done")
        is_over.set()

    async with connected(app) as peer:
        assert await peer.message() == b"array"
        assert await peer.message() == b"view"
        assert await peer.closed() == (4000, "done")
        await peer.answer_close()
        await peer.ended()
        await is_over.wait()


@pytest.mark.parametrize(
    "message", [{"text": "both", "bytes": None}, {"text": None, "bytes": b"both"}, {"text": "", "bytes": None}]
)
async def test_a_message_may_have_both_keys(message: Message) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", **message})
        await send({"type": "websocket.close", "code": None, "reason": None})

    async with connected(app) as peer:
        assert await peer.message() == (message["text"] if message["bytes"] is None else message["bytes"])
        assert await peer.closed() == (1000, "")


async def test_the_connect_comes_first_to_an_app_that_has_accepted_before(mock_clock: MockClock) -> None:
    seen: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        await trio.sleep(1)  # so that a task reads in its place
        seen.extend([await receive(), await receive()])

    async with connected(app) as peer:
        await peer.text("early")
        for _ in range(5):
            await wait_all_tasks_blocked()
            mock_clock.jump(0.25)
        assert await peer.closed() == (1000, "")
    assert seen == [{"type": "websocket.connect"}, {"type": "websocket.receive", "text": "early"}]


# --- the handshake ---


async def test_a_websocket_is_chosen_among_several_protocols() -> None:
    """RFC 9110, 7.8.  The answer names the one that is chosen, and a client that offers h2c, too, goes on with WebSocket."""

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "chosen"})

    async with connected(app, (b"upgrade", b"h2c")) as peer:
        assert peer.fields["upgrade"] == "websocket"
        assert await peer.message() == "chosen"
        assert await peer.closed() == (1000, "")


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
        for kind in ("websocket.accept", "websocket.send", "websocket.http.response.start"):
            with pytest.raises(OSError, match="1006"):
                await send({"type": kind})
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

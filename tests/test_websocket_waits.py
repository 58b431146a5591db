"""A WebSocket of an ASGI app while that does something else, and the server's pings."""

from __future__ import annotations

import logging
import math
from collections import Counter
from typing import Any, cast

import pytest
import trio
from support.pairs import PATIENCE, until
from support.websocket_frames import BINARY, CLOSE, PING, PONG, TEXT, closing, frame
from support.websocket_servers import (
    Message,
    Receive,
    Recorder,
    Send,
    connected,
    disconnect,
    peer_of,
    serving_websockets,
    waiting_app,
)
from trio.testing import MockClock, wait_all_tasks_blocked

from gain_trio import Connection
from gain_trio.asgi import AsgiConfig
from gain_trio.asgi._websocket import AWAY
from gain_trio.asgi._websocket_codec import MAX_FRAMES, WebSocketCodec
from gain_trio.asgi._websocket_pings import PeerState, PingSchedule

pytestmark = pytest.mark.connections

Scope = dict[str, Any]


# --- while the app does not receive ---


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

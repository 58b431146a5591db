"""gain_trio.asgi: clients that go, limits of time, drains, and what a request leaves behind."""

from __future__ import annotations

import contextvars
import logging
import math
import weakref
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
    closing,
    fails_at_once,
    head_of_response,
    hello,
    raw_answer,
    receive_hello,
    request,
    serving_app,
    tracebacks,
)
from support.http_answers import answers
from support.pairs import receive_all, until

from gain_trio.asgi import ClientDisconnected

pytestmark = pytest.mark.connections

# --- the wait for the next request ---


async def test_a_connection_that_waits_holds_nothing_of_the_request_before() -> None:
    class Mark:
        pass

    seen: list[weakref.ref[Mark]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["mark"] = mark = Mark()
        seen.append(weakref.ref(mark))
        await hello(scope, receive, send)

    async with serving_app(app) as server, client_of(server) as client:
        for number in range(3):
            await client.send(request("GET", f"/{number}", f"X-Number: {number}"))
            await receive_hello(client)
            await until(lambda: seen[-1]() is None)


# --- the client goes ---


async def test_an_app_that_waits_is_told_that_its_client_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        told.append((await receive())["type"])
        told.append((await receive())["type"])
        told.append((await receive())["type"])
        try:
            await send(TEXT)
        except ClientDisconnected as error:
            told.append(str(error))

    async with serving_app(app) as server:
        async with client_of(server) as client:
            await client.send(request())
            await until(lambda: len(told) == 1)
            await client.aclose()
        await until(lambda: len(told) == 4)
        await until(lambda: not server.active_connections)
    assert told == ["http.request", "http.disconnect", "http.disconnect", "the client is gone"]
    assert not tracebacks(caplog)


async def test_a_client_that_goes_in_the_body_is_gone() -> None:
    told: list[str] = []

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        while True:
            told.append((await receive())["type"])
            if told[-1] == "http.disconnect":
                return

    async with serving_app(app) as server:
        async with client_of(server) as client:
            await client.send(request("POST", "/", "Content-Length: 10", body=b"hello"))
            await until(lambda: len(told) == 1)
        await until(lambda: len(told) == 2)
        await until(lambda: not server.active_connections)
    assert told == ["http.request", "http.disconnect"]


async def test_send_raises_when_the_client_has_gone(caplog: pytest.LogCaptureFixture) -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send(TEXT)
        while True:
            await send(PIECE)
            await trio.lowlevel.checkpoint()

    caplog.set_level(logging.INFO)
    async with serving_app(app) as server:
        async with client_of(server) as client:
            await client.send(request())
            await head_of_response(client)
        await until(lambda: server.statistics().broken == 1)
    assert not tracebacks(caplog)
    assert [record for record in caplog.records if "broke" in record.getMessage()]


async def test_the_look_for_the_end_does_not_wait() -> None:
    """What Starlette's ``is_disconnected`` does: ask in a scope that is cancelled."""
    found: list[bool] = []
    looks = trio.Event()

    async def is_disconnected(receive: Any) -> bool:
        message = {"type": ""}
        with trio.CancelScope() as scope:
            scope.cancel()
            message = await receive()
        return bool(message["type"] == "http.disconnect")

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        found.append(await is_disconnected(receive))
        await looks.wait()
        while not await is_disconnected(receive):
            await trio.lowlevel.checkpoint()
        found.append(True)
        with pytest.raises(OSError, match="gone"):
            await send(TEXT)
            await send(BODY)

    async with serving_app(app) as server:
        async with client_of(server) as client:
            await client.send(request() + request())
            await until(lambda: len(found) == 1)
        looks.set()
        await until(lambda: len(found) == 2)
        await until(lambda: not server.active_connections)
    assert found == [False, True]


async def test_receive_returns_when_the_response_is_complete() -> None:
    told: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()

        async def watch() -> None:
            told.append((await receive())["type"])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await trio.testing.wait_all_tasks_blocked()
            await hello(scope, receive, send)
        told.append((await receive())["type"])

    async with serving_app(app) as server:
        got = await ask(server, request() + closing())
    assert [answer.status for answer in got] == [200, 200]
    assert told == ["http.disconnect"] * 4


async def test_what_a_client_sends_ahead_is_bounded() -> None:
    """A client that sends and sends while its app waits for it to go."""
    left = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/":
            await receive()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                await left.wait()
                nursery.cancel_scope.cancel()
        await hello(scope, receive, send)

    async with serving_app(app, limit_ahead=10_000, marks=FEW) as server, client_of(server) as client:
        ahead = [request("GET", f"/{index}") for index in range(100_000)]
        await client.send(request())
        with trio.move_on_after(1) as scope:
            for chunk in range(0, len(ahead), 100):
                await client.send(b"".join(ahead[chunk : chunk + 100]))
                await client.flush()
        assert scope.cancelled_caught
        [consumer] = server._consumers
        [connection] = consumer._open
        received = connection.bytes_received
        await trio.testing.wait_all_tasks_blocked()
        assert connection.bytes_received - received <= 4096
        left.set()
        assert (await head_of_response(client)).startswith(b"HTTP/1.1 200")


# --- contexts, scopes and tasks ---

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")


@pytest.mark.parametrize("waits", [False, True])
async def test_a_variable_of_a_request_is_not_seen_by_the_next(waits: bool) -> None:
    seen: list[tuple[str, str]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        before = variable.get()
        variable.set(scope["path"])
        if waits:
            await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(note, before)
        await hello(scope, receive, send)
        if waits:
            await trio.testing.wait_all_tasks_blocked()
        assert variable.get() == scope["path"]

    async def note(before: str) -> None:
        seen.append((before, variable.get()))

    token = variable.set("outside")
    async with serving_app(app) as server:
        for _ in range(2):
            sent = b"".join(request("GET", f"/{index}") for index in range(3))
            assert len(await ask(server, sent + closing("GET", "/3"))) == 4
    variable.reset(token)
    assert seen == [("outside", f"/{index}") for index in range(4)] * 2


async def test_a_context_holds_when_the_app_fails_between() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(variable.get())
        variable.set("set")
        await trio.testing.wait_all_tasks_blocked()
        await hello(scope, receive, send)
        if scope["path"] == "/fails":
            raise Broken

    async with serving_app(app) as server:
        await raw_answer(server, closing())
        for _ in range(2):
            await raw_answer(server, request() + request("GET", "/fails"))
    assert seen == ["none"] * 5


class Uncomparable:
    """A value that refuses to be compared, as arrays of numbers do."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("which of the elements?")

    __hash__ = None  # type: ignore[assignment]


async def test_a_variable_whose_value_cannot_be_compared_is_not_seen_either() -> None:
    value: contextvars.ContextVar[object] = contextvars.ContextVar("value")
    value.set(Uncomparable())
    seen: list[bool] = []
    before = value.get()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(value.get() is before)
        value.set(Uncomparable())
        await hello(scope, receive, send)

    async with serving_app(app) as server:
        await raw_answer(server, request() * 3 + closing())
    assert seen == [True] * 4


@pytest.mark.parametrize("kind", ["scope", "cancelled scope", "nursery", "failing"])
async def test_a_scope_that_an_app_leaves_open_is_an_error_and_hurts_no_one(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    cancelled = trio.Event()

    async def wait() -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/leaves":
            if kind == "nursery":
                nursery = await trio.open_nursery().__aenter__()
                nursery.start_soon(wait)
            left = trio.CancelScope().__enter__()
            trio.CancelScope().__enter__()
            if kind == "cancelled scope":
                left.cancel()
            if kind == "failing":
                raise Broken
        await hello(scope, receive, send)

    async with serving_app(app) as server:
        sent = request() + request("GET", "/leaves") + request()
        if kind == "cancelled scope":  # its send is cancelled, so the connection is of no more use
            with pytest.raises(trio.BrokenResourceError):
                await raw_answer(server, sent)
        else:
            assert [answer.status for answer in await ask(server, sent)] == [200, 500 if kind == "failing" else 200]
        if kind == "nursery":
            await cancelled.wait()
        assert len(await ask(server, closing())) == 1
        assert server.statistics().handler_errors == 1
    [record] = tracebacks(caplog)
    assert "left a cancel scope or a nursery open" in str(record.exc_info)


async def test_each_request_is_in_the_connections_task_or_in_one_of_its_own() -> None:
    tasks: list[trio.lowlevel.Task] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tasks.append(trio.lowlevel.current_task())
        before = variable.get()
        variable.set("set")
        await hello(scope, receive, send)
        assert before == "none"

    async with serving_app(app) as server:
        await raw_answer(server, request() + closing())
    assert tasks[0] is tasks[1]
    tasks.clear()
    async with serving_app(app, task_per_request=True) as server:
        await raw_answer(server, request() + closing())
    assert tasks[0] is not tasks[1]


async def test_an_error_in_a_task_of_its_own_is_that_error(caplog: pytest.LogCaptureFixture) -> None:
    async with serving_app(fails_at_once, task_per_request=True) as server:
        assert [answer.status for answer in await ask(server, request())] == [500]
        await until(lambda: server.statistics().handler_errors == 1)
    [record] = tracebacks(caplog)
    assert record.exc_info
    assert record.exc_info[0] is Broken


async def test_an_awaitable_that_is_no_coroutine_is_awaited() -> None:
    class Call:
        def __init__(self, *arguments: Any) -> None:
            self.arguments = arguments

        def __await__(self) -> Any:
            return hello(*self.arguments).__await__()

    def app(scope: Any, receive: Any, send: Any) -> Call:
        return Call(scope, receive, send)

    async with serving_app(app) as server:
        assert len(await ask(server, request() + closing())) == 2


# --- cancelled with the client ---


class Watched:
    """An app that notes how it ends."""

    def __init__(self) -> None:
        self.begun = trio.Event()
        self.ended: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._answer(scope, receive, send)
        except trio.Cancelled:
            self.ended.append("cancelled")
            raise
        else:
            self.ended.append("returned")

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        body = b""
        if path in ("/reads", "/echo"):
            while True:
                message = await receive()
                body += message["body"]
                if not message["more_body"]:
                    break
        if path == "/waits for it":
            await receive()
            self.begun.set()
            await receive()
        if path == "/echo":
            await send(TEXT)
            await send({"type": "http.response.body", "body": body})
            return
        if path == "/answers":
            await hello(scope, receive, send)
        self.begun.set()
        if path == "/goes on":
            with trio.CancelScope(shield=True):
                await hello(scope, receive, send)
        else:
            await trio.sleep_forever()


@pytest.mark.parametrize("own_task", [False, True])
@pytest.mark.parametrize("path", ["/", "/reads", "/waits%20for%20it"])
async def test_an_app_is_cancelled_when_its_client_goes(
    path: str, own_task: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app = Watched()
    async with serving_app(app, cancel_on_disconnect=True, task_per_request=own_task) as server:
        async with client_of(server) as client:
            body = b"hello" if path == "/reads" else b""
            await client.send(request("POST", path, f"Content-Length: {len(body)}", body=body) + request())
            await app.begun.wait()
            assert not app.ended
        await until(lambda: bool(app.ended))
        await until(lambda: not server.active_connections)
    assert app.ended == ["cancelled"]
    assert not tracebacks(caplog)


async def test_without_the_option_it_is_not() -> None:
    app = Watched()
    async with serving_app(app) as server:
        async with client_of(server) as client:
            await client.send(request("GET", "/goes%20on"))
            await app.begun.wait()
        await until(lambda: bool(app.ended))
    assert app.ended == ["returned"]


async def test_an_app_that_has_answered_is_not_cancelled() -> None:
    app = Watched()
    async with serving_app(app, cancel_on_disconnect=True) as server:
        async with client_of(server) as client:
            await client.send(request("GET", "/answers"))
            await head_of_response(client)
            await app.begun.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert not app.ended
    assert app.ended == ["cancelled"]  # by the end of the server


async def test_watched_clients_get_all_their_answers() -> None:
    app = Watched()
    size = 300_000
    async with serving_app(app, cancel_on_disconnect=True, limit_ahead=5000) as server, client_of(server) as client:
        sent = request("POST", "/echo", "Content-Length: 5", body=b"hello")
        large = request("POST", "/echo", f"Content-Length: {size}", body=bytes(size))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, sent * 3 + large + sent + closing("GET", "/echo"))
            got = answers(await receive_all(client), *["POST"] * 5)
    assert [len(answer.body) for answer in got] == [5, 5, 5, size, 5, 0]
    assert app.ended == ["returned"] * 6


async def test_a_watched_body_that_does_not_come_is_a_408(mock_clock: trio.testing.MockClock) -> None:
    told: list[str] = []

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        told.append((await receive())["type"])
        told.append((await receive())["type"])

    async with serving_app(app, timeout_body=5, cancel_on_disconnect=True) as server, client_of(server) as client:
        await client.send(request("POST", "/", "Content-Length: 10", body=b"hello"))
        await until(lambda: len(told) == 1)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(5.1)
        [answer] = answers(await receive_all(client), "POST")
        assert answer.status == 408
    assert told == ["http.request", "http.disconnect"]


# --- limits of time ---


async def test_a_connection_waits_for_its_next_request_for_a_while(mock_clock: trio.testing.MockClock) -> None:
    async with serving_app(hello, timeout_keep_alive=7, timeout_head=20) as server, client_of(server) as client:
        for _ in range(3):
            await client.send(request())
            await receive_hello(client)
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(6.9)
            await trio.testing.wait_all_tasks_blocked()
            assert server.active_connections == 1
        mock_clock.jump(1.2)
        assert await receive_all(client) == b""


async def test_a_connection_that_brings_nothing_is_closed(mock_clock: trio.testing.MockClock) -> None:
    async with serving_app(hello, timeout_head=20) as server, client_of(server) as client:
        await until(lambda: server.active_connections == 1)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(19.9)
        await trio.testing.wait_all_tasks_blocked()
        assert server.active_connections == 1
        mock_clock.jump(0.2)
        assert await receive_all(client) == b""


async def test_a_head_that_trickles_is_told_that_it_took_too_long(mock_clock: trio.testing.MockClock) -> None:
    async with serving_app(hello, timeout_head=10) as server, client_of(server) as client:
        await client.send(request())
        await receive_hello(client)
        before = server.statistics().bytes_received
        for count, byte in enumerate(b"GET / HTTP", 1):
            await client.send(bytes([byte]))
            await until(lambda count=count: server.statistics().bytes_received == before + count)
            await trio.testing.wait_all_tasks_blocked()
            assert client.inbound_buffered == 0
            mock_clock.jump(1.01)
        [answer] = answers(await receive_all(client))
        assert answer.status == 408


async def test_a_body_that_does_not_come_is_a_disconnect_and_a_408(mock_clock: trio.testing.MockClock) -> None:
    told: list[str] = []

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        told.append((await receive())["type"])
        told.append((await receive())["type"])

    async with serving_app(app, timeout_body=5) as server, client_of(server) as client:
        await client.send(request("POST", "/", "Content-Length: 10", body=b"hello"))
        await until(lambda: len(told) == 1)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(4.9)
        await trio.testing.wait_all_tasks_blocked()
        assert len(told) == 1
        mock_clock.jump(0.2)
        [answer] = answers(await receive_all(client), "POST")
        assert answer.status == 408
    assert told == ["http.request", "http.disconnect"]


async def test_a_body_that_is_skipped_has_a_limit_of_time(mock_clock: trio.testing.MockClock) -> None:
    async with serving_app(hello, timeout_body=5) as server, client_of(server) as client:
        await client.send(request("POST", "/", "Content-Length: 10", body=b"hello"))
        await receive_hello(client)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(5.1)
        assert await receive_all(client) == b""


async def test_an_app_may_take_its_time_between_the_pieces(mock_clock: trio.testing.MockClock) -> None:
    asleep = 0

    async def sleep() -> None:
        nonlocal asleep
        asleep += 1
        await trio.sleep(1000)

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await sleep()
        await receive()
        await sleep()
        await send(TEXT)
        await send(PIECE)
        await sleep()
        await send(BODY)

    async with serving_app(app, patience=math.inf) as server, client_of(server) as client:
        await client.send(closing("POST", "/", "Content-Length: 5", body=b"hello"))
        for count in range(1, 4):
            await until(lambda count=count: asleep == count)
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(1001)
        [answer] = answers(await receive_all(client), "POST")
    assert len(answer.body) == 1013


async def test_a_client_that_does_not_read_is_reset(caplog: pytest.LogCaptureFixture) -> None:
    errors: list[BaseException] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send(TEXT)
        try:
            while True:
                await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})
        except ClientDisconnected as error:
            errors.append(error)
            raise

    with trio.fail_after(20):
        async with serving_app(app, timeout_send=0.2) as server, client_of(server, marks=FEW) as client:
            await client.send(request())
            await until(lambda: bool(errors))
    assert str(errors[0]) == "the client reads too slowly"
    assert not tracebacks(caplog)


# --- drains ---


async def test_a_drain_answers_what_runs_and_ends_what_is_idle() -> None:
    begun, goes_on = trio.Event(), trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            begun.set()
            await goes_on.wait()
        await hello(scope, receive, send)

    async with serving_app(app) as server, client_of(server) as idle, client_of(server) as busy:
        await idle.send(request())
        await head_of_response(idle)
        await busy.send(request("GET", "/slow"))
        await begun.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.drain, math.inf)
            assert (await receive_all(idle)).endswith(b"Hello, World!")
            goes_on.set()
            [answer] = answers(await receive_all(busy))
            assert answer.fields["connection"] == "close"
            assert answer.body == b"Hello, World!"
            await busy.aclose()


async def test_a_drain_answers_all_requests_that_have_arrived() -> None:
    async with serving_app(hello) as server, client_of(server) as client:
        await client.send(request())
        await receive_hello(client)
        async with trio.open_nursery() as nursery:
            await client.send(request())
            await client.flush()
            nursery.start_soon(server.drain, math.inf)
            [answer] = answers(await receive_all(client))
            assert answer.body == b"Hello, World!"


async def test_a_client_that_has_just_connected_is_served_in_a_drain() -> None:
    async with serving_app(hello) as server, client_of(server) as client:
        await until(lambda: server.active_connections == 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.drain, math.inf)
            await server.draining.wait()
            await client.send(request())
            [answer] = answers(await receive_all(client))
            assert answer.fields["connection"] == "close"


async def test_cancelling_the_server_cancels_the_app() -> None:
    begun, ended = trio.Event(), trio.Event()

    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with serving_app(app) as server, client_of(server) as client:
        await client.send(request())
        await begun.wait()
    assert ended.is_set()

"""Applications of Quart-Trio and Litestar, unmodified, on gain_trio.asgi."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from litestar import Litestar, get, post, websocket_listener
from litestar.response import ServerSentEvent, Stream
from quart import request as quart_request
from quart import websocket as quart_websocket
from quart_trio import QuartTrio
from support.asgi_serving import ask, client_of, closing, head_of_response, request, serving_app
from support.pairs import until
from support.websocket_servers import peer_of

pytestmark = [pytest.mark.connections, pytest.mark.one_backend]


# --- Quart-Trio ---


class QuartSite:
    """A Quart application, and what it has noticed."""

    def __init__(self) -> None:
        self.noticed: list[str] = []
        self.app = app = QuartTrio(__name__)

        @app.before_serving
        async def start() -> None:
            self.noticed.append("starts")
            app.nursery.start_soon(self._beside)

        @app.after_serving
        async def end() -> None:
            self.noticed.append("ends")

        @app.post("/json/<name>")
        async def echo(name: str) -> dict[str, Any]:
            return {"name": name, "body": await quart_request.get_json(), "query": quart_request.args["a"]}

        @app.get("/stream")
        async def stream() -> AsyncIterator[bytes]:
            async def pieces() -> AsyncIterator[bytes]:
                for number in range(3):
                    await trio.lowlevel.checkpoint()
                    yield b"%d," % number

            return pieces()

        @app.get("/thread")
        def in_thread() -> str:
            return str(threading.current_thread() is threading.main_thread())

        @app.get("/fails")
        async def fails() -> str:
            raise LookupError("of the route")

        @app.websocket("/socket")
        async def socket() -> None:
            while True:
                await quart_websocket.send(f"{await quart_websocket.receive()}!")

    async def _beside(self) -> None:
        self.noticed.append("beside")


async def test_quart_trio_routes() -> None:
    body = b'{"b": [1]}'
    post_ = request("POST", "/json/x?a=1", f"Content-Length: {len(body)}", "Content-Type: application/json", body=body)
    site = QuartSite()
    async with serving_app(site.app, app_lifespan="on") as server:
        sent = post_ + request("GET", "/stream") + request("GET", "/thread") + request("GET", "/fails")
        echoed, stream, thread, failed, missing = await ask(server, sent + closing("GET", "/missing"), "POST")
        assert site.noticed == ["starts", "beside"]
        await server.drain(5)
    assert json.loads(echoed.body) == {"name": "x", "body": {"b": [1]}, "query": "1"}
    assert stream.body == b"0,1,2,"
    assert thread.body == b"False"
    assert (failed.status, missing.status) == (500, 404)
    assert site.noticed[-1] == "ends"


async def test_a_websocket_of_quart_trio() -> None:
    async with serving_app(QuartSite().app, app_lifespan="on") as server, peer_of(server, path=b"/socket") as peer:
        await peer.response()
        assert peer.status == 101
        await peer.text("hello")
        assert await peer.message() == "hello!"


# --- Litestar ---

# It has new ways to declare arguments, which its older releases lack, and warns of the old ones.
old_ways = pytest.mark.filterwarnings("ignore::litestar.exceptions.LitestarDeprecationWarning")


@dataclass
class Item:
    """The body of a request."""

    name: str
    price: float


@post("/items/{number:int}")
async def add(number: int, data: Item) -> dict[str, Any]:
    return {"number": number, "name": data.name, "price": data.price}


@get("/thread", sync_to_thread=True)
def in_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@get("/stream")
async def stream() -> Stream:
    async def pieces() -> AsyncGenerator[bytes, None]:
        for number in range(3):
            await trio.lowlevel.checkpoint()
            yield b"%d," % number

    return Stream(pieces())


@get("/events")
async def events() -> ServerSentEvent:
    async def ticks() -> AsyncGenerator[str, None]:
        while True:
            await trio.lowlevel.checkpoint()
            yield "tick"

    return ServerSentEvent(ticks())


@websocket_listener("/socket")
async def socket(data: str) -> str:
    return f"{data}!"


def litestar_app(noticed: list[str]) -> Litestar:
    return Litestar(
        [add, in_thread, stream, events, socket],
        on_startup=[lambda: noticed.append("starts")],
        on_shutdown=[lambda: noticed.append("ends")],
        logging_config=None,
    )


@old_ways
async def test_litestar_routes() -> None:
    body = b'{"name": "x", "price": 1.5}'
    right = request("POST", "/items/5", f"Content-Length: {len(body)}", "Content-Type: application/json", body=body)
    wrong = request("POST", "/items/x", f"Content-Length: {len(body)}", "Content-Type: application/json", body=body)
    noticed: list[str] = []
    async with serving_app(litestar_app(noticed), app_lifespan="on") as server:
        sent = (
            right
            + wrong
            + request("GET", "/thread")
            + request("GET", "/stream")
            + closing("GET", "/schema/openapi.json")
        )
        item, error, thread, pieces, schema = await ask(server, sent, "POST", "POST")
        assert noticed == ["starts"]
        await server.drain(5)
    assert json.loads(item.body) == {"number": 5, "name": "x", "price": 1.5}
    assert error.status == 404
    assert json.loads(thread.body) is False
    assert pieces.body == b"0,1,2,"
    assert "/items/{number}" in json.loads(schema.body)["paths"]
    assert noticed == ["starts", "ends"]


@old_ways
async def test_litestars_events_end_with_the_client(caplog: pytest.LogCaptureFixture) -> None:
    async with serving_app(litestar_app([])) as server:
        async with client_of(server) as client:
            await client.send(request("GET", "/events"))
            await head_of_response(client)
            assert b"data: tick\r\n" in await client.receive_until(b"tick\r\n")
        await until(lambda: not server.active_connections)
    assert not caplog.records


@old_ways
async def test_a_websocket_of_litestar() -> None:
    async with serving_app(litestar_app([])) as server, peer_of(server, path=b"/socket") as peer:
        await peer.response()
        assert peer.status == 101
        await peer.text("hello")
        assert await peer.message() == "hello!"

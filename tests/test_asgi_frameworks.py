"""Applications of Starlette and FastAPI, unmodified, on gain_trio.asgi."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from support.asgi_serving import ask, client_of, closing, head_of_response, request, serving_app
from support.pairs import receive_all, until

pytestmark = [pytest.mark.connections, pytest.mark.one_backend]


# --- Starlette ---


class Adding(BaseHTTPMiddleware):
    """A middleware of Starlette's older kind, which runs the app in a task beside."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        """Add a field to the response."""
        response = await call_next(request)
        response.headers["x-added"] = "1"
        return response


# Before 1.8, which needs Python 3.11, Starlette leaves a generator to the garbage collector below such a middleware.
ADDING = [Middleware(Adding)] if sys.version_info >= (3, 11) else []


class Ticks(AsyncIterator[str]):
    """Events without an end."""

    async def __anext__(self) -> str:
        await trio.lowlevel.checkpoint()
        return "data: tick\n\n"


class Site:
    """A Starlette application, and what its routes have noticed."""

    def __init__(self, folder: Path) -> None:
        self.noticed: list[Any] = []
        (folder / "file.txt").write_bytes(b"content" * 10_000)
        self.folder = folder
        self.app = Starlette(
            routes=[
                Route("/json/{name}", self.json, methods=["GET", "POST"]),
                Route("/stream", self.stream),
                Route("/events", self.events),
                Route("/thread", self.thread),
                Route("/upload", self.upload, methods=["POST"]),
                Route("/background", self.background),
                Route("/file", self.file),
                Route("/watch", self.watch),
                Route("/fails", self.fails),
                Mount("/static", StaticFiles(directory=folder)),
            ],
            middleware=[Middleware(GZipMiddleware, minimum_size=100_000), *ADDING],
        )

    async def json(self, request: Request) -> Response:
        body = await request.json() if request.method == "POST" else None
        return JSONResponse({"name": request.path_params["name"], "query": dict(request.query_params), "body": body})

    async def stream(self, _request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            for number in range(3):
                await trio.lowlevel.checkpoint()
                yield b"%d," % number

        return StreamingResponse(pieces(), media_type="text/plain")

    async def events(self, _request: Request) -> Response:
        return StreamingResponse(Ticks(), media_type="text/event-stream")

    def thread(self, _request: Request) -> Response:
        return PlainTextResponse(str(threading.current_thread() is threading.main_thread()))

    async def upload(self, request: Request) -> Response:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
        return PlainTextResponse(str(size))

    async def background(self, _request: Request) -> Response:
        return PlainTextResponse("done", background=BackgroundTask(self.noticed.append, "background"))

    async def file(self, _request: Request) -> Response:
        return FileResponse(self.folder / "file.txt")

    async def watch(self, request: Request) -> Response:
        self.noticed.append(await request.is_disconnected())
        while not await request.is_disconnected():
            await trio.lowlevel.checkpoint()
        self.noticed.append("disconnected")
        return PlainTextResponse("unread")

    async def fails(self, _request: Request) -> Response:
        raise LookupError("of the route")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def test_starlette_routes(site: Site) -> None:
    body = json.dumps({"a": [1, 2]}).encode()
    post = request("POST", "/json/y", f"Content-Length: {len(body)}", "Content-Type: application/json", body=body)
    async with serving_app(site.app) as server:
        sent = request("GET", "/json/x?a=b") + post + request("GET", "/stream") + request("GET", "/missing")
        first, second, third, missing, thread = await ask(server, sent + closing("GET", "/thread"), "GET", "POST")
    assert json.loads(first.body) == {"name": "x", "query": {"a": "b"}, "body": None}
    assert json.loads(second.body) == {"name": "y", "query": {}, "body": {"a": [1, 2]}}
    assert (third.body, third.fields["transfer-encoding"]) == (b"0,1,2,", "chunked")
    assert missing.status == 404
    assert thread.body == b"False"
    added = {answer.fields.get("x-added") for answer in (first, second, third, missing, thread)}
    assert added == {"1" if ADDING else None}


async def test_starlette_files(site: Site) -> None:
    async with serving_app(site.app) as server:
        sent = (
            request("GET", "/file") + request("HEAD", "/file") + request("GET", "/static/file.txt", "Range: bytes=0-6")
        )
        whole, head, part, missing = await ask(server, sent + closing("GET", "/static/none"), "GET", "HEAD")
    assert whole.body == b"content" * 10_000
    assert (head.body, head.fields["content-length"]) == (b"", "70000")
    assert (part.status, part.body) == (206, b"content")
    assert missing.status == 404


async def test_a_starlette_app_sends_files_by_path(tmp_path: Path) -> None:
    """Without a middleware that would have to see the body, it leaves files to the server."""
    site = Site(tmp_path)
    app = Starlette(routes=[Route("/file", site.file)])
    async with serving_app(app) as server:
        [answer] = await ask(server, closing("GET", "/file"))
    assert answer.body == b"content" * 10_000


async def test_a_starlette_upload_is_pulled(site: Site) -> None:
    body = bytes(1 << 20)
    async with serving_app(site.app) as server, client_of(server) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, closing("POST", "/upload", f"Content-Length: {len(body)}", body=body))
            received = await receive_all(client)
    assert received.endswith(b"\r\n\r\n1048576")


async def test_a_starlette_background_task_runs_after_the_response(site: Site) -> None:
    async with serving_app(site.app) as server:
        got = await ask(server, request("GET", "/background") + closing("GET", "/background"))
    assert [answer.body for answer in got] == [b"done", b"done"]
    assert site.noticed == ["background"] * 2


async def test_starlette_notices_that_its_client_is_gone(tmp_path: Path) -> None:
    site = Site(tmp_path)
    app = Starlette(routes=[Route("/watch", site.watch)])
    async with serving_app(app) as server:
        async with client_of(server) as client:
            await client.send(request("GET", "/watch"))
            await until(lambda: len(site.noticed) == 1)
        await until(lambda: len(site.noticed) == 2)
        await until(lambda: not server.active_connections)
    assert site.noticed == [False, "disconnected"]


async def test_server_sent_events_end_with_the_client(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    site = Site(tmp_path)
    app = Starlette(routes=[Route("/events", site.events)])
    async with serving_app(app) as server:
        async with client_of(server) as client:
            await client.send(request("GET", "/events"))
            await head_of_response(client)
            assert b"data: tick\n\n" in await client.receive_until(b"\n\n")
        await until(lambda: not server.active_connections)
        assert server.statistics().broken == 1
    assert not caplog.records


async def test_an_error_of_a_starlette_route_is_logged_once(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    async with serving_app(site.app) as server:
        [answer] = await ask(server, request("GET", "/fails"))
        assert (answer.status, answer.body) == (500, b"Internal Server Error")
        await until(lambda: server.statistics().handler_errors == 1)
    assert len([record for record in caplog.records if "LookupError" in str(record.exc_text)]) == 1


# --- FastAPI ---


class Item(BaseModel):
    """The body of a request."""

    name: str
    price: float


class Session:
    """A resource that a dependency opens and closes."""

    opened = closed = 0


def fastapi_app() -> FastAPI:
    """An application with a model, a dependency with an end, and a route in a thread."""
    app = FastAPI()

    async def session() -> AsyncIterator[Session]:
        Session.opened += 1
        try:
            yield Session()
        finally:
            Session.closed += 1

    @app.post("/items/{number}")
    async def add(number: int, item: Item, _session: Session = Depends(session)) -> dict[str, Any]:  # noqa: B008, FAST002 - as its users write it
        return {"number": number, "name": item.name, "price": item.price}

    @app.get("/thread")
    def in_thread() -> bool:
        return threading.current_thread() is threading.main_thread()

    @app.get("/teapot")
    async def teapot() -> None:
        raise HTTPException(418, "short and stout")

    return app


async def test_fastapi_routes() -> None:
    body = b'{"name": "x", "price": 1.5}'
    post = request("POST", "/items/5", f"Content-Length: {len(body)}", "Content-Type: application/json", body=body)
    wrong = request("POST", "/items/x", f"Content-Length: {len(body)}", "Content-Type: application/json", body=body)
    Session.opened = Session.closed = 0
    async with serving_app(fastapi_app()) as server:
        sent = post + wrong + request("GET", "/thread") + request("GET", "/teapot") + closing("GET", "/openapi.json")
        item, error, thread, teapot, schema = await ask(server, sent, "POST", "POST")
    assert json.loads(item.body) == {"number": 5, "name": "x", "price": 1.5}
    assert error.status == 422
    assert json.loads(thread.body) is False
    assert (teapot.status, json.loads(teapot.body)) == (418, {"detail": "short and stout"})
    assert "/items/{number}" in json.loads(schema.body)["paths"]
    assert (Session.opened, Session.closed) == (2, 2)


async def test_fastapi_streams() -> None:
    app = FastAPI()

    @app.get("/")
    async def stream() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            with contextlib.suppress(trio.Cancelled):
                for _ in range(5):
                    yield b"piece"
                    await trio.lowlevel.checkpoint()

        return StreamingResponse(pieces())

    async with serving_app(app) as server:
        got = await ask(server, request() + closing())
    assert [answer.body for answer in got] == [b"piece" * 5] * 2


async def test_fastapis_events_end_with_the_client(caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()

    @app.get("/events")
    async def events() -> StreamingResponse:
        return StreamingResponse(Ticks(), media_type="text/event-stream")

    async with serving_app(app) as server:
        async with client_of(server) as client:
            await client.send(request("GET", "/events"))
            assert b"content-type: text/event-stream" in (await head_of_response(client)).lower()
            assert b"data: tick\n\n" in await client.receive_until(b"\n\n")
        await until(lambda: not server.active_connections)
    assert not caplog.records

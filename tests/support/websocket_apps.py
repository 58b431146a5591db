"""Apps with WebSockets: by hand, of Starlette and of FastAPI; worker processes import them from here, too."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.endpoints import WebSocketEndpoint
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect


async def send_back(scope: Any, receive: Any, send: Any) -> None:
    """Send back every message; with the subprotocol ``process``, the process's id first."""
    assert scope["type"] == "websocket"
    assert (await receive())["type"] == "websocket.connect"
    chosen = scope["subprotocols"][0] if scope["subprotocols"] else None
    await send({"type": "websocket.accept", "subprotocol": chosen})
    if chosen == "process":
        await send({"type": "websocket.send", "text": str(os.getpid())})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


# --- Starlette ---

SEEN: list[tuple[str, int]] = []
"""The name and the close code of each WebSocket that has ended."""


class Shouting(WebSocketEndpoint):
    """Answers text in capitals."""

    encoding = "text"

    async def on_receive(self, websocket: WebSocket, data: str) -> None:
        await websocket.send_text(data.upper())

    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:  # noqa: ARG002 - Starlette's
        SEEN.append(("shouting", close_code))


async def _json(websocket: WebSocket) -> None:
    await websocket.accept(headers=[(b"x-own", b"1")])
    try:
        async for data in websocket.iter_json():
            await websocket.send_json({"number": data["number"] + 1})
    except WebSocketDisconnect as error:
        SEEN.append(("json", error.code))


async def _denied(websocket: WebSocket) -> None:
    await websocket.send_denial_response(PlainTextResponse("members only", 402))


async def _closing(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_bytes(b"bye")
    await websocket.close(4001, "enough")


async def _home(request: Any) -> PlainTextResponse:
    return PlainTextResponse("home")


starlette_app = Starlette(
    routes=[
        Route("/", _home),
        WebSocketRoute("/shouting", Shouting),
        WebSocketRoute("/json", _json),
        WebSocketRoute("/denied", _denied),
        WebSocketRoute("/closing", _closing),
    ]
)

# --- FastAPI ---

fastapi_app = FastAPI()


async def _resource() -> AsyncIterator[str]:
    yield "resource"
    SEEN.append(("resource", 0))


@fastapi_app.get("/")
async def _fastapi_home() -> dict[str, str]:
    return {"home": "sweet"}


@fastapi_app.websocket("/rooms/{room}")
async def _room(
    websocket: WebSocket, room: int, resource: Annotated[str, Depends(_resource)], name: str = "guest"
) -> None:
    await websocket.accept()
    await websocket.send_json({"room": room, "name": name, "resource": resource})
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect as error:
        SEEN.append(("room", error.code))

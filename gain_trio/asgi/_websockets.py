"""Requests that want a WebSocket: the handshake, and what observers of requests see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from gain_trio._http import Request

from ._asgi_config import AsgiConfig
from ._asgi_types import Scope
from ._websocket import WebSocket
from ._websocket_codec import WebSocketCodec

if TYPE_CHECKING:
    from ._exchange import HttpExchange
    from ._http_connection import HttpConnection


@final
class WebSockets:
    """Serves the WebSockets of an app: :attr:`AsgiHandler.websocket`."""

    __slots__ = ("_config",)

    def __init__(self, config: AsgiConfig) -> None:
        self._config = config

    async def __call__(
        self, http: HttpConnection, request: Request, scope: dict[str, Any], exchange: HttpExchange
    ) -> None:
        """Serve a request that wants an upgrade to WebSocket, until the connection is over.

        What the app raises ends the WebSocket with 1011, and is raised again when that is done.  Cancelling it ends
        everything at once, without a close frame.
        """
        scope["type"] = "websocket"
        scope["scheme"] = "wss" if scope["scheme"] == "https" else "ws"
        scope["subprotocols"] = _members(request, b"sec-websocket-protocol")
        own = {name: value for name, value in scope["extensions"].items() if not name.startswith("http.")}
        scope["extensions"] = {**own, "websocket.http.response": {}}
        del scope["method"]
        observer = http.handler.observer
        token = None if observer is None else observer.began(scope)
        failure: BaseException | None = None
        try:
            await self._serve(http, request, scope, exchange)
        except BaseException as error:
            failure = error
            raise
        finally:
            if observer is not None:
                observer.ended(token, scope, exchange.status, exchange.size, failure)

    async def _serve(self, http: HttpConnection, request: Request, scope: Scope, exchange: HttpExchange) -> None:
        codec = WebSocketCodec(self._config)
        handshake = codec.handshake(request.pairs)
        if handshake.status == 101:
            codec.feed(http.reader.take_unread())
            await WebSocket(http, codec, exchange, handshake.fields).run(scope)
            return
        await exchange.send({"type": "http.response.start", "status": handshake.status, "headers": handshake.fields})
        await exchange.send({"type": "http.response.body", "body": handshake.body})
        await http._finish(exchange, None)


def _members(request: Request, wanted: bytes) -> list[str]:
    """The members of a list in one field or several."""
    values = [value.decode("latin-1") for name, value in request.pairs if name == wanted]
    return [member for value in values for part in value.split(",") if (member := part.strip())]

"""Watching a client while its app runs, so that the app can be cancelled when the client goes (``cancel_on_disconnect``).

A task beside the app receives, and gives what it receives to the reader: pieces of the body, and further requests.  It
stops when the limit of bytes ahead is reached, and goes on when the app takes some of the body, so that a client cannot
fill memory.  It is the only one to receive: an app that asks for the body waits for it.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import final

import trio

from gain_trio._server import ungrouped

from ._client_side import ClientSide
from ._exchange import DONE, HttpExchange


@final
class ClientWatch:
    """The watch during one request."""

    def __init__(self, http: ClientSide, exchange: HttpExchange) -> None:
        self._http = http
        self._exchange = exchange
        self._arrival = trio.Event()  # bytes were given to the reader, or the client is gone; one for each time
        self._room = trio.Event()  # the app has taken some of the body; likewise
        self._gone = trio.Event()

    async def call(self, call: Callable[[], Awaitable[object]]) -> None:
        """Call the app.  When its client goes before the response is complete, the call is cancelled, and this returns."""
        with ungrouped():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, nursery.cancel_scope, name="gain_trio watch of a client")
                await call()
                nursery.cancel_scope.cancel()

    async def more(self, timeout: float) -> bool:  # noqa: ASYNC109 - the same as of HttpConnection.receive_more()
        """Wait until there is more of the body; False if nothing came in time, or the client is gone."""
        if self._http.is_ended:
            return False
        with trio.move_on_after(timeout) as scope:
            await self._arrival.wait()
        return not (scope.cancelled_caught or self._http.is_ended)

    def note_taken(self) -> None:
        """The app has taken what there was of the body: there is room for more."""
        self._room.set()
        self._room = trio.Event()

    async def until_gone(self) -> None:
        """Wait until the client is gone."""
        await self._gone.wait()

    async def _watch(self, scope: trio.CancelScope) -> None:
        http = self._http
        connection, reader, most = http.connection, http.reader, http.config.limit_ahead
        http.is_receiving = True  # so that no send gives this a deadline
        connection.read_deadline = math.inf
        while True:
            while reader.unread >= most:
                await self._room.wait()
            try:
                data = await connection.receive()
            except trio.BrokenResourceError:
                data = b""
            if data:
                reader.feed(data)
            else:
                http.is_ended = True
                self._gone.set()
                if self._exchange.phase != DONE:
                    http.is_gone = self._exchange.is_told_gone = True
                    scope.cancel()
            self._arrival.set()
            self._arrival = trio.Event()
            if not data:
                return

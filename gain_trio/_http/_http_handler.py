"""The handler ``http`` of ``gain-trio serve``: the plaintext test of the TechEmpower Framework Benchmarks.

The handler answers ``GET /plaintext``, and ``GET /`` for a browser, with ``Hello, World!``.  It serves experiments and
measurements, so it is correct first (see :mod:`._http_requests`).  It puts the constant part of its answers together once
a second, because a Date is valid that long.
"""

from __future__ import annotations

import email.utils
import math
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import final

import trio

from gain_trio._transports import Connection

from ._http_heads import response, split_target
from ._http_requests import Exchange, Phase, Site
from ._linger import CHUNK, linger

IDLE_TIMEOUT = 60.0
"""Seconds that a client may be silent, if the server has no ``idle_timeout`` of its own."""
REQUEST_TIMEOUT = 30.0
"""Seconds that a request may take from its first byte to its last."""
ANSWER_TIMEOUT = 30.0
"""Seconds in which a client must read enough of its answers that the handler can queue the next one.  The handler resets
a slower connection, because an error page could not reach that client either."""
BODY = b"Hello, World!"
PATHS = (b"/plaintext", b"/")
METHODS = (b"GET", b"HEAD")


@final
class Plaintext(Site):
    """A site that serves one text, with the current time in its answers.

    Args:
      clock: the time, in seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._second = -1
        self._date = b""
        self._ready: dict[tuple[bytes, bytes, bytes], bytes] = {}

    def refresh(self) -> None:
        """See :meth:`Site.refresh`.  The part that depends on the time is made anew once a second.

        Several threads may call this at once, when callbacks run in worker threads.
        """
        second = int(self._clock())
        if second == self._second:
            return
        self._date = email.utils.formatdate(second, usegmt=True).encode("ascii")
        self._ready = {
            (method, path, connection): self._response(HTTPStatus.OK, BODY, connection, with_body=method != b"HEAD")
            for method in METHODS
            for path in PATHS
            for connection in (b"", b"keep-alive", b"close")
        }
        self._second = second  # last: a thread that finds the current second here finds the rest, too

    def answer(self, method: bytes, target: bytes, connection: bytes) -> bytes:
        """See :meth:`Site.answer`."""
        ready = self._ready.get((method, target, connection))
        if ready is not None:
            return ready
        path, _query = split_target(target)
        with_body = method != b"HEAD"
        if path not in PATHS:
            return self._response(HTTPStatus.NOT_FOUND, b"there is nothing here\n", connection, with_body=with_body)
        if method not in METHODS:
            allow = b"Allow: " + b", ".join(METHODS) + b"\r\n"
            text = b"this can be read, and nothing else\n"
            return self._response(HTTPStatus.METHOD_NOT_ALLOWED, text, connection, more=allow)
        return self._ready[method, path, connection]

    def refusal(self, status: HTTPStatus, reason: str) -> bytes:
        """See :meth:`Site.refusal`."""
        return self._response(status, reason.encode("ascii") + b"\n", b"close")

    def _response(
        self, status: HTTPStatus, body: bytes, connection: bytes, *, with_body: bool = True, more: bytes = b""
    ) -> bytes:
        said = b"Connection: " + connection + b"\r\n" if connection else b""
        return response(
            status,
            body,
            first=b"Server: gain_trio\r\nDate: " + self._date + b"\r\n",
            last=said + more,
            with_content=with_body,
        )


SITE = Plaintext()


async def http(connection: Connection) -> None:
    """Answer the requests of a connection.

    When its server drains, the handler answers the requests that have arrived or begun to arrive, and closes the
    connection then.
    """
    if await _converse(connection, Exchange(SITE)):
        await linger(connection)


http.default_idle_timeout = IDLE_TIMEOUT  # type: ignore[attr-defined]  # see serve_listeners()


async def _converse(connection: Connection, exchange: Exchange) -> bool:
    """Answer requests until the last one.  Returns whether the peer's side is still open."""
    deadline = math.inf  # of the request that has begun
    while True:
        if exchange.phase is Phase.IDLE and not await connection.wait_data():
            return connection.draining.is_set()
        try:
            data = await connection.receive(CHUNK)
        except trio.TooSlowError:
            await _answer(connection, exchange.too_slow())
            return True
        await _answer(connection, exchange.feed(data) if data else exchange.feed_eof())
        if exchange.phase is Phase.OVER:
            return bool(data)
        if exchange.phase is Phase.IDLE:
            if deadline < math.inf:
                connection.read_deadline = deadline = math.inf
        elif deadline == math.inf or exchange.has_answered:
            connection.read_deadline = deadline = trio.current_time() + REQUEST_TIMEOUT


async def _answer(connection: Connection, answers: bytes) -> None:
    if answers:
        connection.write_deadline = trio.current_time() + ANSWER_TIMEOUT
        await connection.send(answers)

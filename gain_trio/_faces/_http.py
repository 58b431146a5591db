"""The handler ``http`` of ``gain-trio serve``: the plaintext test of the TechEmpower Framework Benchmarks.

``GET /plaintext``, and ``GET /`` for those who just look, are answered with ``Hello, World!``.  It is a server to try
things and to measure with, so it is correct first (see :mod:`._http_requests`), and what is the same in every answer is
put together once a second: that is how long a Date is good for.
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

from ._http_requests import Exchange, Phase, Site

CHUNK = 65536
"""The most bytes to look at in one step: some thousand requests, a few milliseconds."""
REQUEST_TIMEOUT = 30.0
"""Seconds that a request may take from its first byte to its last."""
LINGER_SECONDS = 2.0
"""How long to go on receiving after the last answer.  A connection that is closed with bytes unread is reset by the
kernel, and the reset may overtake the answer (RFC 9112, 9.6)."""
LINGER_BYTES = 4 * 1024 * 1024
"""And how much."""

BODY = b"Hello, World!"
PATHS = (b"/plaintext", b"/")
METHODS = (b"GET", b"HEAD")


@final
class Plaintext(Site):
    """Serves one text, and knows what time it is.

    Args:
      clock: the time, in seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._second = -1
        self._date = b""
        self._ready: dict[tuple[bytes, bytes, bytes], bytes] = {}

    def refresh(self) -> None:
        """See :meth:`Site.refresh`.  What depends on the time is made anew when the second is another."""
        second = int(self._clock())
        if second == self._second:
            return
        self._second = second
        self._date = email.utils.formatdate(second, usegmt=True).encode("ascii")
        self._ready = {
            (method, path, connection): self._response(HTTPStatus.OK, BODY, connection, with_body=method != b"HEAD")
            for method in METHODS
            for path in PATHS
            for connection in (b"", b"keep-alive", b"close")
        }

    def answer(self, method: bytes, target: bytes, connection: bytes) -> bytes:
        """See :meth:`Site.answer`."""
        ready = self._ready.get((method, target, connection))
        if ready is not None:
            return ready
        path = _path_of(target)
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
        return b"".join(
            (
                f"HTTP/1.1 {status.value} {status.phrase}\r\nServer: gain_trio\r\nDate: ".encode("ascii"),
                self._date,
                b"\r\nContent-Type: text/plain; charset=utf-8\r\n",
                f"Content-Length: {len(body)}\r\n".encode("ascii"),
                said,
                more,
                b"\r\n",
                body if with_body else b"",
            )
        )


def _path_of(target: bytes) -> bytes:
    """Without the query, and without what precedes it in a request to a proxy (RFC 9112, 3.2.2)."""
    if target[:7].lower() == b"http://" or target[:8].lower() == b"https://":
        _authority, slash, rest = target.partition(b"//")[2].partition(b"/")
        target = slash + rest or b"/"
    return target.partition(b"?")[0]


SITE = Plaintext()


async def http(connection: Connection) -> None:
    """Answer the requests of a connection."""
    exchange = Exchange(SITE)
    timed = False
    try:
        while data := await connection.receive(CHUNK):
            if answers := exchange.feed(data):
                await connection.send(answers)
            phase = exchange.phase
            if phase is Phase.OVER:
                break
            if timed is not (phase is Phase.UNFINISHED):
                timed = not timed
                connection.read_deadline = trio.current_time() + REQUEST_TIMEOUT if timed else math.inf
        else:
            if answers := exchange.feed_eof():
                await connection.send(answers)
            return
    except trio.TooSlowError:
        await connection.send(exchange.too_slow())
    await _linger(connection)


async def _linger(connection: Connection) -> None:
    """Have the peer receive the last answer: end this side, and receive until it has ended its own, within bounds."""
    left = LINGER_BYTES
    connection.read_deadline = math.inf  # the last request's does not count any more
    with trio.move_on_after(LINGER_SECONDS):
        try:
            await connection.send_eof()
        except NotImplementedError:  # TLS: there is nothing but to close it
            return
        while left > 0 and (data := await connection.receive(CHUNK)):
            left -= len(data)

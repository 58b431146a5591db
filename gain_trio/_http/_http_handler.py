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

from gain_trio._transports import Connection, was_reset

from ._http_heads import response, split_target
from ._http_requests import Exchange, KnownAnswers, Phase, Site
from ._linger import linger

IDLE_TIMEOUT = 60.0
"""Seconds that a client may be silent, if the server has no ``idle_timeout`` of its own."""
REQUEST_TIMEOUT = 30.0
"""Seconds that a request may take from its first byte to its last."""
ANSWER_TIMEOUT = 30.0
"""Seconds in which a client must read enough of its answers that the handler can queue the next one.  The handler resets
a slower connection, because an error page could not reach that client either."""
PIECE = 4096
"""Bytes of requests, or of a body in chunks, that the handler works off before others have a turn."""
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
        self.clock = clock
        self._date = b""
        self._ready: dict[tuple[bytes, bytes, bytes], bytes] = {}
        self.known = KnownAnswers()

    def refresh(self, now: float) -> None:
        """See :meth:`Site.refresh`.  The part that depends on the time is made anew once a second.

        Several threads may call this at once, when callbacks run in worker threads.
        """
        second = int(now)
        self._date = email.utils.formatdate(second, usegmt=True).encode("ascii")
        self._ready = {
            (method, path, connection): self._response(HTTPStatus.OK, BODY, connection, with_body=method != b"HEAD")
            for method in METHODS
            for path in PATHS
            for connection in (b"", b"keep-alive", b"close")
        }
        self.known = KnownAnswers()  # behind that, so that it is given no answer of an earlier second
        self.since = float(second)  # last: a thread that finds the current second here finds the rest, too

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

    def refusal(self, status: HTTPStatus, reason: str, *, with_body: bool) -> bytes:
        """See :meth:`Site.refusal`."""
        return self._response(status, reason.encode("ascii") + b"\n", b"close", with_body=with_body)

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


async def http(connection: Connection) -> None:  # noqa: C901, PLR0912 - a coroutine of its own for a part of it costs 5 % of a request
    """Answer the requests of a connection.

    When its server drains, the handler answers the requests that have arrived or begun to arrive, and closes the
    connection then.
    """
    receive, send_nowait = connection.receive, connection._send_nowait
    exchange = Exchange(SITE)
    feed, idle = exchange.feed, Phase.IDLE
    deadline = math.inf  # of the request that has begun
    while True:
        if exchange.phase is idle:
            # What MessageLoop._first_of_message() does.
            connection._between = True  # type: ignore[misc]  # a slot of the implementation
            if connection._drains:
                connection._set_drain_deadline()
            try:
                data = await receive(PIECE)
            except trio.TooSlowError:
                if connection._drain_deadline is None:
                    raise
                break
            finally:
                connection._between = False  # type: ignore[misc]  # the same
                drain_deadline = connection._drain_deadline
                if drain_deadline is not None:
                    connection._restore_deadline(drain_deadline)
            if not data:
                if connection.draining.is_set():
                    break
                return
            answers = feed(data)
        else:
            try:
                data = await receive(PIECE)
            except trio.TooSlowError:
                await _send_last(connection, exchange.too_slow())
                break
            if not data:
                await _send_last(connection, exchange.feed_eof())
                return
            answers = feed(data)
        if answers and send_nowait(answers) > len(answers):  # the kernel has not accepted all of those before
            connection.write_deadline = trio.current_time() + ANSWER_TIMEOUT
            await connection.wait_send_all_might_not_block()
        if len(data) == PIECE:  # more may be there already, and each piece be two milliseconds' work
            await trio.lowlevel.checkpoint()
            if exchange.phase is not idle and was_reset(connection):
                return
        if exchange.phase is idle:
            if deadline < math.inf:
                connection.read_deadline = deadline = math.inf
        elif exchange.phase is Phase.OVER:
            break
        elif deadline == math.inf or exchange.has_answered:
            connection.read_deadline = deadline = trio.current_time() + REQUEST_TIMEOUT
    await linger(connection)


http.default_idle_timeout = IDLE_TIMEOUT  # type: ignore[attr-defined]  # see serve_listeners()


async def _send_last(connection: Connection, answer: bytes) -> None:
    connection.write_deadline = trio.current_time() + ANSWER_TIMEOUT
    await connection.send(answer)

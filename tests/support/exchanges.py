"""Exchanges of the ASGI server over a connection that is none, driven by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import trio

from gain_trio._http import Limits, Request, RequestMemory, RequestReader
from gain_trio.asgi._asgi_config import AsgiConfig
from gain_trio.asgi._exchange import HttpExchange
from gain_trio.asgi._http_connection import HttpConnection
from gain_trio.asgi._response_heads import HeadMemory, Stamp

USUAL = [{"type": "http.response.start", "status": 200, "headers": [(b"X", b"y")]}, {"type": "http.response.body"}]
"""The two messages of a usual response."""


class Recorder:
    """A connection that keeps what is sent."""

    outbound_buffered = 0
    read_deadline = write_deadline = math.inf
    _marks = SimpleNamespace(send_high=1 << 20)

    def __init__(self, *, drains: bool = False, failure: BaseException | None = None) -> None:
        self._drains = drains
        self._failure = failure
        self.sent = b""
        self.block: trio.Event | None = None

    async def send(self, data: Any) -> None:
        """Keep it, or fail."""
        if self.block is not None:
            await self.block.wait()
        if self._failure is not None:
            raise self._failure
        self.sent += data if isinstance(data, bytes) else b"".join(data)

    def abort(self) -> None:
        """Nothing: there is no peer."""


def requested(first: bytes = b"GET / HTTP/1.1", *fields: bytes) -> Request:
    """A request with these fields."""
    reader = RequestReader(RequestMemory(), Limits())
    request = reader.feed_request(b"\r\n".join([first, b"Host: here", *fields, b"", b""]))
    assert request is not None
    return request


def exchange_over(
    connection: Recorder,
    request: Request | None = None,
    *,
    usual: bool = True,
    gone: bool = False,
    clock: Callable[[], float] = lambda: 5.0,
    server: str = "test",
    date: bool = True,
) -> HttpExchange:
    """An exchange whose connection has just received a request."""
    http = object.__new__(HttpConnection)
    http.connection = connection  # type: ignore[assignment]
    http.config = AsgiConfig()
    http.heads = HeadMemory()
    http.stamp = Stamp(date=date, server=server, wall=lambda: 0.25)
    http.clock = clock
    http.renew_at = -math.inf
    http.is_gone = gone
    http.is_ended = http.is_receiving = False
    exchange = HttpExchange(http, requested() if request is None else request)
    exchange.is_usual = usual
    return exchange


def driven(awaitable: Any) -> tuple[str, ...]:
    """What comes of an awaitable, up to its first wait."""
    try:
        awaitable.send(None)
    except StopIteration as stop:
        return ("returned", repr(stop.value))
    except Exception as error:
        return (type(error).__name__, str(error))
    awaitable.close()
    return ("waits",)

"""The client of a request, as the request's exchange and the watch of the client see it: a part of the connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gain_trio._http import Refused, RequestReader
from gain_trio._transports import Connection

from ._asgi_config import AsgiConfig
from ._asgi_types import ClientDisconnected
from ._response_heads import HeadMemory, Stamp


class Response(Protocol):
    """What becomes of the response when its client is gone."""

    is_told_gone: bool
    """Whether the app knows that the client is gone."""
    is_incomplete: bool
    """Whether a send was interrupted, so that the connection cannot go on."""


class ClientSide(Protocol):
    """The connection of :class:`HttpConnection`, without its loop and its app."""

    is_ended: bool
    """Whether the peer has ended its side, or is gone."""
    is_gone: bool
    """Whether the app is to receive ``http.disconnect``."""
    is_receiving: bool
    """Whether a task receives during a request: then the deadline of reading is its own."""
    refusal: Refused | None
    """The answer to a request whose body was refused."""
    renew_at: float
    """When the deadlines are to be moved, on Trio's clock."""
    connection: Connection
    config: AsgiConfig
    reader: RequestReader
    heads: HeadMemory
    stamp: Stamp
    clock: Callable[[], float]

    def renew(self, now: float) -> None:
        """Move the deadlines away: that of the wait for the next request, and that of sending."""

    async def receive_more(self, timeout: float) -> bool:
        """Wait for bytes and give them to the reader; False if none came in time, or the peer has ended its side."""

    def note_taken(self) -> None:
        """The app has taken what there was of the body."""

    async def look_for_end(self) -> bool:
        """Return whether the client is gone, without waiting for it."""

    async def until_gone(self) -> None:
        """Wait until the client is gone; for ever if it sends more than the limit before that."""

    def lost(self, response: Response, error: BaseException | None) -> ClientDisconnected:
        """The client is gone, or too slow: return what ``send`` raises, with the reset done that this takes."""

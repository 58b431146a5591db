"""The heads of responses: what an app's status and fields become, and how the body behind them is framed."""

from __future__ import annotations

import email.utils
import math
import re
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, Final, final

import attrs

from gain_trio._http import TOKEN

_NAME: Final = re.compile(TOKEN + rb"+")
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_UNFRAMED: Final = frozenset({204, 304})
"""The statuses of responses that end with their heads (RFC 9112, 6.3)."""
_RESET_CONTENT: Final = 205
"""The one of responses that end with an empty body (RFC 9110, 15.3.6)."""
BODILESS: Final = _UNFRAMED | {_RESET_CONTENT}
"""All of them: what an app sends as their body is left out."""
_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}
_MAX_SHARED: Final = 1024
"""Bytes of the longest head that is remembered."""
_MOST_SHARED: Final = 512
"""Heads that are remembered."""
_NOT_SHARED: Final = frozenset({b"set-cookie"})


@final
class Stamp:
    """The fields Date and Server, made anew once a second.

    Args:
      date, server: whether there is a Date, and the text of Server.
      wall: the time, in seconds since the epoch.
    """

    __slots__ = ("_date", "_server", "_wall", "date_line", "server_line", "tail", "until")

    def __init__(self, *, date: bool, server: str, wall: Callable[[], float] = time.time) -> None:
        self._date = date
        self._wall = wall
        self.server_line = b"server: %b\r\n" % server.encode("ascii") if server else b""
        self.date_line = b""
        self.tail = self.server_line + b"\r\n"
        """The end of a head that has neither field from the app."""
        self.until = -math.inf if date else math.inf
        """When to make them anew: seconds on Trio's clock."""

    def refresh(self, now: float) -> None:
        """Make them anew; ``now`` is the time on Trio's clock."""
        wall = self._wall()
        self.date_line = b"date: %b\r\n" % email.utils.formatdate(wall, usegmt=True).encode("ascii")
        self.tail = b"%b%b\r\n" % (self.date_line, self.server_line)
        self.until = now + 1.0 - wall % 1.0


@final
@attrs.define(slots=True)
class Head:
    """The head of a response, and the framing of its body."""

    data: bytes
    """The status line and the app's fields, without what a :class:`Stamp` adds."""
    closes: bool
    """Whether the connection is closed after the response."""
    left: int | None = None
    """Bytes that the body must have; None for any number."""
    chunked: bool = False
    has_date: bool = False
    has_server: bool = False
    is_shared: bool = False
    """Whether a memory may hold it."""

    def ended(self, stamp: Stamp) -> bytes:
        """The whole head."""
        if not self.has_date and not self.has_server:
            return self.data + stamp.tail
        date = b"" if self.has_date else stamp.date_line
        server = b"" if self.has_server else stamp.server_line
        return b"%b%b%b\r\n" % (self.data, date, server)


@final
class HeadMemory(dict[Any, bytes]):
    """The heads of whole responses to usual requests, by status, length of the body, and fields.  Bounded, see above."""

    __slots__ = ()

    def remember(self, key: Any, head: Head) -> None:
        """Hold a head, if a memory may hold it, at the price of all others if there is no room."""
        if not head.is_shared or len(head.data) > _MAX_SHARED:
            return
        if len(self) >= _MOST_SHARED:
            self.clear()
        self[key] = head.data


STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status:d} {status.phrase}\r\n".encode("ascii")
    for status in HTTPStatus
    if status >= 200 and status not in BODILESS
}
"""The first lines of usual responses: those with a body, and with a status that has a name."""


def status_line(status: object) -> bytes:
    """The first line of a response.

    Raises:
      ValueError: it is no status that a response can have.
    """
    if not isinstance(status, int) or not 200 <= status <= 999:
        raise ValueError(f"the status of a response is a number of 200 to 999, not {status!r}")
    return f"HTTP/1.1 {status:d} {_PHRASES.get(status, '')}\r\n".encode("ascii")


def checked_name(name: object) -> bytes:
    """The name of a field in lower case.

    Raises:
      ValueError, TypeError: it is none.
    """
    if not isinstance(name, bytes | bytearray | memoryview):
        raise TypeError(f"the name of a field is bytes, not {name!r}")
    data = bytes(name).lower()
    if not _NAME.fullmatch(data):
        raise ValueError(f"this is no name of a field: {data!r}")
    return data


def checked_value(value: object) -> bytes:
    """The value of a field without white space around it.

    Raises:
      ValueError, TypeError: it is none.
    """
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"the value of a field is bytes, not {value!r}")
    data = bytes(value).strip(b" \t")
    if not _VALUE.fullmatch(data):
        raise ValueError(f"the value of a field has no line end, and no other control character: {data!r}")
    return data


def checked_fields(headers: Iterable[Any]) -> list[tuple[bytes, bytes]]:
    """The fields that an app gives, with names in lower case.

    Raises:
      ValueError, TypeError: they are none.
    """
    return [(checked_name(name), checked_value(value)) for name, value in headers]


def checked_start(status: object, headers: Iterable[Any]) -> tuple[tuple[bytes, bytes], ...]:
    """The fields of the start of a response, with names in lower case.

    Raises:
      ValueError, TypeError: the status or a field is none.
    """
    status_line(status)
    fields = checked_fields(headers)
    lengths = [value for name, value in fields if name == b"content-length"]
    if len(lengths) > 1 or (lengths and not _LENGTH.fullmatch(lengths[0])):
        raise ValueError(f"a response has one content-length, which is a number, and not {lengths!r}")
    return tuple(fields)


def field_lines(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The same as lines."""
    return b"".join([b"%b: %b\r\n" % field for field in fields])


def made_head(
    status: int,
    headers: Iterable[tuple[bytes, bytes]],
    minor: int,
    *,
    is_head: bool,
    closes: bool,
    length: int | None,
    trailers: bool = False,
) -> Head:
    """Make the head of a response, and decide how its body is framed (RFC 9112, 6).

    The app's Transfer-Encoding is left out, as ASGI wants it.  ``chunked`` without a length is a wish all the same.

    Args:
      status, headers: the app's, which :func:`checked_start` or C has checked; names and values may still be as the app gave
        them.
      minor: of the request's version.
      is_head: whether the request is a HEAD, whose response has no body, and the fields that it would have with one.
      closes: whether the connection is to be closed after the response.
      length: bytes of the whole body; None if there is more to come.
      trailers: whether there are trailers to come, and the client takes them.
    """
    fields = [(name.lower(), value.strip(b" \t")) for name, value in headers]
    names = {name for name, _value in fields}
    head = Head(b"", closes or _says_close(fields))
    given = next((int(value) for name, value in fields if name == b"content-length"), None)
    wants_chunked = trailers or (minor and _says_chunked(fields))
    kept = [field for field in fields if field[0] not in {b"connection", b"transfer-encoding"}]
    if status in {204, _RESET_CONTENT}:  # RFC 9110, 8.6
        kept = [field for field in kept if field[0] != b"content-length"]
    head.has_date, head.has_server = b"date" in names, b"server" in names
    lines = [status_line(status), field_lines(kept)]
    if status in _UNFRAMED:
        head.left = 0
    elif status == _RESET_CONTENT:
        head.left = 0
        lines.append(b"content-length: 0\r\n")
    elif given is not None:
        head.left = given
    elif length is not None and not wants_chunked:
        head.left = length
        lines.append(b"content-length: %d\r\n" % length)
    elif minor:
        head.chunked = True
        lines.append(b"transfer-encoding: chunked\r\n")
    else:
        head.closes = True  # the end of the body is that of the stream
    options = [b"close"] if head.closes else [] if minor else [b"keep-alive"]
    if b"upgrade" in names:  # of a 426 for example: RFC 9110, 7.8
        options.append(b"upgrade")
    if options:
        lines.append(b"connection: %b\r\n" % b", ".join(options))
    head.data = b"".join(lines)
    head.is_shared = not (head.closes or head.has_date or head.has_server or is_head or names & _NOT_SHARED)
    return head


def _says_close(fields: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(
        token.strip(b" \t").lower() == b"close"
        for name, value in fields
        if name == b"connection"
        for token in value.split(b",")
    )


def _says_chunked(fields: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(name == b"transfer-encoding" and value.lower() == b"chunked" for name, value in fields)

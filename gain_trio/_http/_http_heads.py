"""The heads of HTTP/1.1, as bytes: the grammar of a request's first line and fields, and the head of a response.

Every module that speaks HTTP uses these functions: the reader of requests for handlers, and the endpoint of the statistics.
How strict a module is with the fields is its own decision.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from http import HTTPStatus
from typing import Final

MAX_METHOD: Final = 32
"""Bytes of a method's name; the longest one registered has 17."""
TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
"""A character of a method, or of a field's name (RFC 9110, 5.6.2)."""
REQUEST_LINE: Final = rb"(" + TOKEN + rb"{1,%d}" % MAX_METHOD + rb") ([\x21-\x7e]+) HTTP/1\.([0-9])"
"""A pattern whose groups are the method, the target and the minor version (RFC 9112, 3)."""
_REQUEST_LINE: Final = re.compile(REQUEST_LINE)


def request_line(line: bytes) -> tuple[bytes, bytes] | None:
    """The method and the target, or None if the line is not the first one of an HTTP/1.1 or HTTP/1.0 request."""
    match = _REQUEST_LINE.fullmatch(line)
    return None if match is None else (match[1], match[2])


def field_values(fields: bytes, names: Collection[bytes]) -> dict[bytes, list[bytes]]:
    """The values of some fields by name, in their order.

    Args:
      fields: the lines of a head after its first one.
      names: in lower case.
    """
    found: dict[bytes, list[bytes]] = {}
    for line in fields.split(b"\r\n"):
        name, _colon, value = line.partition(b":")
        name = name.lower()
        if name in names:
            found.setdefault(name, []).append(value.strip(b" \t"))
    return found


def path_of(target: bytes) -> bytes:
    """A target without its query, and without the authority of a request to a proxy (RFC 9112, 3.2.2)."""
    path = target.partition(b"?")[0]
    if path[:7].lower() == b"http://" or path[:8].lower() == b"https://":
        _authority, slash, rest = path.partition(b"//")[2].partition(b"/")
        path = slash + rest or b"/"
    return path


def response(
    status: HTTPStatus,
    content: bytes,
    *,
    content_type: str = "text/plain; charset=utf-8",
    first: bytes = b"",
    last: bytes = b"",
    with_content: bool = True,
) -> bytes:
    """A whole response.

    Args:
      status: its code and phrase.
      content: its body, whose length the head has.
      content_type: the type of the body.
      first, last: more fields, each with its CR LF, before and after those two.
      with_content: False for the answer to HEAD, which has the fields and no body.
    """
    return b"".join(
        (
            f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode("ascii"),
            first,
            f"Content-Type: {content_type}\r\nContent-Length: {len(content)}\r\n".encode("latin-1"),
            last,
            b"\r\n",
            content if with_content else b"",
        )
    )

"""The heads of HTTP/1.1, as bytes: the grammar of a request's first line, and whole responses."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final

MAX_METHOD: Final = 32
"""Bytes of a method's name; the longest one registered has 17."""
TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
"""A character of a method, or of a field's name (RFC 9110, 5.6.2)."""
REQUEST_LINE: Final = rb"(" + TOKEN + rb"{1,%d}" % MAX_METHOD + rb") ([\x21\x22\x24-\x7e]+) HTTP/1\.([01])"
"""A pattern whose groups are the method, the target and the minor version (RFC 9112, 3).  A target has no fragment (``#``):
a reader that cuts it off sees another target than one that does not."""
_AUTHORITY: Final = re.compile(rb"[A-Za-z]+://[^/?]*")


def split_target(target: bytes) -> tuple[bytes, bytes]:
    """The path and the query of a target that was read; of a URL without its authority (RFC 9112, 3.2.2)."""
    if target[0] != 0x2F and (match := _AUTHORITY.match(target)) is not None:
        target = target[match.end() :]
        if target[:1] != b"/":
            target = b"/" + target
    path, _mark, query = target.partition(b"?")
    return path, query


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

"""The head of the response that accepts a WebSocket."""

from __future__ import annotations

import re
from typing import Final

import trio

from gain_trio._http import TOKEN

from ._asgi_types import Message
from ._response_heads import Stamp, checked_fields, field_lines

_SUBPROTOCOL: Final = re.compile(TOKEN.decode("ascii") + "+")
_OWN: Final = frozenset({b"connection", b"content-length", b"transfer-encoding", b"upgrade"})


def accepting_head(message: Message, handshake: list[tuple[bytes, bytes]], stamp: Stamp) -> bytes:
    """The head, of the app's ``websocket.accept`` and the fields of the handshake.

    Raises:
      ValueError: the app sends a field that is the server's, or the subprotocol is no token.
    """
    fields = checked_fields(message.get("headers") or ())
    for name, _value in fields:
        if name in _OWN or name.startswith(b"sec-websocket-"):
            raise ValueError(f"the server sends the field {name!r} itself; a subprotocol has a key of its own")
    subprotocol = message.get("subprotocol")
    if subprotocol is not None:
        if not _SUBPROTOCOL.fullmatch(subprotocol):
            raise ValueError(f"the name of a subprotocol is a token, not {subprotocol!r}")
        fields.append((b"sec-websocket-protocol", subprotocol.encode("ascii")))
    names = {name for name, _value in fields}
    now = trio.current_time()
    if now >= stamp.until:
        stamp.refresh(now)
    return b"".join(
        (
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n",
            field_lines(handshake),
            field_lines(fields),
            b"" if b"date" in names else stamp.date_line,
            b"" if b"server" in names else stamp.server_line,
            b"\r\n",
        )
    )

"""Frames of WebSocket, made and read by hand: bytes that a library would not send."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MASK: Final = b"\xa1\x02\xff\x37"
DEFLATE: Final = (b"sec-websocket-extensions", b"permessage-deflate; client_max_window_bits")


def masked(payload: bytes, mask: bytes = MASK) -> bytes:
    """The payload as a client sends it."""
    size = len(payload)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = MASK,
    length: int | None = None,
) -> bytes:
    """A frame of a client, or one of a server with ``mask=None``; ``length`` is what its head says."""
    size = len(payload) if length is None else length
    first, bit = (0x80 if fin else 0) | rsv << 4 | opcode, 0 if mask is None else 0x80
    if size < 126:
        head = bytes((first, bit | size))
    elif size < 65536:
        head = struct.pack("!BBH", first, bit | 126, size)
    else:
        head = struct.pack("!BBQ", first, bit | 127, size)
    return head + payload if mask is None else head + mask + masked(payload, mask)


def closing(code: int | None = None, reason: bytes = b"", *, mask: bytes | None = MASK) -> bytes:
    """A close frame."""
    return frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason, mask=mask)


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """The frames that a server has sent: opcode and payload of each; all of them are whole messages."""
    found = []
    while data:
        first, size = data[0], data[1]
        assert first & 0x80, "a server's frames are final"
        assert size < 0x80, "a server masks nothing"
        begin = 2
        if size == 126:
            begin, size = 4, int.from_bytes(data[2:4], "big")
        elif size == 127:
            begin, size = 10, int.from_bytes(data[2:10], "big")
        assert len(data) >= begin + size, "half a frame"
        found.append((first & 0x7F, data[begin : begin + size]))
        data = data[begin + size :]
    return found


def handshake(*more: tuple[bytes, bytes], drop: Iterable[bytes] = ()) -> list[tuple[bytes, bytes]]:
    """The fields of a request for a WebSocket."""
    fields = [
        (b"host", b"here"),
        (b"upgrade", b"websocket"),
        (b"connection", b"keep-alive, Upgrade"),
        (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
        (b"sec-websocket-version", b"13"),
        *more,
    ]
    return [(name, value) for name, value in fields if name not in drop]

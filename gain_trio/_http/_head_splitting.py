"""The heads of requests, split and recognised: in C where the compiled modules are, and in Python elsewhere.

The functions of this module are the specification of those in ``_ffi/heads``, and a test compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

from gain_trio._kernel import heads

from ._http_heads import REQUEST_LINE, TOKEN

if TYPE_CHECKING:
    T = TypeVar("T")
    SplitHead: TypeAlias = tuple[bytes, bytes, bytes, bytes, int]
    """The method, the target, the minor version, the fields with their line ends, and where the head ends."""

_HEAD: Final = re.compile(
    REQUEST_LINE + rb"\r\n((?:" + TOKEN + rb"+:[\t\x20-\x7e\x80-\xff]*\r\n)*)\r\n"  # the fields: RFC 9112, 5
)


def split_in_python(data: bytes, position: int) -> SplitHead | None:
    """Split the head that begins at ``position``; None if it is incomplete, or malformed."""
    match = _HEAD.match(data, position)
    if match is None:
        return None
    method, target, minor, lines = match.groups()
    return method, target, minor, lines, match.end()


def repeated_in_python(memory: dict[bytes, T], data: bytes, position: int, most: int) -> tuple[list[T], int]:
    """Return what a memory has for the heads from ``position`` on, and where the first one begins that it does not have.

    Args:
      memory: by whole heads.
      data: what was received.
      position: where a head begins in it.
      most: the length of the longest head in the memory, in bytes.
    """
    found: list[T] = []
    while True:
        end = data.find(b"\r\n\r\n", position, position + most) + 4
        known = memory.get(data[position:end]) if end >= 4 else None
        if known is None:
            return found, position
        found.append(known)
        position = end


split_head: Callable[[bytes, int], SplitHead | None] = split_in_python if heads is None else heads.split_head
repeated: Callable[[dict[bytes, T], bytes, int, int], tuple[list[T], int]] = (
    repeated_in_python if heads is None else heads.repeated
)

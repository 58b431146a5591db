"""The heads of requests, split, recognised and read: in C where the compiled modules are, and in Python elsewhere.

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

Pair: TypeAlias = tuple[bytes, bytes]
"""The name of a field, in lower case, and its value without the white space around it."""
Line: TypeAlias = tuple[Pair, int, bytes]
"""What a line of a head means: its field, what that is to the reader (:data:`FRAMING`, ...), and the line itself."""

PLAIN, FRAMING, SECRET = range(3)

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


def begins_in_python(data: bytes, position: int, whole: bytes) -> bool:
    """Whether a head that is known as a whole begins at ``position``."""
    return data.startswith(whole, position)


def read_fields_in_python(
    lines: bytes, known: dict[bytes, Line], _recent: list[Line], read: Callable[[bytes], Line]
) -> tuple[tuple[Pair, ...], tuple[Pair, ...], bool]:
    """Return the fields of a head, those that matter to the framing, and whether any is a secret.

    Args:
      lines: with their line ends.
      known: the memory.
      recent: some of the memory's lines by their places in the heads that were read last.  C keeps it, and finds them there
        faster; the answer is the same.
      read: called for a line that is not known, without its end.
    """
    pairs: list[Pair] = []
    framing: list[Pair] = []
    has_secret = False
    for line in lines.split(b"\r\n"):
        if not line:
            break
        pair, kind, _line = known.get(line) or read(line)
        pairs.append(pair)
        if kind == FRAMING:
            framing.append(pair)
        elif kind == SECRET:
            has_secret = True
    return tuple(pairs), tuple(framing), has_secret


split_head: Callable[[bytes, int], SplitHead | None] = split_in_python if heads is None else heads.split_head
repeated: Callable[[dict[bytes, T], bytes, int, int], tuple[list[T], int]] = (
    repeated_in_python if heads is None else heads.repeated
)
begins: Callable[[bytes, int, bytes], bool] = begins_in_python if heads is None else heads.begins
read_fields: Callable[
    [bytes, dict[bytes, Line], list[Line], Callable[[bytes], Line]], tuple[tuple[Pair, ...], tuple[Pair, ...], bool]
] = read_fields_in_python if heads is None else heads.read_fields

"""What lies between a connection in memory and its peer, in one direction, and what goes wrong there when a test says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final


@final
class Route:
    """One direction between two connections in memory.  A test changes it at any time, and it holds from then on."""

    def __init__(self, changed: Callable[[], object]) -> None:
        self._changed = changed
        self._room: int | None = None
        self._largest_piece: int | None = None
        self._reset_after: int | None = None
        self.carried: int = 0
        """Bytes that have arrived at the other end."""

    @property
    def room(self) -> int | None:
        """A slow peer: how many more bytes it accepts; None for as many as its queue has room for.

        It counts down as bytes arrive.  At 0 the sender's bytes stay queued, as with a peer that does not read: ``send``
        waits at the high mark, ``flush`` for the last byte, and a close for some time.  ``route.room += 100`` lets 100 bytes
        pass.
        """
        return self._room

    @room.setter
    def room(self, count: int | None) -> None:
        self._room = _checked("room", count, 0)
        self._changed()

    @property
    def largest_piece(self) -> int | None:
        """Short reads: a receive returns at most this many bytes, however many have arrived; None for no limit."""
        return self._largest_piece

    @largest_piece.setter
    def largest_piece(self, count: int | None) -> None:
        self._largest_piece = _checked("largest_piece", count, 1)

    @property
    def reset_after(self) -> int | None:
        """A peer that is lost: when this many more bytes have arrived, both ends break with ``ECONNRESET``; None for never.

        The bytes before can be received.  At 0 the connection breaks now.
        """
        return self._reset_after

    @reset_after.setter
    def reset_after(self, count: int | None) -> None:
        self._reset_after = _checked("reset_after", count, 0)
        self._changed()

    # --- for the connections ---

    @property
    def is_cut(self) -> bool:
        """Whether the connection is to break now."""
        return self._reset_after == 0

    def passing(self, count: int) -> int:
        """How many of ``count`` bytes may pass now."""
        return min(count, *(limit for limit in (self._room, self._reset_after) if limit is not None), count)

    def carry(self, count: int) -> None:
        """This number of bytes has passed."""
        self.carried += count
        if self._room is not None:
            self._room -= count
        if self._reset_after is not None:
            self._reset_after -= count


def _checked(name: str, count: Any, least: int) -> int | None:
    if count is None:
        return None
    if not isinstance(count, int) or isinstance(count, bool):
        raise TypeError(f"{name} is a number of bytes, or None, not {count!r}")
    number: int = count
    if number < least:
        raise ValueError(f"{name} is at least {least}, or None, not {count}")
    return number

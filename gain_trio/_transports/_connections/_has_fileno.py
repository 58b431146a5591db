"""The type of a file, socket or other object that has a descriptor."""

from __future__ import annotations

from typing import Protocol


class HasFileno(Protocol):
    """An object with a descriptor: a file, a socket, a pipe."""

    def fileno(self) -> int:
        """The file descriptor."""
        ...

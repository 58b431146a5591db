"""The type of what can be passed to another process."""

from __future__ import annotations

from typing import Protocol


class HasDescriptor(Protocol):
    """What can be passed to another process."""

    def fileno(self) -> int:
        """The file descriptor."""
        ...

"""A file that an app sends by its path, opened in a worker thread: a slow disk must not hold up the run."""

from __future__ import annotations

import os
import stat
from typing import Final, final

from gain_trio._transports import FileSource

SMALL: Final = 64 * 1024
"""Bytes of the largest file that is read when it is opened: that takes less time than another visit to a thread."""


@final
class OpenedFile:
    """A regular file.  The constructor blocks.

    Raises:
      OSError: the file cannot be opened or read.
      ValueError: it is not a regular file.
    """

    __slots__ = ("_descriptor", "content", "size", "source")

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # so that a pipe does not wait for its other end
        try:
            self.size = _checked(os.fstat(self._descriptor), path)
            self.source = FileSource(repr(os.fspath(path)), self._descriptor, 0, self.size)
            self.content = self._whole() if self.size <= SMALL else None
            """All of a small file."""
        except BaseException:
            self.close()
            raise

    def _whole(self) -> bytes:
        content = os.pread(self._descriptor, self.size, 0)
        if len(content) != self.size:
            raise OSError("the file was shortened while it was read")
        return content

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._descriptor)


def _checked(status: os.stat_result, path: str | os.PathLike[str]) -> int:
    """The size of a file that can be sent."""
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"only a regular file can be sent, and {os.fspath(path)!r} is not one")
    return status.st_size

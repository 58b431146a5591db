"""What only a socket has, of a connection and of an endpoint in memory."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

if TYPE_CHECKING:
    from typing_extensions import Buffer


class WithoutSocket:
    """The part of a transport that has no descriptor, and remembers the options of a socket without effect."""

    __slots__ = ()

    _KIND: ClassVar[str]
    """What the transport is, for the error."""
    _options: dict[tuple[int, int], Any]

    def _check_open(self) -> None:
        raise NotImplementedError

    def fileno(self) -> int:
        """Always -1."""
        return -1

    def setsockopt(self, level: int, option: int, value: int | Buffer) -> None:
        """Remember the value."""
        self._check_open()
        self._options[level, option] = value

    def getsockopt(self, level: int, option: int, buffersize: int = 0) -> int | bytes:
        """Return the value that was set, or zeros."""
        self._check_open()
        found: int | bytes = self._options.get((level, option), bytes(buffersize) if buffersize else 0)
        return found

    def _borrowed_socket(self) -> NoReturn:
        self._check_open()
        raise OSError(errno.ENOTSOCK, f"{self._KIND} in memory has no socket: such a test takes a server on port 0")

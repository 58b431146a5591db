"""What a program may read of the socket of a connection or a listener, which stays theirs.

Programs for Trio's streams and listeners look at ``stream.socket``: for the addresses, the family, an option.  What they
read is the same here.  What would move bytes, or decide about the descriptor, would go behind the back of the operations
that the kernel has in flight on it, so those calls raise, and name the call to use instead.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any, Final, NoReturn, TypeAlias, final

import trio

from gain_trio._transports._peer import endpoint_text

PlainSocket: TypeAlias = socket.socket
"""Python's own, for classes that have an attribute of the module's name."""

_INSTEAD: Final = {
    "accept": "await listener.accept()",
    "bind": "gain_trio.open_listeners()",
    "close": "await connection.aclose()",
    "connect": "gain_trio.connect()",
    "detach": "await connection.detach()",
    "dup": "await connection.detach()",
    "listen": "gain_trio.open_listeners()",
    "makefile": "connection.receive_line(), or another call that receives",
    "recv": "await connection.receive()",
    "recv_into": "await connection.receive_into()",
    "recvfrom": "await connection.receive()",
    "recvfrom_into": "await connection.receive_into()",
    "recvmsg": "await connection.receive(), or receive_fds()",
    "recvmsg_into": "await connection.receive_into()",
    "send": "await connection.send()",
    "sendall": "await connection.send()",
    "sendfile": "await connection.send_file()",
    "sendmsg": "await connection.send(), or send_fds()",
    "sendto": "await connection.send()",
    "setblocking": "connection.read_deadline and write_deadline",
    "setsockopt": "connection.setsockopt()",
    "settimeout": "connection.read_deadline and write_deadline",
    "shutdown": "await connection.send_eof()",
}
"""The methods of sockets that are refused, and what does the same for a connection or a listener."""


@final
class ReadOnlySocket:
    """The socket of a connection or a listener, to be read: addresses, family and options.

    It stands in for ``socket`` of :class:`trio.SocketStream` and :class:`trio.SocketListener`, for code that asks them for
    addresses.  Every other method of a socket raises a :exc:`RuntimeError` that names the method of the connection to call.
    As with a socket, all calls but :meth:`fileno` raise an :exc:`OSError` with ``EBADF`` after a close; addresses that were
    looked up before stay known.
    """

    __slots__ = ("_borrow", "_local", "_remote")

    def __init__(
        self,
        borrow: Callable[[], contextlib.AbstractContextManager[socket.socket]],
        local: Callable[[], Any],
        remote: Callable[[], Any],
    ) -> None:
        self._borrow = borrow
        self._local = local
        self._remote = remote

    def __repr__(self) -> str:
        try:
            return f"<gain_trio.sockets.ReadOnlySocket of {endpoint_text(self.getsockname())}>"
        except OSError:
            return "<gain_trio.sockets.ReadOnlySocket, closed>"

    @property
    def family(self) -> socket.AddressFamily:
        """The family of its addresses."""
        with _as_socket_errors(), self._borrow() as sock:
            return socket.AddressFamily(sock.family)

    @property
    def type(self) -> socket.SocketKind:
        """``SOCK_STREAM``."""
        with _as_socket_errors(), self._borrow() as sock:
            return socket.SocketKind(sock.type)

    @property
    def proto(self) -> int:
        """The number of the protocol, as from :attr:`socket.socket.proto`."""
        with _as_socket_errors(), self._borrow() as sock:
            return sock.proto

    def fileno(self) -> int:
        """The descriptor, which stays the connection's; -1 when closed."""
        try:
            with self._borrow() as sock:
                return sock.fileno()
        except trio.ClosedResourceError:
            return -1

    def getsockname(self) -> Any:
        """The address of this end."""
        with _as_socket_errors():
            return self._local()

    def getpeername(self) -> Any:
        """The address of the other end of the socket, a proxy's if there is one: the client's is ``remote_address``.

        Raises:
          OSError: it is not connected: a listener never is, a connection is not after a reset, unless its address was looked
            up before.
        """
        with _as_socket_errors():
            return self._remote()

    def getsockopt(self, level: int, option: int, buffersize: int = 0) -> int | bytes:
        """:meth:`socket.socket.getsockopt`."""
        with _as_socket_errors(), self._borrow() as sock:
            return sock.getsockopt(level, option, buffersize) if buffersize else sock.getsockopt(level, option)

    def __getattr__(self, name: str) -> Any:
        instead = _INSTEAD.get(name)
        if instead is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

        def refuse(*_arguments: object, **_keywords: object) -> NoReturn:
            raise RuntimeError(
                f"socket.{name}() is not possible: the socket belongs to a connection or listener, which has operations "
                f"of its own in flight on it; use {instead}"
            )

        return refuse


@contextlib.contextmanager
def _as_socket_errors() -> Iterator[None]:
    """Raise what a socket raises where a connection raises Trio's exceptions."""
    try:
        yield
    except trio.ClosedResourceError:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None
    except trio.BrokenResourceError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise

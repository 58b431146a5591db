"""The objects that a protocol gets for its transport's socket and TLS."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, final

from gain_trio._transports import Connection, TlsConnection

if TYPE_CHECKING:
    from typing_extensions import Buffer


@final
class SocketView:
    """A view of a connection's socket, with the methods of :class:`asyncio.trsock.TransportSocket`.

    A protocol reads and sets the socket's options by it.  It cannot send, receive or close: the transport does that.
    """

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __repr__(self) -> str:
        return f"<gain_trio.asyncio_bridge.SocketView of {self._connection!r}>"

    @property
    def family(self) -> int:
        """The address family."""
        with self._copy() as sock:
            return sock.family

    @property
    def type(self) -> int:
        """The kind of socket."""
        with self._copy() as sock:
            return sock.type

    @property
    def proto(self) -> int:
        """The protocol's number."""
        with self._copy() as sock:
            return sock.proto

    def _copy(self) -> socket.socket:
        """A socket object on another descriptor of the same socket, for one call.  The caller closes it at once."""
        return socket.socket(fileno=os.dup(self._connection.fileno()))

    def fileno(self) -> int:
        """The descriptor; -1 when closed."""
        return self._connection.fileno()

    def getsockname(self) -> Any:
        """This end's address."""
        return self._connection.local_address

    def getpeername(self) -> Any:
        """The other end's address."""
        return self._connection.remote_address

    def getsockopt(self, level: int, option: int, buffersize: int = 0) -> int | bytes:
        """See :meth:`socket.socket.getsockopt`."""
        return self._connection.getsockopt(level, option, buffersize)

    def setsockopt(self, level: int, option: int, value: int | Buffer) -> None:
        """See :meth:`socket.socket.setsockopt`."""
        self._connection.setsockopt(level, option, value)

    def setblocking(self, flag: bool) -> None:
        """Accept False only, because the socket never blocks.

        Raises:
          ValueError: ``flag`` is true.
        """
        if flag:
            raise ValueError("the socket of a transport does not block")

    def gettimeout(self) -> float:
        """Return 0, because the socket does not block."""
        return 0.0


@final
class SslView:
    """A view of a connection's TLS, with the attributes of :class:`ssl.SSLObject` that move no bytes."""

    _NAMES = frozenset(
        {
            "cipher",
            "compression",
            "context",
            "get_channel_binding",
            "getpeercert",
            "selected_alpn_protocol",
            "server_hostname",
            "server_side",
            "session",
            "session_reused",
            "shared_ciphers",
            "version",
        }
    )

    __slots__ = ("_connection",)

    def __init__(self, connection: TlsConnection) -> None:
        self._connection = connection

    def __repr__(self) -> str:
        return f"<gain_trio.asyncio_bridge.SslView of {self._connection!r}>"

    def __getattr__(self, name: str) -> Any:
        if name not in self._NAMES:
            raise AttributeError(f"a view of the TLS of a transport has no {name!r}")
        return getattr(self._connection._engine.ssl_object, name)

"""What a protocol gets for its socket, and for its TLS."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, final

from gain_trio._transports import Connection, TlsConnection

if TYPE_CHECKING:
    from typing_extensions import Buffer


@final
class SocketView:
    """The socket of a connection, to look at and to set options of: the methods of
    :class:`asyncio.trsock.TransportSocket`.

    It cannot send, receive or close: that is the transport's.
    """

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __repr__(self) -> str:
        return f"<gain_trio.SocketView of {self._connection!r}>"

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
        """Another descriptor of the same socket, to be closed at once: a socket object that has found out what it is."""
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
        """It never blocks.

        Raises:
          ValueError: asked to.
        """
        if flag:
            raise ValueError("the socket of a transport does not block")

    def gettimeout(self) -> float:
        """0: it does not block."""
        return 0.0


@final
class SslView:
    """The TLS of a connection, to look at: the attributes of :class:`ssl.SSLObject` that move no bytes."""

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
        return f"<gain_trio.SslView of {self._connection!r}>"

    def __getattr__(self, name: str) -> Any:
        if name not in self._NAMES:
            raise AttributeError(f"a view of the TLS of a transport has no {name!r}")
        return getattr(self._connection._engine.ssl_object, name)

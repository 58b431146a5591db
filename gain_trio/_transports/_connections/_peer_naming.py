"""The name of a connection's peer, for lines of the log."""

from __future__ import annotations

import abc
import contextlib
import socket
import sys
from typing import Any, Protocol

import trio

from gain_trio._transports._peer import UNNAMED, endpoint_text, peer_of, unnamed_text

from ._proxy_header import ProxyHeader


class PeerNaming(Protocol):
    """The calls that name a peer: a connection has them by their names."""

    __slots__ = ()

    # --- what a connection brings ---

    _remote_address: Any
    """What was looked up, or None."""

    @property
    @abc.abstractmethod
    def _proxy_header(self) -> ProxyHeader | None:
        """What a proxy said."""

    @abc.abstractmethod
    def _borrowed_socket(self) -> contextlib.AbstractContextManager[socket.socket]:
        """The socket, for the length of a with statement.  Raises :exc:`trio.ClosedResourceError` when closed."""

    # --- what the library calls ---

    def _peer_text(self) -> str | None:
        """The other end for a person to read, escaped, also after a reset; None if it is not known any more."""
        header = self._proxy_header
        if header is not None and header.source is not None:
            return endpoint_text(header.source)
        if self._remote_address:
            return endpoint_text(self._remote_address)
        try:
            with self._borrowed_socket() as sock:
                if self._remote_address is None:
                    self._remote_address = peer_of(sock)
                if self._remote_address in ("", b""):
                    return unnamed_text(sock)
        except (trio.ClosedResourceError, OSError):
            return None if self._remote_address is None else UNNAMED
        return None if self._remote_address is None else endpoint_text(self._remote_address)

    def _remember_peer(self) -> None:
        """It is about to be closed because of an error, which a line of the log will be about."""
        if self._remote_address is None and isinstance(sys.exc_info()[1], Exception):
            self._peer_text()

    def _described(self, state: str) -> str:
        """What :func:`repr` returns."""
        peer = self._peer_text()
        return f"<gain_trio.Connection {state}{f' with {peer}' if peer is not None else ''} at {id(self):#x}>"

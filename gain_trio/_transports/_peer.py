"""The name of the other end of a connection, for lines of the log and for repr().

getpeername(2) fails with ENOTCONN once the connection has been reset.  ``SO_PEERNAME`` (Linux, asm-generic/socket.h) still
has the name, so the log can name a peer that is gone, and no connection pays for that as long as all is well.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import sys
from typing import Any, Final, Protocol

from ._addresses import peer_credentials, shown

UNKNOWN: Final = "a client that is gone"
UNNAMED: Final = "a peer on a Unix socket"

_SO_PEERNAME: Final = 28
"""Of asm-generic/socket.h; the other architectures have another one, and other systems have none."""
_HAS_PEERNAME: Final = sys.platform == "linux" and os.uname().machine in (
    "x86_64",
    "aarch64",
    "riscv64",
    "i686",
    "armv7l",
)
_SIZES: Final = {socket.AF_INET: 16, socket.AF_INET6: 28}
"""Bytes of a ``struct sockaddr``: the kernel wants to be asked for exactly as many."""


_MOST_SHARED: Final = 256
_shared: dict[Any, Any] = {}


def shared_address(address: Any) -> Any:
    """An address that equals this one, the same object each time: the connections of a listener have one local address."""
    if len(_shared) >= _MOST_SHARED:
        _shared.clear()
    return _shared.setdefault(address, address)


def endpoint_text(address: Any) -> str:
    """An address of a socket on one line: ``127.0.0.1:5000``, ``[::1]:5000``, a path, or ``@name``; escaped."""
    if isinstance(address, tuple):
        host, port = address[:2]
        return shown(f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}")
    if isinstance(address, bytes):
        name = os.fsdecode(address)
        return shown(f"@{name[1:]}" if name.startswith("\0") else name)
    return shown(address)


def peer_of(sock: socket.socket) -> Any:
    """The address of the other end, also after a reset where the system knows it; None if it does not."""
    try:
        return sock.getpeername()
    except OSError:
        pass
    size = _SIZES.get(sock.family)
    if size is None or not _HAS_PEERNAME:
        return None
    try:
        name = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERNAME, size)
    except OSError:
        return None
    return _parsed(sock.family, name)


def _parsed(family: int, name: bytes) -> tuple[Any, ...]:
    """A ``struct sockaddr`` as Python has it."""
    if family == socket.AF_INET:
        (port,) = struct.unpack_from("!H", name, 2)
        return socket.inet_ntop(socket.AF_INET, name[4:8]), port
    port, flow = struct.unpack_from("!HI", name, 2)
    (scope,) = struct.unpack_from("=I", name, 24)
    return socket.inet_ntop(socket.AF_INET6, name[8:24]), port, flow, scope


def unnamed_text(sock: socket.socket) -> str:
    """The other end of a Unix socket that is bound to no name: the process that has connected, where the system says so."""
    with contextlib.suppress(OSError, NotImplementedError):
        who = peer_credentials(sock)  # type: ignore[arg-type]  # typeshed has overloads where the protocol has a default
        if who.pid:
            return f"{UNNAMED} (process {who.pid}, user {who.uid})"
    return UNNAMED


class HasSocket(Protocol):
    """A connection, as far as :func:`was_reset` looks at it."""

    def fileno(self) -> int:
        """The descriptor, or -1."""

    @property
    def _is_closed(self) -> bool:
        """Whether it was closed here."""

    @property
    def direct_local_address(self) -> Any:
        """The address of this end of the socket."""


def was_reset(connection: HasSocket) -> bool:
    """Whether the kernel reports that the peer has reset the connection; bytes that came before may still be unread.

    A server looks before it spends much time on such bytes, whose answer nothing can take.  It is one poll(2).  A Unix
    socket has a hangup as well when its peer has closed it in good order, and so only an error counts there.
    """
    descriptor = connection.fileno()
    if descriptor < 0 or not hasattr(select, "poll"):
        return connection._is_closed  # one in memory has no descriptor
    asked = select.poll()
    asked.register(descriptor, 0)  # errors and hangups are always reported
    found = asked.poll(0)
    if not found:
        return False
    signs = select.POLLERR
    if isinstance(connection.direct_local_address, tuple):
        signs |= select.POLLHUP
    return bool(found[0][1] & signs)

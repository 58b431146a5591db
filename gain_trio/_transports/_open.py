"""Opening listeners and connections by address."""

from __future__ import annotations

import errno
import os
import socket

import trio

from gain_trio._io_manager import current_manager

from ._address import TcpAddress, parse_address
from ._connection import Connection, Marks
from ._listener import Listener, RingListener, close_all
from ._ring_connection import RingConnection

DEFAULT_BACKLOG = 65535
"""As large as may be: the kernel cuts it down to net.core.somaxconn."""


async def open_listeners(
    address: str,
    *,
    backlog: int | None = None,
    reuse_port: bool = False,
    marks: Marks | None = None,
) -> list[Listener]:
    """Listen on ``tcp://host:port``: one listener for each address that the host has, as Trio does.

    A host that is an IP address has one; a name may have several (``localhost``: IPv4 and IPv6); an empty host stands for
    all addresses of this machine.  With port 0 the kernel chooses one, for each listener its own; read it from
    :attr:`Listener.local_address`.  ``SO_REUSEADDR`` and ``TCP_NODELAY`` are set, the latter for the connections, which
    inherit it.

    Args:
      address: ``tcp://host:port``; IPv6 addresses stand in brackets.
      backlog: connections that may wait to be accepted; None for as many as the kernel allows (net.core.somaxconn).
      reuse_port: set ``SO_REUSEPORT``, so that several listeners share the port.
      marks: of the connections.

    Raises:
      ValueError: the address is none.
      OSError: it cannot be had, for example because it is in use (``EADDRINUSE``); the message names it.
      socket.gaierror: the host has no address (a kind of OSError).
      RuntimeError: not called from a task of a run on the ring.
    """
    return list(await open_ring_listeners(address, backlog=backlog, reuse_port=reuse_port, marks=marks))


async def open_ring_listeners(
    address: str, *, backlog: int | None, reuse_port: bool, marks: Marks | None
) -> list[RingListener]:
    """:func:`open_listeners`, by the name of the class."""
    parsed = parse_address(address)
    manager = current_manager("gain_trio.open_listeners()")
    if backlog is not None and backlog < 1:
        raise ValueError(f"backlog must be at least 1, or None, not {backlog}")
    found = await trio.socket.getaddrinfo(
        parsed.host or None, parsed.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    listeners: list[RingListener] = []
    unsupported: list[OSError] = []
    try:
        for family, kind, protocol, _name, sockaddr in found:
            try:
                sock = socket.socket(family, kind, protocol)
            except OSError as error:
                if error.errno != errno.EAFNOSUPPORT:  # a name may have addresses of a kind this machine has not
                    raise
                unsupported.append(error)
                continue
            try:
                _listen(sock, sockaddr, DEFAULT_BACKLOG if backlog is None else backlog, reuse_port)
            except OSError as error:
                sock.close()
                number = error.errno or 0
                where = TcpAddress(str(sockaddr[0]), int(sockaddr[1]))
                raise OSError(number, f"cannot listen on {where}: {os.strerror(number)}") from error
            listeners.append(RingListener(manager, sock, marks or Marks()))
    except BaseException:
        close_all(listeners)
        raise
    if not listeners:
        reason = f"this machine supports none of the addresses of {parsed}"
        raise OSError(errno.EAFNOSUPPORT, reason) from unsupported[0]
    return listeners


def _listen(sock: socket.socket, sockaddr: tuple[object, ...], backlog: int, reuse_port: bool) -> None:
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has a listener of its own
    # Without it a message larger than a segment waits for the peer's delayed acknowledgement: 40 ms (tcp(7)).
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.bind(sockaddr)
    sock.listen(backlog)


async def connect(address: str, *, marks: Marks | None = None) -> Connection:
    """Connect to ``tcp://host:port`` and return the connection.

    A host with several addresses is tried by Trio's happy eyeballs (RFC 8305).  ``TCP_NODELAY`` is set.

    Raises:
      ValueError: the address is none.
      OSError: no connection came about; the cause has all attempts.
      RuntimeError: not called from a task of a run on the ring.

    Cancelled, it leaves nothing behind.
    """
    parsed = parse_address(address)
    manager = current_manager("gain_trio.connect()")
    stream = await trio.open_tcp_stream(parsed.host or "localhost", parsed.port)
    descriptor = stream.socket.detach()  # TCP_NODELAY is set already: SocketStream does that
    try:
        return RingConnection(manager, descriptor, marks or Marks())
    except BaseException:
        os.close(descriptor)
        raise

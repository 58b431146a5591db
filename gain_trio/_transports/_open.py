"""Opening listeners and connections by address."""

from __future__ import annotations

import errno
import socket

import trio

from ._address import TcpAddress, parse_address
from ._connection import Connection, Marks
from ._implementation import implementation
from ._listener import Listener, close_all
from ._sockets import share_address, share_port

LARGEST_BACKLOG = 65535
"""The kernel cuts it down to what the system allows (net.core.somaxconn); some systems do not take more than this."""


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
    :attr:`Listener.local_address`.  ``SO_REUSEADDR`` (on Windows ``SO_EXCLUSIVEADDRUSE``) and ``TCP_NODELAY`` are set, the
    latter for the connections, which inherit it.

    Args:
      address: ``tcp://host:port``; IPv6 addresses stand in brackets.
      backlog: connections that may wait to be accepted; None for as many as the kernel allows (net.core.somaxconn).
      reuse_port: set ``SO_REUSEPORT``, so that several listeners share the port.  Windows has no such thing.
      marks: of the connections.

    Raises:
      ValueError: the address is none, or ``reuse_port`` is more than the system can do.
      OSError: it cannot be had, for example because it is in use (``EADDRINUSE``); the message names it.
      socket.gaierror: the host has no address (a kind of OSError).
      RuntimeError: not called from a task of a Trio run.
    """
    parsed = parse_address(address)
    make = implementation("gain_trio.open_listeners()")
    if backlog is not None and backlog < 1:
        raise ValueError(f"backlog must be at least 1, or None, not {backlog}")
    found = await trio.socket.getaddrinfo(
        parsed.host or None, parsed.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    listeners: list[Listener] = []
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
                _listen(sock, sockaddr, min(backlog or LARGEST_BACKLOG, LARGEST_BACKLOG), reuse_port)
                listeners.append(make.listener(sock, marks or Marks()))
            except OSError as error:
                sock.close()
                where = TcpAddress(str(sockaddr[0]), int(sockaddr[1]))
                raise OSError(error.errno, f"cannot listen on {where}: {error.strerror}") from error
            except BaseException:
                sock.close()
                raise
    except BaseException:
        close_all(listeners)
        raise
    if not listeners:
        reason = f"this machine supports none of the addresses of {parsed}"
        raise OSError(errno.EAFNOSUPPORT, reason) from unsupported[0]
    return listeners


def _listen(sock: socket.socket, sockaddr: tuple[object, ...], backlog: int, reuse_port: bool) -> None:
    sock.setblocking(False)
    share_address(sock)
    if reuse_port:
        share_port(sock)
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
      RuntimeError: not called from a task of a Trio run.

    Cancelled, it leaves nothing behind.
    """
    parsed = parse_address(address)
    make = implementation("gain_trio.connect()")
    stream = await trio.open_tcp_stream(parsed.host or "localhost", parsed.port)
    sock = socket.socket(fileno=stream.socket.detach())  # TCP_NODELAY is set already: SocketStream does that
    try:
        sock.setblocking(False)
        return make.connection(sock, marks or Marks())
    except BaseException:
        sock.close()
        raise

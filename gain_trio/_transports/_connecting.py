"""Opening a TCP connection, also from an address of the caller's choice."""

from __future__ import annotations

import socket
from typing import Any

import trio

from ._addresses import TcpAddress


def checked_source_address(address: Any) -> tuple[str, int] | None:
    """``address``, if it is one of a socket's own end.

    Raises:
      TypeError, ValueError: it is not a host and a port.
    """
    if address is None:
        return None
    if not isinstance(address, tuple) or len(address) != 2 or not isinstance(address[0], str):
        raise TypeError(f"source_address is a tuple such as ('192.0.2.1', 0), or None, not {address!r}")
    host, port = address
    if not isinstance(port, int) or isinstance(port, bool) or not 0 <= port <= 65535:
        raise ValueError(f"the port of source_address is 0 to 65535, and 0 lets the kernel choose, not {port!r}")
    return host, port


async def connect_tcp(address: TcpAddress, source: tuple[str, int] | None) -> socket.socket:
    """Open a connected socket, with ``TCP_NODELAY`` set.

    Raises:
      OSError: no connection came about; the cause has all attempts.
    """
    host = address.host or "localhost"
    if source is not None and source[1]:
        return await _connect_in_turn(host, address, source)
    stream = await trio.open_tcp_stream(host, address.port, local_address=None if source is None else source[0] or None)
    return socket.socket(fileno=stream.socket.detach())  # TCP_NODELAY is set already: SocketStream does that


async def _connect_in_turn(host: str, address: TcpAddress, source: tuple[str, int]) -> socket.socket:
    found = await trio.socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM)
    error: OSError | None = None
    for family, kind, protocol, _name, sockaddr in found:
        if source[0] and (":" in source[0]) != (family == socket.AF_INET6):
            continue
        sock = trio.socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # over connections in TIME_WAIT
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await sock.bind(source)
            await sock.connect(sockaddr)
        except OSError as failure:
            sock.close()
            error = error or failure
        except BaseException:
            sock.close()
            raise
        else:
            return socket.socket(fileno=sock.detach())
    reason = f"cannot connect to {address} from {source[0]}:{source[1]}: "
    if error is None:
        raise OSError(f"{reason}the host has no address of the family of source_address")
    raise OSError(error.errno, f"{reason}{error.strerror}") from error

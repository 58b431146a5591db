"""Checking a socket that the caller has opened, and setting it up like the package's own."""

from __future__ import annotations

import socket
import ssl

import trio

from ._passed_descriptors import accept_descriptors


def check_socket(sock: object, what: str, *, pass_fds: bool) -> socket.socket | trio.socket.SocketType:
    """Return ``sock`` if it is an open stream socket without TLS; ``what`` names the called function in messages."""
    if isinstance(sock, ssl.SSLSocket):
        raise ValueError(
            f"{what} takes a socket without TLS; wrap that one, and put TLS above: trio.SSLStream(connection, ...)"
        )
    if not isinstance(sock, socket.socket | trio.socket.SocketType):
        hint = "; pass its .socket" if isinstance(sock, trio.SocketStream | trio.SocketListener) else ""
        raise TypeError(f"{what} takes a socket.socket or one of trio.socket, not {sock!r}{hint}")
    if sock.fileno() < 0:
        raise ValueError(f"{what} takes an open socket, and this one is closed")
    if sock.type != socket.SOCK_STREAM:
        raise ValueError(f"{what} takes a stream socket (SOCK_STREAM), and this one is {sock.type!r}")
    if pass_fds and sock.family != getattr(socket, "AF_UNIX", None):
        raise ValueError(
            f"descriptors pass through Unix sockets only, and this one is {sock.family!r}: leave out pass_fds=True"
        )
    return sock


def prepare_socket(sock: socket.socket, *, pass_fds: bool) -> None:
    """Make a socket non-blocking, set TCP_NODELAY, and refuse passed descriptors unless ``pass_fds``."""
    accept_descriptors(sock, pass_fds)
    sock.setblocking(False)
    if sock.family in {socket.AF_INET, socket.AF_INET6}:  # connections inherit the option from their listener
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

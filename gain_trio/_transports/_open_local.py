"""Listeners on what is no host and port: Unix sockets, and sockets that the process was started with."""

from __future__ import annotations

import socket

from ._activation import give_back, take_sockets
from ._address import FdAddress, TcpAddress, UnixAddress
from ._connection import Marks
from ._implementation import Implementation
from ._listener import Listener, close_all
from ._unix import Access, check_access, check_unix, listen_unix
from ._wrapping import wrap_listener


def check_options(
    address: TcpAddress | UnixAddress | FdAddress, *, backlog: bool, reuse_port: bool, access: Access, pass_fds: bool
) -> None:
    """Raise a :exc:`ValueError` for an option that this kind of address has no use for; what is said here was given."""
    if isinstance(address, TcpAddress) and pass_fds:
        raise ValueError("pass_fds=True is for Unix sockets: descriptors do not go through TCP")
    if not isinstance(address, UnixAddress) and access:
        raise ValueError(f"mode, owner and group are for the file of a Unix socket, and {address} has none")
    if isinstance(address, UnixAddress):
        check_access(address, access)
    if not isinstance(address, TcpAddress) and reuse_port:
        raise ValueError(f"reuse_port=True is for TCP, and {address} has no port")
    if isinstance(address, FdAddress) and backlog:
        raise ValueError(f"the backlog of {address} was set by whoever opened the socket (Backlog=, systemd.socket(5))")


async def open_unix(
    address: UnixAddress, make: Implementation, backlog: int, access: Access, marks: Marks
) -> list[Listener]:
    """A list of one listener."""
    check_unix()
    try:
        sock = await listen_unix(address, backlog, access)
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {address}: {error.strerror}") from error
    try:
        return [make.listener(sock, marks)]
    except BaseException:
        sock.close()
        raise


def open_passed(address: FdAddress, marks: Marks, *, pass_fds: bool) -> list[Listener]:
    """A listener for each of the sockets that the address stands for: all, or none at all."""
    try:
        sockets = take_sockets(address)
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {address}: {error.strerror}") from error
    listeners: list[Listener] = []
    try:
        for sock in sockets:
            _check_listening(address, sock)
        while sockets:
            listeners.append(wrap_listener(sockets[0], marks, pass_fds=pass_fds, what=str(address)))
            sockets.pop(0)
    except BaseException:
        close_all(listeners)
        give_back(address, sockets)
        raise
    return listeners


def _check_listening(address: FdAddress, sock: socket.socket) -> None:
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        what = "is connected" if sock.type == socket.SOCK_STREAM else f"is of the kind {sock.type!r}"
        raise ValueError(
            f"{address} stands for descriptor {sock.fileno()}, which {what} and does not listen: a .socket unit says "
            "ListenStream= and Accept=no; a connected one is for Connection.from_socket()"
        )

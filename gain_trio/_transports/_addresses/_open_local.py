"""Listening sockets without a host and port: Unix sockets, and sockets that the process was started with."""

from __future__ import annotations

import socket

from ._activation import give_back, keep, take_sockets
from ._address import FdAddress, UnixAddress
from ._listen_errors import cannot_listen
from ._preparing import check_socket, prepare_socket
from ._socket_options import SocketOptions
from ._unix import check_unix, listen_unix


async def open_unix(address: UnixAddress, options: SocketOptions) -> socket.socket:
    """Open a listening Unix socket, which removes its file when it is closed."""
    check_unix()
    try:
        return await listen_unix(address, options.places, options.access, pass_fds=options.pass_fds)
    except OSError as error:
        raise cannot_listen(address, error) from error


def open_passed(address: FdAddress, *, pass_fds: bool) -> list[socket.socket]:
    """Open all sockets that the address names, or none of them if one fails."""
    try:
        sockets = take_sockets(address)
    except OSError as error:
        raise cannot_listen(address, error) from error
    try:
        for sock in sockets:
            _check_listening(address, sock)
            check_socket(sock, str(address), pass_fds=pass_fds)
        for sock in sockets:
            prepare_socket(sock, pass_fds=pass_fds)
    except BaseException:
        give_back(sockets)
        raise
    keep(sockets)
    return sockets


def _check_listening(address: FdAddress, sock: socket.socket) -> None:
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        what = "is connected" if sock.type == socket.SOCK_STREAM else f"is of the kind {sock.type!r}"
        raise ValueError(
            f"{address} stands for descriptor {sock.fileno()}, which {what} and does not listen: a .socket unit says "
            "ListenStream= and Accept=no; a connected one is for Connection.from_socket()"
        )

"""Connections and listeners of sockets that exist already."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import TypeVar

import trio

from ._addresses import check_socket, prepare_socket
from ._backends import implementation
from ._connections import Connection, Listener, Marks, marks_or_usual

T = TypeVar("T")


def wrap_connection(sock: object, marks: Marks | None, pass_fds: bool) -> Connection:
    """See :meth:`Connection.from_socket`."""
    make = implementation("Connection.from_socket()", pass_fds=pass_fds)
    checked = check_socket(sock, "Connection.from_socket()", pass_fds=pass_fds)
    if _is_listening(checked):
        raise ValueError(
            "Connection.from_socket() takes a connected socket, and this one listens; use Listener.from_socket()"
        )
    try:
        checked.getpeername()
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        reason = "Connection.from_socket() takes a connected socket, and this one is not connected, or no more"
        raise OSError(errno.ENOTCONN, reason) from error
    usual = marks_or_usual(marks)
    return _take_over(checked, lambda own: make.connection(own, usual), pass_fds=pass_fds)


def wrap_listener(sock: object, marks: Marks | None, pass_fds: bool) -> Listener:
    """See :meth:`Listener.from_socket`."""
    what = "Listener.from_socket()"
    make = implementation(what, pass_fds=pass_fds)
    checked = check_socket(sock, what, pass_fds=pass_fds)
    if not _is_listening(checked):
        raise ValueError(
            f"{what} takes a socket that listens, and this one does not: call its listen() first; if it is connected, "
            "Connection.from_socket() takes it"
        )
    usual = marks_or_usual(marks)
    return _take_over(checked, lambda own: make.listener(own, usual), pass_fds=pass_fds)


def _is_listening(sock: socket.socket | trio.socket.SocketType) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


@trio.lowlevel.enable_ki_protection
def _take_over(
    sock: socket.socket | trio.socket.SocketType, make: Callable[[socket.socket], T], *, pass_fds: bool
) -> T:
    """Make something that owns the descriptor of ``sock``, which owns it no more then, and still does if this raises."""
    own = socket.socket(sock.family, sock.type, sock.proto, sock.fileno())
    # A socket of trio.socket is non-blocking, and says nothing of it.
    timeout = sock.gettimeout() if isinstance(sock, socket.socket) else 0.0
    try:
        prepare_socket(own, pass_fds=pass_fds)
        made = make(own)
    except BaseException:
        own.settimeout(timeout)
        own.detach()
        raise
    sock.detach()
    return made

"""What operating systems do differently with sockets."""

from __future__ import annotations

import errno
import socket
import struct
import sys

_NO_LINGER = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)  # struct linger: on, for no time at all
_NOT_A_SOCKET_ANY_MORE = frozenset({errno.EBADF, errno.ENOTSOCK, errno.EINVAL})


NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)
"""For every send: a peer that is gone is an error of the call.  Without it the kernel sends the process SIGPIPE as well
(send(2)).  Python ignores that signal at first, but a program may have given it back its default, which ends the process."""


def errnos(*names: str) -> frozenset[int]:
    """The numbers of those that this system has."""
    return frozenset(getattr(errno, name) for name in names if hasattr(errno, name))


def reset_on_close(sock: socket.socket) -> None:
    """Have the coming close send RST and drop what the kernel holds (``SO_LINGER`` of 0, socket(7)).

    A socket that was closed by somebody else, or that the kernel knows to be gone, has nothing left to reset.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    except OSError as error:
        if error.errno not in _NOT_A_SOCKET_ANY_MORE:
            raise


UNIX_SEND_BUFFER = 256 * 1024
"""Bytes; Linux doubles it, after cutting it to net.core.wmem_max (208 KiB unless somebody has changed it)."""


def deepen_send_buffer(sock: socket.socket) -> None:
    """Have the kernel hold a usual piece of a large transfer for a Unix stream, and some more to go on with.

    By default it holds 208 KiB (8 KiB on macOS), and wakes the sender when three quarters of that are read (Linux,
    unix_writable()): what is left keeps the reader busy for less time than it takes to wake a task.  TCP's buffers grow by
    themselves, and those of Unix sockets do not (socket(7), ``SO_SNDBUF``).  A larger buffer is left as it is.
    """
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < UNIX_SEND_BUFFER:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_SEND_BUFFER)


def share_address(sock: socket.socket) -> None:
    """Allow to listen where connections of an earlier server linger in TIME_WAIT, but never where another one listens.

    That is ``SO_REUSEADDR``, except on Windows: there it is the default, and the option of this name lets another process
    take the port away from under a server, which ``SO_EXCLUSIVEADDRUSE`` forbids.
    """
    if sys.platform == "win32":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
    else:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


def share_port(sock: socket.socket) -> None:
    """``SO_REUSEPORT``: several listeners on one port.

    Raises:
      ValueError: this system has no such thing.
    """
    option = getattr(socket, "SO_REUSEPORT", None)
    if option is None:
        raise ValueError(
            f"reuse_port=True asks for SO_REUSEPORT, which {sys.platform} does not have; leave it out and have one "
            "listener serve the port (gain_trio.serve shares its connections between several workers)"
        )
    sock.setsockopt(socket.SOL_SOCKET, option, 1)

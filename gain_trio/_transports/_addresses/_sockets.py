"""The differences between operating systems in their sockets."""

from __future__ import annotations

import errno
import socket
import struct
import sys

_NO_LINGER = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)  # struct linger: on, for no time at all
_NOT_A_SOCKET_ANY_MORE = frozenset({errno.EBADF, errno.ENOTSOCK, errno.EINVAL})


NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)
"""Flags for every send.  Without MSG_NOSIGNAL the kernel sends the process SIGPIPE, beside the error, if the peer is gone
(send(2)).  Python ignores that signal at first, but a program may restore its default action, which ends the process."""


def errnos(*names: str) -> frozenset[int]:
    """The numbers of the named errnos that this system has."""
    return frozenset(getattr(errno, name) for name in names if hasattr(errno, name))


def reset_on_close(sock: socket.socket) -> None:
    """Have the next close send RST and drop the data queued in the kernel (``SO_LINGER`` of 0, socket(7)).

    A socket that other code has closed, or whose connection the kernel has ended, has nothing left to reset.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    except OSError as error:
        if error.errno not in _NOT_A_SOCKET_ANY_MORE:
            raise


UNIX_SEND_BUFFER = 256 * 1024
"""The requested size in bytes.  Linux reduces it to net.core.wmem_max (208 KiB by default) and doubles the result."""


def deepen_send_buffer(sock: socket.socket) -> None:
    """Enlarge the send buffer of a Unix stream, to a usual piece of a large transfer and some more.

    By default the kernel queues 208 KiB (8 KiB on macOS), and wakes the sender when the peer has read three quarters of
    that (Linux, unix_writable()): the peer reads the rest in less time than waking a task takes.  TCP's buffers grow by
    themselves, and those of Unix sockets do not (socket(7), ``SO_SNDBUF``).  A larger buffer stays as it is.
    """
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < UNIX_SEND_BUFFER:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_SEND_BUFFER)


def share_address(sock: socket.socket) -> None:
    """Allow listening where connections of an earlier server are in TIME_WAIT, but never where another server listens.

    That is ``SO_REUSEADDR``, except on Windows: there it is the default, and the option of this name lets another process
    bind to a server's port, which ``SO_EXCLUSIVEADDRUSE`` forbids.
    """
    if sys.platform == "win32":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
    else:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


def share_port(sock: socket.socket) -> None:
    """Set ``SO_REUSEPORT``, which allows several listeners on one port.

    Raises:
      ValueError: this system lacks SO_REUSEPORT.
    """
    option = getattr(socket, "SO_REUSEPORT", None)
    if option is None:
        raise ValueError(
            f"reuse_port=True asks for SO_REUSEPORT, which {sys.platform} does not have; leave it out and have one "
            "listener serve the port (gain_trio.serve shares its connections between several workers)"
        )
    sock.setsockopt(socket.SOL_SOCKET, option, 1)

"""How accepted connections get from the server's process to a worker's: as descriptors (SCM_RIGHTS, unix(7)).

They have a pair of datagram sockets of their own beside the control channel.  A datagram is whole or not there, so nothing
has to be found in a stream again when a process is out of descriptors: the kernel then drops those that do not fit, and
the worker, which knows from the datagram how many there were, says how many it has.

The server keeps its own copy of every descriptor until the worker has confirmed it, and a worker confirms a connection
before a handler reads from it.  So when a worker dies, the server knows which connections have had no handler yet, and
another worker gets them; and a connection that did have one is never given to a second.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import struct
from collections.abc import Sequence
from typing import Final, final

import attrs
import trio

from gain_trio._server._time_limits import HAND_OFF_PAUSE
from gain_trio._transports import NO_SIGNAL, passed_descriptors

from ._accepted_socket import AcceptedSocket

MOST_AT_ONCE: Final = 32
"""Connections in a datagram; the kernel takes 253 descriptors (SCM_MAX_FD)."""

_SEQUENCE = struct.Struct("!Q")
_LARGEST: Final = _SEQUENCE.size + 2 * MOST_AT_ONCE
_ANCILLARY: Final = socket.CMSG_LEN(MOST_AT_ONCE * array.array("i").itemsize) if hasattr(socket, "CMSG_LEN") else 0
_CLOSE_ON_EXEC: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_SCARCE = frozenset(getattr(errno, name) for name in ("ETOOMANYREFS", "ENOBUFS", "ENOMEM") if hasattr(errno, name))


def open_pair() -> tuple[socket.socket, socket.socket]:
    """The server's end and a worker's, both non-blocking."""
    own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    own.setblocking(False)
    other.setblocking(False)
    return own, other


def say_served(sock: socket.socket) -> None:
    """A worker has its first connection.  The server can read that, whatever becomes of the worker in the next moment.

    With socket sharding the server has no other sign: a report goes out when the handler waits, and it may never do.
    """
    # The buffer is empty, because nothing else is sent that way; and the server may be gone.
    with contextlib.suppress(OSError):
        sock.send(b"+", NO_SIGNAL)


def has_served(sock: socket.socket) -> bool:
    """Whether the worker has said so; once."""
    for _ in range(2):
        try:
            return bool(sock.recv(1))
        except ConnectionResetError:  # comes before the data, when the worker is gone and has left something unread
            continue
        except BlockingIOError:
            break
    return False


@final
@attrs.frozen
class ReceivedHandOff:
    """What a worker has received."""

    sequence: int
    consumers: tuple[int, ...]
    """By number within the worker, one a connection."""
    descriptors: tuple[int, ...]
    """Fewer than there are consumers when this process could not have more.  Close-on-exec, and the caller's."""


async def send(
    sock: socket.socket, sequence: int, consumers: Sequence[int], connections: Sequence[AcceptedSocket]
) -> None:
    """Send connections, at most :data:`MOST_AT_ONCE`; they stay the caller's, too.  Waits while the worker is behind.

    Raises:
      OSError: the worker is gone.
    """
    content = _SEQUENCE.pack(sequence) + struct.pack(f"!{len(consumers)}H", *consumers)
    descriptors = [connection.fileno() for connection in connections]
    while True:
        try:
            sock.sendmsg([content], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))], NO_SIGNAL)
        except (BlockingIOError, InterruptedError):
            await trio.lowlevel.wait_writable(sock)
        except OSError as error:
            if error.errno not in _SCARCE:
                raise
            await trio.sleep(HAND_OFF_PAUSE)
        else:
            return


def receive_ready(sock: socket.socket) -> ReceivedHandOff | None:
    """What has arrived, or None."""
    try:
        content, ancillary, _flags, _address = sock.recvmsg(_LARGEST, _ANCILLARY, _CLOSE_ON_EXEC)
    except (BlockingIOError, InterruptedError):
        return None
    descriptors = passed_descriptors(ancillary)
    if not _CLOSE_ON_EXEC:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
    if len(content) < _SEQUENCE.size:  # of length 0 it is the end, on a system that reports one
        return None
    (sequence,) = _SEQUENCE.unpack_from(content)
    consumers = struct.unpack_from(f"!{(len(content) - _SEQUENCE.size) // 2}H", content, _SEQUENCE.size)
    return ReceivedHandOff(sequence, consumers, tuple(descriptors))

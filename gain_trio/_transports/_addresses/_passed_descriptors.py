"""Descriptors that a peer has passed: how many this process keeps, and where the unwanted ones are closed.

*Closing may wait.*  A peer chooses which file it passes, and close(2) of the last descriptor of a file may wait: for
``SO_LINGER`` seconds on a TCP socket whose data is unsent (socket(7)), for a FUSE or NFS server to flush, for a terminal
to drain.  A peer that passes such a file and closes its own copies has made this process the one that waits.  So no event
loop closes what a peer has passed: threads do, at most :data:`MOST_THREADS` of them.  They are Trio's worker threads, which
are daemons: no run and no interpreter waits for them at its end, and a process that exits does not linger (inet_release()
in the kernel).

*The kernel closes, too*, within the system call that drops a message: recvmsg(2) with too little room for the descriptors,
or with none, and close(2) of a socket in whose queue descriptors wait.  That has to be kept out of the loop as well:

- A socket that is not meant to receive descriptors refuses them (``SO_PASSRIGHTS``, Linux 6.16; sendmsg(2) of the peer fails
  with ``EPERM``).  Connections inherit that from their listener when they are made.  Older kernels have no such thing: there
  the kernel drops the descriptors when the loop receives or closes, and the loop waits as long as the peer has arranged.
  The mode of the socket's file (or a directory) is the cure there: only peers that may connect can do that.
- A socket that is meant to receive them receives only while the process has room for a whole message of them.
- Closing such a socket, or a listener of such, is left to the threads if something may be queued in it.

*How many.*  RLIMIT_NOFILE is for everything that a process does, so what peers have passed and no handler has taken may be
a quarter of it for one connection, and half of it for all of them and what waits to be closed.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import stat
import struct
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final, final

import trio

MOST_AT_ONCE: Final = 253
"""Descriptors that one message passes (SCM_MAX_FD)."""
MOST_WAITING: Final = 1024
"""Descriptors of a connection that wait for its handler, whatever RLIMIT_NOFILE is."""
MOST_THREADS: Final = 8
"""Threads that close."""
_RESERVE: Final = 16
"""Descriptors that other threads may open while a message is received."""
_LARGEST_QUEUE: Final = 1 << 20
"""Bytes that a peer can have queued in a connection: its send buffer, which net.core.wmem_max limits to less."""
_NO_LINGER: Final = struct.pack("ii", 0, 0)

SO_PASSRIGHTS: Final = {"sparc": 0x005C, "parisc": 0x4051}.get(
    os.uname().machine.rstrip("0123456789") if hasattr(os, "uname") else "", 83
)
"""asm/socket.h; Python's socket module does not know it yet."""


def accept_descriptors(sock: socket.socket, accept: bool) -> bool:
    """Have the kernel pass descriptors to a Unix socket, or refuse them to the peer that sends some.

    Returns:
      Whether the kernel can do that (Linux 6.16).
    """
    if sys.platform != "linux" or sock.family != socket.AF_UNIX:
        return False
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, int(accept))
    except OSError:  # ENOPROTOOPT: an older kernel; see above
        return False
    return True


def receives_descriptors(sock: socket.socket) -> bool:
    """Whether a peer can pass descriptors to this socket, or to the connections of this listener."""
    if sock.family != getattr(socket, "AF_UNIX", None):
        return False
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS))
    except OSError:
        return True


def admit(sock: socket.socket) -> bool:
    """Look at a Unix connection that was just accepted, by a listener that receives no descriptors.

    It may have been made before the listener refused them, while another process had the listener (socket activation).

    Returns:
      False if descriptors wait in it already: then it has been closed, in a thread.
    """
    try:
        if not sock.getsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS):
            return True
        accept_descriptors(sock, False)
        _data, _ancillary, answer, _address = sock.recvmsg(_LARGEST_QUEUE, 0, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:  # an older kernel, or a connection that has nothing to read: whoever receives from it finds out
        return True
    if answer & socket.MSG_CTRUNC:
        keeper.close_socket(sock)
        return False
    return True


def close_unused(sock: socket.socket) -> None:
    """Close a socket that this process has not received from: in a thread if descriptors may be queued in it."""
    if sock.fileno() >= 0 and receives_descriptors(sock):
        keeper.close_socket(sock)
    else:
        sock.close()


@final
class Keeper:
    """Counts what peers have passed to this process, and closes what is not wanted.

    Any thread may call it, also from ``__del__`` in the middle of another call of it: the queues are deques, whose ends are
    atomic, and the lock is one that the same thread may take again.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._kept = 0
        self._unwanted: deque[int] = deque()
        self._permits = deque(range(MOST_THREADS))

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits to be closed, or is being closed."""
        return not self._unwanted and len(self._permits) == MOST_THREADS

    def add(self, count: int) -> None:
        """So many have been received, or taken (a negative number)."""
        with self._lock:
            self._kept += count

    def has_room(self) -> bool:
        """Whether this process can have a whole message of descriptors more."""
        limit = _limit()
        return self._kept < limit // 2 and (limit - _open_count()) >= MOST_AT_ONCE + _RESERVE

    def close(self, descriptors: Sequence[int]) -> None:
        """Close, in a thread, what has been counted."""
        self._unwanted.extend(descriptors)
        for _ in descriptors:
            if not self._start_thread():
                return

    def close_socket(self, sock: socket.socket) -> None:
        """Close, in a thread, a socket that descriptors may be queued in."""
        descriptor = sock.detach()
        if descriptor >= 0:
            self.add(1)
            self.close([descriptor])

    def _start_thread(self) -> bool:
        try:
            permit = self._permits.pop()
        except IndexError:
            return False
        try:
            trio.lowlevel.start_thread_soon(
                self._close_all, lambda _outcome: self._finished(permit), "gain_trio closer"
            )
        except RuntimeError:
            # No more threads can be had; they stay queued, and counted, until the next time.  The end of the process
            # closes them otherwise.
            self._permits.append(permit)
            return False
        return True

    def _close_all(self) -> None:
        while True:
            try:
                descriptor = self._unwanted.popleft()
            except IndexError:
                return
            try:
                _close_patiently(descriptor)
            finally:
                self.add(-1)

    def _finished(self, permit: int) -> None:
        self._permits.append(permit)
        if self._unwanted:  # it came between this thread's last look and its permit
            self._start_thread()

    def after_fork(self) -> None:
        """The child has none of the threads.  What they were to close stays for its next thread."""
        self._lock = threading.RLock()
        self._permits = deque(range(MOST_THREADS))


def close_if_dirty(sock: socket.socket) -> None:
    """Close a connected socket, in a thread, unless it is known that no descriptor is queued in it."""
    # A peer that sends between the look and the close is refused, if the kernel can do that.
    if not accept_descriptors(sock, False) or _unread(sock):
        keeper.close_socket(sock)


def _unread(sock: socket.socket) -> bool:
    """Whether something is queued in the kernel; descriptors come with at least one byte."""
    import fcntl  # noqa: PLC0415 - there is none where there are no Unix sockets
    import termios  # noqa: PLC0415 - the same

    count = array.array("i", [0])
    try:
        fcntl.ioctl(sock.fileno(), termios.FIONREAD, count)
    except OSError:
        return True
    return count[0] > 0


def most_waiting() -> int:
    """How many descriptors of one connection may wait for its handler."""
    return min(MOST_WAITING, max(1, _limit() // 4))


def passed_descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> array.array[int]:
    """The descriptors in what :meth:`socket.socket.recvmsg` returns beside the data."""
    fresh = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fresh.frombytes(content[: len(content) - len(content) % fresh.itemsize])
    return fresh


def _limit() -> int:
    import resource  # noqa: PLC0415 - Windows has no such module, nor Unix sockets that pass descriptors

    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def _open_count() -> int:
    """How many descriptors this process has open: exactly where /proc is, otherwise at least that many."""
    try:
        count = os.stat("/proc/self/fd").st_size  # noqa: PTH116 - called for every receive
        return count or len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the same; the size is known since Linux 6.2
    except OSError:
        with contextlib.suppress(OSError):
            return len(list(Path("/dev/fd").iterdir()))
        return 0


def _close_patiently(descriptor: int) -> None:
    """Close a descriptor, however long that takes; no longer than necessary if it is a socket."""
    with contextlib.suppress(OSError):  # a socket of a strange kind waits as long as it likes
        if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            sock = socket.socket(fileno=descriptor)
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            finally:
                sock.detach()
    with contextlib.suppress(OSError):  # of a file that was passed here, and that no handler has taken
        os.close(descriptor)


keeper: Final = Keeper()
"""This process's."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=keeper.after_fork)

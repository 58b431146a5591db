"""Descriptors that a peer has passed: their limits in this process, and the threads that close unwanted ones.

*Closing may wait.*  A peer chooses which file it passes, and close(2) of the last descriptor of a file may wait: for
``SO_LINGER`` seconds on a TCP socket whose data is unsent (socket(7)), for a FUSE or NFS server to flush, for a terminal
to drain.  A peer that passes such a file and closes its own copies makes this process wait.  So the event loop never
closes a passed descriptor: threads do, at most :data:`MOST_THREADS` of them.  They are Trio's worker threads, which are
daemons: no run and no interpreter waits for them at its end, and a process that exits does not linger (inet_release() in
the kernel).

*The kernel closes descriptors, too*, within the system call that drops a message: recvmsg(2) with too little room for the
descriptors, or with none, and close(2) of a socket with descriptors in its queue.  The loop must avoid that as well:

- A socket without ``pass_fds`` refuses them (``SO_PASSRIGHTS``, Linux 6.16; sendmsg(2) of the peer fails with ``EPERM``).
  The kernel gives a connection this setting of its listener.  Older kernels lack it: there the kernel drops the descriptors
  when the loop receives or closes, and the loop waits as long as the peer has arranged.  The operator prevents that by the
  mode of the socket's file (or a directory): only peers that may connect can do it.
- A socket with ``pass_fds`` receives only while the process has room for a whole message of descriptors.
- The threads close such a socket, or a listener of such, if something may be queued in it.

*Limits.*  RLIMIT_NOFILE covers everything that a process does.  So the descriptors that peers have passed and no handler
has received may be a quarter of it for one connection, and half of it for all connections and the close queue together.
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
"""The most descriptors that one message passes (SCM_MAX_FD)."""
MOST_WAITING: Final = 1024
"""The most pending descriptors of a connection, however high RLIMIT_NOFILE is."""
MOST_THREADS: Final = 8
"""The most threads that close descriptors."""
_RESERVE: Final = 16
"""A reserve of descriptors for other threads that open files while this one receives a message."""
_LARGEST_QUEUE: Final = 1 << 20
"""More bytes than a peer can queue in a connection: net.core.wmem_max limits its send buffer to less."""
_NO_LINGER: Final = struct.pack("ii", 0, 0)

SO_PASSRIGHTS: Final = {"sparc": 0x005C, "parisc": 0x4051}.get(
    os.uname().machine.rstrip("0123456789") if hasattr(os, "uname") else "", 83
)
"""The option's number in asm/socket.h; Python's socket module lacks it."""


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
    """Check a new Unix connection of a listener that receives no descriptors.

    The peer may have connected before the listener refused them, while another process owned it (socket activation).

    Returns:
      False if descriptors are queued in the connection already: then a thread closes it.
    """
    try:
        if not sock.getsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS):
            return True
        accept_descriptors(sock, False)
        _data, _ancillary, answer, _address = sock.recvmsg(_LARGEST_QUEUE, 0, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:  # an older kernel, or a connection with nothing to read: a later receive reports an error
        return True
    if answer & socket.MSG_CTRUNC:
        descriptor_closer.close_socket(sock)
        return False
    return True


def close_unused(sock: socket.socket) -> None:
    """Close a socket from which this process has received nothing, in a thread if descriptors may be queued in it."""
    if sock.fileno() >= 0 and receives_descriptors(sock):
        descriptor_closer.close_socket(sock)
    else:
        sock.close()


@final
class DescriptorCloser:
    """The count of the descriptors that peers have passed to this process, and the queue of those to close.

    Any thread may call it, also from ``__del__`` in the middle of another call: the queues are deques, whose ends are
    atomic, and the lock is reentrant.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._kept = 0
        self._unwanted: deque[int] = deque()
        self._permits = deque(range(MOST_THREADS))

    @property
    def is_idle(self) -> bool:
        """Whether the queue is empty and no thread is closing anything."""
        return not self._unwanted and len(self._permits) == MOST_THREADS

    def add(self, count: int) -> None:
        """Count descriptors that have been received, or, as a negative number, that a handler has got."""
        with self._lock:
            self._kept += count

    def has_room(self) -> bool:
        """Whether this process has room for another whole message of descriptors."""
        limit = _limit()
        return self._kept < limit // 2 and (limit - _open_count()) >= MOST_AT_ONCE + _RESERVE

    def close(self, descriptors: Sequence[int]) -> None:
        """Close counted descriptors in a thread."""
        self._unwanted.extend(descriptors)
        for _ in descriptors:
            if not self._start_thread():
                return

    def close_socket(self, sock: socket.socket) -> None:
        """Close a socket in a thread, because descriptors may be queued in it."""
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
            # The system starts no more threads.  The descriptors stay queued, and counted, until the next call; otherwise
            # the kernel closes them at the end of the process.
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
        if self._unwanted:  # another thread has queued it after this thread's last look, before its permit was free
            self._start_thread()

    def after_fork(self) -> None:
        """Reset the child of a fork, which has none of the threads.  Its next thread closes what is queued."""
        self._lock = threading.RLock()
        self._permits = deque(range(MOST_THREADS))


def close_if_dirty(sock: socket.socket) -> None:
    """Close a connected socket, in a thread unless no descriptor can be queued in it."""
    # The kernel refuses a peer that sends between the look and the close, if the kernel supports that.
    if not accept_descriptors(sock, False) or _unread(sock):
        descriptor_closer.close_socket(sock)


def _unread(sock: socket.socket) -> bool:
    """Whether unread bytes are queued in the kernel; descriptors come with at least one byte."""
    import fcntl  # noqa: PLC0415 - systems without Unix sockets lack it
    import termios  # noqa: PLC0415 - the same

    count = array.array("i", [0])
    try:
        fcntl.ioctl(sock.fileno(), termios.FIONREAD, count)
    except OSError:
        return True
    return count[0] > 0


def most_waiting() -> int:
    """The most pending descriptors of one connection, under the present RLIMIT_NOFILE."""
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
    """The number of descriptors that this process has open, exactly if there is a /proc, otherwise a lower bound."""
    try:
        count = os.stat("/proc/self/fd").st_size  # noqa: PTH116 - called for every receive
        return count or len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the same; the size is known since Linux 6.2
    except OSError:
        with contextlib.suppress(OSError):
            return len(list(Path("/dev/fd").iterdir()))
        return 0


def _close_patiently(descriptor: int) -> None:
    """Close a descriptor, however long that takes; a socket does not linger."""
    with contextlib.suppress(OSError):  # a socket of a rare kind, without that option, may linger
        if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            sock = socket.socket(fileno=descriptor)
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            finally:
                sock.detach()
    with contextlib.suppress(OSError):  # the error of a passed file that no handler has received
        os.close(descriptor)


descriptor_closer: Final = DescriptorCloser()
"""The closer of this process."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=descriptor_closer.after_fork)

"""Connections that pass descriptors (``SCM_RIGHTS``, unix(7)).

They go over a socket even where others are on the ring: a receive that is always armed, into buffers that were given
beforehand, has no place for descriptors, and the kernel drops those that it finds.

Every call receives through :meth:`DescriptorSocket.recv`.  So no descriptor is dropped because ``receive`` or ``peek`` has
read its byte: it waits for the next ``receive_fds``.  To keep the two together nothing is received ahead: a call receives
no more bytes than it returns.  (``receive_until`` then goes byte by byte.)

Where descriptors could leak: the kernel makes them the process's in recvmsg(2), and from there on the process must keep
track of them.  They go to the socket's queue in the same step, which no KeyboardInterrupt can end halfway; ``receive_fds``
removes them in the step in which it returns; a close, or a finalizer, has those that wait closed, in a thread
(``_passed_descriptors.py`` says why).  A message for whose descriptors the process has no room is not received: the
connection is broken, since descriptors that the kernel drops are lost.
"""

from __future__ import annotations

import array
import errno
import os
import socket
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, final

import trio

from gain_trio._io_manager import broken_by
from gain_trio._transports._addresses import (
    MOST_AT_ONCE,
    MOST_WAITING,
    NO_SIGNAL,
    close_if_dirty,
    descriptor_closer,
    most_waiting,
    passed_descriptors,
)
from gain_trio._transports._connections import HasFileno, Marks, head_of, without_head

from ._socket_base import as_size, current_thread, kept
from ._socket_connection import SocketConnection

if TYPE_CHECKING:
    from typing_extensions import Buffer

_UCRED = 12  # bytes of struct ucred, which comes with every message if SO_PASSCRED is set
_ROOM = (
    socket.CMSG_SPACE(MOST_AT_ONCE * array.array("i").itemsize) + socket.CMSG_SPACE(_UCRED)
    if hasattr(socket, "CMSG_SPACE")
    else 0
)
_NO_ROOM = "descriptors were passed that this process has no room for: it has too many open files (RLIMIT_NOFILE)"
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # where it is missing, it is done afterwards
_NO_FAULT_OF_THE_STREAM = frozenset(
    {errno.EBADF, errno.ETOOMANYREFS, errno.EINVAL, errno.ENOMEM, errno.ENOBUFS, errno.EMFILE, errno.EPERM}
)
"""What sendmsg(2) says of the descriptors, or of the machine, and not of the connection: nothing was sent."""


@final
class DescriptorSocket(socket.socket):
    """One that keeps the descriptors that arrive."""

    def __init__(self, sock: socket.socket) -> None:
        """Take the descriptor of ``sock`` over."""
        self.arrived: deque[int] = deque()
        self._process = os.getpid()
        super().__init__(sock.family, sock.type, sock.proto, sock.detach())
        self.setblocking(False)

    @trio.lowlevel.enable_ki_protection
    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """As ever; descriptors that come with the bytes are queued."""
        if not descriptor_closer.has_room():
            return self._receive_without(size, flags)
        data, ancillary, answer, _address = self.recvmsg(size, _ROOM, flags | _CLOSE_ON_EXEC)
        if not ancillary:
            return data
        fresh = passed_descriptors(ancillary)
        descriptor_closer.add(len(fresh))
        most = most_waiting()
        if answer & socket.MSG_CTRUNC:
            descriptor_closer.close(fresh)
            raise OSError(errno.EMFILE, _NO_ROOM)
        if len(fresh) + len(self.arrived) > most:
            descriptor_closer.close(fresh)
            raise OSError(
                errno.ENOBUFS,
                f"more than {most} descriptors wait for receive_fds() ({MOST_WAITING}, or a quarter of RLIMIT_NOFILE)",
            )
        if not _CLOSE_ON_EXEC:
            for descriptor in fresh:
                os.set_inheritable(descriptor, False)
        self.arrived.extend(fresh)
        return data

    def _receive_without(self, size: int, flags: int) -> bytes:
        """Receive bytes that come without descriptors, and leave others in the kernel, which would drop them here."""
        _data, _ancillary, answer, _address = self.recvmsg(size, 0, flags | socket.MSG_PEEK)
        if answer & socket.MSG_CTRUNC:
            raise OSError(errno.EMFILE, _NO_ROOM)
        return super().recv(size, flags)

    def take(self, most: int) -> list[int]:
        """The oldest descriptors, at most ``most`` of them: the caller owns them now."""
        taken = [self.arrived.popleft() for _ in range(min(most, len(self.arrived)))]
        descriptor_closer.add(-len(taken))
        return taken

    def peek(self) -> bytes:
        """The next byte, which stays unread, as do descriptors that come with it."""
        return super().recv(1, socket.MSG_PEEK)

    def send_with(self, data: bytes, descriptors: array.array[int]) -> int:
        """Send with descriptors: how many bytes the kernel takes."""
        return self.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)], NO_SIGNAL)

    def close(self) -> None:
        """Close the socket, and have closed what no call has taken."""
        waiting = list(self.arrived)
        self.arrived.clear()
        descriptor_closer.close(waiting)
        if self._process == os.getpid() and self.fileno() >= 0:  # the child of a fork leaves the connection alone
            close_if_dirty(self)
        super().close()


@final
class DescriptorConnection(SocketConnection):
    """See :class:`Connection`, opened with ``pass_fds=True``."""

    __slots__ = ()

    _reads_ahead = False

    _socket: DescriptorSocket

    def __init__(self, sock: socket.socket, marks: Marks) -> None:
        super().__init__(sock, marks)
        self._socket = DescriptorSocket(sock)

    async def _wait_first(self) -> int:
        """See :meth:`MessageLoop._wait_first`.  Takes no byte from the kernel: its descriptors would come with it."""
        receiver = self._receiver
        if self._is_closed or receiver.is_busy or current_thread() != self._run.thread:
            self._refuse("receiving")
        receiver.is_busy = True
        receiver.is_late = False
        try:
            await receiver.begin(self)
            while not receiver.inbound:
                await receiver.wait_until_wet(self)
                if self._has_unread():
                    return 1
                receiver.check_dry()
                if not receiver.is_dry:
                    return 0
            return 1
        except OSError as error:
            raise broken_by(error) from error
        finally:
            receiver.is_busy = False

    def _has_unread(self) -> bool:
        """Whether the kernel has a byte.  Otherwise the state says what it has, as after :meth:`SocketReceiver.read`."""
        receiver = self._receiver
        if receiver.ended or receiver.error is not None:
            return False
        try:
            if self._socket.peek():
                receiver.is_dry = False
                return True
        except (BlockingIOError, InterruptedError):
            receiver.is_dry = True
            return False
        except OSError as error:
            receiver.is_dry = False
            receiver.error = kept(error)
            return False
        receiver.read(self, 1)
        return False

    async def _receive_fds(self, max_bytes: int, max_fds: int, /) -> tuple[bytes, list[int]]:
        """See :meth:`Connection.receive_fds`."""
        if as_size(max_bytes) < 1 or as_size(max_fds) < 1:
            raise ValueError(f"max_bytes and max_fds must be >= 1, not {max_bytes} and {max_fds}")
        receiver = self._receiver
        if not self._socket.arrived or self._is_closed or receiver.is_busy or current_thread() != self._run.thread:
            data = await self.receive(max_bytes)
        else:
            receiver.is_busy = True
            try:
                await self._pass(self._marks.receive_high)
            finally:
                receiver.is_busy = False
            data = head_of(receiver.inbound, max_bytes)
            receiver.inbound = without_head(receiver.inbound, max_bytes)
            self._unwaited += len(data)
        return data, self._socket.take(max_fds)

    async def _send_fds(self, data: Buffer, fds: Sequence[int | HasFileno], /) -> None:
        """See :meth:`Connection.send_fds`."""
        with memoryview(data) as view:
            content = bytes(view)
        if not content:
            raise ValueError("descriptors go with at least one byte")
        descriptors = _numbers(fds)
        if self._is_closed or self._sender.is_busy or current_thread() != self._run.thread:
            self._refuse("sending")
        self._sender.is_busy = True
        try:
            await self._pass(self._marks.send_high)
            while not (sent := self._send_with(content, descriptors)):
                if self._sender.outbound is None:
                    await self._sender.until_room(self)
                elif await self._sender.park(self, 1):
                    self._sender.finish_late(self, (), 0)
        finally:
            self._sender.is_busy = False
        self._has_sent(sent)
        if sent < len(content):
            await self._sender.send_rest(self, content, sent)

    def _send_with(self, content: bytes, descriptors: array.array[int]) -> int:
        """How much the kernel takes, and with it the descriptors; 0 when it is not yet this call's turn."""
        self._sender.check(self)
        self._sender.check_not_eof()
        if self._sender.outbound is not None:
            return 0
        try:
            return self._socket.send_with(content, descriptors)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            if error.errno in _NO_FAULT_OF_THE_STREAM:
                raise OSError(error.errno, f"the descriptors cannot be sent: {error.strerror}") from error
            self._send_failed(error)
            raise broken_by(error) from error

    def _refuse_detach(self) -> None:
        super()._refuse_detach()
        if self._socket.arrived:  # also while it was flushed: the socket that is given back knows nothing of them
            raise RuntimeError("descriptors have arrived that receive_fds() has not returned: call receive_fds() first")


def _numbers(fds: Sequence[int | HasFileno]) -> array.array[int]:
    numbers = array.array("i", [fd if isinstance(fd, int) else fd.fileno() for fd in fds])
    if len(numbers) > MOST_AT_ONCE:
        raise ValueError(f"{len(numbers)} descriptors do not go at once, at most {MOST_AT_ONCE}")
    for number in numbers:
        if number < 0:
            raise ValueError(f"{number} is not a descriptor; has what it belonged to been closed?")
    return numbers

"""Sending files on a connection; the essay is in ``_files.py``."""

from __future__ import annotations

import abc
import contextlib
import errno
import os
import select
import signal
import socket
import time
from collections.abc import Awaitable, Coroutine, Iterator
from typing import Any, ClassVar, NoReturn, Protocol, final

import attrs
import trio

from gain_trio._io_manager import broken_by
from gain_trio._transports._addresses import errnos

from ._files import CACHED_PIECE, MOST_AT_ONCE, PATIENCE, PIECE, QUICK, ROOM_SECONDS, SLICE, File, FileSource, opened

_NOT_THIS_FILE = errnos("EINVAL", "ENOSYS", "ENOTSUP", "EOPNOTSUPP")
"""From the first call: sendfile(2) cannot read files of this file system."""
_OF_THE_FILE = errnos("EIO", "ESTALE", "EUCLEAN", "EBADMSG", "ENOMEM", "EOVERFLOW", "EACCES", "EPERM")
"""Errors of the file, or of the machine: the connection itself is sound."""


class FileSending(Protocol):
    """The call that sends a file: a connection has it by its name."""

    __slots__ = ()

    # --- what a connection brings ---

    _transfer_type: ClassVar[type[FileTransfer]]
    """How :meth:`send_file` sends."""
    _transfer: trio.CancelScope | None
    """The scope of the :meth:`send_file` in progress."""

    @property
    @abc.abstractmethod
    def bytes_sent(self) -> int:
        """See :attr:`Connection.bytes_sent`."""

    @property
    @abc.abstractmethod
    def outbound_buffered(self) -> int:
        """See :attr:`Connection.outbound_buffered`."""

    @property
    @abc.abstractmethod
    def _is_closed(self) -> bool:
        """Whether calls are refused."""

    @property
    @abc.abstractmethod
    def _is_send_eof(self) -> bool:
        """Whether sends are refused."""

    @abc.abstractmethod
    def send(self, data: bytes | memoryview, /) -> Coroutine[Any, Any, None]:
        """See :meth:`Connection.send`."""

    @abc.abstractmethod
    def flush(self) -> Coroutine[Any, Any, None]:
        """See :meth:`Connection.flush`."""

    @abc.abstractmethod
    def _hold_sends(self, held: bool, /) -> None:
        """Whether there is a transfer, and other calls of the sending side are busy."""

    @abc.abstractmethod
    def _mark_send_incomplete(self) -> None:
        """What was sent is a part of something, and no whole."""

    # These are for KernelFileTransfer only, so a connection without a socket of its own need not have them.

    @abc.abstractmethod
    def _borrowed_socket(self) -> contextlib.AbstractContextManager[socket.socket]:
        """The socket, for the length of a with statement.  Raises :exc:`trio.ClosedResourceError` when closed."""

    @abc.abstractmethod
    def _wait_for_room(self) -> Coroutine[Any, Any, None]:
        """Wait until the kernel would take something.  Raises what :meth:`send` raises, and keeps its deadline."""

    @abc.abstractmethod
    def _fail_sends(self, number: int, /) -> int:
        """What was sent past this object has failed with this errno.  Returns why the first of all sends failed."""

    @abc.abstractmethod
    def _has_sent(self, count: int, /) -> None:
        """Count ``count`` bytes that were sent past this object."""

    # --- what a program calls ---

    async def send_file(self, file: File, offset: int = 0, count: int | None = None, /) -> int:
        """Send ``count`` bytes of a file from ``offset`` on (None: up to where it ends now), after what was sent before.

        Returns when the kernel has accepted all of them.  Without TLS the kernel sends the file itself (sendfile(2)), and
        no byte of it passes through the program: bytes written to the file meanwhile may or may not be sent.  A worker
        thread does all of it (:func:`trio.to_thread.run_sync`), so a slow disk keeps no other task waiting, in slices of
        at most a tenth of a second.

        Args:
          file: a path, which is opened and closed; or a descriptor, or anything with a ``fileno()``, which must stay open
            meanwhile.  Its position does not matter, and does not change.
          offset, count: of the bytes to send.

        Returns:
          How many bytes were sent: ``count``.

        Raises:
          ValueError: it is not a regular file (but a pipe, a device, a directory), or is too short; nothing is sent.
          EOFError: it was shortened meanwhile; the message says how much was sent.
          OSError: it cannot be opened or read.
          trio.BusyResourceError, trio.ClosedResourceError, trio.BrokenResourceError, trio.TooSlowError: see :meth:`send`.

        An error, :attr:`write_deadline` or a cancellation (which takes effect after the current slice) ends it early, with
        a part of the file sent: then the connection cannot send any more, and closing it resets it, as with :meth:`send`.
        Unix sockets have no reset: there the peer sees the end of the stream.
        """
        async with opened(file, offset, count) as source:
            return await self._send_source(source)

    async def _send_source(self, source: FileSource, /) -> int:
        """:meth:`send_file` of a file that is open, and whose size is known."""
        return await self._transfer_type(self, source).run()

    def _end_transfer(self) -> None:
        """End a transfer in progress, because the connection is to be closed: its data is incomplete."""
        if self._transfer is not None:
            self._mark_send_incomplete()
            self._transfer.cancel()


class FileTransfer:
    """One :meth:`Connection.send_file`, by reading and sending, on any connection.

    While it lasts, it holds the sending side: other calls are busy, also while it reads and sends nothing.  Whatever closes
    the connection tears its sends first, so that the kernel resets it, and cancels the transfer.
    """

    __slots__ = ("_connection", "_sent", "_source")

    def __init__(self, connection: FileSending, source: FileSource) -> None:
        self._connection = connection
        self._source = source
        self._sent = 0

    async def run(self) -> int:
        """Send all of it; returns how much that is."""
        connection, source = self._connection, self._source
        await connection.flush()
        if connection._is_send_eof:
            raise trio.ClosedResourceError("send_eof() was called on this connection")
        if not source.count:
            return 0
        with trio.CancelScope() as scope:
            connection._transfer = scope  # type: ignore[misc]  # a slot of the implementation
            connection._hold_sends(True)
            try:
                await self._send_source()
            except BaseException:
                if self._sent:
                    connection._mark_send_incomplete()
                raise
            finally:
                connection._transfer = None  # type: ignore[misc]  # a slot of the implementation
                connection._hold_sends(False)
        if self._sent < source.count or connection._is_closed:
            raise trio.ClosedResourceError("this connection was closed while it sent a file")
        await connection.flush()
        return source.count

    async def _send_source(self) -> None:
        connection, source = self._connection, self._source
        buffer = memoryview(bytearray(min(CACHED_PIECE, source.count)))
        while self._sent < source.count:
            piece: memoryview | bytes | None = source.read_cached(self._sent, buffer)
            if piece is None:
                piece = await trio.to_thread.run_sync(source.read, self._sent)
            if not piece:
                raise source.shortened(self._sent)
            before = connection.bytes_sent + connection.outbound_buffered
            try:
                await self._call_of_its_own(connection.send(piece))
            finally:
                if connection.bytes_sent + connection.outbound_buffered != before:  # or the cancel came before it sent
                    self._sent += len(piece)

    async def _call_of_its_own(self, call: Awaitable[None]) -> None:
        """Await a call of the transfer's, which keeps others away itself."""
        self._connection._hold_sends(False)
        try:
            await call
        finally:
            self._connection._hold_sends(True)


@final
class KernelFileTransfer(FileTransfer):
    """One by sendfile(2), where the system has it."""

    __slots__ = ()

    async def _send_source(self) -> None:
        if not hasattr(os, "sendfile") or not await self._send_by_kernel():
            await super()._send_source()

    async def _send_by_kernel(self) -> bool:
        """False: it can send nothing of this file."""
        connection, source = self._connection, self._source
        with connection._borrowed_socket() as sock:
            descriptor = os.dup(sock.fileno())
        threads = trio.to_thread.current_default_thread_limiter()
        try:
            while self._sent < source.count:
                patience = PATIENCE if 2 * threads.borrowed_tokens <= threads.total_tokens else ROOM_SECONDS
                part = await trio.to_thread.run_sync(_send_for_a_while, descriptor, source, self._sent, patience)
                if part.sent:
                    self._sent += part.sent
                    connection._has_sent(part.sent)
                if part.error is not None:
                    if not self._sent and part.error.errno in _NOT_THIS_FILE:
                        return False
                    if part.error.errno not in _OF_THE_FILE:
                        self._raise_broken(part.error)
                    raise part.error
                if part.is_end:
                    raise source.shortened(self._sent)
                if part.is_full:
                    await self._call_of_its_own(connection._wait_for_room())
        finally:
            os.close(descriptor)
        return True

    def _raise_broken(self, error: OSError) -> NoReturn:
        """sendfile(2) has failed because of the connection."""
        connection = self._connection
        if connection._is_closed:
            raise trio.ClosedResourceError("this connection was closed while it sent a file") from None
        number = connection._fail_sends(error.errno or errno.EIO)
        first = error if number == error.errno else OSError(number, os.strerror(number))
        raise broken_by(first) from first


@final
@attrs.define
class _SendfileSlice:
    """What a thread has done: how much the kernel has taken, and why the slice ended, unless its time was up."""

    sent: int = 0
    error: OSError | None = None
    is_end: bool = False
    """Whether the file's end was reached."""
    is_full: bool = False
    """The kernel takes nothing more at the moment."""


@contextlib.contextmanager
def _sigpipe_taken() -> Iterator[None]:
    """What ``MSG_NOSIGNAL`` is to a send: sendfile(2) has no flags.

    The kernel sends SIGPIPE to the thread that has written (signal(7)), so it is blocked in this one, and taken if it came.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
    try:
        yield
    finally:
        if signal.SIGPIPE not in blocked:
            if signal.SIGPIPE in signal.sigpending():
                signal.sigwait({signal.SIGPIPE})
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _send_for_a_while(descriptor: int, source: FileSource, done: int, patience: float) -> _SendfileSlice:
    """For a worker thread, which waits for room for at most ``patience`` seconds at a time."""
    with _sigpipe_taken():
        return _send_slice(descriptor, source, done, patience)


def _send_slice(descriptor: int, source: FileSource, done: int, patience: float) -> _SendfileSlice:
    part = _SendfileSlice()
    until = time.monotonic() + SLICE
    room = select.poll()
    room.register(descriptor, select.POLLOUT)
    left = source.count - done
    size, begin = PIECE, time.monotonic()
    while part.sent < left and begin < until:
        try:
            sent = _send_piece(descriptor, source, done + part.sent, min(size, left - part.sent))
        except BlockingIOError:
            part.is_full = not room.poll(patience * 1000)
            if part.is_full:
                break
        except OSError as error:
            part.error = error
            break
        else:
            part.is_end = sent == 0
            if part.is_end:
                break
            part.sent += sent
        before, begin = begin, time.monotonic()
        size = min(2 * size, MOST_AT_ONCE) if begin - before < QUICK else PIECE
    return part


def _send_piece(descriptor: int, source: FileSource, done: int, size: int) -> int:
    """How much the kernel takes, 0 at the end of the file.  Raises BlockingIOError when it takes nothing at the moment."""
    return os.sendfile(descriptor, source.descriptor, source.offset + done, size)

"""Sending files on a connection; the essay is in ``_files.py``."""

from __future__ import annotations

import abc
import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Coroutine, Iterator
from typing import Any, NoReturn, final

import attrs
import trio

from gain_trio._io_manager import broken_by
from gain_trio._transports._addresses import errnos

from ._connection import Connection
from ._connection_base import ConnectionBase
from ._files import PATIENCE, PIECE, TURN, File, Source, opened

_NOT_THIS_FILE = errnos("EINVAL", "ENOSYS", "ENOTSUP", "EOPNOTSUPP")
"""From the first call: sendfile(2) cannot read files of this file system."""
_OF_THE_FILE = errnos("EIO", "ESTALE", "EUCLEAN", "EBADMSG", "ENOMEM", "EOVERFLOW", "EACCES", "EPERM")
"""Of the file, or of the machine: the connection itself is sound."""


@final
@attrs.define
class Progress:
    """How much of a file has been sent."""

    sent: int = 0


class FileSending(Connection):
    """:meth:`Connection.send_file` by reading and sending, on any connection.

    While it lasts, the sending side is held: other calls are busy, also while it reads and nothing is being sent.  Whatever
    closes the connection tears its sends first, so that it is reset, and cancels the transfer.
    """

    __slots__ = ()

    _transfer: Any
    """The :class:`trio.CancelScope` of the send_file() in progress, or None.  A slot of the implementation."""

    @property
    @abc.abstractmethod
    def _is_closed(self) -> bool:
        """Whether calls are refused."""

    @property
    @abc.abstractmethod
    def _is_send_eof(self) -> bool:
        """Whether sends are refused."""

    @abc.abstractmethod
    def _hold_sends(self, held: bool, /) -> None:
        """Whether there is a transfer, and other calls of the sending side are busy."""

    @abc.abstractmethod
    def _tear_sends(self) -> None:
        """What was sent is a part of something, and no whole."""

    async def send_file(self, file: File, offset: int = 0, count: int | None = None, /) -> int:
        """See :meth:`Connection.send_file`."""
        async with opened(file, offset, count) as source:
            await self.flush()
            if self._is_send_eof:
                raise trio.ClosedResourceError("send_eof() was called on this connection")
            if not source.count:
                return 0
            progress = Progress()
            with trio.CancelScope() as scope:
                self._transfer = scope
                self._hold_sends(True)
                try:
                    await self._send_source(source, progress)
                except BaseException:
                    if progress.sent:
                        self._tear_sends()
                    raise
                finally:
                    self._transfer = None
                    self._hold_sends(False)
            if progress.sent < source.count or self._is_closed:
                raise trio.ClosedResourceError("this connection was closed while it sent a file")
            await self.flush()
            return source.count

    async def _send_source(self, source: Source, progress: Progress) -> None:
        while progress.sent < source.count:
            piece = await trio.to_thread.run_sync(source.read, progress.sent)
            if not piece:
                raise source.shortened(progress.sent)
            before = self.bytes_sent + self.outbound_buffered
            try:
                with self._calls_allowed():
                    await self.send(piece)
            finally:
                if self.bytes_sent + self.outbound_buffered != before:  # or it was cancelled before it sent anything
                    progress.sent += len(piece)

    @contextlib.contextmanager
    def _calls_allowed(self) -> Iterator[None]:
        """For a call of the transfer's own, which keeps others away itself."""
        self._hold_sends(False)
        try:
            yield
        finally:
            self._hold_sends(True)

    def _end_transfer(self) -> None:
        """The connection is to be closed: what a transfer in progress has sent is no whole."""
        if self._transfer is not None:
            self._tear_sends()
            self._transfer.cancel()


class KernelFileSending(FileSending, ConnectionBase):
    """:meth:`Connection.send_file` by sendfile(2), where the system has it."""

    __slots__ = ()

    @abc.abstractmethod
    def _wait_for_room(self) -> Coroutine[Any, Any, None]:
        """Wait until the kernel would take something.  Raises what :meth:`send` raises, and keeps its deadline."""

    @abc.abstractmethod
    def _fail_sends(self, number: int, /) -> int:
        """What was sent past this object has failed with this errno.  Returns why the first of all sends failed."""

    @abc.abstractmethod
    def _has_sent(self, count: int, /) -> None:
        """So many bytes were sent past this object."""

    async def _send_source(self, source: Source, progress: Progress) -> None:
        if not hasattr(os, "sendfile") or not await self._send_by_kernel(source, progress):
            await super()._send_source(source, progress)

    async def _send_by_kernel(self, source: Source, progress: Progress) -> bool:
        """False: it can send nothing of this file."""
        with self._borrowed_socket() as sock:
            descriptor = os.dup(sock.fileno())
        try:
            while progress.sent < source.count:
                turn = await trio.to_thread.run_sync(_send_for_a_while, descriptor, source, progress.sent)
                if turn.sent:
                    progress.sent += turn.sent
                    self._has_sent(turn.sent)
                if turn.error is not None:
                    if not progress.sent and turn.error.errno in _NOT_THIS_FILE:
                        return False
                    if turn.error.errno not in _OF_THE_FILE:
                        self._raise_broken(turn.error)
                    raise turn.error
                if turn.is_end:
                    raise source.shortened(progress.sent)
                if turn.is_full:
                    with self._calls_allowed():
                        await self._wait_for_room()
        finally:
            os.close(descriptor)
        return True

    def _raise_broken(self, error: OSError) -> NoReturn:
        """sendfile(2) has failed because of the connection."""
        if self._is_closed:
            raise trio.ClosedResourceError("this connection was closed while it sent a file") from None
        number = self._fail_sends(error.errno or errno.EIO)
        first = error if number == error.errno else OSError(number, os.strerror(number))
        raise broken_by(first) from first

    @trio.lowlevel.enable_ki_protection
    async def _close_flushing(self) -> bool:
        """See :meth:`Connection._close_flushing`."""
        self._end_transfer()
        return await super()._close_flushing()

    @trio.lowlevel.enable_ki_protection
    def abort(self) -> None:
        """See :meth:`Connection.abort`."""
        self._end_transfer()
        super().abort()

    @trio.lowlevel.enable_ki_protection
    def _close_soon(self) -> bool:
        """See :meth:`Connection._close_soon`."""
        self._end_transfer()
        return super()._close_soon()

    @trio.lowlevel.enable_ki_protection
    def _close_now(self) -> None:
        """See :meth:`Connection._close_now`."""
        self._end_transfer()
        super()._close_now()


@final
@attrs.define
class _Turn:
    """What a thread has done: how much the kernel has taken, and why the turn ended, unless its time was up."""

    sent: int = 0
    error: OSError | None = None
    is_end: bool = False
    """Of the file."""
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


def _send_for_a_while(descriptor: int, source: Source, done: int) -> _Turn:
    """For a worker thread."""
    with _sigpipe_taken():
        return _send_in_turn(descriptor, source, done)


def _send_in_turn(descriptor: int, source: Source, done: int) -> _Turn:
    turn = _Turn()
    until = time.monotonic() + TURN
    room = select.poll()
    room.register(descriptor, select.POLLOUT)
    left = source.count - done
    while turn.sent < left and time.monotonic() < until:
        try:
            sent = _send_piece(descriptor, source, done + turn.sent, min(PIECE, left - turn.sent))
        except BlockingIOError:
            turn.is_full = not room.poll(PATIENCE * 1000)
            if turn.is_full:
                break
        except OSError as error:
            turn.error = error
            break
        else:
            turn.is_end = sent == 0
            if turn.is_end:
                break
            turn.sent += sent
    return turn


def _send_piece(descriptor: int, source: Source, done: int, size: int) -> int:
    """How much the kernel takes, 0 at the end of the file.  Raises BlockingIOError when it takes nothing at the moment."""
    return os.sendfile(descriptor, source.descriptor, source.offset + done, size)

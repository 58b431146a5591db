"""Sending files: which bytes of which file, and the two ways to send them.

The kernel's way is sendfile(2): page cache to socket, without a copy in between that the program would pay for.  It costs
less than reading and sending, but it blocks while the disk is read, and io_uring has nothing to put in
its place: its splice needs a pipe, so two operations where this is one call, and hands both to the kernel's own worker
threads, because they may block.  So sendfile runs in a worker thread of Trio's.

To hand something to a thread takes longer than to send a few hundred KiB, and a socket's buffer has room for one or two MiB
again when the kernel reports any.  So a thread that finds it full waits for room, and goes on while there is some, but no
longer than SLICE: then the connection counts the bytes that went past it, or a transfer would look idle, and the task can
be cancelled.  A transfer beside three others finds room every 5 to 10 milliseconds, so a thread is patient for longer than
that; with 2 milliseconds a file of 64 MiB took 24 visits to threads, and they cost as much as the kernel's work.

Threads are for others, too: the limiter is the program's, of which Trio has 40.  So a thread is patient while half of them
are free, and otherwise waits a moment only.  A peer that reads slowly has no thread waiting for it: the task waits for room,
in a call of the connection's sending side like any other (``_wait_for_room``), so the write deadline, an idle timeout and a
close do to it what they do to a send.

A thread cannot be interrupted, and the connection may be closed while one is at work.  Therefore it works on a duplicate
of the descriptor: the number of the original may belong to another file by then.  Closing sets SO_LINGER, which belongs to
the socket and not to the number, so the reset is sent when the duplicate is closed, right after the call.

TLS, whose bytes the kernel does not have, and systems without sendfile read and send.  What the page cache has is read at
once, because RWF_NOWAIT (preadv2(2), Linux 4.14) never waits for the disk; the rest is read in a thread.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import AsyncIterator
from typing import TypeAlias, final

import attrs
import trio

from ._has_fileno import HasFileno

PIECE = 1 << 20
"""Bytes read, or asked to be sent, at a time: more would have a slow disk delay a cancellation."""
MOST_AT_ONCE = 8 << 20
"""Bytes that the kernel is asked to send at a time when it did not wait for the disk: what a socket's buffer has room for.
Between two calls a thread competes with all others for the interpreter, which takes it longer than to send a few MiB."""
QUICK = 0.002
"""Seconds in which the kernel sends a piece that it has in memory."""
CACHED_PIECE = 1 << 18
"""Bytes read of the page cache at a time, in the run's own thread: copying them takes less than a tenth of a millisecond."""
SLICE = 0.1
"""Seconds after which a thread takes on no further piece."""
PATIENCE = 0.02
"""Seconds that a thread waits for room at a time, while there are threads to spare."""
ROOM_SECONDS = 0.002
"""The same when there are none.  A peer that reads at full speed, and alone, makes some in a tenth of that."""


File: TypeAlias = "int | str | bytes | os.PathLike[str] | os.PathLike[bytes] | HasFileno"


@final
@attrs.frozen
class FileSource:
    """Bytes of a file that is open."""

    name: str
    descriptor: int
    offset: int
    count: int

    def shortened(self, sent: int) -> EOFError:
        """What to raise when the file ends too early."""
        return EOFError(f"{self.name} was shortened while it was sent: {sent} of {self.count} bytes were sent")

    def read(self, done: int) -> bytes:
        """What follows the first ``done`` bytes, a piece of it.  For a worker thread."""
        size = min(PIECE, self.count - done)
        if hasattr(os, "pread"):
            return os.pread(self.descriptor, size, self.offset + done)
        os.lseek(self.descriptor, self.offset + done, os.SEEK_SET)  # Windows
        return os.read(self.descriptor, size)

    def read_cached(self, done: int, buffer: memoryview) -> memoryview | None:
        """What follows the first ``done`` bytes, as much as ``buffer`` has room for, if the page cache has it.

        None if that could not be read without waiting, or the file system does not say so (EOPNOTSUPP).
        """
        if not hasattr(os, "RWF_NOWAIT"):
            return None
        room = buffer if done + len(buffer) <= self.count else buffer[: self.count - done]
        try:
            count = os.preadv(self.descriptor, (room,), self.offset + done, os.RWF_NOWAIT)
        except OSError:  # the thread that reads it then raises what is wrong
            return None
        return room if count == len(room) else room[:count]


def _open(file: File) -> tuple[int, bool]:
    """The descriptor, and whether it is to be closed."""
    if isinstance(file, int):
        return file, False
    if isinstance(file, (str, bytes, os.PathLike)):
        # O_NONBLOCK: opening a FIFO would wait for a writer, only to be refused.
        flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        return os.open(file, flags), True
    return file.fileno(), False


def _measure(name: str, descriptor: int, offset: int, count: int | None) -> FileSource:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"send_file() sends regular files, and {name} is not one; read it, and send what was read")
    available = status.st_size - offset
    if available < 0 or (count is not None and count > available):
        wanted = "" if count is None else f"{count} bytes "
        raise ValueError(f"send_file() was asked for {wanted}from {offset} on, and {name} has {status.st_size} bytes")
    return FileSource(name, descriptor, offset, available if count is None else count)


@contextlib.asynccontextmanager
async def opened(file: File, offset: int, count: int | None) -> AsyncIterator[FileSource]:
    """The file as something to send.  A full checkpoint.

    Raises:
      ValueError, OSError: see :meth:`Connection.send_file`.
    """
    if offset < 0 or (count is not None and count < 0):
        raise ValueError(f"send_file() takes an offset and a count >= 0, not {offset} and {count}")
    name = f"descriptor {file}" if isinstance(file, int) else repr(file)

    def begin() -> tuple[FileSource, bool]:
        descriptor, is_ours = _open(file)
        try:
            return _measure(name, descriptor, offset, count), is_ours
        except BaseException:
            if is_ours:
                os.close(descriptor)
            raise

    source, is_ours = await trio.to_thread.run_sync(begin)
    try:
        yield source
    finally:
        if is_ours:
            os.close(source.descriptor)

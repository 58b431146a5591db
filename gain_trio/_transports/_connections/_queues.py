"""The queues of a connection over a socket: bytes received and unread, and bytes that the kernel has not accepted yet.

Both hold little more memory than their content, however small the pieces are that come and go (a list of two-byte objects
would cost thirty times as much), and both take time linear in what goes through them.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias, final

if TYPE_CHECKING:
    from typing_extensions import Buffer

Inbound: TypeAlias = bytes | bytearray
"""Bytes received and not taken.  Nearly always one piece arrives and is taken whole: then it stays the object it is."""

NOTHING = b""


def joined(queue: Inbound, data: bytes) -> Inbound:
    """The queue with ``data`` at its end."""
    if not queue:
        return data
    if isinstance(queue, bytes):
        queue = bytearray(queue)
    queue += data
    return queue


def head_of(queue: Inbound, count: int) -> bytes:
    """A copy of the first ``count`` bytes, or of all there are."""
    if count >= len(queue):
        return bytes(queue)  # of bytes this is the object itself
    with memoryview(queue) as view:
        return bytes(view[:count])


def without_head(queue: Inbound, count: int) -> Inbound:
    """The queue less its first ``count`` bytes, which a bytearray drops by moving its start, without copying the rest."""
    if count >= len(queue):
        return NOTHING
    if isinstance(queue, bytes):
        return bytearray(memoryview(queue)[count:])
    del queue[:count]
    return queue


def whole_of(data: Buffer) -> bytes:
    """All of a bytes-like object, as immutable bytes.  A number is refused: ``bytes()`` would make as many zeros of it."""
    return data if type(data) is bytes else bytes(memoryview(data))


async def receive_into(receive: Callable[[int], Awaitable[bytes]], buffer: Buffer) -> int:
    """:meth:`Connection.receive_into` by way of :meth:`Connection.receive`."""
    with memoryview(buffer) as view:
        if view.readonly or not view.c_contiguous:
            raise BufferError("receive_into() needs a writable buffer, in one piece")
        if not view.nbytes:
            raise ValueError("receive_into() needs a buffer of at least one byte")
        with view.cast("B") as target:
            data = await receive(len(target))
            target[: len(data)] = data
            return len(data)


SMALL = 4096
"""Less than this is copied, so that small sends lie one behind the other; a bytes object of this size is referenced."""
GATHERED = 64
"""The most parts that are sent in one call; Linux and macOS take 1024 (IOV_MAX)."""
_FULL = 65536
"""What is copied fills segments of about this size."""


@final
class Outbound:
    """Bytes sent and not yet accepted by the kernel, in segments."""

    __slots__ = ("_segments", "_taken", "size")

    def __init__(self) -> None:
        self._segments: deque[bytearray | memoryview] = deque()
        self._taken = 0
        self.size = 0
        """Bytes in all."""

    def add(self, data: bytes, start: int = 0) -> None:
        """Put ``data``, from ``start`` on, at the end."""
        length = len(data) - start
        self.size += length
        if length >= SMALL:
            self._segments.append(memoryview(data)[start:])
            return
        last = self._segments[-1] if self._segments else None
        if not isinstance(last, bytearray) or len(last) + length > _FULL:
            last = bytearray()
            self._segments.append(last)
        last += memoryview(data)[start:]

    def head(self) -> list[memoryview]:
        """The segments to send next.  The caller releases them before it adds anything."""
        head = [memoryview(segment) for segment in islice(self._segments, GATHERED)]
        head[0] = head[0][self._taken :]
        return head

    def remove(self, count: int) -> None:
        """Remove ``count`` bytes of :meth:`head`, which the kernel has accepted."""
        self.size -= count
        self._taken += count
        while self._segments and self._taken >= len(self._segments[0]):
            self._taken -= len(self._segments.popleft())


@final
class Message:
    """What is left of a message in several parts, none of them empty."""

    __slots__ = ("done", "parts")

    def __init__(self, parts: Iterable[bytes | memoryview]) -> None:
        self.parts: deque[bytes | memoryview] = deque(parts)
        self.done = 0
        """Bytes of the first part that are done."""

    def head(self) -> list[memoryview]:
        """The first parts, less what is done."""
        head = [memoryview(part) for part in islice(self.parts, GATHERED)]
        head[0] = head[0][self.done :]
        return head

    def remove(self, count: int) -> None:
        """Count ``count`` more bytes as done."""
        self.done += count
        while self.parts and self.done >= len(self.parts[0]):
            self.done -= len(self.parts.popleft())

    def take(self, count: int) -> bytes | memoryview:
        """The next bytes in one piece, at most ``count``; they are done.  Not copied if they lie in one part."""
        taken: list[memoryview] = []
        while count and self.parts:
            taken.append(memoryview(self.parts[0])[self.done : self.done + count])
            self.remove(len(taken[-1]))
            count -= len(taken[-1])
        return taken[0] if len(taken) == 1 else b"".join(taken)


@contextlib.contextmanager
def message_of(buffers: Sequence[Buffer]) -> Iterator[Message]:
    """A message of these, which keep their size meanwhile."""
    with contextlib.ExitStack() as stack:
        parts: list[bytes | memoryview] = []
        for buffer in buffers:
            if type(buffer) is bytes:
                parts.append(buffer)
                continue
            view = stack.enter_context(memoryview(buffer))
            if not view.c_contiguous:
                raise BufferError("send() needs buffers in one piece each")
            if view.nbytes:
                parts.append(stack.enter_context(view.cast("B")))
        yield Message(part for part in parts if part)

"""How many bytes a callback is given at once."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, final

import attrs

from gain_trio._transports import SLICE_NS

T = TypeVar("T")

_QUICK_NS = SLICE_NS * 3 // 4
"""Nanoseconds that a piece may take for the next one to be larger."""


@final
@attrs.define
class Pace:
    """How many bytes the callbacks of a server work off in about a turn.  New connections begin with it.

    Otherwise a peer could connect anew for each large first piece.
    """

    size: int = attrs.field(factory=lambda: PacedDelivery.FIRST)


@final
class PacedDelivery:
    """How many bytes a callback is given at once: as many as it works off in about a turn.

    A callback that does not wait cannot be interrupted, and 64 KiB of empty lines may be 65,536 writes for it.  The time
    that the last piece took says how large the next one may be.  A callback may also take its time for a call, however few
    bytes that has: then small pieces would take more time than they save.  So the size is doubled again when the smaller
    pieces have brought less than half the bytes a second.

    On a busy machine the kernel takes the CPU away for longer than a turn, which says nothing of the callback.  So a piece
    that took too long by the clock makes nothing smaller: the next one is measured in CPU time, which costs a system call.

    Args:
      pace: the server's.  The connection begins with it and changes it.
      clock: returns the time in nanoseconds.
      cpu_clock: returns the CPU time of this thread in nanoseconds.
    """

    SMALLEST = 64
    WHOLE = 1024
    """Up to this size the callbacks of a connection are not timed, until a larger piece has shown that they are slow."""
    FIRST = 8 * 1024
    LARGEST = 64 * 1024

    __slots__ = ("_clock", "_cpu_clock", "_first_slow", "_pace", "_wall_clock", "size")

    def __init__(
        self,
        pace: Pace,
        clock: Callable[[], int] = time.monotonic_ns,
        cpu_clock: Callable[[], int] = time.thread_time_ns,
    ) -> None:
        self._wall_clock = clock
        self._cpu_clock = cpu_clock
        self._clock = clock if pace.size >= self.FIRST else cpu_clock
        self._pace = pace
        self._first_slow: tuple[int, int] | None = None  # bytes and time of the first slow piece after a quick one
        self.size = pace.size
        """Bytes that the next piece may have."""

    def deliver(self, callback: Callable[[int], int], count: int) -> int:
        """Call ``callback`` with at most ``count`` bytes and learn from the time that it takes.

        Args:
          callback: takes the number of bytes to deliver, and returns how many it has delivered.

        Returns:
          What ``callback`` has returned.
        """
        began = self._clock()
        delivered = callback(min(count, self.size))
        self.learn(delivered, self._clock() - began)
        return delivered

    @property
    def quick_size(self) -> int:
        """Up to how many bytes a piece teaches nothing, unless it takes longer than a time slice of the monotonic clock.

        It is 0 while pieces are measured by another clock.
        """
        if self._clock is not time.monotonic_ns:
            return 0
        return self.size if self.size == self.LARGEST and self._first_slow is None else self.size - 1

    def deliver_whole(self, callback: Callable[[T, int], object], receiver: T, count: int) -> None:
        """Call ``callback(receiver, count)`` and learn from the time that it takes.

        Args:
          count: bytes, at most :attr:`size`.
        """
        began = self._clock()
        callback(receiver, count)
        self.learn(count, self._clock() - began)

    async def deliver_async(
        self, callback: Callable[[int], Awaitable[object]], count: int, waits: Callable[[], int]
    ) -> int:
        """The same for an async callback.  One that waits lets others have their turn, so its time does not count.

        Args:
          callback: takes the number of bytes to deliver.
          waits: returns how often the task has waited.

        Returns:
          How many bytes were delivered.
        """
        size = min(count, self.size)
        before = waits()
        began = self._clock()
        await callback(size)
        self.learn(size, self._clock() - began if waits() == before else 0)
        return size

    def learn(self, delivered: int, elapsed: int) -> None:
        """Draw the conclusion from a piece.

        Args:
          delivered: its bytes.
          elapsed: nanoseconds that the callback took, by the clock that pieces are measured by at the moment.
        """
        if elapsed > SLICE_NS:
            if self._clock is self._wall_clock:
                self._clock = self._cpu_clock
                return
            slow, time_of_slow = self._first_slow = self._first_slow or (delivered, elapsed)
            if 2 * delivered * time_of_slow < slow * elapsed:
                self.size = min(self.LARGEST, delivered * 2)
            else:
                self.size = max(self.SMALLEST, delivered * SLICE_NS // elapsed)
        else:
            self._clock = self._wall_clock
            if elapsed < _QUICK_NS and delivered >= self.size:
                self._first_slow = None
                self.size = min(self.LARGEST, self.size * 2, delivered * SLICE_NS // max(elapsed, 1))
        self._pace.size = min(self.size, self.FIRST)

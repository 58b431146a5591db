"""The wait of the calls of one direction of a connection in memory, with the deadline of that direction."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

import trio


@final
class TimedWait:
    """Where the call of one direction waits until something has happened there.

    Args:
      direction: ``"read"`` or ``"write"``, for the error.
    """

    __slots__ = ("_deadline", "_direction", "_scope", "woken")

    def __init__(self, direction: str) -> None:
        self._direction = direction
        self._deadline = math.inf
        self._scope: trio.CancelScope | None = None  # of the wait in progress
        self.woken = trio.Event()
        """Set when something has happened since it was looked up; then there is another one."""

    @property
    def deadline(self) -> float:
        """When a wait is too slow, on Trio's clock; also the one in progress."""
        return self._deadline

    @deadline.setter
    def deadline(self, deadline: float) -> None:
        self._deadline = deadline
        if self._scope is not None:
            self._scope.deadline = deadline

    def wake(self) -> None:
        """Something has happened: the call in progress looks again."""
        self.woken.set()
        self.woken = trio.Event()

    async def wait(self, check_open: Callable[[], None]) -> None:
        """Wait until something has happened.

        Raises:
          trio.TooSlowError: the deadline has passed.

        And what ``check_open`` raises, which is called afterwards.
        """
        with trio.CancelScope(deadline=self._deadline) as scope:
            self._scope = scope
            try:
                await self.woken.wait()
            finally:
                self._scope = None
        check_open()
        if scope.cancelled_caught:
            raise trio.TooSlowError(f"the connection's {self._direction} deadline has passed")

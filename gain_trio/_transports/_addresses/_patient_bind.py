"""bind(2) to an address whose last owner has been killed a moment ago.

The kernel ends the operations of a killed process's ring in a work queue, after the process is gone (io_ring_exit_work,
io_uring.c), and until then they hold the listening socket: 36 ms were measured.  A supervisor that starts a successor at
once would meet ``EADDRINUSE`` for no reason.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import trio

PATIENCE: Final = 0.25
"""Seconds to try again, whatever the run's clock says."""
PAUSE: Final = 0.001

T = TypeVar("T")


async def patiently(attempt: Callable[[], Awaitable[T]]) -> T:
    """What ``attempt`` returns; when it raises ``EADDRINUSE`` it is called again, for :data:`PATIENCE`."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return await attempt()
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() >= end:
                raise
        _nap()  # not by Trio's clock, which may be a test's that stands still
        await trio.lowlevel.checkpoint()


async def bind_patiently(bind: Callable[[], object]) -> None:
    """The same of a call that does not wait."""

    async def attempt() -> None:
        bind()

    await patiently(attempt)


def _nap() -> None:
    time.sleep(PAUSE)

"""bind(2) to an address whose last owner was killed a moment ago.

The kernel ends the operations of a killed process's ring in a work queue, after the process is gone (io_ring_exit_work,
io_uring.c), and until then they keep the listening socket open: 36 ms in a measurement.  A supervisor that starts a
successor at once would meet ``EADDRINUSE`` for no reason.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Final, TypeVar

import trio

RETRY_SECONDS: Final = 0.25
"""Seconds for which to try again, on the real clock."""
PAUSE: Final = 0.001

T = TypeVar("T")


async def bind_with_retries(bind: Callable[[], T], *, pauses: int = 1) -> T:
    """Call ``bind`` and return its result; while it raises ``EADDRINUSE``, call it again, for :data:`RETRY_SECONDS`.

    Args:
      bind: a function that does not wait.
      pauses: the number of pauses before each further call.
    """
    end = time.monotonic() + RETRY_SECONDS
    while True:
        try:
            return bind()
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() >= end:
                raise
        for _ in range(pauses):
            _nap()  # not by Trio's clock, which stands still in some tests
            await trio.lowlevel.checkpoint()


def _nap() -> None:
    time.sleep(PAUSE)

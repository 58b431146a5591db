"""bind(2) to an address whose last owner has been killed a moment ago.

The kernel ends the operations of a killed process's ring in a work queue, after the process is gone (io_ring_exit_work,
io_uring.c), and until then they hold the listening socket: 36 ms were measured.  A supervisor that starts a successor at
once would meet ``EADDRINUSE`` for no reason.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Final, TypeVar

import trio

PATIENCE: Final = 0.25
"""Seconds to try again, whatever the run's clock says."""
PAUSE: Final = 0.001

T = TypeVar("T")


async def bind_patiently(bind: Callable[[], T], *, pauses: int = 1) -> T:
    """What ``bind`` returns; when it raises ``EADDRINUSE`` it is called again, for :data:`PATIENCE`.

    Args:
      bind: does not wait.
      pauses: how often to pause before it is called again.
    """
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return bind()
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() >= end:
                raise
        for _ in range(pauses):
            _nap()  # not by Trio's clock, which may be a test's that stands still
            await trio.lowlevel.checkpoint()


def _nap() -> None:
    time.sleep(PAUSE)

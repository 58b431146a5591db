"""No worker without a server: what ends a worker process whose server is gone.

The worker's event loop sees it by itself: the control channel ends, and everything is cancelled.  But a handler may hold the
loop up, or shield itself from the cancellation, or be written without Trio.  So a thread waits for the same, and for the
server's process itself (pidfd_open(2), Linux 5.3), in case another process has a copy of the channel's other end.  When
the process has not ended some seconds later, the thread ends it, without any cleaning up.

What it cannot end is a process whose interpreter runs nothing but one long computation in C that keeps the GIL.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from typing import Final, final

from gain_trio._server._time_limits import ORPHAN_GRACE

ORPHANED: Final = 70
"""Exit status of a worker that did not end in time.  Only the process that adopts the worker can still read it."""


@final
class Watchdog:
    """Made in the worker, of the worker's end of the control channel and the server's process id."""

    def __init__(self, control: socket.socket, parent: int) -> None:
        self._parent = parent
        self._channel = os.dup(control.fileno())  # the thread's own: another part of the process may close the other
        self._thread = threading.Thread(target=self._run, name="gain_trio watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch; it ends with the process."""
        self._thread.start()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._channel, 0)  # POLLHUP, both directions closed, is always reported
        try:
            server = os.pidfd_open(self._parent)
        except (AttributeError, OSError):  # not on Linux, an old one, or gone already: the channel's end shows that
            pass
        else:
            poll.register(server, select.POLLIN)
        if os.getppid() == self._parent:
            poll.poll()
        threading.Event().wait(ORPHAN_GRACE)
        os._exit(ORPHANED)

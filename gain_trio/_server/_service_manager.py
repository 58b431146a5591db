"""The service manager that has started this process, and what a server reports to it: sd_notify(3), without libsystemd.

A service manager that wants reports (systemd with ``Type=notify``) names a Unix datagram socket in ``NOTIFY_SOCKET``, a path
or ``@`` and an abstract name, and each report is a datagram of lines ``NAME=VALUE``:

    READY=1, MAINPID=…                  the server is up: it listens, and all its worker processes serve
    RELOADING=1, MONOTONIC_USEC=…       it is being renewed (SIGHUP); READY=1 again when that is over
    STOPPING=1                          it has begun to end
    STATUS=…                            a line for people: ``systemctl status``
    WATCHDOG=1                          its event loop goes round

With ``WATCHDOG_USEC`` the service manager kills a process whose last WATCHDOG=1 is older than that.  A task of the server's
run sends it twice in that time, so an event loop that is held up misses it.  A worker process that is held up is not the
service manager's affair: the server replaces it (``worker_timeout``).

The variables are for this process alone.  So the first server that reports takes them out of the environment, as
sd_notify(unset_environment=1) does, and neither a worker process nor a program that a handler starts can report in its
name.

A report that cannot be sent ends no server: one line of the log says why.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final, final

import trio

from gain_trio._transports import shown

from ._log_throttle import log_throttle, since_last
from ._time_limits import LAST_WORDS

VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_NUMBER: Final = re.compile("[0-9]{1,20}")

logger = logging.getLogger("gain_trio")


@final
class ServiceManager:
    """The service manager of this process.

    Args:
      address: of its socket, as ``NOTIFY_SOCKET`` has it; None when no service manager wants reports: then nothing is sent.
      watchdog: seconds within which it wants to see that the event loop goes round; ``math.inf`` for never.
    """

    def __init__(self, address: str | None, watchdog: float) -> None:
        self._address = address
        self._watchdog = watchdog
        self._order = trio.StrictFIFOLock()
        self._stopping = trio.Event()
        self._status: Callable[[], str] = str
        self._reported = ""  # the last status
        self._is_up = False
        self._reloads = 0  # in progress

    async def attend(self, status: Callable[[], str], draining: trio.Event | None = None) -> None:
        """Report that the server is up, and what becomes of it, until cancelled: by the end of the server.

        Args:
          status: describes the state of the server in one line.
          draining: set when the server drains.
        """
        self._status = status
        self._is_up = True
        await self._report("READY=1", f"MAINPID={os.getpid()}")
        async with trio.open_nursery() as nursery:
            if self._watchdog != math.inf:
                nursery.start_soon(self._show_life, name="gain_trio watchdog of the service manager")
            if draining is not None:
                nursery.start_soon(self._wait_for_drain, draining)
            try:
                await self._stopping.wait()
            finally:
                with trio.move_on_after(LAST_WORDS) as scope:
                    scope.shield = True
                    await self._report("STOPPING=1")

    def note_stopping(self) -> None:
        """The server has begun to end.  A second call does nothing."""
        self._stopping.set()

    @contextlib.asynccontextmanager
    async def reloading(self) -> AsyncIterator[None]:
        """Report that the server is being renewed, for the length of the block.

        A server that is not up yet, or has begun to end, is not renewed, and the READY=1 behind that would be untrue.
        """
        if not self._is_up or self._stopping.is_set():
            yield
            return
        self._reloads += 1
        if self._reloads == 1:
            now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            await self._report("RELOADING=1", f"MONOTONIC_USEC={now}")
        try:
            yield
        finally:
            self._reloads -= 1
        if not self._reloads and not self._stopping.is_set():
            await self._report("READY=1")

    async def _wait_for_drain(self, draining: trio.Event) -> None:
        await draining.wait()
        self._stopping.set()

    async def _show_life(self) -> None:
        while True:
            await self._report("WATCHDOG=1")
            await trio.sleep(self._watchdog / 2)

    async def _report(self, *lines: str) -> None:
        """Send these lines, and the status if it has changed.  It waits while the service manager's queue is full."""
        if self._address is None:
            return
        async with self._order:
            status = self._status()
            if status != self._reported:
                lines = (*lines, f"STATUS={status}")
            try:
                # Opened for each report, as by sd_notify(3): a service manager that was started anew has another socket.
                with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                    await sock.connect(_sockaddr(self._address))
                    await sock.send("\n".join(lines).encode())
            except OSError as error:
                count = log_throttle("service manager").count()
                if count is not None:
                    logger.warning(
                        "the service manager gets no report: NOTIFY_SOCKET is %s: %s%s",
                        shown(self._address),
                        shown(error.strerror or error),
                        shown(since_last(count)),
                    )
            else:
                self._reported = status


def _sockaddr(address: str) -> str:
    return "\0" + address[1:] if address.startswith("@") else address


# --- the environment ---


@final
class _Speaker:
    """Who reports in the name of this process: one server at a time."""

    def __init__(self) -> None:
        self._taken: dict[str, str] = {}  # what the environment had
        self._is_busy = False

    @contextlib.contextmanager
    def speak(self) -> Iterator[ServiceManager]:
        """See :func:`service_manager`."""
        if self._is_busy:
            raise RuntimeError(
                "sd_notify=True is for one server of a process, and another one reports to the service manager already: "
                "leave it out here"
            )
        if "NOTIFY_SOCKET" in os.environ:
            self._taken = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
        address = self._taken.get("NOTIFY_SOCKET")
        if not address:  # set to nothing is not set
            address = None
        elif not address.startswith(("/", "@")):
            logger.warning(
                "the service manager gets no report: NOTIFY_SOCKET is %s, and only a path and an @abstract name are known",
                shown(address),
            )
            address = None
        self._is_busy = True
        try:
            yield ServiceManager(address, self._watchdog())
        finally:
            self._is_busy = False

    def _watchdog(self) -> float:
        said, meant = self._taken.get("WATCHDOG_USEC"), self._taken.get("WATCHDOG_PID", str(os.getpid()))
        if said is None or meant != str(os.getpid()):  # sd_watchdog_enabled(3): it may be another process's
            return math.inf
        if not _NUMBER.fullmatch(said) or not int(said):
            logger.warning(
                "the service manager's watchdog is left out: WATCHDOG_USEC is a number of microseconds, not '%s'",
                shown(said),
            )
            return math.inf
        return int(said) / 1e6


_speaker: Final = _Speaker()


def service_manager() -> contextlib.AbstractContextManager[ServiceManager]:
    """The service manager, for the length of the block, for the one server that reports to it.

    The environment is read, and its variables are taken out, when the block begins: before worker processes are started.

    Raises:
      RuntimeError: another server of this process reports to it.
    """
    return _speaker.speak()

"""The connections and callbacks in progress in a server, and their end when the server is shut down.

A cancelled scope ends callbacks where they wait, and authors of callbacks do not expect them to end halfway.
``shutdown()`` is gentler: it closes connections as ``close()`` does, lets callbacks run to their end, and cancels the
scope when nothing is left, or when the time is up.

A server that drains (a worker process always does; another server by a signal, with ``signals=True``) ends its connections
in the same way, and leaves the rest to the server below, which ends after them.  A worker process that is replaced gets
connections until that moment, so it still serves new ones: see ``StreamDriver``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, final


class CanEnd(Protocol):
    """A connection or callback in progress that can end on request."""

    def _end_wait(self) -> None: ...


@final
class Activity:
    """The connections and callbacks in progress in one run."""

    def __init__(self) -> None:
        self._running: set[CanEnd] = set()
        self._when_idle: Callable[[], object] | None = None
        self.begin: Callable[[CanEnd], None] = self._running.add
        """Add something that is in progress."""
        self.end: Callable[[CanEnd], None] = self._running.discard
        """Remove something that has ended."""
        self.is_ending = False
        """Whether nothing new may begin."""

    @property
    def running(self) -> int:
        """How many there are."""
        return len(self._running)

    def _end_and_look(self, thing: CanEnd) -> None:
        """In place of :attr:`end` after :meth:`stop`."""
        self._running.discard(thing)
        if self._when_idle is not None and not self._running:
            self._when_idle()

    def ask_to_end(self) -> None:
        """Request the end of everything in progress."""
        for thing in list(self._running):
            thing._end_wait()

    def stop(self, when_idle: Callable[[], object]) -> None:
        """Request the end of everything in progress, and call ``when_idle`` after it."""
        self._when_idle = when_idle
        self.end = self._end_and_look
        self.is_ending = True
        self.ask_to_end()
        if not self._running:
            when_idle()

"""What is in progress in a server, and how it comes to an end when the server is shut down.

A cancelled scope ends callbacks where they wait.  ``shutdown()`` is gentler: whoever wrote a server of callbacks has not
thought of callbacks that end halfway.  Connections are closed as by ``close()``, callbacks run to their end, and when
nothing is left, or when the time for it is up, the scope is cancelled.

A server that drains (in a worker process, which knows of nothing else; or by a signal, with ``signals=True``) asks the same
of its connections, and leaves the rest to the server below, which ends when they have.  A worker process that is replaced
gets connections until that moment, so there new ones are still served: see ``StreamDriver``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, final

SHUTDOWN_SECONDS = 5.0
"""That connections and callbacks have to end when the server is shut down, unless ``graceful_timeout`` is given."""


class Ending(Protocol):
    """What can be asked to end."""

    def _end_wait(self) -> None: ...


@final
class Activity:
    """In one run."""

    def __init__(self) -> None:
        self._running: set[Ending] = set()
        self._when_idle: Callable[[], object] | None = None

    @property
    def is_ending(self) -> bool:
        """Whether nothing new is to begin."""
        return self._when_idle is not None

    def begin(self, thing: Ending) -> None:
        """It is in progress."""
        self._running.add(thing)

    def end(self, thing: Ending) -> None:
        """It is not any more."""
        self._running.discard(thing)
        if self._when_idle is not None and not self._running:
            self._when_idle()

    def ask_to_end(self) -> None:
        """Ask everything that is in progress to end."""
        for thing in list(self._running):
            thing._end_wait()

    def stop(self, when_idle: Callable[[], object]) -> None:
        """Ask everything to end, and call back when it has."""
        self._when_idle = when_idle
        self.ask_to_end()
        if not self._running:
            when_idle()

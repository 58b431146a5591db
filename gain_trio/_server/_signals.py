"""What signals do to a server: one definition for ``serve(signals=True)``, the command and servers of callbacks.

SIGTERM and SIGINT end a server: the first one as gently as the server can, the next one by a cancellation, and those after
it shorten the time that is left (``_cut_off``).  SIGHUP renews a server: its worker processes, or without any its TLS
context.  The receiver stays until the server has ended: a signal without a receiver would kill the program.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Protocol

import trio

from gain_trio._transports import shown

from ._cut_off import cut_off
from ._end_signals import END_SIGNALS, REPLACE_SIGNALS, watched_signals
from ._service_manager import ServiceManager

logger = logging.getLogger("gain_trio")


class SignalTarget(Protocol):
    """A server that signals end.  Each method gets the name of the signal, for the log."""

    def begin_to_end(self, name: str, /) -> bool:
        """Begin to end gently.  False if the server is ending already, or cannot end gently."""

    def cancel(self, name: str, /) -> None:
        """End at once."""

    async def renew(self, name: str, /) -> None:
        """Replace the worker processes one by one, or without any make the TLS context again."""


@contextlib.contextmanager
def received_signals(*, with_replacement: bool = True) -> Iterator[AsyncIterator[int]]:
    """The signals that a server obeys, as they arrive, for the length of the block.

    Args:
      with_replacement: False leaves SIGHUP to the program.

    Raises:
      RuntimeError: this is not the main thread, the only one in which Python receives signals.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            "signals=True is for a server in the main thread, the only one in which Python receives signals; leave it out "
            "and call server.drain() yourself"
        )
    with watched_signals(*END_SIGNALS, *(REPLACE_SIGNALS if with_replacement else ())) as signals:
        yield signals


async def obey_signals(
    signals: AsyncIterator[int], server: SignalTarget, nursery: trio.Nursery, manager: ServiceManager | None = None
) -> None:
    """Pass signals on to a server, until cancelled: by the server's end.

    A server that was cancelled and does not end, because a thread is busy, ends with its process.

    Args:
      signals: what :func:`received_signals` gives.
      server: obeys them.
      nursery: the server is below it, and so is what this starts.
      manager: gets a report of what a signal does, or None.
    """
    async for number in signals:
        name = signal.Signals(number).name
        if number in REPLACE_SIGNALS:
            nursery.start_soon(_renew, server, name, manager, name="gain_trio renewal")
            continue
        has_begun = server.begin_to_end(name)
        if manager is not None:
            manager.note_stopping()
        if not has_begun:
            server.cancel(name)
            await cut_off(signals, nursery, REPLACE_SIGNALS)


async def _renew(server: SignalTarget, name: str, manager: ServiceManager | None) -> None:
    if manager is None:
        await server.renew(name)
    else:
        async with manager.reloading():
            await server.renew(name)


def no_workers_to_replace(name: str, server: object) -> None:
    """Log that a signal has no effect on a server without worker processes."""
    logger.info("%s replaces worker processes, and %s has none: nothing is done", shown(name), shown(server))

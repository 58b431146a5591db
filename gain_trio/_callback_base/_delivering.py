"""The loop of the plain case: wait for a change, and call back for bytes that have arrived."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from gain_trio._transports import Connection

Deliver: TypeAlias = Callable[[Callable[[Any, int], object], Any, int, int], Awaitable[int]]
"""Takes a callback and its first argument, what ``Connection._wait_change`` is to watch, and the most bytes for one call.
Calls back with each number of bytes up to that, and returns the first other answer of the wait."""


def deliver_by(connection: Connection) -> Deliver:
    """Return the loop for this connection: one on the ring has its own, in C."""
    own: Deliver | None = getattr(connection, "_deliver", None)
    if own is not None:
        return own
    wait = connection._wait_change

    async def deliver(callback: Callable[[Any, int], object], first: Any, watched: int, most: int) -> int:
        while True:
            n = await wait(watched)
            if not 0 < n <= most:
                return n
            callback(first, n)

    return deliver

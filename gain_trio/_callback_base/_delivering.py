"""The loop of the plain case: wait for a change, and call back for bytes that have arrived."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from gain_trio._transports import Connection

Learn: TypeAlias = Callable[[int, int], None]
"""Takes the bytes that a callback was given, and the nanoseconds that it took."""
Deliver: TypeAlias = Callable[[Callable[[Any, int], object], Any, int, int, int, Learn | None], Awaitable[int]]
"""Takes a callback and its first argument, what ``Connection._wait_change`` is to watch, the most bytes for one call, the
most for one that is timed, and what learns from the time.

Calls back with each number of bytes up to the first of the two, and returns the first other answer of the wait.  It may also
call back with numbers up to the second one, and time these calls.  When one has taken longer than a time slice, it
reports the number and the time to what learns, and returns CHANGED."""


DeliverOf: TypeAlias = Callable[[Any, Callable[[Any, int], object], Any, int, int, int, "Learn | None"], Awaitable[int]]
"""The same with the connection as its first argument."""


def deliver_by(connection: Connection) -> Deliver:
    """Return the loop for this connection."""
    return functools.partial(delivery_of(type(connection)), connection)


def delivery_of(kind: type[Connection]) -> DeliverOf:
    """Return the loop for connections of this class: those on the ring have their own, in C, and so has TLS."""
    own: DeliverOf = getattr(kind, "_deliver", _deliver)
    return own


async def _deliver(
    connection: Connection,
    callback: Callable[[Any, int], object],
    first: Any,
    watched: int,
    most: int,
    _timed: int,
    _learn: Learn | None,
) -> int:
    wait = connection._wait_change
    while True:
        n = await wait(watched)
        if not 0 < n <= most:
            return n
        callback(first, n)

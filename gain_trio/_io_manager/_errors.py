"""The one place that says what an errno means for a stream."""

from __future__ import annotations

import trio

from gain_trio._kernel import os_error


def broken(number: int) -> trio.BrokenResourceError:
    """A connection's operation failed with an errno: the stream is broken, and this is why."""
    cause = os_error(number)
    error = trio.BrokenResourceError(f"the connection is broken: {cause.strerror}")
    error.__cause__ = cause
    return error

"""The one place that says what an errno means for a stream."""

from __future__ import annotations

import trio

from gain_trio._kernel import os_error


def broken(number: int) -> trio.BrokenResourceError:
    """A connection's operation failed with an errno: the stream is broken, and this is why."""
    return broken_by(os_error(number))


def broken_by(cause: OSError) -> trio.BrokenResourceError:
    """A connection's operation failed with this: the stream is broken, and this is why.  The cause is not changed."""
    error = trio.BrokenResourceError(f"the connection is broken: {cause.strerror}")
    error.__cause__ = cause
    return error

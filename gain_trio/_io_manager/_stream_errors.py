"""The one place that translates an errno for a stream."""

from __future__ import annotations

import trio

from gain_trio._kernel import os_error


def broken(number: int) -> trio.BrokenResourceError:
    """The exception for a connection whose operation failed with this errno."""
    return broken_by(os_error(number))


def broken_by(cause: OSError) -> trio.BrokenResourceError:
    """The exception for a connection whose operation failed with ``cause``, which stays unchanged."""
    error = trio.BrokenResourceError(f"the connection is broken: {cause.strerror}")
    error.__cause__ = cause
    return error

"""The wait for a connection whose end of the stream was reported already."""

from __future__ import annotations

import errno
import os
from typing import NoReturn

import trio

from gain_trio._io_manager import broken_by
from gain_trio._transports import Connection


async def sleep_until_idle(connection: Connection) -> NoReturn:
    """Sleep until the scope around it is cancelled, or the connection's ``idle_timeout`` has ended it.

    A task calls this that has seen the end of the stream, and waits for another task of the program: :meth:`Changes.next`
    would report the end again at once.  Nothing wakes it when the connection is found idle, so it looks every
    ``idle_timeout`` seconds: a connection lasts at most twice as long.

    Raises:
      trio.BrokenResourceError: it was idle; with a :exc:`TimeoutError` as its cause.
    """
    while not connection._was_idle:
        with trio.move_on_after(connection.idle_timeout):
            await trio.sleep_forever()
    error = OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    raise broken_by(error) from error

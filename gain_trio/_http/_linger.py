"""The end of a connection after its last answer."""

from __future__ import annotations

import math
from typing import Final

import trio

from gain_trio._transports import Connection

CHUNK: Final = 16384
LINGER_SECONDS: Final = 2.0
"""Seconds for which a server goes on receiving after the last answer.  The kernel resets a connection that is closed with
unread bytes, and the reset may overtake the answer (RFC 9112, 9.6)."""
LINGER_BYTES: Final = 4 * 1024 * 1024
"""The most bytes that the server receives meanwhile."""


async def linger(connection: Connection) -> None:
    """Have the peer receive the last answer: end this side, and receive until it has ended its own, within bounds.

    The caller closes the connection after that.  Raises what :meth:`Connection.receive` raises.
    """
    left = LINGER_BYTES
    connection.set_deadline(math.inf)  # in place of those of the last request, and of an answer before the last
    with trio.move_on_after(LINGER_SECONDS):
        try:
            await connection.send_eof()
        except NotImplementedError:  # TLS has no half-close: the connection can only be closed
            await connection.flush()
            return
        while left > 0 and (data := await connection.receive(CHUNK)):
            left -= len(data)

"""When a protocol is idle: then its connection can be ended, because the server drains.

A protocol is called, and does not wait, so nothing here shows when it has finished a request.  What can be known:

    something is queued, in or out              busy
    bytes were delivered, and nothing was       busy: it works on its answer
    written since
    bytes come or go                            busy, and for QUIET seconds more: an answer may have several pieces
    its peer has never sent a byte              busy, until FIRST_WORDS seconds after it was made: a client that connects
                                                while worker processes are replaced has its first request answered
    otherwise                                   idle

A protocol with a state of its own has a method ``server_draining()``; see :class:`ProtocolHandler`.
"""

from __future__ import annotations

import math
from typing import Final, final

import trio

from gain_trio._transports import Connection

QUIET: Final = 0.25
"""Seconds without a byte in either direction after which an answer counts as complete."""
FIRST_WORDS: Final = 1.0
"""Seconds that a peer has for its first byte, from when its connection was made."""


@final
class IdleDetector:
    """How long a connection has been quiet, from when the server began to drain."""

    def __init__(self, connection: Connection, made_at: float) -> None:
        self._connection = connection
        self._made_at = made_at
        self._moved = (connection.bytes_received, connection.bytes_sent)
        self._since = trio.current_time()

    def ends_at(self, *, owes: bool, has_heard: bool) -> float:
        """When the connection counts as idle, if nothing happens until then.

        Args:
          owes: nothing was written since the last bytes were delivered.
          has_heard: bytes were ever delivered.
        """
        connection = self._connection
        moved = (connection.bytes_received, connection.bytes_sent)
        if moved != self._moved:
            self._moved = moved
            self._since = trio.current_time()
        if owes or connection.outbound_buffered or connection.inbound_buffered:
            return math.inf
        end = self._since + QUIET
        return end if has_heard else max(end, self._made_at + FIRST_WORDS)

"""When a WebSocket is pinged, and when its peer counts as gone."""

from __future__ import annotations

import enum
import math
from typing import final

from gain_trio._transports import Connection

from ._asgi_config import AsgiConfig


class PeerState(enum.Enum):
    """What a look at the peer has found."""

    FINE = enum.auto()
    PING = enum.auto()
    """A ping is due."""
    GONE = enum.auto()
    """The peer has sent nothing since a ping, for too long; or it accepts nothing."""


@final
class PingSchedule:
    """The pings of one WebSocket.  Any byte of the peer answers one, as long as the peer also accepts what is sent.

    A ping stands in line behind what was sent before it, which may be megabytes.  So a peer that accepts bytes is there,
    however slow it is, and its time for an answer begins again.

    :meth:`begin` starts it; a look before that finds nothing to do.
    """

    __slots__ = (
        "_accepted_before",
        "_config",
        "_connection",
        "_doomed_at",
        "_ping_at",
        "_received_before",
        "_sent_before",
    )

    def __init__(self, config: AsgiConfig, connection: Connection) -> None:
        self._config = config
        self._connection = connection
        self._ping_at = self._doomed_at = math.inf
        # Bytes that had come and gone at the last look, and those of the latter that the peer had accepted.
        self._received_before = self._sent_before = self._accepted_before = 0

    def begin(self, now: float) -> None:
        """The WebSocket is open."""
        self._ping_at = now + self._config.ws_ping_interval

    @property
    def next_look(self) -> float:
        """When to look again."""
        return min(self._ping_at, self._doomed_at)

    def look(self, now: float, *, is_sending: bool, is_full: bool) -> PeerState:
        """Look at the peer.

        Args:
          now: the time on Trio's clock.
          is_sending: whether a sender waits for the peer.
          is_full: whether the queue is what keeps the connection from being read.
        """
        if now < self.next_look:
            return PeerState.FINE
        received, sent = self._connection.bytes_received, self._connection.bytes_sent
        left = self._connection._unacknowledged() or 0
        accepts = left > 0 and sent - left != self._accepted_before
        is_stuck = is_sending and sent == self._sent_before and not accepts
        if (received != self._received_before or is_full) and not is_stuck:
            self._doomed_at = math.inf
        elif accepts and self._doomed_at < math.inf:
            self._doomed_at = max(self._doomed_at, now + self._config.ws_ping_timeout)
        self._received_before, self._sent_before, self._accepted_before = received, sent, sent - left
        if now >= self._doomed_at:
            return PeerState.GONE
        if now < self._ping_at:
            return PeerState.FINE
        self._ping_at = now + self._config.ws_ping_interval
        self._doomed_at = min(self._doomed_at, now + self._config.ws_ping_timeout)
        return PeerState.PING

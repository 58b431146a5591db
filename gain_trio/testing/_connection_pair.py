"""The two ends of a connection in memory."""

from __future__ import annotations

from typing import Any

from gain_trio._transports import Marks, marks_or_usual

from ._memory_connection import MemoryConnection


def connection_pair(
    *,
    marks: Marks | None = None,
    peer_marks: Marks | None = None,
    addresses: tuple[Any, Any] = (("127.0.0.1", 49152), ("127.0.0.1", 80)),
) -> tuple[MemoryConnection, MemoryConnection]:
    """Make the two ends of a connection in memory: no socket, no descriptor, and no port.

    What one end sends the other one receives, within the bounds of their :class:`gain_trio.Marks`.  Both keep the contract
    of :class:`gain_trio.Connection`, with deadlines, idle timeouts, half closes and resets, on any clock: under a MockClock
    a test of an hour's silence takes no time.  A server in memory can have TLS (``serving(..., ssl_context=...)``).

    Args:
      marks, peer_marks: of the first and of the second.
      addresses: of the first and of the second, as from :meth:`socket.socket.getsockname`.

    Raises:
      RuntimeError: not called from a task of a Trio run.
    """
    one = MemoryConnection(marks_or_usual(marks), *addresses)
    other = MemoryConnection(marks_or_usual(peer_marks, "peer_marks"), *reversed(addresses))
    one._join(other)
    other._join(one)
    return one, other

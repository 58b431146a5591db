"""The connections on their way to one worker process: queued here, or sent and not confirmed yet.

The server keeps them until the worker has confirmed them (``_hand_off``).  Those that the worker has no room for are sent
again after a pause, and those that it will not take, because it is late or ends, go to another worker.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Sequence
from typing import Final, TypeAlias, final

import trio

from gain_trio._server._time_limits import HAND_OFF_PAUSE

from . import _hand_off
from ._accepted_socket import AcceptedSocket
from ._remote_consumer import RemoteConsumer

WINDOW: Final = 128
"""Connections that may be on their way to a worker.  One that is busy with something else takes no more; others do."""

Pair: TypeAlias = tuple[AcceptedSocket, RemoteConsumer]


@final
class PendingHandOffs:
    """See the top of this module."""

    def __init__(self) -> None:
        self.count = 0
        """Connections on their way."""
        self.retrieval: socket.socket | None = None
        """A copy of the process's end of the hand-off, by which connections that it has not taken are taken back."""
        self._queued: deque[Pair] = deque()
        self._sent: dict[int, list[Pair]] = {}
        """By the sequence number of their datagram."""
        self._sequence = 0
        self._posted = trio.Event()
        self._worker_has_no_room = False

    @property
    def is_full(self) -> bool:
        """Whether no other connection may be on its way."""
        return self.count >= WINDOW

    def post(self, connection: AcceptedSocket, consumer: RemoteConsumer) -> None:
        """Queue a connection for this consumer."""
        self._queued.append((connection, consumer))
        self.count += 1
        self.wake()

    def wake(self) -> None:
        """Have :meth:`wait` return."""
        self._posted.set()

    async def wait(self) -> None:
        """Wait until something was posted."""
        await self._posted.wait()
        self._posted = trio.Event()

    async def send(self, hand_off: socket.socket) -> None:
        """Send all that is queued, after a pause if the worker has refused some.

        Raises:
          OSError: the worker is gone.
        """
        while self._queued:
            if self._worker_has_no_room:
                self._worker_has_no_room = False
                await trio.sleep(HAND_OFF_PAUSE)
                continue
            batch = [self._queued.popleft() for _ in range(min(_hand_off.MOST_AT_ONCE, len(self._queued)))]
            self._sequence += 1
            self._sent[self._sequence] = batch  # before the first await: from here on they are found
            connections = [connection for connection, _consumer in batch]
            await _hand_off.send(hand_off, self._sequence, [consumer.number for _, consumer in batch], connections)

    def confirm(self, sequence: int, count: int) -> list[Pair]:
        """Close this process's copies of the connections that the worker has taken, and return those it has refused."""
        batch = self._sent.pop(sequence, [])
        for connection, _consumer in batch[:count]:
            connection.close()
        self.count -= count
        refused = batch[count:]
        self._worker_has_no_room |= bool(refused)
        return refused

    def send_again(self, refused: Sequence[Pair]) -> None:
        """Send connections that the worker has refused again, before all others."""
        self._queued.extendleft(reversed(refused))
        self.wake()

    def take_back(self) -> list[Pair]:
        """Remove and return the connections that the worker has not received yet."""
        pairs: list[Pair] = []
        while self.retrieval is not None and (arrival := _hand_off.receive_ready(self.retrieval)) is not None:
            for descriptor in arrival.descriptors:
                os.close(descriptor)  # a copy of the connection's own
            pairs += self._sent.pop(arrival.sequence, [])
        pairs += self._queued
        self._queued.clear()
        return pairs

    def take_all(self) -> list[Pair]:
        """Remove and return all connections: the worker is gone."""
        pairs = [pair for batch in self._sent.values() for pair in batch] + list(self._queued)
        self._sent.clear()
        self._queued.clear()
        return pairs

    def release(self, pairs: Sequence[Pair]) -> list[AcceptedSocket]:
        """The connections of pairs that are not on their way any more: their consumers do not count them from now on."""
        for _connection, consumer in pairs:
            consumer.connections -= 1
        self.count -= len(pairs)
        return [connection for connection, _consumer in pairs]

"""When the server's process may accept a connection: there is a worker that has room for it, and a place for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import trio


@final
class AcceptGate:
    """What an acceptor asks before it accepts, as it asks :class:`ConnectionLimit` in a server of one process.

    Nothing is reserved: no other task runs between the question and the hand-off, and the hand-off is what counts.
    """

    def __init__(self, has_room: Callable[[], bool]) -> None:
        self._has_room = has_room
        self._waiting = trio.lowlevel.ParkingLot()

    def take(self) -> bool:
        """Whether a connection may be accepted."""
        return self._has_room()

    def give_back(self) -> None:
        """Nothing was accepted."""

    def wake(self) -> None:
        """Wake all waiting acceptors, so that they look again."""
        self._waiting.unpark_all()

    async def wait(self) -> None:
        """Return at once when there is room, otherwise when there may be some: a checkpoint only then."""
        if not self._has_room():
            await self._waiting.park()

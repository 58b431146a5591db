"""max_connections: places for connections, of which one has to be taken before a connection is accepted."""

from __future__ import annotations

from typing import final

import trio


@final
class ConnectionLimit:
    """At most ``max_connections`` connections at a time, over all acceptors of a process.

    A place is taken before accept(2) and given back when the connection's handler has ended and its descriptor is closed.
    An acceptor that waits for a connection holds none: else the one of a quiet address would keep the last place from
    that of a busy one.  So an acceptor that finds a connection checks again whether there is still a place, and all waiting
    acceptors are woken when there is one.  There are as many as listeners, and each looks once.
    """

    def __init__(self, count: int) -> None:
        self.free = count
        self._waiting = trio.lowlevel.ParkingLot()

    def take(self) -> bool:
        """Take a place, if there is one."""
        if not self.free:
            return False
        self.free -= 1
        return True

    def give_back(self) -> None:
        """Free a place, and wake the acceptors that wait for one."""
        self.free += 1
        self.wake()

    def wake(self) -> None:
        """Wake all waiting acceptors, so that they look again."""
        self._waiting.unpark_all()

    async def wait(self) -> None:
        """Return at once when there is a place, otherwise when there may be one: a checkpoint only then."""
        if not self.free:
            await self._waiting.park()

"""A datagram endpoint without a socket: what one sends goes to the queue of another one of its network.

It keeps the contract of :class:`DatagramEndpoint`: datagrams are whole, a queue that is full drops what comes, and a
datagram to an address that is nowhere is lost without an error.  Each arrives in the step in which it is sent, in order,
unless its :class:`DatagramRoute` says otherwise.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from typing import TYPE_CHECKING, Any, Final, TypeAlias, final

import trio

from gain_trio._transports import DatagramEndpoint, DatagramStatistics, whole_of

from ._without_socket import WithoutSocket

if TYPE_CHECKING:
    from typing_extensions import Buffer

Network: TypeAlias = "dict[Any, MemoryEndpoint]"
"""The endpoints of a test, by their addresses."""

LARGEST: Final = 65507
"""Bytes; the most that a datagram by IPv4 has."""


@final
class DatagramRoute:
    """One direction between a client and its server in memory.  A test changes it at any time, and it holds from then on."""

    def __init__(self) -> None:
        self._lose = self._duplicate = 0
        self._refuse: int | None = None
        self.carried: int = 0
        """Datagrams that have arrived at the other end, or at its full queue."""

    @property
    def lose(self) -> int:
        """The number of next datagrams that the network loses; it counts down."""
        return self._lose

    @lose.setter
    def lose(self, count: int) -> None:
        self._lose = _checked("lose", count)

    @property
    def duplicate(self) -> int:
        """The number of next datagrams that arrive twice; it counts down."""
        return self._duplicate

    @duplicate.setter
    def duplicate(self, count: int) -> None:
        self._duplicate = _checked("duplicate", count)

    @property
    def refuse(self) -> int | None:
        """The errno that each ``send`` raises, as the kernel does; None for no error.

        With ``errno.ENETUNREACH`` and its like a server counts that it could not answer (``unreachable``).
        """
        return self._refuse

    @refuse.setter
    def refuse(self, number: int | None) -> None:
        self._refuse = None if number is None else _checked("refuse", number)

    def copies(self) -> int:
        """How often the next datagram arrives."""
        if self._lose:
            self._lose -= 1
            return 0
        copies = 1
        if self._duplicate:
            self._duplicate -= 1
            copies = 2
        self.carried += copies
        return copies


def _checked(name: str, count: Any) -> int:
    if not isinstance(count, int) or isinstance(count, bool):
        what = "an errno, or None" if name == "refuse" else "a number of datagrams"
        raise TypeError(f"{name} is {what}, not {count!r}")
    number: int = count
    if number < 0:
        raise ValueError(f"{name} is at least 0, not {count}")
    return number


@final
class MemoryEndpoint(WithoutSocket, DatagramEndpoint):
    """See :meth:`MemoryDatagramServer.connect`.

    ``incoming`` and ``outgoing`` are the two directions between a client and its server, for a test to disturb.
    """

    __slots__ = (
        "_address",
        "_closed",
        "_counts",
        "_network",
        "_options",
        "_queue",
        "_queue_bytes",
        "_queue_size",
        "_queued_bytes",
        "_remote",
        "_waiting",
        "context",
        "incoming",
        "outgoing",
    )

    _KIND = "an endpoint"

    context: Any
    incoming: DatagramRoute
    """From the server to this client."""
    outgoing: DatagramRoute
    """From this client to the server."""

    def __init__(self, network: Network, address: Any, remote: Any, *, queue_size: int, queue_bytes: int) -> None:
        self._network = network
        self._address = address
        self._remote = remote
        self._queue: deque[tuple[bytes, Any]] = deque()
        self._queue_size = queue_size
        self._queue_bytes = queue_bytes
        self._queued_bytes = 0
        self._waiting = trio.lowlevel.ParkingLot()
        self._options = {}
        self._counts = dict.fromkeys(("received", "received_bytes", "sent", "sent_bytes", "failed", "dropped"), 0)
        self._closed = False
        self.context = None
        self.incoming, self.outgoing = DatagramRoute(), DatagramRoute()
        network[address] = self

    def __repr__(self) -> str:
        return self._described(closed=self._closed)

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this endpoint was closed")

    # --- datagrams ---

    async def receive(self) -> tuple[bytes, Any]:
        """See :meth:`DatagramEndpoint.receive`."""
        await trio.lowlevel.checkpoint()
        while True:
            self._check_open()
            if self._queue:
                data, address = self._queue.popleft()
                self._queued_bytes -= len(data)
                return data, address
            await self._waiting.park()

    async def __anext__(self) -> tuple[bytes, Any]:
        return await self.receive()

    async def send(self, data: Buffer, /, address: Any = None) -> None:
        """See :meth:`DatagramEndpoint.send`."""
        target = self._target(address)
        await trio.lowlevel.checkpoint()
        self._check_open()
        whole = whole_of(data)
        other = self._network.get(target)
        route = self.outgoing if self._remote is not None else None if other is None else other.incoming
        number = errno.EMSGSIZE if len(whole) > LARGEST else None if route is None else route.refuse
        if number is not None:
            self._counts["failed"] += 1
            raise OSError(number, os.strerror(number))
        self._counts["sent"] += 1
        self._counts["sent_bytes"] += len(whole)
        if other is not None and route is not None:
            for _ in range(route.copies()):
                other._arrived(whole, self._address)

    def _target(self, address: Any) -> Any:
        if self._remote is not None:
            if address is not None and address != self._remote:
                raise ValueError(f"this endpoint is connected to {self._remote!r}, and sends nowhere else")
            return self._remote
        if address is None:
            raise TypeError("send() needs an address: this endpoint is not connected to one")
        return address

    def _arrived(self, data: bytes, address: Any) -> None:
        is_too_much = self._queued_bytes + len(data) > self._queue_bytes
        if len(self._queue) >= self._queue_size or (self._queue and is_too_much):
            self._counts["dropped"] += 1
            return
        self._counts["received"] += 1
        self._counts["received_bytes"] += len(data)
        self._queued_bytes += len(data)
        self._queue.append((data, address))
        self._waiting.unpark()

    @property
    def dropped(self) -> int:
        """See :attr:`DatagramEndpoint.dropped`."""
        return self._counts["dropped"]

    def statistics(self) -> DatagramStatistics:
        """See :meth:`DatagramEndpoint.statistics`."""
        return DatagramStatistics(
            **self._counts, oversized=0, dropped_by_kernel=None, queued=len(self._queue), unsent=0
        )

    # --- ending ---

    def close(self) -> None:
        """See :meth:`DatagramEndpoint.close`."""
        if not self._closed:
            self._closed = True
            del self._network[self._address]
            self._queue.clear()
            self._waiting.unpark_all()

    # --- addresses ---

    @property
    def local_address(self) -> Any:
        """See :attr:`DatagramEndpoint.local_address`."""
        return self._address

    @property
    def remote_address(self) -> Any:
        """See :attr:`DatagramEndpoint.remote_address`."""
        return self._remote

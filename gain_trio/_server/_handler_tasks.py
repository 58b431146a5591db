"""The handlers of one process that have been at work for long, for those who look at the server.

A server that can be looked at notes the task of each handler and the time when that began: two stores for a connection.
Everything else is found out when a look is taken, within limits, so that a look at 100,000 connections costs no more than
one at some thousands: connections beyond a limit have their turn at the next look.  Those that were slow at the last look
come first.

*How long* a handler has been at work is measured from the head of its request, where it serves requests.  Other handlers
have no such mark.  There it is the time since a byte last came or went, which the kernel knows for TCP (tcp(7), tcp_info);
on a Unix socket it is the time since the handler began.  A handler that waits for its peer, without a request in progress
and with nothing unsent, is idle and not slow.
"""

from __future__ import annotations

import logging
import math
import socket
import struct
from collections.abc import Callable
from typing import Any, Final, final

import attrs
import trio

from gain_trio._transports import Connection, endpoint_text, shown

from ._log import peer_text
from ._log_throttle import log_throttle, since_last
from ._snapshot import SlowHandler
from ._task_frames import WaitingPlace, waiting_place

SLOW: Final = 1.0
"""Seconds after which a handler is slow."""
MOST_REPORTED: Final = 20
"""Slow handlers that a process reports: those that have been at work for longest."""
MOST_EXAMINED: Final = 2000
"""Connections that a look examines."""
MOST_STEPS: Final = 1500
"""Awaitables that a look goes through, one more for each connection: some milliseconds of all processes together."""
LEAST_STEPS: Final = 100
"""The same in one process, however many there are."""

_SINCE_DATA: Final = struct.Struct("=44xI4xI")
"""Of struct tcp_info (linux/tcp.h): milliseconds since data was last sent, and since it was last received."""

logger = logging.getLogger("gain_trio")


@final
@attrs.frozen
class RequestInProgress:
    """A request that a handler is serving."""

    text: str
    """Its method and its path, escaped."""
    began: float
    """When its head had arrived, on Trio's clock."""


@final
@attrs.frozen
class _Running:
    number: int
    task: trio.lowlevel.Task
    began: float
    connection: Connection | None
    address: Any = None
    """Where a datagram came from."""


@final
class HandlerTasks:
    """The handlers that run in this process.

    Args:
      request_of: returns the request that a task serves, or None.
    """

    def __init__(
        self, request_of: Callable[[trio.lowlevel.Task], RequestInProgress | None] = lambda _task: None
    ) -> None:
        self._request_of = request_of
        self._running: dict[object, _Running] = {}
        self._slow: list[object] = []  # at the last look
        self._next = 0  # whose turn it is, in their order

    def began(self, accepted: Connection, connection: Connection, number: int) -> None:
        """The current task has begun to serve a connection, which is another one than was accepted if it has TLS."""
        self._running[accepted] = _Running(number, trio.lowlevel.current_task(), trio.current_time(), connection)

    def began_datagram(self, address: Any, number: int) -> None:
        """The current task has begun to serve a datagram."""
        task = trio.lowlevel.current_task()
        self._running[task] = _Running(number, task, trio.current_time(), None, address)

    def ended(self, key: object) -> None:
        """A connection, by what was accepted, or the datagram of this task is over."""
        self._running.pop(key, None)

    def look(self, processes: int = 1) -> tuple[tuple[SlowHandler, ...], int]:
        """The slowest handlers, the slowest first, and how many were examined.

        Args:
          processes: how many do this at the same time, and share what it may cost.
        """
        most_steps = max(MOST_STEPS // processes, LEAST_STEPS)
        now = trio.current_time()
        everything = list(self._running)
        first = self._next if self._next < len(everything) else 0
        turn = (everything[first:] + everything[:first])[:MOST_EXAMINED]
        known: dict[object, _Found | None] = {}
        steps = 0
        for key in self._slow:  # with half of the steps, so that others have their turn
            if key in self._running and steps < most_steps / 2:
                known[key], cost = self._examined(self._running[key], now)
                steps += cost
        for key in turn:
            if steps >= most_steps:
                break
            first += 1
            if key not in known:
                known[key], cost = self._examined(self._running[key], now)
                steps += cost
        self._next = first % max(len(everything), 1)
        found = {key: slow for key, slow in known.items() if slow is not None}
        slowest = sorted(found, key=lambda key: -found[key].seconds)[:MOST_REPORTED]
        self._slow = slowest
        return tuple(found[key].report() for key in slowest), len(known)

    def _examined(self, running: _Running, now: float) -> tuple[_Found | None, int]:
        """A handler with its waiting place, None if it is not slow; and the steps that this has taken."""
        request = self._request_of(running.task)
        seconds = now - (running.began if request is None else request.began)
        connection = None if running.connection is None else running.connection._latest()
        if seconds < SLOW or (request is None and connection is not None and connection._waits_between()):
            return None, 1
        place = waiting_place(running.task, connection)
        unsent = 0 if connection is None else connection.outbound_buffered
        if request is None and connection is not None:
            if place.waits_for_peer and not unsent:  # it is idle
                return None, 1 + place.steps
            seconds = min(seconds, _seconds_since_data(connection))
        found = _Found(running, request, place, unsent, seconds) if seconds >= SLOW else None
        return found, 1 + place.steps


def slow_handlers(tasks: HandlerTasks | None, processes: int = 1) -> tuple[tuple[SlowHandler, ...], int]:
    """As :meth:`HandlerTasks.look`, of a server that may note none; a failure is logged, and hides nothing else."""
    if tasks is None:
        return (), 0
    try:
        return tasks.look(processes)
    except Exception:
        count = log_throttle("look").count()
        if count is not None:
            logger.exception("slow handlers cannot be shown%s", shown(since_last(count)))
        return (), 0


@final
@attrs.frozen
class _Found:
    """What a look has found out about a handler."""

    running: _Running
    request: RequestInProgress | None
    place: WaitingPlace
    unsent: int
    seconds: float

    def report(self) -> SlowHandler:
        """The handler as others see it."""
        return SlowHandler(
            connection=self.running.number,
            peer=_peer_of(self.running),
            seconds=round(self.seconds, 3),
            waits_for="peer" if self.place.waits_for_peer else "other",
            unsent=self.unsent,
            request=None if self.request is None else self.request.text,
            at=self.place.at,
            frames=self.place.frames,
        )


def _peer_of(running: _Running) -> str:
    if running.connection is not None:
        return peer_text(running.connection)
    return "a sender without a name" if running.address is None else endpoint_text(running.address)


def _seconds_since_data(connection: Connection) -> float:
    """The seconds since a byte came or went by TCP; infinitely many where the kernel does not say."""
    option = getattr(socket, "TCP_INFO", None)
    if option is None:
        return math.inf
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, option, _SINCE_DATA.size)
    except (OSError, trio.ClosedResourceError):
        return math.inf
    if not isinstance(info, bytes) or len(info) < _SINCE_DATA.size:
        return math.inf
    sent, received = _SINCE_DATA.unpack(info)
    return float(min(sent, received)) / 1000

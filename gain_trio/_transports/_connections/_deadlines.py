"""Deadlines of connections: one keeper a run, however many there are.

A server moves a deadline with every message: ten thousand connections, each with "thirty seconds from now", renewed
thousands of times a second.  A cancel scope for each call would cost more than the call, and a task for each connection
more than the connection.  So nothing happens when a deadline is moved *away*: the keeper keeps the entry it has, wakes at
the old time, sees that the deadline is a later one by now, and files the entry there.  In the usual case that is one look
in thirty seconds, and not one a message.  Only a deadline that comes *nearer* than its entry has to reach the keeper.

The entries form a pairing heap (Fredman, Sedgewick, Sleator, Tarjan, 1986), because telling is what must be cheap: adding
an entry and moving one nearer take constant time, and only taking the earliest one out, or one from the middle, takes a
logarithm (amortised).  Each connection has at most one entry a direction, so the heap is bounded by the connections.

The keeper's task sleeps in a cancel scope of its own whose deadline is the earliest entry.  It is a system task, started
when it is first needed.  Time is that of the run's clock, so a MockClock moves it.
"""

from __future__ import annotations

import errno
import logging
import math
import traceback
import weakref
from collections.abc import Iterator
from typing import Protocol, final

import trio

from gain_trio._transports._addresses import shown
from gain_trio._transports._peer_progress import PeerProgress

logger = logging.getLogger("gain_trio")


class DeadlineOwner(Protocol):
    """The owner of a deadline, which the keeper calls when that may have passed."""

    def deadline_passed(self, now: float) -> float:
        """The entry's time has come.  Act, if the deadline really has passed at ``now``.

        Returns when to look again, in seconds on Trio's clock; ``math.inf`` for not at all.
        """


@final
class DeadlineEntry:
    """A place in a keeper's heap, or outside it."""

    __slots__ = ("_child", "_left", "_right", "owner", "when")

    def __init__(self, owner: DeadlineOwner) -> None:
        self.owner = owner
        self.when = math.inf
        """When the keeper looks at it, in seconds on Trio's clock; ``math.inf`` when it is in no heap."""
        self._child: DeadlineEntry | None = None
        self._left: DeadlineEntry | None = None  # the sibling before it, or the parent of the first child
        self._right: DeadlineEntry | None = None


def _meld(one: DeadlineEntry | None, other: DeadlineEntry | None) -> DeadlineEntry | None:
    """Two heaps become one: the later root is made the first child of the earlier one."""
    if one is None:
        return other
    if other is None:
        return one
    if other.when < one.when:
        one, other = other, one
    first = one._child
    other._left = one
    other._right = first
    if first is not None:
        first._left = other
    one._child = other
    return one


def _cut(entry: DeadlineEntry) -> None:
    """Take an entry that is not the root, and what hangs on it, out of its siblings."""
    left, right = entry._left, entry._right
    assert left is not None
    if left._child is entry:
        left._child = right
    else:
        left._right = right
    if right is not None:
        right._left = left
    entry._left = entry._right = None


def _children(entry: DeadlineEntry) -> Iterator[DeadlineEntry]:
    """The children of an entry, each cut off."""
    child, entry._child = entry._child, None
    while child is not None:
        following = child._right
        child._left = child._right = None
        yield child
        child = following


def _without_root(root: DeadlineEntry) -> DeadlineEntry | None:
    """What is left of a heap: its children, melded in pairs from left to right and then from right to left."""
    pairs: list[DeadlineEntry | None] = []
    children = _children(root)
    for child in children:
        pairs.append(_meld(child, next(children, None)))
    heap: DeadlineEntry | None = None
    while pairs:
        heap = _meld(pairs.pop(), heap)
    return heap


@final
class DeadlineHeap:
    """Entries by time."""

    __slots__ = ("earliest",)

    def __init__(self) -> None:
        self.earliest: DeadlineEntry | None = None

    def add(self, entry: DeadlineEntry, when: float) -> None:
        """Put in an entry that is in no heap."""
        entry.when = when
        self.earliest = _meld(self.earliest, entry)

    def move_nearer(self, entry: DeadlineEntry, when: float) -> None:
        """Make an entry of this heap an earlier one."""
        entry.when = when
        if entry is not self.earliest:
            _cut(entry)
            self.earliest = _meld(self.earliest, entry)

    def remove(self, entry: DeadlineEntry) -> None:
        """Take out an entry of this heap."""
        if entry is self.earliest:
            self.earliest = _without_root(entry)
        else:
            _cut(entry)
            self.earliest = _meld(self.earliest, _without_root(entry))
        entry.when = math.inf


@final
class DeadlineKeeper:
    """The deadlines of one run.  Get it by :func:`current_keeper`."""

    def __init__(self) -> None:
        self._heap = DeadlineHeap()
        self._scope: trio.CancelScope | None = None
        self._runs = False

    def watch(self, entry: DeadlineEntry, when: float) -> None:
        """Look at an entry no later than ``when``.  Constant time; nothing is done if it will be looked at before that."""
        if when >= entry.when:
            return
        if entry.when == math.inf:
            self._heap.add(entry, when)
        else:
            self._heap.move_nearer(entry, when)
        if self._heap.earliest is entry:
            self._wake(when)

    def forget(self, entry: DeadlineEntry) -> None:
        """Look at an entry no more."""
        if entry.when != math.inf:
            self._heap.remove(entry)

    def _wake(self, when: float) -> None:
        if not self._runs:
            self._runs = True
            trio.lowlevel.spawn_system_task(self._run, name="gain_trio deadline keeper")
        elif self._scope is not None:
            self._scope.deadline = when

    async def _run(self) -> None:
        """Wait for deadlines until the run ends, and with it every task that has one."""
        while True:
            earliest = self._heap.earliest
            with trio.CancelScope(deadline=math.inf if earliest is None else earliest.when) as self._scope:
                await trio.sleep_forever()
            self._scope = None
            self._look(trio.current_time())

    def _look(self, now: float) -> None:
        heap = self._heap
        again: list[tuple[DeadlineEntry, float]] = []
        while heap.earliest is not None and heap.earliest.when <= now:
            entry = heap.earliest
            heap.remove(entry)
            try:
                again.append((entry, entry.owner.deadline_passed(now)))
            except Exception:  # noqa: BLE001 - a filter of the program's for the log, say
                # There is no caller to raise it to, and the other entries must be served: so it is printed, as logging
                # prints the failures of its handlers.
                traceback.print_exc()
        for entry, when in again:  # not before: one that asks for `now` again would keep the loop from ending
            self.watch(entry, when)


_keeper: trio.lowlevel.RunVar[DeadlineKeeper] = trio.lowlevel.RunVar("gain_trio deadline keeper")


def current_keeper() -> DeadlineKeeper:
    """The keeper of this run."""
    try:
        return _keeper.get()
    except LookupError:
        keeper = DeadlineKeeper()
        _keeper.set(keeper)
        return keeper


# --- of one connection ---


class HasDeadlines(Protocol):
    """What a connection has for it."""

    @property
    def _active_at(self) -> float:
        """When a byte was moved last, on Trio's clock; kept while :meth:`_timed`."""

    def _timed(self, wanted: bool, /) -> None:
        """Keep :attr:`_active_at`, or do not."""

    @property
    def bytes_sent(self) -> int:
        """Bytes that the kernel has taken."""

    def _unacknowledged(self) -> int | None:
        """How many of them the peer has not; None where that is not known."""

    def _deadline_passed(self, sending: bool, now: float, /) -> float:
        """See :meth:`DeadlineOwner.deadline_passed`, of one direction."""

    def _break(self, errno: int, /) -> None:
        """Shut both directions down; calls raise the errno until the connection is closed."""


@final
class _Direction:
    """One direction's deadline.  The connection may be dropped while the keeper still knows of it."""

    __slots__ = ("_connection", "_sending")

    def __init__(self, connection: weakref.ref[HasDeadlines], sending: bool) -> None:
        self._connection = connection
        self._sending = sending

    def deadline_passed(self, now: float) -> float:
        connection = self._connection()
        return math.inf if connection is None else connection._deadline_passed(self._sending, now)


@final
class _Idleness:
    """How long no byte was moved, in either direction."""

    __slots__ = ("_connection", "_progress", "timeout", "was_idle")

    def __init__(self, connection: weakref.ref[HasDeadlines]) -> None:
        self._connection = connection
        self._progress = PeerProgress()
        self.timeout = math.inf
        self.was_idle = False

    def first_look(self, active_at: float) -> float:
        return self._progress.next_look(active_at, active_at, self.timeout)

    def deadline_passed(self, now: float) -> float:
        connection = self._connection()
        if connection is None:
            return math.inf
        moved_at = self._progress.look(now, connection._active_at, connection.bytes_sent, connection._unacknowledged())
        if moved_at + self.timeout > now:
            return self._progress.next_look(now, moved_at, self.timeout)
        self.was_idle = True
        try:
            logger.info("connection %s is closed: for %g seconds no byte was moved", shown(connection), self.timeout)
        finally:  # a filter of the program's may fail
            connection._break(errno.ETIMEDOUT)
        return math.inf


@final
class ConnectionDeadlines:
    """The entries of one connection, each made when it is first needed: most connections only wait to receive."""

    __slots__ = ("_connection", "_idle", "_idleness", "_keeper", "_reading", "_writing")

    def __init__(self, connection: HasDeadlines) -> None:
        self._connection = weakref.ref(connection)
        self._keeper = current_keeper()
        self._reading: DeadlineEntry | None = None
        self._writing: DeadlineEntry | None = None
        self._idleness: _Idleness | None = None
        self._idle: DeadlineEntry | None = None

    def watch(self, sending: bool, when: float) -> None:
        """Look at a direction at this time."""
        entry = self._writing if sending else self._reading
        if entry is None:
            entry = DeadlineEntry(_Direction(self._connection, sending))
            if sending:
                self._writing = entry
            else:
                self._reading = entry
        self._keeper.watch(entry, when)

    @property
    def idle_timeout(self) -> float:
        """See :attr:`Connection.idle_timeout`."""
        return math.inf if self._idleness is None else self._idleness.timeout

    @property
    def was_idle(self) -> bool:
        """Whether the connection is over because of its idle timeout."""
        return self._idleness is not None and self._idleness.was_idle

    def set_idle_timeout(self, timeout: float, active_at: float) -> None:
        """Look from now on whether the connection, which has moved a byte at ``active_at``, is idle."""
        if self._idleness is None:
            self._idleness = _Idleness(self._connection)
        self._idleness.timeout = timeout
        if timeout != math.inf:
            if self._idle is None:
                self._idle = DeadlineEntry(self._idleness)
            self._keeper.watch(self._idle, self._idleness.first_look(active_at))

    def stop(self) -> None:
        """Look at nothing any more."""
        for entry in (self._reading, self._writing, self._idle):
            if entry is not None:
                self._keeper.forget(entry)

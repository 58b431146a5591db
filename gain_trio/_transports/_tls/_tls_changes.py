"""The wait for a change of a TLS connection, for code that is called back; the essay is in ``_tls_connection.py``."""

from __future__ import annotations

import functools
from typing import final

import trio

from gain_trio._io_manager import broken_by
from gain_trio._transports._backends import kept
from gain_trio._transports._connections import CHANGED, ENDED, FULL, MOST_SEEN, WATCH_RESETS, WATCH_SENT, Connection

from ._tls_traffic import CHUNK, TlsTraffic, broken_tls


@final
class TlsChanges:
    """What the answers have reported, and the task that waits for one.

    It is a part of one connection, which each call names: the part holds no reference to the whole, so that a connection
    that the program drops is closed at once.
    """

    __slots__ = (
        "_below_is_over",
        "_full_seen",
        "_is_full",
        "_is_noted",
        "_scope",
        "_unseen_below",
        "_waited_for",
        "_watched",
        "sent",
        "unseen",
    )

    def __init__(self) -> None:
        self._watched = 0  # by the wait in progress
        self._waited_for: Connection | None = None  # by its task, and nothing else: the connection below
        self._scope: trio.CancelScope | None = None  # of its task, while it waits for anything else, too
        # What the answers have not reported yet: note(),
        self._is_noted = False
        # that the kernel has taken bytes,
        self.sent = False
        # and bytes that have arrived; the program may have taken some of them.
        self.unseen = 0
        self._full_seen = False  # they have reported this pause
        self._is_full = False  # the queue was at its high mark, and has not been at its low one since
        self._unseen_below = 0  # bytes that were reported below, and may be in the queue there
        self._below_is_over = False  # nothing is left to report below but its end

    @trio.lowlevel.enable_ki_protection  # the connection below reports each byte once
    async def wait_change(self, connection: TlsTraffic, watched: int) -> int:
        """See :meth:`Connection._wait_change`."""
        connection._begin_receiving()
        self._watched = watched
        try:
            is_quiet = self._is_quiet(connection)
            if not is_quiet:
                await connection._pass()
            while True:
                if is_quiet:
                    feeding = connection._feeding
                    feeding.is_taken = True
                    self._waited_for = connection._below
                    try:
                        below = await connection._below._wait_change(watched)
                        if below > 0:
                            self._unseen_below = below  # until that is done: it may run out of memory
                            connection._decrypt_below(below)
                            self._unseen_below = 0
                        elif below == ENDED:
                            connection._decrypt_received(b"")
                        elif below == CHANGED:
                            self.sent = True
                    finally:
                        self._waited_for = None
                        feeding.end()
                connection._check_open()
                change = self._next(connection)
                if change is not None:
                    if change == ENDED:
                        await trio.lowlevel.checkpoint()
                    return change
                is_quiet = self._is_quiet(connection)
                if not is_quiet:
                    await self._wait_for_any(connection)
        finally:
            connection._receiving = False
            self._watched = 0
            self._scope = None

    def _is_quiet(self, connection: TlsTraffic) -> bool:
        """Whether there is nothing to report, and nothing to wait for but the connection below: nearly always."""
        return (
            not (
                self._is_noted
                or (self.sent and self._watched & WATCH_SENT)
                or self.unseen
                or self._unseen_below
                or self._is_full
                or connection._inbound
                or connection._send_error is not None
            )
            and connection._receives_at_once
        )

    def _next(self, connection: TlsTraffic) -> int | None:
        if self._is_noted or (self._watched & WATCH_SENT and self.sent):
            self._is_noted = self.sent = False
            return CHANGED
        queued = len(connection._inbound)
        unseen = min(self.unseen, queued)
        seen = min(unseen, MOST_SEEN)
        self.unseen = unseen - seen
        if seen:
            return seen
        if connection._send_error is not None:
            raise broken_by(kept(connection._send_error))
        if connection._ended:
            return ENDED
        if connection._error is not None:
            raise broken_tls(connection._error)
        marks = connection._marks
        self._is_full = queued >= marks.receive_high or (self._is_full and queued > marks.receive_low)
        was_seen, self._full_seen = self._full_seen, self._is_full
        return FULL if self._is_full and not was_seen else None

    # --- waiting ---

    async def _wait_for_any(self, connection: TlsTraffic) -> None:
        """Wait until there is perhaps something to report."""
        receive = functools.partial(self._receive_below, connection)
        with trio.CancelScope() as self._scope:
            if self._is_full:
                await connection._to_receive_in_time(self._wait_while_full(connection))
            elif connection._is_held_up:
                await connection._to_receive_in_time(connection._feed(receive))
            else:
                await connection._feed(receive)
        self._scope = None

    async def _receive_below(self, connection: TlsTraffic) -> bytes | None:
        """A chunk from below, ``b""`` at the end, None when something else has changed."""
        if not self._unseen_below:
            if await self._wait_change_below(connection) == ENDED:
                return b""
            if not self._unseen_below:
                return None
        count = min(CHUNK, self._unseen_below)
        self._unseen_below -= count
        return connection._below.next(count) or None  # a receive may have had it

    async def _wait_change_below(self, connection: TlsTraffic) -> int:
        change = await connection._below._wait_change(self._watched)
        if change > 0:
            self._unseen_below += change
        elif change == CHANGED:
            self.sent = True
        return change

    async def _wait_while_full(self, connection: TlsTraffic) -> None:
        """Wait for other changes than bytes."""
        feeding = connection._feeding
        if feeding.is_taken:
            await feeding.wait()
        elif not self._below_is_over:
            feeding.is_taken = True
            try:
                self._below_is_over = await self._wait_change_below(connection) == ENDED
            except trio.BrokenResourceError:
                if self._watched & WATCH_RESETS:
                    raise
                self._below_is_over = True  # to be reported after the bytes that have come before
            finally:
                feeding.end()
        elif self._watched & WATCH_SENT and connection._below.outbound_buffered and connection._send_error is None:
            await connection._make_room(empty=True, lent=True)
            self.sent = True
        else:
            await trio.sleep_forever()

    # --- waking ---

    def wake(self) -> None:
        """Have the task look again."""
        if self._waited_for is not None:
            self._waited_for._note_change()
        elif self._scope is not None:
            self._scope.cancel()

    def note(self) -> None:
        """See :meth:`Connection._note_change`."""
        self._is_noted = True
        self.wake()

    def note_room(self, connection: TlsTraffic) -> None:
        """Some of the queue was taken."""
        if self._is_full and len(connection._inbound) <= connection._marks.receive_low:
            self.wake()

    def note_outbound(self) -> None:
        """Something is outbound below, and can be waited for."""
        if self._watched & WATCH_SENT and self._is_full and self._below_is_over:
            self.wake()

"""What a server of callbacks needs of a TLS connection: to wait for news, and to send without waiting.

Waiting for news is waiting for those of the connection below, and decrypting what has come, until there is something to
tell.  What the program does meanwhile (taking from a full queue, ending it) and an error of ssl's cancel the scope of the
wait, which loses nothing.

The connection below tells of encrypted bytes.  Of those that have arrived some may be left there when a chunk of them has
been decrypted, so they are counted here.  Of those that the kernel has taken it is known for each piece of the program's
data where its end is among all that was sent below, so a piece counts as written when the kernel has got that far.  That is
looked up when the connection below tells that something was written, and after a flush.  That something was written is told
in any case, also when it was no whole piece, or none of the program's.

Sending without waiting is encrypting and handing down.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio

from gain_trio._io_manager import broken_by
from gain_trio._transports._backends import as_size, current_thread, kept
from gain_trio._transports._connections import END, WRITTEN, Connection, Marks, News, head_of, whole_of, without_head

from ._tls_engine import Engine
from ._tls_traffic import CHUNK, PIECE, TlsTraffic, broken_tls

if TYPE_CHECKING:
    from typing_extensions import Buffer


class TlsEvents(TlsTraffic):
    """The part of a TLS connection that tells of news."""

    __slots__ = (
        "_below_is_over",
        "_flushing",
        "_news",
        "_news_scope",
        "_receiving",
        "_sending",
        "_thread",
        "_told_below",
        "_unwritten",
    )

    def __init__(self, engine: Engine, below: Connection, marks: Marks, *, https_compatible: bool) -> None:
        self._news: News | None = None  # made when somebody wants to hear of them
        self._news_scope: trio.CancelScope | None = None  # of the task that waits for them
        self._told_below = 0  # bytes that were told of below, and may be in the queue there
        self._below_is_over = False  # there is nothing to tell below any more but its end
        self._unwritten: deque[tuple[int, int]] = (
            deque()
        )  # where below a piece ends, and how much of the program's it is
        self._receiving = False  # a call of this direction is in progress
        self._sending = False
        self._flushing = False  # the one of the sending direction has nothing to send
        self._thread = current_thread()  # the run's
        super().__init__(engine, below, marks, https_compatible=https_compatible)

    def _begin_receiving(self) -> None:
        self._check_open()
        if self._receiving:
            raise trio.BusyResourceError("another task is already receiving on this connection")
        self._receiving = True

    # --- news ---

    def _own_news(self) -> News:
        if self._news is None:
            self._news = News(self._marks, len(self._inbound))
        return self._news

    def _arrived(self, data: bytes) -> None:
        super()._arrived(data)
        if self._news is not None:
            self._news.untold += len(data)

    async def _wait_inbound(self) -> int:
        """See :meth:`CallbackConnection._wait_inbound`."""
        self._begin_receiving()
        news = self._own_news()
        try:
            await self._pass()
            while True:
                self._check_open()
                told = self._next_news(news)
                if told is not None:
                    if told == END:
                        await trio.lowlevel.checkpoint()
                    return told
                with trio.CancelScope() as self._news_scope:
                    if news.is_paused:
                        await self._to_receive_in_time(self._wait_paused(news))
                    elif self._is_held_up:
                        await self._to_receive_in_time(self._feed(self._receive_news))
                    else:
                        await self._feed(self._receive_news)
                self._news_scope = None
        finally:
            self._receiving = False
            self._news_scope = None

    def _next_news(self, news: News) -> int | None:
        told = news.before_errors(len(self._inbound))
        if told is not None:
            return told
        if self._send_error is not None:
            raise broken_by(kept(self._send_error))
        if self._ended:
            return END
        if self._error is not None:
            raise broken_tls(self._error)
        return news.after_errors(len(self._inbound))

    async def _receive_news(self) -> bytes | None:
        """A chunk from below, ``b""`` at the end, None when there was something else to tell."""
        if not self._told_below:
            told = await self._below_news()
            if told == END:
                return b""
            if not self._told_below:
                return None
        count = min(CHUNK, self._told_below)
        self._told_below -= count
        return self._below.next(count) or None  # a receive may have had it

    async def _below_news(self) -> int:
        told = await self._below._wait_inbound()
        if told > 0:
            self._told_below += told
        elif told == WRITTEN:
            self._below._take_written()
            self._has_progressed()
        return told

    async def _wait_paused(self, news: News) -> None:
        """The queue is full: wait for other news than bytes."""
        if self._feeding.is_taken:
            await self._feeding.wait()
        elif not self._below_is_over:
            self._feeding.is_taken = True
            try:
                self._below_is_over = await self._below_news() == END
            except trio.BrokenResourceError:
                if news.tells_resets:
                    raise
                self._below_is_over = True  # to be told after the bytes that have come before
            finally:
                self._feeding.end()
        elif news.tells_written and self._below.outbound_buffered and self._send_error is None:
            await self._make_room(empty=True, lent=True)
            self._has_progressed()
        else:
            await trio.sleep_forever()

    def _wake_for_news(self) -> None:
        if self._news_scope is not None:
            self._news_scope.cancel()

    def _let_go_on(self) -> None:
        """Some of the queue was taken."""
        if self._news is not None and self._news.is_paused and len(self._inbound) <= self._marks.receive_low:
            self._wake_for_news()
        if len(self._inbound) < self._marks.receive_high:
            self._wake_sender()

    def _end_inbound(self) -> None:
        """See :meth:`CallbackConnection._end_inbound`."""
        if not self._is_closed:
            self._own_news().is_over = True
            self._wake_for_news()

    def _resume_inbound(self) -> None:
        """See :meth:`CallbackConnection._resume_inbound`."""
        self._check_open()
        self._own_news().is_over = False

    # --- taking ---

    def _taken(self, count: int) -> bytes:
        head = head_of(self._inbound, count)
        self._inbound = without_head(self._inbound, count)
        self._let_go_on()
        return head

    def _take_exactly(self, count: int, /) -> bytes | None:
        """See :meth:`CallbackConnection._take_exactly`."""
        count = as_size(count)
        self._check_open()
        queued = len(self._inbound)
        return None if count > queued else self._taken(count if count > 0 else queued)

    # --- sending ---

    def _send_nowait(self, data: Buffer, /) -> int:
        """See :meth:`CallbackConnection._send_nowait`."""
        self._check_open()
        if current_thread() != self._thread:
            raise RuntimeError("this connection belongs to a run in another thread; use trio.from_thread.run()")
        if self._sending and not self._flushing:
            raise trio.BusyResourceError("another task is already sending on this connection")
        self._check_sendable()
        whole = whole_of(data)
        if len(whole) <= PIECE:
            if whole:
                self._put(whole)
        else:
            view = memoryview(whole)
            for start in range(0, len(whole), PIECE):
                self._put(view[start : start + PIECE])
        if self._error is not None or self._send_error is not None:
            self._check_sendable()
        return self.outbound_buffered

    def _push(self) -> int:
        """See :meth:`CallbackConnection._push`."""
        self._check_open()
        self._below._push()
        return self.outbound_buffered

    def _tell_resets(self) -> None:
        """See :meth:`CallbackConnection._tell_resets`."""
        self._own_news().tells_resets = True
        self._below._tell_resets()

    def _tell_written(self, wanted: bool, /) -> None:
        """See :meth:`CallbackConnection._tell_written`."""
        self._check_open()
        self._below._tell_written(wanted)
        self._unwritten.clear()
        news = self._own_news()
        news.tells_written = wanted
        news.written = 0
        news.progressed = False
        if wanted and news.is_paused:
            self._wake_for_news()

    def _handed_down(self, count: int) -> None:
        news = self._news
        if news is not None and news.tells_written:
            below = self._below
            self._unwritten.append((below.bytes_sent + below.outbound_buffered, count))
            if news.is_paused and self._below_is_over:
                self._wake_for_news()

    def _has_progressed(self) -> None:
        """The kernel has taken bytes of the connection below, and that is told whosever they were.

        Who waits for less to be outbound has to hear of those that were outbound before it asked, and of TLS's own: they
        are no piece that is counted here.
        """
        self._count_written()
        news = self._own_news()
        news.progressed = news.tells_written

    def _count_written(self) -> None:
        """Count the pieces that the kernel has taken."""
        if self._unwritten and self._news is not None:
            sent = self._below.bytes_sent
            while self._unwritten and self._unwritten[0][0] <= sent:
                self._news.sent(self._unwritten.popleft()[1])

    def _take_written(self) -> int:
        """See :meth:`CallbackConnection._take_written`."""
        if self._news is None:
            return 0
        self._count_written()
        self._news.progressed = False
        written, self._news.written = self._news.written, 0
        return written

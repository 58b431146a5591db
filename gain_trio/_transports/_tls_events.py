"""What a server of callbacks needs of a TLS connection: to wait for news, and to send without waiting.

Waiting for news is receiving a record, in a scope that is cancelled when there is something else to tell; cancelling it
loses nothing.

Encrypting takes a task (``_tls_link.py`` says why), so what is sent without waiting is queued as it is, and a system task,
the writer, sends it and ends when the queue is empty.  It outlives whoever wrote.  While it runs it is the one task that
sends.  It ends by three things: an empty queue, an error (which is news), a close (which empties the queue, and resets the
connection if there was something in it).
"""

from __future__ import annotations

import abc
from collections import deque
from typing import TYPE_CHECKING

import trio

from gain_trio._io_manager._errors import broken_by

from ._connection import END, Connection, Marks
from ._connection_base import CLOSE_TIMEOUT
from ._news import News
from ._queues import NOTHING, Inbound, Message, joined, whole_of
from ._socket_base import as_size, current_thread, kept
from ._tls_link import Link

if TYPE_CHECKING:
    from typing_extensions import Buffer


class TlsEvents(Connection):
    """The part of a TLS connection that tells of news, and its queue."""

    __slots__ = (
        "_ended",
        "_inbound",
        "_is_closed",
        "_is_send_torn",
        "_link",
        "_marks",
        "_news",
        "_news_scope",
        "_receiving",
        "_sending",
        "_thread",
        "_unencrypted",
        "_unencrypted_size",
        "_writer_done",
    )

    def __init__(self, link: Link, marks: Marks) -> None:
        self._link = link
        self._marks = marks
        self._inbound: Inbound = NOTHING
        self._ended = False
        self._is_closed = False
        self._is_send_torn = False  # also while a send waits with a part of its data sent
        self._receiving = False  # a call of this direction is in progress
        self._sending = False
        self._news: News | None = None  # made when somebody wants to hear of them
        self._news_scope: trio.CancelScope | None = None  # of the task that waits for them
        self._unencrypted: deque[bytes] = deque()
        self._unencrypted_size = 0
        self._thread = current_thread()  # the run's
        self._writer_done: trio.Event | None = None  # while the writer runs

    # --- what the rest of the connection brings ---

    @abc.abstractmethod
    def _begin_receiving(self) -> None: ...

    @abc.abstractmethod
    async def _decrypt(self) -> bool:
        """Queue what the next record brings, waiting for it; False at the end of the stream."""

    @abc.abstractmethod
    def _taken(self, count: int) -> bytes: ...

    @abc.abstractmethod
    def _check_open(self) -> None: ...

    @abc.abstractmethod
    def _check_sendable(self, *, own_half: bool = False) -> None:
        """Raise why nothing can be sent any more."""

    @abc.abstractmethod
    async def _send(self, message: Message) -> None:
        """Encrypt and queue it in pieces, waiting for room."""

    @abc.abstractmethod
    async def _wait_below(self, mark: int, *, own_half: bool = False) -> None:
        """Wait until less than ``mark`` is encrypted and outbound."""

    # --- news ---

    def _own_news(self) -> News:
        if self._news is None:
            self._news = News(self._marks, len(self._inbound))
        return self._news

    def _arrived(self, data: bytes) -> None:
        """Queue it."""
        self._inbound = joined(self._inbound, data)
        if self._news is not None:
            self._news.untold += len(data)

    async def _wait_inbound(self) -> int:
        """See :meth:`Connection._wait_inbound`."""
        self._begin_receiving()
        news = self._own_news()
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            while True:
                self._check_open()
                told = news.before_errors(len(self._inbound))
                if told is None:
                    if self._link.send_error is not None:
                        raise broken_by(kept(self._link.send_error))
                    told = END if self._ended else news.after_errors(len(self._inbound))
                if told is not None:
                    if told == END:
                        await trio.lowlevel.checkpoint()
                    return told
                with trio.CancelScope() as self._news_scope:
                    if news.is_paused:
                        await trio.sleep_forever()
                    await self._decrypt()
                self._news_scope = None
        finally:
            self._receiving = False
            self._news_scope = None

    def _wake_for_news(self) -> None:
        if self._news_scope is not None:
            self._news_scope.cancel()

    def _let_go_on(self) -> None:
        """Some of the queue was taken."""
        if self._news is not None and self._news.is_paused and len(self._inbound) <= self._marks.receive_low:
            self._wake_for_news()

    def _end_inbound(self) -> None:
        """See :meth:`Connection._end_inbound`."""
        if not self._is_closed:
            self._own_news().is_over = True
            self._wake_for_news()

    def _take_exactly(self, count: int, /) -> bytes | None:
        """See :meth:`Connection._take_exactly`."""
        count = as_size(count)
        self._check_open()
        queued = len(self._inbound)
        return None if count > queued else self._taken(count if count > 0 else queued)

    # --- sending ---

    def _send_nowait(self, data: Buffer, /) -> int:
        """See :meth:`Connection._send_nowait`."""
        self._check_open()
        if current_thread() != self._thread:
            raise RuntimeError("this connection belongs to a run in another thread; use trio.from_thread.run()")
        if self._sending and self._writer_done is None:
            raise trio.BusyResourceError("another task is already sending on this connection")
        self._check_sendable(own_half=self._sending)
        whole = whole_of(data)
        if whole:
            if self._writer_done is None:
                trio.lowlevel.spawn_system_task(self._write_unencrypted, name="gain_trio TLS writer")
                self._writer_done = trio.Event()
                self._sending = True
            self._unencrypted.append(whole)
            self._unencrypted_size += len(whole)
        return self.outbound_buffered

    async def _write_unencrypted(self) -> None:
        """The writer.  No error may leave it: the task that waits for news is told."""
        done = self._writer_done
        assert done is not None
        try:
            while self._unencrypted:
                data = b"".join(self._unencrypted)
                self._unencrypted.clear()
                await self._send_piecewise(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            self._is_send_torn = self._drop_unencrypted() or self._is_send_torn
        finally:
            self._writer_done = None
            self._sending = False
            done.set()
            self._wake_for_news()

    async def _send_piecewise(self, data: bytes) -> None:
        """Send it, so that what is not encrypted yet stays in the count."""
        for start in range(0, len(data), self._marks.send_high):
            piece = data[start : start + self._marks.send_high]
            await self._send(Message([piece]))
            self._unencrypted_size -= len(piece)
            if self._news is not None and self._news.tells_written:
                await self._wait_below(1)
                if self._news.sent(len(piece)):
                    self._wake_for_news()

    def _drop_unencrypted(self) -> bool:
        """Returns whether there was some."""
        dropped = self._unencrypted_size > 0
        self._unencrypted.clear()
        self._unencrypted_size = 0
        return dropped

    async def _written_all(self) -> None:
        """Until the writer has nothing to do."""
        while self._writer_done is not None:
            await self._writer_done.wait()

    async def _written_all_in_time(self) -> None:
        """The same before a close, which it must not keep from happening."""
        if self._writer_done is None:
            return
        try:
            with trio.move_on_after(CLOSE_TIMEOUT):
                await self._written_all()
        except BaseException:
            self._close_now()
            raise
        if self._unencrypted_size:
            self.abort()

    def _tell_written(self, wanted: bool, /) -> None:
        """See :meth:`Connection._tell_written`."""
        self._check_open()
        news = self._own_news()
        news.tells_written = wanted
        news.written = 0

    def _take_written(self) -> int:
        """See :meth:`Connection._take_written`."""
        if self._news is None:
            return 0
        written, self._news.written = self._news.written, 0
        return written

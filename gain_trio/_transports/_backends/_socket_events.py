"""What a server of callbacks needs of a connection over a socket: to wait for news, and to send without waiting.

The task that waits for news waits for the socket to become readable.  Whatever else there is to tell (the kernel has taken
bytes, a send has failed, the program has ended it) wakes it by ``notify_closing``, as a deadline does.

While the queue is full and nothing is read, waiting until it is readable would be no wait.  Then it waits to be woken by a
cancelled scope, and if that is asked for (``_tell_resets``) for an error of the socket: who may never take anything would
wait for a peer that has reset the connection for ever.
Errors alone are what an epoll tells of that was asked for nothing; and that one is readable when it has one to tell.

A message is one step here, too: what was read leaves a note whether the kernel had more, and when the program has taken all
of it, the next wait begins with waiting and not with a system call that fails.
"""

from __future__ import annotations

import abc
import contextlib
import os
import select
import socket
import sys
from typing import TYPE_CHECKING

import trio

from gain_trio._io_manager import broken_by
from gain_trio._transports._connections import (
    END,
    NOTHING,
    WRITTEN,
    Inbound,
    Marks,
    News,
    head_of,
    joined,
    whole_of,
    without_head,
)

from ._socket_base import as_size, closed_error, current_thread, kept
from ._socket_sending import SocketSending

if TYPE_CHECKING:
    from typing_extensions import Buffer

CHUNK = 65536
"""The most bytes that one receive brings, but for:"""
LARGE_CHUNK = 4 * CHUNK
"""The most of one after a receive that brought as much as CHUNK: a large transfer, and what a Unix socket holds.  Not of
all, because Python makes room for so much before it knows how little has come."""
STEP = 4096
"""The least that a callback counts for, in bytes, where it is counted how long a task goes on without waiting.  A callback
that writes a byte whenever one was taken would otherwise have the thread for as many turns as the mark has bytes."""


class SocketEvents(SocketSending):
    """Between sending and receiving: it needs both halves, and both tell it."""

    __slots__ = (
        "_chunk",
        "_end_told",
        "_ended",
        "_flushing",
        "_inbound",
        "_is_dry",
        "_is_kernel_dry",
        "_late_receiving",
        "_news",
        "_receive_error",
        "_receiving",
        "_room",
        "_socket_error",
        "_waits_for_news",
    )

    def __init__(self, sock: socket.socket, marks: Marks) -> None:
        super().__init__(sock, marks)
        self._inbound: Inbound = NOTHING
        self._chunk = CHUNK  # to be asked for next
        self._is_dry = False  # nothing is queued, and the kernel had nothing left when it was asked last
        self._is_kernel_dry = False  # the second half of it, while something is queued
        self._ended = False
        self._end_told = False
        self._receive_error: OSError | None = None
        self._receiving = False  # a call of this direction is in progress
        self._late_receiving = False  # it was woken because its deadline has passed
        self._news: News | None = None  # made when somebody wants to hear of them
        self._waits_for_news = False
        self._flushing = False  # the call of the sending direction has nothing to send
        self._room: trio.CancelScope | None = None  # of a task that waits for the queue to be taken from
        self._socket_error: OSError | None = None  # asked for while the queue was full; the receive tells of it, too

    # --- what receiving brings ---

    @abc.abstractmethod
    def _read(self, size: int) -> bytes:
        """What the kernel has.  Nothing: for now if the connection is dry then, otherwise for good."""

    @abc.abstractmethod
    def _pump(self) -> None:
        """Move what the kernel has into the queue, up to the high mark, unless a task waits to receive."""

    @abc.abstractmethod
    async def _before_receiving(self) -> None:
        """The cancellation point of a receive that may be answered at once."""

    @abc.abstractmethod
    def _watch_receiving(self) -> None:
        """The call in progress has a deadline that the keeper does not know of."""

    # --- news ---

    def _own_news(self) -> News:
        if self._news is None:
            self._news = News(self._marks, len(self._inbound))
        return self._news

    def _enqueue_inbound(self, data: bytes) -> None:
        """What was received, and not taken at once."""
        self._inbound = joined(self._inbound, data)
        if self._news is not None:
            self._news.untold += len(data)

    async def _wait_inbound(self) -> int:
        """See :meth:`CallbackConnection._wait_inbound`."""
        if self._is_closed or self._receiving or current_thread() != self._run.thread:
            self._refuse("receiving")
        news = self._own_news()
        self._receiving = True
        self._late_receiving = False
        try:
            if not self._is_dry or news.written or news.is_over:
                await self._before_receiving()
            while True:
                if self._is_closed:
                    raise closed_error()
                told = self._next_news(news)
                if told is not None:
                    self._end_told = told == END
                    if told == WRITTEN:
                        self._unwaited += STEP
                    return told
                await self._wait_for_news(news)
        except OSError as error:  # from the wait: this is no descriptor any more, or none that can be waited for
            raise broken_by(error) from error
        finally:
            self._receiving = False
            if self._inbound:
                self._is_kernel_dry = self._is_dry
                self._is_dry = False

    def _next_news(self, news: News) -> int | None:
        # What the kernel takes at once is news at once.  A program that writes whenever it is told so would never wait, and
        # never hear of the peer: so each has its turn.
        after_peer = news.written > 0 and news.written_told
        if after_peer and not news.is_paused:
            self._receive_news()
        told = self._other_news(news, after_peer=after_peer)
        if told is None and after_peer:
            told = WRITTEN
        news.written_told = told == WRITTEN
        return told

    def _other_news(self, news: News, *, after_peer: bool) -> int | None:
        told = news.before_errors(len(self._inbound), after_peer=after_peer)
        if told is not None:
            return told
        error = self._receive_error or self._send_error
        if error is not None:
            raise broken_by(kept(error))
        return END if self._ended else news.after_errors(len(self._inbound))

    def _receive_news(self) -> bytes:
        """Queue what the kernel has, and return it."""
        data = self._read(self._chunk)
        self._enqueue_inbound(data)
        self._unwaited += len(data)
        return data

    async def _wait_for_news(self, news: News) -> None:
        """Wait, and queue what there is then."""
        if self._read_deadline < self._read_looked_at:
            self._watch_receiving()
        if news.is_paused:
            await self._wait_while_full(news)
        elif self._is_dry:
            self._waits_for_news = True
            try:
                await trio.lowlevel.wait_readable(self._descriptor)
            except trio.ClosedResourceError:
                if not self._late_receiving:
                    return  # there is something else to tell
            finally:
                self._waits_for_news = False
                self._has_waited()
        if self._is_closed:
            return
        if not news.is_paused and (self._receive_news() or not self._is_dry):
            return
        if self._late_receiving:
            raise trio.TooSlowError("the connection's read deadline has passed")

    async def _wait_while_full(self, news: News) -> None:
        """Until :attr:`_room` is cancelled.  Raises the socket's error; what the kernel has before it can still be read."""
        self._room = trio.CancelScope()
        try:
            with self._room:
                if news.tells_resets:
                    await self._wait_for_error()
                else:
                    await trio.sleep_forever()
        finally:
            self._room = None
        if self._socket_error is not None:
            raise broken_by(kept(self._socket_error))

    async def _wait_for_error(self) -> None:
        watch = self._watch_for_errors()
        if watch is None:
            await trio.sleep_forever()
        with watch:
            while self._socket_error is None:
                await trio.lowlevel.wait_readable(watch.fileno())
                watch.poll(0)  # with EPOLLET, so that it is not readable any more, if it was not for an error
                number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if number:
                    self._socket_error = OSError(number, os.strerror(number))

    def _watch_for_errors(self) -> select.epoll | None:
        """None if that cannot be had: then it is the next write that finds out."""
        if sys.platform != "linux":
            return None
        with contextlib.ExitStack() as stack:
            try:
                watch = stack.enter_context(select.epoll())
                watch.register(self._descriptor, select.EPOLLET)
            except OSError:  # there is no descriptor left, or no memory
                return None
            stack.pop_all()
        return watch

    def _wake_for_news(self) -> None:
        if self._room is not None:
            self._room.cancel()
        elif self._waits_for_news and self._descriptor >= 0:
            trio.lowlevel.notify_closing(self._descriptor)  # the writer, if there is one, waits again

    def _end_inbound(self) -> None:
        """See :meth:`CallbackConnection._end_inbound`."""
        if not self._is_closed:
            self._check_thread()
            self._own_news().is_over = True
            self._wake_for_news()

    def _resume_inbound(self) -> None:
        """See :meth:`CallbackConnection._resume_inbound`."""
        if self._is_closed:
            raise closed_error()
        self._own_news().is_over = self._end_told = False

    # --- taking ---

    def _dequeue(self, count: int) -> bytes:
        """So many bytes, which are there."""
        self._unwaited += count
        taken = head_of(self._inbound, count)
        self._inbound = without_head(self._inbound, count)
        if not self._inbound and self._is_kernel_dry:
            self._emptied()
        self._let_go_on()
        return taken

    def _emptied(self) -> None:
        """The queue was emptied, and the kernel had nothing left when it was filled."""
        self._is_kernel_dry = False
        self._is_dry = not self._ended and self._receive_error is None

    def _let_go_on(self) -> None:
        """Some of the queue was taken."""
        if self._room is not None and len(self._inbound) <= self._marks.receive_low:
            self._room.cancel()

    def _take_exactly(self, count: int, /) -> bytes | None:
        """See :meth:`CallbackConnection._take_exactly`."""
        count = as_size(count)
        if self._is_closed or current_thread() != self._run.thread:
            self._check_thread()
            raise closed_error()
        queued = len(self._inbound)
        if count > queued:
            self._pump()
            queued = len(self._inbound)
        return None if count > queued else self._dequeue(count if count > 0 else queued)

    # --- sending ---

    def _send_nowait(self, data: Buffer, /) -> int:
        """See :meth:`CallbackConnection._send_nowait`."""
        if self._is_closed or current_thread() != self._run.thread:
            self._refuse("sending")
        if self._sending and not self._flushing:
            self._refuse("sending")
        self._check_not_eof()
        self._check_sending()
        whole = whole_of(data)
        sent = 0
        if whole and self._outbound is None:
            sent = self._write(whole)
        if sent < len(whole):
            self._enqueue(whole, sent)
        return self.outbound_buffered

    def _push(self) -> int:
        """See :meth:`CallbackConnection._push`."""
        if self._is_closed or current_thread() != self._run.thread:
            self._check_thread()
            raise closed_error()
        with contextlib.suppress(trio.BrokenResourceError):  # which is kept for the next send
            self._write_queued()
        return self.outbound_buffered

    async def _wait_below(self, mark: int) -> None:
        if self._sending:
            self._refuse("sending")
        self._flushing = True
        try:
            await super()._wait_below(mark)
        finally:
            self._flushing = False

    def _tell_resets(self) -> None:
        """See :meth:`CallbackConnection._tell_resets`."""
        self._own_news().tells_resets = True

    def _tell_written(self, wanted: bool, /) -> None:
        """See :meth:`CallbackConnection._tell_written`."""
        if self._is_closed or current_thread() != self._run.thread:
            self._check_thread()
            raise closed_error()
        news = self._own_news()
        news.tells_written = wanted
        news.written = 0

    def _take_written(self) -> int:
        """See :meth:`CallbackConnection._take_written`."""
        if self._news is None:
            return 0
        written, self._news.written = self._news.written, 0
        return written

    def _has_sent(self, count: int, /) -> None:
        super()._has_sent(count)
        if self._news is not None and self._news.sent(count):
            self._wake_for_news()

    def _send_failed(self, error: OSError) -> None:
        super()._send_failed(error)
        self._wake_for_news()

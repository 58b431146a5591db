"""The task of a connection: it waits for changes and calls back.

    on_accept
    ┌─> wait ──> on_write, on_read
    └─────┘
    the end of the stream, close()        what was written is flushed, with on_write; then it is closed; on_close(None)
    an error, a callback's exception      the connection is closed (with a reset if something is unsent); on_close(error)
    cancelled                             the same; on_close(None) if nothing was unsent, and 5 seconds for an async one
    the server drains                     on_read is called for all that has arrived; then as by close()

There is one way out, so ``on_close`` is called once, whatever happens.  An exception is raised again behind it: the
consumer that this runs in logs and counts it as it does a handler's.

``Changes`` says what to call back.  A message costs one step of the task, so the loops ask it for nothing while there are
only bytes: they wait for the connection itself, and the plain case, a ``def on_read``, is nothing but the wait and the call,
which a connection on the ring does in C (:func:`delivery_of`).  Most connections see no other change than that and their
peer's end, so the first wait is in the task's own function, and the loops around it are entered with its answer.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any, final

import trio

from gain_trio._callback_base import (
    END,
    STALLED,
    WRITTEN,
    PacedDelivery,
    delivery_of,
    sleep_until_idle,
)
from gain_trio._io_manager import waits_of
from gain_trio._server import LAST_CALLBACK, AttendingHandler, is_cancellation, only_one_of
from gain_trio._transports import ENDED, FIRST_SECONDS, WATCH_SENT, CloseWait, Connection, Marks, shown

from ._activity import Activity
from ._callbacks import Callbacks
from ._event_config import Config
from ._event_errors import SlowReader
from ._stream_conn import ConnSettings, StreamConn, ThreadedStreamConn, changes_of, maker_of_conns

logger = logging.getLogger("gain_trio")


@final
class WorkerThreads:
    """Where ``on_read`` runs with ``Config.async_handler``.  Made in the run that it serves."""

    def __init__(self, most: float) -> None:
        self._limiter = trio.CapacityLimiter(most)
        self._inside: set[int] = set()

    async def run(self, function: Callable[..., object], *arguments: object) -> None:
        """Call it in a thread.  Cancelling waits for it: a thread cannot be stopped."""
        await trio.to_thread.run_sync(self._run_callback, function, arguments, limiter=self._limiter)

    def _run_callback(self, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
        thread = threading.get_ident()
        self._inside.add(thread)
        try:
            function(*arguments)
        finally:
            self._inside.discard(thread)

    def has_current(self) -> bool:
        """Whether this is called from one of them."""
        return threading.get_ident() in self._inside


@final
class StreamDriver(AttendingHandler):
    """The handler of :func:`gain_trio.serve` for an event handler: an async function of a connection.

    It is pickled for worker processes, with the event handler and the config alone; the rest is made in the run.
    """

    def __init__(self, callbacks: Callbacks, config: Config, marks: Marks) -> None:
        self.callbacks = callbacks
        self._config = config
        self._marks = marks
        self._is_threaded = config.async_handler and not callbacks.on_read.is_async
        self.activity = Activity()
        self._is_plain = not callbacks.on_read.is_async and not self._is_threaded
        self._settings: ConnSettings | None = None
        self._kind: type[Connection] | None = None
        """The class of the latest connection, which the next one is for."""
        self._make_conn: Callable[[Connection], StreamConn]
        self._threads: WorkerThreads | None = None
        self._drains = False
        self._is_told_of_beginning = callbacks.on_accept.is_overridden or callbacks.on_write.is_overridden
        self._is_told_of_end = callbacks.on_close.is_overridden

    def __reduce__(self) -> tuple[Any, ...]:
        return StreamDriver, (self.callbacks, self._config, self._marks)

    def __repr__(self) -> str:
        return type(self.callbacks.handler).__qualname__

    def is_in_callback_thread(self) -> bool:
        """Whether this is called from an ``on_read`` in a worker thread."""
        return self._threads is not None and self._threads.has_current()

    async def attend(self, draining: trio.Event) -> None:
        """Have connections end when the server drains: their tasks wait for something else."""
        await draining.wait()
        self._drains = True
        self.activity.ask_to_end()

    async def __call__(self, connection: Connection) -> None:
        """Serve one connection."""
        if self.activity.is_ending:
            return
        conn = self._open(connection)
        self.activity.begin(conn)
        reason: BaseException | None = None
        cancelled = False
        is_late = self._drains
        if is_late:
            conn._end_wait()
        try:
            if self._is_told_of_beginning:
                await self._accept(conn)
            n = await self._reading(conn, connection)
            if n != ENDED:
                await self._read(conn, connection, n)
            if self._drains or not self._finish_at_once(conn, connection):
                await self._finish(conn, connection, FIRST_SECONDS if is_late else 0)
        except BaseException as error:
            conn._write_handed()  # which is unsent, too
            self._remember_addresses(conn)
            reason = _reason(error, connection)
            if is_cancellation(error):
                cancelled = True
                await self._report_written_at_the_end(conn)
            raise
        finally:
            if not connection._is_closed:
                conn._linger_no_more()
                connection._close_now()
            conn._over()
            try:
                if self._is_told_of_end:
                    await self._tell_closed(conn, reason, cancelled)
            finally:
                self.activity.end(conn)

    def _open(self, connection: Connection) -> StreamConn:
        if self._settings is None:
            config = self._config
            token = trio.lowlevel.current_trio_token()
            self._settings = ConnSettings(config.write_limit, config.write_policy, token, threading.get_ident())
            if self._is_threaded:
                self._threads = WorkerThreads(config.pool_size if config.pool else float("inf"))
        if type(connection) is not self._kind:
            self._make_conn = self._maker(connection, self._settings)
            self._kind = type(connection)
        conn = self._make_conn(connection)
        if self._is_told_of_end:
            conn.remote_addr  # noqa: B018 - looked up now: after a reset the system does not have it any more
        return conn

    def _maker(self, connection: Connection, settings: ConnSettings) -> Callable[[Connection], StreamConn]:
        if not self._is_threaded:
            return maker_of_conns(connection, settings)
        return lambda connection: ThreadedStreamConn(connection, changes_of(connection), settings, self._marks)

    def _remember_addresses(self, conn: StreamConn) -> None:
        if self._is_told_of_end:
            conn.local_addr  # noqa: B018 - looked up now: a closed socket does not have it any more

    async def _report_written_at_the_end(self, conn: StreamConn) -> None:
        """Call on_write for the bytes that the kernel has accepted by now, because the server stops, as after a close()."""
        if written := conn._changes.take_written():
            conn._send_no_more()
            with trio.CancelScope(deadline=trio.current_time() + LAST_CALLBACK, shield=True):
                await self.callbacks.on_write(conn, written)

    async def _tell_closed(self, conn: StreamConn, reason: BaseException | None, cancelled: bool) -> None:
        """The wait of an ``async def`` is not cut off at once when the server is being stopped, or is stopped meanwhile."""
        on_close = self.callbacks.on_close
        if not on_close.is_async:
            on_close.function(conn, reason)
        elif cancelled:
            with trio.CancelScope(deadline=trio.current_time() + LAST_CALLBACK, shield=True):
                await on_close.function(conn, reason)
        else:
            await _with_last_seconds(on_close.function, conn, reason)

    # --- while it lasts ---

    async def _accept(self, conn: StreamConn) -> None:
        callbacks = self.callbacks
        if callbacks.on_write.is_overridden:
            conn._changes.watch_written(True)
        if callbacks.on_accept.is_overridden:
            await callbacks.on_accept(conn)

    def _reading(self, conn: StreamConn, connection: Connection) -> Awaitable[int]:
        """The loop for this ``on_read``, for the task to await: a call in between would cost with each message.

        Its answer is ENDED when it is over, or in the plain case the first one that :meth:`_read` is for.
        """
        if self._is_plain:
            on_read, changes = self.callbacks.on_read.function, conn._changes
            return delivery_of(type(connection))(connection, on_read, conn, changes.watched, conn._whole, 0, None)
        if self._is_threaded:
            assert isinstance(conn, ThreadedStreamConn)
            return self._read_in_threads(conn, connection)
        return self._read_async(conn, connection)

    async def _read(self, conn: StreamConn, connection: Connection, n: int) -> None:
        """The plain case, from the first answer on."""
        on_read = self.callbacks.on_read.function
        deliver = functools.partial(delivery_of(type(connection)), connection, on_read, conn, conn._changes.watched)
        delivery = conn._delivery
        while True:
            if n > 0:
                if delivery is not None and n <= delivery.size:
                    delivery.deliver_whole(on_read, conn, n)
                    if delivery.size < n:
                        conn._whole = min(delivery.size, PacedDelivery.WHOLE)
                else:
                    await self._read_in_pieces(conn, connection, n)
            elif n == ENDED or not await self._goes_on(n, conn):
                return
            delivery = conn._delivery
            if delivery is None:
                n = await deliver(conn._whole, 0, None)
            else:
                n = await deliver(conn._whole, delivery.quick_size, delivery.learn)

    async def _read_async(self, conn: StreamConn, connection: Connection) -> int:
        on_read = self.callbacks.on_read.function
        wait = connection._wait_change
        watched = conn._changes.watched
        callback = functools.partial(on_read, conn)
        waits = functools.partial(waits_of, trio.lowlevel.current_task())
        while True:
            n = await wait(watched)
            delivery = conn._delivery
            if 0 < n <= conn._whole:
                await on_read(conn, n)
            elif delivery is not None and 0 < n <= delivery.size:
                await delivery.deliver_async(callback, n, waits)
                conn._whole = min(delivery.size, PacedDelivery.WHOLE)
            elif n > 0:
                await self._read_in_pieces(conn, connection, n)
            elif not await self._goes_on(n, conn):
                return ENDED

    async def _goes_on(self, change: int, conn: StreamConn) -> bool:
        """Work off an answer that is no number of bytes.  Returns whether there may be another one."""
        found = conn._changes.meaning(change)
        if found is not None and found != END:
            await self._report_change(found, conn)
        return found != END and not conn._changes.is_over

    async def _read_in_pieces(self, conn: StreamConn, connection: Connection, count: int) -> None:
        """Call ``on_read`` for ``count`` bytes in pieces that it works off in about a turn each; others run in between."""
        on_read = self.callbacks.on_read.function
        is_async = self.callbacks.on_read.is_async
        waits = functools.partial(waits_of, trio.lowlevel.current_task())
        delivery = conn._delivery
        if delivery is None:
            delivery = conn._delivery = PacedDelivery(conn._settings.pace)

        def deliver(size: int) -> int:
            on_read(conn, size)
            return size

        while True:
            if is_async:
                count -= await delivery.deliver_async(functools.partial(on_read, conn), count, waits)
            else:
                count -= delivery.deliver(deliver, count)
            conn._whole = min(delivery.size, PacedDelivery.WHOLE)
            # An on_read() may have read more than its number, and may have ended the connection.
            count = min(count, connection.inbound_buffered)
            if count <= 0 or conn._is_closed or conn._failure is not None or conn._cannot_send:
                return  # no peer is left for the answers to the rest; the next wait raises the error
            await trio.lowlevel.checkpoint()

    async def _read_in_threads(self, conn: ThreadedStreamConn, connection: Connection) -> int:
        on_read = self.callbacks.on_read.function
        threads = self._threads
        assert threads is not None
        while n := await conn._changes.next():
            if n < 0:
                await self._report_change(n, conn)
            while n > 0:
                conn._arrived(n)
                await threads.run(on_read, conn, n)
                n = await self._wait_while_stalled(conn, connection) if conn._is_stalled else 0
        return ENDED

    async def _wait_while_stalled(self, conn: ThreadedStreamConn, connection: Connection) -> int:
        """Until there is room in the inbox.  What arrives stays in the connection's queue, which has its own limit.

        Returns the number of bytes that have arrived, for the next call of ``on_read``.
        """
        self._log_stall(conn)
        arrived = 0
        wait: Callable[[], Awaitable[int]] = conn._changes.next
        while (n := await conn._wait_for_room(wait)) is not None:
            if n > 0:
                arrived += n
            elif n == WRITTEN:
                await self._report_change(n, conn)
            elif n == END:  # which would be reported again at once; the inbox can still be read
                wait = functools.partial(sleep_until_idle, connection)
        return 0 if conn._is_ending else arrived

    async def _report_change(self, what: int, conn: StreamConn) -> None:
        if what == WRITTEN:
            if written := conn._changes.take_written():  # with TLS there may be none of the program's
                await self.callbacks.on_write(conn, written)
        else:
            assert what == STALLED
            self._log_stall(conn)

    def _log_stall(self, conn: StreamConn) -> None:
        logger.warning(
            "%s: on_read() of %s leaves %d bytes unread; nothing more is received until some are taken, or the server's "
            "Marks(receive_high=...) is larger",
            shown(conn),
            shown(self),
            conn.inbound_buffered,
        )

    # --- the end ---

    async def _deliver_the_rest(self, conn: StreamConn, connection: Connection, patience: float) -> None:
        """Call on_read for all that has arrived, because the server drains: no request stays without an answer.

        That is all that has arrived by now, so that a peer that goes on sending cannot hold it up.  A peer that has
        connected and sent nothing has ``patience`` seconds: the replacement of worker processes must not lose it.
        """
        if conn._is_closed or conn._failure is not None:
            return
        if connection._has_received_nothing:
            patience = FIRST_SECONDS
        conn._changes.resume()
        # What has arrived is never too late for a deadline.
        end = connection.read_deadline = min(connection.read_deadline, trio.current_time() + patience)
        left = 0  # of what has arrived
        while True:
            try:
                change = await conn._changes.next()
            except trio.TooSlowError:
                return
            if change == WRITTEN:
                await self._report_change(change, conn)
                # on_write may write more each time, which is reported before the deadline, and before bytes
                if trio.current_time() > end + (LAST_CALLBACK if left else 0):
                    return
            elif change > 0:
                if not left:
                    left = connection.inbound_buffered
                left -= change
                await self._deliver(conn, connection, change)
                if left <= 0:
                    return
                end = connection.read_deadline = trio.current_time()
            else:
                return

    async def _deliver(self, conn: StreamConn, connection: Connection, change: int) -> None:
        if isinstance(conn, ThreadedStreamConn):
            assert self._threads is not None
            conn._arrived(change)
            await self._threads.run(self.callbacks.on_read.function, conn, change)
        else:
            await self._read_in_pieces(conn, connection, change)

    def _finish_at_once(self, conn: StreamConn, connection: Connection) -> bool:
        """:meth:`_finish` where nothing is left to wait for, to report, or to set right: whether that is so."""
        if conn._failure is not None or conn._flush_seconds is not None or conn._changes.watched & WATCH_SENT:
            return False
        if self._is_told_of_end:
            self._remember_addresses(conn)
        return not connection.outbound_buffered and conn._refuse_all() and connection._close_soon()

    async def _finish(self, conn: StreamConn, connection: Connection, patience: float) -> None:
        """The peer, the program, a failure or a drain has ended it: send what is left, and close."""
        if self._drains:
            await self._deliver_the_rest(conn, connection, patience)
        if conn._failure is not None:
            raise conn._failure
        self._remember_addresses(conn)
        if conn._flush_seconds == 0:
            connection.abort()
            return
        if connection.outbound_buffered or conn._changes.watches_written or not conn._refuse_all():
            await self._flush(conn, connection)
        conn._linger_no_more()
        if not connection._close_soon():
            await connection.aclose()

    async def _flush(self, conn: StreamConn, connection: Connection) -> None:
        """Until everything is sent, also what callbacks and other threads write meanwhile."""
        begun = trio.current_time()
        patience = CloseWait(connection, conn._flush_seconds)
        while await self._has_unsent(conn, connection) or not conn._refuse_all():
            # An on_write() that writes is called again at once, where the kernel accepts the bytes at once.
            await trio.lowlevel.checkpoint()
            if not await patience.wait(connection.flush):
                seconds = trio.current_time() - begun
                raise SlowReader(f"{connection.outbound_buffered} bytes were unsent {seconds:g} seconds after the end")

    async def _has_unsent(self, conn: StreamConn, connection: Connection) -> bool:
        conn._write_handed()
        if written := conn._changes.take_written():
            await self.callbacks.on_write(conn, written)
            if conn._failure is not None:
                raise conn._failure
            return True  # it may have written, and the kernel may have taken that
        return connection.outbound_buffered > 0


def _reason(error: BaseException, connection: Connection) -> BaseException | None:
    """What ``on_close`` gets."""
    if is_cancellation(error):
        unsent = connection.outbound_buffered
        return ConnectionAbortedError(f"the server was stopped with {unsent} bytes unsent") if unsent else None
    error = only_one_of(error)
    if isinstance(error, trio.BrokenResourceError) and isinstance(error.__cause__, OSError):
        return error.__cause__
    return error


async def _with_last_seconds(function: Callable[..., Awaitable[object]], *arguments: object) -> None:
    """Call it, and let it go on for :data:`LAST_CALLBACK` when the task is cancelled."""
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            with trio.CancelScope(shield=True) as scope:
                nursery.start_soon(_limit_when_cancelled, scope)
                try:
                    await function(*arguments)
                except Exception as error:  # noqa: BLE001 - raised past the nursery, which would make a group of it
                    failure = error
            nursery.cancel_scope.cancel()
    finally:
        if failure is not None:
            raise failure


async def _limit_when_cancelled(scope: trio.CancelScope) -> None:
    try:
        await trio.sleep_forever()
    finally:
        scope.deadline = trio.current_time() + LAST_CALLBACK

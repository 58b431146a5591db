"""A conn over a connection.

What it does per message is two short functions around two methods of the connection: ``next`` and ``write``.  What is rare
costs them nothing, because it exchanges what they call: closed, over the limit, or broken, ``_take_exactly`` and ``_send``
are functions that say so.  Otherwise they are methods as the connection's class has them, which the conns of a server share:
a bound method would be an object more for each connection.  For a connection on the ring, and for TLS, both functions are in
C (``_ffi/fastpath/callback_conn.c``) for as long as nothing is rare, and call those here otherwise.

*The limit.*  The connection queues whatever it is given and returns how much is unsent.  A write that leaves more than the
limit is still whole; from then on ``_send`` looks before it writes, until the kernel has made room.  So what is unsent is
bounded by the limit and one write, and no write is cut in two.

*Other threads.*  The connection refuses them.  A write from another thread leaves its data here, under a lock, so that the
order in which such writes return is the order in which they are sent; ``TrioToken.run_sync_soon`` has the run queue it.
A call that ends the connection looks for it first: a write that has returned before a close is sent before it.  Bytes that
are handed over and not yet queued count against the limit like unsent ones.  An error of such a write, later in the run,
goes to ``on_close``.

*The end.*  The task of the connection ends it, in ``_stream_driver.py``.  Every other cause (``close()``, a slow reader, a
write deadline) leaves a note here and makes the connection's wait return.
"""

from __future__ import annotations

import contextlib
import math
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar, final

import attrs
import trio

from gain_trio._callback_base import Changes, Pace, PacedDelivery
from gain_trio._kernel import fastpath
from gain_trio._transports import (
    NOTHING,
    Connection,
    DeadlineEntry,
    DeadlineKeeper,
    Inbound,
    Marks,
    checked_deadline,
    current_keeper,
    endpoint_text,
    joined,
    whole_of,
)

from ._conn import LINGER, Conn
from ._event_config import WritePolicy
from ._event_errors import ConnectionAlreadyClosed, ConnectionClosed, ShortBuffer, SlowReader
from ._inbox import InboxReading

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")

current_thread = threading.get_ident


@final
@attrs.frozen
class ConnSettings:
    """What the conns of a server have in common, in one process."""

    write_limit: int
    write_policy: WritePolicy
    token: trio.lowlevel.TrioToken
    thread: int
    """The run's."""
    pace: Pace = attrs.field(factory=Pace)
    lock: threading.RLock = attrs.field(factory=threading.RLock)
    """Guards what a conn has of other threads, for moments, and is made once a server.  It can be entered again, because a
    finalizer or a signal's handler that comes in such a moment may close or write to another conn."""


def _refuse(*_arguments: object) -> Any:
    raise ConnectionClosed("this connection is closed")


def _drop(_connection: Connection, _data: Buffer) -> int:
    raise trio.BrokenResourceError("this connection is being closed: on_close() will say why")


class StreamConn(Conn):
    """See :class:`Conn`."""

    __slots__ = (
        "_cannot_send",
        "_changes",
        "_connection",
        "_delivery",
        "_failure",
        "_flush_seconds",
        "_handed",
        "_handed_over",
        "_is_closed",
        "_lingers",
        "_local",
        "_lock",
        "_remote",
        "_send",
        "_settings",
        "_take_exactly",
        "_watch",
        "_whole",
        "_write_deadline",
        "_write_limit",
    )

    def __init__(self, connection: Connection, changes: Changes, settings: ConnSettings) -> None:
        self.context = None  # not by the base class: a call for each connection
        self._connection = connection
        self._changes = changes
        self._settings = settings
        self._write_limit = settings.write_limit
        kind = type(connection)
        self._take_exactly: Callable[[Connection, int], bytes | None] = kind._take_exactly
        self._send: Callable[[Connection, Buffer], int] = kind._send_nowait
        self._is_closed = False  # by the program, or over
        self._cannot_send = False  # a write has found that it is broken
        self._delivery: PacedDelivery | None = None  # once a large piece has arrived
        self._whole = min(settings.pace.size, PacedDelivery.WHOLE)  # bytes that on_read gets at once, and untimed
        self._failure: BaseException | None = None  # why the task of the connection is to end it
        self._flush_seconds: float | None = None  # what set_linger() says; without it, the connection's close_timeout
        self._lingers = False  # SO_LINGER is set, with a time
        self._local: Any = None
        self._remote: Any = None
        self._lock: threading.Lock | threading.RLock = settings.lock
        self._handed_over: list[bytes] | None = None  # what other threads have written, and is not queued yet
        self._handed = 0  # how many bytes that are
        self._write_deadline = math.inf
        self._watch: tuple[DeadlineKeeper, DeadlineEntry] | None = None  # of the write deadline

    def __repr__(self) -> str:
        peer = endpoint_text(self._remote) if self._remote else self._connection._peer_text()
        state = "closed" if self._is_closed else f"fd={self.fd}"
        return f"<gain_trio.callbacks.Conn {state}{f' with {peer}' if peer is not None else ''} at {id(self):#x}>"

    # --- what has arrived ---

    def next(self, n: int = -1, /) -> bytes:
        """See :meth:`Conn.next`."""
        try:
            data = self._take_exactly(self._connection, n or -1)
        except trio.ClosedResourceError:
            raise ConnectionClosed("this connection is closed") from None
        if data is None:
            raise ShortBuffer(f"{n} bytes were asked for, and {self.inbound_buffered} have arrived")
        return data

    def peek(self, n: int = -1, /) -> bytes:
        """See :meth:`Conn.peek`."""
        self._check_open()
        return self._connection.peek(n if n > 0 else None)

    def discard(self, n: int, /) -> int:
        """See :meth:`Conn.discard`."""
        self._check_open()
        return self._connection.discard(n if n >= 0 else None)

    @property
    def inbound_buffered(self) -> int:
        """See :attr:`Conn.inbound_buffered`."""
        return 0 if self._is_closed else self._connection.inbound_buffered

    def _check_open(self) -> None:
        if self._is_closed:
            _refuse()

    # --- what is to be sent ---

    def write(self, data: Buffer, /) -> int:
        """See :meth:`Conn.write`."""
        try:
            if self._send(self._connection, data) > self._write_limit:
                self._look_first()
        except (trio.ClosedResourceError, trio.BrokenResourceError, RuntimeError) as error:
            return self._not_sent(data, error)
        return len(data) if type(data) is bytes else memoryview(data).nbytes

    def _not_sent(self, data: Buffer, error: Exception) -> int:
        """What :meth:`write` returns or raises where the connection has raised this error."""
        if isinstance(error, trio.BrokenResourceError):
            self._cannot_send = True
            return 0  # the task of the connection gets the error, and calls on_close
        if isinstance(error, trio.ClosedResourceError) and not isinstance(error, ConnectionClosed):
            raise ConnectionClosed("this connection is closed") from None
        if isinstance(error, RuntimeError) and current_thread() != self._settings.thread:
            return self._hand_over(whole_of(data))
        try:
            raise error
        finally:
            del error  # its traceback has this frame, which would keep it, and the data, until garbage is collected

    def _look_first(self) -> None:
        """The limit was passed: the next write looks before it sends."""
        self._send_by(self._send_looking)

    def _send_looking(self, connection: Connection, data: Buffer) -> int:
        """In place of the connection's: from when the limit was passed until the kernel has made room; and once after a
        write was handed over.
        """
        if current_thread() != self._settings.thread:
            raise RuntimeError("to be handed over")
        self._send_by(type(connection)._send_nowait)  # before it looks: another thread may put this in place again
        self._write_handed()
        unsent = connection.outbound_buffered
        if unsent > self._write_limit and (unsent := connection._push()) > self._write_limit:
            self._look_first()
            raise self._too_slow(unsent)
        return connection._send_nowait(data)

    def _send_by(self, send: Callable[[Connection, Buffer], int]) -> None:
        with self._lock:
            if not self._is_closed and self._failure is None:
                self._send = send

    def _too_slow(self, unsent: int) -> Exception:
        """What a write raises that would be too much; with the policy to close, that is done."""
        error = SlowReader(
            f"the peer reads too slowly: {unsent} bytes are unsent, and Config.write_limit is {self._write_limit}"
        )
        if self._settings.write_policy == "raise":
            return error
        self._in_run_soon(self._fail, error)
        return trio.BrokenResourceError()  # for write(): on_close gets the error

    def _hand_over(self, data: bytes) -> int:
        """Have the run write it."""
        with self._lock:
            if self._is_closed:
                _refuse()
            if self._failure is not None:
                return 0
            unsent = self._connection.outbound_buffered + self._handed
            if unsent <= self._write_limit:
                if self._handed_over is None:
                    self._handed_over = []  # before: a finalizer that comes meanwhile may write to this conn, too
                    try:
                        self._in_run_soon(self._write_handed)
                    except BaseException:
                        self._handed_over, self._handed = None, 0
                        raise
                    self._send = self._send_looking
                self._handed_over.append(data)
                self._handed += len(data)
                return len(data)
        error = self._too_slow(unsent)
        if isinstance(error, SlowReader):
            raise error
        return 0

    def _write_handed(self) -> None:
        """In the run: queue what other threads have written, unless that was done meanwhile."""
        with self._lock:
            handed_over, self._handed_over = self._handed_over, None
            self._handed = 0
        if not handed_over:
            return
        # If it is closed or broken by now, the task of the connection knows better why than this write does.
        with contextlib.suppress(trio.ClosedResourceError, trio.BrokenResourceError):
            for data in handed_over:
                self._connection._send_nowait(data)

    @property
    def outbound_buffered(self) -> int:
        """See :attr:`Conn.outbound_buffered`."""
        return self._connection.outbound_buffered + self._handed

    # --- other threads ---

    def _in_run_soon(self, function: Callable[..., None], *arguments: object) -> None:
        """Call it now in the run's thread, and otherwise have the run call it.  It must not raise then."""
        if current_thread() == self._settings.thread:
            function(*arguments)
            return
        try:
            self._settings.token.run_sync_soon(function, *arguments)
        except trio.RunFinishedError:
            _refuse()

    def _in_run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call it in the run's thread, and wait for what it returns or raises."""
        if current_thread() == self._settings.thread:
            return function(*arguments)
        try:
            return trio.from_thread.run_sync(function, *arguments, trio_token=self._settings.token)
        except trio.RunFinishedError:
            return _refuse()  # type: ignore[no-any-return]  # it raises

    # --- ending ---

    def close(self) -> None:
        """See :meth:`Conn.close`."""
        with self._lock:
            if self._is_closed:
                raise ConnectionAlreadyClosed("this connection is closed already")
            self._is_closed = True
            self._take_exactly = self._send = _refuse
            self._in_run_soon(self._end_wait)

    def _fail(self, error: BaseException) -> None:
        """Have the task of the connection end it with this error."""
        with self._lock:
            if self._failure is not None:
                return
            self._failure = error
            if not self._is_closed:
                self._send = _drop
        self._end_wait()

    def _end_wait(self) -> None:
        """Have what the task of the connection waits for end."""
        self._changes.end()

    def _send_no_more(self) -> None:
        """What is written from now on is dropped, without an error: the server is being stopped."""
        with self._lock:
            if not self._is_closed:
                self._send = _drop

    def _refuse_all(self) -> bool:
        """Closed for the program, unless another thread has written something that is to be sent first; whether it is."""
        with self._lock:
            if self._handed_over:
                return False
            self._is_closed = True
            self._take_exactly = self._send = _refuse
        return True

    def _over(self) -> None:
        """The connection is gone; ``on_close`` is next."""
        if not self._is_closed:
            with self._lock:
                self._is_closed = True
                self._take_exactly = self._send = _refuse
        if self._watch is not None:
            keeper, entry = self._watch
            self._watch = None  # which knows this object: a cycle
            keeper.forget(entry)

    # --- the socket ---

    @property
    def local_addr(self) -> Any:
        """See :attr:`Conn.local_addr`."""
        if self._local is None:
            self._local = self._in_run(self._address, "local_address")
        return self._local

    @property
    def remote_addr(self) -> Any:
        """See :attr:`Conn.remote_addr`."""
        if self._remote is None:
            self._remote = self._in_run(self._address, "remote_address")
        return self._remote

    def _address(self, name: str) -> Any:
        try:
            return getattr(self._connection, name)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            return None

    @property
    def fd(self) -> int:
        """See :attr:`Conn.fd`."""
        return -1 if self._is_closed else self._connection.fileno()

    @property
    def _is_tcp(self) -> bool:
        return isinstance(self.local_addr, tuple)

    def _set_option(self, level: int, option: int, value: int | bytes) -> None:
        self._check_open()
        if option == socket.SO_LINGER and isinstance(value, bytes):
            on, seconds = LINGER.unpack(value)
            self._flush_seconds = float(seconds) if on else None
            self._lingers = seconds > 0
        try:
            self._in_run(self._connection.setsockopt, level, option, value)
        except trio.ClosedResourceError:
            raise ConnectionClosed("this connection is closed") from None

    def _linger_no_more(self) -> None:
        """With a time to linger, close(2) itself would wait for the peer, and the whole run with it."""
        if self._lingers and not self._is_over:
            # Some systems let nothing be set on a socket that was reset.  It does not linger either.
            with contextlib.suppress(OSError):
                self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER.pack(0, 0))

    # --- deadlines ---

    def set_read_deadline(self, when: float | None, /) -> None:
        """See :meth:`Conn.set_read_deadline`."""
        self._check_open()
        self._in_run(setattr, self._connection, "read_deadline", math.inf if when is None else checked_deadline(when))

    def set_write_deadline(self, when: float | None, /) -> None:
        """See :meth:`Conn.set_write_deadline`."""
        self._check_open()
        self._in_run(self._move_write_deadline, math.inf if when is None else checked_deadline(when))

    def _move_write_deadline(self, when: float) -> None:
        self._write_deadline = when
        if when != math.inf:
            if self._watch is None:
                self._watch = (current_keeper(), DeadlineEntry(self))
            keeper, entry = self._watch
            keeper.watch(entry, when)

    def deadline_passed(self, now: float) -> float:
        """See :class:`DeadlineOwner`: the keeper's visit, which may be for a deadline that was moved away since."""
        if self._is_over or self._write_deadline > now:
            return math.inf if self._is_over else self._write_deadline
        if self._connection.outbound_buffered:
            self._fail(trio.TooSlowError("the connection's write deadline has passed"))
        return math.inf

    @property
    def _is_over(self) -> bool:
        return self._connection._is_closed


_copied: Callable[[Any], Any] | None = None

if fastpath is not None:
    fastpath.hasten(StreamConn)
    _copied = fastpath.copied


def changes_of(connection: Connection) -> Changes:
    """The changes that a conn is called back for: an ``on_read`` that takes nothing is not called again."""
    return Changes(connection, watches_resets=True)


def maker_of_conns(connection: Connection, settings: ConnSettings) -> Callable[[Connection], StreamConn]:
    """Return a function that makes the conns of connections of this one's class.

    In C they are copies of a conn without a connection: to store two dozen values for each costs more.
    """
    if _copied is None:
        return lambda connection: StreamConn(connection, changes_of(connection), settings)
    copied, pace, whole = _copied, settings.pace, PacedDelivery.WHOLE
    changes = changes_of(connection)
    model = StreamConn(connection, changes, settings)
    model._whole = whole
    del model._connection, model._changes, changes._connection

    def make(connection: Connection) -> StreamConn:
        conn: StreamConn = copied(model)
        conn._connection = connection
        conn._changes = copied(changes)
        conn._changes._connection = connection
        if pace.size < whole:
            conn._whole = pace.size
        return conn

    return make


@final
class ThreadedStreamConn(InboxReading, StreamConn):
    """One whose ``on_read`` runs in a worker thread: what has arrived is moved here before, for that thread to read."""

    __slots__ = ("_high", "_inbox", "_is_ending", "_low", "_room")

    def __init__(self, connection: Connection, changes: Changes, settings: ConnSettings, marks: Marks) -> None:
        super().__init__(connection, changes, settings)
        self._lock = threading.RLock()  # its own, because threads take it for each message
        self._inbox: Inbound = NOTHING
        self._high = marks.receive_high
        self._low = marks.receive_low
        self._room: trio.CancelScope | None = None  # of the task of the connection, while it waits for room
        self._is_ending = False  # something of this program wants it over

    def _check_readable(self) -> None:
        self._check_open()

    def _arrived(self, count: int) -> None:
        """Move ``count`` bytes here, of those that the connection has reported: it reports the others later."""
        data = self._connection._take_exactly(count)
        with self._lock:
            self._inbox = joined(self._inbox, data or NOTHING)

    @property
    def _is_stalled(self) -> bool:
        return len(self._inbox) >= self._high

    async def _wait_for_room(self, wait: Callable[[], Awaitable[int]]) -> int | None:
        """What ``wait`` returns, or None once a callback has read from the inbox, or the connection is to end."""
        with self._lock:
            if self._is_ending or len(self._inbox) <= self._low:
                return None
            room = self._room = trio.CancelScope()
        try:
            with room:
                return await wait()
        finally:
            self._room = None
        return None

    def _end_wait(self) -> None:
        self._is_ending = True
        super()._end_wait()
        room = self._room
        if room is not None:
            room.cancel()

    def _taken(self, left: int) -> None:
        room = self._room
        if room is not None and left <= self._low:
            self._room = None
            self._in_run_soon(room.cancel)

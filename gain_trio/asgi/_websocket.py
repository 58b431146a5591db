"""One WebSocket of an ASGI app, from its handshake to its end, on a connection whose HTTP request wants it.

*The app reads.*  It runs in the connection's own task, and its ``receive()`` reads from the connection as soon as nothing
is queued.  So a message costs one wake-up of one task, which the ring makes in place; with a task that reads beside the
app it would cost a turn of Trio's scheduler more.

*Something must read while the app does not*: the peer's pings want an answer, and its close frame does.  An entry of the
run's deadline keeper looks, a quarter of a second after the app has left ``receive()``, whether it is back there.  If not,
a task begins to read for it, queues up to ``max_queue`` messages, and ends when it has one that the app waits for.  An app
that receives all the time has no such task, and one that only sends has one all the time.

*The end* has three sources: the peer's close frame or a rule that it breaks, this side (the app, a drain, an error of the
app), and a connection that broke or went silent.  In each case the app learns it at once, by ``websocket.disconnect`` and
by an :exc:`OSError` from ``send()``.  A task completes the closing handshake within ``close_timeout``, so the app never
waits for a peer's answer.
"""

from __future__ import annotations

import contextlib
import enum
import math
import os
from collections import deque
from typing import TYPE_CHECKING, Final, NoReturn, final

import trio

from gain_trio._io_manager import cancel_status_of, leave_open_scopes
from gain_trio._server import is_cancellation, own_fault, ungrouped
from gain_trio._transports import DeadlineEntry, current_keeper, was_reset

from ._asgi_types import ClientDisconnected, Message, Scope
from ._websocket_codec import BINARY, TEXT, End, WebSocketCodec
from ._websocket_head import accepting_head
from ._websocket_pings import PeerState, PingSchedule
from ._websocket_writer import WebSocketWriter

if TYPE_CHECKING:
    from ._exchange import HttpExchange
    from ._http_connection import HttpConnection

AWAY: Final = 0.25
"""Seconds after which a task reads in place of an app that does not."""
MAX_QUEUED: Final = 64 * 1024
"""Bytes of queued messages with which that task stops, too."""
MAX_EARLY: Final = 16 * 1024
"""Bytes that a client may send before the app has accepted, which no client has a reason for."""
_LOOKS: Final = 4
"""How often a task looks, in the time of a closing handshake, whether the peer has accepted something."""
MAX_REASON: Final = 123
"""Bytes of a close frame's reason (RFC 6455, 5.5)."""
MAX_UNWAITED: Final = 64
"""Messages in a row that the app gets from memory; other tasks have a turn then."""

VANISHED: Final = End(1006)
RESTART: Final = End(1012, "the server restarts")
FAILED: Final = End(1011)
DONE: Final = End(1000)

_KINDS: Final = frozenset(
    {"websocket.accept", "websocket.send", "websocket.http.response.start", "websocket.http.response.body"}
)
"""What an app can send but for the close, which does nothing when the WebSocket is over."""
_GONE: Final = (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError)


class _State(enum.Enum):
    CONNECTING = enum.auto()
    """The app has not decided."""
    DENYING = enum.auto()
    """The app sends an HTTP response in place of accepting."""
    OPEN = enum.auto()
    OVER = enum.auto()
    """Nothing more is for the app; the closing handshake may be in progress."""


_CONNECTING, _DENYING, _OPEN, _OVER = _State  # looked up more cheaply than members


@final
class WebSocket:
    """A WebSocket as the app sees it, by :meth:`receive` and :meth:`send`."""

    __slots__ = (
        "_accepting",
        "_attending",
        "_codec",
        "_config",
        "_connection",
        "_draining",
        "_end",
        "_entry",
        "_exchange",
        "_expected",
        "_finishing",
        "_http",
        "_is_gone",
        "_keeper",
        "_news",
        "_nursery",
        "_pings",
        "_queue",
        "_queued",
        "_reading",
        "_receiving",
        "_state",
        "_told",
        "_told_end",
        "_unwaited",
        "_writer",
    )

    _nursery: trio.Nursery

    def __init__(
        self, http: HttpConnection, codec: WebSocketCodec, exchange: HttpExchange, accepting: list[tuple[bytes, bytes]]
    ) -> None:
        connection = http.connection
        self._http = http
        self._config = http.config
        self._connection = connection
        self._codec = codec
        self._exchange = exchange
        self._accepting = accepting  # fields of the response
        self._writer = WebSocketWriter(connection, codec)
        self._draining = connection.draining
        self._state = _CONNECTING
        self._end = VANISHED
        self._is_gone = False  # it is over, and not by the app
        self._told_end = False  # that the WebSocket is over
        self._told = False  # the app has its websocket.connect
        # Reading.
        self._queue: deque[Message] = deque()
        self._queued = 0  # bytes in it
        self._reading = False  # a task waits for the connection
        self._receiving = False  # a task of the app waits in receive()
        self._attending = False  # a task reads while the app does not
        self._news: trio.Event | None = None  # for receive(), while another task reads
        self._unwaited = 0
        self._finishing = False  # the task that completes the closing handshake was started
        # Time.
        self._keeper = current_keeper()
        self._entry = DeadlineEntry(self)
        self._expected = False  # the keeper will look within AWAY
        self._pings = PingSchedule(http.config, connection)

    # --- the app ---

    async def run(self, scope: Scope) -> None:
        """Run the app, and then end what it has not ended.

        Raises:
          trio.BrokenResourceError: the app failed after the client was gone: the client's fault, and not the app's.
          Exception: what the app has raised.
        """
        task = trio.lowlevel.current_task()
        failure: Exception | None = None
        try:
            async with trio.open_nursery() as self._nursery:
                status, nurseries = cancel_status_of(task), len(task.child_nurseries)
                try:
                    # In the task's own context: no request follows that could see the variables of the app.
                    await self._http.handler.app(scope, self.receive, self.send)
                except Exception as error:  # noqa: BLE001 - the caller raises it, when the client knows
                    failure = error
                if cancel_status_of(task) is not status:
                    leave_open_scopes(task, status, nurseries)
                    failure = RuntimeError("the app has left a cancel scope or a nursery open")
                if self._state is _OPEN:
                    self._close(DONE if failure is None else FAILED)
                    self._is_gone = False
        except BaseException as error:
            # The server may end before the client has closed: the failure is raised even so, and a cancelled scope cancels
            # the next wait, too.
            if failure is None or not is_cancellation(error):
                raise
        finally:
            self._keeper.forget(self._entry)
        if failure is not None and self._is_gone:
            raise trio.BrokenResourceError("the client is gone") from failure
        if self._exchange.status != 101:
            await self._http._finish(self._exchange, failure)
        elif failure is not None:
            raise own_fault(failure)

    # --- receiving ---

    async def receive(self) -> Message:  # noqa: C901, PLR0912 - a message is one call: each further one costs as much as a branch
        """ASGI's ``receive``.  Cancelling it loses no message."""
        if not self._told:
            self._told = True
            return {"type": "websocket.connect"}
        queue = self._queue
        if queue and not self._receiving:
            return self._next_queued()
        if self._receiving:
            raise trio.BusyResourceError("another task of the app is already receiving from this WebSocket")
        self._receiving = True
        codec = self._codec
        try:
            while True:
                if queue:
                    return self._next_queued()
                if self._state is _OVER:
                    if self._told_end:
                        await trio.lowlevel.checkpoint()  # an app that asks on and on keeps no other task from running
                    self._told_end = True
                    return {"type": "websocket.disconnect", "code": self._end.code, "reason": self._end.reason}
                if self._attending:
                    self._news = trio.Event()
                    await self._news.wait()
                    continue
                if self._state is not _OPEN:
                    await self._read_early()
                    continue
                message = codec.next_message()
                if (
                    (codec.control and not self._writer.is_sending)
                    or not codec.is_open
                    or codec.has_more
                    or self._unwaited >= MAX_UNWAITED
                ):
                    if message is not None:
                        self._put(message)
                    if not codec.is_open:
                        self._over(codec.end)
                    elif codec.control:
                        await self._flush_or_end()
                    if codec.has_more or self._unwaited >= MAX_UNWAITED:
                        self._unwaited = 0
                        await self._let_others_run()
                    continue
                if message is not None:
                    self._unwaited += 1
                    return message
                await self._read()
        finally:
            self._receiving = False
            if not self._expected and self._state is _OPEN:
                self._expect()

    async def _let_others_run(self) -> None:
        """End a turn of reading from memory, and all reading if the peer has reset the connection meanwhile."""
        await trio.lowlevel.checkpoint()
        if was_reset(self._connection):
            self._over(VANISHED)

    def _next_queued(self) -> Message:
        message = self._queue.popleft()
        self._queued -= _size(message)
        if not self._expected and self._state is _OPEN:
            self._expect()
        return message

    def _put(self, message: Message) -> None:
        self._queue.append(message)
        self._queued += _size(message)

    async def _read(self) -> None:
        """Wait for data and feed the codec, or find that it is over."""
        if self._draining.is_set():
            self._close(RESTART)
            return
        connection = self._connection
        self._reading = True
        self._unwaited = 0
        try:
            data = await connection._first_of_message(connection.receive, b"")
            if data:
                self._codec.feed(data)
            elif self._draining.is_set():
                self._close(RESTART)
            else:
                self._over(VANISHED)
        except trio.TooSlowError:
            connection.read_deadline = math.inf  # it was woken to look again
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._over(VANISHED)
        finally:
            self._reading = False
            if self._state is _OVER:
                self._finish_soon()

    async def _read_early(self) -> None:
        """The same before the app has accepted: nothing is read but the end, and a drain leaves the app to decide."""
        self._reading = True
        try:
            if self._codec.unread >= MAX_EARLY:
                self._news = trio.Event()
                await self._news.wait()
            elif data := await self._connection.receive():
                self._codec.feed(data)
            else:
                self._over(VANISHED)
        except trio.TooSlowError:
            self._connection.read_deadline = math.inf
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._over(VANISHED)
        finally:
            self._reading = False

    def _look_again(self) -> None:
        """Wake the task that waits in receive(), or for the connection: the state has changed."""
        if self._news is not None:
            self._news.set()
        if self._reading:
            self._connection.read_deadline = -math.inf

    @property
    def _is_full(self) -> bool:
        return len(self._queue) >= self._config.ws_max_queue or self._queued >= MAX_QUEUED

    async def _attend(self) -> None:
        """Read while the app does not: a task."""
        codec = self._codec
        try:
            while self._state is _OPEN and not self._is_full:
                message = codec.next_message()
                if message is not None:
                    self._put(message)
                if not codec.is_open:
                    self._over(codec.end)
                    break
                if codec.control:
                    await self._writer.flush()
                if self._receiving and self._queue:
                    break
                if codec.has_more:
                    await self._let_others_run()
                elif message is None and self._state is _OPEN:  # else it was closed while this task sent
                    await self._read()
        except _GONE:
            self._over(VANISHED)
        finally:
            self._attending = False
            if self._news is not None:
                self._news.set()

    # --- sending ---

    async def send(self, message: Message) -> None:
        """ASGI's ``send``."""
        kind = message["type"]
        if self._state is not _OPEN:
            await self._send_otherwise(kind, message)
            return
        if kind != "websocket.send":
            if kind != "websocket.close":
                raise RuntimeError(f"the WebSocket is open, so the app cannot send {kind!r}")
            code = message.get("code")
            self._close(End(1000 if code is None else code, _fitting(message.get("reason") or "")))
            self._is_gone = False
            return
        payload = message.get("bytes")
        if payload is None:
            text = message.get("text")
            if not isinstance(text, str):
                raise TypeError(f"websocket.send has bytes, or a text that is a str, not {text!r}")
            form, payload = TEXT, text.encode()
        else:
            if message.get("text") is not None:
                raise ValueError("websocket.send has bytes or a text, and not both")
            form = BINARY
            if type(payload) is not bytes:
                payload = bytes(memoryview(payload))
        try:
            await self._writer.send(form, payload)
        except _GONE as error:
            raise self._gone() from error

    def _gone(self) -> ClientDisconnected:
        if self._state is not _OVER:
            self._over(VANISHED)
        return ClientDisconnected(f"the WebSocket is closed, code {self._end.code}")

    # --- the answer to the handshake ---

    async def _send_otherwise(self, kind: str, message: Message) -> None:
        """A message of the app to a WebSocket that is not open."""
        if self._state is _OVER:
            if kind in _KINDS:
                raise self._gone()
            if kind != "websocket.close":
                raise RuntimeError(f"the WebSocket is over, so the app cannot send {kind!r}")
        elif self._state is _CONNECTING and kind == "websocket.accept":
            await self._accept(message)
        elif self._state is _CONNECTING and kind == "websocket.close":
            self._state = _DENYING
            await self._exchange.send({"type": "http.response.start", "status": 403})
            await self._deny({"type": "http.response.body"})
        elif self._state is _CONNECTING and kind == "websocket.http.response.start":
            self._state = _DENYING
            await self._exchange.send({**message, "type": "http.response.start"})
        elif self._state is _DENYING and kind == "websocket.http.response.body":
            await self._deny({**message, "type": "http.response.body"})
        else:
            raise RuntimeError(f"the WebSocket is {self._state.name.lower()}, so the app cannot send {kind!r}")

    async def _deny(self, message: Message) -> None:
        """Send a piece of the response's body."""
        await self._exchange.send(message)
        if not message.get("more_body"):
            self._state = _OVER
            self._look_again()

    async def _accept(self, message: Message) -> None:
        head = accepting_head(message, self._accepting, self._http.stamp)
        try:
            await self._connection.send(head)
        except _GONE as error:
            raise self._gone() from error
        self._exchange.status = 101
        self._state = _OPEN
        self._look_again()
        self._pings.begin(trio.current_time())
        self._expect()

    # --- the end ---

    def _close(self, end: End) -> None:
        """This side ends it, if it is not over."""
        if self._state is not _OPEN:  # it was closed while this task received
            return
        self._codec.close(end.code, end.reason)
        self._over(end)

    def _over(self, end: End | None) -> None:
        """Nothing more is for the app, and a task completes the closing handshake."""
        if self._state is _OVER:
            return
        assert end is not None
        was_open = self._state is _OPEN
        self._state = _OVER
        self._is_gone = True
        if not was_open:
            self._http.is_gone = self._http.is_ended = True
        self._end = end
        self._look_again()
        if was_open:
            deadline = trio.current_time() + self._config.ws_close_timeout
            self._connection.write_deadline = deadline  # of a sender that is under way, too
            self._finish_soon()

    def _finish_soon(self) -> None:
        if not (self._reading or self._finishing):
            self._finishing = True
            self._nursery.start_soon(self._finish)

    async def _finish(self) -> None:
        """Send the close frame, have the peer answer it, and close the connection: a task."""
        with ungrouped():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._allow_time, name="gain_trio watch of a closing WebSocket")
                await self._complete_handshake()
                nursery.cancel_scope.cancel()
        await self._connection.aclose()

    async def _allow_time(self) -> NoReturn:
        """Move the deadlines of the handshake away while the peer accepts what was sent before, within a bound."""
        connection, timeout = self._connection, self._config.ws_close_timeout
        end = connection.write_deadline - timeout + connection.close_timeout
        before = self._accepted()
        while True:
            await trio.sleep(timeout / _LOOKS)
            if self._accepted() != before:
                before = self._accepted()
                connection.set_deadline(min(trio.current_time() + timeout, end))

    def _accepted(self) -> int:
        """Bytes that the peer has accepted."""
        return self._connection.bytes_sent - (self._connection._unacknowledged() or 0)

    async def _complete_handshake(self) -> None:
        connection, codec = self._connection, self._codec
        connection.read_deadline = connection.write_deadline
        with contextlib.suppress(*_GONE):  # the peer is not there, or too slow: then there is no handshake to complete
            await self._writer.finish()
            if codec.end is None and self._end is not VANISHED:
                answered = codec.is_answered()
                while not answered:
                    if codec.unread:
                        await trio.lowlevel.checkpoint()
                        answered = codec.is_answered()
                    elif data := await connection.receive():
                        answered = codec.is_answered(data)
                    else:
                        break
            elif codec.has_failed:
                await self._linger()

    async def _linger(self) -> None:
        """Have the peer receive the close frame: a reset, because of data that was not received, would overtake it."""
        with contextlib.suppress(NotImplementedError):  # TLS cannot end one side alone
            await self._connection.send_eof()
        while await self._connection.receive():
            pass

    # --- time ---

    def _expect(self) -> None:
        """Have the keeper look soon whether the app receives."""
        self._expected = True
        self._keeper.watch(self._entry, trio.current_time() + AWAY)

    def deadline_passed(self, now: float) -> float:
        """The keeper looks: whether the app is away, and whether the peer is there.  Returns when to look again."""
        self._expected = False
        if self._state is not _OPEN:
            return math.inf
        if not (self._receiving or self._attending or self._is_full):
            self._attending = True
            self._nursery.start_soon(self._attend)
        state = self._pings.look(now, is_sending=self._writer.is_sending, is_full=self._is_full)
        if state is PeerState.GONE:
            self._codec.close(1011, "no answer to a ping")
            self._over(VANISHED)
            return math.inf
        if state is PeerState.PING:
            self._codec.ping(os.urandom(4))
            self._nursery.start_soon(self._flush_or_end)
        return self._pings.next_look

    async def _flush_or_end(self) -> None:
        try:
            await self._writer.flush()
        except _GONE:
            self._over(VANISHED)


def _fitting(reason: str) -> str:
    """As much of a reason as a close frame has room for: ASGI allows any string."""
    data = reason.encode()
    return reason if len(data) <= MAX_REASON else data[:MAX_REASON].decode(errors="ignore")  # of the last character


def _size(message: Message) -> int:
    """Bytes that a queued message counts for: characters may be more, but the limit is no exact one."""
    return len(message.get("bytes") or message.get("text") or b"")

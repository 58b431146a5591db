"""One WebSocket of an ASGI app, from its handshake to its end, on a connection whose HTTP request wants it.

*The app reads.*  It runs in the connection's own task, and its ``receive()`` reads from the connection as soon as nothing
is queued.  So a message costs one wake-up of one task, which the ring makes in place; with a task that reads beside the
app it would cost a turn of Trio's scheduler more.

*Something must read while the app does not*: the peer's pings want an answer, and its close frame does.  An entry of the
run's deadline keeper looks, a quarter of a second after the app has left ``receive()``, whether it is back there.  If not,
a task begins to read for it, queues up to ``max_queue`` messages, and ends when it has one that the app waits for.  An app
that receives all the time has no such task, and one that only sends has one all the time.

*Senders take turns*: the app's tasks, pongs, pings and the close frame.  A control frame that finds a sender under way is
left to that sender, so that a reader does not wait for a peer which does not read.

*A compressed frame that was made must be sent*, because the frames after it refer to it.  When the call that made it is
cancelled before the connection has queued it, it is kept, and goes first when something is sent next.

*The end* has three sources: the peer's close frame or a rule that it breaks, this side (the app, a drain, an error of the
app), and a connection that broke or went silent.  In each case the app learns it at once, by ``websocket.disconnect`` and
by an :exc:`OSError` from ``send()``.  A task completes the closing handshake within ``close_timeout``, so the app never
waits for a peer's answer.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import math
import os
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, TypeAlias, final

import trio

from gain_trio._server._failures import consists_of
from gain_trio._transports import Connection, Entry, current_keeper

from ._websocket_codec import BINARY, TEXT, End, Message, WebSocketCodec
from ._websocket_options import WebSocketOptions

Scope: TypeAlias = dict[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

AWAY: Final = 0.25
"""Seconds after which a task reads in place of an app that does not."""
MAX_QUEUED: Final = 64 * 1024
"""Bytes of queued messages with which that task stops, too."""
MAX_EARLY: Final = 16 * 1024
"""Bytes that a client may send before the app has accepted, which no client has a reason for."""
MAX_UNWAITED: Final = 64
"""Messages in a row that the app gets from memory; other tasks have a turn then."""

NO_STATUS: Final = 1005
VANISHED: Final = End(1006)
RESTART: Final = End(1012, "the server restarts")
FAILED: Final = End(1011)

_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_OWN: Final = frozenset({b"connection", b"content-length", b"transfer-encoding", b"upgrade"})

logger = logging.getLogger("gain_trio")


class Disconnected(OSError):
    """``send()`` was called on a WebSocket that is over."""


class _State(enum.Enum):
    CONNECTING = enum.auto()
    """The app has not decided."""
    DENYING = enum.auto()
    """The app sends an HTTP response in place of accepting."""
    OPEN = enum.auto()
    OVER = enum.auto()
    """Nothing more is for the app; the closing handshake may be in progress."""


async def serve_websocket(
    app: App,
    connection: Connection,
    scope: Scope,
    rest: bytes,
    *,
    respond: Send,
    head_fields: Callable[[], bytes],
    options: WebSocketOptions,
) -> int:
    """Run the app for a request that wants an upgrade to WebSocket, until both are over.

    Args:
      app: the app, or what calls it.
      connection: the connection, for which nothing else receives or sends meanwhile.
      scope: an HTTP scope of that request, which becomes the app's.
      rest: bytes that have arrived behind the head.
      respond: sends ``http.response.start`` and ``http.response.body`` where the answer is an HTTP response, with
        ``Connection: close``.
      head_fields: returns fields of the response that accepts, as lines, such as Date.
      options: limits and times.

    Returns:
      The status of the response to the request.

    What the app raises closes the WebSocket with 1011, and is raised again when that is done; but the :exc:`Disconnected`
    of a ``send()`` is not.  Cancelling it ends everything at once, without a close frame.
    """
    codec = WebSocketCodec(options)
    handshake = codec.handshake(scope["headers"])
    if handshake.status != 101:
        fields = [*handshake.fields, (b"content-length", b"%d" % len(handshake.body))]
        await respond({"type": "http.response.start", "status": handshake.status, "headers": fields})
        await respond({"type": "http.response.body", "body": handshake.body})
        return handshake.status
    codec.feed(rest)
    socket = _WebSocket(connection, codec, options, respond)
    socket.accepting = (handshake.fields, head_fields)
    scope["type"] = "websocket"
    scope["scheme"] = "wss" if scope.get("scheme") == "https" else "ws"
    scope["subprotocols"] = _members(scope["headers"], b"sec-websocket-protocol")
    own = {name: value for name, value in (scope.get("extensions") or {}).items() if not name.startswith("http.")}
    scope["extensions"] = {**own, "websocket.http.response": {}}
    scope.pop("method", None)
    return await socket.run(app, scope)


def _members(fields: Iterable[tuple[bytes, bytes]], wanted: bytes) -> list[str]:
    """The members of a list in one field or several."""
    values = [value.decode("latin-1") for name, value in fields if name == wanted]
    return [member for value in values for part in value.split(",") if (member := part.strip())]


@final
class _WebSocket:
    """A WebSocket as the app sees it, by :meth:`receive` and :meth:`send`."""

    __slots__ = (
        "_attended",
        "_attending",
        "_chunks",
        "_codec",
        "_connection",
        "_doomed_at",
        "_draining",
        "_end",
        "_entry",
        "_expected",
        "_finishing",
        "_heard",
        "_keeper",
        "_line",
        "_news",
        "_nursery",
        "_options",
        "_ping_at",
        "_queue",
        "_queued",
        "_reading",
        "_receiving",
        "_respond",
        "_said",
        "_sending",
        "_state",
        "_told",
        "_unsent",
        "_unwaited",
        "accepting",
        "status",
    )

    accepting: tuple[list[tuple[bytes, bytes]], Callable[[], bytes]]
    """The fields of the response that accepts, and what returns more of them."""
    _nursery: trio.Nursery

    def __init__(self, connection: Connection, codec: WebSocketCodec, options: WebSocketOptions, respond: Send) -> None:
        self._connection = connection
        self._codec = codec
        self._options = options
        self._respond = respond
        self._chunks = connection.messages().__anext__
        self._draining = connection.draining
        self._state = _State.CONNECTING
        self._end = VANISHED
        self.status = 0
        """Of the response."""
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
        # Sending.
        self._sending = False
        self._line: trio.lowlevel.ParkingLot | None = None  # of tasks that wait for their turn to send
        self._unsent = b""  # what must go first: its sender was cancelled
        # Time.
        self._keeper = current_keeper()
        self._entry = Entry(self)
        self._expected = False  # the keeper will look within AWAY
        self._ping_at = self._doomed_at = math.inf
        self._heard = self._said = 0  # bytes that had come and gone when the keeper looked last

    # --- the app ---

    async def run(self, app: App, scope: Scope) -> int:
        """Run the app, and then end what it has not ended."""
        self._connection.set_deadline(math.inf)
        failure = None
        try:
            async with trio.open_nursery() as self._nursery:
                try:
                    await app(scope, self.receive, self.send)
                except Exception as error:  # noqa: BLE001 - it is raised again, when the client knows
                    failure = error
                    await self._app_failed()
                else:
                    await self._app_returned()
        finally:
            self._keeper.forget(self._entry)
        if failure is not None and not consists_of(failure, lambda one: isinstance(one, Disconnected)):
            raise failure
        return self.status

    async def _app_failed(self) -> None:
        if self._state is _State.CONNECTING:
            await self._answer(500)
        elif self._state is _State.DENYING:
            self._connection.abort()
        elif self._state is _State.OPEN:
            self._close(FAILED)

    async def _app_returned(self) -> None:
        if self._state is _State.CONNECTING:
            logger.error("the ASGI app returned without an answer to the WebSocket handshake")
            await self._answer(500)
        elif self._state is _State.DENYING:
            logger.error("the ASGI app returned in the middle of its response to the WebSocket handshake")
            self._connection.abort()
        elif self._state is _State.OPEN:
            self._close(End(1000))

    async def _answer(self, status: int) -> None:
        """Deny the WebSocket with an empty response."""
        self._state = _State.OVER
        self.status = status
        with contextlib.suppress(OSError, trio.BrokenResourceError):  # the client is gone: there is no one to answer
            await self._respond(
                {"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]}
            )
            await self._respond({"type": "http.response.body"})

    # --- receiving ---

    async def receive(self) -> Message:
        """ASGI's ``receive``.  Cancelling it loses no message."""
        queue = self._queue
        if queue and not self._receiving:
            return self._next_queued()
        if not self._told:
            self._told = True
            return {"type": "websocket.connect"}
        if self._receiving:
            raise trio.BusyResourceError("another task of the app is already receiving from this WebSocket")
        self._receiving = True
        codec = self._codec
        try:
            while True:
                if queue:
                    return self._next_queued()
                if self._state is _State.OVER:
                    return {"type": "websocket.disconnect", "code": self._end.code, "reason": self._end.reason}
                if self._attending:
                    self._news = trio.Event()
                    await self._news.wait()
                    continue
                if self._state is not _State.OPEN:
                    await self._read_early()
                    continue
                message = codec.next_message()
                if (codec.control and not self._sending) or not codec.is_open or self._unwaited >= MAX_UNWAITED:
                    if message is not None:
                        self._put(message)
                    if not codec.is_open:
                        self._over(codec.end)
                    elif codec.control:
                        await self._flush()
                    if self._unwaited >= MAX_UNWAITED:
                        self._unwaited = 0
                        await trio.lowlevel.checkpoint()
                    continue
                if message is not None:
                    self._unwaited += 1
                    return message
                await self._read()
        finally:
            self._receiving = False
            if not self._expected and self._state is _State.OPEN:
                self._expect()

    def _next_queued(self) -> Message:
        message = self._queue.popleft()
        self._queued -= _size(message)
        if not self._expected and self._state is _State.OPEN:
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
        self._reading = True
        self._unwaited = 0
        try:
            data = await self._chunks()
        except StopAsyncIteration:
            if self._draining.is_set():
                self._close(RESTART)
            else:
                self._over(VANISHED)
        except trio.TooSlowError:
            self._connection.read_deadline = math.inf  # it was woken to look again
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._over(VANISHED)
        else:
            self._codec.feed(data)
        finally:
            self._reading = False
            if self._state is _State.OVER:
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
            if self._state is _State.OVER:
                self._finish_soon()

    def _look_again(self) -> None:
        """Wake the task that waits in receive(), or for the connection: the state has changed."""
        if self._news is not None:
            self._news.set()
        if self._reading:
            self._connection.read_deadline = -math.inf

    @property
    def _is_full(self) -> bool:
        return len(self._queue) >= self._options.max_queue or self._queued >= MAX_QUEUED

    async def _attend(self) -> None:
        """Read while the app does not: a task."""
        codec = self._codec
        try:
            while self._state is _State.OPEN and not self._is_full:
                message = codec.next_message()
                if message is not None:
                    self._put(message)
                if not codec.is_open:
                    self._over(codec.end)
                    break
                if codec.control:
                    await self._flush()
                if self._receiving and self._queue:
                    break
                if message is None:
                    await self._read()
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            self._over(VANISHED)
        finally:
            self._attending = False
            if self._news is not None:
                self._news.set()

    # --- sending ---

    async def send(self, message: Message) -> None:
        """ASGI's ``send``."""
        kind = message["type"]
        if self._state is not _State.OPEN:
            await self._send_otherwise(kind, message)
            return
        if kind != "websocket.send":
            if kind != "websocket.close":
                raise RuntimeError(f"the WebSocket is open, so the app cannot send {kind!r}")
            self._close(End(message.get("code", 1000), message.get("reason") or ""))
            return
        payload = message.get("bytes")
        if payload is None:
            text = message.get("text")
            if not isinstance(text, str):
                raise TypeError(f"websocket.send has bytes, or a text that is a str, not {text!r}")
            form, payload = TEXT, text.encode()
        else:
            form = BINARY
            if type(payload) is not bytes:
                payload = bytes(memoryview(payload))
        codec = self._codec
        if self._sending or self._unsent or codec.control or codec.compresses:
            await self._send_in_turn(form, payload)
            return
        self._sending = True
        try:
            await self._connection.send(codec.message(form, payload))
            if codec.control:
                await self._send_control()
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError) as error:
            raise self._gone() from error
        finally:
            self._end_turn()

    async def _send_in_turn(self, form: int, payload: bytes) -> None:
        await self._begin_turn()
        try:
            await self._send_control()
            if self._state is not _State.OPEN:
                raise self._gone()
            frame = self._codec.message(form, payload)
            if self._codec.compresses:
                assert isinstance(frame, bytes)
                self._unsent = frame
            else:
                await self._connection.send(frame)
            await self._send_control()
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError) as error:
            raise self._gone() from error
        finally:
            self._end_turn()

    async def _begin_turn(self) -> None:
        if not self._sending:
            self._sending = True
            return
        if self._line is None:
            self._line = trio.lowlevel.ParkingLot()
        await self._line.park()  # the task that ends its turn leaves _sending set

    def _end_turn(self) -> None:
        if self._line:
            self._line.unpark()
        else:
            self._sending = False

    async def _flush(self) -> None:
        """Send control frames, or leave them to the task that is sending."""
        if self._sending:
            return
        self._sending = True
        try:
            await self._send_control()
        finally:
            self._end_turn()

    async def _send_control(self) -> None:
        """Send what must go before anything else.  Cancelled, it keeps what the connection has not queued."""
        connection, codec = self._connection, self._codec
        while True:
            if not self._unsent:
                self._unsent, codec.control = codec.control, b""
            if not self._unsent:
                return
            before = connection.bytes_sent + connection.outbound_buffered
            try:
                await connection.send(self._unsent)
            except BaseException:
                if connection.bytes_sent + connection.outbound_buffered != before:
                    self._unsent = b""
                raise
            self._unsent = b""

    def _gone(self) -> Disconnected:
        if self._state is _State.OPEN:
            self._over(VANISHED)
        return Disconnected(f"the WebSocket is closed, code {self._end.code}")

    # --- the answer to the handshake ---

    async def _send_otherwise(self, kind: str, message: Message) -> None:
        """A message of the app to a WebSocket that is not open."""
        if self._state is _State.OVER:
            if kind == "websocket.send":
                raise self._gone()
            if kind != "websocket.close":
                raise RuntimeError(f"the WebSocket is over, so the app cannot send {kind!r}")
        elif self._state is _State.CONNECTING and kind == "websocket.accept":
            await self._accept(message)
        elif self._state is _State.CONNECTING and kind == "websocket.close":
            await self._answer(403)
            self._look_again()
        elif self._state is _State.CONNECTING and kind == "websocket.http.response.start":
            await self._respond({**message, "type": "http.response.start"})
            self._state = _State.DENYING
            self.status = message["status"]
        elif self._state is _State.DENYING and kind == "websocket.http.response.body":
            await self._respond({**message, "type": "http.response.body"})
            if not message.get("more_body"):
                self._state = _State.OVER
                self._look_again()
        else:
            raise RuntimeError(f"the WebSocket is {self._state.name.lower()}, so the app cannot send {kind!r}")

    async def _accept(self, message: Message) -> None:
        own, more = self.accepting
        lines = [b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n"]
        lines += [b"%b: %b\r\n" % field for field in own]
        subprotocol = message.get("subprotocol")
        if subprotocol is not None:
            lines.append(b"sec-websocket-protocol: %b\r\n" % _checked(b"", subprotocol.encode("latin-1"), _TOKEN))
        for name, value in message.get("headers") or ():
            lines.append(b"%b: %b\r\n" % (_checked_name(bytes(name)), _checked(name, bytes(value), _VALUE)))
        lines += (more(), b"\r\n")
        try:
            await self._connection.send(b"".join(lines))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise self._gone() from error
        self.status = 101
        self._state = _State.OPEN
        self._look_again()
        self._ping_at = trio.current_time() + self._options.ping_interval
        self._expect()

    # --- the end ---

    def _close(self, end: End) -> None:
        """This side ends it."""
        self._codec.close(end.code, end.reason)
        self._over(end)

    def _over(self, end: End | None) -> None:
        """Nothing more is for the app, and a task completes the closing handshake."""
        if self._state is _State.OVER:
            return
        assert end is not None
        was_open = self._state is _State.OPEN
        self._state = _State.OVER
        self._end = end
        self._look_again()
        if was_open:
            deadline = trio.current_time() + self._options.close_timeout
            self._connection.write_deadline = deadline  # of a sender that is under way, too
            self._finish_soon()

    def _finish_soon(self) -> None:
        if not (self._reading or self._finishing):
            self._finishing = True
            self._nursery.start_soon(self._finish)

    async def _finish(self) -> None:
        """Send the close frame, have the peer answer it, and close the connection: a task."""
        connection, codec = self._connection, self._codec
        connection.read_deadline = connection.write_deadline
        # A peer that is gone, or too slow, has no more to be told.
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            await self._begin_turn()
            try:
                await self._send_control()
            finally:
                self._end_turn()
            if codec.end is None and self._end is not VANISHED:
                answered = codec.is_answered()
                while not answered and (data := await connection.receive()):
                    answered = codec.is_answered(data)
            elif codec.has_failed:
                await self._linger()
        await connection.aclose()

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
        if self._state is not _State.OPEN:
            return math.inf
        if not (self._receiving or self._attending or self._is_full):
            self._attending = True
            self._nursery.start_soon(self._attend)
        if now < self._ping_at and now < self._doomed_at:
            return min(self._ping_at, self._doomed_at)
        connection = self._connection
        heard, said = connection.bytes_received, connection.bytes_sent
        is_stuck = self._sending and said == self._said
        if (heard != self._heard or self._is_full) and not is_stuck:
            self._doomed_at = math.inf
        self._heard, self._said = heard, said
        if now >= self._doomed_at:
            self._codec.close(1011, "no answer to a ping")
            self._over(VANISHED)
            return math.inf
        if now >= self._ping_at:
            self._ping_at = now + self._options.ping_interval
            self._doomed_at = min(self._doomed_at, now + self._options.ping_timeout)
            self._codec.ping(os.urandom(4))
            self._nursery.start_soon(self._flush_or_end)
        return min(self._ping_at, self._doomed_at)

    async def _flush_or_end(self) -> None:
        try:
            await self._flush()
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            self._over(VANISHED)


def _size(message: Message) -> int:
    """Bytes that a queued message counts for: characters may be more, but the limit is no exact one."""
    return len(message.get("bytes") or message.get("text") or b"")


def _checked(name: bytes, value: bytes, pattern: re.Pattern[bytes]) -> bytes:
    if not pattern.fullmatch(value):
        raise ValueError(f"this is not a value of the field {(name or b'sec-websocket-protocol')!r}: {value!r}")
    return value


def _checked_name(name: bytes) -> bytes:
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"this is not the name of a field: {name!r}")
    if name.lower() in _OWN or name.lower().startswith(b"sec-websocket-"):
        raise ValueError(f"the server sends the field {name!r} itself; a subprotocol has a key of its own")
    return name

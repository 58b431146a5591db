"""One request and its response: the ``receive`` and ``send`` that an app is called with.

*The start of a response is held* until its first body, so that a usual response is one send, and its head and body are one
piece.  It is checked at once, so that an app's mistake is raised where the app has made it.  The head of a whole response to
a usual request is remembered by what it was made of.

*The usual response is C's* where the compiled modules are there (``_ffi/heads``): one pass over the app's fields checks
them and writes them before the body.  What is not usual is done here, and here alone what is wrong is refused.

*Nothing here reads beside the app.*  A body is received when the app asks for it, so a client cannot fill memory with one.
When the app asks for more than the body, it waits for the client to disconnect.  On the ring bytes arrive without a
task that waits for them, so the first look needs no waiting: an app that asks in a cancelled scope, as Starlette's
``is_disconnected`` does, gets its answer.

*Several tasks of an app may send.*  They take turns in the order of their calls, and a file is one turn.  Several may wait
for the client to disconnect, too.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, final

import trio

from gain_trio._http import CONTINUE, Refused, Request
from gain_trio._kernel import heads
from gain_trio._server import ungrouped
from gain_trio._transports import was_reset

from ._asgi_types import Message
from ._client_side import ClientSide
from ._opened_file import OpenedFile
from ._response_heads import BODILESS, Head, checked_fields, checked_start, checked_value, field_lines, made_head

NOTHING, HELD, BEGUN, IN_FILE, AT_TRAILERS, DONE = range(6)
"""The states of a response: nothing was given; its start was, and is held; its head was sent, and its body goes on; a file
is the rest of it; only its trailers are missing; it is complete."""
JOINED: Final = 16 * 1024
"""Bytes of the longest body that is copied behind its head."""
GONE: Final = (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError)
"""What a connection raises whose client is gone, or too slow."""
_LAST_CHUNK: Final = b"0\r\n\r\n"
_KINDS: Final = frozenset("http.response." + kind for kind in ("start", "body", "pathsend", "trailers", "early_hint"))
"""The messages of an app that have a place in a response."""
_LOOKS: Final = 4
"""How often the server looks, in the time that a client may accept nothing, whether it has accepted something."""


EXCHANGE_DEFAULTS: Final[dict[str, object]] = {
    "phase": NOTHING,
    "status": 0,
    "headers": (),
    "size": 0,
    "closes": False,
    "is_incomplete": False,
    "is_told_gone": False,
    "is_usual": True,
    "expects": False,
    "_told_all": False,
    "_told_end": False,
    "_bodiless": False,
    "_chunked": False,
    "_left": None,
    "_wants_trailers": False,
    "_sends_trailers": False,
    "_in_trailers": False,
    "_watching": None,
    "_sending": False,
    "_line": None,
}
"""The state of an exchange that has just begun."""


class ExchangeInPython:
    """The base of the class of exchanges where the compiled modules are missing: see ``_ffi/heads/exchange.c``."""

    __slots__ = ()

    def __init__(self, http: ClientSide, request: Request) -> None:
        for name, value in (EXCHANGE_DEFAULTS | {"http": http, "request": request}).items():
            setattr(self, name, value)

    def send(self, message: Message) -> Coroutine[Any, Any, None]:
        """ASGI's ``send``: see :meth:`HttpExchange.send_in_python`."""
        return self.send_in_python(message)  # type: ignore[attr-defined, no-any-return]  # of the one class of this base


if TYPE_CHECKING or heads is None:
    _Exchange = ExchangeInPython
else:
    _Exchange = heads.Exchange


@final
class HttpExchange(_Exchange):
    """One request and its response: the ``receive`` and the ``send`` of an app.

    ``send()`` is the base's.  In C it does for the usual response what :meth:`send_in_python` does for any.
    """

    __slots__ = ("http", "request", *EXCHANGE_DEFAULTS)

    http: ClientSide
    request: Request
    phase: int
    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    size: int
    """Bytes of the body that were sent."""
    closes: bool
    """Whether the connection is closed after this exchange."""
    is_incomplete: bool
    """Whether a send was interrupted, so that the connection cannot go on."""
    is_told_gone: bool
    """Whether the app knows that the client is gone."""
    is_usual: bool
    """Whether the usual response keeps the connection, and has a body."""
    expects: bool
    """Whether the client waits for a 100 before it sends the body."""
    _told_all: bool  # the app has the whole body
    _told_end: bool  # the app has been given a disconnect without a wait
    _bodiless: bool
    _chunked: bool
    _left: int | None
    _wants_trailers: bool
    _sends_trailers: bool
    _in_trailers: bool
    _watching: tuple[trio.CancelScope, ...] | None  # of tasks that wait for the client to disconnect
    _sending: bool  # a task has its turn
    _line: trio.lowlevel.ParkingLot | None  # of tasks that wait for theirs

    # --- the request ---

    async def receive(self) -> Message:
        """ASGI's ``receive``: the next piece of the body, or the client's disconnect."""
        http = self.http
        if not self._told_all and self.phase != DONE and not http.is_gone:
            reader = http.reader
            if not reader.in_body:
                self._told_all = True
                return {"type": "http.request", "body": b"", "more_body": False}
            message = await self._next_piece()
            if message is not None:
                return message
        if self._told_end:
            await trio.lowlevel.checkpoint()  # an app that asks again and again keeps no other task from running
        self._told_end = self.phase == DONE or http.is_gone
        if self.phase == DONE:
            return {"type": "http.disconnect"}
        if not http.is_gone and not await http.look_for_end():
            await self._watch()
        self.is_told_gone = http.is_gone
        return {"type": "http.disconnect"}

    async def _watch(self) -> None:
        """Wait until the client is gone, or the response complete."""
        with trio.CancelScope() as scope:
            self._watching = (*(self._watching or ()), scope)
            try:
                await self.http.until_gone()
            finally:
                self._watching = tuple(other for other in self._watching if other is not scope) or None

    async def _next_piece(self) -> Message | None:
        """Wait for a piece of the body; None if the client is gone, or sends none."""
        http = self.http
        reader = http.reader
        if self.expects and not reader.unread and self.phase < BEGUN:
            self.expects = False
            await self._send(CONTINUE)
        self.expects = False
        try:
            while True:
                if reader.is_midway:
                    await trio.lowlevel.checkpoint()
                    if was_reset(http.connection):
                        http.is_ended = True
                        break
                body = reader.take_body()
                http.note_taken()
                more = reader.in_body
                if body or not more:
                    self._told_all = not more
                    return {"type": "http.request", "body": body, "more_body": more}
                if not reader.is_midway and not await http.receive_more(http.config.timeout_body):
                    break
        except Refused as refusal:
            http.refusal = refusal
        else:
            if not http.is_ended:
                http.refusal = Refused(HTTPStatus.REQUEST_TIMEOUT, "the body of the request took too long")
        http.is_gone = True
        return None

    # --- the response ---

    async def send_in_python(self, message: Message) -> None:  # noqa: C901 - the usual response in one coroutine: see HttpConnection.run()
        """ASGI's ``send``, of any message.

        Messages that follow a complete response are ignored.

        Raises:
          ClientDisconnected: the client is gone.
          RuntimeError, ValueError, TypeError: the message has no place here, or makes no sense.
        """
        kind = message["type"]
        if kind == "http.response.body":
            body = message.get("body", b"")
            if self.phase != HELD or not self.is_usual or type(body) is not bytes or message.get("more_body", False):
                await self._send_body(body, message.get("more_body", False))
                return
            http = self.http
            connection = http.connection
            now = http.clock()
            stamp = http.stamp
            if now >= stamp.until:
                stamp.refresh(now)
            if now >= http.renew_at:
                http.renew(now)
            length = len(body)
            key = (self.status, length, *self.headers)
            head = http.heads.get(key)
            if head is None or length > JOINED or connection._drains or http.is_gone:
                await self._send_body(body, False, key)
                return
            self.phase = DONE
            self.size = length
            self._end_watches()
            try:
                await connection.send(b"".join((head, stamp.tail, body)))
            except BaseException as error:
                failure = self.send_failed(error)
                if failure is error:
                    raise
                raise failure from error
        elif kind == "http.response.start":
            if self.phase:
                await self._misplaced(kind)
                return
            self._check_client()
            status = message["status"]
            self.headers = checked_start(status, message.get("headers", ()))
            self.status = status
            if message.get("trailers", False):
                self._wants_trailers = True
                self.is_usual = False
            self.phase = HELD
        else:
            await self._send_other(kind, message)

    async def _misplaced(self, kind: object) -> None:
        """A message has no place here: it is ignored after a complete response, and an error before."""
        if kind in _KINDS:
            if self.phase == DONE:
                await trio.lowlevel.checkpoint()  # an app that sends on and on keeps no other task from running
                return
            self._check_client()
        states = {
            NOTHING: "before the response has been started",
            HELD: "after the response has been started",
            BEGUN: "in the body of the response",
            IN_FILE: "while a file is sent for the body of the response",
            AT_TRAILERS: "after the body of the response",
            DONE: "after the response is complete",
        }
        raise RuntimeError(f"an app cannot send {kind!r} {states[self.phase]}")

    async def _send_other(self, kind: object, message: Message) -> None:
        if kind == "http.response.pathsend" and self.phase == HELD:
            await self._send_path(message["path"])
        elif kind == "http.response.trailers" and self.phase == AT_TRAILERS:
            await self._send_trailers(message)
        elif kind == "http.response.early_hint" and self.phase < DONE:
            if self.phase < BEGUN and self.request.framing.minor:  # later there is no place for it, nor in HTTP/1.0
                links = [(b"link", checked_value(link)) for link in message["links"]]
                self._check_client()
                await self._send(b"HTTP/1.1 103 Early Hints\r\n" + field_lines(links) + b"\r\n")
        else:
            await self._misplaced(kind)

    async def _send(self, data: bytes | Sequence[bytes]) -> None:
        """Send to the client, in time, when the tasks that have called before have sent theirs."""
        await self._begin_turn()
        try:
            await self._send_now(data)
        finally:
            self._end_turn()

    async def _begin_turn(self) -> None:
        if not self._sending:
            self._sending = True
            return
        if self._line is None:
            self._line = trio.lowlevel.ParkingLot()
        try:
            await self._line.park()  # the task that ends its turn leaves _sending set
        except trio.Cancelled:
            self.is_incomplete = True  # what follows counts with what is not sent
            raise

    def _end_turn(self) -> None:
        if self._line:
            self._line.unpark()
        else:
            self._sending = False

    async def _send_now(self, data: bytes | Sequence[bytes]) -> None:
        """The same in this task's turn."""
        self._check_client()
        http = self.http
        connection = http.connection
        http.renew(http.clock())
        size = len(data) if isinstance(data, bytes) else sum(len(piece) for piece in data)
        try:
            if connection.outbound_buffered + size < connection._marks.send_high:  # then it waits for nothing
                await connection.send(data)
            else:
                await self._while_accepted(functools.partial(connection.send, data))
        except BaseException as error:
            failure = self.send_failed(error)
            if failure is error:
                raise
            raise failure from error

    def send_failed(self, error: BaseException) -> BaseException:
        """The connection has raised this: return what the app's ``send`` raises."""
        if isinstance(error, GONE):
            gone = self.http.lost(self, error)
            gone.__cause__ = error
            return gone
        if not isinstance(error, trio.BusyResourceError):  # then it has sent nothing
            self.is_incomplete = True
        return error

    def _check_client(self) -> None:
        if self.http.is_gone:
            raise self.http.lost(self, None)

    def _begin(self, length: int | None, key: object = None) -> bytes:
        """The response begins: return its head.  ``length`` is that of the whole body, or None."""
        http = self.http
        now = http.clock()
        if now >= http.stamp.until:
            http.stamp.refresh(now)
        head = self._made_head(length)
        if key is not None and head.left == length:
            http.heads.remember(key, head)
        return head.ended(http.stamp)

    def _made_head(self, length: int | None) -> Head:
        framing = self.request.framing
        is_head = self.request.method == b"HEAD"
        head = made_head(
            self.status,
            self.headers,
            framing.minor,
            is_head=is_head,
            # A client that waits for a 100 may send the body after the response, or a request: the server cannot tell.
            closes=self.closes or framing.closes or self.expects or self.http.connection._drains,
            length=length,
            trailers=self._wants_trailers and framing.takes_trailers,
        )
        self.closes = head.closes
        self._bodiless = is_head or self.status in BODILESS
        self._chunked = head.chunked and not is_head
        self._sends_trailers = self._chunked and self._wants_trailers and framing.takes_trailers
        self._left = None if self._bodiless else head.left
        return head

    def _checked(self, body: Any, more: bool) -> None:
        """Check a piece of the body against the length that the client knows, before anything of it is sent."""
        if self._left is None:
            return
        self._left -= len(body)
        if self._left < 0:
            self._tear()
            raise RuntimeError("the body of the response is longer than its content-length")
        if self._left and not more:
            self._tear()
            raise RuntimeError("the body of the response is shorter than its content-length")

    def _tear(self) -> None:
        self.is_incomplete = self.phase > HELD

    async def _send_body(self, body: Any, more: bool, key: object = None) -> None:
        """Send a piece of the body, behind the head if it is the first."""
        if self.phase not in {HELD, BEGUN}:
            await self._misplaced("http.response.body")
            return
        self._check_client()
        if type(body) is not bytes:  # its length may count other things than bytes
            body = bytes(memoryview(body))
        head = self._begin(None if more else len(body), key) if self.phase == HELD else b""
        self._checked(body, more)
        self.phase = BEGUN
        if self._bodiless:
            body = b""
        self.size += len(body)
        ends_here = not more and not self._sends_trailers
        data = self._framed(head, body, ends_here=ends_here and self._chunked)
        if not more:
            self._end_body()
        if data:
            await self._send(data)

    def _framed(self, head: bytes, body: Any, *, ends_here: bool) -> bytes | Sequence[bytes]:
        """A piece of the body as it is sent."""
        pieces: list[Any] = [head]
        if self._chunked:
            if body:
                pieces += (b"%x\r\n" % len(body), body, b"\r\n")
            if ends_here:
                pieces.append(_LAST_CHUNK)
        else:
            pieces.append(body)
        return b"".join(pieces) if len(body) <= JOINED else [piece for piece in pieces if piece]

    def _end_body(self) -> None:
        if self._wants_trailers:
            self.phase = AT_TRAILERS
        else:
            self._complete()

    def _complete(self) -> None:
        self.phase = DONE
        self._end_watches()

    def _end_watches(self) -> None:
        for scope in self._watching or ():
            scope.cancel()

    async def _send_trailers(self, message: Message) -> None:
        """Send trailers, if the client takes some; others are dropped, as ASGI says."""
        fields = checked_fields(message.get("headers", ()))
        more = message.get("more_trailers", False)
        self._check_client()
        if not more:
            self._complete()
        if self._sends_trailers:
            first = b"" if self._in_trailers else b"0\r\n"
            self._in_trailers = True
            await self._send(first + field_lines(fields) + (b"" if more else b"\r\n"))

    async def _send_path(self, path: str | os.PathLike[str]) -> None:
        """Send a file for the whole body."""
        self._check_client()
        file = await trio.to_thread.run_sync(OpenedFile, path)
        try:
            head = self._begin(file.size)
            if self._left is not None and self._left != file.size:
                raise RuntimeError(f"the file has {file.size} bytes, and the content-length is {self._left}")
            content = b"" if self._bodiless else file.content
            ends_here = self._chunked and not self._sends_trailers
            if content is not None:
                self._end_body()
                self.size = len(content)
                await self._send(self._framed(head, content, ends_here=ends_here))
                return
            self.phase = IN_FILE
            await self._begin_turn()
            try:
                await self._send_now(b"%b%x\r\n" % (head, file.size) if self._chunked else head)
                await self._send_opened(file)
                self._end_body()
                if self._chunked:
                    await self._send_now(b"\r\n" + _LAST_CHUNK if ends_here else b"\r\n")
            finally:
                self._end_turn()
        finally:
            file.close()

    async def _send_opened(self, file: OpenedFile) -> None:
        """The same of an opened file's content, in this task's turn."""
        http = self.http
        try:
            await self._while_accepted(functools.partial(http.connection._send_source, file.source))
        except GONE as error:
            raise http.lost(self, error) from error
        except BaseException:
            self.is_incomplete = True
            raise
        self.size = file.size

    async def _while_accepted(self, send: Callable[[], Awaitable[object]]) -> None:
        """Await ``send()``, which has as much time as it takes while the client accepts something."""
        with ungrouped():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._allow_time, name="gain_trio watch of a response")
                await send()
                nursery.cancel_scope.cancel()

    async def _allow_time(self) -> None:
        """Move the deadline of sending away for as long as the client accepts something, however slow it is."""
        connection, timeout = self.http.connection, self.http.config.timeout_send
        before = -1
        while True:
            accepted = connection.bytes_sent - (connection._unacknowledged() or 0)
            if accepted != before:
                connection.write_deadline = self.http.clock() + timeout
                before = accepted
            await trio.sleep(timeout / _LOOKS)

"""The loop of one connection: a request, the app's call, the next request.

The app runs in the connection's own task (see ``_app_context.py``).  Three things follow.

*The connection is read by one task.*  Between two requests the loop receives, during one the exchange does, and only
when the app asks.  So back-pressure needs no machinery.

*An app that leaves a cancel scope or a nursery open* would poison the requests after it.  The loop looks for that after each
request, closes the scope, reports an error, and closes the connection.

*The time is looked at once a request*, with the head of the response, and deadlines move once a second: a store each.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
import os
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from http import HTTPStatus
from typing import Any, Final, TypeAlias, final
from urllib.parse import quote, unquote

import trio

from gain_trio._http import Refused, Request, RequestReader, linger, response, split_target
from gain_trio._io_manager import cancel_status_of, leave_open_scopes
from gain_trio._kernel import heads
from gain_trio._server import own_fault
from gain_trio._transports import Connection, was_reset

from ._app_context import call_app, in_context, in_task
from ._asgi_types import ClientDisconnected, Receive, Scope, Send
from ._client_side import Response
from ._client_watch import ClientWatch
from ._exchange import BEGUN, DONE, EXCHANGE_DEFAULTS, GONE, HELD, JOINED, NOTHING, HttpExchange
from ._read_only import ReadOnly
from ._response_heads import STATUS_LINES, Stamp
from ._served_app import ServedApp
from ._tls_extension import tls_extension

_RENEWED: Final = 1.0
"""Seconds for which deadlines are not moved again."""
_NOT_RENEWED: Final = -math.inf
_SAFE: Final = "/:@!$&'()*+,;="
"""What a path may have as it is, beside letters, digits and the like (RFC 3986, 3.3)."""
_MAX_TARGET: Final = 256
"""Bytes of the longest target whose meaning is remembered: none with a query, which may carry a secret."""


@final
class HttpConnection:
    """One connection of a server of an ASGI app.

    Args:
      handler: what the connection shares with the others of its process.
      connection: its socket.
      websocket: what serves WebSockets; without it a request to upgrade is an ordinary one.
    """

    __slots__ = (
        "_ahead",
        "_ahead_size",
        "_extensions",
        "_last",
        "_line",
        "_template",
        "_watch",
        "_websocket",
        "clock",
        "config",
        "connection",
        "handler",
        "heads",
        "is_ended",
        "is_gone",
        "is_receiving",
        "reader",
        "refusal",
        "renew_at",
        "stamp",
    )

    def __init__(self, handler: ServedApp, connection: Connection, websocket: WebSocketHandler | None) -> None:
        self.handler = handler
        self._websocket = websocket
        self.connection = connection
        self.config = handler.config
        self.heads = handler.heads
        self.stamp = handler.stamp
        self.reader = RequestReader(handler.memory, handler.limits)
        self.clock = handler.clock()
        self.renew_at = _NOT_RENEWED
        """When the deadlines are to be moved, on Trio's clock."""
        self.is_ended = False
        """Whether the peer has ended its side, or is gone."""
        self.is_gone = False
        """Whether the app is to receive ``http.disconnect``."""
        self.is_receiving = False
        """Whether a task receives during a request: then the deadline of reading is its own."""
        self.refusal: Refused | None = None
        """The answer to a request whose body was refused."""
        self._watch: ClientWatch | None = None  # while it receives beside the app
        self._ahead: list[bytes] | None = None  # what was received behind the request in progress
        self._ahead_size = 0
        self._line: trio.lowlevel.ParkingLot | None = None  # of tasks that wait for the one that receives
        self._extensions: dict[str, ReadOnly] = self.handler.extensions
        self._template = self._base_scope()
        self._last: Request | None = None  # the one whose scope the template is of

    def _base_scope(self) -> dict[str, Any]:
        connection = self.connection
        base: dict[str, Any] = dict(self.handler.base_scope)
        client, server = connection.remote_address, connection.local_address
        base["client"] = client[:2] if isinstance(client, tuple) else None
        base["server"] = server[:2] if isinstance(server, tuple) else (_path_text(server), None)
        if connection.tls_version() is not None:
            base["scheme"] = "https"
            self._extensions = {**self._extensions, "tls": ReadOnly(tls_extension(connection))}
        return base

    # --- receiving ---

    def renew(self, now: float) -> None:
        """Move the deadlines away: that of the wait for the next request, and that of sending."""
        config = self.config
        connection = self.connection
        if not self.is_receiving:
            connection.read_deadline = now + config.timeout_keep_alive + _RENEWED
        connection.write_deadline = now + config.timeout_send + _RENEWED
        self.renew_at = now + _RENEWED

    async def receive_more(self, timeout: float) -> bool:  # noqa: ASYNC109 - the connection keeps it, no scope
        """Wait for bytes and give them to the reader; False if none came in time, or the peer has ended its side."""
        if self._watch is not None:
            return await self._watch.more(timeout)
        return await self._receive_until(self.clock() + timeout)

    def note_taken(self) -> None:
        """The app has taken what there was of the body."""
        if self._watch is not None:
            self._watch.note_taken()

    async def _receive_until(self, deadline: float) -> bool:
        data = await self._received_by(deadline)
        if data:
            self.reader.feed(data)
        elif data is not None:
            self.is_ended = True
        return bool(data)

    async def _received_by(self, deadline: float) -> bytes | None:
        """What the client sends; ``b""`` if it has ended its side, or is gone; None if nothing came by the deadline."""
        if self.is_receiving:
            raise trio.BusyResourceError("another task of the app is already receiving")
        self.is_receiving = True
        self.connection.read_deadline = deadline
        try:
            return await self.connection.receive()
        except trio.TooSlowError:
            return None
        except trio.BrokenResourceError:
            return b""
        finally:
            self.is_receiving = False
            self.renew_at = _NOT_RENEWED
            if self._line is not None:
                self._line.unpark_all()

    async def look_for_end(self) -> bool:
        """Return whether the client is gone, without waiting for it.

        It is shielded, because apps ask in a cancelled scope.
        """
        if self._watch is not None or self.is_receiving:
            return self.is_gone
        with trio.CancelScope(shield=True):
            while not self.is_gone and self._ahead_size < self.config.limit_ahead:
                if not await self._receive_ahead(-math.inf):
                    break
        return self.is_gone

    async def until_gone(self) -> None:
        """Wait until the client is gone; for ever if it sends more than the limit before that."""
        if self._watch is not None:
            await self._watch.until_gone()
            return
        while not self.is_gone:
            if self._ahead_size >= self.config.limit_ahead:
                await trio.sleep_forever()
            if self.is_receiving:  # another task waits for the same
                if self._line is None:
                    self._line = trio.lowlevel.ParkingLot()
                await self._line.park()
            else:
                await self._receive_ahead(math.inf)

    async def _receive_ahead(self, deadline: float) -> bool:
        """Receive what comes behind the request in progress; False if nothing came by the deadline."""
        data = await self._received_by(deadline)
        if data is None:
            return False
        if data:
            if self._ahead is None:
                self._ahead = []
            self._ahead.append(data)
            self._ahead_size += len(data)
        else:
            self.is_ended = self.is_gone = True
        return True

    def lost(self, response: Response, error: BaseException | None) -> ClientDisconnected:
        """The client is gone, or too slow: return what ``send`` raises, with the reset done that this takes."""
        self.is_ended = self.is_gone = True
        response.is_told_gone = response.is_incomplete = True
        if isinstance(error, trio.TooSlowError):
            self.connection.abort()
            return ClientDisconnected("the client reads too slowly")
        return ClientDisconnected("the client is gone")

    # --- the loop ---

    async def run(self) -> None:  # noqa: C901, PLR0912, PLR0915 - a coroutine of its own for a part of it costs 5 % of a request
        """Serve the connection until it is over."""
        handler, reader, connection = self.handler, self.reader, self.connection
        app, is_plain, receive, clock = handler.app, handler.is_plain, connection.receive, self.clock
        task = trio.lowlevel.current_task()
        status, nurseries = cancel_status_of(task), len(task.child_nurseries)
        context = task.context.copy()
        has_begun = False
        exchange = None
        connection.read_deadline = clock() + self.config.timeout_head
        try:
            while True:
                if reader.has_more:
                    request = reader.next_request()
                elif reader.in_head:
                    request = await self._receive_head()
                elif self.is_ended:
                    return
                else:
                    if has_begun:  # the app may have taken its time behind the response
                        now = clock()
                        if now >= self.renew_at:
                            self.renew(now)
                    has_begun = True
                    data = b""  # a connection that waits holds nothing of the request before
                    request = scope = exchange = None  # the same
                    # What MessageLoop._first_of_message() does.
                    connection._between = True  # type: ignore[misc]  # a slot of the implementation
                    if connection._drains:
                        connection._set_drain_deadline()
                    try:
                        data = await receive()
                    except trio.TooSlowError:
                        return
                    finally:
                        connection._between = False  # type: ignore[misc]  # the same
                    if not data:
                        return
                    if connection._drain_deadline is not None:
                        connection._restore_deadline(connection._drain_deadline)
                    request = reader.feed_request(data)
                if request is None:
                    continue
                scope = self._scope_of(request)
                exchange = HttpExchange(self, request)
                if not request.derived[1]:
                    exchange.is_usual, exchange.expects = False, request.framing.expects
                    if self._websocket is not None and _asks_for_websocket(request):
                        await self._hand_over(self._websocket, request, scope, exchange)
                        return
                observer = handler.observer
                token = None if observer is None else observer.began(scope)
                failure: BaseException | None = None
                failed: Exception | None = None
                try:
                    try:
                        if is_plain and not handler.sets_variables:
                            await app(scope, exchange.receive, exchange.send)
                        else:
                            await self._call(context.copy(), scope, exchange)
                    except Exception as error:  # noqa: BLE001 - it is raised again, after an answer
                        failed = error
                    except trio.Cancelled:
                        if cancel_status_of(task) is status:
                            raise  # otherwise it may belong to a scope that the app has left open
                    if is_plain and not handler.sets_variables and not _is_same(copy_context(), context):
                        handler.sets_variables = True
                    if cancel_status_of(task) is not status:
                        leave_open_scopes(task, status, nurseries)
                        failed = _left_open(failed)
                    if (
                        failed is None
                        and exchange.phase == DONE
                        and not (exchange.closes or exchange.is_incomplete or reader.in_body or self._ahead)
                    ):
                        continue
                    if not await self._finish(exchange, failed):
                        return
                except BaseException as error:
                    failure = error
                    raise
                finally:
                    if observer is not None:
                        observer.ended(token, scope, exchange.status, exchange.size, failure)
        except Refused as refusal:
            await self._refuse(refusal.status, str(refusal), exchange if refusal is self.refusal else None)

    def _scope_of(self, request: Request) -> dict[str, Any]:
        """The scope of a request."""
        if request is self._last:
            scope = self._template.copy()
        else:
            derived = request.derived
            if derived is None:
                derived = request.derived = self._derived(request)
            else:  # it is repeated, and may be so again
                self._template = {**self._template, **derived[0]}
                self._last = request
            scope = {**self._template, **derived[0]}
        scope["headers"] = list(request.pairs)
        scope["extensions"] = self._extensions.copy()
        state = self.handler.state
        if state is not None:
            scope["state"] = state.copy()
        return scope

    def _derived(self, request: Request) -> tuple[dict[str, Any], bool]:
        """What a scope has of the request alone, and whether the usual response keeps the connection."""
        framing = request.framing
        key = request.method, request.target, framing.minor
        known = self.handler.targets
        parts = known.get(key)
        if parts is None:
            raw, query = split_target(request.target)
            path = raw.decode("ascii")
            root = "" if path == "*" else self.config.root_path  # OPTIONS * asks about the whole server
            parts = {
                # ASGI wants capitals.  The framing goes by what the client has sent: "head" is no HEAD to a proxy.
                "method": request.method.decode("ascii").upper(),
                "path": root + (unquote(path) if "%" in path else path),
                "raw_path": quote(root, safe=_SAFE).encode("ascii") + raw,
                "query_string": query,
                "http_version": "1.1" if framing.minor else "1.0",
            }
            if len(request.target) <= _MAX_TARGET and b"?" not in request.target:
                known.remember(key, parts)
        unusual = framing.closes or framing.expects or framing.upgrades or request.method == b"HEAD"
        return parts, not unusual and framing.minor == 1

    async def _receive_head(self) -> Request:
        """Receive the rest of a head."""
        deadline = self.clock() + self.config.timeout_head
        while True:
            if not await self._receive_until(deadline):
                if self.is_ended:
                    raise Refused(HTTPStatus.BAD_REQUEST, "the connection ended in the middle of a request")
                raise Refused(HTTPStatus.REQUEST_TIMEOUT, "the request took too long")
            request = self.reader.next_request()
            if request is not None:
                return request

    async def _hand_over(
        self, websocket: WebSocketHandler, request: Request, scope: dict[str, Any], exchange: HttpExchange
    ) -> None:
        exchange.closes = True
        self.connection.set_deadline(math.inf)
        self.renew_at = _NOT_RENEWED
        await websocket(self, request, scope, exchange)

    async def run_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app in a context of its own."""
        await in_context(contextvars.copy_context(), call_app(self.handler.app, scope, receive, send))

    async def _call(self, context: contextvars.Context, scope: Scope, exchange: HttpExchange) -> None:
        """Call the app as the configuration wants it, in a context of its own."""
        handler, config = self.handler, self.config
        call = functools.partial(call_app, handler.app, scope, exchange.receive, exchange.send)
        if config.task_per_request:
            call = functools.partial(in_task, call, handler.__qualname__)
        if not config.cancel_on_disconnect:
            await in_context(context, call())
            return
        self._watch = ClientWatch(self, exchange)
        try:
            await self._watch.call(lambda: in_context(context, call()))
        finally:
            self._watch = None
            self.is_receiving = False
            self.renew_at = _NOT_RENEWED

    # --- the end of a request ---

    async def _finish(self, exchange: HttpExchange, failure: Exception | None) -> bool:
        """End a request that is not over in the usual way.  Returns whether the connection goes on.

        Raises:
          Refused: the request gets this for its answer.
          trio.BrokenResourceError: the client is gone, and the app has done nothing wrong.
          Exception: what the app has raised, or did wrong.
        """
        if failure is None and exchange.phase != DONE and not self.is_gone:
            failure = RuntimeError("the app has returned without completing its response")
        if failure is not None and not exchange.is_told_gone:
            # The server may end meanwhile: the failure is raised even so, and a cancelled scope cancels the next wait, too.
            with contextlib.suppress(trio.Cancelled):
                await self._answer_failure(exchange)
            raise own_fault(failure)
        if self.refusal is not None and exchange.phase < BEGUN:
            exchange.status = self.refusal.status
            raise self.refusal
        if failure is not None:
            raise trio.BrokenResourceError("the client is gone") from failure
        if exchange.phase != DONE or exchange.is_incomplete:
            self.connection.abort()
            return False
        if exchange.closes or self.is_gone or not await self._skip_body():
            await self._linger()
            return False
        if self._ahead:
            self.reader.feed(b"".join(self._ahead))
            self._ahead = None
            self._ahead_size = 0
        return True

    async def _answer_failure(self, exchange: HttpExchange) -> None:
        """Tell the client that the app has failed: by an answer, or by the end of the connection in the middle of one."""
        if exchange.phase == DONE and not exchange.is_incomplete:
            with contextlib.suppress(*GONE):
                await self.connection.flush()
            await self._linger()  # the app may have left a body unread, whose reset would overtake the response
        elif exchange.phase < BEGUN:
            exchange.status = HTTPStatus.INTERNAL_SERVER_ERROR
            await self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.INTERNAL_SERVER_ERROR.phrase, exchange)
        else:  # the client gets what the app has sent before, as far as it accepts it in time
            with contextlib.suppress(*GONE, trio.BusyResourceError):
                await self.connection.flush()
            self.connection.abort()

    async def _skip_body(self) -> bool:
        """Receive and drop what the app has not read of the body; False if that is too much, or malformed."""
        reader = self.reader
        left = self.config.limit_unread
        deadline = self.clock() + self.config.timeout_body
        try:
            while True:
                left -= len(reader.take_body())
                if left < 0:
                    return False
                if not reader.in_body:
                    return True
                if reader.is_midway:
                    await trio.lowlevel.checkpoint()
                    if was_reset(self.connection):
                        return False
                elif not await self._receive_until(deadline):
                    return False
        except Refused:  # the response has been sent
            return False

    async def _refuse(self, status: HTTPStatus, reason: str, exchange: HttpExchange | None) -> None:
        """Answer with an error, and end the connection so that the answer arrives.

        ``exchange`` is that of the request, or None if its head was refused.
        """
        is_head = self.reader.wants_no_content if exchange is None else exchange.request.method == b"HEAD"
        now = self.clock()
        stamp = self.stamp
        if now >= stamp.until:
            stamp.refresh(now)
        self.renew(now)
        data = response(
            status,
            reason.encode("ascii") + b"\n",
            first=stamp.server_line + stamp.date_line,
            last=b"connection: close\r\n",
            with_content=not is_head,
        )
        with contextlib.suppress(trio.BrokenResourceError, trio.TooSlowError):
            await self.connection.send(data)
            await self._linger()

    async def _linger(self) -> None:
        self.renew_at = _NOT_RENEWED
        with contextlib.suppress(trio.BrokenResourceError, trio.TooSlowError):
            await linger(self.connection)


WebSocketHandler: TypeAlias = Callable[[HttpConnection, Request, dict[str, Any], HttpExchange], Awaitable[None]]
"""An async function that takes a connection over with the request that asks for it, the scope, and the exchange by which to
answer as HTTP.  The connection is over when it returns."""

if heads is not None:
    heads.configure(HttpExchange, HttpConnection, Stamp, EXCHANGE_DEFAULTS, STATUS_LINES, (NOTHING, HELD, DONE), JOINED)


def _asks_for_websocket(request: Request) -> bool:
    framing = request.framing
    return b"websocket" in framing.upgrades and request.method == b"GET" and framing.length == 0


def _is_same(context: contextvars.Context, other: contextvars.Context) -> bool:
    """Whether the variables have the same values in both: nearly always because they are one mapping."""
    try:
        return context == other
    except Exception:  # noqa: BLE001 - a value that cannot be compared is another one
        return False


def _left_open(failure: BaseException | None) -> RuntimeError:
    error = RuntimeError("the app has left a cancel scope or a nursery open")
    error.__cause__ = failure
    return error


def _path_text(path: str | bytes) -> str:
    """The path of a Unix socket; an abstract name begins with a NUL."""
    return path if isinstance(path, str) else os.fsdecode(path)

"""The fuzzer's targets: for each parser a function of bytes, which raises an AssertionError if an invariant is broken.

They need no fuzzer: ``test_fuzz_corpus.py`` runs them on the corpus.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, cast

from gain_trio._http import Limits, Refused, Request, RequestMemory, RequestReader, split_target
from gain_trio._http._head_splitting import (
    begins,
    begins_in_python,
    repeated,
    repeated_in_python,
    split_head,
    split_in_python,
)
from gain_trio._http._http_handler import SITE
from gain_trio._http._http_requests import Exchange, Phase
from gain_trio._http._request_reader import MAX_HEAD
from gain_trio._server._metrics import _exposition, _MetricsHandler
from gain_trio._server._program_metrics import GatheredMetrics
from gain_trio._transports._addresses._shown import MOST, shown, shown_lines, shown_traceback
from gain_trio._transports._connections._framing import Framing, IncompleteMessage, MessageTooLong
from gain_trio._transports._connections._proxy_protocol import (
    NeedMore,
    ProxyHeader,
    ProxyProtocolError,
    parse_proxy_header,
)
from gain_trio.asgi import AsgiConfig
from gain_trio.asgi._proxy_headers import TrustedProxies
from gain_trio.asgi._websocket_codec import MAX_CONTROL, WebSocketCodec


def expect(holds: bool, invariant: str) -> None:
    """Raise an AssertionError if the invariant does not hold."""
    if not holds:
        raise AssertionError(invariant)


# --- the PROXY protocol ---


def _answer(data: bytes) -> ProxyHeader | NeedMore | None:
    try:
        return parse_proxy_header(data)
    except ProxyProtocolError as error:
        expect(shown(error, len(str(error))) == str(error), "an error's message can be shown as it is")
        return None


def proxy(data: bytes) -> None:
    """Every beginning of the data: the parser asks for more than there is, or answers and stays with its answer."""
    final: ProxyHeader | None = None
    asked = 0
    for size in range(min(len(data), 600) + 1):
        found = _answer(data[:size])
        if isinstance(found, NeedMore):
            expect(final is None, "what was whole is whole")
            expect(found.count > size, "it asks for more than there is")
            asked = max(asked, found.count)
            continue
        if found is None:
            expect(final is None, "what was whole is not refused")
            expect(_answer(data) is None, "what is refused stays refused")
            return
        expect(15 <= found.length <= size, "a header is no longer than what has arrived")
        expect(final is None or final == found, "more bytes do not change the header")
        final = found
        _look_at(found)


def _look_at(header: ProxyHeader) -> None:
    expect(header.authority is None or header.authority.encode() is not None, "the authority is text")
    expect(header.unique_id is None or len(header.unique_id) <= 128, "the unique id is short")
    for address in (header.source, header.destination):
        expect(address is None or isinstance(address, str | bytes | tuple), "an address is as socket gives it")
        if isinstance(address, tuple):
            expect(0 <= address[1] <= 65535, "a port is a port")


# --- HTTP ---

_ANSWERED = {b"200", b"404", b"405"}
_STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ")


def _talk(pieces: Iterator[bytes]) -> tuple[list[bytes], Phase]:
    """The statuses of all answers, with refusals alike and without 100, because these depend on the pieces."""
    exchange = Exchange(SITE)
    answers = b""
    for piece in pieces:
        answers += exchange.feed(piece)
        expect(exchange._reader.unread <= MAX_HEAD, "what is kept of a request is bounded")
    phase = exchange.phase
    answers += exchange.feed_eof()
    expect(exchange.phase is Phase.OVER, "the end is the end")
    statuses = [status for status in _STATUS.findall(answers) if status != b"100"]
    expect(b"500" not in statuses, "the reader makes progress")
    return [status if status in _ANSWERED else b"refused" for status in statuses], phase


def http(data: bytes) -> None:
    """Check that pieces, whose size the first byte chooses, get the same answers as all of the data at once."""
    size, data = (data[0] or 1, data[1:]) if data else (1, b"")
    whole = _talk(iter([data]))
    expect(_talk(data[start : start + size] for start in range(0, len(data), size)) == whole, "pieces do not matter")
    expect(b"refused" not in whole[0][:-1], "after a refusal there is nothing")


def heads(data: bytes) -> None:
    """Check that heads are split and recognised in C as in Python, from each of the first bytes on."""
    memory: dict[bytes, int] = {}
    for position in range(min(len(data), 64)):
        found = split_head(data, position)
        expect(found == split_in_python(data, position), "C splits a head as Python does")
        if found is not None:
            memory[data[position : found[4]]] = position
    for most in (16, 1024):
        for position in range(min(len(data), 64)):
            expect(
                repeated(memory, data, position, most) == repeated_in_python(memory, data, position, most),
                "C finds the heads of a memory as Python does",
            )
    for whole in memory:
        for position in range(min(len(data), 64)):
            expect(
                begins(data, position, whole) is begins_in_python(data, position, whole),
                "C finds where a head begins as Python does",
            )


_MEMORY = RequestMemory()
_REQUEST_LIMITS = Limits(head=600)


def _requests(pieces: Iterator[bytes], memory: RequestMemory) -> tuple[list[tuple[object, ...]], bool]:
    """What a reader finds in these pieces: each request with its body, and whether it refuses what follows."""
    reader = RequestReader(memory, _REQUEST_LIMITS)
    found: list[tuple[object, ...]] = []
    request: Request | None = None
    body = b""
    try:
        for piece in pieces:
            if request is None:
                request = reader.feed_request(piece)
            else:
                reader.feed(piece)
            while request is not None:
                body += reader.take_body()
                if reader.in_body:
                    break
                framing = request.framing
                found.append((request.method, request.target, request.pairs, framing.minor, framing.closes, body))
                request, body = reader.next_request(), b""
            expect(reader.unread <= 600 or request is not None, "what is kept of a head is bounded")
    except Refused as refusal:
        expect(refusal.status != 500, "the reader makes progress")
        return found, True
    return found, False


def requests(data: bytes) -> None:
    """Check that neither pieces, whose size the first byte chooses, nor what a memory holds changes what is read."""
    size, data = (data[0] or 1, data[1:]) if data else (1, b"")
    whole = _requests(iter([data]), RequestMemory())
    expect(_requests(iter([data]), _MEMORY) == whole, "a memory does not matter")
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    expect(_requests(iter(pieces), _MEMORY) == whole, "pieces do not matter")
    for _method, target, pairs, *_ in whole[0]:
        expect(isinstance(target, bytes) and target.isascii() and b"#" not in target, "a target is ASCII")
        path, query = split_target(target)
        expect(path == b"*" or path.startswith(b"/"), "a path begins with a slash")
        expect(b"?" not in path and query in target, "a path has no query")
        expect(isinstance(pairs, tuple) and not any(b"\r" in value or b"\n" in value for _, value in pairs), "one line")


# --- messages out of a stream ---


class Queue(Framing):
    """A connection's queue, filled from given pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._queue = b""
        self._waited_for = -1

    def begin(self) -> None:
        """A call begins, which may ask for what is there already."""
        self._waited_for = -1

    async def _fill(self, count: int, /) -> int:
        expect(count > self._waited_for, "each wait of a call is for more than the last one")
        expect(self._waited_for < 0 or count > len(self._queue), "it asks for more than there is")
        self._waited_for = count
        while len(self._queue) < count and (piece := next(self._pieces, b"")):
            self._queue += piece
        return len(self._queue)

    def _find(self, separator: bytes, start: int, /) -> int:
        expect(0 <= start <= len(self._queue), "a search begins within the queue")
        return self._queue.find(separator, start)

    def next(self, count: int | None = None, /) -> bytes:
        """See :meth:`Connection.next`."""
        count = len(self._queue) if count is None else count
        taken, self._queue = self._queue[:count], self._queue[count:]
        return taken

    def _take_exactly(self, count: int, /) -> bytes | None:
        """See :meth:`Framing._take_exactly`."""
        return self.next(count) if count <= len(self._queue) else None


def _result(call: Coroutine[Any, Any, bytes | None]) -> bytes | None:
    try:
        call.send(None)
    except StopIteration as stop:
        result: bytes | None = stop.value
        return result
    raise AssertionError("it waits, and there is no scheduler")


def framing(data: bytes) -> None:
    """Three bytes choose the call, the limit and the pieces."""
    if len(data) < 3:
        return
    kind, limit, size, data = data[0], data[1] + 4, data[2] or 1, data[3:]
    separator = (b"\n", b"\r\n", b"aa", b"\r\n\r\n")[kind % 4]
    queue = Queue(data[start : start + size] for start in range(0, len(data), size))
    taken = b""
    for _ in range(len(data) + 2):
        queue.begin()
        try:
            if kind % 3 == 0:
                message = _result(queue.receive_until(separator, max_bytes=limit))
            elif kind % 3 == 1:
                message = _result(queue.receive_line(max_bytes=limit))
            else:
                message = _result(queue.receive_exactly(limit))
        except (IncompleteMessage, MessageTooLong):
            break
        if message is None:
            break
        expect(len(message) <= limit, "a message is no longer than allowed")
        if kind % 3 != 1:
            taken += message
            expect(data.startswith(taken), "nothing is lost, and nothing changed")
    else:
        raise AssertionError("there are more messages than bytes")


# --- requests for metrics ---

_METRICS = _MetricsHandler(cast(Any, types.SimpleNamespace(_is_ready=lambda: True)))
_HEAD = re.compile(
    rb"HTTP/1\.1 (200|400|404|405|414|417|431|501|505) [A-Za-z -]+\r\n(?:[A-Za-z-]+: [\x20-\x7e]+\r\n)+\r\n"
)


def metrics(data: bytes) -> None:
    """Any head has an answer, whose own head nothing of the request can break."""
    for head in (data, b"GET /metrics HTTP/1.1\r\nAccept: " + data):
        head, _, _ = head.partition(b"\r\n\r\n")  # noqa: PLW2901 - as the endpoint receives it
        scrape = _METRICS._understood(head)
        if not isinstance(scrape, bytes):
            scrape = scrape.answer(*_exposition(scrape.accept, [], GatheredMetrics())[:2])
        expect(_HEAD.match(scrape) is not None, "the answer is well-formed")


# --- what is shown ---


def text(data: bytes) -> None:
    """Check that shown text is printable and bounded, in one line or in each of several."""
    for value in (
        data,
        data.decode("utf-8", "surrogateescape"),
        data.decode("latin-1"),
        data.decode("utf-16", "replace"),
    ):
        line = shown(value)
        expect(line.isprintable(), "a line is printable")
        expect(len(line) <= 10 * MOST + 40, "a line is bounded")
        lines = shown_lines(str(value)).split("\n")
        expect(
            all(part.isprintable() and part.startswith("    ") for part in lines), "lines are printable and indented"
        )
        parts = shown_traceback(ValueError(value)).split("\n")
        expect(parts[0].startswith("ValueError"), "an exception's first line has its type")
        expect(all(part.isprintable() and part.startswith("  ") for part in parts[1:]), "so are those of a message")


# --- WebSocket ---

_HANDSHAKE = (
    (b"upgrade", b"websocket"),
    (b"connection", b"upgrade"),
    (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    (b"sec-websocket-version", b"13"),
    (b"sec-websocket-extensions", b"permessage-deflate"),
)
_MAX_MESSAGE = 4096


def _messages(pieces: Iterator[bytes], *, compresses: bool) -> tuple[list[object], bytes, object]:
    """The messages in these pieces, the answers to control frames, and the end."""
    codec = WebSocketCodec(AsgiConfig(ws_max_size=_MAX_MESSAGE))
    codec.handshake(_HANDSHAKE[: 5 if compresses else 4])
    found: list[object] = []
    for piece in pieces:
        codec.feed(piece)
        while (message := codec.next_message()) is not None:
            content = message["text"] if "text" in message else message["bytes"]
            expect(len(content) <= _MAX_MESSAGE, "a message is not longer than the limit")
            found.append(content)
        expect(codec.is_open or codec.end is not None, "what is over has an end")
        expect(len(codec.control) <= MAX_CONTROL, "control frames are bounded")
    return found, codec.control, codec.end


def websocket(data: bytes) -> None:
    """Check that pieces, whose size the first byte chooses, are the same messages as all of the data at once."""
    if not data:
        return
    size, compresses, data = (data[0] & 0x7F) + 1, data[0] >= 0x80, data[1:]
    whole = _messages(iter([data]), compresses=compresses)
    pieces = (data[begin : begin + size] for begin in range(0, len(data), size))
    expect(_messages(pieces, compresses=compresses) == whole, "pieces are read like the whole")


# --- what proxies say ---


def proxied(data: bytes) -> None:
    """Check that nothing in front of the address that a proxy has appended changes what the client is."""
    for fields, name, last in (
        ("x-forwarded", b"x-forwarded-for", b"192.0.2.1"),
        ("forwarded", b"forwarded", b"for=192.0.2.1"),
    ):
        proxies = TrustedProxies(fields=fields, host=True)  # type: ignore[arg-type]  # a family
        for headers in ([(name, data)], [(name, data), (name, last)], [(name, data + b", " + last)]):
            scope: dict[str, Any] = {"type": "http", "scheme": "http", "client": None, "headers": headers}
            proxies.apply(scope)
            client = scope["client"]
            expect(client is None or 0 <= client[1] <= 65535, "a client has a port")
            if len(headers) == 2:
                expect(client == ("192.0.2.1", 0), "the proxy says who the client is")
            elif headers[0][1] is not data:
                expect(client in (None, ("192.0.2.1", 0)), "the proxy says who the client is, or nothing counts")


TARGETS: dict[str, Callable[[bytes], None]] = {
    "proxy": proxy,
    "http": http,
    "requests": requests,
    "heads": heads,
    "framing": framing,
    "metrics": metrics,
    "text": text,
    "websocket": websocket,
    "proxied": proxied,
}
"""By name; the corpus of each is the folder of that name in ``corpus``."""

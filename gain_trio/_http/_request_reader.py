"""HTTP/1.1 requests as bytes in, and heads and bodies out, without any I/O.

Everything here that speaks HTTP reads requests by this reader: the handler ``http``, the endpoint of the statistics, and
:mod:`gain_trio.asgi`.  Its caller moves the bytes and keeps the time.  The reader reads what RFC 9112 defines, and decides
the following.

*Strict where two readers could disagree.*  An attacker smuggles requests past a proxy that sees other boundaries between
them than this server does.  So the reader refuses, and the caller closes the connection, for: a bare LF, white space before
a colon, a folded field, Content-Length beside Transfer-Encoding, several lengths, Transfer-Encoding in HTTP/1.0, an empty
member in a list of codings, white space around a chunk's size, a framing field in the trailers, more than one empty line
before a request, and a target that is neither a path nor a URL.  Some of them could be understood.  A test holds that the
reader refuses whatever h11 or llhttp refuses.

*One regular expression reads a head*, or C that does the same (``_head_splitting.py``).  It finds the end of the head,
validates it and splits it.  No two of its neighbouring parts can match the same byte, so it fails in linear time, too.  When
a head arrives in pieces, the reader does not match it again for each piece: it searches for the end only, from where the
last search stopped.

*Clients repeat themselves.*  The connections of a server share a :class:`RequestMemory`: what a whole request, a section of
fields or a line meant before, it means again.  The memory is bounded in bytes, and holds no line that carries a secret
(:data:`SECRETS`), no section that has such a line, and no target with a query.

*Everything has a limit*: the head (431, or 414 if the target is too long), the body if the caller asks for it (413), a
chunk's size line (400), the trailers (431).
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final, final

import attrs

from ._head_splitting import begins, repeated, split_head
from ._http_heads import MAX_METHOD, TOKEN
from ._request_fields import (
    CHUNKED,
    MAX_WHOLE,
    Refused,
    Request,
    RequestMemory,
    Section,
    host_replaced,
    read_section,
)

MAX_HEAD: Final = 16 * 1024
"""Bytes of a request's line and fields, and of its trailers, where the caller sets no limit of its own."""
MAX_SIZE_LINE: Final = 256
"""Bytes of a chunk's size line, with its extensions."""
MAX_EMPTY_LINES: Final = 1
"""Empty lines that may precede a request (RFC 9112, 2.2, wants at least one ignored)."""
_MOST_STEPS: Final = 1024
"""Size lines, chunks and trailers that are read at once: about a millisecond's worth.  A chunk of one byte takes three."""
_TRIES: Final = 4
"""The number of different requests in a row, or sections of fields, after which those of a connection are not looked for in
the memory any more."""

_OTHER_VERSION: Final = re.compile(rb"[^\r\n]* HTTP/(?!1\.[01]\r)[0-9]\.[0-9]\r\n")
_METHOD_SO_FAR: Final = re.compile(TOKEN + rb"{1,%d}(?: |\Z)" % MAX_METHOD)
_BARE_LF: Final = re.compile(rb"(?<!\r)\n")
_URL: Final = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([A-Za-z0-9\-._~%!$&'()*+,;=:\[\]]+)(?:[/?].*)?")
_TRAILER: Final = re.compile(rb"(" + TOKEN + rb"+):[\t\x20-\x7e\x80-\xff]*")
_NOT_IN_TRAILERS: Final = frozenset({b"content-length", b"transfer-encoding", b"host", b"connection", b"trailer"})
_QUOTED: Final = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'
_CHUNK_SIZE: Final = re.compile(
    rb"([0-9A-Fa-f]{1,16})(?:;" + TOKEN + rb"+(?:=(?:" + TOKEN + rb"+|" + _QUOTED + rb"))?)*"
)

# The states of a reader: the name says what it reads next.
_AT_HEAD, _IN_LENGTH, _AT_SIZE, _IN_CHUNK, _AT_CHUNK_END, _AT_TRAILER = range(6)


@final
@attrs.frozen(kw_only=True)
class Limits:
    """The most that a reader accepts, in bytes."""

    head: int = MAX_HEAD
    """A request's line and fields, or its trailers."""
    body: int | None = None
    """A request's body; None for any length."""
    needs_host: bool = True
    """Whether an HTTP/1.1 request without a field Host is refused, as RFC 9112, 3.2, wants it."""


@final
class RequestReader:
    """The requests of one connection.

    The caller feeds bytes, takes a request, takes its body while :attr:`in_body`, and takes the next request after that.

    Args:
      memory: of the server.
      limits: of the server.
    """

    __slots__ = (
        "_data",
        "_left",
        "_limits",
        "_memory",
        "_position",
        "_rest",
        "_section_tries",
        "_seen",
        "_state",
        "_total",
        "_tries",
        "empty_lines",
        "has_more",
        "in_head",
        "is_midway",
        "last",
    )

    def __init__(self, memory: RequestMemory, limits: Limits) -> None:
        self._memory = memory
        self._limits = limits
        self._data = b""
        self._position = 0  # of what is unread in it
        # The beginning of a head or line whose end has not arrived; then nothing else is unread.
        self._rest: bytes | bytearray = b""  # a bytearray when it is not empty
        self._seen = 0  # bytes of the rest that were looked at
        self._state = _AT_HEAD
        self._left = 0  # bytes of the body, or of the chunk
        self._total = 0  # bytes of all chunks, and then of the trailers
        self._tries = self._section_tries = _TRIES
        self.empty_lines = 0
        """The number of empty lines before the next request."""
        self.has_more = False
        """Whether there may be another request in what was fed, after the body of the last one."""
        self.in_head = False
        """Whether the next head has begun and not ended."""
        self.last: Request | None = None
        """The last request of this connection that the memory had: its next one is mostly the same."""
        self.is_midway = False
        """Whether :meth:`take_body`, which stops after a number of chunks for others to have a turn, has more to return."""

    @property
    def in_body(self) -> bool:
        """Whether the body of the last request goes on: whether :meth:`take_body` has more to return, now or later."""
        return self._state != _AT_HEAD

    @property
    def unread(self) -> int:
        """The number of bytes that were fed and not read."""
        return len(self._data) - self._position + len(self._rest)

    @property
    def wants_no_content(self) -> bool:
        """Whether the next request, whose head was refused or is incomplete, is a HEAD (RFC 9110, 9.3.2)."""
        begin = self._rest or self._data[self._position : self._position + 5]
        return self._state == _AT_HEAD and begin.startswith(b"HEAD ")

    def take_unread(self) -> bytes:
        """Return the bytes that were fed and not read: after a request that ends the use of HTTP on the connection."""
        unread = bytes(self._rest) or self._data[self._position :]
        self._data, self._rest, self._position = b"", b"", 0
        return unread

    def feed(self, data: bytes) -> None:
        """Add bytes that the peer has sent."""
        rest = self._rest
        if rest:
            self._seen = len(rest)
            rest += data
            self._rest = rest
            if self._is_incomplete():
                return
            self._data = bytes(rest)
            self._rest = b""
        elif self._position < len(self._data):
            self._data = self._data[self._position :] + data
        else:
            self._data = data
        self._position = 0
        self.has_more = True

    def _is_incomplete(self) -> bool:
        """Whether the rest is certain to have no end yet."""
        rest = self._rest
        if self._state == _AT_HEAD:
            # An empty line before the head has an end of its own.
            return rest[0] != 0x0D and rest.find(b"\r\n\r\n", max(self._seen - 3, 0)) < 0
        return self._state != _AT_CHUNK_END and rest.find(b"\r\n", max(self._seen - 1, 0)) < 0

    # --- heads ---

    def feed_request(self, data: bytes) -> Request | None:
        """Do :meth:`feed` and :meth:`next_request`, which takes less time when the data is a request that was seen before.

        Raises:
          Refused: see :meth:`next_request`.
        """
        if self._tries and not self._rest and self._position >= len(self._data) and len(data) <= MAX_WHOLE:
            request = self.last
            if request is None or data != request.whole:
                request = self._memory.whole.get(data)
            if request is not None:
                self.last = request
                self._tries = _TRIES
                self.empty_lines = 0
                self.has_more = self.in_head = False
                return request
            self._tries -= 1
        self.feed(data)
        return self.next_request()

    def feed_repeated(self, data: bytes) -> list[Request]:
        """Do :meth:`feed`, and return the requests at the beginning of the data that were seen before, in their order.

        They have no bodies.  :meth:`next_request` returns what follows them.  The list is empty also when something is
        unread, or the connection sends different requests all the time.
        """
        if not self._tries or self._rest or self._position < len(self._data) or self._state != _AT_HEAD:
            self.feed(data)
            return []
        requests, end = repeated(self._memory.whole, data, 0, MAX_WHOLE)
        if requests:
            self.last = requests[-1]
            self._tries = _TRIES
            self.empty_lines = 0
            self.in_head = False
        else:
            self._tries -= 1
        self.has_more = end < len(data)
        if self.has_more:
            self._data, self._position = data, end
        return requests

    def next_request(self) -> Request | None:
        """Return the next request, or None if more bytes are needed.

        Raises:
          Refused: the connection is to be answered with this, and closed.
        """
        data, position = self._data, self._position
        length = len(data)
        if position >= length:
            self.has_more = False
            self.in_head = bool(self._rest)
            if self.in_head:
                self._check_unfinished()
            return None
        if self._tries and (repeated := self._repeated()) is not None:
            return repeated
        found = split_head(data, position)
        if found is None:
            return self._odd_head()
        method, target, minor, lines, end = found
        if end - position > self._limits.head:
            raise self._too_long(data, position)
        section = self._section_of(lines, minor)
        if target[0] != 0x2F or method == b"CONNECT":
            section = _checked_target(method, target, section)
        if end < length:
            self._position = end
        else:  # a connection that waits holds no request
            self._data, self._position = b"", 0
        self.empty_lines = 0
        self.in_head = False
        request = Request(method, target, section)
        body = section.framing.length
        self.has_more = end < length or body != 0
        if body:
            self._begin_body(body)
        elif self._tries and section.is_shared and end - position <= MAX_WHOLE and b"?" not in target:
            request.whole = data[position:end]
            self._memory.whole.remember(request.whole, request)
        return request

    def _section_of(self, lines: bytes, minor: bytes) -> Section:
        """Return what the fields of a head mean."""
        limits, memory, tries = self._limits, self._memory, self._section_tries
        if not tries or minor == b"0":
            return read_section(lines, minor, memory, max_body=limits.body, needs_host=limits.needs_host)
        section = memory.sections.get(lines)
        if section is None:
            self._section_tries = tries - 1
            section = read_section(lines, minor, memory, max_body=limits.body, needs_host=limits.needs_host)
            if section.is_shared:
                memory.sections.remember(lines, section)
        else:
            self._section_tries = _TRIES
        return section

    def _repeated(self) -> Request | None:
        """Return the next request, if it begins what is unread and the memory has it whole."""
        data, position = self._data, self._position
        length = len(data)
        request = self.last
        # No head is the beginning of another one, so this finds what a look-up would, without a search for the end.
        if request is not None and (whole := request.whole) is not None and begins(data, position, whole):
            end = position + len(whole)
        elif not position:  # feed_request() has looked for it
            return None
        else:
            end = data.find(b"\r\n\r\n", position, position + MAX_WHOLE) + 4
            request = self._memory.whole.get(data[position:end]) if end >= 4 else None
            if request is None:
                return None
            self.last = request
        self._tries = _TRIES
        self.empty_lines = 0
        self.in_head = False
        self.has_more = end < length
        if self.has_more:
            self._position = end
        else:  # see next_request()
            self._data, self._position = b"", 0
        return request

    def _begin_body(self, length: int) -> None:
        if length == CHUNKED:
            self._state = _AT_SIZE
            self._total = 0
        else:
            self._state = _IN_LENGTH
            self._left = length

    def _odd_head(self) -> Request | None:
        """Read an incomplete or malformed head, or an empty line before one, which RFC 9112, 2.2, allows."""
        data, position = self._data, self._position
        if data.startswith(b"\r\n", position):
            self.empty_lines += 1
            if self.empty_lines > MAX_EMPTY_LINES:
                raise Refused(HTTPStatus.BAD_REQUEST, "before a request there is at most one empty line")
            self._position += 2
            return self.next_request()
        end = data.find(b"\r\n\r\n", position)
        if end < 0:
            self._keep_rest()
            self.has_more, self.in_head = False, True
            if self._rest != b"\r":
                self._check_unfinished()
            return None
        if end + 4 - position > self._limits.head:
            raise self._too_long(data, position)
        if _OTHER_VERSION.match(data, position):
            raise Refused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "this server speaks HTTP/1.1 and HTTP/1.0")
        raise Refused(HTTPStatus.BAD_REQUEST, "this is no HTTP request")

    def _keep_rest(self) -> None:
        self._rest = bytearray(self._data[self._position :])
        self._seen = 0
        self._data, self._position = b"", 0

    def _too_long(self, head: bytes | bytearray, position: int) -> Refused:
        most = self._limits.head
        if head.find(b"\r\n", position, position + most) < 0:
            return Refused(HTTPStatus.REQUEST_URI_TOO_LONG, f"a request line has at most {most} bytes")
        return Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a request's head has at most {most} bytes")

    def _check_unfinished(self) -> None:
        """Refuse early what cannot become a head any more; the first :attr:`_seen` bytes of it are checked already."""
        if self._state != _AT_HEAD:
            return
        rest, seen = self._rest, self._seen
        if len(rest) > self._limits.head:
            raise self._too_long(rest, 0)
        if _BARE_LF.search(rest, seen):
            raise Refused(HTTPStatus.BAD_REQUEST, "a line ends with CR LF")
        if seen <= MAX_METHOD and not _METHOD_SO_FAR.match(rest):
            raise Refused(HTTPStatus.BAD_REQUEST, "this is no HTTP request")

    # --- bodies ---

    def take_body(self) -> bytes:
        """Return what has been fed of the body and not been taken; ``b""`` if that is nothing.

        It returns a part of a body in many small chunks: see :attr:`is_midway`.

        Raises:
          Refused: the body is malformed, or longer than the limit.
        """
        if self._state == _IN_LENGTH:
            return self._take_left(_AT_HEAD)
        pieces: list[bytes] = []
        left = _MOST_STEPS
        self.is_midway = False
        while self._state != _AT_HEAD and self._position < len(self._data):
            if not left:
                self.is_midway = True
                break
            left -= 1
            before = self._position, self._state
            if self._state == _IN_CHUNK:
                pieces.append(self._take_left(_AT_CHUNK_END))
            elif self._state == _AT_SIZE:
                self._read_size()
            elif self._state == _AT_CHUNK_END:
                self._read_chunk_end()
            else:
                self._read_trailer()
            if self._data and (self._position, self._state) == before:
                # A fault of this reader, which would otherwise loop for ever and block the run.
                raise Refused(HTTPStatus.INTERNAL_SERVER_ERROR, "the server cannot read this request")
        if self._rest and self._state in {_AT_SIZE, _AT_TRAILER}:
            self._check_line(len(self._rest))
            if _BARE_LF.search(self._rest, self._seen):
                raise Refused(HTTPStatus.BAD_REQUEST, "a line ends with CR LF")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _take_left(self, following: int) -> bytes:
        """Take of what is left of the body, or of a chunk; ``following`` is the state after it."""
        data, position, left = self._data, self._position, self._left
        have = len(data) - position
        if have < left:
            self._position = len(data)
            self._left = left - have
            return data[position:] if position else data
        self._position = end = position + left
        self._state = following
        return data[position:end]

    def _check_line(self, length: int) -> None:
        """Check the length of a size line, or of a trailer and those before it."""
        if self._state == _AT_SIZE:
            if length > MAX_SIZE_LINE:
                raise _bad_size()
        elif self._total + length > self._limits.head:
            most = self._limits.head
            raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"trailers have at most {most} bytes")

    def _line(self) -> bytes | None:
        """Take a line, and return it without its end; None if it is incomplete, and then it is kept."""
        data, position = self._data, self._position
        end = data.find(b"\r\n", position)
        self._check_line((end if end >= 0 else len(data)) - position)
        if end < 0:
            self._keep_rest()
            return None
        self._position = end + 2
        return data[position:end]

    def _read_size(self) -> None:
        line = self._line()
        if line is None:
            return
        match = _CHUNK_SIZE.fullmatch(line)
        if match is None:
            raise _bad_size()
        self._left = int(match[1], 16)
        self._total += self._left
        most = self._limits.body
        if most is not None and self._total > most:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {most} bytes")
        if self._left:
            self._state = _IN_CHUNK
        else:
            self._total = 0
            self._state = _AT_TRAILER

    def _read_chunk_end(self) -> None:
        end = self._data[self._position : self._position + 2]
        if end == b"\r":
            self._keep_rest()
            return
        if end != b"\r\n":
            raise Refused(HTTPStatus.BAD_REQUEST, "a chunk is longer than its size")
        self._position += 2
        self._state = _AT_SIZE

    def _read_trailer(self) -> None:
        line = self._line()
        if line is None:
            return
        self._total += len(line) + 2
        if not line:
            self._state = _AT_HEAD
            return
        match = _TRAILER.fullmatch(line)
        if match is None or match[1].lower() in _NOT_IN_TRAILERS:
            raise Refused(HTTPStatus.BAD_REQUEST, "this is no trailer")


def _bad_size() -> Refused:
    return Refused(HTTPStatus.BAD_REQUEST, "this is no chunk size")


def _checked_target(method: bytes, target: bytes, section: Section) -> Section:
    """Check a target that does not begin with a slash, and return the fields with the host that the target names.

    RFC 9112, 3.2.2: a server ignores the field Host when the target is a URL.
    """
    if method == b"CONNECT":
        raise Refused(HTTPStatus.NOT_IMPLEMENTED, "this server is no proxy")
    if target == b"*" and method == b"OPTIONS":
        return section
    match = _URL.fullmatch(target)
    if match is None:
        raise Refused(HTTPStatus.BAD_REQUEST, "the target is neither a path nor a URL")
    return host_replaced(section, match[1])

"""HTTP/1.1 on one connection as bytes in and bytes out, without any I/O: whoever moves the bytes, pull or callbacks,
uses it.

It reads requests as RFC 9112 has them and leaves what they mean to a :class:`Site`.  What it decides:

*Strict where two readers could disagree.*  A proxy in front that sees other boundaries between requests than this
server does is how requests are smuggled.  So a bare LF, white space before a colon, a folded field, Content-Length
beside Transfer-Encoding, several lengths, Transfer-Encoding in HTTP/1.0, an empty member in a list of codings, and
more than two empty lines before a request are refused with 400 and the connection is closed, though some of them could be
understood.

*One regular expression reads a head.*  It says where the head ends, that it is well-formed, and takes it apart, in
about a microsecond.  No two of its neighbouring parts can match the same byte, so it fails in linear time, too.  A head
that arrives in pieces is not tried again for each piece: only its end is looked for, from where the last look ended.

*A client says the same again.*  The fields of an HTTP/1.1 request without a body, that keeps the connection, are
remembered; if those of the next request are the same to the byte, they mean the same.

*Everything has a limit*: the head (431, or 414 if it is the target that is long), the body (413), a chunk's size line
(400), the trailers (431).  Bodies are skipped, and never held.  The time is the caller's to limit:
:attr:`Exchange.phase` says when a request has begun and not ended.

*The order is kept by construction*: an answer is appended when its request has been read whole, body included, and a
request is looked at when the one before it has been answered.  After a refusal, or an answer that says ``Connection:
close``, nothing is read any more (RFC 9112, 9.6).
"""

from __future__ import annotations

import abc
import enum
import re
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import final

from ._http_heads import MAX_METHOD, REQUEST_LINE, TOKEN, field_values

MAX_HEAD = 16 * 1024
"""Bytes of a request's line and fields, and of its trailers."""
MAX_BODY = 1024 * 1024
"""Bytes of a request's body."""
MAX_SIZE_LINE = 256
"""Bytes of a chunk's size line, with its extensions."""
MAX_KNOWN = 1024
"""Bytes of fields that are remembered, see below."""
MAX_EMPTY_LINES = 2
"""Empty lines before a request (RFC 9112, 2.2, has at least one ignored)."""

_HEAD = re.compile(
    REQUEST_LINE + rb"\r\n((?:" + TOKEN + rb"+:[\t\x20-\x7e\x80-\xff]*\r\n)*)\r\n"  # the fields: RFC 9112, 5
)
_OTHER_VERSION = re.compile(rb"[^\r\n]* HTTP/[0-9]\.[0-9]\r\n")
_METHOD_SO_FAR = re.compile(TOKEN + rb"{1,%d}(?: |\Z)" % MAX_METHOD)
_BARE_LF = re.compile(rb"(?<!\r)\n")
_TRAILER = re.compile(TOKEN + rb"+:[\t\x20-\x7e\x80-\xff]*")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
_LENGTH = re.compile(rb"[0-9]{1,19}")
_HOST = re.compile(rb"[A-Za-z0-9\-._~%!$&'()*+,;=:\[\]]*")

_INTERESTING = frozenset({b"host", b"connection", b"content-length", b"transfer-encoding", b"expect"})
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Refused(Exception):
    """A request that is answered with an error, after which the connection is closed."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Phase(enum.Enum):
    """Where an :class:`Exchange` is."""

    IDLE = enum.auto()
    """Between requests."""
    UNFINISHED = enum.auto()
    """A request has begun and not ended."""
    OVER = enum.auto()
    """The last answer has been given; the connection is to be closed when it is sent."""


class Site(abc.ABC):
    """What requests mean."""

    @abc.abstractmethod
    def refresh(self) -> None:
        """Called before a batch of requests is answered: time may have passed."""

    @abc.abstractmethod
    def answer(self, method: bytes, target: bytes, connection: bytes) -> bytes:
        """The whole response; ``connection`` is what its field ``Connection`` has to say, ``b""`` for none."""

    @abc.abstractmethod
    def refusal(self, status: HTTPStatus, reason: str) -> bytes:
        """The response to what could not be read; it says ``Connection: close``."""


@final
class Exchange:
    """The requests of one connection, and the answers to them."""

    __slots__ = (
        "_connection",
        "_empty_lines",
        "_expects",
        "_known_fields",
        "_left",
        "_method",
        "_read",
        "_rest",
        "_site",
        "_target",
        "_total",
        "has_answered",
        "phase",
    )

    def __init__(self, site: Site) -> None:
        self._site = site
        self.phase = Phase.IDLE
        self.has_answered = False
        """Whether what was fed last was the end of a request, so that one that is unfinished has begun in it."""
        self._rest = bytearray()  # what has arrived of a head or of a line that is not whole
        self._read: Callable[[bytes, int, list[bytes]], int] = self._read_head
        self._known_fields: bytes | None = None
        self._empty_lines = 0  # before the request that is to come
        # Of the request whose body is being skipped:
        self._method = self._target = self._connection = b""
        self._expects = False
        self._left = 0  # bytes of the body, or of the chunk
        self._total = 0  # bytes of all chunks, and then of the trailers

    def feed(self, data: bytes) -> bytes:
        """What has arrived; returns what is to be sent.  After :attr:`Phase.OVER` nothing is."""
        if self._is_over():
            return b""
        answers: list[bytes] = []
        self.has_answered = False
        self._site.refresh()
        try:
            if self._rest:
                joined = self._with_rest(data)
                if joined is None:
                    return b""
                data = joined
            position, length = 0, len(data)
            while position < length:
                before = position
                position = self._read(data, position, answers)
                if self._is_over():
                    return b"".join(answers)
                if position <= before:
                    raise _no_progress()
        except Refused as refusal:
            self._give_up(refusal, answers)
        else:
            # Compared with a bound method, which is made anew each time: == and not is.
            idle = not self._rest and self._read == self._read_head
            self.phase = Phase.IDLE if idle else Phase.UNFINISHED
            self.has_answered = bool(answers) and answers[0] is not _CONTINUE  # which is the last if it is there
        return b"".join(answers)

    def _is_over(self) -> bool:
        return self.phase is Phase.OVER

    def feed_eof(self) -> bytes:
        """Nothing more will arrive; returns what is to be sent."""
        return self._end_in_the_middle(HTTPStatus.BAD_REQUEST, "the connection ended in the middle of a request")

    def too_slow(self) -> bytes:
        """The time for a request is up; returns what is to be sent."""
        return self._end_in_the_middle(HTTPStatus.REQUEST_TIMEOUT, "the request took too long")

    def _end_in_the_middle(self, status: HTTPStatus, reason: str) -> bytes:
        answers: list[bytes] = []
        if self.phase is Phase.UNFINISHED:
            self._site.refresh()
            self._give_up(Refused(status, reason), answers)
        self.phase = Phase.OVER
        return b"".join(answers)

    def _give_up(self, refusal: Refused, answers: list[bytes]) -> None:
        answers.append(self._site.refusal(refusal.status, str(refusal)))
        self.phase = Phase.OVER
        self._rest.clear()

    # --- heads ---

    def _with_rest(self, data: bytes) -> bytes | None:
        """What was left, and this; None while it is a head without its end."""
        rest = self._rest
        seen = len(rest)
        rest += data
        is_head = self._read == self._read_head and rest[0] != 0x0D  # and not an empty line before it
        if is_head and rest.find(b"\r\n\r\n", max(seen - 3, 0)) < 0:
            _check_unfinished_head(rest, seen)
            return None
        joined = bytes(rest)
        rest.clear()
        return joined

    def _read_head(self, data: bytes, position: int, answers: list[bytes]) -> int:
        match = _HEAD.match(data, position)
        if match is None:
            return self._read_odd_head(data, position)
        end = match.end()
        self._empty_lines = 0
        if end - position > MAX_HEAD:
            raise _too_long(data, position)
        method, target, minor, fields = match.groups()
        if fields == self._known_fields and minor != b"0":
            answers.append(self._site.answer(method, target, b""))
            return end
        connection = self._read_fields(fields, is_1_0=minor == b"0")
        if self._read == self._read_head:
            answers.append(self._site.answer(method, target, connection))
            if minor != b"0" and not connection and len(fields) <= MAX_KNOWN:
                self._known_fields = fields
            if connection == b"close":
                self.phase = Phase.OVER
            return end
        self._method, self._target, self._connection = method, target, connection
        if self._expects and end == len(data):  # what of the body is here already needs no invitation
            answers.append(_CONTINUE)
        return end

    def _read_odd_head(self, data: bytes, position: int) -> int:
        """A head that is not whole or not right, or an empty line before it, which is allowed (RFC 9112, 2.2)."""
        if data.startswith(b"\r\n", position):
            self._empty_lines += 1
            if self._empty_lines > MAX_EMPTY_LINES:
                raise Refused(
                    HTTPStatus.BAD_REQUEST, f"before a request there are at most {MAX_EMPTY_LINES} empty lines"
                )
            return position + 2
        end = data.find(b"\r\n\r\n", position)
        if end < 0:
            rest = data[position:]
            if rest != b"\r":
                _check_unfinished_head(rest, 0)
            self._rest += rest
            return len(data)
        if end - position > MAX_HEAD:
            raise _too_long(data, position)
        if _OTHER_VERSION.match(data, position):
            line = data[position : data.index(b"\r\n", position)]
            if not line.rpartition(b" ")[2].startswith(b"HTTP/1."):
                raise Refused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "this server speaks HTTP/1.1 and HTTP/1.0")
        raise Refused(HTTPStatus.BAD_REQUEST, "this is no HTTP request")

    def _read_fields(self, fields: bytes, *, is_1_0: bool) -> bytes:
        """Go on to the body if there is one, and return what the answer's field ``Connection`` will say."""
        found = field_values(fields, _INTERESTING)
        hosts = found.pop(b"host", ())
        if len(hosts) != 1 and not (is_1_0 and not hosts):
            raise Refused(HTTPStatus.BAD_REQUEST, "one field Host is required")
        if hosts and not _HOST.fullmatch(hosts[0]):
            raise Refused(HTTPStatus.BAD_REQUEST, "the field Host is no host")
        connection = found.pop(b"connection", ())
        if found:
            self._read_framing(found, is_1_0=is_1_0)
        return _persistence(connection, is_1_0=is_1_0) if connection or is_1_0 else b""

    def _read_framing(self, found: dict[bytes, list[bytes]], *, is_1_0: bool) -> None:
        """How long the body is (RFC 9112, 6.3)."""
        self._expects = False
        lengths = found.get(b"content-length")
        codings = found.get(b"transfer-encoding")
        expected = found.get(b"expect")
        if codings is not None:
            if is_1_0 or lengths is not None:
                raise Refused(HTTPStatus.BAD_REQUEST, "Transfer-Encoding in HTTP/1.0, or beside Content-Length")
            if _members(codings) != [b"chunked"]:
                raise Refused(HTTPStatus.NOT_IMPLEMENTED, "the only transfer coding here is chunked")
            self._total = 0
            self._read = self._read_chunk_size
        elif lengths is not None:
            if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
                raise Refused(HTTPStatus.BAD_REQUEST, "the field Content-Length is no length, or there are several")
            self._left = int(lengths[0])
            if self._left > MAX_BODY:
                raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {MAX_BODY} bytes")
            if self._left:
                self._read = self._skip_body
        if expected is not None and not is_1_0:  # RFC 9110, 10.1.1: in HTTP/1.0 it means nothing
            if _members(expected) != [b"100-continue"]:
                raise Refused(HTTPStatus.EXPECTATION_FAILED, "the only expectation met here is 100-continue")
            self._expects = True

    # --- bodies, which are skipped ---

    def _finish(self, answers: list[bytes]) -> None:
        """The request is whole."""
        self._read = self._read_head
        answers.append(self._site.answer(self._method, self._target, self._connection))
        if self._connection == b"close":
            self.phase = Phase.OVER

    def _skip(self, data: bytes, position: int) -> int:
        skipped = min(self._left, len(data) - position)
        self._left -= skipped
        return position + skipped

    def _skip_body(self, data: bytes, position: int, answers: list[bytes]) -> int:
        position = self._skip(data, position)
        if not self._left:
            self._finish(answers)
        return position

    def _line(self, data: bytes, position: int, limit: int, refusal: Refused) -> tuple[bytes | None, int]:
        """The next line without its end, and where the one after it begins; None when it is not whole, and is kept."""
        end = data.find(b"\r\n", position)
        if (end if end >= 0 else len(data)) - position > limit:
            raise refusal
        if end < 0:
            self._rest += data[position:]
            return None, len(data)
        return data[position:end], end + 2

    def _read_chunk_size(self, data: bytes, position: int, _answers: list[bytes]) -> int:
        bad = Refused(HTTPStatus.BAD_REQUEST, "this is no chunk size")
        line, position = self._line(data, position, MAX_SIZE_LINE, bad)
        if line is None:
            return position
        match = _CHUNK_SIZE.fullmatch(line)
        if match is None:
            raise bad
        self._left = int(match[1], 16)
        self._total += self._left
        if self._total > MAX_BODY:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {MAX_BODY} bytes")
        if self._left:
            self._read = self._skip_chunk
        else:
            self._total = 0
            self._read = self._skip_trailer
        return position

    def _skip_chunk(self, data: bytes, position: int, _answers: list[bytes]) -> int:
        position = self._skip(data, position)
        if not self._left:
            self._read = self._read_chunk_end
        return position

    def _read_chunk_end(self, data: bytes, position: int, _answers: list[bytes]) -> int:
        end = data[position : position + 2]
        if end == b"\r":
            self._rest += end
            return len(data)
        if end != b"\r\n":
            raise Refused(HTTPStatus.BAD_REQUEST, "a chunk is longer than its size")
        self._read = self._read_chunk_size
        return position + 2

    def _skip_trailer(self, data: bytes, position: int, answers: list[bytes]) -> int:
        too_long = Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"trailers have at most {MAX_HEAD} bytes")
        line, after = self._line(data, position, MAX_HEAD - self._total, too_long)
        if line is None:
            return after
        self._total += after - position
        if not line:
            self._finish(answers)
        elif not _TRAILER.fullmatch(line):
            raise Refused(HTTPStatus.BAD_REQUEST, "this is no trailer")
        return after


def _tokens(values: Iterable[bytes]) -> list[bytes]:
    """The members of a list that may have several fields (RFC 9110, 5.3 and 5.6.1), in lower case; empty ones are
    none.
    """
    return [token for value in values for token in map(_trimmed, value.split(b",")) if token]


def _members(values: Iterable[bytes]) -> list[bytes]:
    """The same of a list that another reader must not understand otherwise: an empty member is refused."""
    members = [member for value in values for member in map(_trimmed, value.split(b","))]
    if not all(members):
        raise Refused(HTTPStatus.BAD_REQUEST, "a list of codings or expectations has an empty member")
    return members


def _trimmed(part: bytes) -> bytes:
    return part.strip(b" \t").lower()


def _persistence(connection: Iterable[bytes], *, is_1_0: bool) -> bytes:
    """What an answer's ``Connection`` says to a request's: RFC 9112, 9.3."""
    tokens = _tokens(connection)
    if b"close" in tokens:
        return b"close"
    if is_1_0:
        return b"keep-alive" if b"keep-alive" in tokens else b"close"
    return b""


def _no_progress() -> Refused:
    """For a fault of this reader's, which would hold up the whole run for ever."""
    return Refused(HTTPStatus.INTERNAL_SERVER_ERROR, "the server cannot read this request")


def _too_long(head: bytes | bytearray, position: int) -> Refused:
    if head.find(b"\r\n", position, position + MAX_HEAD) < 0:
        return Refused(HTTPStatus.REQUEST_URI_TOO_LONG, f"a request line has at most {MAX_HEAD} bytes")
    return Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a request's head has at most {MAX_HEAD} bytes")


def _check_unfinished_head(rest: bytes | bytearray, seen: int) -> None:
    """Refuse early what cannot become a head any more; its first ``seen`` bytes have been looked at."""
    if len(rest) > MAX_HEAD:
        raise _too_long(rest, 0)
    if _BARE_LF.search(rest, seen):
        raise Refused(HTTPStatus.BAD_REQUEST, "a line ends with CR LF")
    if seen <= MAX_METHOD and not _METHOD_SO_FAR.match(rest):
        raise Refused(HTTPStatus.BAD_REQUEST, "this is no HTTP request")

"""HTTP/1.1 on one connection as bytes in and bytes out, without any I/O.

The pull handler and the callbacks move the bytes and share this reader.  It reads requests as RFC 9112 defines them and
leaves their meaning to a :class:`Site`.  Its decisions:

*Strict where two readers could disagree.*  An attacker smuggles requests past a proxy that sees other boundaries between
them than this server does.  So this reader refuses with 400, and closes the connection, for: a bare LF, white space before
a colon, a folded field, Content-Length beside Transfer-Encoding, several lengths, Transfer-Encoding in HTTP/1.0, an empty
member in a list of codings, and more than two empty lines before a request.  Some of them could be understood.

*One regular expression reads a head.*  It finds the end of the head, validates it and splits it, in about a microsecond.
No two of its neighbouring parts can match the same byte, so it fails in linear time, too.  When a head arrives in pieces,
the reader does not match it again for each piece: it searches for the end only, from where the last search stopped.

*A client repeats its fields.*  The reader remembers the fields of an HTTP/1.1 request that has no body and keeps the
connection.  If the next request has the same fields to the byte, they mean the same.

*Everything has a limit*: the head (431, or 414 if the target is too long), the body (413), a chunk's size line
(400), the trailers (431).  The reader skips bodies and never stores them.  The caller limits the time:
:attr:`Exchange.phase` shows when a request has begun and not ended.

*Answers keep the order of the requests*: the reader appends an answer when it has read the whole request, body included,
and looks at the next request after that.  After a refusal, or an answer with ``Connection: close``, it reads nothing any
more (RFC 9112, 9.6).
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
"""The most bytes of fields that the reader remembers, see below."""
MAX_EMPTY_LINES = 2
"""Empty lines that may precede a request (RFC 9112, 2.2, wants at least one ignored)."""

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
    """The request gets an error for its answer, and the connection is closed."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Phase(enum.Enum):
    """The state of an :class:`Exchange`."""

    IDLE = enum.auto()
    """Between requests."""
    UNFINISHED = enum.auto()
    """A request has begun and not ended."""
    OVER = enum.auto()
    """The last answer is made; the caller sends it and closes the connection."""


class Site(abc.ABC):
    """The part of a server that gives requests their meaning."""

    @abc.abstractmethod
    def refresh(self) -> None:
        """The exchange calls this before it answers a batch of requests: time may have passed."""

    @abc.abstractmethod
    def answer(self, method: bytes, target: bytes, connection: bytes) -> bytes:
        """Return the whole response; ``connection`` is the value of its field ``Connection``, ``b""`` for none."""

    @abc.abstractmethod
    def refusal(self, status: HTTPStatus, reason: str) -> bytes:
        """Return the response to a request that the reader refuses; it has ``Connection: close``."""


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
        """Whether the last data contained the end of a request, so that an unfinished one has begun in that data."""
        self._rest = bytearray()  # the beginning of a head or line whose end has not arrived
        self._read: Callable[[bytes, int, list[bytes]], int] = self._read_head
        self._known_fields: bytes | None = None
        self._empty_lines = 0  # before the next request
        # The request whose body is being skipped has:
        self._method = self._target = self._connection = b""
        self._expects = False
        self._left = 0  # bytes of the body, or of the chunk
        self._total = 0  # bytes of all chunks, and then of the trailers

    def feed(self, data: bytes) -> bytes:
        """Read ``data`` from the peer and return the answers to send; none after :attr:`Phase.OVER`."""
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
            # Python makes a bound method anew at each access: compare by ==, not by is.
            idle = not self._rest and self._read == self._read_head
            self.phase = Phase.IDLE if idle else Phase.UNFINISHED
            self.has_answered = bool(answers) and answers[0] is not _CONTINUE  # a 100 Continue is always the last
        return b"".join(answers)

    def _is_over(self) -> bool:
        return self.phase is Phase.OVER

    def feed_eof(self) -> bytes:
        """End the exchange because the peer has ended its side, and return what is to be sent."""
        return self._end_in_the_middle(HTTPStatus.BAD_REQUEST, "the connection ended in the middle of a request")

    def too_slow(self) -> bytes:
        """End the exchange because a request has taken too long, and return what is to be sent."""
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
        """The unread rest with ``data`` appended, or None while that is a head without its end."""
        rest = self._rest
        seen = len(rest)
        rest += data
        is_head = self._read == self._read_head and rest[0] != 0x0D  # not an empty line before the head
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
        if self._expects and end == len(data):  # a client that has begun to send the body needs no invitation
            answers.append(_CONTINUE)
        return end

    def _read_odd_head(self, data: bytes, position: int) -> int:
        """Read an incomplete or malformed head, or an empty line before one, which RFC 9112, 2.2, allows."""
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
        """Find the length of the body (RFC 9112, 6.3)."""
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
        if expected is not None and not is_1_0:  # RFC 9110, 10.1.1: a server ignores Expect in HTTP/1.0
            if _members(expected) != [b"100-continue"]:
                raise Refused(HTTPStatus.EXPECTATION_FAILED, "the only expectation met here is 100-continue")
            self._expects = True

    # --- bodies, which are skipped ---

    def _finish(self, answers: list[bytes]) -> None:
        """Answer the request, which has been read whole."""
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
        """The next line without its end, and the position after it; None if the line is incomplete, and then stored."""
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
    """The members of a list that several fields may form (RFC 9110, 5.3 and 5.6.1), in lower case, without empty ones."""
    return [token for value in values for token in map(_trimmed, value.split(b",")) if token]


def _members(values: Iterable[bytes]) -> list[bytes]:
    """The same for a list that all readers must understand alike: an empty member is refused."""
    members = [member for value in values for member in map(_trimmed, value.split(b","))]
    if not all(members):
        raise Refused(HTTPStatus.BAD_REQUEST, "a list of codings or expectations has an empty member")
    return members


def _trimmed(part: bytes) -> bytes:
    return part.strip(b" \t").lower()


def _persistence(connection: Iterable[bytes], *, is_1_0: bool) -> bytes:
    """The value of an answer's ``Connection`` for that of the request (RFC 9112, 9.3)."""
    tokens = _tokens(connection)
    if b"close" in tokens:
        return b"close"
    if is_1_0:
        return b"keep-alive" if b"keep-alive" in tokens else b"close"
    return b""


def _no_progress() -> Refused:
    """The refusal for a fault of this reader, which would otherwise loop for ever and block the run."""
    return Refused(HTTPStatus.INTERNAL_SERVER_ERROR, "the server cannot read this request")


def _too_long(head: bytes | bytearray, position: int) -> Refused:
    if head.find(b"\r\n", position, position + MAX_HEAD) < 0:
        return Refused(HTTPStatus.REQUEST_URI_TOO_LONG, f"a request line has at most {MAX_HEAD} bytes")
    return Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a request's head has at most {MAX_HEAD} bytes")


def _check_unfinished_head(rest: bytes | bytearray, seen: int) -> None:
    """Refuse early what cannot become a head any more; the reader has checked its first ``seen`` bytes already."""
    if len(rest) > MAX_HEAD:
        raise _too_long(rest, 0)
    if _BARE_LF.search(rest, seen):
        raise Refused(HTTPStatus.BAD_REQUEST, "a line ends with CR LF")
    if seen <= MAX_METHOD and not _METHOD_SO_FAR.match(rest):
        raise Refused(HTTPStatus.BAD_REQUEST, "this is no HTTP request")

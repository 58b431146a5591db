"""The fields of a request: what they mean for its framing, and the memory of those that were seen before."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, Final, Generic, TypeVar, final

from ._head_splitting import FRAMING, PLAIN, SECRET, Line, Pair, read_fields

K = TypeVar("K")
T = TypeVar("T")

CHUNKED: Final = -1
"""The length of a body that arrives in chunks."""
SECRETS: Final = frozenset({b"cookie", b"authorization", b"proxy-authorization"})
"""The fields that no memory holds: they show who the client is."""

_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_HOST: Final = re.compile(rb"[A-Za-z0-9\-._~%!$&'()*+,;=:\[\]]*")
MAX_WHOLE: Final = 1024
"""Bytes of the longest request that is remembered as a whole."""
_MAX_SECTION: Final = 1024
"""Bytes of the longest section of fields that is remembered."""
_MAX_LINE: Final = 256
"""Bytes of the longest line that is remembered."""
_MAX_FIELDS: Final = 32
"""The most fields that are remembered together: an object for a short field has many times its bytes."""

_FRAMING_NAMES: Final = frozenset(
    {b"host", b"connection", b"content-length", b"transfer-encoding", b"expect", b"upgrade", b"te"}
)


class Refused(Exception):
    """The request gets an error for its answer, and the connection is closed."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@final
class Memory(dict[K, T], Generic[K, T]):
    """Meanings by the bytes that have them.  When it is full it begins anew.

    Args:
      most: how many it holds.  Each user of a memory has a greatest length of keys, so this bounds its bytes, too.
    """

    __slots__ = ("_most",)

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def remember(self, key: K, value: T) -> None:
        """Hold an entry, at the price of all others if there is no room."""
        if len(self) >= self._most:
            self.clear()
        self[key] = value


@final
class RequestFraming:
    """What the fields of a request mean for its boundaries and its connection.  Memories share it, so it is constant."""

    __slots__ = ("closes", "connection", "expects", "length", "minor", "takes_trailers", "upgrades")

    def __init__(self, minor: int) -> None:
        self.minor = minor
        """The minor version: 1 for HTTP/1.1, 0 for HTTP/1.0."""
        self.length = 0
        """The length of the body in bytes, or :data:`CHUNKED`."""
        self.closes = False
        """Whether the client wants the connection closed after the response (RFC 9112, 9.3)."""
        self.connection = b""
        """The value of the field Connection that the response is to have: ``b""`` for none."""
        self.expects = False
        """Whether the client waits for a 100 before it sends the body."""
        self.upgrades: tuple[bytes, ...] = ()
        """The protocols that the client would change to, in lower case: the server may choose any (RFC 9110, 7.8)."""
        self.takes_trailers = False
        """Whether the response may have trailers."""


@final
class Section:
    """The fields of a request.  A memory shares it, so it is constant."""

    __slots__ = ("framing", "is_shared", "pairs")

    def __init__(self, pairs: tuple[Pair, ...], framing: RequestFraming, *, is_shared: bool) -> None:
        self.pairs = pairs
        """All of them, in their order."""
        self.framing = framing
        self.is_shared = is_shared
        """Whether a memory may hold it."""


@final
class Request:
    """The head of one request.  A memory shares it between connections, so it is constant but for :attr:`derived`."""

    __slots__ = ("derived", "framing", "method", "pairs", "target", "whole")

    def __init__(self, method: bytes, target: bytes, section: Section) -> None:
        self.method = method
        self.target = target
        """As the client sent it: a path with its query, a URL, or ``*``."""
        self.pairs = section.pairs
        """The fields, in their order."""
        self.framing = section.framing
        self.whole: bytes | None = None
        """All of its bytes, if a memory holds it."""
        self.derived: Any = None
        """Anything that the users of one memory derive from this request, and find again when it is repeated."""


@final
class RequestMemory:
    """What requests meant that the connections of one server have seen: at most about a megabyte.

    Several threads may use it at once.
    """

    __slots__ = ("framings", "lines", "recent", "sections", "whole")

    def __init__(self) -> None:
        self.whole: Memory[bytes, Request] = Memory(256)
        """Requests without a body, by all of their bytes."""
        self.sections: Memory[bytes, Section] = Memory(256)
        """The fields of HTTP/1.1 requests."""
        self.lines: Memory[bytes, Line] = Memory(1024)
        """Single fields, each with what it is to the reader."""
        self.recent: list[Line] = []
        """Some of them, by their places in the last heads: see :func:`read_fields`."""
        self.framings: Memory[tuple[Any, ...], RequestFraming] = Memory(256)
        """What the fields that matter to the framing mean together, by the version and these fields."""

    def read_line(self, line: bytes) -> Line:
        """Return what a line means that no memory has."""
        name, _colon, value = line.partition(b":")
        name = name.lower()
        kind = FRAMING if name in _FRAMING_NAMES else SECRET if name in SECRETS else PLAIN
        found = (name, value.strip(b" \t")), kind, line
        if kind != SECRET and len(line) <= _MAX_LINE:
            self.lines.remember(line, found)
        return found


def read_section(
    lines: bytes, minor: bytes, memory: RequestMemory, *, max_body: int | None, needs_host: bool
) -> Section:
    """Return what the lines of a head mean, each with its CR LF, which match the grammar.

    Raises:
      Refused: they contradict each other, or ask for what this server does not do.
    """
    pairs, framing_pairs, has_secret = read_fields(lines, memory.lines, memory.recent, memory.read_line)
    key = minor, *framing_pairs
    framing = memory.framings.get(key)
    if framing is None:
        framing = _read_framing(framing_pairs, 0 if minor == b"0" else 1, max_body, needs_host=needs_host)
        if len(key) <= _MAX_FIELDS and sum(len(value) for _name, value in framing_pairs) <= _MAX_LINE:
            memory.framings.remember(key, framing)
    is_shared = not has_secret and len(lines) <= _MAX_SECTION and len(pairs) <= _MAX_FIELDS
    return Section(pairs, framing, is_shared=is_shared)


def host_replaced(section: Section, host: bytes) -> Section:
    """Return the same fields with another host, which no memory holds."""
    pairs = ((b"host", host), *(pair for pair in section.pairs if pair[0] != b"host"))
    return Section(pairs, section.framing, is_shared=False)


def _read_framing(pairs: Iterable[Pair], minor: int, max_body: int | None, *, needs_host: bool) -> RequestFraming:
    framing = RequestFraming(minor)
    found: dict[bytes, list[bytes]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    is_1_0 = not minor
    hosts = found.pop(b"host", ())
    if len(hosts) > 1 or (not hosts and needs_host and not is_1_0):
        raise Refused(HTTPStatus.BAD_REQUEST, "one field Host is required")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise Refused(HTTPStatus.BAD_REQUEST, "the field Host is no host")
    connection = tokens(found.pop(b"connection", ()))
    framing.connection = _persistence(connection, is_1_0=is_1_0)
    framing.closes = framing.connection == b"close"
    framing.length = _read_length(found, max_body, is_1_0=is_1_0)
    if b"expect" in found and not is_1_0:  # RFC 9110, 10.1.1: a server ignores Expect in HTTP/1.0
        if members(found[b"expect"]) != [b"100-continue"]:
            raise Refused(HTTPStatus.EXPECTATION_FAILED, "the only expectation met here is 100-continue")
        framing.expects = framing.length != 0
    if b"upgrade" in connection and b"upgrade" in found and not is_1_0:
        framing.upgrades = tuple(tokens(found[b"upgrade"]))
    framing.takes_trailers = b"trailers" in tokens(found.get(b"te", ())) and not is_1_0
    return framing


def _read_length(found: dict[bytes, list[bytes]], max_body: int | None, *, is_1_0: bool) -> int:
    """The length of the body (RFC 9112, 6.3)."""
    lengths = found.get(b"content-length")
    codings = found.get(b"transfer-encoding")
    if codings is not None:
        if is_1_0 or lengths is not None:
            raise Refused(HTTPStatus.BAD_REQUEST, "Transfer-Encoding in HTTP/1.0, or beside Content-Length")
        *others, last = members(codings)
        if last != b"chunked" or b"chunked" in others:  # RFC 9112, 6.3: where the body ends is not certain
            raise Refused(HTTPStatus.BAD_REQUEST, "the last transfer coding is chunked, which is applied once")
        if others:
            raise Refused(HTTPStatus.NOT_IMPLEMENTED, "the only transfer coding here is chunked")
        return CHUNKED
    if lengths is None:
        return 0
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise Refused(HTTPStatus.BAD_REQUEST, "the field Content-Length is no length, or there are several")
    length = int(lengths[0])
    if max_body is not None and length > max_body:
        raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {max_body} bytes")
    return length


def tokens(values: Iterable[bytes]) -> list[bytes]:
    """The members of a list that several fields may form (RFC 9110, 5.3 and 5.6.1), in lower case, without empty ones."""
    return [token for value in values for token in map(_trimmed, value.split(b",")) if token]


def members(values: Iterable[bytes]) -> list[bytes]:
    """The same for a list that all readers must understand alike: an empty member is refused."""
    found = [member for value in values for member in map(_trimmed, value.split(b","))]
    if not all(found):
        raise Refused(HTTPStatus.BAD_REQUEST, "a list of codings or expectations has an empty member")
    return found


def _trimmed(part: bytes) -> bytes:
    return part.strip(b" \t").lower()


def _persistence(connection: Iterable[bytes], *, is_1_0: bool) -> bytes:
    """The value of a response's ``Connection`` for that of the request (RFC 9112, 9.3)."""
    if b"close" in connection:
        return b"close"
    if is_1_0:
        return b"keep-alive" if b"keep-alive" in connection else b"close"
    return b""

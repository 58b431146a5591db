r"""A line for each request: as text, in the form that web servers have, or as JSON.

A client chooses the path, the query and most fields.  In text, every byte that is not printable ASCII, the quotation mark
and the backslash become ``\xHH``, so that a client can neither end a line nor a quoted value.  JSON escapes them by itself.
Each value has a limit.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias, final, get_args

AccessForm: TypeAlias = Literal["text", "json"]
MOST: Final = 2048
"""Bytes of a value in a line; the rest of a longer one is left out."""
MOST_BUFFERED: Final = 64 * 1024
"""Bytes of lines that :class:`BufferedLines` keeps."""

_ODD: Final = re.compile(rb'[^\x20-\x7e]|["\\]')


def log_access(line: str) -> None:
    """Log a line of an :class:`AccessLog`, to the logger ``gain_trio.access`` at level info."""
    _logger.info("%s", line)


_logger: Final = logging.getLogger("gain_trio.access")


@final
class BufferedLines:
    """Lines for a descriptor such as standard output, several of them by one write(2).

    The caller calls :meth:`flush` at intervals, and at the end.  A write waits when a pipe is full, and so does the
    server: an access log is complete or it is none.

    Args:
      descriptor: stays the caller's.
    """

    __slots__ = ("_descriptor", "_lines", "_size")

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: list[str] = []
        self._size = 0

    def __call__(self, line: str) -> None:
        """Add a line, which is ASCII and has no end."""
        self._lines.append(line)
        self._size += len(line) + 1
        if self._size >= MOST_BUFFERED:
            self.flush()

    def flush(self) -> None:
        """Write all lines.  Raises :exc:`OSError` of write(2); the lines are dropped then."""
        if not self._lines:
            return
        data = memoryview(("\n".join(self._lines) + "\n").encode("ascii"))
        self._lines.clear()
        self._size = 0
        while data:
            data = data[os.write(self._descriptor, data) :]


@final
class AccessLog:
    """Makes the line of a request.

    Args:
      write: is called with each line, which is ASCII and has no end.
      form: ``"text"``: the combined log format, with the duration in seconds behind it; ``"json"``: an object.
      clock: the time, in seconds since the epoch.
      timer: a clock for durations, in seconds.
    """

    __slots__ = ("_clock", "_make", "_second", "_stamp", "_timer", "_write")

    def __init__(
        self,
        write: Callable[[str], object] = log_access,
        *,
        form: AccessForm = "text",
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        if form not in get_args(AccessForm):
            raise ValueError(f"an access log is 'text' or 'json', not {form!r}")
        self._write = write
        self._clock = clock
        self._timer = timer
        self._second = -1
        self._stamp = ""
        self._make = self._text if form == "text" else self._json

    def began(self, _scope: dict[str, Any]) -> float:
        """A request begins.  Returns a token for :meth:`ended`."""
        return self._timer()

    def ended(self, token: float, scope: dict[str, Any], status: int, size: int, _error: BaseException | None) -> None:
        """Write the line of a request that is over.

        Args:
          token: what :meth:`began` has returned.
          scope: the request's, HTTP or WebSocket, with ``client`` as the app saw it.
          status: of the response; 0 if none was sent.
          size: bytes of the response's body.
        """
        self._write(self._make(scope, status, size, self._timer() - token))

    def _text(self, scope: dict[str, Any], status: int, size: int, seconds: float) -> str:
        now = int(self._clock())
        if now != self._second:
            self._stamp = time.strftime("[%d/%b/%Y:%H:%M:%S +0000]", time.gmtime(now))
            self._second = now
        fields = _fields(scope, b"referer", b"user-agent")
        return (
            f"{_client(scope) or '-'} - - {self._stamp} "
            f'"{_method(scope)} {_escaped(_target(scope))} HTTP/{scope["http_version"]}" {status} {size} '
            f'"{_quoted(fields[0])}" "{_quoted(fields[1])}" {seconds:.6f}'
        )

    def _json(self, scope: dict[str, Any], status: int, size: int, seconds: float) -> str:
        now = self._clock()
        host, referer, agent = _fields(scope, b"host", b"referer", b"user-agent")
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z",
            "client": _client(scope),
            "method": _method(scope),
            "scheme": scope["scheme"],
            "host": _decoded(host),
            "target": _decoded(_target(scope)),
            "http_version": scope["http_version"],
            "status": status,
            "bytes": size,
            "seconds": round(seconds, 6),
            "referer": _decoded(referer),
            "user_agent": _decoded(agent),
        }
        return json.dumps(entry)


def _client(scope: dict[str, Any]) -> str | None:
    client = scope.get("client")
    return None if client is None else _escaped(str(client[0]).encode("utf-8", "surrogateescape"))


def _method(scope: dict[str, Any]) -> str:
    """A WebSocket's scope has no method: the handshake is a GET."""
    method: str = scope.get("method", "GET")
    return method


def _target(scope: dict[str, Any]) -> bytes:
    path: bytes = scope["raw_path"]
    query: bytes = scope["query_string"]
    return b"%b?%b" % (path, query) if query else path


def _fields(scope: dict[str, Any], *wanted: bytes) -> list[bytes | None]:
    """The first value of each field, None where there is none."""
    found: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        if name in wanted:
            found.setdefault(name, value)
    return [found.get(name) for name in wanted]


def _escaped(value: bytes) -> str:
    cut = value[:MOST]
    return (
        _ODD.sub(lambda match: b"\\x%02X" % match[0][0], cut).decode("ascii")
        if _ODD.search(cut)
        else cut.decode("ascii")
    )


def _quoted(value: bytes | None) -> str:
    return "-" if value is None else _escaped(value)


def _decoded(value: bytes | None) -> str | None:
    return None if value is None else value[:MOST].decode("latin-1")

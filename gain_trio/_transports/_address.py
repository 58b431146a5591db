"""Addresses as text: ``tcp://host:port``."""

from __future__ import annotations

import re
from typing import final

import attrs

_TCP = re.compile(r"(?:\[(?P<bracketed>[^\[\]]*)\]|(?P<plain>[^\[\]:/?#@]*)):(?P<port>[0-9]{1,5})")
_EXAMPLES = "tcp://127.0.0.1:8080, tcp://[::1]:8080 or tcp://localhost:0"


@final
@attrs.frozen
class TcpAddress:
    """A host and a port, not looked up."""

    host: str
    """A name, an IPv4 address, or an IPv6 address without brackets; empty for all addresses of this machine."""
    port: int
    """0 to 65535."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{self.port}"


def parse_address(address: str) -> TcpAddress:
    """Take ``tcp://host:port`` apart.  IPv6 addresses stand in brackets; an empty host means all addresses.

    Raises:
      TypeError: ``address`` is not a string.
      ValueError: it is not an address; says what one looks like.
    """
    if not isinstance(address, str):
        raise TypeError(f"an address is a string such as {_EXAMPLES}, not {address!r}")
    scheme, separator, rest = address.partition("://")
    if not separator:
        raise ValueError(f"{address!r} is no address: it has no scheme; write {_EXAMPLES}")
    if scheme != "tcp":
        raise ValueError(f"{address!r} is no address gain_trio can use: the scheme must be tcp; write {_EXAMPLES}")
    match = _TCP.fullmatch(rest)
    if match is None:
        raise ValueError(f"{address!r} is no address: after tcp:// come a host and a port; write {_EXAMPLES}")
    port = int(match["port"])
    if port > 65535:
        raise ValueError(f"{address!r} is no address: a port is at most 65535")
    host = match["bracketed"] if match["plain"] is None else match["plain"]
    if match["bracketed"] is not None and ":" not in host:
        raise ValueError(f"{address!r} is no address: brackets are for IPv6 addresses; write {_EXAMPLES}")
    return TcpAddress(host, port)

r"""The PROXY protocol, versions 1 and 2: what a proxy says about the client before the client's own bytes.

Sans-I/O: :func:`parse_proxy_header` looks at what has arrived so far, and keeps nothing.  So the answer is the same in
whatever pieces the bytes come, and a caller that peeks takes the header out of its queue when it is whole.

    version 1    PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n                   one line, 107 bytes at most
    version 2    signature (12), version and command (1), family and transport (1), length (2), block (length)
                 block: two addresses, then type (1), length (2), value (length), and so on (TLVs)

The specification is HAProxy's doc/proxy-protocol.txt.  Where it leaves a choice:

- Anything that is not exactly a header is refused, as soon as it is seen, because the sender of a header decides who
  the client is.  Whether a peer may send one at all is the caller's to decide, and never to guess: the specification forbids
  to find it out by looking.
- No more than 4,096 bytes unless the caller allows more.  The usual header is below 536; certificates make large ones.
- LOCAL is the proxy talking for itself (health checks).  The specification has its block discarded, family included, so
  nothing in it is looked at.  The same goes for PROXY with an unspecified family or transport: what is in the block is
  then not said, neither whether there are addresses in it nor where they end.
- IPv6 addresses of version 1 may end in dotted decimal (``::ffff:192.0.2.1``).  The grammar does not have that, but the
  usual way to write addresses, inet_ntop(3), does.
- Unknown TLVs are kept.  A TLV that is interpreted here may occur once: with two, the next reader might believe the other
  one.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from typing import Any, Final, Literal, NoReturn, final

import attrs

from ._proxy_header import (
    ADDRESSES,
    UNIX_PATH,
    V2_FIXED,
    V2_SIGNATURE,
    ProxyCommand,
    ProxyFamily,
    ProxyHeader,
    ProxyTransport,
    TlvType,
    crc32c,
)

__all__ = [
    "MAX_LENGTH",
    "NeedMore",
    "ProxyCommand",
    "ProxyFamily",
    "ProxyHeader",
    "ProxyProtocolError",
    "ProxyTransport",
    "TlvType",
    "crc32c",
    "parse_proxy_header",
]

MAX_LENGTH: Final = 4096
"""Bytes that a header may have if nothing else is said."""

V1_MAX_LENGTH: Final = 107
"""Bytes of the longest line of version 1, with its CRLF."""

_V1_PREFIX: Final = b"PROXY "
_V1_SHORTEST: Final = len(b"PROXY UNKNOWN\r\n")
_V1_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")
_MAX_UNIQUE_ID: Final = 128


@final
class ProxyProtocolError(ValueError):
    """What came is not a PROXY protocol header; the message says why not."""


@final
@attrs.frozen
class NeedMore:
    """The header is not whole yet."""

    count: int
    """Bytes that it has at least, those that have been seen included: always more than have been seen."""


def parse_proxy_header(data: bytes, *, max_length: int = MAX_LENGTH) -> ProxyHeader | NeedMore:
    """Look for a header at the beginning of ``data``.

    Args:
      data: all that has arrived.  What comes after the header is not looked at.
      max_length: how many bytes a header may have.

    Returns:
      The header when it is whole, otherwise how many bytes to come again with.

    Raises:
      ProxyProtocolError: ``data`` does not begin with a header, and will not when there is more of it.
    """
    start = data[: len(V2_SIGNATURE)]
    if _V1_PREFIX.startswith(
        start[: len(_V1_PREFIX)]
    ):  # of nothing, too, since the shortest header is one of version 1
        return _parse_v1(data)
    if V2_SIGNATURE.startswith(start):
        return _parse_v2(data, max_length)
    raise ProxyProtocolError(
        f"this is not a PROXY protocol header: it begins with {start!r}; is the sender set to send one?"
    )


# --- version 1 ---


def _parse_v1(data: bytes) -> ProxyHeader | NeedMore:
    line = data[:V1_MAX_LENGTH]
    ends = [place for place in (line.find(b"\r"), line.find(b"\n")) if place >= 0]
    if not ends and len(line) < V1_MAX_LENGTH - 1:
        return NeedMore(max(_V1_SHORTEST, len(line) + 2))
    end = min(ends, default=V1_MAX_LENGTH)
    if end > V1_MAX_LENGTH - 2:
        _refuse_v1(line, f"there is no CRLF within {V1_MAX_LENGTH} bytes")
    line = line[: end + 2]
    if len(line) == end + 1 and line.endswith(b"\r"):  # the CR is the last byte that has arrived
        return NeedMore(max(_V1_SHORTEST, end + 2))
    if line[end:] != b"\r\n":
        _refuse_v1(line, "a line ends with CR and LF, and with neither of them alone")
    kind, *fields = line[len(_V1_PREFIX) : end].split(b" ")
    if kind == b"UNKNOWN":  # and whatever follows, which is to be ignored
        return _header(1, ProxyCommand.PROXY, end + 2)
    if kind not in {b"TCP4", b"TCP6"}:
        _refuse_v1(line, "after PROXY comes TCP4, TCP6 or UNKNOWN")
    if len(fields) != 4:
        _refuse_v1(line, "after the protocol come two addresses and two ports, with one space before each")
    family = ProxyFamily.INET if kind == b"TCP4" else ProxyFamily.INET6
    addresses = [_parse_v1_address(line, family, field) for field in fields[:2]]
    ports = [_parse_v1_port(line, field) for field in fields[2:]]
    return _header(
        1,
        ProxyCommand.PROXY,
        end + 2,
        family=family,
        transport=ProxyTransport.STREAM,
        source=_internet(family, addresses[0], ports[0]),
        destination=_internet(family, addresses[1], ports[1]),
    )


def _refuse_v1(line: bytes, reason: str) -> NoReturn:
    raise ProxyProtocolError(f"{line!r} is not a PROXY protocol header of version 1: {reason}")


def _parse_v1_address(line: bytes, family: ProxyFamily, field: bytes) -> bytes:
    """The address in network byte order."""
    kind = ipaddress.IPv4Address if family is ProxyFamily.INET else ipaddress.IPv6Address
    try:
        address = kind(field.decode("ascii"))
    except ValueError:
        address = None
    if address is None or b"%" in field:  # a scope is no part of an address as the protocol has them
        _refuse_v1(line, f"{field!r} is not an IPv{4 if family is ProxyFamily.INET else 6} address")
    return address.packed


def _parse_v1_port(line: bytes, field: bytes) -> int:
    if not _V1_PORT.fullmatch(field) or int(field) > 65535:
        _refuse_v1(line, f"{field!r} is not a port: 0 to 65535, without leading zeros")
    return int(field)


# --- version 2 ---

_SINGLE: Final = frozenset({TlvType.ALPN, TlvType.AUTHORITY, TlvType.CRC32C, TlvType.UNIQUE_ID})
"""The types that may occur once in a header."""


def _parse_v2(data: bytes, max_length: int) -> ProxyHeader | NeedMore:
    if len(data) > 12 and data[12] >> 4 != 2:
        _refuse_v2(f"the version is {data[12] >> 4}")
    if len(data) > 12 and data[12] & 15 > ProxyCommand.PROXY:
        _refuse_v2(f"the command is {data[12] & 15}, and there are 0 (LOCAL) and 1 (PROXY)")
    if len(data) < V2_FIXED:
        return NeedMore(V2_FIXED)
    length = V2_FIXED + int.from_bytes(data[14:16], "big")
    if length > max_length:
        _refuse_v2(f"it has {length} bytes, and {max_length} are allowed")
    command = ProxyCommand(data[12] & 15)
    if command is ProxyCommand.LOCAL:
        return NeedMore(length) if len(data) < length else _header(2, command, length)
    if data[13] >> 4 > ProxyFamily.UNIX or data[13] & 15 > ProxyTransport.DGRAM:
        _refuse_v2(f"the family and transport are {data[13]:#04x}, and there are 0 to 3 and 0 to 2")
    family, transport = ProxyFamily(data[13] >> 4), ProxyTransport(data[13] & 15)
    is_told = family is not ProxyFamily.UNSPEC and transport is not ProxyTransport.UNSPEC
    if is_told and length - V2_FIXED < ADDRESSES[family]:
        _refuse_v2(f"the addresses of {family.name} have {ADDRESSES[family]} bytes, and there are {length - V2_FIXED}")
    if len(data) < length:
        return NeedMore(length)
    if not is_told:
        return _header(2, command, length, family=family, transport=transport)
    source, destination = _parse_v2_addresses(family, data[V2_FIXED:length])
    return _header(
        2,
        command,
        length,
        family=family,
        transport=transport,
        source=source,
        destination=destination,
        tlvs=_parse_tlvs(data[:length], V2_FIXED + ADDRESSES[family]),
    )


def _refuse_v2(reason: str) -> NoReturn:
    raise ProxyProtocolError(f"this is not a PROXY protocol header of version 2: {reason}")


def _parse_v2_addresses(family: ProxyFamily, block: bytes) -> tuple[Any, Any]:
    if family is ProxyFamily.UNIX:
        return _unix(block[:UNIX_PATH]), _unix(block[UNIX_PATH : 2 * UNIX_PATH])
    size = 4 if family is ProxyFamily.INET else 16
    ports = block[2 * size : 2 * size + 4]
    return (
        _internet(family, block[:size], int.from_bytes(ports[:2], "big")),
        _internet(family, block[size : 2 * size], int.from_bytes(ports[2:], "big")),
    )


def _parse_tlvs(header: bytes, start: int) -> tuple[tuple[int, bytes], ...]:
    tlvs: list[tuple[int, bytes]] = []
    seen: set[int] = set()
    while start < len(header):
        kind, value_start = header[start], start + 3
        end = value_start + int.from_bytes(header[start + 1 : value_start], "big")
        if value_start > len(header) or end > len(header):
            _refuse_v2(f"the TLV at byte {start} goes beyond its end at {len(header)}")
        if kind in _SINGLE and kind in seen:
            _refuse_v2(f"there is more than one TLV of type {TlvType(kind).name}")
        seen.add(kind)
        value = header[value_start:end]
        _check_tlv(kind, value, header, value_start)
        tlvs.append((kind, value))
        start = end
    return tuple(tlvs)


def _check_tlv(kind: int, value: bytes, header: bytes, start: int) -> None:
    if kind == TlvType.CRC32C:
        if len(value) != 4:
            _refuse_v2(f"its checksum has {len(value)} bytes, not 4")
        if crc32c(header[:start] + bytes(4) + header[start + 4 :]) != int.from_bytes(value, "big"):
            _refuse_v2("its checksum is wrong")
    elif kind == TlvType.UNIQUE_ID and len(value) > _MAX_UNIQUE_ID:
        _refuse_v2(f"its unique id has {len(value)} bytes, more than {_MAX_UNIQUE_ID}")
    elif kind == TlvType.AUTHORITY:
        try:
            value.decode()
        except UnicodeDecodeError as error:
            raise ProxyProtocolError(f"the authority in a PROXY protocol header is not UTF-8: {value!r}") from error


# --- both ---


def _header(
    version: Literal[1, 2],
    command: ProxyCommand,
    length: int,
    *,
    family: ProxyFamily = ProxyFamily.UNSPEC,
    transport: ProxyTransport = ProxyTransport.UNSPEC,
    source: Any = None,
    destination: Any = None,
    tlvs: tuple[tuple[int, bytes], ...] = (),
) -> ProxyHeader:
    return ProxyHeader(
        version=version,
        command=command,
        family=family,
        transport=transport,
        source=source,
        destination=destination,
        tlvs=tlvs,
        length=length,
    )


def _internet(family: ProxyFamily, packed: bytes, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """As :mod:`socket` gives addresses."""
    if family is ProxyFamily.INET:
        return socket.inet_ntop(socket.AF_INET, packed), port
    return socket.inet_ntop(socket.AF_INET6, packed), port, 0, 0


def _unix(field: bytes) -> str | bytes:
    """As :mod:`socket` gives addresses: a path is a string, an abstract name bytes that begin with a NUL.

    The header does not have the length of an abstract name, so one that ends with NULs is returned without them.
    """
    if field.startswith(b"\0"):
        return field.rstrip(b"\0") or ""
    return os.fsdecode(field.partition(b"\0")[0])

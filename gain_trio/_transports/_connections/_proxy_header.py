"""What a header of the PROXY protocol says, and its bytes.  ``_proxy_protocol.py`` reads it, and explains the protocol."""

from __future__ import annotations

import enum
import ipaddress
import os
import struct
from collections.abc import Iterable
from typing import Any, Final, Literal, final

import attrs

V2_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
V2_FIXED: Final = 16
UNIX_PATH: Final = 108
LARGEST_BLOCK: Final = 65535
"""Bytes behind the fixed part of version 2: its length has 16 bits."""


class ProxyCommand(enum.IntEnum):
    """On whose behalf the connection was made."""

    LOCAL = 0
    """The proxy's own: the addresses are those of the connection itself."""
    PROXY = 1
    """A client's."""


class ProxyFamily(enum.IntEnum):
    """The kind of the client's addresses."""

    UNSPEC = 0
    INET = 1
    INET6 = 2
    UNIX = 3


class ProxyTransport(enum.IntEnum):
    """The kind of the client's socket."""

    UNSPEC = 0
    STREAM = 1
    DGRAM = 2


class TlvType(enum.IntEnum):
    """What a TLV of version 2 is, as far as it matters here; there are more."""

    ALPN = 0x01
    AUTHORITY = 0x02
    CRC32C = 0x03
    NOOP = 0x04
    UNIQUE_ID = 0x05
    SSL = 0x20
    NETNS = 0x30


@final
@attrs.frozen(kw_only=True)
class ProxyHeader:
    """A header, whole and valid."""

    version: Literal[1, 2]
    command: ProxyCommand
    family: ProxyFamily
    """UNSPEC also for LOCAL, whatever the header says."""
    transport: ProxyTransport
    """UNSPEC also for LOCAL, whatever the header says."""
    source: Any
    """The client, as from :meth:`socket.socket.getpeername`; None when the header has no address: then it is the peer."""
    destination: Any
    """What the client connected to, as from :meth:`socket.socket.getsockname`; None when the header has no address."""
    tlvs: tuple[tuple[int, bytes], ...]
    """Type and value of everything else, in the order of the header."""
    length: int
    """Bytes of the header.  What comes after them is the client's."""

    @classmethod
    def of(
        cls,
        source: Any,
        destination: Any,
        *,
        version: Literal[1, 2] = 2,
        tlvs: Iterable[tuple[int, bytes]] = (),
    ) -> ProxyHeader:
        """Make a header to be sent (:func:`connect`).

        Args:
          source, destination: the client, and what it connected to: the ``remote_address`` and the ``local_address`` of its
            connection.  None for both makes the header LOCAL: the connection is the proxy's own, as for a health check.
          version: 1 is a line of text, for TCP only and without TLVs.
          tlvs: type and value of what version 2 says beside the addresses.  The value of a checksum (type 3) is computed;
            it is to be 4 bytes long.

        Raises:
          ValueError: the addresses are not two of one kind, or version 1 or a TLV cannot say that.
          TypeError: an address is not one of :mod:`socket`.
        """
        family = _family_of(source, destination)
        is_local = family is ProxyFamily.UNSPEC
        header = cls(
            version=version,
            command=ProxyCommand.LOCAL if is_local and version == 2 else ProxyCommand.PROXY,
            family=family,
            transport=ProxyTransport.UNSPEC if is_local else ProxyTransport.STREAM,
            source=source,
            destination=destination,
            tlvs=tuple((int(kind), bytes(value)) for kind, value in tlvs),
            length=0,
        )
        return attrs.evolve(header, length=len(header.encode()))

    def encode(self) -> bytes:
        """The header as it is sent.

        Raises:
          ValueError: the version has no way to say what the header says.
        """
        return _encode_v1(self) if self.version == 1 else _encode_v2(self)

    def tlv(self, kind: int) -> bytes | None:
        """The value of the first TLV of this type, or None."""
        for found, value in self.tlvs:
            if found == kind:
                return value
        return None

    @property
    def alpn(self) -> bytes | None:
        """The protocol that was agreed on in the client's TLS handshake, or None."""
        return self.tlv(TlvType.ALPN)

    @property
    def authority(self) -> str | None:
        """The host name that the client asked for (in TLS: the server name), or None."""
        value = self.tlv(TlvType.AUTHORITY)
        return None if value is None else value.decode()

    @property
    def unique_id(self) -> bytes | None:
        """The proxy's name for this connection, or None."""
        return self.tlv(TlvType.UNIQUE_ID)


# --- the bytes ---

ADDRESSES: Final = {
    ProxyFamily.INET: 2 * 4 + 2 * 2,
    ProxyFamily.INET6: 2 * 16 + 2 * 2,
    ProxyFamily.UNIX: 2 * UNIX_PATH,
}
"""Bytes of the addresses of version 2, with their ports."""


def _family_of(source: Any, destination: Any) -> ProxyFamily:
    families = {_family(address) for address in (source, destination)}
    if len(families) > 1:
        raise ValueError(
            f"a PROXY protocol header has two addresses of one kind, or none, not {source!r} and {destination!r}"
        )
    return families.pop()


def _family(address: Any) -> ProxyFamily:
    if address is None:
        return ProxyFamily.UNSPEC
    if isinstance(address, str | bytes):
        return ProxyFamily.UNIX
    if isinstance(address, tuple) and len(address) in {2, 4} and isinstance(address[0], str):
        return ProxyFamily.INET6 if ":" in address[0] else ProxyFamily.INET
    raise TypeError(f"an address of a PROXY protocol header is one as from socket.getpeername(), not {address!r}")


def _encode_v1(header: ProxyHeader) -> bytes:
    if header.tlvs:
        raise ValueError("a PROXY protocol header of version 1 has no TLVs: give version=2")
    if header.source is None:
        return b"PROXY UNKNOWN\r\n"
    if header.family is ProxyFamily.UNIX:
        raise ValueError("a PROXY protocol header of version 1 is for TCP, and these are Unix sockets: give version=2")
    kind = "TCP4" if header.family is ProxyFamily.INET else "TCP6"
    (source, source_port), (destination, destination_port) = map(_internet, (header.source, header.destination))
    return f"PROXY {kind} {source} {destination} {source_port} {destination_port}\r\n".encode("ascii")


def _encode_v2(header: ProxyHeader) -> bytes:
    block = _addresses(header)
    checksum_at = None
    for kind, value in header.tlvs:
        if not 0 <= kind <= 255 or len(value) > LARGEST_BLOCK:
            raise ValueError(
                f"a TLV has a type of one byte and at most {LARGEST_BLOCK} bytes, not {kind} and {len(value)}"
            )
        block += struct.pack("!BH", kind, len(value))
        if kind == TlvType.CRC32C:
            if len(value) != 4 or checksum_at is not None:
                raise ValueError("a PROXY protocol header has one checksum (TLV 3) at most, of 4 bytes")
            checksum_at, value = V2_FIXED + len(block), bytes(4)  # noqa: PLW2901 - the value is computed below
        block += value
    if len(block) > LARGEST_BLOCK:
        raise ValueError(
            f"a PROXY protocol header has at most {LARGEST_BLOCK} bytes behind its first 16, not {len(block)}"
        )
    kinds = header.family << 4 | header.transport
    encoded = V2_SIGNATURE + struct.pack("!BBH", 2 << 4 | header.command, kinds, len(block)) + block
    if checksum_at is None:
        return encoded
    return encoded[:checksum_at] + struct.pack("!I", crc32c(encoded)) + encoded[checksum_at + 4 :]


def _addresses(header: ProxyHeader) -> bytes:
    if header.source is None:
        if header.tlvs:
            raise ValueError(
                "a PROXY protocol header without addresses has no TLVs, because its readers skip all of it"
            )
        return b""
    if header.family is ProxyFamily.UNIX:
        return b"".join(_unix_field(address) for address in (header.source, header.destination))
    (source, source_port), (destination, destination_port) = map(_internet, (header.source, header.destination))
    return source.packed + destination.packed + struct.pack("!HH", source_port, destination_port)


def _internet(address: Any) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    host, port = address[:2]
    if not isinstance(port, int) or not 0 <= port <= 65535:
        raise ValueError(f"a port is a number from 0 to 65535, not {port!r}")
    # A scope is no part of an address as the protocol has them.
    return ipaddress.ip_address(host.partition("%")[0]), port


def _unix_field(address: str | bytes) -> bytes:
    path = os.fsencode(address)
    if len(path) > UNIX_PATH:
        raise ValueError(
            f"the name of a Unix socket has at most {UNIX_PATH} bytes in a PROXY protocol header, not {path!r}"
        )
    return path.ljust(UNIX_PATH, b"\0")


def _make_crc32c_table() -> tuple[int, ...]:
    table = []
    for index in range(256):
        value = index
        for _bit in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)  # Castagnoli's polynomial, reflected
        table.append(value)
    return tuple(table)


_CRC32C: Final = _make_crc32c_table()


def crc32c(data: bytes) -> int:
    """The checksum of RFC 4960, appendix B."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _CRC32C[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF

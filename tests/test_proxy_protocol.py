"""The PROXY protocol's headers.  The encoder here is written from the specification, not from the parser."""

from __future__ import annotations

import os
import socket
import struct
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.fuzz import cut, places

from gain_trio._transports._connections._proxy_protocol import (
    MAX_LENGTH,
    NeedMore,
    ProxyCommand,
    ProxyFamily,
    ProxyHeader,
    ProxyProtocolError,
    ProxyTransport,
    TlvType,
    crc32c,
    parse_proxy_header,
)

pytestmark = pytest.mark.no_run

SIGNATURE = bytes.fromhex("0D0A0D0A000D0A515549540A")
INET, INET6, UNIX = 0x11, 0x21, 0x31
BLOCKS = {
    INET: bytes([192, 0, 2, 1, 192, 0, 2, 2]) + struct.pack("!HH", 56324, 443),
    INET6: socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    + socket.inet_pton(socket.AF_INET6, "2001:db8::2")
    + struct.pack("!HH", 56324, 443),
    UNIX: b"/run/client".ljust(108, b"\0") + b"/run/server".ljust(108, b"\0"),
}


def v2(block: bytes = b"", *, family: int = 0, command: int = 1, version: int = 2) -> bytes:
    return SIGNATURE + struct.pack("!BBH", version << 4 | command, family, len(block)) + block


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def with_checksum(family: int, block: bytes) -> bytes:
    """The header, with the checksum of all of it at its end."""
    header = v2(block + tlv(3, bytes(4)), family=family)
    return header[:-4] + struct.pack("!I", crc32c(header))


def parse(data: bytes) -> ProxyHeader:
    """The whole header, which ends where it says."""
    header = parse_proxy_header(data)
    assert isinstance(header, ProxyHeader)
    assert parse_proxy_header(data[: header.length]) == header
    return header


# --- version 1 ---


@pytest.mark.parametrize(
    ("line", "source", "destination"),
    [
        (b"TCP4 192.168.0.1 192.168.0.11 56324 443", ("192.168.0.1", 56324), ("192.168.0.11", 443)),
        (b"TCP4 255.255.255.255 0.0.0.0 65535 0", ("255.255.255.255", 65535), ("0.0.0.0", 0)),
        (b"TCP6 2001:db8::1 ::1 1 2", ("2001:db8::1", 1, 0, 0), ("::1", 2, 0, 0)),
        (b"TCP6 2001:DB8:0:0:0:0:0:1 :: 1 2", ("2001:db8::1", 1, 0, 0), ("::", 2, 0, 0)),
        (b"TCP6 ::ffff:192.0.2.1 ::ffff:c000:202 1 2", ("::ffff:192.0.2.1", 1, 0, 0), ("::ffff:192.0.2.2", 2, 0, 0)),
        (
            b"TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535",
            ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 65535, 0, 0),
            ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 65535, 0, 0),
        ),
    ],
)
def test_v1(line: bytes, source: Any, destination: Any) -> None:
    data = b"PROXY " + line + b"\r\n"
    header = parse(data + b"GET / HTTP/1.1\r\n")
    assert header == ProxyHeader(
        version=1,
        command=ProxyCommand.PROXY,
        family=ProxyFamily.INET if line.startswith(b"TCP4") else ProxyFamily.INET6,
        transport=ProxyTransport.STREAM,
        source=source,
        destination=destination,
        tlvs=(),
        length=len(data),
    )


@pytest.mark.parametrize("rest", [b"", b" ", b" ffff:f...f:ffff 65535", b" \x00\xff", b" " + b"x" * 91])
def test_v1_unknown(rest: bytes) -> None:
    data = b"PROXY UNKNOWN" + rest + b"\r\n"
    header = parse(data + b"more\r\n")
    assert (header.family, header.transport) == (ProxyFamily.UNSPEC, ProxyTransport.UNSPEC)
    assert (header.source, header.destination) == (None, None)
    assert header.length == len(data) <= 107


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"PROXY \r\n", "TCP4, TCP6 or UNKNOWN"),
        (b"PROXY  TCP4 1.2.3.4 1.2.3.4 1 1\r\n", "TCP4, TCP6 or UNKNOWN"),
        (b"PROXY tcp4 1.2.3.4 1.2.3.4 1 1\r\n", "TCP4, TCP6 or UNKNOWN"),
        (b"PROXY UDP4 1.2.3.4 1.2.3.4 1 1\r\n", "TCP4, TCP6 or UNKNOWN"),
        (b"PROXY UNKNOWNS\r\n", "TCP4, TCP6 or UNKNOWN"),
        (b"PROXY UNKNOWN\t\r\n", "TCP4, TCP6 or UNKNOWN"),
        (b"PROXY TCP4\r\n", "two addresses and two ports"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n", "two addresses and two ports"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1 1\r\n", "two addresses and two ports"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1 \r\n", "two addresses and two ports"),
        (b"PROXY TCP4 1.2.3.4  1.2.3.4 1 1\r\n", "two addresses and two ports"),
        (b"PROXY TCP4 1.2.3.4 1.2.3 1 1\r\n", "b'1.2.3' is not an IPv4 address"),
        (b"PROXY TCP4 1.2.3.04 1.2.3.4 1 1\r\n", "is not an IPv4 address"),
        (b"PROXY TCP4 1.2.3.256 1.2.3.4 1 1\r\n", "is not an IPv4 address"),
        (b"PROXY TCP4 ::1 ::1 1 1\r\n", "is not an IPv4 address"),
        (b"PROXY TCP4 1.2.3.4/8 1.2.3.4 1 1\r\n", "is not an IPv4 address"),
        (b"PROXY TCP6 1.2.3.4 1.2.3.4 1 1\r\n", "is not an IPv6 address"),
        (b"PROXY TCP6 ::1 1.2.3.4 1 1\r\n", "is not an IPv6 address"),
        (b"PROXY TCP6 ::1%1 ::1 1 1\r\n", "is not an IPv6 address"),
        (b"PROXY TCP6 [::1] ::1 1 1\r\n", "is not an IPv6 address"),
        (b"PROXY TCP6 1::2::3 ::1 1 1\r\n", "is not an IPv6 address"),
        (b"PROXY TCP4 1.2.3.\xb2 1.2.3.4 1 1\r\n", "is not an IPv4 address"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 65536 1\r\n", "b'65536' is not a port"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 00\r\n", "b'00' is not a port"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 01 1\r\n", "is not a port"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 +1 1\r\n", "is not a port"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 -1\r\n", "is not a port"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 \xd9\xa1\r\n", "is not a port"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 999999\r\n", "is not a port"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1\n", "neither of them alone"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1\rGET", "neither of them alone"),
        (b"PROXY TCP4 1.2.3.4\n1.2.3.4 1 1\r\n", "neither of them alone"),
        (b"PROXY UNKNOWN\n", "neither of them alone"),
        (b"PROXY UNKNOWN" + b"x" * 93, "no CRLF within 107 bytes"),
        (b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n", "no CRLF within 107 bytes"),
        (b"PROXY UNKNOWN " + b"x" * 4000, "no CRLF within 107 bytes"),
    ],
)
def test_what_is_no_v1(line: bytes, message: str) -> None:
    with pytest.raises(ProxyProtocolError, match=message):
        parse_proxy_header(line)


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (b"", 15),
        (b"P", 15),
        (b"PROXY ", 15),
        (b"PROXY UNKNOWN", 15),
        (b"PROXY UNKNOWN\r", 15),
        (b"PROXY UNKNOWN ", 16),
        (b"PROXY UNKNOWN \r", 16),
        (b"PROXY UNKNOWN " + b"x" * 91, 107),
        (b"PROXY UNKNOWN " + b"x" * 91 + b"\r", 107),
    ],
)
def test_v1_that_is_not_whole(data: bytes, count: int) -> None:
    assert parse_proxy_header(data) == NeedMore(count)


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n", b"G", b"\x16\x03\x01", b"PROXX", b"proxy ", b"PROXY\r\n", b" "]
)
def test_what_is_neither(data: bytes) -> None:
    with pytest.raises(ProxyProtocolError, match="is the sender set to send one"):
        parse_proxy_header(data)


# --- version 2 ---


@pytest.mark.parametrize(
    ("family", "source", "destination"),
    [
        (INET, ("192.0.2.1", 56324), ("192.0.2.2", 443)),
        (INET6, ("2001:db8::1", 56324, 0, 0), ("2001:db8::2", 443, 0, 0)),
        (UNIX, "/run/client", "/run/server"),
    ],
)
@pytest.mark.parametrize("transport", [ProxyTransport.STREAM, ProxyTransport.DGRAM])
def test_v2(family: int, source: Any, destination: Any, transport: ProxyTransport) -> None:
    data = v2(BLOCKS[family], family=family & 0xF0 | transport)
    header = parse(data + b"more")
    assert header == ProxyHeader(
        version=2,
        command=ProxyCommand.PROXY,
        family=ProxyFamily(family >> 4),
        transport=transport,
        source=source,
        destination=destination,
        tlvs=(),
        length=len(data),
    )


@pytest.mark.parametrize(
    ("field", "address"),
    [
        (b"", ""),
        (b"\0name", b"\0name"),
        (b"\0a\0b", b"\0a\0b"),
        (b"\0\0a", b"\0\0a"),
        (b"/a\0garbage", "/a"),
        (b"/" + b"a" * 107, "/" + "a" * 107),
        (b"/\xff", os.fsdecode(b"/\xff")),
    ],
)
def test_v2_unix_addresses(field: bytes, address: str | bytes) -> None:
    header = parse(v2(field.ljust(108, b"\0") + bytes(108), family=UNIX))
    assert (header.source, header.destination) == (address, "")


@pytest.mark.parametrize("family", [0x00, INET, 0x32, 0x40, 0xFF])
@pytest.mark.parametrize("block", [b"", b"x", b"\x03\x00\x04oops", bytes(300)])
def test_v2_local(family: int, block: bytes) -> None:
    """Accepted and discarded, whatever is in it."""
    header = parse(v2(block, family=family, command=0))
    assert (header.version, header.command, header.length) == (2, ProxyCommand.LOCAL, 16 + len(block))
    assert (header.family, header.transport) == (ProxyFamily.UNSPEC, ProxyTransport.UNSPEC)
    assert (header.source, header.destination, header.tlvs) == (None, None, ())


@pytest.mark.parametrize("family", [0x00, 0x01, 0x02, 0x10, 0x20, 0x30])
@pytest.mark.parametrize("block", [b"", b"x", bytes(300)])
def test_v2_unspecified(family: int, block: bytes) -> None:
    header = parse(v2(block, family=family))
    assert header.command is ProxyCommand.PROXY
    assert (header.family, header.transport) == (ProxyFamily(family >> 4), ProxyTransport(family & 15))
    assert (header.source, header.destination, header.tlvs) == (None, None, ())
    assert header.length == 16 + len(block)


def test_v2_tlvs() -> None:
    tlvs = [
        (TlvType.ALPN, b"h2"),
        (TlvType.NOOP, b""),
        (0xE0, b"\x00\xff"),
        (0xE0, b"again"),
        (TlvType.AUTHORITY, "bücher.example".encode()),
        (TlvType.NOOP, bytes(3)),
        (TlvType.UNIQUE_ID, b"x" * 128),
        (TlvType.SSL, bytes(5)),
    ]
    block = BLOCKS[INET6] + b"".join(tlv(kind, value) for kind, value in tlvs)
    header = parse(v2(block, family=INET6))
    assert header.tlvs == tuple(tlvs)
    assert header.alpn == b"h2"
    assert header.authority == "bücher.example"
    assert header.unique_id == b"x" * 128
    assert header.tlv(0xE0) == b"\x00\xff"
    assert header.tlv(0xE1) is None
    bare = parse(v2(BLOCKS[INET], family=INET))
    assert (bare.alpn, bare.authority, bare.unique_id) == (None, None, None)


def test_v2_checksum() -> None:
    data = with_checksum(INET, BLOCKS[INET] + tlv(TlvType.ALPN, b"h2"))
    assert parse(data).alpn == b"h2"
    for place in range(16, len(data)):
        broken = bytearray(data)
        broken[place] ^= 1
        with pytest.raises(ProxyProtocolError):
            parse_proxy_header(bytes(broken))


def test_v2_checksum_that_was_computed_elsewhere() -> None:
    """One more byte by byte, so that the order of the bytes and what is summed do not rest on crc32c() alone."""
    header = v2(BLOCKS[INET] + tlv(3, bytes(4)), family=INET)
    value = 0xFFFFFFFF  # bit by bit, most significant first, with everything reflected
    for byte in header:
        for bit in range(8):
            top = value >> 31 ^ (byte >> bit & 1)
            value = (value << 1 & 0xFFFFFFFF) ^ (0x1EDC6F41 if top else 0)
    checksum = int(f"{value ^ 0xFFFFFFFF:032b}"[::-1], 2)
    assert parse(header[:-4] + checksum.to_bytes(4, "big")).tlv(3) == checksum.to_bytes(4, "big")


@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # and the others: RFC 3720, B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_crc32c(data: bytes, checksum: int) -> None:
    assert crc32c(data) == checksum


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (v2(version=1), "the version is 1"),
        (v2(version=3), "the version is 3"),
        (v2(command=2), "the command is 2"),
        (v2(command=15), "the command is 15"),
        (v2(family=0x40), "family and transport are 0x40"),
        (v2(family=0x13), "family and transport are 0x13"),
        (v2(family=0xFF), "family and transport are 0xff"),
        (v2(BLOCKS[INET][:-1], family=INET), "addresses of INET have 12 bytes, and there are 11"),
        (v2(BLOCKS[INET6][:-1], family=INET6), "addresses of INET6 have 36 bytes"),
        (v2(BLOCKS[UNIX][:-1], family=UNIX), "addresses of UNIX have 216 bytes"),
        (v2(b"", family=INET), "and there are 0"),
        (v2(BLOCKS[INET] + b"\x01", family=INET), "TLV at byte 28 goes beyond its end at 29"),
        (v2(BLOCKS[INET] + b"\x01\x00", family=INET), "goes beyond its end"),
        (v2(BLOCKS[INET] + b"\x01\x00\x01", family=INET), "goes beyond its end"),
        (v2(BLOCKS[INET] + tlv(1, b"h2")[:-1], family=INET), "goes beyond its end"),
        (v2(BLOCKS[INET] + tlv(4, b"") + b"\x01", family=INET), "TLV at byte 31 goes beyond its end"),
        (v2(BLOCKS[INET] + tlv(3, bytes(3)), family=INET), "checksum has 3 bytes"),
        (v2(BLOCKS[INET] + tlv(3, bytes(5)), family=INET), "checksum has 5 bytes"),
        (v2(BLOCKS[INET] + tlv(3, bytes(4)), family=INET), "checksum is wrong"),
        (v2(BLOCKS[INET] + tlv(5, bytes(129)), family=INET), "unique id has 129 bytes"),
        (v2(BLOCKS[INET] + tlv(2, b"\xff"), family=INET), "not UTF-8"),
        (v2(BLOCKS[INET] + tlv(1, b"a") + tlv(1, b"a"), family=INET), "more than one TLV of type ALPN"),
        (v2(BLOCKS[INET] + tlv(2, b"a") + tlv(2, b"b"), family=INET), "more than one TLV of type AUTHORITY"),
        (v2(BLOCKS[INET] + tlv(5, b"a") + tlv(5, b"a"), family=INET), "more than one TLV of type UNIQUE_ID"),
        (v2(bytes(MAX_LENGTH - 15), family=0), "has 4097 bytes, and 4096 are allowed"),
        (v2(bytes(65535), family=0, command=0), "has 65551 bytes, and 4096 are allowed"),
    ],
)
def test_what_is_no_v2(data: bytes, message: str) -> None:
    with pytest.raises(ProxyProtocolError, match=message):
        parse_proxy_header(data)


def test_v2_of_the_largest_size() -> None:
    assert parse(v2(bytes(MAX_LENGTH - 16))).length == MAX_LENGTH
    header = parse_proxy_header(v2(bytes(65535)), max_length=16 + 65535)
    assert isinstance(header, ProxyHeader)
    assert header.length == 65551
    with pytest.raises(ProxyProtocolError, match="100 are allowed"):
        parse_proxy_header(v2(bytes(85))[:16], max_length=100)


@pytest.mark.parametrize("size", range(1, 16))
def test_v2_that_is_not_whole(size: int) -> None:
    data = v2(BLOCKS[INET], family=INET)
    assert parse_proxy_header(data[:size]) == NeedMore(16)
    assert parse_proxy_header(data[: 12 + size]) == NeedMore(16 if size < 4 else 28)


# --- whatever the pieces ---

ADDRESSES = {
    INET: st.tuples(st.ip_addresses(v=4), st.ip_addresses(v=4)),
    INET6: st.tuples(st.ip_addresses(v=6), st.ip_addresses(v=6)),
}
PORTS = st.tuples(st.integers(0, 65535), st.integers(0, 65535))
TLVS = st.lists(st.tuples(st.sampled_from([0, 4, 0x20, 0x30, 0xE0, 0xFF]), st.binary(max_size=40)), max_size=6)


def sockaddr(address: Any, port: int) -> Any:
    """The socket address that :mod:`socket` returns for the address."""
    if address.version == 4:
        return str(address), port
    return socket.inet_ntop(socket.AF_INET6, address.packed), port, 0, 0


Answer = NeedMore | ProxyHeader | type[ProxyProtocolError]


def answer(data: bytes) -> Answer:
    try:
        return parse_proxy_header(data)
    except ProxyProtocolError:
        return ProxyProtocolError


def answer_in_pieces(pieces: list[bytes]) -> Answer:
    """Parse as a caller does: look at the data again whenever more has arrived."""
    seen = b""
    for piece in pieces:
        seen += piece
        found = answer(seen)
        if not isinstance(found, NeedMore):
            return found
        assert found.count > len(seen)
    return answer(seen)


@given(st.data())
def test_valid_headers_in_any_pieces(choose: st.DataObject) -> None:
    family = choose.draw(st.sampled_from([INET, INET6]))
    (source, destination), (from_port, to_port) = choose.draw(ADDRESSES[family]), choose.draw(PORTS)
    tlvs: list[tuple[int, bytes]] = []
    if choose.draw(st.booleans()):
        version = 1
        protocol = "TCP4" if family == INET else "TCP6"
        data = f"PROXY {protocol} {source} {destination} {from_port} {to_port}\r\n".encode()
    else:
        version = 2
        tlvs = choose.draw(TLVS)
        block = source.packed + destination.packed + struct.pack("!HH", from_port, to_port)
        block += b"".join(tlv(kind, value) for kind, value in tlvs)
        if choose.draw(st.booleans()):
            data = with_checksum(family, block)
            tlvs = [*tlvs, (3, data[-4:])]
        else:
            data = v2(block, family=family)
    expected = ProxyHeader(
        version=version,  # type: ignore[arg-type]  # one of the two
        command=ProxyCommand.PROXY,
        family=ProxyFamily(family >> 4),
        transport=ProxyTransport.STREAM,
        source=sockaddr(source, from_port),
        destination=sockaddr(destination, to_port),
        tlvs=tuple(tlvs),
        length=len(data),
    )
    more = data + choose.draw(st.binary(max_size=30))
    assert answer_in_pieces(cut(more, choose.draw(places(len(more))))) == expected
    for size in range(len(data)):
        found = parse_proxy_header(data[:size])
        assert isinstance(found, NeedMore)
        assert size < found.count <= len(data), "it asks for more than there is, and never for more than the header has"


BEGINNINGS = st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ::1 ", b"PROXY UNKNOWN", SIGNATURE])
V1_BITS = st.lists(
    st.sampled_from([b"TCP4", b" ", b"1.2.3.4", b"::1", b"80", b"0", b"\r", b"\n", b"\r\n", b"x" * 30])
).map(b"".join)
V2_BITS = st.builds(
    lambda command, family, size, rest: struct.pack("!BBH", command, family, size) + rest,
    st.sampled_from([0x20, 0x21, 0x22, 0x11]),
    st.sampled_from([0, 1, 0x11, 0x12, 0x21, 0x31, 0x41, 0x13]),
    st.integers(0, 300),
    st.binary(max_size=300),
)


@given(BEGINNINGS, st.one_of(st.binary(max_size=200), V1_BITS, V2_BITS), places(300))
@example(b"PROXY UNKNOWN ", b"x" * 91 + b"\r\n", [105, 106])
@example(b"PROXY UNKNOWN ", b"x" * 92 + b"\r\n", [105, 106, 107])
@example(b"PROXY UNKNOWN", b"\r", [])
@example(b"", b"", [])
def test_any_bytes_in_any_pieces(beginning: bytes, rest: bytes, cuts: list[int]) -> None:
    data = beginning + rest
    whole = answer(data)
    assert answer_in_pieces(cut(data, cuts)) == whole
    assert answer_in_pieces([data[index : index + 1] for index in range(len(data))]) == whole
    if isinstance(whole, ProxyHeader):
        assert 15 <= whole.length <= len(data)
        assert whole.authority is None or isinstance(whole.authority, str)

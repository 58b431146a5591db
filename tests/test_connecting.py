"""connect(): the address of this end, and a PROXY protocol header in front."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import trio
from support.certificates import client_context, server_context
from support.fuzz import given, st
from support.pairs import receive_all
from support.servers import connect, echo, serving

import gain_trio
from gain_trio import Connection, ProxyHeader
from gain_trio._transports import _open
from gain_trio._transports._addresses import reset_on_close
from gain_trio._transports._connections._proxy_protocol import parse_proxy_header

pytestmark = pytest.mark.connections

CLIENT, SERVED = ("192.0.2.1", 56324), ("192.0.2.2", 443)


async def tell_addresses(connection: Connection) -> None:
    await connection.send(repr((connection.remote_address, connection.local_address)).encode())


def where(server: gain_trio.Server) -> str:
    return f"tcp://127.0.0.1:{server.addresses[0][1]}"


# --- the source address ---


@pytest.mark.parametrize("host", ["127.0.0.2", ""])
async def test_a_source_address(host: str) -> None:
    async with serving(tell_addresses) as server:
        async with await gain_trio.connect(where(server), source_address=(host, 0)) as client:
            assert client.local_address[0] == (host or "127.0.0.1")
            assert eval(await receive_all(client))[0] == client.local_address


async def test_a_source_port() -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.3", 0))
        source = sock.getsockname()
    async with serving(tell_addresses) as server:
        async with await gain_trio.connect(where(server), source_address=source) as client:
            assert client.local_address == source
            assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert eval(await receive_all(client))[0] == source


@pytest.mark.parametrize("port", [0, 4711])
async def test_a_source_address_that_this_machine_has_not(port: int) -> None:
    async with serving(echo) as server:
        with pytest.raises(OSError, match="connect"):
            await gain_trio.connect(where(server), source_address=("192.0.2.1", port))
        with pytest.raises(OSError, match="connect"):
            await gain_trio.connect(where(server), source_address=("::1", port))


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("127.0.0.1", TypeError, r"a tuple such as \('192\.0\.2\.1', 0\)"),
        (("127.0.0.1",), TypeError, "a tuple such as"),
        ((1, 2), TypeError, "a tuple such as"),
        (("127.0.0.1", -1), ValueError, "0 to 65535, and 0 lets the kernel choose"),
        (("127.0.0.1", "80"), ValueError, "0 to 65535"),
    ],
)
async def test_a_source_address_that_makes_no_sense(address: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        await gain_trio.connect("tcp://127.0.0.1:1", source_address=address)


async def test_a_unix_connection_has_no_source_address(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="source_address is for TCP"):
        await gain_trio.connect(f"unix://{tmp_path}/s", source_address=("127.0.0.1", 0))


# --- the header ---

PORTS = st.integers(0, 65535)
FOUR = st.tuples(st.ip_addresses(v=4).map(str), PORTS)
SIX = st.tuples(
    st.ip_addresses(v=6).map(lambda address: socket.inet_ntop(socket.AF_INET6, address.packed)),
    PORTS,
    st.just(0),
    st.just(0),
)
PATHS = st.one_of(st.just(""), st.from_regex(r"/[a-z]{1,100}", fullmatch=True))
PAIRS = st.one_of(st.tuples(FOUR, FOUR), st.tuples(SIX, SIX), st.tuples(PATHS, PATHS), st.just((None, None)))
TLVS = st.lists(st.tuples(st.integers(0x30, 0xFF), st.binary(max_size=40)), max_size=4)


@given(PAIRS, TLVS, st.booleans())
def test_what_is_sent_is_what_is_read(pair: tuple[Any, Any], tlvs: list[tuple[int, bytes]], checked: bool) -> None:
    if pair == (None, None):
        tlvs, checked = [], False
    header = ProxyHeader.of(*pair, tlvs=[*tlvs, *([(3, bytes(4))] if checked else [])])
    read = parse_proxy_header(header.encode() + b"more")
    assert isinstance(read, ProxyHeader)
    assert (read.source, read.destination) == (header.source, header.destination) == pair
    assert (read.command, read.family, read.transport) == (header.command, header.family, header.transport)
    assert read.length == header.length == len(header.encode())
    assert [tlv for tlv in read.tlvs if tlv[0] != 3] == tlvs
    assert read.encode() == header.encode()


@given(st.one_of(st.tuples(FOUR, FOUR), st.tuples(SIX, SIX), st.just((None, None))))
def test_version_1(pair: tuple[Any, Any]) -> None:
    header = ProxyHeader.of(*pair, version=1)
    assert header.encode().endswith(b"\r\n")
    assert parse_proxy_header(header.encode()) == header


def test_a_scope_is_left_out() -> None:
    header = ProxyHeader.of(("fe80::1%lo", 5, 0, 1), ("fe80::2", 6, 0, 0), version=1)
    assert header.encode() == b"PROXY TCP6 fe80::1 fe80::2 5 6\r\n"


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("tls", [False, True])
async def test_a_server_behind_it_sees_the_client(version: Any, tls: bool) -> None:
    options: dict[str, Any] = {"ssl_context": server_context()} if tls else {}
    header = ProxyHeader.of(CLIENT, SERVED, version=version)
    async with serving(tell_addresses, proxy_protocol=("127.0.0.1",), **options) as server:
        own = {"ssl_context": client_context()} if tls else {}
        async with await gain_trio.connect(where(server), proxy_header=header, **own) as client:
            assert eval(await receive_all(client)) == (CLIENT, SERVED)


async def test_a_proxy_passes_on_what_it_was_told(tmp_path: Path) -> None:
    """Two proxies in a row: the first names its client, with what it knows of it, and the second passes that on."""
    found: list[ProxyHeader | None] = []

    async def last(connection: Connection) -> None:
        found.append(connection.proxy_header)

    async with serving(last, f"unix://{tmp_path}/s", proxy_protocol=True):

        async def proxy(connection: Connection) -> None:
            upstream = await gain_trio.connect(f"unix://{tmp_path}/s", proxy_header=connection.proxy_header)
            assert await receive_all(upstream) == b""
            await upstream.aclose()

        async with serving(proxy, proxy_protocol=True) as server:
            header = ProxyHeader.of(
                CLIENT, SERVED, tlvs=[(2, b"example.org"), (1, b"h2"), (3, bytes(4)), (0xE0, b"own")]
            )
            async with await gain_trio.connect(where(server), proxy_header=header) as client:
                assert await receive_all(client) == b""
    [last_header] = found
    assert last_header is not None
    assert (last_header.source, last_header.authority, last_header.alpn) == (CLIENT, "example.org", b"h2")
    assert last_header.tlv(0xE0) == b"own"


async def test_the_addresses_of_a_connection() -> None:
    async def proxy(connection: Connection) -> None:
        header = ProxyHeader.of(connection.remote_address, connection.local_address)
        async with await gain_trio.connect(where(behind), proxy_header=header) as upstream:
            await connection.send(await receive_all(upstream))

    async with serving(tell_addresses, proxy_protocol=True) as behind, serving(proxy) as server:
        async with await connect(server) as client:
            assert eval(await receive_all(client)) == (client.local_address, client.remote_address)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((CLIENT, None), {}, "two addresses of one kind, or none"),
        ((CLIENT, ("::1", 5, 0, 0)), {}, "two addresses of one kind, or none"),
        ((CLIENT, ("192.0.2.2", 65536)), {}, "0 to 65535"),
        ((CLIENT, ("host", 1)), {}, "'host' does not appear to be an IPv4"),
        (("/a", "/b"), {"version": 1}, "Unix sockets: give version=2"),
        (("/a" * 100, "/b"), {}, "at most 108 bytes"),
        ((CLIENT, SERVED), {"version": 1, "tlvs": [(1, b"h2")]}, "no TLVs: give version=2"),
        ((None, None), {"tlvs": [(1, b"h2")]}, "without addresses has no TLVs"),
        ((CLIENT, SERVED), {"tlvs": [(256, b"")]}, "a type of one byte"),
        ((CLIENT, SERVED), {"tlvs": [(3, b"")]}, "one checksum .* of 4 bytes"),
        ((CLIENT, SERVED), {"tlvs": [(3, bytes(4))] * 2}, "one checksum"),
        ((CLIENT, SERVED), {"tlvs": [(0xE0, bytes(65535))]}, "at most 65535 bytes behind its first 16"),
    ],
)
def test_a_header_that_cannot_be(arguments: tuple[Any, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProxyHeader.of(*arguments, **options)


@pytest.mark.parametrize(
    ("header", "error", "message"),
    [
        (b"PROXY UNKNOWN\r\n", TypeError, r"ProxyHeader\.of\(\) makes one"),
        (ProxyHeader.of(CLIENT, SERVED, tlvs=[(1, b"h2"), (1, b"h3")]), ValueError, "more than one TLV of type ALPN"),
        (ProxyHeader.of(CLIENT, SERVED, tlvs=[(2, b"\xff")]), ValueError, "not UTF-8"),
    ],
)
async def test_a_header_that_no_reader_takes(header: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        await gain_trio.connect("tcp://127.0.0.1:1", proxy_header=header)


def test_an_address_that_is_none() -> None:
    with pytest.raises(TypeError, match=r"socket\.getpeername"):
        ProxyHeader.of(5, 6)


@pytest.mark.parametrize("call", ["receive", "send"])
async def test_a_peer_that_is_gone_before_the_header(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """The connection is one that breaks, as without a header."""
    connect_tcp = _open.connect_tcp
    with socket.create_server(("127.0.0.1", 0)) as listener:

        async def connect_late(*arguments: Any) -> socket.socket:
            sock = await connect_tcp(*arguments)
            accepted, _address = listener.accept()
            reset_on_close(accepted)
            accepted.close()
            await trio.lowlevel.wait_readable(sock)
            return sock

        monkeypatch.setattr(_open, "connect_tcp", connect_late)
        header = ProxyHeader.of(CLIENT, SERVED)
        client = await gain_trio.connect(listener.getsockname(), proxy_header=header)
        with pytest.raises(trio.BrokenResourceError):
            if call == "receive":
                await client.receive()
            else:
                while True:
                    await client.send(b"x")
                    await client.flush()
        await client.aclose()
        with pytest.raises(OSError, match=r"the TLS handshake with .* failed"):
            await gain_trio.connect(
                listener.getsockname(), proxy_header=header, ssl_context=client_context(), server_hostname="localhost"
            )


async def test_what_a_server_that_expects_none_gets() -> None:
    """The header is in front of everything else."""
    async with serving(echo) as server:
        header = ProxyHeader.of(CLIENT, SERVED, version=1)
        async with await gain_trio.connect(where(server), proxy_header=header) as client:
            await client.send(b"hello")
            whole = header.encode() + b"hello"
            with trio.fail_after(30):
                assert await client.receive_exactly(len(whole)) == whole

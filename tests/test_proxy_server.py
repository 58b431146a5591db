"""serve(proxy_protocol=...): who may say who the client is, and what it says."""

from __future__ import annotations

import logging
import math
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
import trio
from support.pairs import pattern, receive_all, until
from support.servers import connect, serving
from trio.testing import MockClock, wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection, Server
from gain_trio._server._proxy import ProxyStep
from gain_trio._transports._connections._proxy_protocol import ProxyCommand, ProxyFamily

pytestmark = pytest.mark.connections

LOCAL = "tcp://127.0.0.1:0"
V1 = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V2 = SIGNATURE + b"\x21\x11" + struct.pack("!H4s4sHH", 12, bytes([192, 0, 2, 1]), bytes([198, 51, 100, 2]), 56324, 443)
V2_LOCAL = SIGNATURE + b"\x20\x00\x00\x00"


class Seen:
    """The facts that the handler has recorded."""

    def __init__(self) -> None:
        self.addresses: list[tuple[Any, Any]] = []
        self.direct: list[tuple[Any, Any]] = []
        self.headers: list[gain_trio.ProxyHeader | None] = []
        self.data: list[bytes] = []

    async def handler(self, connection: Connection) -> None:
        """Note it, and send back what comes."""
        self.addresses.append((connection.remote_address, connection.local_address))
        self.direct.append((connection.direct_remote_address, connection.direct_local_address))
        self.headers.append(connection.proxy_header)
        data = await receive_all(connection)
        self.data.append(data)
        await connection.send(data)


async def exchange(server: Server, *pieces: bytes) -> bytes:
    """Send the pieces, each for itself, and return the answer."""
    async with await connect(server) as client:
        for piece in pieces:
            await client.send(piece)
            await client.flush()
            await wait_all_tasks_blocked()
        await client.send_eof()
        return await receive_all(client)


@pytest.mark.parametrize("header", [V1, V2], ids=["1", "2"])
@pytest.mark.parametrize("split", [0, 1, 14, 16, 27, -1])
async def test_the_addresses_are_the_clients(header: bytes, split: int) -> None:
    seen = Seen()
    data = pattern(100_000)
    async with serving(seen.handler, proxy_protocol=("127.0.0.1",)) as server:
        assert await exchange(server, header[:split], header[split:] + data) == data
        assert server.statistics().refused == 0
    assert seen.addresses == [(("192.0.2.1", 56324), ("198.51.100.2", 443))]
    [(remote, local)] = seen.direct
    assert remote[0] == local[0] == "127.0.0.1"
    assert local == server.addresses[0]
    [found] = seen.headers
    assert found is not None
    assert (found.length, found.family) == (len(header), ProxyFamily.INET)


async def test_without_it_the_bytes_are_the_handlers() -> None:
    seen = Seen()
    async with serving(seen.handler) as server:
        assert await exchange(server, V1, b"data") == V1 + b"data"
    assert seen.headers == [None]
    assert seen.addresses == seen.direct


@pytest.mark.parametrize("header", [V2_LOCAL, b"PROXY UNKNOWN\r\n"])
async def test_what_names_no_client_keeps_the_real_addresses(header: bytes) -> None:
    seen = Seen()
    async with serving(seen.handler, proxy_protocol=["127.0.0.0/8"]) as server:
        assert await exchange(server, header, b"data") == b"data"
    assert seen.addresses == seen.direct
    [found] = seen.headers
    assert found is not None
    assert found.source is None
    assert (found.command is ProxyCommand.LOCAL) == (header == V2_LOCAL)


async def until_refused(server: Server, count: int = 1) -> None:
    await until(lambda: server.statistics().refused == count and not server.active_connections)


async def is_refused(client: Connection) -> bool:
    try:
        return await client.receive() == b""
    except trio.BrokenResourceError:
        return True


async def test_from_somebody_else_nothing_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    seen = Seen()
    async with serving(seen.handler, proxy_protocol=("192.0.2.0/24", "2001:db8::/32")) as server:
        async with await connect(server) as client:
            assert await is_refused(client)
        await until_refused(server)
        statistics = server.statistics()
        assert (statistics.accepted, statistics.handler_errors, statistics.broken) == (1, 0, 0)
    assert seen.addresses == []
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().endswith("is refused: 127.0.0.1 is not among those who may send a PROXY protocol header")
    assert record.exc_info is None


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"PROXY TCP4 nonsense\r\n", SIGNATURE + b"\x33\x11\0\0"])
async def test_what_is_no_header_is_refused(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    seen = Seen()
    async with serving(seen.handler, proxy_protocol=True) as server:
        async with await connect(server) as client:
            await client.send(data)
            assert await is_refused(client)
        await until_refused(server)
        assert await exchange(server, V1, b"others are served") == b"others are served"
    assert len(seen.addresses) == 1
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "PROXY protocol header" in record.getMessage()


@pytest.mark.parametrize("data", [b"", V1[:20], V2[:20], b"G"])
async def test_a_header_that_ends_too_early(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    seen = Seen()
    async with serving(seen.handler, proxy_protocol=True) as server:
        async with await connect(server) as client:
            await client.send(data)
            await client.send_eof()
            assert await is_refused(client)
        await until_refused(server)
    assert seen.addresses == []
    assert len(caplog.records) == 1


async def test_a_header_that_does_not_come(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    seen = Seen()
    async with serving(seen.handler, proxy_protocol=True, proxy_timeout=7) as server:
        async with await connect(server) as client:
            await client.send(V1[:30])
            before = trio.current_time()
            assert await is_refused(client)
            assert trio.current_time() - before == pytest.approx(7, abs=0.5)
        await until_refused(server)
    assert caplog.records[0].getMessage().endswith("no PROXY protocol header came in time")


async def test_no_timeout(autojump_clock: MockClock) -> None:
    seen = Seen()
    async with serving(seen.handler, proxy_protocol=True, proxy_timeout=math.inf) as server:
        async with await connect(server) as client:
            await trio.sleep(80_000)
            await client.send(V1)
            await client.send_eof()
            assert await receive_all(client) == b""
    assert len(seen.addresses) == 1


async def test_a_peer_that_breaks_off(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    seen = Seen()
    async with serving(seen.handler, proxy_protocol=True, strict=True) as server:
        client = await connect(server)
        await client.send(V1[:10])
        await client.flush()
        await until(lambda: server.active_connections == 1)
        await wait_all_tasks_blocked()
        client.abort()
        await until_refused(server)
    assert [record.levelno for record in caplog.records if "refused" in record.getMessage()] == [logging.INFO]


async def test_one_that_waits_holds_up_nobody() -> None:
    seen = Seen()
    async with serving(seen.handler, proxy_protocol=True) as server:
        async with await connect(server):
            for _ in range(3):
                assert await exchange(server, V1, b"x") == b"x"
            assert server.statistics().active == 1


async def test_cancelling_the_server_while_a_header_is_waited_for() -> None:
    seen = Seen()
    async with serving(seen.handler, proxy_protocol=True) as server:
        client = await connect(server)
        await until(lambda: server.active_connections == 1)
    assert await is_refused(client)
    await client.aclose()


async def test_small_marks() -> None:
    seen = Seen()
    marks = gain_trio.Marks(receive_high=4, receive_low=1)
    async with serving(seen.handler, proxy_protocol=True, marks=marks) as server:
        assert await exchange(server, V1 + b"data") == b"data"
    assert seen.data == [b"data"]


@pytest.mark.parametrize(
    ("senders", "fine"), [(True, True), (["127.0.0.1"], True), (["::1"], True), (["10.0.0.0/8"], False)]
)
async def test_a_peer_on_a_unix_socket_is_local(tmp_path: Path, senders: Any, fine: bool) -> None:
    seen = Seen()
    address = f"unix://{tmp_path}/s"
    async with serving(seen.handler, address, proxy_protocol=senders) as server:
        async with await gain_trio.connect(address) as client:
            if fine:
                await client.send(V1 + b"data")
                await client.send_eof()
                assert await receive_all(client) == b"data"
                assert seen.addresses[0][0] == ("192.0.2.1", 56324)
                assert seen.direct == [("", str(tmp_path / "s"))]
            else:
                assert await is_refused(client)
                await until_refused(server)


@pytest.mark.parametrize(
    ("peer", "senders", "fine"),
    [
        (("10.1.2.3", 5), ["10.0.0.0/8"], True),
        (("11.1.2.3", 5), ["10.0.0.0/8"], False),
        (("::ffff:10.1.2.3", 5, 0, 0), ["10.0.0.0/8"], True),
        (("::ffff:11.1.2.3", 5, 0, 0), ["10.0.0.0/8"], False),
        (("2001:db8::1", 5, 0, 0), ["10.0.0.0/8", "2001:db8::/32"], True),
        (("fe80::1%eth0", 5, 0, 2), ["fe80::/10"], True),
        (("2001:db9::1", 5, 0, 0), ["2001:db8::/32"], False),
        (("0.0.0.1", 5), ["::1"], False),
    ],
)
def test_who_may_send(peer: Any, senders: list[str], fine: bool) -> None:
    assert ProxyStep(senders, 3)._may_send(peer) is fine


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"proxy_protocol": ["10.0.0.1/8"]}, ValueError, "host bits"),
        ({"proxy_protocol": ["proxy.example"]}, ValueError, "proxy.example"),
        ({"proxy_protocol": []}, ValueError, "names no peer"),
        ({"proxy_protocol": "127.0.0.1"}, TypeError, "a collection such as"),
        ({"proxy_protocol": True, "proxy_timeout": 0}, ValueError, "more than 0 seconds"),
        ({"proxy_protocol": True, "proxy_timeout": math.nan}, ValueError, "more than 0 seconds"),
    ],
)
async def test_options_that_make_no_sense(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        await gain_trio.serve(Seen().handler, LOCAL, **options)


async def test_a_connection_of_ones_own_has_no_header() -> None:
    async with serving(Seen().handler) as server, await connect(server) as client:
        assert client.proxy_header is None
        assert client.direct_remote_address == client.remote_address == server.addresses[0]
        assert client.direct_local_address == client.local_address
        assert isinstance(socket.inet_aton(client.local_address[0]), bytes)

"""TLS: serve() and connect(), and handshakes that fail."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from support.certificates import TLS_1_2, TLS_1_3, authority, client_context, open_tls_pair, server_context
from support.descriptors import is_open
from support.pairs import MEBIBYTE, PATIENCE, address_of, pattern, receive_all, until
from support.servers import LOCAL, echo
from support.sockets import reset
from support.tls_pairs import clog, connect_tls, serving_tls, where
from trio.testing import MockClock, wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection, Marks, Server
from gain_trio._transports._tls._tls_connection import TlsConnection

pytestmark = pytest.mark.connections

# --- serve() and connect() ---


async def test_serve_and_connect() -> None:
    async with serving_tls(echo, workers=2) as server:
        async with await connect_tls(server) as client:
            assert isinstance(client, TlsConnection)
            await client.send(b"hello")
            assert await client.receive() == b"hello"
        await until(lambda: server.active_connections == 0)
        now = server.statistics()
        assert (now.accepted, now.handler_errors, now.broken, now.failed_handshakes) == (1, 0, 0, 0)


async def test_over_a_unix_socket(tmp_path: Path) -> None:
    address = f"unix://{tmp_path}/tls"
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda **status: gain_trio.serve(echo, address, ssl_context=server_context(), **status))
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            await gain_trio.connect(address, ssl_context=client_context(), server_hostname="example.org")
        async with await gain_trio.connect(address, ssl_context=client_context()) as client:  # to localhost
            for data in (b"hello", pattern(MEBIBYTE)):
                nursery.start_soon(client.send, data)
                assert await client.receive_exactly(len(data)) == data
        nursery.cancel_scope.cancel()


async def test_a_handler_that_returns_ends_the_stream_properly() -> None:
    async def handler(connection: Connection) -> None:
        await connection.send(pattern(3 * MEBIBYTE))

    async with serving_tls(handler) as server, await connect_tls(server) as client:
        assert await receive_all(client) == pattern(3 * MEBIBYTE)


async def test_marks_reach_the_connections() -> None:
    most: list[int] = []
    done = trio.Event()

    async def handler(connection: Connection) -> None:
        assert isinstance(connection, TlsConnection)
        await clog(connection, 4096)
        most.append(connection.outbound_buffered)
        done.set()

    async with serving_tls(handler, marks=Marks(send_high=5000)) as server, await connect_tls(server) as client:
        await done.wait()
        await receive_all(client)
    assert 5000 <= most[0] < 5000 + 2 * 5000


@pytest.mark.parametrize(("offered", "chosen"), [(["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1"), ([], None)])
async def test_alpn(offered: list[str], chosen: str | None) -> None:
    found: list[str | None] = []

    async def handler(connection: Connection) -> None:
        found.append(connection.selected_alpn_protocol())

    context = server_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    ours = client_context()
    if offered:
        ours.set_alpn_protocols(offered)
    async with (
        serving_tls(handler, ssl_context=context) as server,
        await connect_tls(server, ssl_context=ours) as client,
    ):
        assert client.selected_alpn_protocol() == chosen
        assert await client.receive() == b""
    assert found == [chosen]


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
async def test_client_certificates(version: ssl.TLSVersion) -> None:
    async def handler(connection: Connection) -> None:
        found = connection.getpeercert()
        assert isinstance(found, dict)
        await connection.send(str(found["subjectAltName"]).encode())

    context = server_context(version)
    context.verify_mode = ssl.CERT_REQUIRED
    authority().configure_trust(context)
    async with serving_tls(handler, ssl_context=context) as server:
        ours = client_context()
        authority().issue_cert("me@example.org").configure_cert(ours)
        async with await connect_tls(server, ssl_context=ours) as client:
            assert b"me@example.org" in await client.receive()
        # Without one TLS 1.2 fails in the handshake; in TLS 1.3 the client's is done before the server can say so.
        with pytest.raises((ssl.SSLError, trio.BrokenResourceError)):
            async with await connect_tls(server) as client:
                await client.receive()
        await until(lambda: server.statistics().failed_handshakes == 1)
        assert server.statistics().handler_errors == 0


async def test_the_name_to_be_proved() -> None:
    async with serving_tls(echo) as server:
        async with await connect_tls(server, server_hostname="localhost") as client:
            await client.send(b"x")
            assert await client.receive() == b"x"
        with pytest.raises(ssl.SSLCertVerificationError, match=r"does not prove that it is example\.org") as caught:
            await connect_tls(server, server_hostname="example.org")
        assert f"tcp://127.0.0.1:{server.addresses[0][1]}" in str(caught.value)
        assert caught.value.verify_code
        await until(lambda: server.active_connections == 0)


@pytest.mark.parametrize(("host", "name"), [("[::1]", "[::1]"), ("127.0.0.1", "localhost")])
async def test_the_host_of_the_address_has_to_be_proved(host: str, name: str) -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            lambda **status: gain_trio.serve(echo, f"tcp://{host}:0", ssl_context=server_context(), **status)
        )
        address = f"tcp://{name}:{server.addresses[0][1]}"
        async with await gain_trio.connect(address, ssl_context=client_context()) as client:
            await client.send(b"x")
            assert await client.receive() == b"x"
        nursery.cancel_scope.cancel()


async def test_the_default_context_trusts_nobody_here() -> None:
    async with serving_tls(echo) as server:
        with pytest.raises(ssl.SSLCertVerificationError, match=r"unable to get local issuer|self.signed"):
            await gain_trio.connect(where(server), ssl_context=True)
        with pytest.raises(OSError, match="certificate"):
            await gain_trio.connect(where(server), ssl_context=True)
        await until(lambda: server.statistics().failed_handshakes == 2)


async def test_connecting_to_what_has_no_tls() -> None:
    async def hello(connection: Connection) -> None:
        await connection.send(b"220 hello, this is plain text\r\n")
        await connection.receive()

    async def hang_up(connection: Connection) -> None:
        await connection.receive(1)

    async def reset(connection: Connection) -> None:
        await connection.receive()
        connection.abort()

    async with serving_tls(hello, ssl_context=None) as server:
        with pytest.raises(ssl.SSLError, match=r"TLS handshake with tcp://127\.0\.0\.1:\d+ failed: .*WRONG_VERSION"):
            await connect_tls(server)
    async with serving_tls(hang_up, ssl_context=None) as server:
        with pytest.raises(OSError, match=r"TLS handshake with .* failed"):
            await connect_tls(server)
    async with serving_tls(reset, ssl_context=None) as server:
        with pytest.raises(OSError, match=r"TLS handshake with .* failed: .*reset") as caught:
            await connect_tls(server)
        assert caught.value.errno == errno.ECONNRESET


async def test_the_peer_hears_why_a_handshake_has_failed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gain_trio")
    old = client_context()
    old.maximum_version = TLS_1_2
    async with serving_tls(echo, ssl_context=server_context(TLS_1_3)) as server:
        with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
            await connect_tls(server, ssl_context=old)
        with pytest.raises(ssl.SSLCertVerificationError):
            await connect_tls(server, ssl_context=client_context(trustme.CA()))
        await until(lambda: server.statistics().failed_handshakes == 2)
    [_, record] = [record for record in caplog.records if record.name == "gain_trio"]
    assert "ALERT_UNKNOWN_CA" in record.getMessage()


async def test_a_cancelled_connect_leaves_nothing() -> None:
    [listener] = await gain_trio.open_listeners(LOCAL)
    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: gain_trio.connect(address_of(listener), ssl_context=client_context()))
        async with await listener.accept() as served:
            await served.receive_exactly(5)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await receive_all(served)  # to its end


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ssl_context": 1}, TypeError, "ssl.SSLContext"),
        ({"ssl_context": False}, TypeError, "ssl.SSLContext"),
        ({"ssl_context": server_context()}, ValueError, "one for servers"),
        ({"server_hostname": "localhost"}, ValueError, "ssl_context"),
        ({"https_compatible": True}, ValueError, "ssl_context"),
    ],
)
async def test_connect_refuses(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        await gain_trio.connect("tcp://127.0.0.1:1", **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ssl_context": True}, TypeError, "ssl.SSLContext"),
        ({"ssl_context": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)}, ValueError, "one for clients"),
        ({"ssl_context": server_context(), "handshake_timeout": 0}, ValueError, "handshake_timeout"),
        ({"ssl_context": server_context(), "handshake_timeout": math.nan}, ValueError, "handshake_timeout"),
    ],
)
async def test_serve_refuses(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        await gain_trio.serve(echo, LOCAL, **options)


# --- handshakes that fail ---


async def plain_text(client: trio.SocketStream) -> None:
    await client.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    with contextlib.suppress(trio.BrokenResourceError):
        await receive_all(client)


async def short_text(client: trio.SocketStream) -> None:
    await client.send_all(b"hi")


async def nothing(_client: trio.SocketStream) -> None:
    """Connects and hangs up."""


async def half_a_hello(client: trio.SocketStream) -> None:
    await client.send_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")


async def reset_at_once(client: trio.SocketStream) -> None:
    reset(client)


async def reset_in_the_middle(client: trio.SocketStream) -> None:
    await half_a_hello(client)
    reset(client)


async def wrong_authority(client: trio.SocketStream) -> None:
    context = client_context(trustme.CA())
    with pytest.raises(trio.BrokenResourceError):
        await trio.SSLStream(client, context, server_hostname="localhost").do_handshake()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "misbehave",
    [plain_text, short_text, nothing, half_a_hello, reset_at_once, reset_in_the_middle, wrong_authority],
)
async def test_a_failed_handshake_costs_nobody_else_anything(
    misbehave: Callable[[trio.SocketStream], Awaitable[None]], strict: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gain_trio")
    async with serving_tls(echo, strict=strict) as server, await connect_tls(server) as other:
        async with await trio.open_tcp_stream("127.0.0.1", server.addresses[0][1]) as client:
            await misbehave(client)
        await until(lambda: server.statistics().failed_handshakes == 1)
        await until(lambda: server.active_connections == 1)
        await other.send(b"hello")
        assert await other.receive() == b"hello"
        now = server.statistics()
        assert (now.accepted, now.handler_errors, now.broken) == (2, 0, 0)
    [record] = [record for record in caplog.records if record.name == "gain_trio"]
    assert record.levelno == logging.INFO
    assert record.exc_info is None
    message = record.getMessage()
    assert message.startswith("TLS handshake with ")
    assert "\n" not in message


async def test_silent_clients_run_out_of_time_and_others_are_served(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gain_trio")
    silent = []
    async with serving_tls(echo, handshake_timeout=7) as server:
        for number in range(60):
            silent.append(await gain_trio.connect(where(server)))
            if number % 10 == 0:
                async with await connect_tls(server) as client:
                    await client.send(b"hello")
                    assert await client.receive() == b"hello"
        kept = await connect_tls(server)
        await until(lambda: server.active_connections == 61)
        mock_clock.jump(6.9)
        await wait_all_tasks_blocked()
        assert server.statistics().failed_handshakes == 0
        mock_clock.jump(0.2)
        await until(lambda: server.statistics().failed_handshakes == 60)
        for client in silent:
            assert await client.receive() == b""
            await client.aclose()
        await kept.send(b"still here")
        assert await kept.receive() == b"still here"
        await kept.aclose()
    assert {record.getMessage().partition("failed: ")[2] for record in caplog.records} == {
        "it was not done within 7 seconds"
    }


async def test_cancelling_the_server_in_the_middle_of_a_handshake() -> None:
    async with serving_tls(echo) as server:
        client = await gain_trio.connect(where(server))
        await until(lambda: server.active_connections == 1)
    assert server.active_connections == 0
    assert await client.receive() == b""
    await client.aclose()


# --- many ---


@pytest.mark.slow
def test_a_hundred_at_once_leave_nothing(no_descriptor_leak: None) -> None:
    data = pattern(100_000)

    async def exchange(server: Server) -> None:
        async with await connect_tls(server) as client, trio.open_nursery() as nursery:
            nursery.start_soon(client.send, data)
            assert await client.receive_exactly(len(data)) == data

    async def main() -> None:
        with trio.fail_after(PATIENCE):
            async with serving_tls(echo, workers=3) as server:
                async with trio.open_nursery() as clients:
                    for _ in range(100):
                        clients.start_soon(exchange, server)
                await until(lambda: server.active_connections == 0)
                now = server.statistics()
                assert (now.accepted, now.handler_errors, now.broken, now.failed_handshakes) == (100, 0, 0, 0)

    trio.run(main)


def test_the_end_of_the_run_closes_what_is_open(no_descriptor_leak: None) -> None:
    async def main() -> list[int]:
        left = await open_tls_pair()
        descriptors = [connection.fileno() for connection in left]
        assert all(map(is_open, descriptors))
        kept.extend(left)
        return descriptors

    kept: list[TlsConnection] = []
    descriptors = trio.run(main)
    assert not any(map(is_open, descriptors))

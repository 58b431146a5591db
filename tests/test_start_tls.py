"""Connection.start_tls(): both sides, against other implementations, and what comes too early."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import smtplib
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from support.certificates import TLS_1_2, TLS_1_3, authority, client_context, server_context
from support.pairs import MEBIBYTE, PATIENCE, Pair, open_pair, open_unix_pair, pattern, until, until_queued
from support.processes import TIMEOUT, environment
from support.servers import connect, serving
from trio.testing import MockClock, wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection, ProxyHeader
from gain_trio._transports._tls._tls_connection import TlsConnection

pytestmark = pytest.mark.connections

CLIENT: dict[str, Any] = {"server_hostname": "localhost"}


async def both(pair: Pair, version: ssl.TLSVersion | None = None) -> Pair:
    """The connections with TLS of a pair."""
    client, served = pair
    upgraded: list[Connection] = []

    async def serve() -> None:
        upgraded.append(await served.start_tls(server_context(version), server_side=True))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        secure = await client.start_tls(client_context(), **CLIENT)
    return secure, upgraded[0]


@contextlib.asynccontextmanager
async def upgraded_pair(pair: Pair, version: ssl.TLSVersion | None = None) -> AsyncIterator[Pair]:
    client, served = await both(pair, version)
    yield client, served
    client.abort()
    served.abort()


# --- what it returns, and what becomes of the other one ---


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3], ids=["TLSv1.2", "TLSv1.3"])
async def test_a_connection_becomes_one_with_tls(pair: Pair, version: ssl.TLSVersion) -> None:
    client, served = pair
    await client.send(b"plain")
    assert await served.receive_exactly(5) == b"plain"
    async with upgraded_pair(pair, version) as (secure, secure_served):
        assert isinstance(secure, TlsConnection)
        assert secure.tls_version() == secure_served.tls_version() == version.name.replace("_", ".")
        data = pattern(2 * MEBIBYTE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(secure.send, data)
            assert await secure_served.receive_exactly(len(data)) == data
        await secure_served.send(b"back")
        assert await secure.receive_exactly(4) == b"back"


async def test_what_was_sent_before_goes_out_before(pair: Pair) -> None:
    client, served = pair
    data = pattern(4 * MEBIBYTE)
    opened: list[Connection] = []

    async def receive_and_upgrade() -> None:
        assert await client.receive_exactly(len(data)) == data
        opened.append(await client.start_tls(client_context(), **CLIENT))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive_and_upgrade)
        await served.send(data)
        opened.append(await served.start_tls(server_context(), server_side=True))
    for connection in opened:
        connection.abort()


async def test_the_old_connection_refuses_and_names_the_new_one(pair: Pair) -> None:
    client, served = pair
    async with upgraded_pair(pair) as (secure, _served):
        calls: list[Callable[[], Any]] = [
            lambda: client.receive(),
            lambda: client.receive_exactly(1),
            lambda: client.send(b"x"),
            lambda: client.flush(),
            lambda: client.send_eof(),
            lambda: client.start_tls(client_context(), **CLIENT),
        ]
        for call in calls:
            with pytest.raises(trio.ClosedResourceError, match=r"use what detach\(\) or start_tls\(\) has returned"):
                await call()
        for look in (client.peek, client.next, lambda: client.getsockopt(1, 2), lambda: client._send_nowait(b"x")):
            with pytest.raises(trio.ClosedResourceError, match=r"use what detach\(\) or start_tls\(\) has returned"):
                look()
        assert client.fileno() == -1
        assert secure.fileno() >= 0


@pytest.mark.parametrize("way", ["aclose", "abort", "with"])
async def test_closing_the_old_one_closes_the_new_one(pair: Pair, way: str) -> None:
    client, _served = pair
    async with upgraded_pair(pair) as (secure, secure_served):
        if way == "with":
            async with client:
                pass
        elif way == "abort":
            client.abort()
        else:
            await client.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await secure.send(b"x")
        if way == "abort":
            with pytest.raises(trio.BrokenResourceError):
                await secure_served.receive()
        else:
            assert await secure_served.receive() == b""


@pytest.mark.parametrize("way", ["aclose", "abort"])
async def test_closing_the_old_one_ends_the_handshake(pair: Pair, way: str) -> None:
    """The peer never answers."""
    client, served = pair

    async def upgrade() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await client.start_tls(client_context(), **CLIENT)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(upgrade)
        await served.receive()  # a ClientHello
        if way == "abort":
            client.abort()
        else:
            await client.aclose()
    with pytest.raises(trio.BrokenResourceError) if way == "abort" else contextlib.nullcontext():
        assert await served.receive() == b""
    await served.aclose()


async def test_limits_go_along(pair: Pair) -> None:
    client, served = pair
    client.context = served.context = context = object()
    peer = client.remote_address
    client.idle_timeout, client.close_timeout = 50.0, 40.0
    client.read_deadline = deadline = trio.current_time() + 1000
    async with upgraded_pair(pair) as (secure, _served):
        assert (secure.idle_timeout, secure.close_timeout, secure.read_deadline) == (50.0, 40.0, deadline)
        assert secure.context is context
        assert secure.remote_address == client.remote_address == peer


async def test_over_a_unix_socket(tmp_path: Path) -> None:
    pair = await open_unix_pair(f"unix://{tmp_path}/s")
    async with upgraded_pair(pair) as (secure, secure_served):
        await secure.send(b"x")
        assert await secure_served.receive() == b"x"


# --- in a server ---


def smtp() -> Callable[[Connection], Awaitable[None]]:
    """A handler that is as much of an SMTP server as a client that sends a message needs."""

    async def handler(connection: Connection) -> None:
        stream = connection
        await stream.send(b"220 localhost ESMTP\r\n")
        while line := await stream.receive_line(max_bytes=1000):
            command = line.split()[0].upper()
            if command == b"EHLO":
                offers = b"250-localhost\r\n250-STARTTLS\r\n" if stream.tls_version() is None else b"250-localhost\r\n"
                await stream.send(offers + b"250 HELP\r\n")
            elif command == b"STARTTLS":
                await stream.send(b"220 go ahead\r\n")
                stream = await stream.start_tls(server_context(), server_side=True)
            elif command == b"DATA":
                await stream.send(b"354 go ahead\r\n")
                await stream.receive_until(b"\r\n.\r\n", max_bytes=100_000)
                await stream.send(b"250 OK\r\n")
            elif command == b"QUIT":
                await stream.send(b"221 bye\r\n")
                return
            else:
                await stream.send(b"250 OK\r\n")

    return handler


async def test_smtplib() -> None:
    def send(port: int) -> str:
        with smtplib.SMTP("localhost", port, timeout=TIMEOUT) as client:
            client.starttls(context=client_context())
            client.sendmail("me@localhost", ["you@localhost"], "Subject: hello\r\n\r\nhello\r\n" * 100)
            assert client.sock is not None
            return client.sock.version() or ""  # type: ignore[attr-defined]

    async with serving(smtp()) as server:
        assert await trio.to_thread.run_sync(send, server.addresses[0][1]) == "TLSv1.3"
        await until(lambda: server.statistics().finished == 1)
        now = server.statistics()
        assert now.bytes_received > 2500, "the bytes behind STARTTLS count, too"
        assert (now.accepted, now.handler_errors, now.broken) == (1, 0, 0)


STREAM = b"<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>"
DIALOGUES = {
    "smtp": smtp(),
    "imap": [
        b"* OK IMAP4rev1\r\n",
        rb". CAPABILITY",
        b"* CAPABILITY STARTTLS\r\n. OK\r\n",
        rb". STARTTLS",
        b". OK\r\n",
    ],
    "xmpp": [
        None,
        rb"<stream:stream",
        STREAM + b"<stream:features><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/></stream:features>",
        rb"<starttls",
        b"<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>",
    ],
}


def dialogue(steps: list[bytes | None]) -> Callable[[Connection], Awaitable[None]]:
    """A handler that says and expects these in turn, begins TLS and sends back a line."""

    async def handler(connection: Connection) -> None:
        for step in range(0, len(steps), 2):
            say = steps[step]
            if say is not None:
                await connection.send(say)
            if step + 1 < len(steps):
                wanted = steps[step + 1]
                assert wanted is not None
                received = b""
                while wanted not in received or not received.rstrip().endswith((b">", b"CAPABILITY", b"STARTTLS")):
                    received += await connection.receive()
        secure = await connection.start_tls(server_context(), server_side=True)
        await secure.send(await secure.receive_line(max_bytes=1000) + b" came back\n")

    return handler


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
@pytest.mark.parametrize("protocol", ["smtp", "imap", "xmpp"])
async def test_openssl(protocol: str, tmp_path: Path) -> None:
    authority().cert_pem.write_to_path(tmp_path / "ca.pem")
    handler: Any = DIALOGUES[protocol]
    async with serving(dialogue(handler) if isinstance(handler, list) else handler) as server:
        command = ["openssl", "s_client", "-starttls", protocol, "-connect", f"127.0.0.1:{server.addresses[0][1]}"]
        command += ["-CAfile", str(tmp_path / "ca.pem"), "-verify_return_error", "-quiet", "-crlf", "-ign_eof"]
        line = b"EHLO me\nQUIT\n" if protocol == "smtp" else b"hello\n"

        def run() -> subprocess.CompletedProcess[bytes]:
            return subprocess.run(
                command, input=line, capture_output=True, timeout=TIMEOUT, check=False, env=environment(*command)
            )

        done = await trio.to_thread.run_sync(run)
        assert (b"221 bye" if protocol == "smtp" else b"hello came back") in done.stdout, done.stderr


@pytest.mark.slow
async def test_a_server_of_another_package() -> None:
    """Our client upgrades its connection to aiosmtpd."""
    controller = pytest.importorskip("aiosmtpd.controller")
    handlers = pytest.importorskip("aiosmtpd.handlers")
    running = controller.Controller(
        handlers.Sink(), hostname="127.0.0.1", port=0, tls_context=server_context(), loop=asyncio.new_event_loop()
    )

    def listening_port() -> int:
        return int(running.server.sockets[0].getsockname()[1])

    def trigger() -> None:
        """What the controller does itself for a port that it was given."""
        with socket.create_connection(("127.0.0.1", listening_port()), TIMEOUT) as first:
            first.recv(100)

    def start() -> int:
        running._trigger_server = trigger
        running.start()
        return listening_port()

    port = await trio.to_thread.run_sync(start)
    try:
        async with await gain_trio.connect(f"tcp://127.0.0.1:{port}") as plain:
            with trio.fail_after(PATIENCE):
                assert (await plain.receive_line(max_bytes=1000)).startswith(b"220")
                await plain.send(b"EHLO me\r\n")
                while not (await plain.receive_line(max_bytes=1000)).startswith(b"250 "):
                    pass
                await plain.send(b"STARTTLS\r\n")
                assert (await plain.receive_line(max_bytes=1000)).startswith(b"220")
                secure = await plain.start_tls(client_context(), **CLIENT)
                await secure.send(b"EHLO me\r\n")
                assert (await secure.receive_line(max_bytes=1000)).startswith(b"250")
                await secure.send(b"QUIT\r\n")
    finally:
        await trio.to_thread.run_sync(running.stop)


async def test_the_server_closes_what_the_connection_became() -> None:
    async def handler(connection: Connection) -> None:
        secure = await connection.start_tls(server_context(), server_side=True)
        await secure.send(b"hello")

    async with serving(handler) as server:
        plain = await connect(server)
        secure = await plain.start_tls(client_context(), **CLIENT)
        assert await secure.receive_exactly(5) == b"hello"
        assert await secure.receive() == b"", "with close_notify"
        await secure.aclose()


async def test_a_drain_reaches_it() -> None:
    async def handler(connection: Connection) -> None:
        secure = await connection.start_tls(server_context(), server_side=True)
        await secure.send(b"x")
        assert await secure.wait_data() is False
        await secure.send(b"draining")

    async with serving(handler) as server:
        plain = await connect(server)
        secure = await plain.start_tls(client_context(), **CLIENT)
        assert await secure.receive_exactly(1) == b"x"
        await wait_all_tasks_blocked()
        server._begin_to_drain(60)
        assert await secure.receive_exactly(8) == b"draining"
        await secure.aclose()


async def test_a_drain_in_the_middle_of_the_handshake_reaches_it() -> None:
    async def handler(connection: Connection) -> None:
        secure = await connection.start_tls(server_context(), server_side=True)
        assert await secure.receive_exactly(1) == b"x"
        assert await secure.wait_data() is False
        await secure.send(b"draining")

    async with serving(handler) as server:
        plain = await connect(server)
        await wait_all_tasks_blocked()
        server._begin_to_drain(60)
        secure = await plain.start_tls(client_context(), **CLIENT)
        await secure.send(b"x")
        assert await secure.receive_exactly(8) == b"draining"
        await secure.aclose()


async def test_behind_a_proxy() -> None:
    found: list[Any] = []

    async def handler(connection: Connection) -> None:
        secure = await connection.start_tls(server_context(), server_side=True)
        found.append((secure.remote_address, secure.proxy_header))

    header = ProxyHeader.of(("192.0.2.1", 5), ("192.0.2.2", 6))
    async with serving(handler, proxy_protocol=True) as server:
        address = f"tcp://127.0.0.1:{server.addresses[0][1]}"
        async with await gain_trio.connect(address, proxy_header=header) as plain:
            secure = await plain.start_tls(client_context(), **CLIENT)
            assert await secure.receive() == b""
    assert found == [(("192.0.2.1", 5), header)]


# --- what comes too early ---


async def early(data: bytes, caplog: pytest.LogCaptureFixture, *, taken: bool = False) -> str:
    """The line of the log when a client puts ``data`` behind its STARTTLS, in one piece with it."""
    caplog.set_level(logging.INFO, "gain_trio")

    async def handler(connection: Connection) -> None:
        if taken:
            whole = await connection.receive_exactly(10 + len(data))
            rest = whole[10:]
        else:
            await connection.receive_line(max_bytes=100)
            await until_queued(connection, len(data))
            rest = b""
        await connection.send(b"220 go ahead\r\n")
        secure = await connection.start_tls(server_context(), server_side=True, received=rest)
        pytest.fail(f"TLS began: {await secure.receive()!r}")

    async with serving(handler) as server:
        async with await connect(server) as client:
            await client.send(b"STARTTLS\r\n" + data)
            with trio.fail_after(PATIENCE), pytest.raises((trio.BrokenResourceError, gain_trio.IncompleteMessage)):
                await client.receive_exactly(1000)
        await until(lambda: server.statistics().broken == 1)
        assert server.statistics().handler_errors == 0
    [line] = [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]
    return line


@pytest.mark.parametrize("taken", [False, True], ids=["queued", "taken by the program"])
@pytest.mark.parametrize("data", [b"RSET\r\nMAIL FROM:<me>\r\n", b"\x16\x02", b"\x17\x03\x03", b"\x16\x03\x05", b"\0"])
async def test_injected_plaintext_is_refused(data: bytes, taken: bool, caplog: pytest.LogCaptureFixture) -> None:
    line = await early(data, caplog, taken=taken)
    assert "the peer has sent bytes before TLS began, and they are refused" in line
    assert "STARTTLS injection" in line


@pytest.mark.parametrize("taken", [0, 1, 2, 3, 100, 10_000])
async def test_a_client_hello_that_comes_early_is_tlss(pair: Pair, taken: int) -> None:
    """A client may not wait for the agreement: its first message is queued, or the program has taken some of it."""
    client, served = pair
    opened: list[Connection] = []

    async def upgrade() -> None:
        opened.append(await client.start_tls(client_context(), **CLIENT))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(upgrade)
        first = await served.receive()  # all of the ClientHello, or its beginning
        rest = served.next()
        whole = first + rest
        secure_served = await served.start_tls(
            server_context(), server_side=True, received=whole[:taken] + whole[taken:]
        )
    await opened[0].send(b"x")
    assert await secure_served.receive() == b"x"
    opened[0].abort()
    secure_served.abort()


async def test_a_client_refuses_whatever_comes_before_tls(pair: Pair) -> None:
    """A server that says more behind its agreement, be it what looks like TLS (CVE-2021-23222)."""
    client, served = pair
    await served.send(b"S\x16\x03\x01")
    assert await client.receive_exactly(1) == b"S"
    await until_kernel_has_all(served)
    with pytest.raises(trio.BrokenResourceError, match="they are refused: a server may not"):
        await client.start_tls(client_context(), **CLIENT)
    with pytest.raises(trio.ClosedResourceError):
        await client.send(b"x")
    with pytest.raises(trio.BrokenResourceError):
        await served.receive()


async def until_kernel_has_all(connection: Connection) -> None:
    await connection.flush()
    await wait_all_tasks_blocked()


async def test_what_the_program_takes_is_the_programs(pair: Pair) -> None:
    client, served = pair
    await client.send(b"STARTTLS\r\nRSET\r\n")
    assert await served.receive_line(max_bytes=100) == b"STARTTLS"
    await until_queued(served, 6)
    assert served.next() == b"RSET\r\n"
    async with upgraded_pair(pair) as (secure, secure_served):
        await secure.send(b"x")
        assert await secure_served.receive() == b"x"


# --- failures ---


async def test_a_handshake_that_fails_is_the_peers_fault(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gain_trio")

    async def handler(connection: Connection) -> None:
        await connection.send(b"go")
        await connection.start_tls(server_context(), server_side=True)

    async with serving(handler) as server:
        async with await connect(server) as client:
            assert await client.receive_exactly(2) == b"go"
            await client.send(b"GET / HTTP/1.1\r\n\r\n")
            with contextlib.suppress(trio.BrokenResourceError):
                while await client.receive():
                    pass
        await until(lambda: server.statistics().broken == 1)
    [record] = [record for record in caplog.records if record.levelno >= logging.INFO]
    assert record.exc_info is None


async def test_a_name_that_is_not_proved(pair: Pair) -> None:
    client, served = pair
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            with pytest.raises(trio.BrokenResourceError, match="the TLS handshake failed"):
                await served.start_tls(server_context(), server_side=True)

        nursery.start_soon(serve)
        with pytest.raises(trio.BrokenResourceError, match=r"does not prove that it is example\.org") as caught:
            await client.start_tls(client_context(), server_hostname="example.org")
    assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
    assert client.fileno() == -1
    await client.aclose()


async def test_a_peer_that_says_nothing(pair: Pair, autojump_clock: MockClock) -> None:
    client, served = pair
    with pytest.raises(trio.TooSlowError, match="was not done within 5 seconds"):
        await served.start_tls(server_context(), server_side=True, handshake_timeout=5)
    with pytest.raises(trio.ClosedResourceError):
        await served.receive()


async def test_a_deadline_holds_for_the_handshake(pair: Pair, autojump_clock: MockClock) -> None:
    client, served = pair
    served.read_deadline = trio.current_time() + 3
    with pytest.raises(trio.TooSlowError):
        await served.start_tls(server_context(), server_side=True)
    assert trio.current_time() < served.read_deadline + 1


async def test_a_peer_that_hangs_up(pair: Pair) -> None:
    client, served = pair
    await client.aclose()
    with pytest.raises(trio.BrokenResourceError, match="the peer ended the stream"):
        await served.start_tls(server_context(), server_side=True)


async def test_cancelled_in_the_handshake_it_closes(pair: Pair) -> None:
    client, served = pair
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: served.start_tls(server_context(), server_side=True))
            await wait_all_tasks_blocked()
            scope.cancel()
    with pytest.raises(trio.ClosedResourceError):
        await served.receive()
    with pytest.raises((trio.BrokenResourceError, gain_trio.IncompleteMessage)):
        await client.receive_exactly(1)


async def test_cancelled_before_it_changes_nothing(pair: Pair) -> None:
    client, served = pair
    with trio.CancelScope() as scope:
        scope.cancel()
        await served.start_tls(server_context(), server_side=True)
    await client.send(b"x")
    assert await served.receive() == b"x"


async def test_while_another_task_receives(pair: Pair) -> None:
    client, served = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.receive)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await served.start_tls(server_context(), server_side=True)
        nursery.cancel_scope.cancel()
    await client.send(b"x")
    assert await served.receive() == b"x"


# --- misuse ---


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((None,), {}, TypeError, "must be True or an ssl.SSLContext, not None"),
        ((5,), CLIENT, TypeError, "ssl.SSLContext"),
        ((True,), {}, ValueError, "needs server_hostname=, the name that"),
        ((True,), {"server_side": True}, TypeError, "ssl.SSLContext"),
        ((client_context(),), {"server_side": True}, ValueError, "one for clients"),
        ((server_context(),), CLIENT, ValueError, "one for servers"),
        ((server_context(),), {"server_side": True, **CLIENT}, ValueError, "for the client's side"),
        ((client_context(),), {"received": b"x", **CLIENT}, ValueError, "for the server's side"),
        ((server_context(),), {"server_side": True, "received": "x"}, TypeError, "bytes-like"),
        ((client_context(),), {"handshake_timeout": 0, **CLIENT}, ValueError, "more than 0 seconds"),
    ],
)
async def test_arguments_that_make_no_sense(
    arguments: tuple[Any], options: dict[str, Any], error: type[Exception], message: str, pair: Pair
) -> None:
    client, served = pair
    with pytest.raises(error, match=message):
        await client.start_tls(*arguments, **options)
    await client.send(b"x")
    assert await served.receive() == b"x", "nothing has changed"


async def test_twice(pair: Pair) -> None:
    async with upgraded_pair(pair) as (secure, _served):
        with pytest.raises(RuntimeError, match="with TLS already"):
            await secure.start_tls(client_context(), **CLIENT)


async def test_with_descriptors(tmp_path: Path) -> None:
    client, served = await open_unix_pair(f"unix://{tmp_path}/s", pass_fds=True)
    with pytest.raises(RuntimeError, match="without pass_fds=True"):
        await client.start_tls(client_context(), **CLIENT)
    client.abort()
    served.abort()


async def test_of_a_closed_connection(pair: Pair) -> None:
    client, _served = pair
    await client.aclose()
    with pytest.raises(trio.ClosedResourceError, match="this connection was closed"):
        await client.start_tls(client_context(), **CLIENT)


async def test_no_descriptor_is_left(no_descriptor_leak: None, caplog: pytest.LogCaptureFixture) -> None:
    for data in (b"RSET\r\n", b""):
        client, served = await open_pair()
        if data:
            await client.send(data)
            await until_kernel_has_all(client)
            with pytest.raises(trio.BrokenResourceError):
                await served.start_tls(server_context(), server_side=True)
        else:
            async with upgraded_pair((client, served)):
                pass
        client.abort()
        served.abort()

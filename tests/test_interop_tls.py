"""TLS with programs of other projects: openssl and curl."""

from __future__ import annotations

import contextlib
import fcntl
import re
import shutil
import ssl
import subprocess
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trustme
from support.certificates import TLS_1_2, TLS_1_3, authority, certificate, client_context, server_context
from support.pairs import PATIENCE, pattern, receive_all, until
from support.processes import environment
from support.servers import echo
from support.tls_pairs import serving_tls

import gain_trio
from gain_trio import Connection, Server

pytestmark = [pytest.mark.connections, pytest.mark.one_backend]

OPENSSL = shutil.which("openssl")
CURL = shutil.which("curl")

needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="needs the program openssl")
needs_curl = pytest.mark.skipif(CURL is None, reason="needs the program curl")
versions = pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3], ids=["tls1_2", "tls1_3"])


@pytest.fixture
def ca_file(tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    authority().cert_pem.write_to_path(path)
    return path


@asynccontextmanager
async def running(*command: object) -> AsyncIterator[trio.Process]:
    """A program for the length of a with statement, with pipes."""
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            partial(
                trio.run_process,
                [str(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                check=False,
                env=environment(*command),
            )
        )
        assert isinstance(process, trio.Process)
        yield process
        nursery.cancel_scope.cancel()


async def type_in(process: trio.Process, text: bytes) -> None:
    """Have the program read this in one piece: what begins with a letter may be a command to it."""
    assert isinstance(process.stdin, trio.lowlevel.FdStream)
    pipe = process.stdin.fileno()
    await process.stdin.send_all(text)
    await until(lambda: not int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder))


def s_client(server: Server, ca_file: Path, version: ssl.TLSVersion, *options: str) -> list[object]:
    return [
        OPENSSL,
        "s_client",
        "-connect",
        f"127.0.0.1:{server.addresses[0][1]}",
        "-CAfile",
        ca_file,
        "-verify_return_error",
        "-tls1_2" if version is TLS_1_2 else "-tls1_3",
        *options,
    ]


async def read_until(process: trio.Process, text: bytes) -> bytes:
    """Read what the program prints until it contains a text."""
    assert process.stdout is not None
    printed = b""
    while text not in printed:
        data = await process.stdout.receive_some()
        assert data, f"it ended after {printed[-200:]!r}"
        printed += data
    return printed


# --- openssl s_client ---


@needs_openssl
@versions
async def test_s_client_echo(ca_file: Path, version: ssl.TLSVersion) -> None:
    data = b"".join(b"%d\n" % number for number in range(50_000)) + b".\n"  # no letters, which may be commands to it
    async with serving_tls(echo) as server:
        async with running(*s_client(server, ca_file, version, "-quiet", "-no_ign_eof")) as client:
            assert client.stdin is not None
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.stdin.send_all, data)
                assert await read_until(client, b".\n") == data
            await client.stdin.aclose()
            assert await client.wait() == 0
        await until(lambda: server.active_connections == 0)
        now = server.statistics()
        assert (now.accepted, now.broken, now.handler_errors, now.failed_handshakes) == (1, 0, 0, 0)


@needs_openssl
@versions
async def test_s_client_alpn(ca_file: Path, version: ssl.TLSVersion) -> None:
    async def handler(connection: Connection) -> None:
        await connection.send(f"chosen: {connection.selected_alpn_protocol()}\n".encode())

    context = server_context()
    context.set_alpn_protocols(["h2"])
    async with serving_tls(handler, ssl_context=context) as server:
        async with running(*s_client(server, ca_file, version, "-alpn", "h2,http/1.1")) as client:
            assert client.stdout is not None
            printed = await receive_all(client.stdout)  # the handler's end is its end
            assert b"ALPN protocol: h2" in printed
            assert b"chosen: h2\n" in printed
            assert await client.wait() == 0


@needs_openssl
async def test_s_client_that_does_not_trust_us(tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    async with serving_tls(echo) as server:
        async with running(*s_client(server, other, TLS_1_3)) as client:
            assert await client.wait() != 0
        await until(lambda: server.statistics().failed_handshakes == 1)


@needs_openssl
async def test_s_client_changes_keys_while_much_is_sent(ca_file: Path) -> None:
    """A change of keys has the receiving task send something while another one sends."""
    rounds = 20
    lines: list[bytes | None] = []

    async def handler(connection: Connection) -> None:
        async def talk() -> None:
            while len(lines) < rounds:
                await connection.send(bytes(20_000))
            await connection.send(b"that was all\n")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk)
            while len(lines) < rounds:
                lines.append(await connection.receive_line())

    async def change_keys(client: trio.Process) -> None:
        for number in range(rounds):
            await type_in(client, b"K\n")
            await type_in(client, b"line %d\n" % number)

    async with serving_tls(handler) as server:
        async with running(*s_client(server, ca_file, TLS_1_3)) as client:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(change_keys, client)
                await read_until(client, b"that was all\n")
        await until(lambda: server.active_connections == 0)
        assert lines == [b"line %d" % number for number in range(rounds)], "and no K among them"
        assert server.statistics().handler_errors == 0


# --- openssl s_server ---


@pytest.fixture
def certificate_files(tmp_path: Path) -> tuple[Path, Path]:
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate().cert_chain_pems))
    certificate().private_key_pem.write_to_path(key)
    return chain, key


@asynccontextmanager
async def s_server(files: tuple[Path, Path], *options: str) -> AsyncIterator[tuple[trio.Process, int]]:
    """openssl as a server: it, and its port."""
    chain, key = files
    command = [
        OPENSSL,
        "s_server",
        "-accept",
        "127.0.0.1:0",
        "-cert",
        chain,
        "-cert_chain",
        chain,
        "-key",
        key,
        *options,
    ]
    with trio.fail_after(PATIENCE):
        async with running(*command) as process:
            printed = await read_until(process, b"ACCEPT ")
            while (match := re.search(rb"ACCEPT .*:([0-9]+)\n", printed)) is None:
                printed += await read_until(process, b"\n")
            yield process, int(match[1])


@needs_openssl
@versions
async def test_s_server_that_reverses(certificate_files: tuple[Path, Path], version: ssl.TLSVersion) -> None:
    async with s_server(certificate_files, "-rev", "-tls1_2" if version is TLS_1_2 else "-tls1_3") as (_server, port):
        async with await gain_trio.connect(f"tcp://127.0.0.1:{port}", ssl_context=client_context()) as client:
            assert client.tls_version() == ("TLSv1.2" if version is TLS_1_2 else "TLSv1.3")
            for word in (b"hello", b"io_uring"):
                await client.send(word + b"\n")
                assert await client.receive_line() == word[::-1]


@needs_openssl
async def test_s_server_renegotiates(certificate_files: tuple[Path, Path]) -> None:
    """TLS 1.2 may do its handshake again at any time, and then sending has to receive."""
    async with s_server(certificate_files, "-tls1_2") as (server, port):
        context = client_context()
        async with await gain_trio.connect(f"tcp://127.0.0.1:{port}", ssl_context=context) as client:
            for number in range(5):
                await type_in(server, b"r\n")  # a HelloRequest
                await type_in(server, b"hello\n")
                assert await client.receive_line() == b"hello"
                await client.send(b"answer %d\n" % number)
                await read_until(server, b"answer %d\n" % number)


# --- curl ---


async def hello(connection: Connection) -> None:
    """Serve a minimum of HTTP/1.1: answer any request with its body, until the client ends."""
    while True:
        with contextlib.suppress(gain_trio.IncompleteMessage):
            head = await connection.receive_until(b"\r\n\r\n")
            break
        return
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
    if fields.get(b"expect") == b"100-continue":
        await connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = await connection.receive_exactly(int(fields.get(b"content-length", b"0")))
    answer = body or b"hello over " + str(connection.tls_version()).encode()
    await connection.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)


async def curl(*arguments: object, **options: object) -> subprocess.CompletedProcess[bytes]:
    assert CURL is not None
    return await trio.run_process(
        [CURL, "--silent", "--show-error", "--noproxy", "*", "--max-time", str(PATIENCE), *map(str, arguments)],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env=environment(CURL),
        **options,  # type: ignore[arg-type]
    )


@needs_curl
@versions
async def test_curl(ca_file: Path, version: ssl.TLSVersion) -> None:
    async with serving_tls(hello, ssl_context=server_context(version)) as server:
        url = f"https://localhost:{server.addresses[0][1]}/"
        where = ("--ipv4", "--http1.1", "--cacert", ca_file, url)
        got = await curl(*where)
        assert (got.returncode, got.stderr) == (0, b"")
        assert got.stdout == (b"hello over TLSv1.2" if version is TLS_1_2 else b"hello over TLSv1.3")
        body = pattern(2_000_000)
        posted = await curl("--data-binary", "@-", *where, stdin=body)
        assert (posted.returncode, posted.stderr) == (0, b"")
        assert posted.stdout == body
        await until(lambda: server.active_connections == 0)
        now = server.statistics()
        assert (now.accepted, now.handler_errors, now.failed_handshakes) == (2, 0, 0)


@needs_curl
async def test_curl_that_does_not_trust_us() -> None:
    async with serving_tls(hello) as server:
        got = await curl("--ipv4", f"https://localhost:{server.addresses[0][1]}/")
        assert got.returncode == 60, got.stderr  # CURLE_PEER_FAILED_VERIFICATION
        assert (await curl("--ipv4", f"http://localhost:{server.addresses[0][1]}/")).returncode != 0
        # An older curl refuses in the handshake, a newer one when it is over.
        await until(lambda: not server.statistics().active)
        ended = server.statistics()
        assert ended.failed_handshakes + ended.finished + ended.broken == ended.accepted == 2
        assert ended.failed_handshakes >= 1
        assert ended.handler_errors == 0

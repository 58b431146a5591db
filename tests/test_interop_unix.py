"""Unix sockets and the PROXY protocol with programs of other projects: socat, nc, ncat, haproxy, curl.

They come from packages of these names (nc: netcat-openbsd).  Where one is missing, its tests are skipped.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from support.pairs import PATIENCE, pattern, receive_all, receive_exactly, until
from support.processes import environment
from support.servers import echo, serving

import gain_trio
from gain_trio import Connection

pytestmark = pytest.mark.connections

DATA = pattern(1 << 20)
SO_ACCEPTCON = 0x10000  # include/uapi/linux/net.h; a flag in /proc/net/unix, see unix(7)


def is_there(path: str) -> bool:
    return os.path.lexists(path)


def is_listened_at(path: str) -> bool:
    """Whether listen(2) was called, too; the file is there from bind(2) on.  Without a connection, which would be served."""
    entries = [line.split() for line in Path("/proc/net/unix").read_text(errors="replace").splitlines()]
    return any(entry[-1] == path and int(entry[3], 16) & SO_ACCEPTCON for entry in entries[1:])


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


async def run(*command: str, data: bytes = b"") -> bytes:
    """The output of a program for a given input."""
    with trio.fail_after(PATIENCE):
        done = await trio.run_process(list(command), stdin=data, capture_stdout=True, env=environment(*command))
    out: bytes = done.stdout
    return out


@asynccontextmanager
async def running(*command: str, **options: Any) -> AsyncIterator[trio.Process]:
    """A program for the length of a with statement, killed at its end."""
    async with trio.open_nursery() as nursery:
        start = partial(trio.run_process, list(command), check=False, env=environment(*command), **options)
        process = await nursery.start(start)
        yield process
        process.kill()


# --- clients of ours ---

CLIENTS: list[tuple[str, Callable[[str], list[str]]]] = [
    ("socat", lambda path: ["socat", "-t", "30", "-", f"UNIX-CONNECT:{path}"]),
    ("nc", lambda path: ["nc", "-N", "-U", path]),
    ("ncat", lambda path: ["ncat", "-U", path]),
]


@pytest.mark.parametrize(("name", "command"), [pytest.param(*client, marks=needs(client[0])) for client in CLIENTS])
async def test_a_client_of_theirs(tmp_path: Path, name: str, command: Callable[[str], list[str]]) -> None:
    path = str(tmp_path / "s")
    async with serving(echo, f"unix://{path}", mode=0o600):
        assert await run(*command(path), data=DATA) == DATA


@needs("socat")
async def test_a_client_of_theirs_at_an_abstract_name(tmp_path: Path) -> None:
    async with serving(echo, f"unix://@gain_trio{tmp_path}"):
        assert await run("socat", "-t", "30", "-", f"ABSTRACT-CONNECT:gain_trio{tmp_path}", data=DATA) == DATA


@needs("socat")
async def test_the_credentials_of_a_program(tmp_path: Path) -> None:
    seen: list[gain_trio.sockets.PeerCredentials] = []

    async def look(connection: Connection) -> None:
        seen.append(connection.peer_credentials())

    path = str(tmp_path / "s")
    async with serving(look, f"unix://{path}"), running("socat", "-u", f"UNIX-CONNECT:{path}", "-") as process:
        await until(lambda: bool(seen))
        assert seen == [gain_trio.sockets.PeerCredentials(process.pid, os.geteuid(), os.getegid())]


# --- servers of theirs ---


@needs("socat")
async def test_a_server_of_theirs(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    async with running("socat", f"UNIX-LISTEN:{path},fork", "SYSTEM:cat"):
        with trio.fail_after(PATIENCE):
            while True:
                try:
                    client = await gain_trio.connect(f"unix://{path}")
                    break
                except (FileNotFoundError, ConnectionRefusedError):  # it is starting
                    await trio.lowlevel.checkpoint()
            async with client, trio.open_nursery() as nursery:

                async def send() -> None:
                    await client.send(DATA)
                    await client.send_eof()

                nursery.start_soon(send)
                assert await receive_all(client) == DATA
        with pytest.raises(OSError, match="a server is listening there"):
            await gain_trio.open_listeners(f"unix://{path}")


@needs("socat")
async def test_a_file_that_a_killed_program_left(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    async with running("socat", f"UNIX-LISTEN:{path}", "-", stdin=subprocess.DEVNULL):
        await until(lambda: is_there(path))
    assert is_there(path)
    async with serving(echo, f"unix://{path}"):
        assert await run("socat", "-t", "30", "-", f"UNIX-CONNECT:{path}", data=b"x") == b"x"
    assert not is_there(path)


# --- datagrams ---


async def echo_datagram(data: bytes, address: Any, endpoint: gain_trio.DatagramEndpoint) -> None:
    await endpoint.send(data, address)


@asynccontextmanager
async def serving_datagrams(address: str) -> AsyncIterator[gain_trio.DatagramServer]:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(gain_trio.serve_datagrams, echo_datagram, address)
        assert isinstance(server, gain_trio.DatagramServer)
        yield server
        nursery.cancel_scope.cancel()


DATAGRAM_CLIENTS: list[tuple[str, Callable[[str, str], list[str]]]] = [
    ("socat", lambda path, own: ["socat", "-", f"UNIX-SENDTO:{path},bind={own}"]),
    ("socat", lambda path, own: ["socat", "-", f"UNIX-CLIENT:{path},bind={own}"]),
    ("nc", lambda path, own: ["nc", "-u", "-U", "-s", own, path]),
]


@pytest.mark.parametrize(
    ("name", "command"), [pytest.param(*client, marks=needs(client[0])) for client in DATAGRAM_CLIENTS]
)
async def test_a_datagram_client_of_theirs(tmp_path: Path, name: str, command: Callable[[str, str], list[str]]) -> None:
    """The client has a name of its own, so the server can answer it."""
    path = str(tmp_path / "s")
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    async with (
        serving_datagrams(f"unix://{path}") as server,
        running(*command(path, str(tmp_path / "c")), **options) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        with trio.fail_after(PATIENCE):
            for data in (b"one", b"another"):
                await process.stdin.send_all(data)
                assert await receive_exactly(process.stdout, len(data)) == data
        assert server.statistics().datagrams.received == 2


@needs("socat")
async def test_a_datagram_client_of_theirs_without_a_name(tmp_path: Path) -> None:
    """The server cannot answer the client, and counts that without an error."""
    path = str(tmp_path / "s")
    async with serving_datagrams(f"unix://{path}") as server:
        await run("socat", "-u", "-", f"UNIX-SENDTO:{path}", data=b"x")
        await until(lambda: server.statistics().unreachable == 1)
        assert server.statistics().handler_errors == 0


@needs("socat")
async def test_a_datagram_server_of_theirs(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    async with running("socat", f"UNIX-RECVFROM:{path},fork", "SYSTEM:cat", stderr=subprocess.DEVNULL):
        await until(lambda: is_there(path))
        with pytest.raises(OSError, match="a server is listening there"):
            await gain_trio.open_datagram_endpoint(f"unix://{path}")
        with trio.fail_after(PATIENCE):
            async with await gain_trio.open_datagram_endpoint(f"unix://{tmp_path}/c") as client:
                await client.send(b"x", path)
                assert (await client.receive())[0] == b"x"


# --- descriptors, to and from Python's own calls in another process ---

PASS_BACK = """
import os, socket, sys
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(sys.argv[1])
    data, (received,), _flags, _address = socket.recv_fds(sock, 100, 5)
    os.write(received, b"by another process")
    reader, writer = os.pipe()
    socket.send_fds(sock, [data.upper()], [reader])
    os.write(writer, b"from another process")
"""


async def test_descriptors_to_another_process_and_back(tmp_path: Path) -> None:
    got: list[Any] = []

    async def handler(connection: Connection) -> None:
        reader, writer = os.pipe()
        await connection.send_fds(b"take", [writer])
        os.close(writer)
        data, [received] = await connection.receive_fds(100, 5)
        assert await connection.receive() == b""
        got.extend([data, os.read(received, 100), os.read(reader, 100)])
        os.close(received)
        os.close(reader)

    path = str(tmp_path / "s")
    async with serving(handler, f"unix://{path}", pass_fds=True, strict=True):
        await run(sys.executable, "-c", PASS_BACK, path)
        await until(lambda: bool(got))
    assert got == [b"TAKE", b"from another process", b"by another process"]


# --- the PROXY protocol ---

CONFIGURATION = """
defaults
    mode tcp
    timeout connect 10s
    timeout client 30s
    timeout server 30s
frontend front
    bind fd@{front}
    default_backend ours
backend ours
    server ours {address} {option}
"""


class Seen:
    def __init__(self) -> None:
        self.connections: list[tuple[Any, Any, gain_trio.ProxyHeader | None]] = []

    async def handler(self, connection: Connection) -> None:
        self.connections.append((connection.remote_address, connection.local_address, connection.proxy_header))
        await echo(connection)


@needs("haproxy")
@pytest.mark.parametrize(("option", "version"), [("send-proxy", 1), ("send-proxy-v2", 2), ("send-proxy-v2-ssl-cn", 2)])
@pytest.mark.parametrize("over", ["unix", "tcp"])
async def test_behind_haproxy(tmp_path: Path, option: str, version: int, over: str) -> None:
    seen = Seen()
    address = f"unix://{tmp_path}/s" if over == "unix" else "tcp://127.0.0.1:0"
    async with serving(seen.handler, address, proxy_protocol=["127.0.0.1"]) as server:
        with socket.create_server(("127.0.0.1", 0)) as front:
            where = server.addresses[0]
            target = f"unix@{where}" if over == "unix" else f"{where[0]}:{where[1]}"
            configuration = tmp_path / "haproxy.cfg"
            configuration.write_text(CONFIGURATION.format(front=front.fileno(), address=target, option=option))
            command = ["haproxy", "-db", "-q", "-f", str(configuration)]
            async with running(*command, pass_fds=[front.fileno()], stderr=subprocess.DEVNULL):
                clients = []
                for _ in range(3):
                    async with await gain_trio.connect(f"tcp://127.0.0.1:{front.getsockname()[1]}") as client:
                        clients.append(client.local_address)
                        async with trio.open_nursery() as nursery:

                            async def send(client: Connection = client) -> None:
                                await client.send(DATA)
                                await client.send_eof()

                            nursery.start_soon(send)
                            assert await receive_all(client) == DATA
            assert [remote for remote, _local, _header in seen.connections] == clients
            for _remote, local, header in seen.connections:
                assert local == front.getsockname()
                assert header is not None
                assert header.version == version
        assert server.statistics().refused == 0


@needs("haproxy")
async def test_the_health_checks_of_haproxy_reach_the_handler_as_its_own(tmp_path: Path) -> None:
    """haproxy sends LOCAL in the header of its health checks."""
    seen = Seen()
    async with serving(seen.handler, "tcp://127.0.0.1:0", proxy_protocol=["127.0.0.1"]) as server:
        with socket.create_server(("127.0.0.1", 0)) as front:
            host, port = server.addresses[0]
            configuration = tmp_path / "haproxy.cfg"
            option = "send-proxy-v2 check inter 100"
            configuration.write_text(
                CONFIGURATION.format(front=front.fileno(), address=f"{host}:{port}", option=option)
                + '    option tcp-check\n    tcp-check send "x"\n    tcp-check expect string x\n'
            )
            command = ["haproxy", "-db", "-q", "-f", str(configuration)]
            async with running(*command, pass_fds=[front.fileno()], stderr=subprocess.DEVNULL):
                await until(lambda: len(seen.connections) >= 2)
        for remote, local, header in seen.connections:
            assert header is not None
            assert (header.command.name, header.source) == ("LOCAL", None)
            assert remote[0] == local[0] == host
            assert local[1] == port


@needs("curl")
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_curl_speaks_for_a_client(host: str) -> None:
    seen: list[Any] = []

    async def answer(connection: Connection) -> None:
        seen.append((connection.remote_address, connection.proxy_header))
        await connection.receive_until(b"\r\n\r\n")
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")

    async with serving(answer, f"tcp://{host}:0", proxy_protocol=[host.strip("[]")]) as server:
        url = f"http://{host}:{server.addresses[0][1]}/"
        assert await run("curl", "-sS", "--noproxy", "*", "--haproxy-protocol", url) == b"hello"
    [(remote, header)] = seen
    assert remote[0] == host.strip("[]")
    assert header.version == 1
    assert header.source == remote


@needs("curl")
async def test_curl_over_a_unix_socket(tmp_path: Path) -> None:
    async def answer(connection: Connection) -> None:
        await connection.receive_until(b"\r\n\r\n")
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")

    async with serving(answer, f"unix://{tmp_path}/s"):
        command = ["curl", "-sS", "--noproxy", "*", "--unix-socket", str(tmp_path / "s"), "http://localhost/"]
        assert await run(*command) == b"hello"


# --- socket activation ---


@needs("systemd-socket-activate")
async def test_started_by_systemd_socket_activate(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "gain_trio", "serve", "fd://systemd/web", "--handler", "echo"]
    variables = [
        f"--setenv={name}={value}"
        for name, value in os.environ.items()
        if re.match("GAIN_TRIO|PYTHON|LD_PRELOAD|[AU].*SAN_OPTIONS", name)
    ]
    path = str(tmp_path / "s")
    command = ["systemd-socket-activate", f"--listen={path}", "--fdname=web", *variables, *program]
    async with running(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        await until(lambda: is_listened_at(path))
        with trio.fail_after(PATIENCE):
            async with await gain_trio.connect(f"unix://{path}") as client:
                await client.send(b"hello")
                assert await client.receive_exactly(5) == b"hello"

"""SIGHUP to a server of TLS in one process: the handshakes to come use the certificate that the files have then."""

from __future__ import annotations

import functools
import logging
import os
import re
import signal
import ssl
from pathlib import Path
from typing import Any

import pytest
import trio
from support.certificates import authority, client_context, server_context
from support.pairs import PATIENCE, receive_exactly, until
from support.processes import running
from support.servers import LOCAL, echo
from support.worker_handlers import load_context

import gain_trio
from gain_trio import Connection, Server
from gain_trio.callbacks import Conn, EventHandler, EventServer

pytestmark = [pytest.mark.connections, pytest.mark.one_backend]


class Files:
    """A file with a certificate, which can be replaced by another one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.make = functools.partial(load_context, str(path))

    def issue(self) -> bytes:
        """Write a new certificate, and return what a client sees of it."""
        issued = authority().issue_cert("localhost")
        self.path.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
        return ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "chain.pem")


async def connect_tls(port: int) -> Connection:
    return await gain_trio.connect(f"tcp://127.0.0.1:{port}", ssl_context=client_context(), server_hostname="localhost")


async def certificate_of(connection: Connection) -> bytes:
    """The server's certificate, after a round trip."""
    await connection.send(b"x")
    assert await receive_exactly(connection, 1) == b"x"
    found = connection.getpeercert(binary_form=True)
    assert isinstance(found, bytes)
    return found


async def start(nursery: trio.Nursery, **options: Any) -> Server:
    server = await nursery.start(lambda **status: gain_trio.serve(echo, LOCAL, signals=True, **options, **status))
    assert isinstance(server, Server)
    return server


async def test_handshakes_use_the_certificate_of_the_moment(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    first = files.issue()
    with caplog.at_level(logging.INFO, "gain_trio"):
        async with trio.open_nursery() as nursery:
            server = await start(nursery, ssl_context=files.make)
            port = server.addresses[0][1]
            async with await connect_tls(port) as old:
                assert await certificate_of(old) == first
                second = files.issue()
                async with await connect_tls(port) as other:
                    assert await certificate_of(other) == first, "nothing has been loaded again yet"
                os.kill(os.getpid(), signal.SIGHUP)
                await until(lambda: "uses a new TLS context" in caplog.text)
                async with await connect_tls(port) as new:
                    assert await certificate_of(new) == second != first
                assert await certificate_of(old) == first, "it goes on"
            nursery.cancel_scope.cancel()


async def test_one_that_cannot_be_loaded_changes_nothing(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    first = files.issue()
    async with trio.open_nursery() as nursery:
        server = await start(nursery, ssl_context=files.make)
        files.path.write_text("no certificate")
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: "goes on with the one that it has" in caplog.text)
        assert "Traceback" in caplog.text
        async with await connect_tls(server.addresses[0][1]) as client:
            assert await certificate_of(client) == first
        nursery.cancel_scope.cancel()


async def test_a_context_cannot_be_made_again(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gain_trio"):
        async with trio.open_nursery() as nursery:
            server = await start(nursery, ssl_context=server_context())
            os.kill(os.getpid(), signal.SIGHUP)
            await until(lambda: "where ssl_context is a function" in caplog.text)
            async with await connect_tls(server.addresses[0][1]) as client:
                await certificate_of(client)
            nursery.cancel_scope.cancel()


async def test_servers_of_callbacks_do_the_same(files: Files) -> None:
    class Echo(EventHandler):
        def on_read(self, conn: Conn, n: int) -> None:
            conn.write(conn.next(n))

    first = files.issue()
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            lambda **status: gain_trio.callbacks.serve(Echo(), LOCAL, ssl_context=files.make, **status)
        )
        assert isinstance(server, EventServer)
        async with await connect_tls(server.addresses[0][1]) as client:
            assert await certificate_of(client) == first
        second = files.issue()
        await server._signalled().renew("SIGHUP")
        async with await connect_tls(server.addresses[0][1]) as client:
            assert await certificate_of(client) == second
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("processes", "said"), [(0, "uses a new TLS context"), (1, " serves\n")])
async def test_the_command_loads_its_files_again(files: Files, processes: int, said: str) -> None:
    first = files.issue()
    arguments = ["serve", LOCAL, "--handler", "echo", "--tls-cert", files.path, "--log-level", "info"]
    if processes:  # whose successors load it
        arguments += ["--processes", str(processes)]
    with running("-m", "gain_trio", *arguments) as program, trio.fail_after(PATIENCE):
        line = await trio.to_thread.run_sync(program.line)
        found = re.search(r":(\d+);", line)
        assert found is not None, line
        async with await connect_tls(int(found[1])) as client:
            assert await certificate_of(client) == first
        second = files.issue()
        program.interrupt(signal.SIGHUP)
        seen = first
        while seen == first:
            async with await connect_tls(int(found[1])) as client:
                seen = await certificate_of(client)
        assert seen == second
        program.interrupt(signal.SIGTERM)
        status, _out, errors = await trio.to_thread.run_sync(program.end)
    assert status == 0
    assert errors.count(said) == 1 + processes

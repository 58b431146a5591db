"""A certificate that is renewed again and again while clients send requests: none is lost, and no old one is seen after."""

from __future__ import annotations

import functools
import ssl
from pathlib import Path
from typing import Any

import pytest
import trio
from support.certificates import authority, client_context
from support.pairs import receive_exactly, until
from support.servers import LOCAL, echo
from support.worker_handlers import load_context

import gain_trio
from gain_trio import Connection
from gain_trio._command._event_handlers import EchoEvents

pytestmark = pytest.mark.connections

RENEWALS = 5
ROUNDS = 4
"""Requests of each client between two renewals, at least."""


class Renewals:
    """A server, its certificates, and the clients that look at them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.make = functools.partial(load_context, str(path))
        self.issued: list[bytes] = []
        self.in_use = 0
        self.requests = 0
        self.is_over = False
        self.issue()

    def issue(self) -> None:
        """Write a new certificate."""
        issued = authority().issue_cert("localhost")
        self._path.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
        self.issued.append(ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode()))

    async def connect(self, port: int) -> Connection:
        """Open a connection, which may have no certificate that is older than the one in use."""
        oldest = self.in_use
        address = f"tcp://127.0.0.1:{port}"
        connection = await gain_trio.connect(address, ssl_context=client_context(), server_hostname="localhost")
        await self.ask(connection)
        found: Any = connection.getpeercert(binary_form=True)
        assert self.issued.index(found) >= oldest
        return connection

    async def ask(self, connection: Connection) -> None:
        """Send a request, and wait for its answer."""
        await connection.send(b"hello")
        assert await receive_exactly(connection, 5) == b"hello"
        self.requests += 1

    async def requested(self, count: int) -> None:
        """Let the clients go on until they have sent that many more requests."""
        wanted = self.requests + count
        await until(lambda: self.requests >= wanted)

    async def closes(self, port: int) -> None:
        """A connection for each request."""
        while not self.is_over:
            async with await self.connect(port):
                pass

    async def keeps(self, port: int) -> None:
        """All requests on one connection, which has the certificate of its beginning."""
        async with await self.connect(port) as connection:
            before = connection.getpeercert(binary_form=True)
            while not self.is_over:
                await self.ask(connection)
            assert connection.getpeercert(binary_form=True) == before


@pytest.mark.parametrize("kind", ["handler", "callbacks"])
async def test_no_request_is_lost_and_each_new_connection_has_the_new_certificate(kind: str, tmp_path: Path) -> None:
    renewals = Renewals(tmp_path / "chain.pem")
    serve: Any = (
        functools.partial(gain_trio.serve, echo)
        if kind == "handler"
        else functools.partial(gain_trio.callbacks.serve, EchoEvents())
    )
    async with trio.open_nursery() as nursery:
        server = await nursery.start(functools.partial(serve, LOCAL, ssl_context=renewals.make))
        port = server.addresses[0][1]
        async with trio.open_nursery() as clients:
            for _ in range(3):
                clients.start_soon(renewals.closes, port)
                clients.start_soon(renewals.keeps, port)
            for _ in range(RENEWALS):
                await renewals.requested(6 * ROUNDS)
                renewals.issue()
                await (
                    server._renew() if kind == "handler" else server._signalled().renew("SIGHUP")
                )  # what SIGHUP does
                renewals.in_use += 1
            async with await renewals.connect(port) as last:
                assert last.getpeercert(binary_form=True) == renewals.issued[-1]
            renewals.is_over = True
        nursery.cancel_scope.cancel()

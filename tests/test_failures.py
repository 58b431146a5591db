"""Whose fault an exception is, that it is so said once for all kinds of servers, and that the log names the peer."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from support.certificates import client_context, server_context
from support.pairs import until
from support.servers import LOCAL, connect, serving

import gain_trio
from gain_trio import Connection, IncompleteMessage, MessageTooLong
from gain_trio._server._failures import consists_of, judged, only_one_of, parted
from gain_trio.callbacks import Conn, EventHandler

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup, ExceptionGroup

pytestmark = pytest.mark.connections


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (trio.BrokenResourceError(), "broken"),
        (trio.TooSlowError(), "too_slow"),
        (gain_trio.callbacks.SlowReader(), "too_slow"),
        (IncompleteMessage(1), "broken"),
        (MessageTooLong(1), "broken"),
        (ValueError(), "error"),
        (EOFError(), "error"),
        (trio.ClosedResourceError(), "error"),
        (ExceptionGroup("", [IncompleteMessage(1)]), "broken"),
        (ExceptionGroup("", [ExceptionGroup("", [trio.TooSlowError()])]), "too_slow"),
        (ExceptionGroup("", [MessageTooLong(1), trio.BrokenResourceError()]), "broken"),
        (ExceptionGroup("", [MessageTooLong(1), ValueError()]), "error"),
    ],
    ids=repr,
)
def test_the_verdict(error: Exception, cause: str) -> None:
    assert judged(error).cause == cause


def test_a_group_of_one_is_that_one() -> None:
    error = ValueError("x")
    assert only_one_of(ExceptionGroup("", [ExceptionGroup("", [error])])) is error
    assert judged(ExceptionGroup("", [ExceptionGroup("", [error])])).error is error
    two = ExceptionGroup("", [error, error])
    assert only_one_of(ExceptionGroup("", [two])) is two
    assert only_one_of(error) is error
    assert consists_of(two, lambda one: one is error)


def test_what_propagates_is_parted_from_failures() -> None:
    error, interrupt = ValueError(), KeyboardInterrupt()
    assert parted(error) == (error, None)
    assert parted(interrupt) == (None, interrupt)
    failure, rest = parted(BaseExceptionGroup("", [error, interrupt]))
    assert isinstance(failure, ExceptionGroup)
    assert failure.exceptions == (error,)
    assert isinstance(rest, BaseExceptionGroup)
    assert rest.exceptions == (interrupt,)


# --- what a client can do ---


async def plain(connection: Connection) -> None:
    while await connection.receive_line(max_bytes=10) is not None:
        pass


async def in_nurseries(connection: Connection) -> None:
    async with trio.open_nursery() as outer, trio.open_nursery():
        outer.start_soon(plain, connection)


async def closing(connection: Connection) -> None:
    async with connection:
        await plain(connection)


async def closing_in_finally(connection: Connection) -> None:
    try:
        await plain(connection)
    finally:
        await connection.aclose()


async def aborting(connection: Connection) -> None:
    try:
        await plain(connection)
    except (IncompleteMessage, MessageTooLong):
        connection.abort()
        raise


HANDLERS = [plain, in_nurseries, closing, closing_in_finally, aborting]


@asynccontextmanager
async def client_of(kind: str, handler: Any, folder: Path) -> AsyncIterator[tuple[gain_trio.Server, Connection, str]]:
    """A server, a client, and what the log calls it."""
    address = LOCAL if kind != "unix" else f"unix://{folder}/socket"
    options: dict[str, Any] = {"ssl_context": server_context()} if kind == "tls" else {}
    async with serving(handler, address, **options) as server:
        if kind == "unix":
            client = await gain_trio.connect(address)
            name = "a peer on a Unix socket"
        else:
            more: dict[str, Any] = {}
            if kind == "tls":
                more = {"ssl_context": client_context(), "server_hostname": "localhost"}
            client = await gain_trio.connect(f"tcp://127.0.0.1:{server.addresses[0][1]}", **more)
            name = f"127.0.0.1:{client.local_address[1]}"
        async with client:
            yield server, client, name


@pytest.mark.parametrize("kind", ["tcp", "tls", "unix"])
@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize(
    ("data", "words"), [(b"hello\nhal", "after 3 bytes"), (b"0123456789abcdef", "longer than 10 bytes")]
)
async def test_a_clients_fault_is_a_line_at_info(  # noqa: PLR0917 - three parameters and two fixtures
    data: bytes,
    words: str,
    handler: Callable[[Connection], Awaitable[None]],
    kind: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "gain_trio")
    async with client_of(kind, handler, tmp_path) as (server, client, name):
        await client.send(data)
        await client.aclose()
        await until(lambda: server.statistics().broken == 1)
        assert server.statistics().handler_errors == 0
    [record] = [record for record in caplog.records if record.name == "gain_trio"]
    assert record.levelno == logging.INFO
    assert record.exc_info is None
    assert words in record.getMessage()
    assert name in record.getMessage()
    assert record.peer.startswith(name)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["tcp", "tls", "unix"])
@pytest.mark.parametrize("how", ["open", "closed", "in a nursery"])
async def test_a_handlers_error_names_the_peer_and_itself(
    how: str, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise ValueError("on request")

    async def handler(connection: Connection) -> None:
        await connection.receive()
        if how == "open":
            await fail()
        elif how == "closed":
            async with connection:
                await fail()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)

    async with client_of(kind, handler, tmp_path) as (server, client, name):
        await client.send(b"x")
        await until(lambda: server.statistics().handler_errors == 1)
    [record] = [record for record in caplog.records if record.name == "gain_trio"]
    assert record.levelno == logging.ERROR
    assert "failed with ValueError;" in record.getMessage()
    assert name in record.getMessage()
    assert record.exc_info


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_a_peer_that_has_reset_the_connection_is_named(host: str, caplog: pytest.LogCaptureFixture) -> None:
    if sys.platform != "linux":
        pytest.skip("the name of a peer that is gone is Linux's to tell")
    caplog.set_level(logging.INFO, "gain_trio")
    async with serving(plain, f"tcp://{host}:0") as server:
        client = await gain_trio.connect(f"tcp://{host}:{server.addresses[0][1]}")
        port = client.local_address[1]
        client.abort()
        await until(lambda: server.statistics().broken == 1)
    [record] = [record for record in caplog.records if record.name == "gain_trio"]
    assert f"{host}:{port}" in record.getMessage()
    assert record.peer == f"{host}:{port}"  # type: ignore[attr-defined]


async def test_the_client_behind_a_proxy_is_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gain_trio")
    async with serving(plain, proxy_protocol=True) as server:
        client = await connect(server)
        await client.send(b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 80\r\nhal")
        await client.aclose()
        await until(lambda: server.statistics().broken == 1)
    assert "192.0.2.1:1000" in caplog.text


async def test_callbacks_have_the_same_policy(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gain_trio")
    reasons: list[BaseException | None] = []

    class Handler(EventHandler):
        async def on_read(self, conn: Conn, n: int) -> None:  # noqa: ARG002 - the signature of callbacks
            async def fail() -> None:
                raise {b"1": IncompleteMessage(1), b"2": ValueError("on request")}[conn.next(1)]

            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail)

        def on_close(self, conn: Conn, err: BaseException | None) -> None:  # noqa: ARG002 - the same
            reasons.append(err)

    async with trio.open_nursery() as nursery:
        server = await nursery.start(gain_trio.callbacks.serve, Handler(), LOCAL)
        names = []
        for number, word in enumerate([b"1", b"2"], 1):
            async with await gain_trio.connect(f"tcp://127.0.0.1:{server.addresses[0][1]}") as client:
                names.append(f"127.0.0.1:{client.local_address[1]}")
                await client.send(word)
                await until(lambda number=number: len(reasons) == number)  # type: ignore[misc]
        await until(lambda: server.active_connections == 0)
        nursery.cancel_scope.cancel()
    assert list(map(type, reasons)) == [IncompleteMessage, ValueError]
    records = [record for record in caplog.records if record.name == "gain_trio" and hasattr(record, "peer")]
    assert [record.levelno for record in records] == [logging.INFO, logging.ERROR]
    for record, name in zip(records, names, strict=True):
        assert name in record.getMessage()


async def test_datagrams_have_the_same_policy(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(_data: bytes, _address: Any, _endpoint: gain_trio.DatagramEndpoint) -> None:
        async def fail() -> None:
            raise ValueError("on request")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)

    async with trio.open_nursery() as nursery:
        server = await nursery.start(gain_trio.serve_datagrams, handler, "udp://127.0.0.1:0")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            sock.sendto(b"x", server.address)
            await until(lambda: server.statistics().handler_errors == 1)
            port = sock.getsockname()[1]
        nursery.cancel_scope.cancel()
    [record] = [record for record in caplog.records if record.name == "gain_trio"]
    assert f"127.0.0.1:{port} with ValueError" in record.getMessage()


# --- repr() ---


async def test_connections_name_their_peer(tmp_path: Path) -> None:
    seen: list[str] = []

    async def handler(connection: Connection) -> None:
        seen.append(repr(connection))
        await connection.receive()

    async with serving(handler) as server, await connect(server) as client:
        await until(lambda: len(seen) == 1)
        assert f"127.0.0.1:{client.local_address[1]}" in seen[0]
        assert f"127.0.0.1:{server.addresses[0][1]}" in repr(client)
        assert f"127.0.0.1:{server.addresses[0][1]}" in repr(server)
    assert "closed" in repr(client)
    path = f"{tmp_path}/s\x1b[1m"
    async with serving(handler, f"unix://{tmp_path}/s%1B[1m".replace("[", "%5B")) as server:
        async with await gain_trio.connect(f"unix://{tmp_path}/s%1B%5B1m") as client:
            assert f"{tmp_path}/s" in repr(client)
            for text in (repr(client), repr(server)):
                assert "\x1b" not in text
                assert r"\x1b[1m" in text
        assert server.addresses == (path,)
        await until(lambda: len(seen) == 2)
        assert "a peer on a Unix socket" in seen[1]


async def test_endpoints_and_listeners_name_their_address_also_when_closed() -> None:
    [listener] = await gain_trio.open_listeners(LOCAL)
    async with listener:
        where = f"127.0.0.1:{listener.local_address[1]}"
        assert where in repr(listener)
    assert where in repr(listener)
    assert "closed" in repr(listener)
    async with await gain_trio.open_datagram_endpoint("udp://127.0.0.1:0") as one:
        where = f"127.0.0.1:{one.local_address[1]}"
        address = f"udp://{where}"
        async with await gain_trio.open_datagram_endpoint("udp://127.0.0.1:0", remote_address=address) as two:
            assert f"to {where}" in repr(two)
        assert f"to {where}" in repr(two)
        assert "closed" in repr(two)

"""Connections that are refused: beyond max_connections, and beyond those that one address may have."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import trio
from support import worker_handlers as handlers
from support.pairs import PATIENCE, until
from support.servers import connect, echo, serving
from support.workers import ARCHITECTURES, clients_of, soon

import gain_trio
from gain_trio import Connection, ProxyHeader, Server
from gain_trio._server._admission import client_of

pytestmark = pytest.mark.connections


async def is_served(client: Connection) -> bool:
    """Whether the server answers, or has reset the connection."""
    with trio.fail_after(PATIENCE):
        try:
            await client.send(b"x")
            return await client.receive(1) == b"x"
        except trio.BrokenResourceError:
            return False


async def open_clients(server: Server, count: int, **options: Any) -> list[Connection]:
    address = f"tcp://127.0.0.1:{server.addresses[0][1]}"
    return [await gain_trio.connect(address, **options) for _ in range(count)]


def abort(clients: list[Connection]) -> None:
    for client in clients:
        client.abort()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# --- max_connections ---


async def test_a_client_too_many_is_reset(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(echo, max_connections=2, at_max_connections="refuse") as server:
        clients = await open_clients(server, 2)
        assert [await is_served(client) for client in clients] == [True, True]
        more = await open_clients(server, 3)
        assert [await is_served(client) for client in more] == [False] * 3
        await until(lambda: server.statistics().refused == 3)
        assert lines(caplog) == ["new connections are refused: 2 connections are open (max_connections)"]
        clients.pop().abort()
        await until(lambda: server.active_connections == 1)
        [last] = await open_clients(server, 1)
        assert await is_served(last)
        now = server.statistics()
        assert (now.accepted, now.active, now.refused) == (6, 2, 3)
        abort([*clients, *more, last])


async def test_clients_that_come_together_take_the_places_that_there_are() -> None:
    async with serving(echo, max_connections=3, at_max_connections="refuse", workers=2) as server:
        served: list[bool] = []

        async def ask() -> None:
            [client] = await open_clients(server, 1)
            served.append(await is_served(client))
            if served[-1]:
                await end.wait()
            client.abort()

        end = trio.Event()
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(ask)
            await until(lambda: len(served) == 10)
            end.set()
        assert sum(served) == 3


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_with_worker_processes(architecture: str, caplog: pytest.LogCaptureFixture) -> None:
    options = {"processes": 1, "max_connections": 2, "at_max_connections": "refuse", "architecture": architecture}
    async with serving(handlers.tell_process, **options) as server:
        async with clients_of(server, 2):
            # The reset may be there before connect() has returned.
            with pytest.raises((trio.BrokenResourceError, OSError)), trio.fail_after(PATIENCE):
                async with await connect(server) as client:
                    while True:
                        await client.send(b"x")
                        await client.receive()
            await soon(lambda: server.statistics().refused == 1 and server.statistics().accepted == 3)
        await soon(lambda: server.active_connections == 0)
        async with clients_of(server, 2):
            pass
    assert lines(caplog) == ["new connections are refused: 2 connections are open (max_connections)"]


# --- by address ---


async def test_one_address_has_its_share(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(echo, max_connections_per_address=2) as server:
        clients = await open_clients(server, 2)
        assert [await is_served(client) for client in clients] == [True, True]
        [refused] = await open_clients(server, 1)
        assert not await is_served(refused)
        [other] = await open_clients(server, 1, source_address=("127.0.0.2", 0))
        assert await is_served(other)
        clients.pop().abort()
        await until(lambda: server.active_connections == 2)
        [again] = await open_clients(server, 1)
        assert await is_served(again)
        abort([*clients, refused, other, again])
    reason = "2 connections from its address are open (max_connections_per_address)"
    assert lines(caplog) == [f"new connections are refused: {reason}"]


async def test_behind_a_proxy_it_is_the_clients_address() -> None:
    def header(host: str) -> ProxyHeader:
        served = ("2001:db8::1", 80, 0, 0) if ":" in host else ("192.0.2.1", 80)
        return ProxyHeader.of((host, 5, 0, 0) if ":" in host else (host, 5), served)

    async with serving(echo, max_connections_per_address=1, proxy_protocol=True) as server:
        clients = []
        for host, fine in [
            ("192.0.2.7", True),
            ("192.0.2.7", False),
            ("192.0.2.8", True),
            ("::ffff:192.0.2.8", False),
            ("2001:db8:1:2::1", True),
            ("2001:db8:1:2:ffff::1", False),
            ("2001:db8:1:3::1", True),
        ]:
            clients += await open_clients(server, 1, proxy_header=header(host))
            assert await is_served(clients[-1]) is fine, host
        abort(clients)


async def test_a_unix_socket_has_no_addresses(tmp_path: Path) -> None:
    async with serving(echo, f"unix://{tmp_path}/s", max_connections_per_address=1):
        clients = [await gain_trio.connect(f"unix://{tmp_path}/s") for _ in range(3)]
        assert all([await is_served(client) for client in clients])
        abort(clients)


async def test_what_is_over_is_forgotten() -> None:
    """Also a connection that was cut off before it was admitted, or refused."""
    async with serving(echo, max_connections_per_address=1, proxy_protocol=True) as server:
        settings = server._consumers[0]._settings
        [step] = settings.admissions
        for number in range(20):
            header = ProxyHeader.of((f"192.0.2.{number % 5}", 5), ("192.0.2.1", 80))
            clients = await open_clients(server, 1) + await open_clients(server, 2, proxy_header=header)
            abort(clients)
        await until(lambda: server.active_connections == 0)
        assert not step._admitted
        assert not step._counts


@pytest.mark.parametrize(
    ("address", "client"),
    [
        (("192.0.2.1", 5), "192.0.2.1"),
        (("::ffff:192.0.2.1", 5, 0, 0), "192.0.2.1"),
        (("2001:db8:1:2:3:4:5:6", 5, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%lo", 5, 0, 1), "fe80::/64"),
        ("", "None"),
        ("/run/client", "None"),
        (b"\0name", "None"),
    ],
)
def test_who_a_client_is(address: Any, client: str) -> None:
    assert str(client_of(address)) == client

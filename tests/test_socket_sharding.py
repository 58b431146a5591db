"""Socket sharding: listeners that share a port, and who gets what."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from support.descriptors import open_descriptors
from support.pairs import until
from support.servers import LOCAL, connect, echo, serving

import gain_trio
from gain_trio import Connection

pytestmark = pytest.mark.connections

SHARDS = 4


async def test_shards_share_one_port_and_all_of_them_serve() -> None:
    async with serving(echo, architecture="socket_sharding", workers=SHARDS) as server:
        [(host, port)] = server.addresses
        assert host == "127.0.0.1"
        clients = []
        for _ in range(64):  # by which of them the kernel's hash leaves one out in one of 25 million cases
            clients.append(await connect(server))
            await clients[-1].send(b"hello")
            assert await clients[-1].receive() == b"hello"
        statistics = server.statistics()
        assert (statistics.accepted, statistics.active) == (64, 64)
        assert len(statistics.connections_by_consumer) == SHARDS
        assert all(statistics.connections_by_consumer)
        for client in clients:
            await client.aclose()


async def test_each_shard_has_a_listener_of_its_own() -> None:
    before = open_descriptors()
    async with serving(echo, [LOCAL, "tcp://127.0.0.2:0"], architecture="socket_sharding", workers=3) as server:
        assert len(server.addresses) == 2
        assert len(open_descriptors()) == len(before) + 2 * 3
        for address in server.addresses:
            with socket.socket() as other:
                other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                other.bind(address)  # which it could not if they did not share their ports


async def test_a_name_with_several_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(echo, "tcp://localhost:0", architecture="socket_sharding", workers=2) as server:
        for address in server.addresses:
            async with await trio.open_tcp_stream(*address[:2]) as client:
                await client.send_all(b"hello")
                assert await client.receive_some() == b"hello"


async def test_a_port_of_somebody_else_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        where = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(OSError, match="cannot listen on"):
            await gain_trio.serve(echo, where, architecture="socket_sharding", workers=2)


@pytest.fixture
def own_cpus() -> Iterator[list[int]]:
    """The CPUs that this thread may run on, and may again when the test is over."""
    if sys.platform != "linux":
        pytest.skip("the CPU of a thread can be chosen on Linux")
    cpus = os.sched_getaffinity(0)
    yield sorted(cpus)
    os.sched_setaffinity(0, cpus)


async def test_cbpf_steers_by_cpu(own_cpus: list[int]) -> None:
    """Over loopback a connection arrives on the CPU that its client runs on."""
    async with serving(echo, architecture="socket_sharding", workers=2, cbpf=True) as server:
        clients: list[Connection] = []
        for number in range(32):
            cpu = own_cpus[number % len(own_cpus)]
            os.sched_setaffinity(0, {cpu})
            before = server.statistics().connections_by_consumer
            clients.append(await connect(server))
            await until(lambda number=number: server.statistics().accepted == number + 1)  # type: ignore[misc]
            gained = [now - then for now, then in zip(server.statistics().connections_by_consumer, before, strict=True)]
            assert gained.index(1) == cpu % 2
        for client in clients:
            await client.aclose()


async def test_a_balancer_has_no_say() -> None:
    class Forbidden:
        def pick(self, _peer: Any, _consumers: Any) -> Any:
            raise AssertionError("with socket sharding the kernel decides")

    async with serving(echo, architecture="socket_sharding", workers=2, balancer=Forbidden()) as server:
        async with await connect(server) as client:
            await client.send(b"hello")
            assert await client.receive() == b"hello"

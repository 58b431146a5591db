"""serve(processes=N): what worker processes serve, and what the server knows of them."""

from __future__ import annotations

import functools
import logging
import os
import platform
import socket
import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from support import worker_handlers as handlers
from support.certificates import certificate, client_context
from support.descriptors import open_descriptors
from support.pairs import PATIENCE, receive_all, receive_exactly
from support.servers import LOCAL, connect, echo, serving
from support.workers import ARCHITECTURES, children, clients_of, process_of, raises_alone, soon

import gain_trio
from gain_trio import BackendInfo, Connection, ConsumerView, Server
from gain_trio._kernel._os_errors import kernel_version

pytestmark = [
    pytest.mark.connections,
    pytest.mark.slow,
    pytest.mark.usefixtures("no_process_is_late", "forked_workers"),
]


# --- serving ---


@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_every_process_serves_and_nothing_is_left_behind(architecture: str) -> None:
    await trio.to_thread.run_sync(
        int
    )  # the thread that a process is started from stays for a while, with its descriptors
    descriptors = open_descriptors()
    async with serving(handlers.tell_process, processes=2, architecture=architecture) as server:
        pids = children()
        assert len(pids) == 2
        assert os.getpid() not in pids
        seen = set()
        with trio.fail_after(PATIENCE):
            while len(seen) < 2:
                async with await connect(server) as client:
                    seen.add(await process_of(client))
        assert seen == set(pids)
    assert children() == []
    assert open_descriptors() == descriptors


@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_statistics_are_summed(architecture: str, backend: BackendInfo) -> None:
    async with serving(echo, processes=2, workers=2, architecture=architecture) as server:
        clients = [await connect(server) for _ in range(8)]
        for client in clients:
            await client.send(b"12345")
            await receive_exactly(client, 5)
        await soon(lambda: server.statistics().bytes_sent == 40)
        now = server.statistics()
        assert (now.accepted, now.active, now.bytes_received) == (8, 8, 40)
        assert server.active_connections == 8
        assert len(now.connections_by_consumer) == 4
        assert sum(now.connections_by_consumer) == sum(now.active_by_consumer) == 8
        assert len(now.rings) == (0 if backend.backend == "trio" else 2)
        for client in clients[:3]:
            await client.aclose()
        await soon(lambda: server.statistics().finished == 3)
        assert server.active_connections == 5
        for client in clients[3:]:
            client.abort()
        await soon(lambda: server.active_connections == 0)
        end = server.statistics()
        assert end.accepted == 8 == sum(end.closed.values())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_every_process_counts_from_the_start(architecture: str, backend: BackendInfo) -> None:
    """The kernel may give a process no connection at all with socket sharding."""
    async with serving(handlers.tell_process, processes=3, architecture=architecture) as server:
        now = server.statistics()
        assert len(now.rings) == (0 if backend.backend == "trio" else 3)
        assert now.connections_by_consumer == (0, 0, 0)


async def test_the_backend_is_the_servers(backend: BackendInfo) -> None:
    async with serving(handlers.tell_process, processes=1) as server, clients_of(server, 1):
        await soon(lambda: server.statistics().accepted == 1)
        rings = server.statistics().rings
        assert [ring.backend for ring in rings] == ["io_uring"] * (backend.backend == "io_uring")


async def test_auto_is_a_process_for_each_cpu() -> None:
    async with serving(handlers.tell_process, processes="auto"):
        assert len(children()) == len(os.sched_getaffinity(0))


async def test_several_addresses(tmp_path: Path) -> None:
    addresses = [LOCAL, "tcp://127.0.0.2:0", f"unix://{tmp_path}/socket"]
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            lambda **status: gain_trio.serve(handlers.tell_process, addresses, processes=2, **status)
        )
        assert len(server.addresses) == 3
        for address in (*(f"tcp://{host}:{port}" for host, port in server.addresses[:2]), addresses[2]):
            async with await gain_trio.connect(address) as client:
                assert await process_of(client) in children()
        nursery.cancel_scope.cancel()
    assert not (tmp_path / "socket").exists()


async def test_tls_with_a_context_made_in_each_process(tmp_path: Path) -> None:
    chain = tmp_path / "chain.pem"
    chain.write_bytes(certificate().private_key_and_cert_chain_pem.bytes())
    make = functools.partial(handlers.load_context, str(chain))
    async with serving(handlers.tell_process, processes=2, ssl_context=make) as server:
        address = f"tcp://127.0.0.1:{server.addresses[0][1]}"
        pids = set()
        for _ in range(2):
            client = await gain_trio.connect(address, ssl_context=client_context(), server_hostname="localhost")
            async with client:
                pids.add(await process_of(client))
        assert pids == set(children())


# --- who gets a connection ---


async def test_round_robin_is_exact_over_all_consumers() -> None:
    async with serving(handlers.tell_process, processes=2, workers=2) as server:
        for count in range(1, 10):
            async with await connect(server) as client:
                await process_of(client)
            await soon(lambda count=count: server.statistics().accepted == count)  # type: ignore[misc]
            expected = tuple(count // 4 + (number < count % 4) for number in range(4))
            assert server.statistics().connections_by_consumer == expected


async def test_least_connections_are_within_one() -> None:
    async with serving(handlers.tell_process, processes=3, balancer="least_connections") as server:
        async with clients_of(server, 9) as clients:
            await soon(lambda: server.statistics().active_by_consumer == (3, 3, 3))
            by_process: dict[int, list[Connection]] = {}
            for client in clients:
                by_process.setdefault(await process_of(client), []).append(client)
            first = next(iter(by_process.values()))
            for client in first:  # one process has none now, so it gets all new ones until it has as many
                await client.aclose()
            await soon(lambda: server.active_connections == 6)
            async with clients_of(server, 3):
                await soon(lambda: server.statistics().active_by_consumer == (3, 3, 3))


async def test_source_ip_hash_is_of_the_address_alone() -> None:
    async with serving(handlers.tell_process, processes=2, balancer="source_ip_hash") as server:
        processes: dict[str, set[int]] = {}
        for number in [*range(1, 21)] * 2:
            host = f"127.0.1.{number}"
            stream = await trio.open_tcp_stream("127.0.0.1", server.addresses[0][1], local_address=host)
            async with stream:
                processes.setdefault(host, set()).add(await process_of(stream))
        assert all(len(pids) == 1 for pids in processes.values())
        assert set.union(*processes.values()) == set(children()), "20 addresses, and all with one process"


async def test_a_balancer_of_ones_own_stays_in_the_server() -> None:
    seen = []

    class Last:  # which cannot be pickled
        def pick(self, peer: Any, consumers: Sequence[ConsumerView], /) -> ConsumerView:
            seen.append((peer[0], [consumer.index for consumer in consumers], consumers[-1].connections))
            return consumers[-1]

    async with serving(handlers.tell_process, processes=2, balancer=Last()) as server, clients_of(server, 3):
        await soon(lambda: server.statistics().connections_by_consumer == (0, 3))
    assert seen == [("127.0.0.1", [0, 1], count) for count in range(3)]


@pytest.mark.parametrize("answer", ["nonsense", LookupError("lost my head")], ids=str)
async def test_a_balancer_that_fails_ends_the_server_and_closes_the_connection(answer: Any) -> None:
    class Broken:
        def pick(self, _peer: Any, _consumers: Sequence[ConsumerView], /) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

    clients: list[socket.socket] = []
    with raises_alone(LookupError if isinstance(answer, Exception) else ValueError):
        async with serving(handlers.tell_process, processes=2, balancer=Broken()) as server:
            clients.append(socket.create_connection(server.addresses[0]))  # which the kernel completes by itself
            await trio.sleep_forever()
    with clients[0], pytest.raises(ConnectionResetError):
        clients[0].recv(1)
    assert children() == []


# --- limits ---


@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_max_connections_holds_over_all_processes(architecture: str) -> None:
    now = most = 0

    async def exchange(server: Server) -> None:
        nonlocal now, most
        async with await connect(server) as client:
            await process_of(client)
            now += 1
            most = max(most, now)
            await soon(lambda: most >= 4)  # four at once, and every counted connection has a handler
            now -= 1

    async with serving(handlers.tell_process, processes=2, architecture=architecture, max_connections=4) as server:
        async with trio.open_nursery() as nursery:
            for _ in range(60):
                nursery.start_soon(exchange, server)
        await soon(lambda: server.statistics().finished == 60)
        assert server.active_connections == 0
    assert most == 4


async def test_max_connections_must_be_divisible_among_shards() -> None:
    with pytest.raises(ValueError, match="each needs one at least"):
        await gain_trio.serve(echo, LOCAL, processes=3, architecture="socket_sharding", max_connections=2)


async def test_a_process_without_descriptors_has_connections_wait(caplog: pytest.LogCaptureFixture) -> None:
    handler = handlers.WhenUnpickled(handlers.tell_process, handlers.limit_descriptors, 24)
    answered = 0

    async def exchange(server: Server) -> None:
        nonlocal answered
        async with await connect(server) as client:
            await process_of(client)
            answered += 1
            await soon(lambda: answered >= 8)

    async with serving(handler, processes=1) as server:
        async with trio.open_nursery() as nursery:
            for _ in range(60):
                nursery.start_soon(exchange, server)
        assert answered == 60
        await soon(lambda: server.statistics().finished == 60)
        assert server.statistics().accepted == 60
    assert "it has too many open files" in caplog.text


# --- where they run ---


@pytest.fixture
def own_cpus() -> Iterator[set[int]]:
    """The CPUs that this thread may run on, as it will be allowed to again."""
    cpus = os.sched_getaffinity(0)
    yield cpus
    os.sched_setaffinity(0, cpus)


async def test_affinity_and_priority() -> None:
    cpus = sorted(os.sched_getaffinity(0))
    nice = min(os.getpriority(os.PRIO_PROCESS, 0) + 3, 19)
    options = {"processes": len(cpus), "cpu_affinity": True, "priority": nice}
    for architecture in ARCHITECTURES:
        async with serving(handlers.tell_placement, architecture=architecture, **options) as server:
            told = set()
            with trio.fail_after(PATIENCE):
                while len(told) < (
                    len(cpus) if architecture == "reactor" else 1
                ):  # a CPU may send to its own shard only
                    async with await connect(server) as client:
                        told.add((await receive_all(client)).decode())
        assert told <= {f"{cpu} {nice}" for cpu in cpus}


async def test_a_process_gets_what_arrives_at_its_own_cpu(own_cpus: set[int]) -> None:
    """The kernel prefers the listener of a shared port whose SO_INCOMING_CPU matches, since Linux 6.2."""
    if len(own_cpus) < 2 or (kernel_version(platform.release()) or (0, 0)) < (6, 2):
        pytest.skip("needs two CPUs, and Linux 6.2")
    options = {"processes": len(own_cpus), "cpu_affinity": True, "architecture": "socket_sharding"}
    async with serving(handlers.tell_placement, **options) as server:
        for cpu in own_cpus:
            os.sched_setaffinity(0, {cpu})  # through the loopback interface, a connection arrives where it is made
            for _ in range(10):
                async with await connect(server) as client:
                    assert (await receive_all(client)).split()[0] == b"%d" % cpu


async def test_a_protocol_of_asyncio_in_worker_processes() -> None:
    handler = gain_trio.asyncio_bridge.ProtocolHandler(handlers.EchoProtocol)
    for architecture in ARCHITECTURES:
        async with serving(handler, processes=2, architecture=architecture) as server:
            for _ in range(4):
                async with await connect(server) as client:
                    await client.send(b"hello")
                    answer = await receive_exactly(client, 13)
                    assert int(answer[:8]) in children()
                    assert answer[8:] == b"hello"


async def test_a_priority_that_is_not_allowed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may take any priority")
    with pytest.raises(gain_trio.WorkerFailed, match="CAP_SYS_NICE"):
        await gain_trio.serve(echo, LOCAL, processes=1, priority=-20)


# --- what they need ---


def _closure() -> Any:
    async def handler(connection: Connection) -> None:
        await connection.aclose()

    return handler


@pytest.mark.parametrize("handler", [lambda connection: connection.aclose(), _closure()], ids=["lambda", "closure"])
async def test_a_handler_that_cannot_be_pickled_is_refused_at_once(handler: Any) -> None:
    with pytest.raises(
        ValueError, match=r"the handler .* cannot be sent to worker processes .* at the top of a module"
    ):
        await gain_trio.serve(handler, LOCAL, processes=2)
    assert children() == []


async def test_a_context_that_cannot_be_pickled_is_refused_at_once() -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    with pytest.raises(ValueError, match=r"ssl_context=.* cannot be sent .* a function at the top of a module"):
        await gain_trio.serve(echo, LOCAL, processes=2, ssl_context=context)


async def test_a_context_that_cannot_be_made_ends_the_server_with_the_reason() -> None:
    with pytest.raises(gain_trio.WorkerFailed, match="the certificate is missing"):
        await gain_trio.serve(echo, LOCAL, processes=2, ssl_context=handlers.make_no_context)


async def test_affinity_and_priority_are_for_worker_processes() -> None:
    for option in ({"cpu_affinity": True}, {"priority": 5}):
        with pytest.raises(ValueError, match="give processes=, too"):
            await gain_trio.serve(echo, LOCAL, **option)  # type: ignore[arg-type]


# --- the log ---


async def test_what_a_process_logs_is_logged_by_the_server(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(handlers.fail, processes=1) as server:
        [pid] = children()
        async with await connect(server) as client:
            await client.send(b"?")
            assert await receive_all(client) == b""
        await soon(lambda: "handler fail failed" in caplog.text)
    [record] = [record for record in caplog.records if "handler fail failed" in record.message]
    assert (record.process, record.processName, record.levelno) == (pid, "gain_trio worker 0", logging.ERROR)
    assert "LookupError: the handler's own" in caplog.text
    assert server.statistics().handler_errors == 1


async def test_levels_are_the_servers(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "gain_trio"):
        async with serving(handlers.tell_process, processes=1) as server, clients_of(server, 1):
            await soon(lambda: "is open" in caplog.text)
    caplog.clear()
    with caplog.at_level(logging.ERROR, "gain_trio"):
        async with serving(handlers.tell_process, processes=1) as server, clients_of(server, 1):
            await soon(lambda: server.statistics().accepted == 1)
    assert caplog.text == ""


# --- passing descriptors on ---


async def test_a_client_that_is_gone_before_it_is_handed_off_does_no_harm() -> None:
    async with serving(handlers.tell_process, processes=2, balancer="source_ip_hash") as server:
        for _ in range(20):
            with socket.create_connection(server.addresses[0]) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        async with await connect(server) as client:
            assert await process_of(client) in children()


async def test_the_end_of_a_connection_is_not_held_up_by_the_servers_copy() -> None:
    async with serving(handlers.tell_process, processes=1) as server:
        async with await connect(server) as client:
            await process_of(client)
            await client.send_eof()
            assert await receive_all(client) == b""

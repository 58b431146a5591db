"""max_connections: never more handlers than that, every client is served in the end, and no loop spins meanwhile."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from support.certificates import client_context, server_context
from support.descriptors import no_descriptors_left, open_descriptors
from support.pairs import receive_all, until
from support.runs import WaitCounter, ring_run
from support.servers import LOCAL, connect, serving
from trio.testing import wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection

pytestmark = [pytest.mark.connections, pytest.mark.slow]

WATCHED = 0.5
"""Seconds for which a server that is full is watched."""


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """2,000 of them, on machines that allow this process 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2500:
        pytest.skip(f"1,000 clients and their server need 2,500 descriptors, and RLIMIT_NOFILE allows {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2500), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Counting:
    """A handler that echoes when it may, and counts how many of it there are."""

    def __init__(self) -> None:
        self.now = self.most = self.served = 0
        self.may_go_on = trio.Event()

    async def __call__(self, connection: Connection) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.may_go_on.wait()
            await connection.send(await connection.receive())
            self.served += 1
        finally:
            self.now -= 1


async def watch_idle() -> None:
    """Fail if the run does anything to speak of while it has nothing to do."""
    await wait_all_tasks_blocked()
    counter = WaitCounter()
    trio.lowlevel.add_instrument(counter)
    start = time.process_time()
    await trio.sleep(WATCHED)  # what is measured is what happens meanwhile; nothing is waited for
    used = time.process_time() - start
    trio.lowlevel.remove_instrument(counter)
    assert counter.waits < 20, "a loop that spins waits thousands of times"
    assert used < WATCHED / 2, "and so does the CPU"


@pytest.mark.parametrize(
    "options",
    [{}, {"workers": 3}, {"architecture": "socket_sharding", "workers": 2}],
    ids=["one", "reactor", "sharding"],
)
async def test_a_thousand_clients_of_a_hundred_places(many_descriptors: None, options: dict[str, Any]) -> None:
    handler = Counting()
    answers: list[bytes] = []

    async def client(number: int) -> None:
        async with await trio.open_tcp_stream(*server.addresses[0]) as stream:
            await stream.send_all(b"%d" % number)
            answers.append(await receive_all(stream))

    async with serving(handler, max_connections=100, **options) as server, trio.open_nursery() as clients:
        for number in range(1000):
            clients.start_soon(client, number)
        await until(lambda: handler.now == 100)
        await watch_idle()
        assert (handler.now, server.active_connections, server.statistics().accepted) == (100, 100, 100)
        handler.may_go_on.set()
        await until(lambda: len(answers) == 1000)
        assert (handler.most, handler.served) == (100, 1000)
        await until(lambda: server.active_connections == 0)
        assert server.statistics().closed["finished"] == server.statistics().accepted == 1000
        await watch_idle()
    assert sorted(answers, key=int) == [b"%d" % number for number in range(1000)]


async def test_what_does_not_fit_is_not_accepted() -> None:
    """A connection beyond the limit waits in the kernel's backlog, where it costs no descriptor."""
    handler = Counting()
    async with serving(handler, max_connections=2) as server:
        clients = [await trio.open_tcp_stream(*server.addresses[0]) for _ in range(2)]
        await until(lambda: handler.now == 2)
        before = len(open_descriptors())
        clients += [await trio.open_tcp_stream(*server.addresses[0]) for _ in range(5)]
        for client in clients:
            await client.send_all(b"x")
        await wait_all_tasks_blocked()
        assert len(open_descriptors()) == before + 5, "the clients' own"
        handler.may_go_on.set()
        for client in clients:
            assert await receive_all(client) == b"x"
            await client.aclose()
        assert handler.most == 2


async def test_a_quiet_address_does_not_keep_the_last_place() -> None:
    handler = Counting()
    handler.may_go_on.set()
    async with serving(handler, [LOCAL, "tcp://127.0.0.2:0", "tcp://127.0.0.3:0"], max_connections=1) as server:
        await wait_all_tasks_blocked()
        for address in (*server.addresses, *reversed(server.addresses)):
            for _ in range(2):
                async with await trio.open_tcp_stream(*address) as client:
                    await client.send_all(b"x")
                    assert await receive_all(client) == b"x"
    assert (handler.most, handler.served) == (1, 12)


async def test_everybody_gets_a_turn_when_several_addresses_are_full() -> None:
    handler = Counting()
    async with serving(handler, [LOCAL, "tcp://127.0.0.2:0"], max_connections=3) as server:
        clients = [await trio.open_tcp_stream(*server.addresses[number % 2]) for number in range(20)]
        for client in clients:
            await client.send_all(b"x")  # before it is known who is served first
        await until(lambda: handler.now == 3)
        handler.may_go_on.set()
        for client in clients:
            assert await receive_all(client) == b"x"
            await client.aclose()
    assert (handler.most, handler.served) == (3, 20)


class DeliberateError(Exception):
    pass


async def test_a_place_comes_back_however_a_connection_ends(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(connection: Connection) -> None:
        match await connection.receive_line():
            case b"fail":
                raise DeliberateError
            case b"abort":
                connection.abort()
            case b"cancel":
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await connection.receive()
            case b"detach":
                sock, _queued = await connection.detach()
                sock.close()
            case _:
                await connection.send(b"served")

    async with serving(handler, max_connections=1) as server:
        for how in (b"fail", b"abort", b"cancel", b"detach", b"") * 3:
            async with await connect(server) as client:
                await client.send(how + b"\n")
                with_answer = b"served" if not how else b""
                try:
                    assert await receive_all(client) == with_answer
                except trio.BrokenResourceError:
                    assert how == b"abort"
        await until(lambda: server.active_connections == 0)
        assert server.statistics().accepted == 15


async def test_a_place_comes_back_after_a_handshake_that_failed() -> None:
    async def handler(connection: Connection) -> None:
        await connection.send(b"served")

    async with serving(handler, max_connections=1, ssl_context=server_context()) as server:
        for _ in range(3):
            async with await connect(server) as client:
                await client.send(b"this is not TLS\n" * 100)
                with trio.move_on_after(5):
                    try:
                        await receive_all(client)
                    except trio.BrokenResourceError:
                        pass
            address = f"tcp://127.0.0.1:{server.addresses[0][1]}"
            async with await gain_trio.connect(
                address, ssl_context=client_context(), server_hostname="localhost"
            ) as client:
                assert await receive_all(client) == b"served"
        assert server.statistics().failed_handshakes == 3


async def test_out_of_descriptors_with_places_left(caplog: pytest.LogCaptureFixture) -> None:
    handler = Counting()
    handler.may_go_on.set()
    async with serving(handler, max_connections=1) as server:
        client = await trio.open_tcp_stream(*server.addresses[0])
        await client.send_all(b"1")
        assert await receive_all(client) == b"1"
        with trio.socket.socket() as later:
            with no_descriptors_left():
                await later.connect(server.addresses[0])
                await until(lambda: caplog.records)
                assert server.statistics().accepted == 1
            await later.send(b"2")
            assert await later.recv(1) == b"2"
        await client.aclose()
    assert handler.most == 1


@pytest.mark.full_ring
def test_a_full_table_of_connections_loses_none(caplog: pytest.LogCaptureFixture, no_descriptor_leak: None) -> None:
    """An accepted connection without a place on the ring gets the next free one."""
    handler = Counting()

    async def main() -> None:
        async with serving(handler, max_connections=100) as server:
            clients = [await trio.open_tcp_stream(*server.addresses[0]) for _ in range(9)]
            for number, client in enumerate(clients):
                await client.send_all(b"%d" % number)
            await until(lambda: caplog.records)
            assert handler.now == 4
            handler.may_go_on.set()
            for number, client in enumerate(clients):
                assert await receive_all(client) == b"%d" % number
                await client.aclose()

    ring_run(main, max_slots=4)
    assert (handler.most, handler.served) == (4, 9)
    assert "ENOSPC" in caplog.text


async def test_drain_while_it_is_full(autojump_clock: trio.testing.MockClock) -> None:
    """Those who wait to be accepted are not, and the acceptor that waits for a place ends."""
    handler = Counting()
    async with serving(handler, max_connections=1) as server:
        first, second = [await trio.open_tcp_stream(*server.addresses[0]) for _ in range(2)]
        await until(lambda: handler.now == 1)
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.drain, 60)
            await server.draining.wait()
            with pytest.raises(trio.BrokenResourceError):
                await receive_all(second)
            handler.may_go_on.set()
            await first.send_all(b"x")
            assert await receive_all(first) == b"x"
        assert server.statistics().accepted == 1
        assert trio.current_time() < 60
        await first.aclose()
        await second.aclose()

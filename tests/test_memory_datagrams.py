"""gain_trio.testing.serving_datagrams: servers of datagrams in memory, and the faults of a network that loses them."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import trio
from support.descriptors import open_descriptors
from support.event_servers import Recorder
from support.workers import raises_alone
from trio.testing import wait_all_tasks_blocked

from gain_trio import DatagramEndpoint, DatagramServer
from gain_trio.callbacks import Conn, EventServer
from gain_trio.testing import DatagramRoute, serving_datagrams

pytestmark = [pytest.mark.connections, pytest.mark.one_backend]


async def answer(data: bytes, address: Any, endpoint: DatagramEndpoint) -> None:
    await endpoint.send(data, address)


def write_back(conn: Conn, n: int) -> None:
    conn.write(conn.next(n))


async def test_datagrams_are_answered_whole() -> None:
    before = open_descriptors()
    async with serving_datagrams(answer, strict=True) as server:
        assert isinstance(server.server, DatagramServer)
        first, other = server.connect(), server.connect(source_address=("192.0.2.1", 7))
        for data in (b"one", b"", bytes(60_000)):
            await first.send(data)
            await other.send(data + b"!")
            assert await first.receive() == (data, ("127.0.0.1", 80))
            assert (await other.receive())[0] == data + b"!"
        assert open_descriptors() == before
        assert (first.fileno(), server.server.address) == (-1, ("127.0.0.1", 80))
        statistics = server.server.statistics()
    assert (statistics.handled, statistics.datagrams.received, statistics.datagrams.sent) == (6, 6, 6)


async def test_callbacks_of_datagrams() -> None:
    seen: list[Any] = []

    def look(conn: Conn, n: int) -> None:
        seen.append((conn.remote_addr, conn.fd))
        write_back(conn, n)

    recorder = Recorder({"on_read": look})
    async with serving_datagrams(recorder, graceful_timeout=1) as server:
        assert isinstance(server.server, EventServer)
        client = server.connect(source_address=("192.0.2.1", 7))
        await client.send(b"hello")
        assert (await client.receive())[0] == b"hello"
        await wait_all_tasks_blocked()
        server.server.async_shutdown()
    assert seen == [(("192.0.2.1", 7), -1)]
    assert (recorder.counts["on_read"], recorder.counts["on_write"]) == (1, 1)


async def test_datagrams_that_are_lost_and_that_come_twice() -> None:
    async with serving_datagrams(answer, strict=True) as server:
        client = server.connect()
        client.outgoing.lose = 1
        client.incoming.duplicate = 1
        for data in (b"1", b"2", b"3"):
            await client.send(data)
        assert [(await client.receive())[0], (await client.receive())[0], (await anext(client))[0]] == [
            b"2",
            b"2",
            b"3",
        ]
        assert (client.outgoing.carried, client.incoming.carried) == (2, 3)
        assert (client.outgoing.lose, client.incoming.duplicate) == (0, 0)


async def test_a_client_that_cannot_be_reached_is_counted() -> None:
    async with serving_datagrams(answer) as server:
        client = server.connect()
        client.incoming.refuse = errno.ENETUNREACH
        await client.send(b"x")
        await wait_all_tasks_blocked()
        statistics = server.server.statistics()
        assert (statistics.unreachable, statistics.handler_errors, statistics.datagrams.failed) == (1, 0, 1)
        client.outgoing.refuse = errno.EPERM
        with pytest.raises(PermissionError):
            await client.send(b"y")


async def test_a_queue_that_is_full_drops_what_comes() -> None:
    free = trio.Event()

    async def wait(data: bytes, address: Any, endpoint: DatagramEndpoint) -> None:
        await free.wait()
        await endpoint.send(data, address)

    async with serving_datagrams(wait, queue_size=2, queue_bytes=10) as server:
        client = server.connect()
        await client.send(b"1")
        await wait_all_tasks_blocked()
        for data in (b"2", b"0123456789", b"3", b"4"):
            await client.send(data)
        assert server.server.endpoint.dropped == 2
        free.set()
        assert [(await client.receive())[0] for _ in range(3)] == [b"1", b"2", b"3"]


async def test_a_client_that_has_closed_gets_nothing_and_nothing_fails() -> None:
    async with serving_datagrams(answer, strict=True) as server:
        client = server.connect(source_address=("192.0.2.1", 7))
        with pytest.raises(ValueError, match="close it first"):
            server.connect(source_address=("192.0.2.1", 7))
        await client.send(b"x")
        await client.aclose()
        await wait_all_tasks_blocked()
        for call in (client.receive, lambda: client.send(b"x")):
            with pytest.raises(trio.ClosedResourceError):
                await call()
        again = server.connect(source_address=("192.0.2.1", 7))
        await again.send(b"y")
        assert (await again.receive())[0] == b"y"


async def test_a_wait_ends_with_the_endpoint() -> None:
    async with serving_datagrams(answer) as server, trio.open_nursery() as nursery:
        client = server.connect()

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await client.receive()

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        client.close()


async def test_what_an_endpoint_refuses() -> None:
    async with serving_datagrams(answer) as server:
        client = server.connect()
        with pytest.raises(ValueError, match="sends nowhere else"):
            await client.send(b"x", ("192.0.2.1", 7))
        with pytest.raises(OSError, match="too long") as caught:
            await client.send(bytes(65508))
        assert caught.value.errno == errno.EMSGSIZE
        with pytest.raises(TypeError, match="needs an address"):
            await server.server.endpoint.send(b"x")
        client.setsockopt(1, 2, 3)
        assert (client.getsockopt(1, 2), client.getsockopt(1, 3, 4)) == (3, bytes(4))
        with pytest.raises(OSError, match="has no socket"):
            client.join("224.0.0.251")


async def test_with_strict_the_error_of_a_handler_leaves_the_block() -> None:
    async def fail(_data: bytes, _address: Any, _endpoint: DatagramEndpoint) -> None:
        raise LookupError("the handler's own")

    with raises_alone(LookupError, "the handler's own"):
        async with serving_datagrams(fail, strict=True) as server:
            await server.connect().send(b"x")
            await trio.sleep_forever()


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("lose", -1, ValueError, "lose is at least 0"),
        ("duplicate", 1.5, TypeError, "duplicate is a number of datagrams"),
        ("refuse", "EPERM", TypeError, "refuse is an errno, or None"),
    ],
)
def test_faults_that_make_no_sense(name: str, value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        setattr(DatagramRoute(), name, value)


@pytest.mark.parametrize(
    ("handler", "options", "error", "message"),
    [
        (answer, {"shards": 2}, ValueError, "shards is about sockets, processes or signals.*leave it out"),
        (answer, {"config": 5}, TypeError, "config is of an event handler"),
        (answer, {"workers": 0}, ValueError, "workers must be at least 1"),
        (Recorder(), {"cpu_affinity": True}, ValueError, "cpu_affinity is about"),
        (Recorder(), {"reuse_port": True}, ValueError, "reuse_port is about"),
        (write_back, {}, TypeError, "an async function"),
    ],
)
async def test_options_that_make_no_sense(handler: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        async with serving_datagrams(handler, **options):
            pytest.fail("it serves")

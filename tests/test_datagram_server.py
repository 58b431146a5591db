"""serve_datagrams(): handlers, their errors, several at a time, and the end."""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import socket
import sys
from typing import Any

import pytest
import trio
from support.datagrams import LOCAL, receive_from, send_back, serving_datagrams, url
from support.descriptors import is_open
from support.pairs import until
from trio.testing import wait_all_tasks_blocked

import gain_trio
from gain_trio import DatagramEndpoint, DatagramServer

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup, ExceptionGroup

pytestmark = [pytest.mark.connections, pytest.mark.usefixtures("no_descriptor_leak")]


async def test_start_returns_a_server(peer: socket.socket) -> None:
    async with serving_datagrams(send_back) as server:
        assert server.addresses == (server.address,) == (server.endpoint.local_address,)
        assert str(server.address[1]) in repr(server)
        for number in range(3):
            peer.sendto(b"%d" % number, server.address)
            assert await receive_from(peer) == (b"%d" % number, server.address)
        now = server.statistics()
        assert (now.handled, now.active, now.handler_errors, now.unreachable) == (3, 0, 0, 0)
        assert (now.datagrams.received, now.datagrams.sent) == (3, 3)
        descriptor = server.endpoint.fileno()
    await until(lambda: not is_open(descriptor))


@pytest.mark.parametrize("cbpf", [False, True])
async def test_shards_share_the_port(cbpf: bool) -> None:
    seen: list[tuple[Any, DatagramEndpoint, bytes]] = []

    async def handler(data: bytes, address: Any, endpoint: DatagramEndpoint) -> None:
        seen.append((address, endpoint, data))
        await endpoint.send(data, address)

    async with (
        serving_datagrams(handler, shards=4, workers=2, cbpf=cbpf) as server,
        contextlib.AsyncExitStack() as stack,
    ):
        assert len(server.endpoints) == len({endpoint.fileno() for endpoint in server.endpoints}) == 4
        assert {endpoint.local_address for endpoint in server.endpoints} == {server.address}
        assert server.addresses == (server.address,)
        for _ in range(60):
            client = await stack.enter_async_context(
                await gain_trio.open_datagram_endpoint(LOCAL, remote_address=url(server.address))
            )
            for number in (b"1", b"2", b"3"):
                await client.send(number)
                assert await client.receive() == (number, server.address)
        now = server.statistics()
        assert (now.handled, now.datagrams.received, now.datagrams.sent) == (180, 180, 180)
        descriptors = [endpoint.fileno() for endpoint in server.endpoints]
    if not cbpf:  # which goes by the CPU, and here everything may come by one
        assert {endpoint for _address, endpoint, _data in seen} == set(server.endpoints)
        assert len({(address, endpoint) for address, endpoint, _data in seen}) == 60, "a peer keeps its shard"
    await until(lambda: not any(map(is_open, descriptors)))


@pytest.mark.parametrize(
    ("address", "options", "message"),
    [
        (LOCAL, {"shards": 0}, "shards must be at least 1, not 0"),
        (LOCAL, {"cbpf": True}, "give shards="),
        (LOCAL, {"shards": 2, "remote_address": "udp://127.0.0.1:9"}, "remote_address is not for shards"),
        (LOCAL, {"shards": 2, "multicast_groups": ["224.0.0.251"]}, "multicast_groups is not for shards"),
        ("unix://@shards", {"shards": 2}, "unix://@shards has none"),
    ],
)
async def test_shards_that_cannot_be(address: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        await gain_trio.serve_datagrams(send_back, address, **options)


async def test_many_clients() -> None:
    async def exchange(server: DatagramServer, name: int) -> None:
        async with await gain_trio.open_datagram_endpoint(LOCAL, remote_address=url(server.address)) as client:
            for number in range(20):
                await client.send(b"%d %d" % (name, number))
                assert (await client.receive())[0] == b"%d %d" % (name, number)

    async with serving_datagrams(send_back, workers=3) as server:
        async with trio.open_nursery() as clients:
            for name in range(50):
                clients.start_soon(exchange, server, name)
        assert server.statistics().handled == 1000


async def test_one_worker_handles_in_order(peer: socket.socket) -> None:
    handled: list[bytes] = []

    async def handler(data: bytes, _address: Any, _endpoint: DatagramEndpoint) -> None:
        await trio.lowlevel.checkpoint()
        handled.append(data)

    async with serving_datagrams(handler) as server:
        for number in range(50):
            peer.sendto(b"%d" % number, server.address)
        await until(lambda: len(handled) == 50)
    assert handled == [b"%d" % number for number in range(50)]


@pytest.mark.parametrize("workers", [1, 4])
async def test_workers_bound_how_many_run_and_the_queue_what_waits(workers: int, peer: socket.socket) -> None:
    go_on = trio.Event()

    async def handler(data: bytes, address: Any, endpoint: DatagramEndpoint) -> None:
        await go_on.wait()
        await endpoint.send(data, address)

    async with serving_datagrams(handler, workers=workers, queue_size=5) as server:
        for number in range(workers):
            peer.sendto(b"%d" % number, server.address)
            await until(lambda number=number: server.statistics().active == number + 1)  # type: ignore[misc]
        for number in range(20):
            peer.sendto(b"later %d" % number, server.address)
        await until(lambda: server.endpoint.dropped == 15)
        now = server.statistics()
        assert (now.active, now.handled, now.datagrams.queued) == (workers, 0, 5)
        go_on.set()
        answers = {(await receive_from(peer))[0] for _ in range(workers + 5)}
        assert answers == {b"%d" % number for number in range(workers)} | {b"later %d" % number for number in range(5)}


async def fail_on_bad(data: bytes, address: Any, endpoint: DatagramEndpoint) -> None:
    if data == b"bad":
        raise RuntimeError("a bad datagram")
    if data == b"group":
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_on_bad, b"bad", address, endpoint)
    await endpoint.send(data, address)


@pytest.mark.parametrize("bad", [b"bad", b"group"])
async def test_a_handlers_error_is_logged_and_the_server_goes_on(
    bad: bytes, peer: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving_datagrams(fail_on_bad) as server:
        for data in (b"good", bad, bad, b"good"):
            peer.sendto(data, server.address)
        for _ in range(2):
            assert await receive_from(peer) == (b"good", server.address)
        assert server.statistics().handler_errors == 2
    records = [record for record in caplog.records if record.name == "gain_trio"]
    assert [record.levelno for record in records] == [logging.ERROR] * 2
    assert "fail_on_bad" in records[0].getMessage()
    assert records[0].exc_info


async def test_strict_propagates(peer: socket.socket) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        async with serving_datagrams(fail_on_bad, strict=True) as server:
            peer.sendto(b"bad", server.address)
            await trio.sleep_forever()
    matching, rest = caught.value.split(RuntimeError)
    assert matching is not None
    assert rest is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_what_is_no_exception_propagates(
    error: type[BaseException], peer: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(_data: bytes, _address: Any, _endpoint: DatagramEndpoint) -> None:
        raise BaseExceptionGroup("both", [error(), ExceptionGroup("one", [ValueError("logged")])])

    with pytest.raises(BaseExceptionGroup) as caught:
        async with serving_datagrams(handler) as server:
            peer.sendto(b"x", server.address)
            await trio.sleep_forever()
    matching, rest = caught.value.split(error)
    assert matching is not None
    assert rest is None
    assert "logged" in caplog.text


async def test_a_source_that_cannot_be_answered_is_no_error_of_the_handler(
    peer: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    """A forger can send from port 0, to which the kernel sends nothing."""
    caplog.set_level(logging.INFO, "gain_trio")

    async def answer_to_port_0(data: bytes, address: Any, endpoint: DatagramEndpoint) -> None:
        await endpoint.send(data, (address[0], 0))

    async with serving_datagrams(answer_to_port_0) as server:
        for _ in range(2):
            peer.sendto(b"x", server.address)
        await until(lambda: server.statistics().handled == 2)
        now = server.statistics()
        assert now.handler_errors + now.unreachable == 2
    assert len(caplog.records) == 2


@pytest.mark.parametrize("others", [[], [ValueError("of the program")]], ids=["only", "with another"])
async def test_of_a_group_too(peer: socket.socket, caplog: pytest.LogCaptureFixture, others: list[Exception]) -> None:
    """A handler that answers from a nursery of its own."""
    caplog.set_level(logging.INFO, "gain_trio")
    unreachable = OSError(errno.ENETUNREACH, "no way there")

    async def handler(_data: bytes, _address: Any, _endpoint: DatagramEndpoint) -> None:
        raise ExceptionGroup("outer", [ExceptionGroup("inner", [unreachable]), unreachable, *others])

    async with serving_datagrams(handler) as server:
        peer.sendto(b"x", server.address)
        await until(lambda: server.statistics().handled == 1)
        now = server.statistics()
    assert (now.unreachable, now.handler_errors) == ((0, 1) if others else (1, 0))
    [record] = caplog.records
    assert (record.levelno, bool(record.exc_info)) == ((logging.ERROR, True) if others else (logging.INFO, False))
    if not others:
        assert "no way there" in record.getMessage()


async def test_cancelling_ends_handlers_and_closes(peer: socket.socket) -> None:
    ended = []

    async def handler(data: bytes, _address: Any, _endpoint: DatagramEndpoint) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(data)

    async with serving_datagrams(handler, workers=2) as server:
        peer.sendto(b"one", server.address)
        peer.sendto(b"two", server.address)
        await until(lambda: server.statistics().active == 2)
    assert sorted(ended) == [b"one", b"two"]
    assert server.statistics().active == 0
    assert server.endpoint.fileno() == -1


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        (("not callable", LOCAL), {}, TypeError),
        ((send_back, LOCAL), {"workers": 0}, ValueError),
        ((send_back, "tcp://127.0.0.1:0"), {}, ValueError),
        ((send_back, LOCAL), {"no_such": 1}, TypeError),
    ],
)
async def test_bad_arguments(arguments: Any, options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        await gain_trio.serve_datagrams(*arguments, **options)
    await wait_all_tasks_blocked()

"""Calls of datagram endpoints that wait, that are cancelled, and that the end of the endpoint ends."""

from __future__ import annotations

import contextlib
import gc
import random
import socket
import warnings
from collections.abc import AsyncIterator

import pytest
import trio
from support.datagrams import LOCAL, is_silent, receive_from, until_counted
from support.descriptors import is_open
from support.pairs import until
from support.runs import in_child, make_slices_endless
from trio.testing import MockClock, wait_all_tasks_blocked

from gain_trio import DatagramEndpoint, open_datagram_endpoint
from gain_trio._io_manager import current_manager
from gain_trio._transports._datagrams._open_endpoint import make_endpoint

pytestmark = [pytest.mark.connections, pytest.mark.features, pytest.mark.usefixtures("no_descriptor_leak")]


# --- checkpoints, cancelling, several tasks ---


async def test_what_is_there_is_answered_without_the_scheduler(
    endpoint: DatagramEndpoint, peer: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_slices_endless(monkeypatch)
    for _ in range(10):
        peer.sendto(b"x", endpoint.local_address)
    await until_counted(endpoint, 10)
    ran = False

    async def other() -> None:
        nonlocal ran
        ran = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(10):
            _data, address = await endpoint.receive()
            await endpoint.send(b"y", address)
        assert not ran


async def test_every_call_is_a_cancellation_point(endpoint: DatagramEndpoint, peer: socket.socket) -> None:
    peer.sendto(b"x", endpoint.local_address)
    await until_counted(endpoint, 1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await endpoint.receive()
    assert scope.cancelled_caught
    for _ in range(2):
        with trio.CancelScope() as scope:
            scope.cancel()
            await endpoint.send(b"never", peer.getsockname())
        assert scope.cancelled_caught
    assert await endpoint.receive() == (b"x", peer.getsockname())
    assert endpoint.statistics().sent == 0
    assert is_silent(peer)


async def test_cancelling_a_parked_receive_loses_nothing(endpoint: DatagramEndpoint, peer: socket.socket) -> None:
    for number in range(3):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(endpoint.receive)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        peer.sendto(b"%d" % number, endpoint.local_address)
        assert await endpoint.receive() == (b"%d" % number, peer.getsockname())


@pytest.mark.parametrize("length", [10, 3000])
async def test_a_task_that_only_sends_lets_others_run(peer: socket.socket, length: int) -> None:
    turns = 0
    async with await open_datagram_endpoint(LOCAL) as endpoint, trio.open_nursery() as nursery:

        async def send_for_ever() -> None:
            while True:
                await endpoint.send(bytes(length), peer.getsockname())

        nursery.start_soon(send_for_ever)
        nursery.start_soon(send_for_ever)
        while turns < 20:
            await trio.lowlevel.checkpoint()
            turns += 1
        nursery.cancel_scope.cancel()


async def test_those_that_wait_stand_in_line(endpoint: DatagramEndpoint, peer: socket.socket) -> None:
    received = []

    async def receive(name: int) -> None:
        received.append((name, (await endpoint.receive())[0]))

    async with trio.open_nursery() as nursery:
        for name in range(4):
            nursery.start_soon(receive, name)
            await wait_all_tasks_blocked()
        for number in range(4):
            peer.sendto(b"%d" % number, endpoint.local_address)
            await until(lambda number=number: len(received) > number)  # type: ignore[misc]
    assert received == [(number, b"%d" % number) for number in range(4)]


async def test_many_receivers_that_give_up_lose_nothing(endpoint: DatagramEndpoint, peer: socket.socket) -> None:
    choose = random.Random(7)
    received: list[bytes] = []

    async def receive() -> None:
        while True:
            with trio.CancelScope() as scope:
                scopes.append(scope)
                received.append((await endpoint.receive())[0])
            scopes.remove(scope)

    scopes: list[trio.CancelScope] = []
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(receive)
        for turn in range(100):
            for number in range(choose.randrange(5)):
                peer.sendto(b"%d %d" % (turn, number), endpoint.local_address)
            for scope in choose.sample(scopes, min(len(scopes), 4)):
                scope.cancel()
            await trio.lowlevel.checkpoint()
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert len(received) == len(set(received)) == endpoint.statistics().received
    assert endpoint.statistics().queued == 0


async def test_a_wait_ends_by_its_deadline(autojump_clock: MockClock) -> None:
    async with await open_datagram_endpoint(LOCAL) as endpoint:
        with trio.move_on_after(1000) as scope:
            await endpoint.receive()
        assert scope.cancelled_caught
        assert trio.current_time() >= 1000


# --- a socket without room ---


@contextlib.asynccontextmanager
async def clogging() -> AsyncIterator[tuple[DatagramEndpoint, socket.socket]]:
    """An endpoint whose socket has no room left until the other end reads, like UDP on a slow network."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        endpoint = make_endpoint(current_manager("a test"), ours, "the other end")
        async with endpoint:
            yield endpoint, theirs


async def test_send_waits_for_room_and_keeps_the_order() -> None:
    async with clogging() as (endpoint, other), trio.open_nursery() as nursery:
        sent = 0

        async def send_many() -> None:
            nonlocal sent
            for number in range(1000):
                await endpoint.send(b"%d" % number)
                sent += 1

        nursery.start_soon(send_many)
        await wait_all_tasks_blocked()
        assert 0 < sent < 1000
        assert [(await receive_from(other))[0] for _ in range(1000)] == [b"%d" % number for number in range(1000)]
        other.send(b"back")
        assert await endpoint.receive() == (b"back", "the other end")
    assert endpoint.statistics().sent == 1000


async def test_senders_that_wait_stand_in_line() -> None:
    finished = []

    async def send_one(endpoint: DatagramEndpoint, name: int) -> None:
        await endpoint.send(b"%d" % name)
        finished.append(name)

    async def send_many(endpoint: DatagramEndpoint) -> None:
        while True:
            await endpoint.send(b"")

    async with clogging() as (endpoint, other):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_many, endpoint)
            await wait_all_tasks_blocked()
            async with trio.open_nursery() as inner:
                for name in range(5):
                    inner.start_soon(send_one, endpoint, name)
                    await wait_all_tasks_blocked()
                assert not finished
                while len(finished) < 5:
                    await receive_from(other)
            nursery.cancel_scope.cancel()
    assert finished == [0, 1, 2, 3, 4]


async def test_a_send_that_waits_can_be_cancelled() -> None:
    async with clogging() as (endpoint, other):
        await clog(endpoint)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(endpoint.send, b"never")
            nursery.start_soon(endpoint.send, b"never")
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(endpoint.send, b"last")
            while (data := (await receive_from(other))[0]) != b"last":
                assert data == b"clog"


async def clog(endpoint: DatagramEndpoint) -> None:
    """Send until there is no room left."""

    async def send_for_ever() -> None:
        while True:
            await endpoint.send(b"clog")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_for_ever)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_closing_ends_a_send_that_waits() -> None:
    async with clogging() as (endpoint, _other):
        await clog(endpoint)

        async def send() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await endpoint.send(b"never")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            nursery.start_soon(send)
            await wait_all_tasks_blocked()
            endpoint.close()


# --- the end ---


async def test_closing_ends_every_call(endpoint: DatagramEndpoint, peer: socket.socket) -> None:
    async def receive() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await endpoint.receive()

    descriptor = endpoint.fileno()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        endpoint.close()
    await endpoint.aclose()
    await until(lambda: not is_open(descriptor))
    assert endpoint.fileno() == -1
    assert "closed" in repr(endpoint)
    for call in (endpoint.receive, lambda: endpoint.send(b"x", peer.getsockname())):
        with pytest.raises(trio.ClosedResourceError):
            await call()
    with pytest.raises(trio.ClosedResourceError):
        endpoint.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    with pytest.raises(trio.ClosedResourceError):
        endpoint.join("239.255.1.2")
    with pytest.raises(trio.ClosedResourceError):
        async for _datagram in endpoint:
            pass
    assert endpoint.statistics().dropped_by_kernel is None


async def test_what_was_sent_leaves_before_the_close(endpoint: DatagramEndpoint, peer: socket.socket) -> None:
    for number in range(10):
        await endpoint.send(b"%d" % number, peer.getsockname())
    endpoint.close()
    assert [(await receive_from(peer))[0] for _ in range(10)] == [b"%d" % number for number in range(10)]
    assert endpoint.statistics().sent == 10


async def test_what_was_received_is_dropped_by_the_close(endpoint: DatagramEndpoint, peer: socket.socket) -> None:
    peer.sendto(b"x", endpoint.local_address)
    await until_counted(endpoint, 1)
    endpoint.close()
    with pytest.raises(trio.ClosedResourceError):
        await endpoint.receive()
    assert endpoint.statistics().queued == 0


@pytest.mark.parametrize("in_a_cycle", [False, True])
async def test_a_dropped_endpoint_warns_and_closes(in_a_cycle: bool) -> None:
    endpoint = await open_datagram_endpoint(LOCAL)
    descriptor = endpoint.fileno()
    if in_a_cycle:
        endpoint.context = [endpoint]
    await wait_all_tasks_blocked()
    with pytest.warns(ResourceWarning, match=r"unclosed <gain_trio\.DatagramEndpoint"):
        del endpoint
        gc.collect()
    await until(lambda: not is_open(descriptor))


async def test_a_closed_endpoint_is_dropped_in_silence() -> None:
    endpoint = await open_datagram_endpoint(LOCAL)
    await endpoint.aclose()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del endpoint
        gc.collect()


async def test_many_endpoints() -> None:
    async with contextlib.AsyncExitStack() as stack:
        endpoints = [await stack.enter_async_context(await open_datagram_endpoint(LOCAL)) for _ in range(200)]
        for one, other in zip(endpoints, reversed(endpoints), strict=True):
            await one.send(b"hello", other.local_address)
        for one, other in zip(endpoints, reversed(endpoints), strict=True):
            assert await one.receive() == (b"hello", other.local_address)


@pytest.mark.full_ring
async def test_a_forked_child_leaves_it_alone(endpoint: DatagramEndpoint, peer: socket.socket) -> None:
    await endpoint.send(b"first", peer.getsockname())

    def child() -> None:
        with pytest.raises(RuntimeError, match="parent process"):
            next(iter(endpoint.send(b"child", peer.getsockname()).__await__()))
        with pytest.raises(RuntimeError, match="parent process"):
            endpoint.close()

    await endpoint.send(b"second", peer.getsockname())
    in_child(child)
    peer.sendto(b"x", endpoint.local_address)
    assert await endpoint.receive() == (b"x", peer.getsockname())
    assert [(await receive_from(peer))[0] for _ in range(2)] == [b"first", b"second"]
    assert is_silent(peer)

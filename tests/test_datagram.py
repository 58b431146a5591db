"""Datagram endpoints: what arrives, what leaves, what is dropped, and the end."""

from __future__ import annotations

import contextlib
import copy
import errno
import gc
import pickle
import queue
import random
import socket
import warnings
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio
from support.datagrams import LOCAL, receive_from, until_counted, url
from support.descriptors import is_open
from support.pairs import pattern, until
from support.runs import in_child, ring_run, statistics
from trio.testing import MockClock, wait_all_tasks_blocked

import gain_trio
from gain_trio import DatagramEndpoint, open_datagram_endpoint
from gain_trio._io_manager import current_manager
from gain_trio._transports._datagrams._open_endpoint import make_endpoint

pytestmark = [pytest.mark.connections, pytest.mark.features, pytest.mark.usefixtures("no_descriptor_leak")]

HOSTS = ["127.0.0.1", "::1"]
LARGEST = 65507
"""Bytes of a datagram by IPv4."""


@pytest.fixture
async def endpoint() -> AsyncIterator[DatagramEndpoint]:
    """One on 127.0.0.1, closed at the end."""
    async with await open_datagram_endpoint(LOCAL) as opened:
        yield opened


def is_silent(sock: socket.socket) -> bool:
    """Whether nothing has arrived."""
    try:
        sock.recvfrom(65536)
    except BlockingIOError:
        return True
    return False


# --- there and back ---


@pytest.mark.parametrize("host", HOSTS)
async def test_there_and_back(host: str) -> None:
    where = f"udp://[{host}]:0" if ":" in host else f"udp://{host}:0"
    async with await open_datagram_endpoint(where) as one, await open_datagram_endpoint(where) as other:
        for number in range(3):
            await one.send(b"there %d" % number, other.local_address)
            data, address = await other.receive()
            assert (data, address) == (b"there %d" % number, one.local_address)
            await other.send(b"back", address)
            assert await one.receive() == (b"back", other.local_address)
        assert one.local_address[0] == host
        assert len(one.local_address) == (4 if ":" in host else 2)
        assert one.remote_address is None
        assert one.context is None
        one.context = number
        assert one.context == number
        assert str(one.local_address[1]) in repr(one)
        assert one.fileno() >= 0


async def test_it_iterates(endpoint: DatagramEndpoint, peer: socket.socket) -> None:
    for number in range(5):
        peer.sendto(b"%d" % number, endpoint.local_address)
    received = []
    async for data, address in endpoint:
        assert address == peer.getsockname()
        received.append(data)
        if len(received) == 5:
            break
    assert received == [b"0", b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
async def test_it_has_one_owner(
    endpoint: DatagramEndpoint, peer: socket.socket, duplicate: Callable[[DatagramEndpoint], object]
) -> None:
    with pytest.raises(TypeError, match="a datagram endpoint cannot be copied or pickled"):
        duplicate(endpoint)
    peer.sendto(b"whole", endpoint.local_address)
    assert await endpoint.receive() == (b"whole", peer.getsockname())


async def test_addresses_may_be_given_by_name(endpoint: DatagramEndpoint, peer: socket.socket) -> None:
    await endpoint.send(b"x", address=peer.getsockname())
    assert await receive_from(peer) == (b"x", endpoint.local_address)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, type("Bytes", (bytes,), {})])
async def test_all_that_has_bytes_can_be_sent(endpoint: DatagramEndpoint, peer: socket.socket, kind: Any) -> None:
    for _ in range(2):  # at once, and later
        await endpoint.send(kind(b"some bytes"), peer.getsockname())
        assert await receive_from(peer) == (b"some bytes", endpoint.local_address)


async def test_the_data_may_change_after_send(endpoint: DatagramEndpoint, peer: socket.socket) -> None:
    data = bytearray(b"0")
    for number in range(5):
        data[:] = b"%d" % number
        await endpoint.send(data, peer.getsockname())
    data[:] = b"?"
    assert [(await receive_from(peer))[0] for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]


async def test_order_is_kept(endpoint: DatagramEndpoint) -> None:
    """The order holds also between large datagrams, which leave at once, and small ones, which leave later."""
    datagrams = [
        pattern(length) + b"%d" % number for number, length in enumerate([1, 2000, 3, 4000, 1, 1, 5000, 1] * 4)
    ]
    async with await open_datagram_endpoint(LOCAL) as sender:
        for data in datagrams:
            await sender.send(data, endpoint.local_address)
        assert [(await endpoint.receive())[0] for _ in datagrams] == datagrams


@pytest.mark.parametrize("length", [0, 1, 1024, 1025, 9000, LARGEST])
async def test_any_size(endpoint: DatagramEndpoint, length: int) -> None:
    data = pattern(length)
    async with await open_datagram_endpoint(LOCAL) as other:
        for _ in range(3):
            await other.send(data, endpoint.local_address)
            received, address = await endpoint.receive()
            assert received == data
            await endpoint.send(received, address)
            assert await other.receive() == (data, endpoint.local_address)


async def test_the_largest_datagrams_one_after_the_other(endpoint: DatagramEndpoint) -> None:
    """More than there are buffers for."""
    async with await open_datagram_endpoint(LOCAL, remote_address=url(endpoint.local_address)) as other:
        for number in range(200):
            await other.send(pattern(LARGEST - number))
            data, _address = await endpoint.receive()
            assert data == pattern(LARGEST - number)


async def test_a_too_large_datagram_is_refused(endpoint: DatagramEndpoint, peer: socket.socket) -> None:
    for _ in range(2):
        with pytest.raises(OSError, match="too long") as caught:
            await endpoint.send(bytes(LARGEST + 1), peer.getsockname())
        assert caught.value.errno == errno.EMSGSIZE
        await endpoint.send(b"fits", peer.getsockname())
        assert await receive_from(peer) == (b"fits", endpoint.local_address)
    assert endpoint.statistics().failed == 2
    assert endpoint.statistics().sent == 2


async def test_sending_is_refused_by_the_send_that_asks_for_it(endpoint: DatagramEndpoint, peer: socket.socket) -> None:
    await endpoint.send(b"before", peer.getsockname())
    with pytest.raises(PermissionError):
        await endpoint.send(b"to all", ("255.255.255.255", 9))  # SO_BROADCAST is not set
    await endpoint.send(b"after", peer.getsockname())
    assert [(await receive_from(peer))[0] for _ in range(2)] == [b"before", b"after"]


async def test_statistics(endpoint: DatagramEndpoint, peer: socket.socket) -> None:
    nothing = endpoint.statistics()
    assert set(attrs_values(nothing)) <= {0, None}
    peer.sendto(b"12345", endpoint.local_address)
    await until_counted(endpoint, 1)
    assert endpoint.statistics().queued == 1
    _data, address = await endpoint.receive()
    await endpoint.send(b"123", address)
    await receive_from(peer)
    now = endpoint.statistics()
    assert (now.received, now.received_bytes, now.sent, now.sent_bytes, now.queued) == (1, 5, 1, 3, 0)
    assert nothing.received == 0, "it is a snapshot"
    with pytest.raises(AttributeError):
        now.received = 7  # type: ignore[misc]


def attrs_values(snapshot: Any) -> list[Any]:
    return [getattr(snapshot, name) for name in type(snapshot).__slots__ if name != "__weakref__"]


# --- connected ---


async def test_a_connected_endpoint(peer: socket.socket) -> None:
    async with await open_datagram_endpoint(LOCAL, remote_address=url(peer.getsockname())) as endpoint:
        assert endpoint.remote_address == peer.getsockname()
        await endpoint.send(b"one")
        await endpoint.send(b"two", peer.getsockname())
        await endpoint.send(b"three")
        received = [await receive_from(peer) for _ in range(3)]
        assert received == [(data, endpoint.local_address) for data in (b"one", b"two", b"three")]
        with socket.socket(type=socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"strange", endpoint.local_address)
        peer.sendto(b"known", endpoint.local_address)
        assert await endpoint.receive() == (b"known", peer.getsockname())
        with pytest.raises(ValueError, match="connected to"):
            await endpoint.send(b"elsewhere", ("127.0.0.1", 9))


@pytest.mark.parametrize("how", ["receive", "send", "parked receive"])
async def test_that_nobody_listens_is_told_once(how: str) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        address = probe.getsockname()
    async with await open_datagram_endpoint(LOCAL, remote_address=url(address)) as endpoint:

        async def is_told() -> None:
            with pytest.raises(ConnectionRefusedError):
                await endpoint.receive()

        for _ in range(2):
            async with trio.open_nursery() as nursery:
                if how == "parked receive":
                    nursery.start_soon(is_told)
                    await wait_all_tasks_blocked()
                await endpoint.send(b"hello?")
                await wait_all_tasks_blocked()
                if how == "receive":
                    await is_told()
                elif how == "send":
                    with pytest.raises(ConnectionRefusedError):
                        await endpoint.send(b"hello?")
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.bind(address)
            sock.setblocking(False)
            await endpoint.send(b"now")
            assert await receive_from(sock) == (b"now", endpoint.local_address)
            sock.sendto(b"yes", endpoint.local_address)
            assert await endpoint.receive() == (b"yes", address)


# --- the queue ---


async def test_a_burst_keeps_the_oldest_and_counts_the_rest(peer: socket.socket) -> None:
    async with await open_datagram_endpoint(LOCAL, queue_size=16) as endpoint:
        for turn in range(1, 4):
            for number in range(100):
                peer.sendto(b"%d" % number, endpoint.local_address)
            await until_counted(endpoint, 100 * turn)
            now = endpoint.statistics()
            assert (now.received, now.dropped, now.queued, now.dropped_by_kernel) == (16 * turn, 84 * turn, 16, 0)
            assert endpoint.dropped == now.dropped
            assert [(await endpoint.receive())[0] for _ in range(16)] == [b"%d" % number for number in range(16)]


async def test_the_queue_is_bounded_in_bytes_and_holds_one_in_any_case(peer: socket.socket) -> None:
    async with await open_datagram_endpoint(LOCAL, queue_bytes=100) as endpoint:
        for length in (150, 1, 0):
            peer.sendto(bytes(length), endpoint.local_address)
        await until_counted(endpoint, 3)
        assert endpoint.dropped == 2
        assert await endpoint.receive() == (bytes(150), peer.getsockname())
        for length in (60, 40, 1, 0):
            peer.sendto(bytes(length), endpoint.local_address)
        await until_counted(endpoint, 7)
        assert endpoint.dropped == 3
        assert [len((await endpoint.receive())[0]) for _ in range(3)] == [60, 40, 0]


async def test_what_is_larger_than_asked_for_is_dropped(peer: socket.socket) -> None:
    async with await open_datagram_endpoint(LOCAL, max_size=10) as endpoint:
        for length in (11, 10, LARGEST, 0):
            peer.sendto(bytes(length), endpoint.local_address)
        await until_counted(endpoint, 4)
        assert [len((await endpoint.receive())[0]) for _ in range(2)] == [10, 0]
        now = endpoint.statistics()
        assert (now.received, now.oversized, now.dropped) == (2, 2, 0)


async def test_what_the_kernel_drops_is_told(peer: socket.socket) -> None:
    async with await open_datagram_endpoint(LOCAL, receive_buffer=4096) as endpoint:
        for _ in range(100):  # no task reads meanwhile
            peer.sendto(bytes(100), endpoint.local_address)
        lost = endpoint.statistics().dropped_by_kernel
        assert lost
        await until_counted(endpoint, 100 - lost)
        assert endpoint.statistics().received == 100 - lost


async def test_many_peers(endpoint: DatagramEndpoint) -> None:
    """More than any table of addresses has places for."""
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(300)]
        for turn in range(3):
            for number, sock in enumerate(peers):
                sock.setblocking(False)
                sock.sendto(b"%d" % number, endpoint.local_address)
                if number % 50 == 49:
                    for _ in range(50):
                        data, address = await endpoint.receive()
                        await endpoint.send(data + b"%d" % turn, address)
            for number, sock in enumerate(peers):
                assert await receive_from(sock) == (b"%d%d" % (number, turn), endpoint.local_address)


# --- checkpoints, cancelling, several tasks ---


async def test_what_is_there_is_answered_without_the_scheduler(endpoint: DatagramEndpoint, peer: socket.socket) -> None:
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


# --- opening, options, multicast ---


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        (("localhost", 9), ValueError, r"trio\.socket\.getaddrinfo"),
        (("::1", 9), ValueError, "IPv4"),
        (("127.0.0.1\0.example", 9), ValueError, "IPv4"),
        (("127.0.0.1", -1), ValueError, "port"),
        (("127.0.0.1", 65536), ValueError, "port"),
        (("127.0.0.1", 1 << 80), ValueError, "port"),
        (("127.0.0.1", "9"), TypeError, "."),
        (("127.0.0.1",), TypeError, "tuple"),
        (("127.0.0.1", 9, 0, 0), TypeError, "tuple"),
        ((b"127.0.0.1", 9), TypeError, "tuple"),
        ("127.0.0.1", TypeError, "tuple"),
        (None, TypeError, "not connected"),
    ],
)
async def test_bad_addresses(endpoint: DatagramEndpoint, address: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        await endpoint.send(b"x", address)
    assert endpoint.statistics().sent == 0


@pytest.mark.parametrize(
    "address", [("::1", 1, 0, 1 << 40), ("::1", 1, 1 << 30), ("fe80::1%no such", 1), ("1.2.3.4", 1)]
)
async def test_bad_ipv6_addresses(address: Any) -> None:
    async with await open_datagram_endpoint("udp://[::1]:0") as endpoint:
        with pytest.raises(ValueError, match=r"address"):
            await endpoint.send(b"x", address)


async def test_ipv6_addresses_have_two_to_four_parts() -> None:
    async with (
        await open_datagram_endpoint("udp://[::1]:0") as one,
        await open_datagram_endpoint("udp://[::1]:0") as other,
    ):
        for length in (2, 3, 4):
            await one.send(b"x", other.local_address[:length])
            assert await other.receive() == (b"x", one.local_address)


@pytest.mark.parametrize(
    ("data", "address"), [("text", ("127.0.0.1", 9)), (None, ("127.0.0.1", 9)), ([1], ("127.0.0.1", 9))]
)
async def test_bad_data(endpoint: DatagramEndpoint, data: Any, address: Any) -> None:
    with pytest.raises(TypeError):
        await endpoint.send(data, address)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"address": "tcp://127.0.0.1:0"}, ValueError),
        ({"address": "127.0.0.1:0"}, ValueError),
        ({"remote_address": "tcp://127.0.0.1:9"}, ValueError),
        ({"remote_address": "udp://[::1]:9"}, OSError),
        ({"queue_size": 0}, ValueError),
        ({"queue_size": 1.5}, TypeError),
        ({"queue_bytes": 0}, ValueError),
        ({"max_size": -1}, ValueError),
        ({"multicast_groups": ["127.0.0.1"]}, ValueError),
        ({"multicast_groups": ["ff02::1"]}, ValueError),
        ({"multicast_groups": ["somewhere"]}, ValueError),
        ({"multicast_interface": "no such"}, ValueError),
    ],
)
async def test_bad_options(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        await open_datagram_endpoint(**{"address": LOCAL, **options})


async def test_a_busy_port(endpoint: DatagramEndpoint) -> None:
    where = url(endpoint.local_address)
    with pytest.raises(OSError, match=f"cannot open an endpoint on {where}") as caught:
        await open_datagram_endpoint(where)
    assert caught.value.errno == errno.EADDRINUSE


async def test_a_shared_port() -> None:
    async with await open_datagram_endpoint(LOCAL, reuse_port=True) as one:
        async with await open_datagram_endpoint(url(one.local_address), reuse_port=True) as other:
            assert other.local_address == one.local_address


async def test_a_name_with_several_addresses_and_an_empty_host() -> None:
    async with await open_datagram_endpoint("udp://localhost:0") as endpoint:
        assert endpoint.local_address[0] in HOSTS
    for host in HOSTS:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((host, 0))
            async with await open_datagram_endpoint("udp://:0", remote_address=url(sock.getsockname())) as endpoint:
                assert endpoint.remote_address == sock.getsockname()


async def test_socket_options() -> None:
    async with await open_datagram_endpoint(LOCAL, receive_buffer=30_000, send_buffer=40_000) as endpoint:
        assert endpoint.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 60_000  # the kernel doubles it: socket(7)
        assert endpoint.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 80_000
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        assert endpoint.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 4) == b"\1\0\0\0"


def test_outside_of_a_run() -> None:
    async def main() -> None:
        await open_datagram_endpoint(LOCAL)

    coroutine = main()
    with pytest.raises(RuntimeError, match="must be called from a Trio task"):
        coroutine.send(None)


async def test_multicast_by_ipv4(peer: socket.socket) -> None:
    group = "239.255.41.7"
    async with await open_datagram_endpoint(
        "udp://:0", multicast_groups=[group], multicast_interface="127.0.0.1"
    ) as one:
        port = one.local_address[1]
        async with await open_datagram_endpoint(LOCAL, multicast_interface="127.0.0.1", multicast_ttl=3) as sender:
            assert sender.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL) == 3
            await sender.send(b"to all", (group, port))
            assert await one.receive() == (b"to all", sender.local_address)
            one.leave(group, "127.0.0.1")
            await sender.send(b"it is empty", (group, port))
            await sender.send(b"directly", ("127.0.0.1", port))
            assert await one.receive() == (b"directly", sender.local_address)
            one.join(group, "lo")
            await sender.send(b"again", (group, port))
            assert await one.receive() == (b"again", sender.local_address)
            with pytest.raises(OSError, match="in use"):
                one.join(group, "lo")
    for loop in (False, True):  # the loopback interface brings everything back, so the option itself is looked at
        async with await open_datagram_endpoint(LOCAL, multicast_loop=loop) as endpoint:
            assert endpoint.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP) == loop


async def test_a_group_that_somebody_else_has_joined() -> None:
    """Linux hands its datagrams to every socket that is bound to all addresses, unless told otherwise."""
    group = "239.255.41.8"
    async with (
        await open_datagram_endpoint("udp://:0", reuse_port=True) as bystander,
        await open_datagram_endpoint(
            f"udp://:{bystander.local_address[1]}",
            reuse_port=True,
            multicast_groups=[group],
            multicast_interface="127.0.0.1",
        ) as member,
        await open_datagram_endpoint(LOCAL, multicast_interface="127.0.0.1") as sender,
    ):
        await sender.send(b"for members", (group, member.local_address[1]))
        assert await member.receive() == (b"for members", sender.local_address)
        await wait_all_tasks_blocked()
        assert bystander.statistics().received == 0


async def test_multicast_by_ipv6() -> None:
    group = "ff01::41:7"
    async with (
        await open_datagram_endpoint("udp://[::]:0", multicast_groups=[group], multicast_interface="lo") as member,
        await open_datagram_endpoint("udp://[::]:0", multicast_interface="lo") as sender,
    ):
        try:
            await sender.send(b"to all", (group, member.local_address[1]))
        except OSError as error:
            pytest.skip(f"the kernel has no route for IPv6 multicast on the loopback interface: {error}")
        data, _address = await member.receive()
        assert data == b"to all"


# --- on the ring ---


@pytest.mark.full_ring
@pytest.mark.parametrize("entries", [4, 1024])
@pytest.mark.parametrize("buffers", [1, 2, 16])
def test_a_tiny_pool_of_buffers_loses_nothing(entries: int, buffers: int, resume_in_place: bool) -> None:
    async def main() -> None:
        async with (
            await open_datagram_endpoint(LOCAL) as endpoint,
            await open_datagram_endpoint(LOCAL) as other,
        ):
            for turn in range(5):
                for number in range(100):
                    await other.send(b"%d %d" % (turn, number), endpoint.local_address)
                for number in range(100):
                    data, address = await endpoint.receive()
                    assert data == b"%d %d" % (turn, number)
                    await endpoint.send(data, address)
                for number in range(100):
                    assert await other.receive() == (b"%d %d" % (turn, number), endpoint.local_address)
            # With 8 places for completions the kernel does not get to using 16 buffers at once.
            assert statistics().starvations > 0 or (entries == 4 and buffers == 16)

    ring_run(
        main,
        in_place=resume_in_place,
        entries=entries,
        completion_entries=max(8, entries),
        datagram_buffer_count=buffers,
    )


@pytest.mark.full_ring
async def test_what_the_kernel_refuses_after_send_has_returned(endpoint: DatagramEndpoint, peer: socket.socket) -> None:
    """The endpoint counts it, raises it for no other datagram, and sends the next one to that address at once."""
    broadcast = ("127.255.255.255", 9)
    endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    await endpoint.send(b"reached", broadcast)
    await endpoint.send(b"reached", peer.getsockname())
    endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 0)
    for number in range(3):
        await endpoint.send(b"%d" % number, peer.getsockname())
        await endpoint.send(b"not any more", broadcast)
    await endpoint.send(b"last", peer.getsockname())
    assert [(await receive_from(peer))[0] for _ in range(5)] == [b"reached", b"0", b"1", b"2", b"last"]
    assert endpoint.statistics().failed == 3
    assert endpoint.statistics().sent == 6
    for _ in range(2):
        with pytest.raises(PermissionError):
            await endpoint.send(b"never", broadcast)
    await endpoint.send(b"on", peer.getsockname())
    assert (await receive_from(peer))[0] == b"on"


@pytest.mark.full_ring
def test_a_closed_endpoint_leaves_nothing_in_flight() -> None:
    async def main() -> None:
        await wait_all_tasks_blocked()
        before = statistics().operations_in_flight
        for _ in range(50):
            async with await open_datagram_endpoint(LOCAL) as endpoint:
                await wait_all_tasks_blocked()
                await endpoint.send(b"x", endpoint.local_address)
        await until(lambda: statistics().endpoints == 0)
        assert statistics().operations_in_flight == before

    ring_run(main)


@pytest.mark.full_ring
def test_a_full_table_of_endpoints_is_said() -> None:
    async def main() -> None:
        async with await open_datagram_endpoint(LOCAL):
            with pytest.raises(OSError, match="max_slots") as caught:
                await open_datagram_endpoint(LOCAL)
            assert caught.value.errno == errno.ENOSPC

    ring_run(main, max_slots=1)


def test_the_end_of_a_run_closes_what_it_left_open() -> None:
    left: list[Any] = []

    async def main() -> None:
        endpoint = await open_datagram_endpoint(LOCAL)
        await endpoint.send(b"x", endpoint.local_address)
        await endpoint.receive()
        await endpoint.send(b"y", endpoint.local_address)
        left.append((endpoint, endpoint.send(b"z", endpoint.local_address)))

    trio.run(main)
    endpoint, call = left.pop()
    assert endpoint.fileno() == -1
    with pytest.raises((trio.ClosedResourceError, RuntimeError)):
        next(iter(call.__await__()))
    endpoint.close()


@pytest.mark.full_ring
def test_it_works_in_both_ways_of_waking_a_task(resume_in_place: bool) -> None:
    async def main() -> None:
        async with (
            await open_datagram_endpoint(LOCAL) as endpoint,
            await open_datagram_endpoint(LOCAL, remote_address=url(endpoint.local_address)) as other,
            trio.open_nursery() as nursery,
        ):

            async def echo() -> None:
                async for data, address in endpoint:
                    await endpoint.send(data, address)

            nursery.start_soon(echo)
            for number in range(200):
                await other.send(b"%d" % number)
                assert await other.receive() == (b"%d" % number, endpoint.local_address)
            nursery.cancel_scope.cancel()
        now = statistics()
        assert (now.resumed_in_place > 300) is resume_in_place

    ring_run(main, in_place=resume_in_place)


@pytest.mark.full_ring
def test_a_guest_run_has_endpoints_too() -> None:
    todo: queue.SimpleQueue[Any] = queue.SimpleQueue()
    outcomes: list[Any] = []

    async def main() -> None:
        async with await open_datagram_endpoint(LOCAL) as one, await open_datagram_endpoint(LOCAL) as other:
            for number in range(300):
                await one.send(b"%d" % number, other.local_address)
                if number % 100 == 99:
                    for _ in range(100):
                        await other.receive()

    gain_trio.start_guest_run(main, run_sync_soon_threadsafe=todo.put, done_callback=outcomes.append)
    while not outcomes:
        todo.get(timeout=30)()
    outcomes[0].unwrap()

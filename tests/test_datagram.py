"""Datagram endpoints: what arrives, what leaves, what is dropped, and how they are opened."""

from __future__ import annotations

import contextlib
import copy
import errno
import pickle
import socket
from collections.abc import Callable
from typing import Any

import pytest
import trio
from support.datagrams import LOCAL, receive_from, until_counted, url
from support.pairs import pattern
from trio.testing import wait_all_tasks_blocked

from gain_trio import DatagramEndpoint, open_datagram_endpoint

pytestmark = [pytest.mark.connections, pytest.mark.features, pytest.mark.usefixtures("no_descriptor_leak")]

HOSTS = ["127.0.0.1", "::1"]
LARGEST = 65507
"""Bytes of a datagram by IPv4."""


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


async def test_more_peers_than_are_remembered(endpoint: DatagramEndpoint) -> None:
    """An address that others have turned out is an address like any other."""
    with socket.socket(type=socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        peer.setblocking(False)
        for number in range(6000):
            await endpoint.send(b"", (f"127.1.{number // 250}.{number % 250 + 1}", 9))
            if number % 100 == 0:
                peer.sendto(b"%d" % number, endpoint.local_address)
                data, address = await endpoint.receive()
                assert (data, address) == (b"%d" % number, peer.getsockname())
                await endpoint.send(data, address)
                await endpoint.send(data, peer.getsockname())
                assert [await receive_from(peer) for _ in range(2)] == 2 * [(data, endpoint.local_address)]


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

"""Datagram endpoints on the ring: its buffers, its slots, and the end of its run."""

from __future__ import annotations

import errno
import queue
import socket
from typing import Any

import pytest
import trio
from support.datagrams import LOCAL, receive_from, url
from support.pairs import until
from support.runs import make_slices_endless, ring_run, statistics
from trio.testing import wait_all_tasks_blocked

import gain_trio
from gain_trio import DatagramEndpoint, open_datagram_endpoint

pytestmark = [pytest.mark.connections, pytest.mark.features, pytest.mark.usefixtures("no_descriptor_leak")]


# --- on the ring ---


@pytest.mark.full_ring
@pytest.mark.parametrize("entries", [4, 1024])
@pytest.mark.parametrize("buffers", [1, 2, 16])
def test_a_tiny_pool_of_buffers_loses_nothing(
    entries: int, buffers: int, resume_in_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        make_slices_endless(monkeypatch)
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

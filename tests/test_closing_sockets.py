"""A socket of Trio's that is closed while a task waits on it is closed in the kernel, too, when ``close`` returns.

A wait of the ring's holds the file until the kernel has ended it.  So these tests bind to the same address, or look at the
peer, in the step in which the socket is closed.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import pytest
import trio
import trio.testing
from support.pairs import PATIENCE

from gain_trio import open_datagram_endpoint, open_listeners

pytestmark = pytest.mark.connections

TIMES = 50
Opened: TypeAlias = tuple[trio.socket.SocketType, Callable[[], Awaitable[object]]]


async def listening(address: tuple[str, int]) -> Opened:
    sock = trio.socket.socket()
    await sock.bind(address)
    sock.listen()
    return sock, sock.accept


async def receiving(address: tuple[str, int]) -> Opened:
    sock = trio.socket.socket(type=socket.SOCK_DGRAM)
    await sock.bind(address)
    return sock, lambda: sock.recvfrom(1)


def fill(sock: trio.socket.SocketType) -> None:
    with socket.socket(fileno=sock.fileno()) as plain:
        try:
            while True:
                plain.send(bytes(65536), socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass
        finally:
            plain.detach()


both_kinds = pytest.mark.parametrize("open_at", [listening, receiving])


@both_kinds
async def test_the_address_is_free_in_the_same_step(open_at: Callable[[tuple[str, int]], Awaitable[Opened]]) -> None:
    address = ("127.0.0.1", 0)
    for _ in range(TIMES):
        sock, wait = await open_at(address)
        address = sock.getsockname()

        async def expect_closed(wait: Callable[[], Awaitable[object]] = wait) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await wait()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_closed)
            await trio.testing.wait_all_tasks_blocked()
            sock.close()
            with socket.socket(type=sock.type) as other:
                other.bind(address)


@both_kinds
async def test_the_address_is_free_after_a_wait_that_was_cancelled(
    open_at: Callable[[tuple[str, int]], Awaitable[Opened]],
) -> None:
    """Its task closes the socket in the step in which it is told of the cancellation."""
    address = ("127.0.0.1", 0)
    for _ in range(TIMES):
        sock, wait = await open_at(address)
        address = sock.getsockname()
        async with trio.open_nursery() as nursery:

            async def wait_and_close(
                sock: trio.socket.SocketType = sock, wait: Callable[[], Awaitable[object]] = wait
            ) -> None:
                try:
                    await wait()
                finally:
                    sock.close()
                    with socket.socket(type=sock.type) as other:
                        other.bind(address)

            nursery.start_soon(wait_and_close)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()


async def test_many_waits_end_at_once() -> None:
    """The kernel ends twenty of them a turn."""
    opened = [await receiving(("127.0.0.1", 0)) for _ in range(TIMES)]

    async def expect_closed(wait: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await wait()

    async with trio.open_nursery() as nursery:
        for _, wait in opened:
            nursery.start_soon(expect_closed, wait)
        await trio.testing.wait_all_tasks_blocked()
        addresses = [sock.getsockname() for sock, _ in opened]
        for sock, _ in opened:
            sock.close()
        for address in addresses:
            with socket.socket(type=socket.SOCK_DGRAM) as other:
                other.bind(address)


async def test_the_peer_sees_the_end_in_the_same_step() -> None:
    for _ in range(TIMES):
        one, peer = trio.socket.socketpair()
        plain = socket.socket(fileno=peer.detach())

        async def expect_closed(call: Callable[[], Awaitable[object]]) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await call()

        with plain:
            fill(one)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(expect_closed, lambda: one.recv(1))
                nursery.start_soon(expect_closed, lambda: one.send(b"x"))
                await trio.testing.wait_all_tasks_blocked()
                one.close()
                while plain.recv(1 << 20, socket.MSG_DONTWAIT):
                    pass  # up to the end, which is there, or this would be a BlockingIOError


@pytest.mark.parametrize("waits", [False, True])
async def test_an_endpoint_that_is_closed_gives_its_address_back_in_the_same_step(waits: bool) -> None:
    port = 0
    for _ in range(TIMES):
        endpoint = await open_datagram_endpoint(f"udp://127.0.0.1:{port}")
        port = endpoint.local_address[1]

        async def expect_closed() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await endpoint.receive()

        async with trio.open_nursery() as nursery:
            if waits:
                nursery.start_soon(expect_closed)
            await trio.testing.wait_all_tasks_blocked()
            endpoint.close()
            with socket.socket(type=socket.SOCK_DGRAM) as other:
                other.bind(("127.0.0.1", port))


async def test_a_listener_that_is_closed_gives_its_address_back() -> None:
    port = 0
    for _ in range(TIMES):
        [listener] = await open_listeners(f"tcp://127.0.0.1:{port}")
        port = listener.local_address[1]

        async def expect_closed() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await listener.accept()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_closed)
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(PATIENCE):
                await listener.aclose()
            with socket.socket() as other:
                other.bind(("127.0.0.1", port))

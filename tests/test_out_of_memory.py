"""A call that runs out of memory, at whichever allocation, has moved nothing, or has broken the connection.

A run for whose operations the kernel has none waits for some.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from support.certificates import open_tls_pair
from support.pairs import blocking, open_pair, open_trio_pair, until_queued
from support.restricted import IO_URING_ENTER, refuse
from support.runs import bounded, host_run, in_child, ring_run, statistics

from gain_trio import Connection, open_datagram_endpoint
from gain_trio._transports._tls._tls_connection import TlsConnection

pytestmark = [pytest.mark.connections, pytest.mark.full_ring]

MESSAGE = b"m" * 300
"""Longer than the numbers that Python has ready made."""
MAY_NEED_NONE = sys.version_info >= (3, 14)
"""Whether an answer that is there may need no memory: numbers and tuples come from those that were in use before."""


async def answered(call: Awaitable[Any], failing: int) -> Any:
    """What a call answers from memory while the so-maniest allocation fails; MemoryError if it needed that one."""
    testcapi = pytest.importorskip("_testcapi")
    task: Any = trio.lowlevel.current_task()
    read = task._cancel_points  # a counter that a program has is not counted up in place, so that counting allocates
    testcapi.set_nomemory(failing, failing + 1)
    try:
        return await call
    finally:
        testcapi.remove_mem_hooks()
        del read


async def count_to_large_numbers() -> None:
    """So that counting a cancel point allocates, in `answered`."""
    for _ in range(300):
        await trio.lowlevel.checkpoint()


CALLS: dict[str, Callable[[Connection], Awaitable[Any]]] = {
    "whole": lambda served: served.receive(),
    "part": lambda served: served.receive(200),
    "next": lambda served: served.__anext__(),
    "message": lambda served: served.messages().__anext__(),
    "into": lambda served: served.receive_into(bytearray(290)),
}


@pytest.mark.parametrize("name", CALLS)
async def test_receive(name: str) -> None:
    await count_to_large_numbers()
    client, served = await open_pair()
    async with client, served:
        failed = 0
        for failing in range(20):
            await client.send(MESSAGE)
            await until_queued(served, len(MESSAGE))
            try:
                await answered(CALLS[name](served), failing)
            except MemoryError:
                failed += 1
                assert served.peek() == MESSAGE
            served.discard()
        assert failed or (MAY_NEED_NONE and name != "part")


TLS_MESSAGES: dict[str, tuple[list[bytes], int | None]] = {
    "one record": ([MESSAGE], None),
    "a part of it": ([MESSAGE], 200),
    "three records": ([MESSAGE, bytes(17000), MESSAGE], None),
}


@pytest.mark.parametrize("name", TLS_MESSAGES)
async def test_a_receive_over_tls_leaves_no_hole(name: str) -> None:
    """What it has taken from below it cannot give back: either nothing is lost, or the connection is broken."""
    messages, max_bytes = TLS_MESSAGES[name]
    await count_to_large_numbers()
    ends = []
    for failing in range(60):
        client, served = await open_tls_pair()
        async with client, served:
            for message in messages:
                client._engine.write(message)
            sent = client._engine.take_outgoing()
            client._below._send_nowait(sent)
            await until_queued(served._below, len(sent))
            call = served.receive(max_bytes)
            try:
                await answered(call, failing)
            except MemoryError:
                ends.append(await end_of(client, served, b"".join(messages)))
            finally:
                call.close()
            client.abort()
    assert set(ends) <= {None, errno.ENOMEM}
    assert errno.ENOMEM in ends
    assert None in ends or MAY_NEED_NONE


TLS_WAITS: dict[str, Callable[[Any], Any]] = {
    "in Python": lambda served: served._wait_change(0),
    "in C": lambda served: served._deliver(print, None, 0, 0, 0, None),  # no number of bytes is for the callback
}


@pytest.mark.parametrize("where", TLS_WAITS)
async def test_a_wait_for_a_change_over_tls_leaves_no_hole(where: str) -> None:
    """The same of what code that is called back waits for, and takes then."""
    await count_to_large_numbers()
    ends = []
    for failing in range(60):
        client, served = await open_tls_pair()
        async with client, served:
            client._engine.write(MESSAGE)
            sent = client._engine.take_outgoing()
            client._below._send_nowait(sent)
            await until_queued(served._below, len(sent))
            wait = TLS_WAITS[where](served)
            try:
                assert await answered(wait, failing) == len(MESSAGE)
            except MemoryError:
                ends.append(await end_of(client, served, MESSAGE))
            else:
                assert served._take_exactly(-1) == MESSAGE
            finally:
                wait.close()
            client.abort()
    assert set(ends) <= {None, errno.ENOMEM}
    assert errno.ENOMEM in ends
    assert None in ends or MAY_NEED_NONE


async def end_of(client: TlsConnection, served: TlsConnection, message: bytes) -> int | None:
    """The error that a connection is broken by; None: a message of which nothing had been received is whole."""
    await client.send(b"last")
    received = b""
    try:
        while len(received) < len(message) + len(b"last"):
            received += await served.receive()
            assert received == (message + b"last")[: len(received)]
    except trio.BrokenResourceError as error:
        return getattr(error.__cause__, "errno", None) or -1
    return None


async def test_a_datagram() -> None:
    await count_to_large_numbers()
    async with await open_datagram_endpoint("udp://127.0.0.1:0") as endpoint:
        with socket.socket(type=socket.SOCK_DGRAM) as peer:
            failed = 0
            for failing in range(20):
                peer.sendto(MESSAGE, endpoint.local_address)
                await trio.testing.wait_all_tasks_blocked()
                try:
                    await answered(endpoint.receive(), failing)
                except MemoryError:
                    failed += 1
                    assert (await endpoint.receive())[0] == MESSAGE
            assert failed or MAY_NEED_NONE


async def send_while_the_kernel_has_none(served: list[Connection], peers: list[socket.socket]) -> None:
    """From here on the kernel fails each io_uring_enter(2) that has what three connections send, with EAGAIN."""
    for connection, peer in zip(served, peers, strict=True):
        for _ in range(3):  # behind this its receive stays armed
            peer.sendall(b"x")
            assert await connection.receive() == b"x"
        await connection.send(b"x")
        await connection.flush()
    senders = served[2:]
    refuse(IO_URING_ENTER, errno.EAGAIN, range(len(senders), len(senders) + 1))
    for number, sender in enumerate(senders):
        await sender.send(bytes([number]))


async def spin() -> None:
    while True:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("kind", ["idle", "busy", "guest"])
def test_while_the_kernel_has_none_a_run_waits_and_goes_on_receiving(kind: str) -> None:
    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            nursery = await stack.enter_async_context(trio.open_nursery())
            served, peers = [], []
            for _ in range(5):
                client, connection = await open_trio_pair()
                served.append(await stack.enter_async_context(connection))
                peers.append(stack.enter_context(blocking(client)))
                stack.push_async_callback(client.aclose)
            await send_while_the_kernel_has_none(served, peers)
            if kind == "busy":
                nursery.start_soon(spin)
            else:
                before = statistics().enter_calls
                with trio.move_on_after(0.3):
                    await trio.sleep_forever()
                assert 8 < statistics().enter_calls - before < 1000  # it asks again, and not all the time
            receiver, fourth, *_ = served
            peers[0].sendall(b"meanwhile")
            assert await receiver.receive() == b"meanwhile"
            assert [peer.recv(2, socket.MSG_PEEK) for peer in peers[2:]] == [b"x"] * 3
            await fourth.send(b"with it they are four")
            await fourth.flush()
            for number, peer in enumerate(peers[2:]):
                assert peer.recv(2) == bytes([ord("x"), number])
            nursery.cancel_scope.cancel()

    in_child(lambda: host_run(bounded(main)) if kind == "guest" else ring_run(main))

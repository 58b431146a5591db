"""A send that the kernel accepts whole, and that no task waits for, does not wake the run."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import trio
from support.pairs import PATIENCE, open_trio_pair, pattern, receive_exactly, until
from support.runs import make_slices_endless, ring_run, statistics
from trio.testing import wait_all_tasks_blocked

import gain_trio
from gain_trio import open_listeners

pytestmark = [pytest.mark.connections, pytest.mark.features, pytest.mark.full_ring]

NEEDED = {"cqe_skip", "defer_taskrun"}


def sends_quietly() -> bool:
    return set(gain_trio.backend_info().features) >= NEEDED


@contextlib.contextmanager
def asking(port: int, count: int) -> Iterator[list[bytes]]:
    """A client in a thread, which sends one message after the other and receives each again."""
    answers: list[bytes] = []

    def ask() -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
            for number in range(count):
                client.sendall(number.to_bytes(4, "big"))
                answers.append(client.recv(4, socket.MSG_WAITALL))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        thread.join(PATIENCE)
        assert not thread.is_alive()


async def test_an_echo_enters_the_kernel_once() -> None:
    count = 400
    [listener] = await open_listeners("tcp://127.0.0.1:0")
    async with listener:
        with asking(listener.local_address[1], count) as answers:
            served = await listener.accept()
            async with served:
                before = statistics().enter_calls
                while data := await served.receive():
                    await served.send(data)
                entered = statistics().enter_calls - before
    assert answers == [number.to_bytes(4, "big") for number in range(count)]
    if sends_quietly():
        assert entered < count * 3 // 2
    assert served.bytes_sent == 4 * count


async def test_another_thread_sees_what_the_kernel_has_accepted() -> None:
    client, served = await open_trio_pair()

    def look() -> list[int]:
        # In this thread, while the other one waits and has learnt of no completion.
        seen = []
        for _ in range(50):
            trio.from_thread.run(served.send, b"message")
            with socket.socket(fileno=client.socket.fileno()) as peer:
                peer.settimeout(PATIENCE)
                assert peer.recv(7, socket.MSG_WAITALL) == b"message"
                peer.settimeout(0)
                peer.detach()
            seen.append(served.outbound_buffered)
        return seen

    async with client, served:
        assert await trio.to_thread.run_sync(look) == [0] * 50


async def test_in_a_large_batch_sends_wake_the_run() -> None:
    """Of many completions at a time the run learns by itself, and not when it is woken by something else."""
    pairs = [await open_trio_pair() for _ in range(32)]  # the kernel makes at least 20 completions at a time

    async def echo(served: gain_trio.Connection) -> None:
        while data := await served.receive():
            await served.send(data)

    def look() -> bool:
        # In this thread, while the other one waits.
        for client, _ in pairs:
            with socket.socket(fileno=client.socket.fileno()) as peer:
                peer.settimeout(PATIENCE)
                assert peer.recv(7, socket.MSG_WAITALL) == b"message"
                peer.settimeout(0)
                peer.detach()
        end = time.monotonic() + PATIENCE
        while not (has_learnt := all(served.bytes_sent == 7 for _, served in pairs)) and time.monotonic() < end:
            time.sleep(0.001)
        return has_learnt

    async with contextlib.AsyncExitStack() as stack, trio.open_nursery() as nursery:
        for client, served in pairs:
            await stack.enter_async_context(client)
            await stack.enter_async_context(served)
            nursery.start_soon(echo, served)
        await wait_all_tasks_blocked()
        for client, _ in pairs:
            os.write(client.socket.fileno(), b"message")
        assert await trio.to_thread.run_sync(look)
        nursery.cancel_scope.cancel()


async def test_what_waits_for_the_kernel_is_woken() -> None:
    client, served = await open_trio_pair()
    async with client, served:
        for _ in range(20):
            await served.send(b"message")
            with trio.fail_after(PATIENCE):
                await served.flush()
            assert served.outbound_buffered == 0
            assert await receive_exactly(client, 7) == b"message"


@pytest.mark.parametrize("size", [1_000, 5_000])
async def test_a_short_send_goes_on(size: int) -> None:
    """The peer reads nothing until the kernel has no room, and then everything."""
    client, served = await open_trio_pair()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    served.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    async with client, served:
        count = 0
        data = pattern(size)
        while not served.outbound_buffered:
            await served.send(data)
            await wait_all_tasks_blocked()  # each send is an operation of its own
            count += 1
        with trio.fail_after(PATIENCE):
            assert await receive_exactly(client, count * size) == data * count
        await until(lambda: served.outbound_buffered == 0)
        assert served.bytes_sent == count * size


async def test_a_reset_is_noticed() -> None:
    client, served = await open_trio_pair()
    async with served:
        await served.send(b"first")
        assert await receive_exactly(client, 5) == b"first"
        await client.aclose()
        with trio.fail_after(PATIENCE), pytest.raises(trio.BrokenResourceError):
            while True:
                await served.send(b"next")
                await wait_all_tasks_blocked()


def test_there_are_as_many_as_the_completion_queue_has_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others have completions of the kernel's, which overflow this queue, and nothing is lost."""

    async def main() -> None:
        make_slices_endless(monkeypatch)
        pairs = [await open_trio_pair() for _ in range(16)]
        async with contextlib.AsyncExitStack() as stack:
            for client, served in pairs:
                await stack.enter_async_context(client)
                await stack.enter_async_context(served)
            before = statistics().overflows
            for number, (_client, served) in enumerate(pairs):
                await served.send(bytes([number]))  # answered from memory: the next tick submits all of them
            for number, (client, served) in enumerate(pairs):
                assert await receive_exactly(client, 1) == bytes([number])
                await served.flush()
                assert (served.bytes_sent, served.outbound_buffered) == (1, 0)
            assert statistics().overflows > before

    ring_run(main, entries=4, completion_entries=4)


async def test_a_run_may_end_with_some_under_way() -> None:
    client, served = await open_trio_pair()
    await served.send(b"last")
    served.abort()
    with pytest.raises(trio.BrokenResourceError):
        while await client.receive_some(10):
            pass
    await client.aclose()

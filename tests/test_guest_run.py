"""Guest runs: Trio on the ring beside a host loop that has the thread between two ticks."""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import outcome
import pytest
import trio
from support.descriptors import open_descriptors
from support.pairs import PATIENCE, open_pair, pattern, receive_exactly
from support.runs import host_run, sleep_beside_readers
from support.servers import echo_until_broken
from support.sockets import socket_pair
from trio.testing import MockClock, wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection, open_listeners

pytestmark = pytest.mark.connections

LOCAL = "tcp://127.0.0.1:0"


@pytest.mark.usefixtures("no_descriptor_leak")
def test_a_guest_run_does_what_any_run_does() -> None:
    async def main(number: int) -> int:
        assert gain_trio.backend_info().running
        await trio.sleep(0.01)
        with trio.move_on_after(0.01) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught
        assert await trio.to_thread.run_sync(lambda: trio.from_thread.run_sync(lambda: 1)) == 1
        message = pattern(1 << 20)
        client, served = await open_pair()
        async with client, served, trio.open_nursery() as nursery:
            nursery.start_soon(echo_until_broken, served)
            nursery.start_soon(client.send, message)
            assert await receive_exactly(client, len(message)) == message
            nursery.cancel_scope.cancel()
        with socket_pair() as (one, other):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.lowlevel.wait_readable, one)
                await wait_all_tasks_blocked()
                other.send(b"x")
        return number + 1

    assert host_run(main, 1) == 2


def test_a_guest_run_is_woken_by_data_that_arrives_while_it_waits() -> None:
    """The wait is in a worker thread then, which cannot enter the ring."""

    async def main() -> None:
        client, served = await open_pair()
        async with client, served:
            peer = socket.socket(fileno=os.dup(client.fileno()))
            with peer, trio.fail_after(PATIENCE):
                for number in range(20):
                    thread = threading.Thread(target=peer.send, args=(bytes([number]),))
                    thread.start()
                    assert await served.receive() == bytes([number])
                    thread.join()

    host_run(main)


def test_a_guest_run_can_be_cancelled_by_its_host() -> None:
    todo: queue.Queue[Callable[[], object]] = queue.Queue()
    ended: list[outcome.Outcome[Any]] = []
    scopes: list[trio.CancelScope] = []

    async def main() -> str:
        with trio.CancelScope() as scope:
            scopes.append(scope)
            await trio.sleep_forever()
        return "cancelled"

    gain_trio.start_guest_run(main, run_sync_soon_threadsafe=todo.put, done_callback=ended.append)
    timer: threading.Timer | None = None
    while not ended:
        todo.get(timeout=PATIENCE)()
        if scopes and timer is None:
            timer = threading.Timer(0.01, lambda: todo.put(scopes[0].cancel))  # when it waits, most likely
            timer.start()
    assert ended[0].unwrap() == "cancelled"


def test_the_clock_jumps_in_a_guest_run_too() -> None:
    started = time.monotonic()
    host_run(sleep_beside_readers, clock=MockClock(autojump_threshold=0))
    assert time.monotonic() - started < PATIENCE


@pytest.mark.usefixtures("no_descriptor_leak")
def test_what_a_guest_raises_reaches_the_host() -> None:
    async def main() -> NoReturn:
        await trio.lowlevel.checkpoint()
        raise LookupError("x")

    with pytest.raises(LookupError, match="x"):
        host_run(main)


@pytest.mark.usefixtures("no_descriptor_leak")
def test_a_guest_run_that_cannot_start_leaves_nothing_behind() -> None:
    async def main() -> None:
        before = open_descriptors()
        with pytest.raises(RuntimeError, match="inside"):
            gain_trio.start_guest_run(trio.sleep, 0, run_sync_soon_threadsafe=print, done_callback=print)
        assert open_descriptors() == before
        await trio.lowlevel.checkpoint()

    gain_trio.run(main)


# --- what the host does ---


def host_and_guest(
    async_fn: Callable[[], Awaitable[object]], when_it_waits: Callable[[], object], *, most: int = 1000
) -> int:
    """Call a function of the host whenever the guest has nothing to do; how often that was, when the guest is over."""
    todo: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
    ended: list[outcome.Outcome[Any]] = []
    gain_trio.start_guest_run(async_fn, run_sync_soon_threadsafe=todo.put, done_callback=ended.append)
    calls = 0
    while not ended and calls < most:
        try:
            todo.get(timeout=0.02)()
        except queue.Empty:
            when_it_waits()
            calls += 1
    assert ended, "nothing wakes the guest"
    ended[0].unwrap()
    return calls


def test_a_guest_is_woken_by_its_host_as_often_as_that_likes() -> None:
    events: list[trio.Event] = []

    async def main() -> None:
        for _ in range(10):
            events.append(trio.Event())
            await events[-1].wait()

    host_and_guest(main, lambda: events[-1].set())


@pytest.mark.skipif(not hasattr(os, "eventfd"), reason="os.eventfd is of Linux, and of Python 3.10")
def test_a_guest_is_woken_by_an_eventfd_as_often_as_that_is_written() -> None:
    """Since Linux 6.11 a ring tells of what an eventfd has made ready only once."""
    eventfd = os.eventfd(0, os.EFD_NONBLOCK)
    woken = 0

    async def main() -> None:
        nonlocal woken
        for _ in range(10):
            await trio.lowlevel.wait_readable(eventfd)
            os.eventfd_read(eventfd)
            woken += 1

    try:
        host_and_guest(main, lambda: os.eventfd_write(eventfd, 1))
    finally:
        os.close(eventfd)
    assert woken == 10


@pytest.mark.parametrize("how", ["write", "abort", "drop"])
def test_what_the_host_of_a_guest_run_does_to_a_connection_does_not_wait_for_the_guest(how: str) -> None:
    todo: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
    ended: list[Any] = []
    held: list[Connection] = []
    over: list[trio.Event] = []
    received: list[bytes | OSError] = []

    async def main() -> None:
        [listener] = await open_listeners(LOCAL)
        async with listener:
            peers.append(socket.create_connection(listener.local_address[:2]))
            held.append(await listener.accept())
        over.append(trio.Event())
        await over[0].wait()

    def receive() -> None:
        try:
            received.append(peers[0].recv(5))
        except OSError as error:
            received.append(error)
        todo.put(lambda: None)

    peers: list[socket.socket] = []
    gain_trio.start_guest_run(main, run_sync_soon_threadsafe=todo.put, done_callback=ended.append)
    with contextlib.suppress(queue.Empty):  # then the guest waits, and for nothing
        while True:
            todo.get(timeout=PATIENCE if not over else 0.2)()
    with peers[0]:
        thread = threading.Thread(target=receive)
        thread.start()
        if how == "write":
            held[0]._send_nowait(b"hello")
        elif how == "abort":
            held[0].abort()
        else:
            with pytest.warns(ResourceWarning, match="unclosed"):
                held.clear()
                gc.collect()
        while not received:
            todo.get(timeout=PATIENCE)()
        thread.join()
    if how == "abort":
        assert isinstance(received[0], ConnectionResetError)
    else:
        assert received == [b"hello" if how == "write" else b""]
    todo.put(over[0].set)
    if how == "write":
        todo.put(held[0].abort)
    while not ended:
        todo.get(timeout=PATIENCE)()
    ended[0].unwrap()

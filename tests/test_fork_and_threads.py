"""Several runs in one process, threads beside a run, and processes forked in the middle of one."""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio
from support.descriptors import open_descriptors
from support.pairs import (
    MEBIBYTE,
    PATIENCE,
    Pair,
    address_of,
    clog,
    open_pair,
    open_trio_pair,
    pattern,
    receive_exactly,
)
from support.runs import bounded, in_child, ring_run
from support.servers import echo_until_broken

import gain_trio
from gain_trio import Connection
from gain_trio._io_manager import current_manager
from gain_trio._transports._datagrams._socket_endpoint import DatagramInbox

pytestmark = [pytest.mark.connections, pytest.mark.features, pytest.mark.usefixtures("no_descriptor_leak")]

RING_FILE = "anon_inode:[io_uring]"


# --- threads ---


def in_threads(count: int, function: Callable[[], object]) -> None:
    """Call the function in ``count`` threads at once, and raise their first failure."""
    failures: list[BaseException] = []

    def call() -> None:
        try:
            function()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE)
        assert not thread.is_alive()
    if failures:
        raise failures[0]


def test_runs_in_several_threads_do_not_know_of_each_other() -> None:
    together = threading.Barrier(3, timeout=PATIENCE)

    async def main() -> None:
        message = pattern(100_000)
        client, served = await open_pair()
        await trio.to_thread.run_sync(together.wait)
        async with client, served, trio.open_nursery() as nursery:
            nursery.start_soon(echo_until_broken, served)
            for _ in range(20):
                async with trio.open_nursery() as turn:
                    turn.start_soon(client.send, message)
                    assert await receive_exactly(client, len(message)) == message
            nursery.cancel_scope.cancel()
        await trio.to_thread.run_sync(together.wait)

    in_threads(3, lambda: ring_run(main, buffer_count=4, buffer_size=4096))


def test_two_runs_talk_to_each_other() -> None:
    addresses: list[str] = []
    listening, done = threading.Event(), threading.Event()

    async def server() -> None:
        [listener] = await gain_trio.open_listeners("tcp://127.0.0.1:0")
        addresses.append(address_of(listener))
        async with listener:
            listening.set()
            async with await listener.accept() as connection:
                await echo_until_broken(connection)
        done.set()

    async def client() -> None:
        assert await trio.to_thread.run_sync(listening.wait, PATIENCE)
        message = pattern(1 << 20)
        async with await gain_trio.connect(addresses[0]) as connection, trio.open_nursery() as nursery:
            nursery.start_soon(connection.send, message)
            assert await receive_exactly(connection, len(message)) == message

    roles = iter([server, client])
    in_threads(2, lambda: ring_run(next(roles)))
    assert done.is_set()


@pytest.mark.parametrize("unix", [False, True], ids=["UDP", "Unix"])
def test_datagrams_of_runs_in_several_threads_do_not_mix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unix: bool
) -> None:
    both_received = threading.Barrier(2, timeout=PATIENCE)
    queue = DatagramInbox._put

    def queue_when_both_have_received(inbox: DatagramInbox, length: int, address: object) -> None:
        both_received.wait()
        queue(inbox, length, address)

    monkeypatch.setattr(
        DatagramInbox, "_put", queue_when_both_have_received
    )  # not the ring's, which has buffers of its own
    names = iter([b"one", b"two"])

    async def main() -> None:
        name = next(names)
        address = f"unix://{tmp_path}/{name.decode()}" if unix else "udp://127.0.0.1:0"
        async with await gain_trio.open_datagram_endpoint(address) as endpoint:
            await endpoint.send(name * 1000, endpoint.local_address)
            assert await endpoint.receive() == (name * 1000, endpoint.local_address)

    in_threads(2, lambda: ring_run(main))


async def test_a_connection_is_refused_to_another_thread(pair: Pair) -> None:
    client, served = pair
    await client.send(b"x")
    refused: list[str] = []

    def elsewhere() -> None:
        async def main() -> None:
            calls: list[Callable[[], Awaitable[object]]] = [
                served.receive,
                lambda: served.send(b"x"),
                served.flush,
                served.aclose,
            ]
            for call in calls:
                with pytest.raises(RuntimeError, match="another thread"):
                    await call()
                refused.append("awaited")

        gain_trio.run(main)
        for function in (served.peek, served.next, served.discard, served.abort):
            with pytest.raises(RuntimeError, match="another thread"):
                function()
            refused.append("called")

    await trio.to_thread.run_sync(elsewhere)
    assert refused == ["awaited"] * 4 + ["called"] * 4
    assert await served.receive() == b"x", "it has taken no harm"
    await served.send(b"y")
    assert await client.receive() == b"y"


async def test_a_connection_that_another_thread_drops_is_closed_by_its_run() -> None:
    """The collector runs where it likes."""
    peer, served = await open_trio_pair()
    box: list[Connection] = [served]
    del served

    def drop() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            box.clear()

    await trio.to_thread.run_sync(drop)
    with trio.fail_after(PATIENCE):
        assert await peer.receive_some() == b""
    await peer.aclose()


# --- fork ---


async def echoes(client: Connection, served: Connection, message: bytes) -> None:
    await client.send(message)
    await served.send(await receive_exactly(served, len(message)))
    assert await receive_exactly(client, len(message)) == message


async def test_a_forked_child_leaves_its_parents_run_alone(pair: Pair) -> None:
    client, served = pair
    await echoes(client, served, b"before")
    await client.send(b"queued")

    def child() -> None:
        for function in (served.peek, served.next, served.discard, served.abort, client.abort):
            with pytest.raises(RuntimeError, match="parent process"):
                function()

    def child_that_waits() -> None:
        with pytest.raises(RuntimeError, match="parent process"):
            next(iter(served.receive().__await__()))

    for _ in range(3):
        in_child(child)
        in_child(child_that_waits)
    assert await receive_exactly(served, 6) == b"queued"
    for number in range(20):
        await echoes(client, served, pattern(10_000 + number))
    await trio.sleep(0.001)
    assert await trio.to_thread.run_sync(lambda: 1) == 1


@pytest.mark.full_ring
async def test_a_forked_child_leaves_its_parents_ring_alone(pair: Pair) -> None:
    client, served = pair
    manager = current_manager("a test")
    assert manager is not None
    await echoes(client, served, b"before")

    def child() -> None:
        assert manager.ring.closed
        with pytest.raises(RuntimeError, match="parent process"):
            manager.get_events(0)
        with pytest.raises(OSError, match="descriptor"):
            manager.ring.nop(print)
        manager.close()

    for _ in range(3):
        in_child(child)
    for number in range(20):
        await echoes(client, served, pattern(10_000 + number))


async def test_a_child_forked_while_a_receive_is_parked_does_not_take_its_data(pair: Pair) -> None:
    client, served = pair
    received: list[bytes] = []

    async def receive() -> None:
        received.append(await served.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        await client.send(b"for the parent")  # prepared, not submitted
        in_child(lambda: None)
    assert received == [b"for the parent"]


async def test_a_child_that_drops_a_connection_does_not_have_the_parents_reset() -> None:
    """The socket is one, with one linger option: what the parent closes in order must not be cut off."""
    peer, served = await open_trio_pair()
    await clog(served)  # cancelled, and so all of it is queued
    owners, count = [served], 24 * MEBIBYTE
    before = served.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
    del served

    def drop() -> None:
        owners.clear()
        gc.collect()

    in_child(drop)
    async with peer:
        assert owners[0].getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == before
        async with trio.open_nursery() as nursery:
            nursery.start_soon(owners[0].aclose)
            assert await receive_exactly(peer, count) == bytes(count)
            assert await peer.receive_some() == b""


@pytest.mark.full_ring
@pytest.mark.usefixtures("pair")
async def test_the_memory_of_a_ring_outlives_what_a_child_drops() -> None:
    """Where a child leaves the run, all of that is garbage, and a connection looks at the ring when it is its turn."""
    ring = current_manager("a test").ring
    memory = weakref.ref(ring._ring)

    def drop() -> None:
        vars(ring).clear()  # as the garbage collector takes it apart
        gc.collect()
        assert memory() is not None

    in_child(drop)


async def test_after_a_child_has_lived_a_close_is_seen_by_the_peer() -> None:
    peer, served = await open_trio_pair()
    in_child(lambda: None)
    await served.aclose()
    with trio.fail_after(PATIENCE):
        assert await peer.receive_some() == b""
    await peer.aclose()


async def test_a_program_started_from_a_run_inherits_nothing_of_it(pair: Pair) -> None:
    """While it lives the connections are closed for their peers all the same."""
    client, served = pair
    script = "import os; print(sorted(os.listdir('/proc/self/fd'))[:-1], flush=True); input()"
    async with trio.open_nursery() as nursery:
        start = partial(trio.run_process, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        program: trio.Process = await nursery.start(start, [sys.executable, "-c", script])
        assert program.stdin is not None
        assert program.stdout is not None
        assert b"['0', '1', '2']" in await program.stdout.receive_some()
        await served.aclose()
        with trio.fail_after(PATIENCE):
            assert await client.receive() == b""
        await program.stdin.send_all(b"\n")


def test_a_child_can_have_a_run_of_its_own_after_its_parents_is_over() -> None:
    async def main() -> None:
        client, served = await open_pair()
        async with client, served:
            await echoes(client, served, b"x")

    gain_trio.run(bounded(main))
    in_child(lambda: gain_trio.run(bounded(main)))
    gain_trio.run(bounded(main))


async def test_a_child_of_another_thread_leaves_the_run_alone(pair: Pair) -> None:
    client, served = pair
    await trio.to_thread.run_sync(in_child, lambda: None)
    await echoes(client, served, b"x")


def maps() -> str:
    with open("/proc/self/maps") as file:
        return file.read()


@pytest.mark.ring
def test_a_fork_gives_the_rings_memory_to_nobody() -> None:
    """The child that touches it dies of it, rather than writing into the parent's ring."""

    async def main() -> None:
        assert RING_FILE in maps()

        def child() -> None:
            assert RING_FILE not in maps()
            assert not any(RING_FILE in descriptor for descriptor in open_descriptors())

        in_child(child)

    gain_trio.run(bounded(main))


def test_sockets_of_the_standard_library_live_beside_the_ring() -> None:
    """A blocking client in a thread, Trio's own stream in a task, and a connection: one server for all."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            server: gain_trio.Server = await nursery.start(gain_trio.serve, echo_until_broken, "tcp://127.0.0.1:0")
            host, port = server.addresses[0]

            def blocking() -> bytes:
                with socket.create_connection((host, port), timeout=PATIENCE) as client:
                    client.sendall(b"x")
                    return client.recv(1)

            assert await trio.to_thread.run_sync(blocking) == b"x"
            async with await trio.open_tcp_stream(host, port) as stream:
                await stream.send_all(b"y")
                assert await stream.receive_some() == b"y"
            nursery.cancel_scope.cancel()

    ring_run(main)

"""Connections and listeners over sockets: what they alone have to get right.

That they do what connections on the ring do is for the other tests, which run on both.  These run over sockets whatever
the session is on.
"""

from __future__ import annotations

import errno
import gc
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
import trio
from support.pairs import (
    MEBIBYTE,
    PATIENCE,
    Pair,
    address_of,
    clog,
    fill_kernel,
    open_pair,
    pattern,
    receive_exactly,
    until,
    until_queued,
)
from support.runs import bounded
from support.servers import echo_until_broken
from support.sockets import fill, socket_pair
from trio.testing import check_half_closeable_stream, wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection, Feature, Marks, RingOptions
from gain_trio._transports._addresses import _sockets
from gain_trio._transports._backends._socket_connection import SocketConnection
from gain_trio._transports._backends._socket_listener import BATCH, SocketListener
from gain_trio._transports._backends._socket_receiving import CHUNK, LARGE_CHUNK

pytestmark = [pytest.mark.connections, pytest.mark.usefixtures("on_trios_own_manager", "no_descriptor_leak")]

T = TypeVar("T")
LOCAL = "tcp://127.0.0.1:0"


def over_sockets(async_fn: Callable[[], Awaitable[T]]) -> T:
    """Run a function on Trio's own I/O manager, with a time limit."""
    return trio.run(bounded(async_fn))


def system_tasks() -> list[str]:
    """The names of those of gain_trio."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    tasks = [task for nursery in root.child_nurseries for task in nursery.child_tasks]
    tasks += [child for task in tasks for nursery in task.child_nurseries for child in nursery.child_tasks]
    return sorted({id(task): task.name for task in tasks if task.name.startswith("gain_trio")}.values())


# --- which runs have them ---

PROGRAM = """
import trio, gain_trio

async def echo_until_broken(connection):
    async for data in connection:
        await connection.send(data)

async def main():
    async with trio.open_nursery() as nursery:
        server = await nursery.start(gain_trio.serve, echo_until_broken, "tcp://127.0.0.1:0")
        async with await gain_trio.connect("tcp://127.0.0.1:%d" % server.addresses[0][1]) as client:
            await client.send(b"hello")
            print((await client.receive()).decode(), gain_trio.backend_info().backend)
        nursery.cancel_scope.cancel()
    [listener] = await gain_trio.open_listeners("tcp://127.0.0.1:0")
    client = await gain_trio.connect("tcp://127.0.0.1:%d" % listener.local_address[1])
    async with listener, client, await listener.accept() as served:
        await client.send_eof()
        print(await served.receive())

trio.run(main)
"""


def output_of(program: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "GAIN_TRIO_BACKEND"}
    command = [sys.executable, "-W", "error", "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, env=environment)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_a_program_of_trio_run() -> None:
    assert output_of(PROGRAM) == "hello trio\nb''\n"


def test_what_a_run_of_trio_gets() -> None:
    async def main() -> None:
        [listener] = await gain_trio.open_listeners(LOCAL)
        async with listener, await gain_trio.connect(address_of(listener)) as client, await listener.accept() as served:
            assert isinstance(listener, SocketListener)
            assert isinstance(client, SocketConnection)
            assert isinstance(served, SocketConnection)

    over_sockets(main)


@pytest.mark.ring
def test_what_a_run_on_a_ring_that_can_only_wait_gets() -> None:
    async def main() -> None:
        data = pattern(MEBIBYTE)
        async with trio.open_nursery() as nursery:
            server = await nursery.start(gain_trio.serve, echo_until_broken, LOCAL)
            async with await gain_trio.connect(f"tcp://127.0.0.1:{server.addresses[0][1]}") as client:
                assert isinstance(client, SocketConnection)
                assert gain_trio.backend_info().tier == "poll"
                async with trio.open_nursery() as exchange:
                    exchange.start_soon(client.send, data)
                    assert await receive_exactly(client, len(data)) == data
            nursery.cancel_scope.cancel()

    gain_trio.run(bounded(main), backend="io_uring", ring=RingOptions(unwanted=Feature.DEFER_TASKRUN))


def test_trios_own_checks() -> None:
    async def clogged() -> Pair:
        client, served = await open_pair()
        await clog(client)
        await clog(served)
        return client, served

    async def main() -> None:
        await check_half_closeable_stream(open_pair, clogged)

    over_sockets(main)


# --- what systems do differently ---


def test_a_port_cannot_be_shared_where_there_is_no_such_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "SO_REUSEPORT")

    async def main() -> None:
        with pytest.raises(ValueError, match=r"SO_REUSEPORT, which linux does not have; leave it out.*workers"):
            await gain_trio.open_listeners(LOCAL, reuse_port=True)

    over_sockets(main)


class Recorder:
    """A socket that notes which options are set."""

    def __init__(self) -> None:
        self.options: list[tuple[int, int, Any]] = []

    def setsockopt(self, level: int, option: int, value: object) -> None:
        self.options.append((level, option, value))


def test_nobody_takes_a_port_away_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(socket, "SO_EXCLUSIVEADDRUSE", ~socket.SO_REUSEADDR, raising=False)
    sock = Recorder()
    _sockets.share_address(sock)  # type: ignore[arg-type]
    assert sock.options == [(socket.SOL_SOCKET, ~socket.SO_REUSEADDR, 1)]


# --- fairness ---


def flood(sock: socket.socket) -> threading.Thread:
    """A thread that sends for as long as the other end takes it."""

    def send() -> None:
        with sock:
            try:
                while True:
                    sock.sendall(bytes(MEBIBYTE))
            except OSError:
                pass  # the other end has had enough

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def drain(sock: socket.socket) -> threading.Thread:
    """A thread that receives until the end."""

    def receive() -> None:
        with sock:
            buffer = bytearray(MEBIBYTE)
            while sock.recv_into(buffer):
                pass

    thread = threading.Thread(target=receive)
    thread.start()
    return thread


class Turns:
    """The most that was moved between two turns of another task.

    Trio steps the tasks of a batch in any order, so between two turns of one task another may have two.
    """

    def __init__(self) -> None:
        self.moved = self.most = 0

    def count(self, length: int) -> None:
        self.moved += length
        self.most = max(self.most, self.moved)

    async def take(self) -> None:
        while True:
            self.moved = 0
            await trio.lowlevel.checkpoint()


async def peer_and_served() -> tuple[socket.socket, Connection]:
    """A blocking socket, and the connection it is connected to."""
    [listener] = await gain_trio.open_listeners(LOCAL)
    async with listener:
        peer = socket.create_connection(listener.local_address)
        return peer, await listener.accept()


@pytest.mark.parametrize("how", ["receive", "receive some of it", "look and receive", "receive_into"])
def test_a_peer_that_floods_starves_nobody(how: str) -> None:
    turns, volume = Turns(), 32 * MEBIBYTE

    async def main() -> None:
        peer, served = await peer_and_served()
        thread = flood(peer)
        buffer = bytearray(CHUNK)

        async def receive() -> int:
            if how == "receive":
                return len(await served.receive())
            if how == "receive some of it":
                return len(await served.receive(10_000))
            if how == "receive_into":
                return await served.receive_into(buffer)
            assert served.inbound_buffered >= 0
            return len(await served.receive())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(turns.take)
            total = 0
            while total < volume:
                length = await receive()
                total += length
                turns.count(length)
            nursery.cancel_scope.cancel()
        served.abort()
        await trio.to_thread.run_sync(thread.join)

    over_sockets(main)
    largest_answer = {"look and receive": Marks().receive_high, "receive": LARGE_CHUNK}.get(how, CHUNK)
    assert turns.most <= 2 * (Marks().receive_high + largest_answer)


def test_a_peer_that_takes_everything_starves_nobody() -> None:
    turns, volume, piece = Turns(), 64 * MEBIBYTE, bytes(20_000)

    async def main() -> None:
        peer, served = await peer_and_served()
        thread = drain(peer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(turns.take)
            for _ in range(volume // len(piece)):
                await served.send(piece)
                turns.count(len(piece))
            nursery.cancel_scope.cancel()
        await served.aclose()
        await trio.to_thread.run_sync(thread.join)

    over_sockets(main)
    assert turns.most <= 2 * (Marks().send_high + 2 * len(piece))


def test_a_burst_of_clients_is_accepted_in_batches() -> None:
    async def main() -> None:
        [listener] = await gain_trio.open_listeners(LOCAL, backlog=4 * BATCH)
        assert isinstance(listener, SocketListener)
        async with listener:
            clients = [socket.create_connection(listener.local_address) for _ in range(BATCH + 10)]
            served: list[Connection] = [await listener.accept()]
            while (connection := listener._accept_ready()) is not None:
                served.append(connection)
            assert len(served) == BATCH
            served += [await listener.accept() for _ in range(10)]
            assert {c.remote_address for c in served} == {client.getsockname() for client in clients}
        for connection in served:
            connection.abort()
        for client in clients:
            client.close()

    over_sockets(main)


# --- receiving ---


def test_looking_takes_nothing_from_a_task_that_waits() -> None:
    async def main() -> None:
        client, served = await open_pair()
        received: list[bytes] = []

        async def receive() -> None:
            received.append(await served.receive())

        async with client, served, trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await wait_all_tasks_blocked()
            await client.send(b"for the task")
            assert (served.inbound_buffered, served.peek(), served.next(), served.discard()) == (0, b"", b"", 0)
        assert received == [b"for the task"]

    over_sockets(main)


@pytest.mark.parametrize("end", ["end", "reset"])
def test_what_comes_behind_the_bytes_is_kept_until_they_are_taken(end: str) -> None:
    async def main() -> None:
        client, served = await open_pair()
        await client.send(b"0123456789")
        await until_queued(served, 10)
        if end == "end":
            await client.aclose()
        else:
            client.abort()
        await wait_all_tasks_blocked()
        for _ in range(3):
            assert served.inbound_buffered == 10, "and whatever is behind has been seen by now"
        assert served.next(4) == b"0123"
        assert await served.receive(4) == b"4567"
        assert served.peek() == b"89"
        assert await served.receive() == b"89"
        for _ in range(2):
            assert served.inbound_buffered == 0
            if end == "end":
                assert await served.receive() == b""
            else:
                with pytest.raises(trio.BrokenResourceError) as caught:
                    await served.receive()
                assert isinstance(caught.value.__cause__, ConnectionResetError)
        await served.aclose()

    over_sockets(main)


def test_receiving_large_data_in_small_pieces() -> None:
    """Linear in what is received: 512 KiB in pieces of 7, out of a queue that is full all the while."""
    data, high = pattern(MEBIBYTE // 2), MEBIBYTE // 4

    async def main() -> None:
        client, served = await open_pair(marks=Marks(receive_high=high, receive_low=high - 1))
        received = bytearray()
        async with client, served, trio.open_nursery() as nursery:
            nursery.start_soon(client.send, data)
            while len(received) < len(data):
                _ = served.inbound_buffered
                received += await served.receive(7)
        assert received == data

    over_sockets(main)


# --- sending ---


def test_the_writer_ends_when_the_queue_is_empty() -> None:
    async def main() -> None:
        client, served = await open_pair()
        closing = ["gain_trio closing at the end of the run"]
        assert system_tasks() == closing
        for _ in range(3):
            await clog(client)
            assert system_tasks() == [*closing, "gain_trio writer"]
            assert await receive_exactly(served, 24 * MEBIBYTE) == bytes(24 * MEBIBYTE)
            await client.flush()
            await until(lambda: system_tasks() == closing)
        await clog(client)
        await clog(served)
        assert system_tasks() == [*closing, "gain_trio writer", "gain_trio writer"]
        client.abort()  # which ends its own writer by the close, and that of its peer by an error
        await until(lambda: system_tasks() == closing)
        served.abort()

    over_sockets(main)


def test_many_small_sends_cost_little_more_than_their_bytes() -> None:
    async def main() -> None:
        client, served = await open_pair()
        filled = await fill_kernel(client)
        gc.collect()
        before = len(gc.get_objects())
        data = pattern(200_000)
        for start in range(0, len(data), 2):
            await client.send(data[start : start + 2])
        assert len(data) // 2 < client.outbound_buffered <= len(data), "the kernel may find a little more room"
        assert len(gc.get_objects()) - before < 100
        async with client, served:
            assert await receive_exactly(served, filled + len(data)) == bytes(filled) + data

    over_sockets(main)


def test_somebody_else_waits_for_the_descriptor() -> None:
    """It is the connection's.  But the writer is a task of the system: what it raised would end the run."""

    async def main() -> None:
        client, served = await open_pair()
        await fill_kernel(client)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.wait_writable, client.fileno())
            await wait_all_tasks_blocked()
            with pytest.raises(trio.BrokenResourceError) as caught:
                await client.send(bytes(MEBIBYTE))
            assert isinstance(caught.value.__cause__, OSError)
            assert caught.value.__cause__.errno == errno.EBUSY
            nursery.cancel_scope.cancel()
        client.abort()
        served.abort()

    over_sockets(main)


def test_a_notice_of_closing_does_not_end_the_writer() -> None:
    async def main() -> None:
        client, served = await open_pair()
        await clog(client)
        for _ in range(3):
            trio.lowlevel.notify_closing(client.fileno())
            await wait_all_tasks_blocked()
        async with client, served:
            assert await receive_exactly(served, 24 * MEBIBYTE) == bytes(24 * MEBIBYTE)

    over_sockets(main)


# --- ends ---


def test_a_socket_that_somebody_else_has_closed() -> None:
    async def main() -> None:
        for call in (lambda c: c.receive(), lambda c: c.send(b"x"), lambda c: c.receive_some()):
            client, served = await open_pair()
            os.close(client.fileno())
            with pytest.raises(trio.BrokenResourceError) as caught:
                await call(client)
            assert isinstance(caught.value.__cause__, OSError)
            assert caught.value.__cause__.errno == errno.EBADF
            client.abort()
            assert client.fileno() == -1
            await served.aclose()

    over_sockets(main)


def test_hundreds_of_connections_at_once() -> None:
    count, data = 200, pattern(100_000)

    async def main() -> None:
        async def exchange(address: str, number: int) -> None:
            message = data[number:]
            async with await gain_trio.connect(address) as client, trio.open_nursery() as nursery:
                nursery.start_soon(client.send, message)
                assert await receive_exactly(client, len(message)) == message

        async with trio.open_nursery() as nursery:
            server = await nursery.start(gain_trio.serve, echo_until_broken, LOCAL)
            async with trio.open_nursery() as clients:
                for number in range(count):
                    clients.start_soon(exchange, f"tcp://127.0.0.1:{server.addresses[0][1]}", number)
            await until(lambda: server.active_connections == 0)
            assert server.statistics().accepted == count
            assert (server.statistics().broken, server.statistics().handler_errors) == (0, 0)
            nursery.cancel_scope.cancel()
        await until(lambda: system_tasks() == ["gain_trio closing at the end of the run"])

    over_sockets(main)


def test_any_stream_socket_will_do() -> None:
    """Sockets of other families than TCP's work, too, because no code here needs an address."""

    async def main() -> None:
        with socket_pair() as (one, other):
            connection = SocketConnection(one.dup(), Marks())
            connection._socket.setblocking(False)
            fill(connection._socket)
            async with connection, trio.open_nursery() as nursery:
                nursery.start_soon(connection.send, b"the end")
                received = b""
                while not received.endswith(b"the end"):
                    await trio.lowlevel.wait_readable(other)
                    received = received[-6:] + other.recv(MEBIBYTE)
                one.close()

    over_sockets(main)

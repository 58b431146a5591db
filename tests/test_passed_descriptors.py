"""Peers that pass files whose close(2) waits: none of them holds up the run.

The file is a TCP socket with ``SO_LINGER`` and data that its peer does not read.  Closing its last descriptor waits for
longer than :data:`SOON`, so a run that does so itself is late for :func:`prompt`.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import pytest
import trio
from support.descriptors import descriptor_limit, next_descriptor, open_descriptors
from support.pairs import open_unix_pair, until, until_passed_are_closed
from support.sockets import fill

import gain_trio
from gain_trio import Connection, Listener, open_listeners
from gain_trio._transports._addresses._passed_descriptors import (
    MOST_AT_ONCE,
    MOST_THREADS,
    MOST_WAITING,
    SO_PASSRIGHTS,
    DescriptorCloser,
    descriptor_closer,
    most_waiting,
    receives_descriptors,
)

pytestmark = [pytest.mark.connections, pytest.mark.usefixtures("no_descriptor_leak")]

LINGER = 40
SOON = 20.0


def kernel_can_refuse() -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.getsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS)
        except OSError:
            return False
        return True


refuses = pytest.mark.skipif(not kernel_can_refuse(), reason="SO_PASSRIGHTS is of Linux 6.16")


@final
class Trap:
    """A file whose close(2) waits until the trap is opened."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            self.sock = socket.create_connection(listener.getsockname())
            self._peer, _address = listener.accept()
        self.sock.setblocking(False)
        fill(self.sock)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGER))

    def push_into(self, sock: socket.socket, data: bytes = b"x", count: int = 1) -> None:
        """Pass it, and close the copy here."""
        rights = array.array("i", [self.sock.fileno()] * count)
        sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        self.sock.close()

    def release(self) -> None:
        self._peer.close()  # with unread data: a reset, after which nothing lingers
        self.sock.close()


@pytest.fixture
def trap() -> Iterator[Trap]:
    made = Trap()
    yield made
    made.release()


@contextlib.contextmanager
def prompt() -> Iterator[None]:
    with trio.fail_after(SOON):
        yield


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "s")


def dial(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    return sock


# --- sockets that are not meant to receive descriptors ---


def assert_refused(sock: socket.socket, *address: Any) -> None:
    with pytest.raises(PermissionError):
        sock.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))], 0, *address)


@refuses
async def test_a_connection_refuses_them_before_and_after_it_is_accepted(path: str) -> None:
    [listener] = await open_listeners(f"unix://{path}")
    async with listener:
        with dial(path) as client:
            assert_refused(client)
            async with await listener.accept() as served:
                assert_refused(client)
                client.sendall(b"fine")
                assert await served.receive() == b"fine"


@refuses
async def test_a_client_refuses_them(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        async with await gain_trio.connect(f"unix://{path}") as client:
            sock, _address = server.accept()
            with sock:
                assert_refused(sock)
                sock.sendall(b"fine")
                assert await client.receive() == b"fine"


@refuses
async def test_a_wrapped_connection_refuses_them() -> None:
    sock, other = socket.socketpair()
    with sock:
        async with Connection.from_socket(other):
            assert_refused(sock)


@refuses
async def test_wrapped_listeners_decide_for_their_connections(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        async with Listener.from_socket(server.dup()) as listener:
            with dial(path) as client:
                assert_refused(client)
                await (await listener.accept()).aclose()
        async with Listener.from_socket(server.dup(), pass_fds=True) as listener:
            with dial(path) as client:
                client.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))])
                async with await listener.accept() as served:
                    _data, [received] = await served.receive_fds(10, 10)
                    os.close(received)


@refuses
async def test_a_datagram_endpoint_refuses_them(path: str) -> None:
    async with await gain_trio.open_datagram_endpoint(f"unix://{path}") as endpoint:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            assert_refused(client, path)
            client.sendto(b"fine", path)
            assert (await endpoint.receive())[0] == b"fine"


@refuses
@pytest.mark.parametrize("processes", [None, 1])
async def test_a_server_refuses_them(path: str, processes: int | None) -> None:
    from support.servers import echo

    async with trio.open_nursery() as nursery:
        await nursery.start(lambda **status: gain_trio.serve(echo, f"unix://{path}", processes=processes, **status))
        with dial(path) as client:
            assert_refused(client)
            client.sendall(b"fine")
            assert await trio.to_thread.run_sync(client.recv, 10) == b"fine"
            assert_refused(client)
        nursery.cancel_scope.cancel()


@refuses
async def test_a_connection_older_than_the_listener_here(path: str, trap: Trap) -> None:
    """Socket activation: a peer may have passed something before the program was started."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        with dial(path) as hostile, dial(path) as harmless:
            hostile.sendall(b"before")
            trap.push_into(hostile)
            harmless.sendall(b"fine")
            with prompt():
                async with Listener.from_socket(server.dup()) as listener:
                    async with await listener.accept() as served:
                        assert await served.receive() == b"fine"
                        assert_refused(harmless)
            trap.release()
            await until_passed_are_closed()
            with pytest.raises(ConnectionResetError):
                hostile.recv(1)


# --- connections that pass descriptors ---


async def test_closing_a_connection_does_not_wait(path: str, trap: Trap) -> None:
    """Neither for what no call has taken, nor for what is queued in the kernel."""
    served, client = await open_unix_pair(f"unix://{path}", pass_fds=True)
    with socket.socket(fileno=os.dup(client.fileno())) as sock:
        trap.push_into(sock)
        second = Trap()
        with prompt():
            assert await served.receive(1) == b"x"
            second.push_into(sock)
            await served.aclose()
            await client.aclose()
            trap.release()
            second.release()
            await until_passed_are_closed()


async def test_a_peer_that_goes_is_noticed_at_once(path: str) -> None:
    served, client = await open_unix_pair(f"unix://{path}", pass_fds=True)
    await client.send_fds(b"x", [0])
    await served.aclose()
    await until_passed_are_closed()
    with pytest.raises(trio.BrokenResourceError):
        await client.receive()
    await client.aclose()


async def test_a_message_that_there_is_no_room_for_is_not_received(path: str, trap: Trap) -> None:
    """The kernel would close what does not fit, within recvmsg(2)."""
    served, client = await open_unix_pair(f"unix://{path}", pass_fds=True)
    with socket.socket(fileno=os.dup(client.fileno())) as sock, prompt():
        with descriptor_limit(next_descriptor() + 4):
            await client.send(b"without")
            assert await served.receive() == b"without"
            trap.push_into(sock, count=8)
            with pytest.raises(trio.BrokenResourceError) as caught:
                await served.receive_fds(10, 10)
            assert "RLIMIT_NOFILE" in str(caught.value.__cause__)
        await served.aclose()
    await client.aclose()
    trap.release()
    await until_passed_are_closed()


async def test_closing_a_listener_does_not_wait(path: str, trap: Trap) -> None:
    [listener] = await open_listeners(f"unix://{path}", pass_fds=True)
    with dial(path) as client:
        trap.push_into(client)
        with prompt():
            await listener.aclose()
            assert not os.path.exists(path)  # noqa: ASYNC240 - it is here and local
            trap.release()
            await until_passed_are_closed()


async def test_what_waits_is_bounded_by_the_limit_of_open_files(path: str) -> None:
    served, client = await open_unix_pair(f"unix://{path}", pass_fds=True)
    limit = next_descriptor() + 600
    with descriptor_limit(limit):
        assert most_waiting() == limit // 4
        with pytest.raises(trio.BrokenResourceError) as caught:
            for _ in range(limit):
                await client.send_fds(b"x", [0] * 50)
                assert await served.receive() == b"x"
        assert f"more than {limit // 4} descriptors" in str(caught.value.__cause__)
    await served.aclose()
    await client.aclose()


async def test_what_waits_is_bounded_over_all_connections(path: str) -> None:
    limit = next_descriptor() + 1200
    pairs = []
    with descriptor_limit(limit):
        broken = 0
        for number in range(8):
            pairs.append(await open_unix_pair(f"unix://{path}{number}", pass_fds=True))
            served, client = pairs[-1]
            await client.send_fds(b"x", [0] * 200)
            try:
                assert await served.receive() == b"x"
            except trio.BrokenResourceError:
                broken += 1
        assert broken
        assert len(open_descriptors()) < limit // 2 + 300
        os.close(os.dup(0))  # there is room for others
    for pair in pairs:
        for connection in pair:
            await connection.aclose()


def test_the_bound_does_not_grow_with_the_limit() -> None:
    assert most_waiting() <= MOST_WAITING
    with descriptor_limit(next_descriptor() + 40):
        assert 1 <= most_waiting() < MOST_AT_ONCE


async def test_taking_makes_room(path: str) -> None:
    served, client = await open_unix_pair(f"unix://{path}", pass_fds=True)
    async with served, client:
        for _ in range(2 * MOST_WAITING // 100):
            await client.send_fds(b"x", [0] * 100)
            _data, descriptors = await served.receive_fds(1, 100)
            assert len(descriptors) == 100
            for descriptor in descriptors:
                os.close(descriptor)
        await until_passed_are_closed()
        assert not descriptor_closer._kept


# --- the threads ---


async def test_there_are_at_most_so_many_threads() -> None:
    own = DescriptorCloser()
    traps = [Trap() for _ in range(2 * MOST_THREADS)]
    pairs = [socket.socketpair() for _ in traps]
    for trap, (sock, other) in zip(traps, pairs, strict=True):
        trap.push_into(sock)
        own.close_socket(other)
    assert own._kept == len(traps)
    assert not own._permits
    await until(lambda: len(own._unwanted) == MOST_THREADS)
    for trap in traps:
        trap.release()
    await until(lambda: own.is_idle)
    assert not own._kept
    for sock, _other in pairs:
        sock.close()


async def test_a_socket_that_was_passed_does_not_linger(trap: Trap) -> None:
    own = DescriptorCloser()
    own.add(1)
    with prompt():
        own.close([trap.sock.detach()])
        await until(lambda: own.is_idle)


async def test_without_threads_they_stay_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    own = DescriptorCloser()

    def refuse(*_arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(trio.lowlevel, "start_thread_soon", refuse)
        own.add(1)
        own.close([os.dup(0)])
        assert not own.is_idle
    own.add(1)
    own.close([os.dup(0)])
    await until(lambda: own.is_idle)
    assert not own._kept


def test_receives_descriptors() -> None:
    with socket.socket() as tcp:
        assert not receives_descriptors(tcp)
    with socket.socket(socket.AF_UNIX) as plain:
        assert receives_descriptors(plain)

"""Passing descriptors over Unix connections."""

from __future__ import annotations

import array
import errno
import math
import os
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio
from support.descriptors import descriptor_limit, is_open, next_descriptor, open_descriptors
from support.pairs import Pair, clog, pattern, receive_all, receive_exactly, until_passed_are_closed
from support.sockets import fill, read_available
from trio.testing import MockClock, wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection, open_listeners
from gain_trio._transports._backends._descriptor_connection import MOST_AT_ONCE, MOST_WAITING

pytestmark = [pytest.mark.connections, pytest.mark.usefixtures("no_descriptor_leak")]


async def open_fd_pair() -> Pair:
    with tempfile.TemporaryDirectory() as directory:
        address = f"unix://{directory}/s"
        [listener] = await open_listeners(address, pass_fds=True)
        async with listener:
            client = await gain_trio.connect(address, pass_fds=True)
            return client, await listener.accept()


@pytest.fixture
async def fd_pair() -> AsyncIterator[Pair]:
    client, served = await open_fd_pair()
    yield client, served
    client.abort()
    served.abort()


@pytest.fixture
async def full_pair(fd_pair: Pair) -> Pair:
    """A pair whose client has to wait for the kernel, and not for its queue."""
    client, _served = fd_pair
    with socket.socket(fileno=os.dup(client.fileno())) as sock:
        fill(sock)
    return fd_pair


@pytest.fixture
async def raw() -> AsyncIterator[tuple[socket.socket, Connection]]:
    """A socket, which sends what it likes, and a connection."""
    sock, other = socket.socketpair()
    sock.setblocking(False)
    connection = Connection.from_socket(other, pass_fds=True)
    with sock:
        yield sock, connection
        connection.abort()


def pass_by_hand(sock: socket.socket, data: bytes, descriptors: list[int]) -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))])


def same_file(one: int, other: int) -> bool:
    first, second = os.fstat(one), os.fstat(other)
    return (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)


def close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


async def receive_one_descriptor(served: Connection) -> bytes:
    """Receive bytes up to "end", without zeros, and one descriptor with them."""
    received, descriptors = b"", list[int]()
    while not received.endswith(b"end"):
        data, more = await served.receive_fds(1 << 20, 10)
        received, descriptors = received + data, descriptors + more
    close_all(descriptors)
    assert len(descriptors) == 1
    return received.lstrip(b"\0")


async def test_a_descriptor_arrives(fd_pair: Pair) -> None:
    client, served = fd_pair
    reader, writer = os.pipe()
    await client.send_fds(b"here", [writer])
    os.close(writer)
    data, [received] = await served.receive_fds(100, 1)
    assert data == b"here"
    assert not os.get_inheritable(received)
    os.write(received, b"through")
    os.close(received)
    assert os.read(reader, 100) == b"through"
    assert os.read(reader, 100) == b""
    os.close(reader)


async def test_a_waiting_receiver_gets_them_and_in_order(fd_pair: Pair) -> None:
    client, served = fd_pair
    got: list[tuple[bytes, list[int]]] = []

    async def receive() -> None:
        got.append(await served.receive_fds(100, 10))

    with tempfile.TemporaryFile() as one, tempfile.TemporaryFile() as two:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await wait_all_tasks_blocked()
            await client.send_fds(b"x", [one.fileno(), two])  # an object with a fileno() will do
        [(data, descriptors)] = got
        assert data == b"x"
        assert same_file(descriptors[0], one.fileno())
        assert same_file(descriptors[1], two.fileno())
        close_all(descriptors)


async def test_each_message_has_its_own(fd_pair: Pair) -> None:
    client, served = fd_pair
    with tempfile.TemporaryFile() as one, tempfile.TemporaryFile() as two:
        await client.send_fds(b"one", [one])
        await client.send_fds(b"two", [two])
        await client.send(b"three")
        for file, text in ((one, b"one"), (two, b"two")):
            data, [received] = await served.receive_fds(100, 10)
            assert data == text
            assert same_file(received, file.fileno())
            os.close(received)
        assert await served.receive_fds(100, 10) == (b"three", [])
        await client.aclose()
        for _ in range(2):
            assert await served.receive_fds(100, 10) == (b"", [])


async def test_framing_leaves_the_descriptors_with_their_bytes(fd_pair: Pair) -> None:
    client, served = fd_pair
    with tempfile.TemporaryFile() as one, tempfile.TemporaryFile() as two:
        await client.send(b"head\n")
        await client.send_fds(b"body", [one])
        await client.send_fds(b"line\n", [two])
        assert await served.receive_exactly(2) == b"he"
        assert await served.receive_line() == b"ad"
        data, [received] = await served.receive_fds(100, 1)
        assert data == b"body"
        assert same_file(received, one.fileno())
        os.close(received)
        assert await served.receive_line() == b"line"
        data, [received] = await served.receive_fds(100, 1)  # its bytes have been taken: it comes without
        assert data == b""
        assert same_file(received, two.fileno())
        os.close(received)


async def test_what_is_looked_at_and_dropped_keeps_its_descriptors(fd_pair: Pair) -> None:
    client, served = fd_pair
    with tempfile.TemporaryFile() as file:
        await client.send_fds(b"abcdef", [file])
        await client.flush()
        assert served.peek() == b"abcdef"
        assert served.discard(2) == 2
        data, [received] = await served.receive_fds(3, 1)
        assert data == b"cde"
        assert same_file(received, file.fileno())
        os.close(received)
        assert await served.receive_fds(3, 1) == (b"f", [])


async def test_more_than_asked_for_wait(fd_pair: Pair) -> None:
    client, served = fd_pair
    with tempfile.TemporaryFile() as file:
        await client.send_fds(b"abc", [file] * 5)
        data, descriptors = await served.receive_fds(2, 2)
        assert (data, len(descriptors)) == (b"ab", 2)
        data, more = await served.receive_fds(2, 2)
        assert (data, len(more)) == (b"", 2)
        data, last = await served.receive_fds(2, 2)
        assert (data, len(last)) == (b"", 1)
        assert await served.receive_fds(2, 2) == (b"c", [])
        close_all(descriptors + more + last)


async def test_those_that_nobody_takes_are_closed_with_the_connection(fd_pair: Pair) -> None:
    client, served = fd_pair
    with tempfile.TemporaryFile() as file:
        await client.send_fds(b"x", [file] * 3)
        await client.flush()
        before = open_descriptors()
        assert served.peek() == b"x"
        assert len(open_descriptors()) == len(before) + 3
        await served.aclose()
        await until_passed_are_closed()
        assert len(open_descriptors()) == len(before) - 1


async def test_as_many_as_go_at_once(fd_pair: Pair) -> None:
    client, served = fd_pair
    await client.send_fds(b"x", [0] * MOST_AT_ONCE)
    _data, descriptors = await served.receive_fds(1, MOST_AT_ONCE)
    assert len(descriptors) == MOST_AT_ONCE
    close_all(descriptors)
    with pytest.raises(ValueError, match="at most 253"):
        await client.send_fds(b"x", [0] * (MOST_AT_ONCE + 1))


async def test_cancelling_receive_fds_loses_nothing(fd_pair: Pair) -> None:
    client, served = fd_pair
    with trio.move_on_after(0.01):
        await served.receive_fds(10, 10)
    await client.send_fds(b"x", [0])
    await client.flush()
    with trio.CancelScope() as scope:
        scope.cancel()
        await served.receive_fds(10, 10)
    assert scope.cancelled_caught
    assert served.peek() == b"x"
    with trio.CancelScope() as scope:
        scope.cancel()
        await served.receive_fds(10, 10)
    assert scope.cancelled_caught
    data, descriptors = await served.receive_fds(10, 10)
    assert (data, len(descriptors)) == (b"x", 1)
    close_all(descriptors)


async def test_send_fds_waits_its_turn_and_keeps_the_order(fd_pair: Pair) -> None:
    client, served = fd_pair
    large = pattern(4 << 20)
    after = pattern(300_000)
    got: list[Any] = []

    async def send() -> None:
        await client.send(large)
        await client.send_fds(after, [0])
        await client.send(b"end")
        await client.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        assert await receive_exactly(served, len(large)) == large
        data, descriptors = await served.receive_fds(1 << 20, 10)
        got.append(data + await receive_all(served))
    assert got == [after + b"end"]
    assert len(descriptors) == 1
    close_all(descriptors)


async def test_cancelling_send_fds_sends_nothing(fd_pair: Pair) -> None:
    client, served = fd_pair
    await clog(client)
    held = client.outbound_buffered
    with trio.move_on_after(0.01) as scope:
        await client.send_fds(b"never", [0])
    assert scope.cancelled_caught
    assert client.outbound_buffered == held


async def test_a_send_fds_that_waits_goes_on_when_there_is_room(full_pair: Pair) -> None:
    client, served = full_pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_fds, b"end", [0])
        await wait_all_tasks_blocked()
        await receive_one_descriptor(served)


async def test_a_read_deadline_does_not_end_a_send_fds_that_waits(full_pair: Pair, autojump_clock: MockClock) -> None:
    client, served = full_pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_fds, b"end", [0])
        await wait_all_tasks_blocked()
        client.read_deadline = trio.current_time() + 5
        with pytest.raises(trio.TooSlowError):
            await client.receive()
        await wait_all_tasks_blocked()
        await receive_one_descriptor(served)


@pytest.mark.parametrize("queued", [False, True], ids=["the kernel", "the queue"])
async def test_a_send_fds_that_waits_keeps_the_write_deadline(
    full_pair: Pair, autojump_clock: MockClock, queued: bool
) -> None:
    client, served = full_pair
    if queued:
        await client.send(b"before")
    client.write_deadline = trio.current_time() + 5
    with trio.fail_after(6), pytest.raises(trio.TooSlowError, match="the connection's write deadline has passed"):
        await client.send_fds(b"never", [0])
    client.write_deadline = math.inf
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_fds, b"end", [0])  # the connection is none the worse for it
        assert await receive_one_descriptor(served) == (b"beforeend" if queued else b"end")


async def test_closing_ends_a_send_fds_that_waits(full_pair: Pair) -> None:
    client, served = full_pair
    raised: list[BaseException] = []

    async def send() -> None:
        try:
            await client.send_fds(b"never", [0])
        except trio.ClosedResourceError as error:
            raised.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await client.send_fds(b"never", [0])
        await client.aclose()
    assert len(raised) == 1
    with pytest.raises(trio.ClosedResourceError):
        await client.send_fds(b"never", [0])


async def test_what_is_wrong_with_a_descriptor_does_no_harm_to_the_connection(fd_pair: Pair) -> None:
    client, served = fd_pair
    with pytest.raises(OSError, match="the descriptors cannot be sent") as caught:
        await client.send_fds(b"x", [next_descriptor()])
    assert caught.value.errno == errno.EBADF
    with pytest.raises(ValueError, match="-1 is not a descriptor"):
        await client.send_fds(b"x", [-1])
    with tempfile.TemporaryFile() as file:
        pass
    with pytest.raises(ValueError, match="closed file"):
        await client.send_fds(b"x", [file])
    with pytest.raises(ValueError, match="at least one byte"):
        await client.send_fds(b"", [0])
    await client.send_fds(bytearray(b"fine"), [])
    assert await served.receive_fds(10, 10) == (b"fine", [])


@pytest.mark.parametrize("arguments", [(0, 1), (1, 0), (-1, 1)])
async def test_receive_fds_refuses(fd_pair: Pair, arguments: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="must be >= 1"):
        await fd_pair[0].receive_fds(*arguments)


async def test_a_peer_that_is_gone(fd_pair: Pair) -> None:
    client, served = fd_pair
    await served.aclose()
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError):
            await client.send_fds(b"x", [0])


async def test_send_fds_after_send_eof(fd_pair: Pair) -> None:
    client, _served = fd_pair
    await client.send_eof()
    with pytest.raises(trio.ClosedResourceError, match="send_eof"):
        await client.send_fds(b"x", [0])


async def test_two_receivers(fd_pair: Pair) -> None:
    client, served = fd_pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.receive)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await served.receive_fds(1, 1)
        nursery.cancel_scope.cancel()


async def test_out_of_descriptors(raw: tuple[socket.socket, Connection]) -> None:
    """MSG_CTRUNC: what could be had of them is closed, and the connection says that it is broken."""
    sock, connection = raw
    pass_by_hand(sock, b"x", [0] * 10)
    before = open_descriptors()
    with descriptor_limit(next_descriptor() + 4):
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError) as caught:
                await connection.receive_fds(10, 10)
            assert isinstance(caught.value.__cause__, OSError)
            assert caught.value.__cause__.errno == errno.EMFILE
    await until_passed_are_closed()
    assert open_descriptors() == before


async def test_a_peer_that_passes_and_passes(raw: tuple[socket.socket, Connection]) -> None:
    sock, connection = raw
    before = open_descriptors()
    with pytest.raises(trio.BrokenResourceError) as caught:
        for _ in range(MOST_WAITING // MOST_AT_ONCE + 1):
            pass_by_hand(sock, b"x", [0] * MOST_AT_ONCE)
            assert await connection.receive() == b"x"  # and the test does not receive the descriptors
    assert "wait for receive_fds" in str(caught.value.__cause__)
    await until_passed_are_closed()
    assert len(open_descriptors()) < len(before) + MOST_WAITING
    connection.abort()
    await until_passed_are_closed()
    assert len(open_descriptors()) == len(before) - 1


async def test_others_say_what_would_help(pair: Pair, tmp_path: Any) -> None:
    address = f"unix://{tmp_path}/s"
    async with AsyncExitStack() as stack:
        [listener] = await open_listeners(address)
        await stack.enter_async_context(listener)
        client = await stack.enter_async_context(await gain_trio.connect(address))
        for connection in (pair[0], client):
            with pytest.raises(RuntimeError, match=r"send_fds\(\) needs a Unix connection .* pass_fds=True"):
                await connection.send_fds(b"x", [0])
            with pytest.raises(RuntimeError, match=r"receive_fds\(\) needs a Unix connection .* pass_fds=True"):
                await connection.receive_fds(1, 1)


async def test_a_connection_without_pass_fds_drops_them(tmp_path: Any) -> None:
    """The kernel refuses them to the sender, or drops them; nothing leaks."""
    address = f"unix://{tmp_path}/s"
    [listener] = await open_listeners(address)
    async with listener:
        client = await gain_trio.connect(address, pass_fds=True)
        served = await listener.accept()
    async with client, served:
        before = open_descriptors()
        try:
            await client.send_fds(b"x", [0])
        except PermissionError:
            await client.send(b"x")
        assert await served.receive() == b"x"
        assert open_descriptors() == before


async def test_serve(tmp_path: Any) -> None:
    async def give_back(connection: Connection) -> None:
        while True:
            data, descriptors = await connection.receive_fds(100, 10)
            if not data:
                return
            await connection.send_fds(data, descriptors)
            close_all(descriptors)

    address = f"unix://{tmp_path}/s"
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda **status: gain_trio.serve(give_back, address, pass_fds=True, **status))
        async with await gain_trio.connect(address, pass_fds=True) as client:
            with tempfile.TemporaryFile() as file:
                for _ in range(100):
                    await client.send_fds(b"ball", [file])
                    data, [received] = await client.receive_fds(100, 10)
                    assert data == b"ball"
                    assert same_file(received, file.fileno())
                    os.close(received)
        nursery.cancel_scope.cancel()


async def test_detach_with_descriptors_waiting(raw: tuple[socket.socket, Connection]) -> None:
    sock, connection = raw
    pass_by_hand(sock, b"x", [0])
    assert connection.peek() == b"x"
    with pytest.raises(RuntimeError, match="call receive_fds"):
        await connection.detach()
    data, descriptors = await connection.receive_fds(10, 10)
    close_all(descriptors)
    plain, rest = await connection.detach()
    with plain:
        assert (type(plain), rest) == (socket.socket, b"")
        assert is_open(plain.fileno())


async def test_detach_while_descriptors_arrive(raw: tuple[socket.socket, Connection]) -> None:
    """Another task receives while it flushes."""
    sock, connection = raw
    with socket.socket(fileno=os.dup(connection.fileno())) as same:
        fill(same)
    await connection.send(b"queued")

    async def detach() -> None:
        with pytest.raises(RuntimeError, match="has not returned"):
            await connection.detach()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(detach)
        await wait_all_tasks_blocked()
        pass_by_hand(sock, b"x", [0, 0])
        assert await connection.receive() == b"x"
        read_available(sock)
    _data, descriptors = await connection.receive_fds(10, 10)
    assert len(descriptors) == 2, "the connection goes on, and has them"
    close_all(descriptors)

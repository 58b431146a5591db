"""A peer that has reset the connection, or closed its end of a Unix socket, has no requests worked off any more.

What it sent before can be received, as far as the kernel has it.  But as soon as the kernel has said that the connection is
broken, the first answer fails, and not the one that is too much for a queue.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from typing import TypeAlias

import pytest
import trio
import trio.testing
from support.pairs import PATIENCE, until

from gain_trio import Connection, Marks
from gain_trio._http import http
from gain_trio._http._http_handler import PIECE

pytestmark = [pytest.mark.connections, pytest.mark.features]

Sockets: TypeAlias = tuple[socket.socket, socket.socket]

LINES = 2000
REQUESTS = b"request\n" * LINES


def tcp_pair() -> Sockets:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname(), timeout=PATIENCE)
        return one, listener.accept()[0]


@pytest.fixture(params=[tcp_pair, socket.socketpair], ids=["tcp", "unix"])
def sockets(request: pytest.FixtureRequest) -> Iterator[Sockets]:
    one, other = request.param()
    with one, other:
        yield one, other


def end(peer: socket.socket) -> None:
    """End a connection with a reset; a Unix socket has none, and refuses further sends instead."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


async def answered_lines(connection: Connection) -> int:
    """The number of answered lines before the connection broke."""
    answered = 0
    with pytest.raises(trio.BrokenResourceError) as caught:
        while line := await connection.receive_until(b"\n", max_bytes=100):
            await connection.send(line)
            answered += 1
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno in (errno.ECONNRESET, errno.EPIPE)
    return answered


async def test_requests_of_a_peer_that_is_gone_are_not_answered(sockets: Sockets) -> None:
    peer, served = sockets
    async with Connection.from_socket(served) as connection:
        peer.sendall(REQUESTS)
        end(peer)
        assert await answered_lines(connection) == 0


async def test_a_peer_that_goes_while_it_is_served(sockets: Sockets) -> None:
    peer, served = sockets
    async with Connection.from_socket(served) as connection:
        peer.sendall(b"first\n")
        line = await connection.receive_until(b"\n", max_bytes=100)
        await connection.send(line)
        await connection.flush()
        peer.sendall(REQUESTS)
        end(peer)
        await trio.testing.wait_all_tasks_blocked()
        assert await answered_lines(connection) == 0


async def test_the_handler_http_reads_no_more_of_a_body() -> None:
    peer, served = tcp_pair()
    head = b"POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"1\r\nx\r\n" * (12 * PIECE // 6)
    with peer, served:
        async with Connection.from_socket(served) as connection:
            peer.sendall(head + chunks)
            end(peer)
            await trio.testing.wait_all_tasks_blocked()
            await http(connection)
            assert connection.bytes_received - connection.inbound_buffered <= 2 * PIECE


async def test_what_had_arrived_is_received_and_then_the_reset(sockets: Sockets) -> None:
    peer, served = sockets
    is_unix = served.family == socket.AF_UNIX
    async with Connection.from_socket(served) as connection:
        peer.sendall(REQUESTS)
        end(peer)
        await trio.testing.wait_all_tasks_blocked()
        assert await connection.receive_exactly(len(REQUESTS)) == REQUESTS
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError):
                await connection.send(b"answer")
        if is_unix:
            assert await connection.receive() == b""
        else:
            with pytest.raises(trio.BrokenResourceError) as caught:
                await connection.receive()
            assert isinstance(caught.value.__cause__, ConnectionResetError)


async def test_a_flush_of_what_the_kernel_has_is_none_that_fails(sockets: Sockets) -> None:
    """A peer that has its answer may reset the connection; that is not the handler's concern."""
    peer, served = sockets
    async with Connection.from_socket(served) as connection:
        await connection.send(b"answer")
        await connection.flush()
        assert peer.recv(100) == b"answer"
        end(peer)
        await trio.testing.wait_all_tasks_blocked()
        await connection.flush()


async def test_a_reset_after_the_end_with_a_full_queue() -> None:
    """The peer has shut down its side first, so that the end behind the queue has been noticed before."""
    peer, served = tcp_pair()
    marks = Marks(receive_high=1000, receive_low=100)
    with peer:
        async with Connection.from_socket(served, marks=marks) as connection:
            peer.sendall(REQUESTS)
            await until(lambda: connection.inbound_buffered >= 1000)
            peer.shutdown(socket.SHUT_WR)
            await trio.testing.wait_all_tasks_blocked()
            end(peer)
            await trio.testing.wait_all_tasks_blocked()
            assert await answered_lines(connection) == 0


async def test_sends_to_a_peer_that_has_shut_down_its_side_go_on(sockets: Sockets) -> None:
    peer, served = sockets
    async with Connection.from_socket(served) as connection:
        peer.sendall(REQUESTS)
        peer.shutdown(socket.SHUT_WR)
        await trio.testing.wait_all_tasks_blocked()
        async for data in connection:
            await connection.send(data)
        await connection.send_eof()
        await trio.testing.wait_all_tasks_blocked()
        answer = bytearray()
        while data := peer.recv(65536):
            answer += data
        assert answer == REQUESTS
        with pytest.raises(trio.ClosedResourceError):
            await connection.send(b"more")


async def test_servers_of_callbacks_answer_no_peer_that_is_gone(sockets: Sockets) -> None:
    """They are told of the bytes first, and the first thing that is written fails."""
    peer, served = sockets
    async with Connection.from_socket(served) as connection:
        peer.sendall(REQUESTS)
        end(peer)
        assert await connection._wait_change(0) == len(REQUESTS)
        with pytest.raises(trio.BrokenResourceError):
            connection._send_nowait(b"answer")
        with pytest.raises(trio.BrokenResourceError):
            await connection._wait_change(0)

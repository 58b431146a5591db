"""The end of a stream is told, however much is queued in front of it and however it came together with the last bytes.

On the ring these are the cases in which the kernel does not wake a receive again; see the essay of _ffi/fastpath/stream.c.
Small buffers make more than 32 receives of little data, which is what it takes.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias

import pytest
import trio
import trio.testing
from support.pairs import MEBIBYTE, PATIENCE, QUIET, pattern
from support.runs import WaitCounter, ring_run

import gain_trio
from gain_trio import Connection, Feature, Marks

pytestmark = [pytest.mark.connections, pytest.mark.features]

End: TypeAlias = Literal["eof", "reset"]

SMALL_BUFFERS = {"buffer_size": 100, "buffer_count": 1024}
SIZES = [1, 3200, 3300, 5000, 12_000, 60_000]


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname(), timeout=PATIENCE)
        return one, listener.accept()[0]


@pytest.fixture(params=[tcp_pair, socket.socketpair], ids=["tcp", "unix"])
def sockets(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = request.param()
    with one, other:
        yield one, other


def end(peer: socket.socket, how: End) -> None:
    """Shut down, or let the other side see a reset."""
    if how == "eof":
        peer.shutdown(socket.SHUT_WR)
        return
    peer.setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )  # TCP; a Unix socket needs unread bytes
    peer.close()


async def receive_to(how: End, connection: Connection) -> int:
    received = 0
    with trio.fail_after(PATIENCE):
        try:
            async for data in connection:
                received += len(data)
        except trio.BrokenResourceError:
            assert how == "reset"
        else:
            assert how == "eof"
    return received


@pytest.mark.parametrize("unwanted", [Feature(0), Feature.BUFFER_INCREMENT], ids=["", "plain_buffers"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("how", ["eof", "reset"])
def test_the_end_was_there_before_the_receive(
    sockets: tuple[socket.socket, socket.socket], how: End, size: int, unwanted: Feature
) -> None:
    peer, served = sockets
    served.send(b"unread")
    peer.sendall(b"x" * size)

    async def main() -> int:
        async with Connection.from_socket(served) as connection:
            end(peer, how)  # nothing has run since, so nothing receives yet
            return await receive_to(how, connection)

    assert ring_run(main, unwanted=unwanted, **SMALL_BUFFERS) == size


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("how", ["eof", "reset"])
def test_the_end_comes_together_with_the_last_bytes(
    sockets: tuple[socket.socket, socket.socket], how: End, size: int
) -> None:
    peer, served = sockets
    served.send(b"unread")

    async def main() -> int:
        received = 0

        async def receive() -> None:
            nonlocal received
            received = await receive_to(how, connection)

        async with Connection.from_socket(served) as connection, trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            peer.sendall(b"x" * size)
            end(peer, how)
        return received

    assert ring_run(main, **SMALL_BUFFERS) == size


@pytest.mark.parametrize("how", ["eof", "reset"])
def test_the_end_behind_what_is_taken_bit_by_bit(sockets: tuple[socket.socket, socket.socket], how: End) -> None:
    """The queue is full again and again, so receiving stops and goes on, with the peer gone."""
    peer, served = sockets
    served.send(b"unread")

    async def main() -> int:
        marks = Marks(receive_high=5000, receive_low=100)
        async with Connection.from_socket(served, marks=marks) as connection:
            peer.sendall(b"x" * 60_000)
            end(peer, how)
            return await receive_to(how, connection)

    assert ring_run(main, **SMALL_BUFFERS) == 60_000


def test_the_end_after_a_detach_that_was_cancelled(sockets: tuple[socket.socket, socket.socket]) -> None:
    """Whatever watches for the end goes on."""
    peer, served = sockets

    async def main() -> int:
        async with Connection.from_socket(served) as connection:
            await trio.testing.wait_all_tasks_blocked()
            with trio.CancelScope() as scope:
                scope.cancel()
                await connection.detach()
            peer.sendall(b"x" * 5000)
            peer.shutdown(socket.SHUT_WR)
            return await receive_to("eof", connection)

    assert ring_run(main, **SMALL_BUFFERS) == 5000


def test_nothing_of_ours_keeps_a_detached_socket_open(sockets: tuple[socket.socket, socket.socket]) -> None:
    peer, served = sockets
    peer.settimeout(PATIENCE)

    async def main() -> None:
        connection = Connection.from_socket(served)
        await trio.testing.wait_all_tasks_blocked()
        sock, _queued = await connection.detach()
        sock.close()
        assert peer.recv(1) == b""

    ring_run(main)


# --- a peer that has shut down its side, and reads on ---

MUCH = 8 * MEBIBYTE


def read_all(peer: socket.socket) -> bytes:
    data = bytearray()
    while piece := peer.recv(65536):
        data += piece
    return bytes(data)


@pytest.mark.parametrize("how", ["send", "pieces", "file"])
async def test_a_half_closed_peer_gets_everything(
    sockets: tuple[socket.socket, socket.socket], how: str, tmp_path: Path
) -> None:
    """The peer half-closes in the middle of the data, and gets the rest even if the server closes then."""
    peer, served = sockets
    peer.settimeout(PATIENCE)
    data = pattern(MUCH)
    path = tmp_path / "file"
    path.write_bytes(data)

    async def send_all() -> None:
        async with Connection.from_socket(served) as connection:
            assert await connection.receive() == b"?"
            if how == "file":
                await connection.send_file(path)
            for start in range(0, MUCH if how != "file" else 0, MUCH if how == "send" else 100_000):
                await connection.send(data[start : start + (MUCH if how == "send" else 100_000)])
            assert await connection.receive() == b""

    def ask_and_read() -> bytes:
        peer.sendall(b"?")
        begun = peer.recv(1, socket.MSG_PEEK)
        peer.shutdown(socket.SHUT_WR)
        return read_all(peer) if begun else begun

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all)
        assert await trio.to_thread.run_sync(ask_and_read) == data


@pytest.mark.parametrize("how", ["send", "file"])
def test_waiting_for_a_half_closed_peer_does_not_spin(
    sockets: tuple[socket.socket, socket.socket], how: str, tmp_path: Path
) -> None:
    peer, served = sockets
    path = tmp_path / "file"
    path.write_bytes(pattern(MUCH))
    counter = WaitCounter()

    async def main() -> int:
        async with trio.open_nursery() as nursery:
            connection = Connection.from_socket(served)
            nursery.start_soon(
                connection.send_file if how == "file" else connection.send, path if how == "file" else path.read_bytes()
            )
            await trio.sleep(QUIET)  # it is under way, and the kernel's buffers are full
            peer.shutdown(socket.SHUT_WR)
            await trio.sleep(QUIET)
            before = counter.waits
            await trio.sleep(QUIET)
            waits = counter.waits - before
            nursery.cancel_scope.cancel()
        connection.abort()
        return waits

    assert gain_trio.run(main, instruments=[counter]) < 10

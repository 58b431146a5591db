"""The progress of a send: the bytes that the kernel has accepted, and those of them that the peer has acknowledged."""

from __future__ import annotations

import errno
import functools
import itertools
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import trio
from support.pairs import MEBIBYTE, Pair, clog, open_trio_pair, receive_all, receive_exactly, until
from trio.testing import MockClock, wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection, Marks
from gain_trio._transports._peer_progress import STALL, CloseWait, PeerProgress, unacknowledged
from gain_trio.callbacks import EventHandler, SlowReader

pytestmark = pytest.mark.connections

BIG = 24 * MEBIBYTE
"""More than the kernel holds for any pair."""
PIECE = 512 * 1024
TAKE = 64 * 1024
"""Less than what has the kernel report room, and enough for a peer with a small buffer to say that it has been taken."""

Send = Callable[[Connection], Awaitable[object]]

SENDS: dict[str, Send] = {
    "bytes": lambda connection: connection.send(bytes(BIG)),
    "bytearray": lambda connection: connection.send(bytearray(BIG)),
    "list": lambda connection: connection.send([bytes(BIG // 3), bytearray(BIG // 3), bytes(BIG // 3)]),
    "send_all": lambda connection: connection.send_all(bytes(BIG)),
}
every_send = pytest.mark.parametrize("send", SENDS.values(), ids=SENDS.keys())


async def take(connection: trio.abc.ReceiveStream, count: int) -> None:
    """Receive ``count`` bytes of any content."""
    while count > 0:
        data = await connection.receive_some(count)
        assert data
        count -= len(data)


@pytest.fixture
async def raw_pair(
    tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[Connection, trio.SocketStream]]:
    """A connection, and a peer of Trio's that receives nothing that it is not asked for."""
    kind = getattr(request, "param", "TCP")
    address = "tcp://127.0.0.1:0" if kind == "TCP" else f"unix://{tmp_path}/socket"
    [listener] = await gain_trio.open_listeners(address)
    async with listener:
        if kind == "TCP":
            sock = trio.socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, TAKE // 2)
            await sock.connect(listener.local_address)
            peer = trio.SocketStream(sock)
        else:
            peer = await trio.open_unix_socket(f"{tmp_path}/socket")
        connection = await listener.accept()
    yield connection, peer
    connection.abort()
    await trio.aclose_forcefully(peer)


TCP_AND_UNIX = pytest.mark.parametrize("raw_pair", ["TCP", "Unix"], indirect=True)


# --- counters ---


@every_send
async def test_what_the_kernel_has_taken_of_a_send_is_sent(any_pair: Pair, send: Send) -> None:
    """Each accepted part counts at once: otherwise a moving transfer would look like a stopped one."""
    connection, peer = any_pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, connection)
        await wait_all_tasks_blocked()
        taken = connection.bytes_sent
        assert 0 < taken < BIG
        received = 0
        while received < BIG // 2:
            await take(peer, PIECE)
            received += PIECE
            await wait_all_tasks_blocked(0.01)
        # The kernel holds some megabytes in either direction, and the rest of what was received was sent after that.
        assert connection.bytes_sent > taken
        assert connection.bytes_sent >= received
        nursery.cancel_scope.cancel()


async def test_what_the_kernel_has_taken_of_a_write_is_not_unsent(any_pair: Pair) -> None:
    """The same holds for callbacks and protocols, whose writes never wait."""
    connection, peer = any_pair
    outbound = connection._send_nowait(bytes(BIG))
    assert outbound <= connection.outbound_buffered + connection.bytes_sent
    await wait_all_tasks_blocked()
    before = connection.outbound_buffered
    assert 0 < before < BIG
    for _ in range(BIG // 2 // PIECE):
        await take(peer, PIECE)
        await wait_all_tasks_blocked(0.01)
    assert connection.outbound_buffered < before
    await take(peer, BIG - BIG // 2)
    await connection.flush()
    assert connection.outbound_buffered == 0


async def test_a_file_is_progress(any_pair: Pair, tmp_path: Path) -> None:
    connection, peer = any_pair
    (tmp_path / "file").write_bytes(bytes(BIG))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.send_file, tmp_path / "file")
        received = 0
        while received < BIG // 2:
            await take(peer, PIECE)
            received += PIECE
        await until(lambda: connection.bytes_sent >= received)
        assert connection.bytes_sent < BIG + MEBIBYTE
        nursery.cancel_scope.cancel()


async def test_a_push_offers_the_kernel_what_is_outbound(any_pair: Pair) -> None:
    connection, peer = any_pair
    connection._send_nowait(b"x" * 1000)
    assert connection._push() == 0
    assert connection._push() == 0
    connection._send_nowait(b"y" * 1000)
    assert await receive_exactly(peer, 2000) == b"x" * 1000 + b"y" * 1000


async def test_a_push_finds_room_that_the_kernel_has_not_told_of(any_pair: Pair) -> None:
    connection, peer = any_pair
    connection._send_nowait(bytes(BIG))
    await wait_all_tasks_blocked(0.05)
    left = connection._push()
    assert 0 < left < BIG
    async with trio.open_nursery() as nursery:
        nursery.start_soon(take, peer, BIG)
        while left:
            await trio.lowlevel.checkpoint()
            before, left = left, connection._push()
            assert left <= before
    connection._send_nowait(b"the end")
    assert await receive_exactly(peer, 7) == b"the end"


async def test_a_push_keeps_the_order_and_every_byte(any_pair: Pair) -> None:
    """Pushes, sends of the loop, and what is queued meanwhile take turns."""
    connection, peer = any_pair
    pieces = [bytes([number % 251]) * (number * 997 % 70000 + 1) for number in range(400)]
    received = bytearray()

    async def receive() -> None:
        received.extend(await receive_all(peer))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        for number, piece in enumerate(pieces):
            connection._send_nowait(piece)
            if number % 3 == 0:
                connection._push()
            if number % 7 == 0:
                await trio.lowlevel.checkpoint()
        await connection.aclose()
    assert bytes(received) == b"".join(pieces)


async def test_a_push_on_a_connection_that_cannot_send(pair: Pair) -> None:
    connection, peer = pair
    connection._send_nowait(bytes(BIG))
    await wait_all_tasks_blocked()
    peer.abort()
    await until(lambda: connection._push() == 0)
    with pytest.raises(trio.BrokenResourceError):
        connection._send_nowait(b"more")
    connection.abort()
    with pytest.raises(trio.ClosedResourceError):
        connection._push()


# --- write limits ---


class Writes(EventHandler):
    """Writes twenty times what may be unsent in one callback, to a peer that reads."""

    SIZE = 64 * 1024
    TIMES = 20

    def __init__(self) -> None:
        self.reasons: list[BaseException | None] = []

    def on_read(self, conn: gain_trio.callbacks.Conn, n: int) -> None:
        conn.discard(n)
        for _ in range(self.TIMES):
            conn.write(bytes(self.SIZE))

    def on_close(self, conn: gain_trio.callbacks.Conn, err: BaseException | None) -> None:  # noqa: ARG002 - see EventHandler
        self.reasons.append(err)


async def test_a_limit_is_for_what_the_kernel_does_not_take() -> None:
    """A callback that writes more than the limit in one go, all of which the kernel takes, has no slow reader."""
    handler = Writes()
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            functools.partial(gain_trio.callbacks.serve, handler, "tcp://127.0.0.1:0", write_limit=handler.SIZE)
        )
        async with await gain_trio.connect(f"tcp://127.0.0.1:{server.addresses[0][1]}") as client:
            for _ in range(3):
                await client.send(b"x")
                await take(client, handler.SIZE * handler.TIMES)
        await until(lambda: bool(handler.reasons))
        nursery.cancel_scope.cancel()
    assert handler.reasons == [None]


class Floods(Writes):
    TIMES = 400


async def test_a_peer_that_takes_nothing_is_over_the_limit() -> None:
    handler = Floods()
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            functools.partial(gain_trio.callbacks.serve, handler, "tcp://127.0.0.1:0", write_limit=handler.SIZE)
        )
        async with await gain_trio.connect(f"tcp://127.0.0.1:{server.addresses[0][1]}") as client:
            await client.send(b"x")
            await until(lambda: bool(handler.reasons))
        nursery.cancel_scope.cancel()
    [reason] = handler.reasons
    assert isinstance(reason, SlowReader)


# --- idleness ---


async def take_and_say_so(connection: Connection, peer: trio.SocketStream) -> None:
    """Receive a little, and go on when the peer's kernel has said so, for which the clock of these tests does not wait."""
    before = (connection.bytes_sent, connection._unacknowledged())
    await take(peer, TAKE)
    await until(lambda: (connection.bytes_sent, connection._unacknowledged()) != before)


@TCP_AND_UNIX
async def test_a_peer_that_takes_bytes_is_not_idle(
    raw_pair: tuple[Connection, trio.SocketStream], autojump_clock: MockClock
) -> None:
    """Each time it takes less than what makes the kernel report room, in less than the timeout."""
    connection, peer = raw_pair
    connection.idle_timeout = 10
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.send, bytes(BIG))
        await wait_all_tasks_blocked(0.05)
        for _ in range(20):
            await trio.sleep(4)
            await take_and_say_so(connection, peer)
            assert not connection._was_idle
        nursery.cancel_scope.cancel()
    connection.abort()


@TCP_AND_UNIX
async def test_what_the_kernel_holds_for_a_peer_is_on_its_way(
    raw_pair: tuple[Connection, trio.SocketStream], autojump_clock: MockClock
) -> None:
    """Nothing is unsent any more, and the peer still takes what was sent before."""
    connection, peer = raw_pair
    connection._send_nowait(bytes(BIG))
    await wait_all_tasks_blocked(0.05)
    connection._push()
    while connection.outbound_buffered:
        await take(peer, TAKE)
        await wait_all_tasks_blocked()
    if not unacknowledged(connection.fileno()):
        pytest.skip("this system does not tell what a peer has not taken")
    connection.idle_timeout = 10
    for _ in range(4):
        await trio.sleep(4)
        await take_and_say_so(connection, peer)
        assert not connection._was_idle


@TCP_AND_UNIX
async def test_a_peer_that_takes_nothing_is_idle(
    raw_pair: tuple[Connection, trio.SocketStream], autojump_clock: MockClock
) -> None:
    connection, _peer = raw_pair
    await clog(connection)
    await wait_all_tasks_blocked(0.1)
    connection.idle_timeout = 16
    start = trio.current_time()
    with pytest.raises(trio.BrokenResourceError) as caught:
        await connection.flush()
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ETIMEDOUT
    assert start + 16 <= trio.current_time() <= start + 17


def test_movement_between_two_looks() -> None:
    movement = PeerProgress()
    looks = [(5, 100, 0, 0), (6, 100, 0, 0), (7, 90, 0, 6), (8, 90, 0, 6), (9, 0, 0, 6), (10, 80, 0, 6)]
    for now, left, active_at, expected in looks:
        assert movement.look(now, active_at, 1000, left) == expected
    assert movement.look(20, 15, 2000, None) == 15


def test_a_connection_with_nothing_on_its_way_is_looked_at_twice() -> None:
    movement = PeerProgress()
    assert movement.next_look(0, 0, 32) == 16
    movement.look(16, 0, 10, 0)
    assert movement.next_look(16, 0, 32) == 32
    movement.look(32, 20, 10, 5)
    assert movement.next_look(32, 20, 32) == 34


# --- closing ---


class Feigned:
    """A connection whose peer takes what a test says."""

    close_timeout = 60.0

    def __init__(self) -> None:
        self.bytes_sent = 0
        self.left = 1000

    def _unacknowledged(self) -> int | None:
        return self.left


async def test_patience_with_a_peer_that_takes_nothing(autojump_clock: MockClock) -> None:
    start = trio.current_time()
    assert not await CloseWait(Feigned()).wait(trio.sleep_forever)
    assert trio.current_time() == start + STALL


@pytest.mark.parametrize("attribute", ["bytes_sent", "left"])
async def test_patience_ends_when_a_peer_stops(autojump_clock: MockClock, attribute: str) -> None:
    feigned = Feigned()
    start = trio.current_time()

    async def move() -> None:
        for _ in range(7):
            await trio.sleep(3)
            setattr(feigned, attribute, getattr(feigned, attribute) + 1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(move)
        assert not await CloseWait(feigned).wait(trio.sleep_forever)
    assert start + 21 + STALL * 0.8 <= trio.current_time() <= start + 21 + STALL


async def test_patience_has_an_end(autojump_clock: MockClock) -> None:
    feigned = Feigned()
    start = trio.current_time()

    async def move() -> None:
        while True:
            await trio.sleep(0.2)
            feigned.bytes_sent += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(move)
        assert not await CloseWait(feigned).wait(trio.sleep_forever)
        nursery.cancel_scope.cancel()
    assert trio.current_time() == start + 60


async def take_slowly(peer: trio.SocketStream, received: list[int]) -> None:
    """Some of what is there every four seconds, until the end."""
    while data := await peer.receive_some(PIECE):
        received.append(len(data))
        if sum(received) % (4 * PIECE) < len(data):
            await trio.sleep(4)


@TCP_AND_UNIX
async def test_a_close_waits_for_a_peer_that_goes_on_taking(
    raw_pair: tuple[Connection, trio.SocketStream], autojump_clock: MockClock
) -> None:
    connection, peer = raw_pair
    received: list[int] = []
    connection.close_timeout = 10_000
    connection._send_nowait(bytes(BIG))
    await wait_all_tasks_blocked()
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_slowly, peer, received)
        await connection.aclose()
        assert trio.current_time() - start > STALL
    assert sum(received) == BIG


async def test_a_close_has_a_bound_of_its_own(autojump_clock: MockClock) -> None:
    peer, connection = await open_trio_pair()
    received: list[int] = []
    assert connection.close_timeout == 60
    connection.close_timeout = 7
    connection._send_nowait(bytes(BIG))
    await wait_all_tasks_blocked()
    start = trio.current_time()
    closed_at: list[float] = []

    async def close() -> None:
        await connection.aclose()
        closed_at.append(trio.current_time())

    async with peer, trio.open_nursery() as nursery:
        nursery.start_soon(close)
        with pytest.raises(trio.BrokenResourceError):
            await take_slowly(peer, received)
    assert sum(received) < BIG
    assert closed_at == [start + 7]


@pytest.mark.parametrize(("seconds", "error"), [(-1, ValueError), (float("nan"), ValueError), ("5", TypeError)])
async def test_a_close_timeout_is_a_number_of_seconds(any_pair: Pair, seconds: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="close_timeout"):
        any_pair[0].close_timeout = seconds
    with pytest.raises(error, match="close_timeout"):
        gain_trio.ServerConfig(close_timeout=seconds)


async def test_a_server_says_how_long_its_connections_close() -> None:
    timeouts: list[float] = []

    async def handler(connection: Connection) -> None:
        timeouts.append(connection.close_timeout)

    for config in (gain_trio.ServerConfig(), gain_trio.ServerConfig(close_timeout=3)):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(
                functools.partial(gain_trio.serve, handler, "tcp://127.0.0.1:0", config=config)
            )
            async with await gain_trio.connect(f"tcp://127.0.0.1:{server.addresses[0][1]}") as client:
                assert await client.receive() == b""
            nursery.cancel_scope.cancel()
    assert timeouts == [60, 3]


class WritesAndCloses(EventHandler):
    def __init__(self) -> None:
        self.reasons: list[BaseException | None] = []

    def on_accept(self, conn: gain_trio.callbacks.Conn) -> None:
        conn.write(bytes(BIG))
        conn.close()

    def on_close(self, conn: gain_trio.callbacks.Conn, err: BaseException | None) -> None:  # noqa: ARG002 - see EventHandler
        self.reasons.append(err)


class Protocol:
    """Writes and closes, as one of asyncio's does."""

    lost: ClassVar[list[Exception | None]] = []

    def connection_made(self, transport: Any) -> None:
        transport.write(bytes(BIG))
        transport.close()

    def data_received(self, data: bytes) -> None: ...

    def eof_received(self) -> None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


@pytest.mark.parametrize("face", ["callbacks", "protocol", "handler"])
async def test_every_kind_of_server_waits_for_its_peer(autojump_clock: MockClock, face: str) -> None:
    handler = WritesAndCloses()
    Protocol.lost.clear()

    async def send_all(connection: Connection) -> None:
        connection._send_nowait(bytes(BIG))

    if face == "callbacks":
        serve = functools.partial(gain_trio.callbacks.serve, handler, "tcp://127.0.0.1:0")
    elif face == "protocol":
        protocol = gain_trio.asyncio_bridge.ProtocolHandler(Protocol, write_limit=BIG)  # type: ignore[arg-type]
        serve = functools.partial(gain_trio.serve, protocol, "tcp://127.0.0.1:0")
    else:
        serve = functools.partial(gain_trio.serve, send_all, "tcp://127.0.0.1:0")
    received: list[int] = []
    async with trio.open_nursery() as nursery:
        server = await nursery.start(functools.partial(serve, close_timeout=10_000))
        async with await trio.open_tcp_stream("127.0.0.1", server.addresses[0][1]) as peer:
            start = trio.current_time()
            await take_slowly(peer, received)
            assert trio.current_time() - start > 2 * STALL
        nursery.cancel_scope.cancel()
    assert sum(received) == BIG
    assert handler.reasons == ([None] if face == "callbacks" else [])
    assert Protocol.lost == ([None] if face == "protocol" else [])


# --- a program that reads slowly ---

UNREAD = 128 * 1024
"""More than a connection has received ahead of a program that waits for nothing."""


@pytest.mark.parametrize("count", [1000, TAKE])
async def test_the_peer_of_a_slow_reader_sees_progress_in_small_steps(count: int) -> None:
    # What a run receives ahead at a time, its peer cannot send for as long as the program works it off.
    peer, served = await open_trio_pair()
    async with peer, served, trio.open_nursery() as nursery:
        nursery.start_soon(peer.send_all, bytes(BIG))
        taken = 0
        while taken < 8 * UNREAD:
            taken += len(await served.receive(count))
            await wait_all_tasks_blocked()  # the program does something else
            assert served.bytes_received - taken <= UNREAD
        nursery.cancel_scope.cancel()


async def test_a_program_that_looks_at_its_queue_has_all_there_that_the_marks_allow() -> None:
    peer, served = await open_trio_pair()
    async with peer, served, trio.open_nursery() as nursery:
        nursery.start_soon(peer.send_all, bytes(BIG))
        await served.receive(1)
        await until(lambda: len(served.peek()) >= Marks().receive_high)
        nursery.cancel_scope.cancel()


@pytest.mark.skipif(os.environ.get("GAIN_TRIO_BACKEND") != "trio", reason="of connections over sockets")
@pytest.mark.parametrize(("pause", "most"), [(0.001, 256 * 1024), (1.0, 64 * 1024)], ids=["fast", "slow"])
async def test_over_sockets_a_slow_reader_receives_smaller_pieces(
    pause: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count()
    monkeypatch.setattr(
        "gain_trio._transports._backends._socket_receiving.time", SimpleNamespace(monotonic=lambda: next(clock) * pause)
    )
    peer, served = await open_trio_pair()
    async with peer, served, trio.open_nursery() as nursery:
        nursery.start_soon(peer.send_all, bytes(BIG))
        sizes = []
        for _ in range(40):
            await wait_all_tasks_blocked()  # the kernel's buffers are full
            sizes.append(len(await served.receive()))
        assert max(sizes) <= most
        assert max(sizes) > most // 2
        nursery.cancel_scope.cancel()

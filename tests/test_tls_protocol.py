"""TLS: what it sends and waits for by itself, renegotiations, and deadlines in the midst of that."""

from __future__ import annotations

import gc
import math
from typing import Any

import pytest
import trio
from support.certificates import open_tls_pair
from support.descriptors import is_open
from support.pairs import MEBIBYTE, pattern, receive_all, receive_exactly, until
from support.tls_pairs import TlsPair, clog
from trio.testing import MockClock, wait_all_tasks_blocked

from gain_trio import Connection, Marks
from gain_trio._transports._peer_progress import STALL
from gain_trio._transports._tls._tls_connection import TlsConnection
from gain_trio._transports._tls._tls_traffic import CHUNK, CONTROL_ROOM, PIECE

pytestmark = pytest.mark.connections

# --- what TLS itself sends and waits for ---


def tls_sends(connection: TlsConnection, data: bytes) -> None:
    """Send data like an answer of TLS itself, which a receiving task sends while other tasks do anything."""
    assert connection._engine.write(data) == len(data)
    connection._answered += connection._hand_down()


async def test_what_tls_sends_while_a_task_drains_keeps_its_place(tls_pair: TlsPair) -> None:
    """As a receiver's answer to a change of keys does."""
    client, served = tls_pair
    await clog(client)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.flush)
        await wait_all_tasks_blocked()
        for number in range(10):
            tls_sends(client, b"<%d>" % number)  # does not wait, and does not collide
        await served.send(b"the other direction")
        assert await client.receive() == b"the other direction"
        received = bytearray()
        while not received.endswith(b"<9>"):
            received += await served.receive()
        assert received.lstrip(b"\0") == b"".join(b"<%d>" % number for number in range(10))
    await client.send(b"and on it goes")
    assert await served.receive() == b"and on it goes"


async def test_a_cancelled_drain_leaves_nothing_behind_that_tls_had_to_send(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    await clog(client)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.flush)
        await wait_all_tasks_blocked()
        tls_sends(client, b"urgent")
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.aclose)
        assert (await receive_all(served)).lstrip(b"\0") == b"urgent"


async def test_a_peer_that_has_us_answer_for_ever_is_stopped(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    await clog(client)
    while client.outbound_buffered < Marks().send_high + CONTROL_ROOM:
        tls_sends(client, bytes(16384))
    received = []
    await served.send(b"more to answer")

    async def receive() -> None:
        received.append(await client.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await wait_all_tasks_blocked(0.05)
        assert not received
        nursery.start_soon(receive_all, served)  # a call of the test itself could wait for more than there is
        await until(lambda: bool(received))
        nursery.cancel_scope.cancel()
    assert received == [b"more to answer"]


async def test_much_sent_without_waiting_does_not_keep_it_from_receiving(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    served._send_nowait(bytes(16 * MEBIBYTE))
    assert served.outbound_buffered > Marks().send_high + CONTROL_ROOM
    await client.send(b"one")
    assert await served.receive() == b"one"
    await client.send(b"two")
    assert await served._wait_change(0) == 3


# --- a renegotiation ---


class Renegotiating:
    """An engine that has to hear of its peer before it encrypts."""

    def __init__(self, connection: TlsConnection) -> None:
        self._engine = connection._engine
        self.is_blocked = True
        self.is_patient = False
        """It is not enough to hear something."""
        connection._engine = self  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def write(self, data: bytes) -> int:
        return 0 if self.is_blocked else self._engine.write(data)

    def feed(self, data: bytes) -> None:
        self._engine.feed(data)
        self.is_blocked = self.is_patient


async def test_a_send_receives_in_a_renegotiation(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    Renegotiating(client)
    message = pattern(PIECE + 100_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, message)
        await wait_all_tasks_blocked(0.01)
        assert client.outbound_buffered == PIECE
        await served.send(b"go on")
        assert await receive_exactly(served, len(message)) == message
    assert client.outbound_buffered == 0
    assert client.inbound_buffered == 5
    assert await client.receive() == b"go on"


async def test_what_is_sent_without_waiting_in_a_renegotiation_is_kept(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    Renegotiating(client)
    for number in range(5):
        client._send_nowait(b"%d" % number)
    assert client.outbound_buffered == 5
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, b"cancelled before its turn")
            nursery.start_soon(client.receive)
            await wait_all_tasks_blocked(0.01)
            scope.cancel()
    await served.send(b"go on")
    assert await client.receive() == b"go on"
    await client.send(b"5")
    assert await receive_exactly(served, 6) == b"012345"


async def test_a_close_waits_for_a_renegotiation(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    Renegotiating(client)
    client._send_nowait(b"last")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.aclose)
        await wait_all_tasks_blocked(0.01)
        await served.send(b"go on")
        assert await receive_exactly(served, 4) == b"last"
        assert await served.receive() == b""


@pytest.mark.parametrize("call", ["receive", "_wait_change", "send", "flush"])
async def test_a_close_that_waits_for_a_renegotiation_refuses_calls_at_once(tls_pair: TlsPair, call: str) -> None:
    client, served = tls_pair
    engine = Renegotiating(client)
    engine.is_patient = True
    client._send_nowait(b"last")
    arguments = {"send": [b"nothing of this"], "_wait_change": [0]}.get(call, [])
    refused = []

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await getattr(client, call)(*arguments)
        refused.append(call)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked(0.01)
        nursery.start_soon(client.aclose)
        await until(lambda: bool(refused))
        with pytest.raises(trio.ClosedResourceError):
            client._send_nowait(b"too late")
        await served.send(bytes(MEBIBYTE))  # more than would be queued for a program
        await wait_all_tasks_blocked(0.01)
        engine.is_patient = False
        await served.send(b"go on")
        assert await receive_all(served) == b"last"


async def test_a_renegotiation_that_is_never_done_ends_in_a_reset(autojump_clock: MockClock) -> None:
    client, served = await open_tls_pair()
    Renegotiating(client)
    client._send_nowait(b"last")
    before = trio.current_time()
    await client.aclose()
    assert trio.current_time() - before == pytest.approx(STALL)
    with pytest.raises(trio.BrokenResourceError):
        await served.receive()
    served.abort()


async def test_a_renegotiation_with_a_peer_that_is_gone(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    Renegotiating(client).is_patient = True
    await served.aclose()
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError):
            await client.send(b"x")


async def test_a_send_in_a_renegotiation_does_not_fill_the_memory(tls_pair: TlsPair) -> None:
    client, served = tls_pair
    engine = Renegotiating(client)
    engine.is_patient = True
    data = pattern(4 * MEBIBYTE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, b"answer")
        nursery.start_soon(served.send, data)
        await wait_all_tasks_blocked(0.1)
        assert Marks().receive_high <= client.inbound_buffered < Marks().receive_high + CHUNK + 16384
        engine.is_patient = False
        assert await client.receive_exactly(len(data)) == data
        assert await receive_exactly(served, 6) == b"answer"


@pytest.mark.parametrize("call", ["receive", "receive_some", "receive_line"])
async def test_a_deadline_of_the_connection_below_does_no_harm(tls_pair: TlsPair, call: str) -> None:
    client, served = tls_pair

    class Late:
        """The connection below, with a deadline that has passed."""

        def __init__(self, below: Connection) -> None:
            self._below = below

        def __getattr__(self, name: str) -> Any:
            return getattr(self._below, name)

        async def receive(self, _max_bytes: int) -> bytes:
            await trio.lowlevel.checkpoint()
            raise trio.TooSlowError

    below = served._below
    served._below = Late(below)  # type: ignore[assignment]
    for _ in range(2):
        with pytest.raises(trio.TooSlowError):
            await getattr(served, call)()
    served._below = below
    await client.send(b"not too late\n")
    assert await served.receive_line() == b"not too late"
    await served.send(b"nor this")
    assert await client.receive() == b"nor this"


async def have_it_answer_for_ever(connection: TlsConnection) -> None:
    """Its peer does not read, and there is so much to answer that nothing more is received before it does."""
    await clog(connection)
    while connection.outbound_buffered < Marks().send_high + CONTROL_ROOM:
        tls_sends(connection, bytes(16384))


@pytest.mark.parametrize("call", ["receive", "_wait_change"])
@pytest.mark.parametrize("busy", [False, True], ids=["alone", "behind a flush"])
async def test_the_read_deadline_holds_while_tls_has_to_answer(
    tls_pair: TlsPair, mock_clock: MockClock, call: str, busy: bool
) -> None:
    client, served = tls_pair
    await have_it_answer_for_ever(client)
    too_slow = []

    async def receive() -> None:
        try:
            await getattr(client, call)(*([0] if call == "_wait_change" else []))
        except trio.TooSlowError as error:
            too_slow.append(str(error))

    async with trio.open_nursery() as nursery:
        if busy:
            nursery.start_soon(client.flush)
        client.write_deadline = trio.current_time() + 5 if not busy else math.inf
        for later in (False, True):  # it can be moved meanwhile
            client.read_deadline = math.inf if later else trio.current_time() + 20
            nursery.start_soon(receive)
            await wait_all_tasks_blocked(0.05)
            mock_clock.jump(10)  # the write deadline is none of a receive
            await wait_all_tasks_blocked(0.05)
            assert len(too_slow) == later
            client.read_deadline = trio.current_time() + 5
            mock_clock.jump(6)
            await wait_all_tasks_blocked(0.05)
        nursery.cancel_scope.cancel()
    assert too_slow == ["the connection's read deadline has passed"] * 2
    client.set_deadline(math.inf)
    await served.send(b"in time")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive_all, served)
        assert await client.receive() == b"in time"
        await client.aclose()


async def test_the_write_deadline_holds_behind_a_receiver_that_waits_for_room(
    tls_pair: TlsPair, mock_clock: MockClock
) -> None:
    client, _served = tls_pair
    await have_it_answer_for_ever(client)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.receive)
        await wait_all_tasks_blocked(0.05)
        client.write_deadline = trio.current_time() + 5
        late = []

        async def send() -> None:
            with pytest.raises(trio.TooSlowError, match="write deadline"):
                await client.send(b"nothing of this")
            late.append(trio.current_time())

        nursery.start_soon(send)
        await wait_all_tasks_blocked(0.05)
        mock_clock.jump(6)
        await wait_all_tasks_blocked(0.05)
        assert late
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("busy", [False, True], ids=["alone", "behind a receiver"])
async def test_the_write_deadline_and_no_other_holds_in_a_renegotiation(
    tls_pair: TlsPair, mock_clock: MockClock, busy: bool
) -> None:
    client, served = tls_pair
    Renegotiating(client)
    message = bytearray(pattern(200_000))
    client.read_deadline = math.inf if busy else trio.current_time() + 5
    client.write_deadline = trio.current_time() + 20
    late = []

    async def send() -> None:
        with pytest.raises(trio.TooSlowError, match="write deadline"):
            await client.send(message)
        late.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        if busy:
            nursery.start_soon(client.receive)
            await wait_all_tasks_blocked(0.01)
        nursery.start_soon(send)
        await wait_all_tasks_blocked(0.05)
        mock_clock.jump(10)
        await wait_all_tasks_blocked(0.05)
        assert not late
        mock_clock.jump(11)
        await wait_all_tasks_blocked(0.05)
        assert late
        nursery.cancel_scope.cancel()
    assert client.read_deadline < math.inf or busy
    client.set_deadline(math.inf)
    await served.send(b"go on")
    assert await client.receive() == b"go on"
    assert await receive_exactly(served, len(message)) == message


async def test_a_dropped_connection_warns_and_closes() -> None:
    client, served = await open_tls_pair()
    descriptor = client.fileno()
    with pytest.warns(ResourceWarning, match="unclosed"):
        del client
        gc.collect()
    await until(lambda: not is_open(descriptor))
    with pytest.raises(trio.BrokenResourceError):
        await served.receive()
    await served.aclose()


async def test_the_end_behind_data_is_found_at_once(tls_pair: TlsPair) -> None:
    """Whatever lies in one piece: bytes, close_notify and the end of what is below."""
    client, served = tls_pair
    await client.send(b"last")
    await client.aclose()
    await until(lambda: served._below.inbound_buffered > 4)
    await wait_all_tasks_blocked(0.01)
    assert await served.receive() == b"last"
    assert served._ended

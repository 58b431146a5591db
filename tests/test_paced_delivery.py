"""A callback is given as many bytes as it works off in about a turn, so a flood does not hold up the rest."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from support.fuzz import given, st

import gain_trio
from gain_trio._callback_base import Pace, PacedDelivery
from gain_trio._io_manager import waits_of
from gain_trio._transports import SLICE_NS
from gain_trio.asyncio_bridge import ProtocolHandler
from gain_trio.callbacks import Conn, EventHandler

pytestmark = pytest.mark.connections

LINES = 256 * 1024


def test_a_slow_callback_gets_less_and_a_fast_one_more() -> None:
    now = 0
    a_byte = 0  # nanoseconds that the callback takes for it

    def callback(size: int) -> int:
        nonlocal now
        now += size * a_byte
        return size

    pace = Pace()
    delivery = PacedDelivery(pace, lambda: now, lambda: now)
    sizes = [delivery.deliver(callback, 1 << 20) for _ in range(6)]
    assert sizes == [8192, 16384, 32768, 65536, 65536, 65536]
    a_byte = 1_000  # a turn is 1,000 bytes
    assert [delivery.deliver(callback, 1 << 20) for _ in range(3)] == [65536, 65536, 1000]
    assert PacedDelivery(pace, lambda: now, lambda: now).deliver(callback, 1 << 20) == 1000, (
        "a new connection of the same server"
    )
    a_byte = 100  # a turn is 10,000 bytes
    sizes = [delivery.deliver(callback, 1 << 20) for _ in range(4)]
    assert sizes == [1000, 2000, 4000, 8000]
    assert delivery.deliver(callback, 1 << 20) == 8000
    a_byte = 1_000_000
    sizes = [delivery.deliver(callback, 1 << 20) for _ in range(4)]
    assert sizes == [8000, 8000, PacedDelivery.SMALLEST, PacedDelivery.SMALLEST]
    assert pace.size == PacedDelivery.SMALLEST
    assert delivery.deliver(callback, 5) == 5


def test_a_callback_that_takes_its_time_for_a_call_is_called_no_more_often_than_need_be() -> None:
    now = 0

    def callback(size: int) -> int:
        nonlocal now
        now += 1_200_000 + size
        return size

    delivery = PacedDelivery(Pace(), lambda: now, lambda: now)
    sizes = [delivery.deliver(callback, 1 << 20) for _ in range(100)]
    assert min(sizes) >= PacedDelivery.FIRST // 4
    assert sum(sizes) / len(sizes) > PacedDelivery.FIRST // 2


def test_small_pieces_grow_again_where_a_call_takes_its_time() -> None:
    now = 0
    pace = Pace(PacedDelivery.SMALLEST)
    delivery = PacedDelivery(pace, lambda: now, lambda: now)

    def callback(size: int) -> int:
        nonlocal now
        now += 500_000 + size
        return size

    sizes = [delivery.deliver(callback, 1 << 20) for _ in range(20)]
    assert sizes[0] == PacedDelivery.SMALLEST
    assert sizes[-1] == PacedDelivery.LARGEST


def test_what_is_small_enough_is_given_whole_and_counts_as_well() -> None:
    now = 0
    given: list[tuple[str, int]] = []

    def callback(receiver: str, size: int) -> None:
        nonlocal now
        now += size * 1_000
        given.append((receiver, size))

    pace = Pace()
    delivery = PacedDelivery(pace, lambda: now, lambda: now)
    delivery.deliver_whole(callback, "a connection", 800)
    assert delivery.size == PacedDelivery.FIRST
    assert given == [("a connection", 800)]
    for _ in range(2):
        delivery.deliver_whole(callback, "a connection", 8000)
    assert delivery.size == 1000


def test_a_busy_machine_makes_no_piece_smaller() -> None:
    now = cpu = 0

    def callback(size: int) -> int:
        nonlocal now, cpu
        now += 20_000_000
        cpu += 10_000
        return size

    delivery = PacedDelivery(Pace(), lambda: now, lambda: cpu)
    sizes = [delivery.deliver(callback, 1 << 20) for _ in range(10)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == PacedDelivery.LARGEST


@given(st.lists(st.tuples(st.integers(1, 1 << 16), st.integers(0, 20 * SLICE_NS)), max_size=30))
def test_what_is_quick_by_its_size_teaches_nothing(pieces: list[tuple[int, int]]) -> None:
    """A connection on the ring delivers such pieces by itself, and has nothing to report of those within a turn."""
    delivery = PacedDelivery(Pace())
    for delivered, elapsed in pieces:
        delivery.learn(min(delivered, delivery.size), elapsed)
        before = (delivery.size, delivery.quick_size, delivery._clock, delivery._first_slow)
        assert before[1] <= delivery.size
        if delivery._clock is delivery._cpu_clock:
            assert delivery.quick_size == 0
        for quick in {1, delivery.quick_size // 2, delivery.quick_size} if delivery.quick_size else ():
            for time in (0, SLICE_NS // 2, SLICE_NS):
                delivery.learn(quick, time)
                assert (delivery.size, delivery.quick_size, delivery._clock, delivery._first_slow) == before


def test_another_clock_than_the_monotonic_one_leaves_nothing_to_the_connection() -> None:
    assert PacedDelivery(Pace(), lambda: 0).quick_size == 0
    assert PacedDelivery(Pace()).quick_size == PacedDelivery.FIRST - 1


async def test_the_time_of_a_callback_that_waits_is_that_of_others() -> None:
    now = 0
    waits = functools.partial(waits_of, trio.lowlevel.current_task())
    pace = Pace()
    delivery = PacedDelivery(pace, lambda: now, lambda: now)

    async def callback(size: int) -> None:
        nonlocal now
        now += size * 1_000
        if does_wait:
            await trio.lowlevel.checkpoint()

    does_wait = True
    sizes = [await delivery.deliver_async(callback, 1 << 20, waits) for _ in range(5)]
    assert sizes == [8192, 16384, 32768, 65536, 65536]
    does_wait = False
    sizes = [await delivery.deliver_async(callback, 1 << 20, waits) for _ in range(3)]
    assert sizes == [65536, 65536, 1000]


class Told(EventHandler):
    """Takes a turn for every 512 bytes of the made-up clock, and remembers the sizes."""

    def __init__(self, work: Callable[[int], None]) -> None:
        self.work = work
        self.sizes: list[int] = []

    def on_read(self, conn: Conn, n: int) -> Any:
        self.sizes.append(n)
        self.work(n)
        conn.discard(n)


class ToldAsync(Told):
    """The same by an async callback that never waits."""

    async def on_read(self, conn: Conn, n: int) -> None:
        Told.on_read(self, conn, n)


class ToldProtocol(asyncio.Protocol):
    """The same of asyncio's kind."""

    def __init__(self, work: Callable[[int], None], sizes: list[int]) -> None:
        self.work = work
        self.sizes = sizes

    def data_received(self, data: bytes) -> None:
        self.sizes.append(len(data))
        self.work(len(data))


@pytest.mark.parametrize("face", ["callbacks", "async callbacks", "protocol"])
async def test_a_flood_of_slow_lines_comes_in_small_pieces(face: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0

    def work(size: int) -> None:
        nonlocal now
        now += size * 2_000

    original = PacedDelivery.__init__
    monkeypatch.setattr(PacedDelivery, "__init__", lambda self, pace: original(self, pace, lambda: now, lambda: now))
    sizes: list[int] = []
    start: Callable[..., Awaitable[None]]
    if face == "protocol":
        start = _starter(gain_trio.serve, ProtocolHandler(lambda: ToldProtocol(work, sizes)))
    else:
        handler = Told(work) if face == "callbacks" else ToldAsync(work)
        sizes = handler.sizes
        start = _starter(gain_trio.callbacks.serve, handler)
    async with trio.open_nursery() as nursery:
        server = await nursery.start(start)
        client = await gain_trio.connect(server.addresses[0])
        async with client:
            await client.send(b"\n" * LINES)
            await client.send_eof()
            assert await client.receive() == b""
        nursery.cancel_scope.cancel()
    assert sum(sizes) == LINES
    # After the first piece none is larger than what a turn is good for.
    assert sizes[0] <= PacedDelivery.FIRST
    assert max(sizes[2:]) <= 512


def _starter(serve: Callable[..., Awaitable[None]], handler: object) -> Callable[..., Awaitable[None]]:
    async def start(**status: object) -> None:
        await serve(handler, "tcp://127.0.0.1:0", **status)

    return start

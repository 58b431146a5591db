"""Calling back for bytes that have arrived: by a loop in C on the ring, and by one in Python on other connections."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest
import trio
from support.handler_tasks import as_handler
from support.pairs import Pair
from support.runs import ENDLESS, set_ring_slices
from trio.testing import wait_all_tasks_blocked

from gain_trio import Connection
from gain_trio._callback_base import deliver_by
from gain_trio._callback_base._delivering import Deliver
from gain_trio._transports import CHANGED, ENDED

pytestmark = pytest.mark.connections

# What a wait in C raises when its callback awaits or ends it; that of TLS refuses to be ended.
AWAITED_AMIDST = r"being awaited already|is in progress"
ENDED_AMIDST = r"ended by the callback|is in progress"


@pytest.fixture
def pair(any_pair: Pair) -> Pair:
    """Every kind of connection: the client's end, and the one that calls back."""
    return any_pair


Delivering: TypeAlias = Callable[[Connection], Deliver]


def deliver_in_handler(served: Connection) -> Deliver:
    def deliver(*arguments: Any) -> Awaitable[int]:
        async def handler() -> int:
            return await deliver_by(served)(*arguments)

        return as_handler(served, handler)

    return deliver


@pytest.fixture(params=[deliver_by, deliver_in_handler], ids=["task", "handler"])
def delivering(request: pytest.FixtureRequest) -> Delivering:
    """The loop in a plain task, and in one whose coroutine is exchanged, which takes no part from the third delivery on."""
    found: Delivering = request.param
    return found


async def test_the_callback_gets_bytes_and_the_caller_the_rest(pair: Pair, delivering: Delivering) -> None:
    client, served = pair
    got: list[bytes] = []

    def callback(first: object, count: int) -> None:
        assert first == "first"
        data = served._take_exactly(count)
        assert data is not None
        got.append(data)
        served._send_nowait(data.upper())

    async def talk() -> None:
        for word in (b"one", b"two", b"three"):
            await client.send(word)
            assert await client.receive_exactly(len(word)) == word.upper()
        await client.send(b"x" * 101)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk)
        assert await delivering(served)(callback, "first", 0, 100, 0, None) == 101
    assert b"".join(got) == b"onetwothree"
    assert served._take_exactly(101) == b"x" * 101
    served._note_change()
    assert await delivering(served)(callback, "first", 0, 100, 0, None) == CHANGED
    await client.aclose()
    assert await delivering(served)(callback, "first", 0, 100, 0, None) == ENDED


async def test_what_the_callback_raises_ends_the_wait_and_nothing_else(pair: Pair, delivering: Delivering) -> None:
    client, served = pair

    def fail(_first: object, count: int) -> None:
        raise ZeroDivisionError(count)

    await client.send(b"12345")
    with pytest.raises(ZeroDivisionError, match="5"):
        await delivering(served)(fail, None, 0, 100, 0, None)
    assert await served.receive() == b"12345"
    await served.send(b"sound")
    assert await client.receive_exactly(5) == b"sound"


async def test_a_stop_iteration_is_no_answer(pair: Pair, delivering: Delivering) -> None:
    """As out of any coroutine."""
    client, served = pair
    await client.send(b"x")
    with pytest.raises(RuntimeError, match="StopIteration") as raised:
        await delivering(served)(lambda _first, _count: next(iter(())), None, 0, 100, 0, None)
    assert isinstance(raised.value.__cause__, StopIteration)


async def test_a_callback_may_cancel_its_task_or_close_the_connection(pair: Pair, delivering: Delivering) -> None:
    client, served = pair
    await client.send(b"1")
    with trio.CancelScope() as scope:
        await delivering(served)(lambda _first, _count: scope.cancel(), None, 0, 100, 0, None)
    assert scope.cancelled_caught
    assert served._take_exactly(1) == b"1"
    await client.send(b"2")
    with pytest.raises(trio.ClosedResourceError):
        await delivering(served)(lambda _first, _count: served.abort(), None, 0, 100, 0, None)


async def test_a_wait_that_is_cancelled_loses_nothing(pair: Pair, delivering: Delivering) -> None:
    client, served = pair
    got: list[int] = []
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(delivering(served), lambda _first, count: got.append(count), None, 0, 100, 0, None)
            await wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await served.receive()
            scope.cancel()
    assert not got
    await client.send(b"12")
    assert await served.receive_exactly(2) == b"12"


async def test_the_wait_itself_is_no_hindrance_to_its_callback(pair: Pair, delivering: Delivering) -> None:
    """To a callback no wait is in progress, as there is none in a loop."""
    client, served = pair
    refused: list[bool] = []

    def callback(_first: object, count: int) -> None:
        call = served._fill(count)
        try:
            call.send(None)
        except StopIteration:
            refused.append(False)
        except trio.BusyResourceError:
            refused.append(True)
        finally:
            call.close()
        served._note_change()

    await client.send(b"1")
    assert await delivering(served)(callback, None, 0, 100, 0, None) == CHANGED
    assert refused == [False]


async def test_others_have_a_turn_amidst_bytes_without_end(pair: Pair, delivering: Delivering) -> None:
    client, served = pair
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async def send() -> None:
        for _ in range(300):
            await client.send(b"x" * 1000)
        await client.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        nursery.start_soon(send)
        answer = await delivering(served)(lambda _first, count: served._take_exactly(count), None, 0, 1 << 20, 0, None)
        nursery.cancel_scope.cancel()
    assert answer == ENDED
    assert turns > 0


# --- callbacks that are timed ---


def never_slow() -> None:
    """On the ring no callback takes longer than a time slice from now on."""
    set_ring_slices(ENDLESS)


def always_slow() -> None:
    """On the ring every callback takes longer than a time slice from now on."""
    set_ring_slices(0)


async def test_every_large_piece_is_delivered_once_by_the_callback_or_the_caller(
    pair: Pair, delivering: Delivering
) -> None:
    client, served = pair
    never_slow()
    delivered: list[int] = []

    def callback(_first: object, count: int) -> None:
        assert served._take_exactly(count) == b"x" * count
        delivered.append(count)
        served._send_nowait(b"go on")

    async def serve() -> None:
        while (n := await delivering(served)(callback, None, 0, 10, 1000, lambda *_piece: pytest.fail("quick"))) > 0:
            callback(None, n)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        for size in (5, 900, 1000, 2000):
            await client.send(b"x" * size)
            await client.receive_exactly(5)
        await client.aclose()
    assert sum(delivered) == 3905


@pytest.mark.full_ring
async def test_a_slow_callback_ends_the_wait_when_the_caller_has_learned_that(
    pair: Pair, delivering: Delivering
) -> None:
    client, served = pair
    if not hasattr(served, "_deliver"):
        pytest.skip("this connection has no loop in C")
    always_slow()
    learned: list[tuple[int, int]] = []

    def callback(_first: object, count: int) -> None:
        assert served._take_exactly(count) is not None
        if count == 10 and not learned:
            served._send_nowait(b"go on")

    def learn(count: int, nanoseconds: int) -> None:
        learned.append((count, nanoseconds))

    async def send() -> None:
        await client.send(b"x" * 10)  # is not timed
        await client.receive_exactly(5)
        await client.send(b"x" * 21)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        assert await delivering(served)(callback, None, 0, 10, 100, learn) == CHANGED
    assert [count for count, _ in learned] == [21]
    assert learned[0][1] > 0
    await client.send(b"x" * 10)
    await client.aclose()
    assert await delivering(served)(callback, None, 0, 10, 100, learn) == ENDED
    assert len(learned) == 1


@pytest.mark.full_ring
async def test_an_end_amidst_a_slow_callback_is_an_error(pair: Pair, delivering: Delivering) -> None:
    client, served = pair
    if not hasattr(served, "_deliver"):
        pytest.skip("this connection has no loop in C")
    always_slow()
    calls: list[Any] = []

    def learn(_count: int, _nanoseconds: int) -> None:
        raise ZeroDivisionError

    await client.send(b"x" * 11)
    with pytest.raises(ZeroDivisionError):
        await delivering(served)(lambda _first, _count: None, None, 0, 10, 100, learn)
    await client.send(b"x")
    calls.append(served._deliver(lambda _first, _count: None, None, 0, 0, 100, lambda *_piece: calls[0].close()))
    with pytest.raises(RuntimeError, match=ENDED_AMIDST):
        await calls[0]
    calls.clear()
    assert await served.receive_exactly(12) == b"x" * 12


@pytest.mark.full_ring
async def test_a_wait_in_c_is_awaited_once_and_ended_once(pair: Pair) -> None:
    client, served = pair
    if not hasattr(served, "_deliver"):
        pytest.skip("this connection has no loop in C")
    calls: list[Any] = []

    def awaits_it_again(_first: object, _count: int) -> None:
        with pytest.raises(RuntimeError, match=AWAITED_AMIDST):
            calls[0].send(None)
        served._note_change()

    await client.send(b"1")
    calls.append(served._deliver(awaits_it_again, None, 0, 100, 0, None))
    assert await calls[0] == CHANGED
    calls.clear()

    await client.send(b"2")
    calls.append(served._deliver(lambda _first, _count: calls[0].close(), object(), 0, 100, 0, None))
    with pytest.raises(RuntimeError, match=ENDED_AMIDST):
        await calls[0]
    with pytest.raises(RuntimeError, match="cannot reuse"):
        await calls.pop()
    assert await served.receive() == b"12"

    with pytest.raises(TypeError, match="not 1 arguments"):
        served._deliver(print)
    with pytest.raises(ValueError, match="numbers of bytes"):
        served._deliver(print, None, 0, -1, 0, None)
    with pytest.raises(ValueError, match="numbers of bytes"):
        served._deliver(print, None, 0, 0, -1, None)
    with pytest.raises(TypeError):
        served._deliver(print, None, "0", 1, 0, None)
    with pytest.warns(RuntimeWarning, match="never awaited"):
        served._deliver(print, None, 0, 1, 0, None)

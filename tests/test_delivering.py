"""Calling back for bytes that have arrived: by a loop in C on the ring, and by one in Python on other connections."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from support.pairs import Pair
from trio.testing import wait_all_tasks_blocked

from gain_trio._callback_base import deliver_by
from gain_trio._transports import CHANGED, ENDED

pytestmark = pytest.mark.connections


@pytest.fixture
def pair(any_pair: Pair) -> Pair:
    """Every kind of connection: the client's end, and the one that calls back."""
    return any_pair


async def test_the_callback_gets_bytes_and_the_caller_the_rest(pair: Pair) -> None:
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
        assert await deliver_by(served)(callback, "first", 0, 100) == 101
    assert b"".join(got) == b"onetwothree"
    assert served._take_exactly(101) == b"x" * 101
    served._note_change()
    assert await deliver_by(served)(callback, "first", 0, 100) == CHANGED
    await client.aclose()
    assert await deliver_by(served)(callback, "first", 0, 100) == ENDED


async def test_what_the_callback_raises_ends_the_wait_and_nothing_else(pair: Pair) -> None:
    client, served = pair

    def fail(_first: object, count: int) -> None:
        raise ZeroDivisionError(count)

    await client.send(b"12345")
    with pytest.raises(ZeroDivisionError, match="5"):
        await deliver_by(served)(fail, None, 0, 100)
    assert await served.receive() == b"12345"
    await served.send(b"sound")
    assert await client.receive_exactly(5) == b"sound"


async def test_a_callback_may_cancel_its_task_or_close_the_connection(pair: Pair) -> None:
    client, served = pair
    await client.send(b"1")
    with trio.CancelScope() as scope:
        await deliver_by(served)(lambda _first, _count: scope.cancel(), None, 0, 100)
    assert scope.cancelled_caught
    assert served._take_exactly(1) == b"1"
    await client.send(b"2")
    with pytest.raises(trio.ClosedResourceError):
        await deliver_by(served)(lambda _first, _count: served.abort(), None, 0, 100)


async def test_a_wait_that_is_cancelled_loses_nothing(pair: Pair) -> None:
    client, served = pair
    got: list[int] = []
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(deliver_by(served), lambda _first, count: got.append(count), None, 0, 100)
            await wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await served.receive()
            scope.cancel()
    assert not got
    await client.send(b"12")
    assert await served.receive_exactly(2) == b"12"


async def test_the_wait_itself_is_no_hindrance_to_its_callback(pair: Pair) -> None:
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
    assert await deliver_by(served)(callback, None, 0, 100) == CHANGED
    assert refused == [False]


async def test_others_have_a_turn_amidst_bytes_without_end(pair: Pair) -> None:
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
        answer = await deliver_by(served)(lambda _first, count: served._take_exactly(count), None, 0, 1 << 20)
        nursery.cancel_scope.cancel()
    assert answer == ENDED
    assert turns > 0


@pytest.mark.full_ring
async def test_a_wait_in_c_is_awaited_once_and_ended_once(pair: Pair) -> None:
    client, served = pair
    if not hasattr(served, "_deliver"):
        pytest.skip("this connection has no loop in C")
    calls: list[Any] = []

    def awaits_it_again(_first: object, _count: int) -> None:
        with pytest.raises(RuntimeError, match="being awaited already"):
            calls[0].send(None)
        served._note_change()

    await client.send(b"1")
    calls.append(served._deliver(awaits_it_again, None, 0, 100))
    assert await calls[0] == CHANGED
    calls.clear()

    await client.send(b"2")
    calls.append(served._deliver(lambda _first, _count: calls[0].close(), object(), 0, 100))
    with pytest.raises(RuntimeError, match="ended by the callback"):
        await calls[0]
    with pytest.raises(RuntimeError, match="cannot reuse"):
        await calls.pop()
    assert await served.receive() == b"12"

    with pytest.raises(TypeError, match="not 1 arguments"):
        served._deliver(print)
    with pytest.raises(ValueError, match="number of bytes"):
        served._deliver(print, None, 0, -1)
    with pytest.raises(TypeError):
        served._deliver(print, None, "0", 1)
    with pytest.warns(RuntimeWarning, match="never awaited"):
        served._deliver(print, None, 0, 1)

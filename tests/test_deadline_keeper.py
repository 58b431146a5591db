"""The heap of deadlines, and its keeper."""

from __future__ import annotations

import math
import random

import pytest
import trio
from trio.testing import MockClock

from gain_trio._transports._connections._deadlines import DeadlineEntry, DeadlineHeap, DeadlineKeeper

pytestmark = pytest.mark.one_backend


class Watched:
    """Notes when it was looked at, and asks to be looked at again at the times it was given."""

    def __init__(self, *again: float) -> None:
        self.looks: list[float] = []
        self._again = list(again)

    def deadline_passed(self, now: float) -> float:
        self.looks.append(now)
        return self._again.pop(0) if self._again else math.inf


@pytest.mark.parametrize("seed", range(30))
def test_whatever_is_done_to_it_the_earliest_is_on_top(seed: int) -> None:
    choose = random.Random(seed)
    heap = DeadlineHeap()
    times: dict[DeadlineEntry, float] = {}
    for _ in range(300):
        what = choose.random()
        if what < 0.5 or not times:
            entry = DeadlineEntry(Watched())
            times[entry] = choose.random()
            heap.add(entry, times[entry])
        elif what < 0.7:
            entry = choose.choice(list(times))
            times[entry] *= choose.random()
            heap.move_nearer(entry, times[entry])
        else:
            entry = heap.earliest if what < 0.85 and heap.earliest else choose.choice(list(times))
            heap.remove(entry)
            del times[entry]
            assert entry.when == math.inf
        assert (heap.earliest and heap.earliest.when) == (min(times.values()) if times else None)


def test_a_great_many_are_taken_out_in_order_without_recursion() -> None:
    heap = DeadlineHeap()
    for when in range(50_000):
        heap.add(DeadlineEntry(Watched()), when)
    for when in range(50_000):
        assert heap.earliest is not None
        assert heap.earliest.when == when
        heap.remove(heap.earliest)


async def test_it_comes_at_the_time_that_was_asked_for_first_and_again_as_it_is_told(autojump_clock: MockClock) -> None:
    keeper, start = DeadlineKeeper(), trio.current_time()
    watched, other = Watched(start + 7, start + 7.5), Watched()
    entry = DeadlineEntry(watched)
    keeper.watch(entry, start + 5)
    keeper.watch(entry, start + 50)  # later: it will come before that anyway
    keeper.watch(DeadlineEntry(other), start + 6)
    await trio.sleep(100)
    assert watched.looks == [start + 5, start + 7, start + 7.5]
    assert other.looks == [start + 6]


async def test_one_that_is_forgotten_is_not_looked_at(autojump_clock: MockClock) -> None:
    keeper = DeadlineKeeper()
    watched = Watched()
    entry = DeadlineEntry(watched)
    keeper.forget(entry)
    keeper.watch(entry, trio.current_time() + 5)
    await trio.sleep(1)
    keeper.watch(entry, trio.current_time() + 2)
    keeper.forget(entry)
    await trio.sleep(100)
    assert watched.looks == []


async def test_one_that_is_told_now_does_not_keep_the_others_from_their_turn(autojump_clock: MockClock) -> None:
    now = trio.current_time()
    keeper, greedy, modest = DeadlineKeeper(), Watched(*[now] * 50), Watched()
    keeper.watch(DeadlineEntry(greedy), now)
    keeper.watch(DeadlineEntry(modest), now)
    await trio.sleep(1)
    assert len(greedy.looks) == 51
    assert modest.looks == [now]


async def test_one_that_fails_does_not_keep_the_others_from_their_turn(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing:
        def deadline_passed(self, _now: float) -> float:
            raise ValueError("raised in a callback")

    now = trio.current_time()
    keeper, failing, watched = DeadlineKeeper(), DeadlineEntry(Failing()), Watched(now + 3)
    keeper.watch(failing, now + 1)
    keeper.watch(DeadlineEntry(watched), now + 1)
    await trio.sleep(2)
    keeper.watch(failing, now + 3)  # it is not looked at again unless that is asked for
    await trio.sleep(100)
    assert watched.looks == [now + 1, now + 3]
    assert capsys.readouterr().err.count("ValueError: raised in a callback") == 2

"""Small queues and few buffers of a ring: what does not fit, is refused, or belongs to no operation."""

from __future__ import annotations

import contextlib
import errno
import math
from typing import Any

import pytest
from support.pairs import pattern
from support.rings import EVERYTHING, Receiver, Results, opened
from support.runs import drive
from support.sockets import socket_pair

from gain_trio import Feature
from gain_trio._kernel import PollEvent, uring
from gain_trio._ring import Ring

pytestmark = [
    pytest.mark.connections,
    pytest.mark.features,
    pytest.mark.driver,
    pytest.mark.ring,
    pytest.mark.usefixtures("no_descriptor_leak"),
]


# --- submissions that the kernel refuses ---


def start_refused(ring: Ring, results: Results) -> None:
    """An accept with flags that there are not: the kernel cannot even prepare it."""
    ring._start(uring.lib.gt_operation_accept(ring._ring, 0, 0x40000000, ring._key), results)


stopping_or_not = pytest.mark.parametrize(
    "unwanted",
    [Feature(0), Feature.SUBMIT_ALL, EVERYTHING & ~Feature.MULTISHOT_ACCEPT],
    ids=["submitting all", "stopping", "stopping on a bare ring"],
)


@stopping_or_not
@pytest.mark.parametrize("how", ["submit", "look", "wait"])
def test_a_submission_that_is_refused_does_not_hold_up_those_behind_it(unwanted: Feature, how: str) -> None:
    with opened(unwanted=unwanted) as ring, socket_pair() as (one, other):
        before, refused, between, refused_too, behind = [Results() for _ in range(5)]
        ring.poll(one.fileno(), PollEvent.IN, before)
        start_refused(ring, refused)
        ring.poll(one.fileno(), PollEvent.IN, between)
        start_refused(ring, refused_too)
        ring.poll(one.fileno(), PollEvent.IN, behind)
        if how == "submit":
            ring.submit()
        else:
            assert ring.enter(0 if how == "look" else math.inf)
        statistics = ring.statistics()
        assert statistics.submissions == 5
        assert statistics.enter_calls == (1 if Feature.SUBMIT_ALL in ring.features else 3)
        drive(ring, lambda: refused.ended and refused_too.ended)
        assert refused.all == refused_too.all == [-errno.EINVAL]
        assert not any(results.ended for results in (before, between, behind))
        other.send(b"x")
        drive(ring, lambda: before.ended and between.ended and behind.ended)
        assert before.all == between.all == behind.all == [PollEvent.IN]


@stopping_or_not
def test_hundreds_of_refused_submissions_pass_a_queue_of_four(unwanted: Feature) -> None:
    with opened(entries=4, completion_entries=8, unwanted=unwanted) as ring:
        refused, done = [Results() for _ in range(300)], [Results() for _ in range(300)]
        for bad, good in zip(refused, done, strict=True):
            start_refused(ring, bad)
            ring.nop(good)
        drive(ring, lambda: ring.statistics().operations_in_flight == 0)
        assert all(results.all == [-errno.EINVAL] for results in refused)
        assert all(results.all == [0] for results in done)


# --- receiving ---


@pytest.mark.usefixtures("full_tier")
@pytest.mark.parametrize("incremental", [True, False])
@pytest.mark.parametrize(("count", "size"), [(2, 64), (2, 7), (1, 4096), (4, 1000)])
def test_what_is_received_through_a_few_small_buffers_is_whole_and_in_order(
    incremental: bool, count: int, size: int
) -> None:
    unwanted = Feature(0) if incremental else Feature.BUFFER_INCREMENT
    sent = pattern(200 * count * size + 3)
    with opened(buffer_count=count, buffer_size=size, unwanted=unwanted) as ring, socket_pair() as (one, other):
        if incremental and Feature.BUFFER_INCREMENT not in ring.features:
            pytest.skip("this kernel has no incremental buffers")
        receiver = Receiver(ring, one)
        position = 0
        while position < len(sent):
            position += other.send(sent[position : position + (count + 1) * size + 1])
            drive(ring, lambda position=position: len(receiver.data) == position)  # type: ignore[misc]
        assert receiver.data == sent
        assert receiver.starved > 0
        other.close()
        drive(ring, lambda: receiver.end == 0)


@pytest.mark.usefixtures("full_tier")
def test_several_receives_share_the_buffers_without_mixing_their_data() -> None:
    with contextlib.ExitStack() as stack:
        ring = stack.enter_context(opened(buffer_count=2, buffer_size=256))
        pairs = [stack.enter_context(socket_pair()) for _ in range(8)]
        receivers = [Receiver(ring, one) for one, _ in pairs]
        for turn in range(100):
            for index, (_, other) in enumerate(pairs):
                other.send(bytes([index]) * (17 + turn))
            length = sum(17 + past for past in range(turn + 1))
            drive(ring, lambda length=length: all(len(receiver.data) == length for receiver in receivers))  # type: ignore[misc]
        for index, receiver in enumerate(receivers):
            assert set(receiver.data) == {index}
        assert sum(receiver.starved for receiver in receivers) > 0


@pytest.mark.usefixtures("full_tier")
def test_all_buffers_are_free_again_when_their_data_has_been_taken() -> None:
    with (
        opened(buffer_count=4, buffer_size=64, unwanted=Feature.BUFFER_INCREMENT) as ring,
        socket_pair() as (one, other),
    ):
        receiver = Receiver(ring, one)
        other.send(bytes(3 * 64))
        drive(ring, lambda: len(receiver.data) == 3 * 64)
        ring.enter(0)  # gives them back
        ring.nop(Results())
        ring.submit()
        assert ring.statistics().buffers_free == 4


# --- keys ---


def forged(key: int, result: int = 0, flags: int = 0) -> Any:
    cqe = uring.ffi.new("struct io_uring_cqe *")
    cqe.user_data, cqe.res, cqe.flags = key, result, flags
    return cqe


def test_a_late_completion_is_not_taken_for_news_of_the_slots_next_operation() -> None:
    ring = Ring()
    lib, slot = uring.lib, uring.ffi.new("struct gt_slot *")
    with socket_pair() as (one, other):
        first, second = Results(), Results()
        old = ring.nop(first)
        drive(ring, lambda: first.ended)
        new = ring.poll(one.fileno(), PollEvent.IN, second)
        assert new.key & 0x0FFFFFFF == old.key & 0x0FFFFFFF, "the slot was to be used again"
        assert new.key != old.key
        assert not lib.gt_slot_complete(ring._ring, forged(old.key), slot)
        ring.complete(old.key, 0, 0)
        assert second.all == []
        assert ring.statistics().stale == 1
        assert ring.statistics().operations_in_flight == 1
        assert lib.gt_operation_cancel(ring._ring, old.key, True) == -errno.ENOENT
        other.send(b"x")
        drive(ring, lambda: second.ended)
        assert second.all == [PollEvent.IN]
    ring.close()


@pytest.mark.parametrize("key", [0, 0x10000000, 1 << 32 | 0x1FFFFFFF, (1 << 64) - 1])
def test_a_completion_that_belongs_to_nobody_is_dropped_and_counted(key: int) -> None:
    ring = Ring()
    slot = uring.ffi.new("struct gt_slot *")
    assert not uring.lib.gt_slot_complete(ring._ring, forged(key), slot)
    assert ring.statistics().stale == 1
    ring.close()


# --- small queues ---


def test_a_batch_of_thousands_passes_a_queue_of_four() -> None:
    count = 3_000
    with opened(entries=4) as ring:
        order: list[int] = []
        for number in range(count):
            ring.nop(lambda _result, _flags, number=number: order.append(number))  # type: ignore[misc]
        drive(ring, lambda: len(order) == count)
        assert sorted(order) == list(range(count))
        statistics = ring.statistics()
        assert statistics.submissions == statistics.completions == count
        assert statistics.operations_in_flight == 0
        assert statistics.enter_calls <= count // 4 + 10


def test_completions_that_do_not_fit_are_kept_and_counted() -> None:
    count = 1_000
    with opened(entries=4, completion_entries=4) as ring:
        results = Results()
        finals: list[int] = []
        for _ in range(count):
            ring.nop(lambda result, _flags: finals.append(result))
        ring.nop(results)
        drive(ring, lambda: results.ended and len(finals) == count)
        assert finals == [0] * count
        assert ring.statistics().overflows > 0


@pytest.mark.usefixtures("full_tier")
def test_data_that_arrives_while_completions_overflow_is_whole_and_in_order() -> None:
    with opened(entries=4, completion_entries=4) as ring, contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(socket_pair()) for _ in range(16)]
        receivers = [Receiver(ring, one) for one, _ in pairs]
        sent = pattern(50 * 100)
        for turn in range(50):
            for _, other in pairs:
                other.send(sent[turn * 100 : turn * 100 + 100])
            ring.enter(0)
            if turn % 5 == 4:
                ring.reap()
        drive(ring, lambda: all(len(receiver.data) == len(sent) for receiver in receivers))
        assert all(receiver.data == sent for receiver in receivers)
        assert ring.statistics().overflows > 0


def test_a_signal_ends_a_wait_after_its_handler_has_run(ring: Ring) -> None:
    import signal
    import threading

    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _frame: seen.append(number))
    main, stop = threading.main_thread().ident, threading.Event()
    assert main is not None

    def interrupt() -> None:
        while not stop.wait(0.001):  # until it has hit the wait
            signal.pthread_kill(main, signal.SIGUSR1)

    thread = threading.Thread(target=interrupt)
    try:
        thread.start()
        assert ring.enter(math.inf) is True
    finally:
        stop.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    assert signal.SIGUSR1 in seen

"""The ring by itself, without Trio: operations, cancels, buffers, books, limits."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import trio
import trio.testing
from support.descriptors import descriptor_limit, mapped_bytes, next_descriptor, open_descriptors
from support.pairs import address_of, pattern, receive_exactly
from support.runs import drive, ring_run
from support.sockets import socket_pair

import gain_trio
from gain_trio import Feature, Marks, RingOptions, RingUnavailable
from gain_trio._io_manager import UringIOManager
from gain_trio._io_manager._seam import current_io_manager
from gain_trio._kernel import FULL_TIER, CompletionFlag, PollEvent, fastpath, uring
from gain_trio._ring import Completion, Ring
from gain_trio._transports._backends._ring_connection import RingConnection

EVERYTHING = Feature(sum(Feature))
NEEDED = tuple(feature for feature in Feature if feature & FULL_TIER)
"""What connections on the ring need."""
BESIDE = tuple(feature for feature in Feature if not feature & FULL_TIER)
"""What they can do without."""

needs_full_tier = pytest.mark.usefixtures("full_tier")

pytestmark = [
    pytest.mark.connections,
    pytest.mark.features,
    pytest.mark.driver,
    pytest.mark.ring,
    pytest.mark.usefixtures("no_descriptor_leak"),
]


@contextlib.contextmanager
def opened(**options: Any) -> Iterator[Ring]:
    """A ring, closed at the end with nothing in flight and without a stray completion."""
    ring = Ring(RingOptions(**options))
    try:
        yield ring
        assert ring.statistics().stale == 0
    finally:
        left = ring.close()
    assert left == 0


@pytest.fixture
def ring() -> Iterator[Ring]:
    with opened() as ring:
        yield ring


@pytest.fixture
def full_tier() -> None:
    """Accepts and receives are for a ring of tier full."""
    with opened() as ring:
        if ring.tier != "full":
            pytest.skip(f"the ring has tier {ring.tier}")


class Results:
    """A callback that keeps what it is called with."""

    def __init__(self) -> None:
        self.all: list[int] = []
        self.final: int | None = None

    def __call__(self, result: int, flags: int) -> None:
        self.all.append(result)
        if not flags & CompletionFlag.MORE:
            assert self.final is None, "an operation has one final completion"
            self.final = result

    @property
    def ended(self) -> bool:
        return self.final is not None


class Receiver:
    """A receive that is armed again whenever the kernel ends it before the end of the stream."""

    def __init__(self, ring: Ring, sock: socket.socket) -> None:
        self._ring = ring
        self._sock = sock
        self.data = bytearray()
        self.starved = 0
        self.end: int | None = None
        self._arm()

    def _arm(self) -> None:
        self.operation = self._ring.receive(self._sock.fileno(), self._completed)

    def _completed(self, result: int, flags: int) -> None:
        if flags & CompletionFlag.BUFFER:
            self.data += self._ring.buffer_data()
        if flags & CompletionFlag.MORE:
            return
        if result > 0 or result == -errno.ENOBUFS:
            self.starved += result == -errno.ENOBUFS
            self._arm()
        else:
            self.end = result


# --- life ---


def test_a_ring_opens_and_closes_and_closing_twice_is_fine() -> None:
    ring = Ring()
    assert ring.fd >= 0
    assert (ring.closed, ring.close(), ring.closed) == (False, 0, True)
    assert ring.fd == -1
    assert ring.close() == 0


def test_a_closed_ring_refuses_operations_and_has_nothing_to_reap() -> None:
    ring = Ring()
    operation = ring.nop(Results())
    ring.close()
    with pytest.raises(OSError, match="descriptor"):
        ring.nop(Results())
    with pytest.raises(OSError, match="descriptor"):
        ring.enter(0)
    assert ring.reap() == []
    operation.cancel()
    operation.cancel(abandon=True)


@needs_full_tier
def test_closing_ends_what_is_in_flight() -> None:
    with socket_pair() as (one, other):
        ring = Ring()
        ring.receive(one.fileno(), Results())
        ring.poll(one.fileno(), PollEvent.IN, Results())
        ring.poll(one.fileno(), PollEvent.IN, Results(), multishot=True)
        ring.submit()
        ring.nop(Results())  # prepared, and not submitted
        assert ring.statistics().operations_in_flight == 4
        assert ring.close() == 0
        one.close()  # nothing holds the socket any more, so the other end sees its end
        assert other.recv(1) == b""


def test_many_rings_one_after_the_other_cost_no_memory() -> None:
    def cycle(times: int) -> None:
        for _ in range(times):
            with opened() as ring:
                ring.nop(Results())

    cycle(50)
    before = mapped_bytes()
    cycle(100)  # of 2 MiB each, and more
    assert mapped_bytes() - before < 50 << 20
    assert len(re.findall("io_uring", open_maps())) == 0


def open_maps() -> str:
    with open("/proc/self/maps") as file:
        return file.read()


# --- options ---


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"entries": 0}, "entries"),
        ({"entries": 32769}, "entries"),
        ({"completion_entries": 0}, "completion_entries"),
        ({"completion_entries": 65537}, "completion_entries"),
        ({"entries": 64, "completion_entries": 32}, r"completion_entries \(32\) must be at least entries \(64\)"),
        ({"buffer_count": 0}, "buffer_count"),
        ({"buffer_count": 3}, "buffer_count must be a power of two, not 3"),
        ({"buffer_count": 65536}, "buffer_count"),
        ({"buffer_size": 0}, "buffer_size"),
        ({"buffer_size": (1 << 20) + 1}, "buffer_size"),
        ({"max_slots": 0}, "max_slots"),
        ({"max_slots": (1 << 20) + 1}, "max_slots"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(options: dict[str, int], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        RingOptions(**options)


@pytest.mark.parametrize("value", ["8", True])
@pytest.mark.parametrize("name", ["entries", "completion_entries", "buffer_count", "buffer_size", "max_slots"])
def test_an_option_that_is_no_number_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=rf"^RingOptions\.{name} must be a whole number, not {value!r}$"):
        RingOptions(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["receive_high", "receive_low", "send_high"])
def test_a_mark_that_is_no_number_is_refused_by_name(name: str) -> None:
    with pytest.raises(TypeError, match=rf"^Marks\.{name} must be a whole number, not '8'$"):
        Marks(**{name: "8"})  # type: ignore[arg-type]


@needs_full_tier
@pytest.mark.parametrize(
    "options",
    [
        {"entries": 1, "completion_entries": 1, "buffer_count": 1, "buffer_size": 1, "max_slots": 1},
        {"entries": 3, "completion_entries": 3},
        {"entries": 32768, "completion_entries": 65536},
        {"buffer_count": 32768, "buffer_size": 1},
        {"buffer_count": 1, "buffer_size": 1 << 20},
    ],
)
def test_options_at_their_bounds_make_a_ring_that_works(options: dict[str, int]) -> None:
    with opened(**options) as ring, socket_pair() as (one, other):
        receiver = Receiver(ring, one)
        other.send(b"x")
        drive(ring, lambda: receiver.data == b"x")


def test_options_keep_their_values_and_cannot_be_changed() -> None:
    options = RingOptions(entries=8, buffer_size=100)
    assert (options.entries, options.buffer_size, options.max_slots) == (8, 100, 1 << 20)
    with pytest.raises(AttributeError):
        options.entries = 9  # type: ignore[misc]


# --- why there is none ---


def test_without_a_descriptor_left_the_reason_names_it_and_its_cure() -> None:
    with descriptor_limit(next_descriptor()), pytest.raises(RingUnavailable, match=r"EMFILE.*RLIMIT_NOFILE") as caught:
        Ring()
    assert caught.value.errno == errno.EMFILE


def test_a_run_without_enough_descriptors_says_so_and_keeps_none() -> None:
    # The ring itself gets the last free descriptor; the run needs one more.
    with descriptor_limit(next_descriptor() + 1), pytest.raises(RingUnavailable, match="RLIMIT_NOFILE"):
        gain_trio.run(pytest.fail, "a run without a ring")


def test_outside_a_run_backend_info_says_why_it_would_not_be_the_ring() -> None:
    with descriptor_limit(next_descriptor()):
        info = gain_trio.backend_info()
    assert (info.backend, info.running, info.features) == ("trio", False, ())
    assert "EMFILE" in info.reason


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EACCES, "SELinux"),
        (errno.ENOMEM, "RLIMIT_MEMLOCK"),
        (errno.EINVAL, "gain_trio needs"),
        (errno.ENFILE, "fs.file-max"),
        (errno.EIO, "EIO"),
    ],
)
def test_each_refusal_of_the_kernel_has_its_reason(monkeypatch: pytest.MonkeyPatch, number: int, advice: str) -> None:
    class Refusing:
        def __getattr__(self, name: str) -> Any:
            return (lambda *_: -number) if name == "gt_ring_open" else getattr(uring.lib, name)

    class Module:
        ffi = uring.ffi
        lib = Refusing()

    monkeypatch.setattr("gain_trio._ring._ring.uring", Module)
    with pytest.raises(RingUnavailable, match=re.escape(advice)) as caught:
        Ring()
    assert caught.value.errno == number


# --- what the operator does not want ---


@pytest.mark.parametrize(
    ("value", "unwanted"),
    [
        ("", Feature(0)),
        ("cqe_skip", Feature.CQE_SKIP),
        ("buffer_ring, submit_all", Feature.BUFFER_RING | Feature.SUBMIT_ALL),
        ("all", EVERYTHING),
        ("all,cqe_skip,", EVERYTHING),
    ],
)
def test_the_environment_says_what_is_unwanted(monkeypatch: pytest.MonkeyPatch, value: str, unwanted: Feature) -> None:
    monkeypatch.setenv("GAIN_TRIO_UNWANTED", value)
    assert RingOptions().unwanted == unwanted
    assert RingOptions(unwanted=Feature.NO_SQARRAY).unwanted == Feature.NO_SQARRAY, (
        "who says it in the program, decides"
    )
    with opened() as ring:
        assert not ring.features & unwanted


def test_without_the_environment_nothing_is_unwanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GAIN_TRIO_UNWANTED", raising=False)
    assert RingOptions().unwanted == Feature(0)


@pytest.mark.parametrize("value", ["cqe_skipp", "CQE_SKIP", "none", "cqe_skip;submit_all"])
def test_a_name_that_no_feature_has_is_refused_and_the_known_ones_are_told(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("GAIN_TRIO_UNWANTED", value)
    known = ", ".join(str(feature.name).lower() for feature in Feature)
    with pytest.raises(ValueError, match=f"GAIN_TRIO_UNWANTED has {value!r}; it may have: all, {known}"):
        RingOptions()


# --- features ---

every_feature_and_all = pytest.mark.parametrize(
    "unwanted",
    [*Feature, EVERYTHING],
    ids=lambda feature: str(feature.name).lower() if feature in [*Feature] else "all",
)

SETUP_FLAGS = {  # linux/io_uring.h
    Feature.SUBMIT_ALL: 1 << 7,
    Feature.TASKRUN_FLAG: 1 << 9,
    Feature.SINGLE_ISSUER: 1 << 12,
    Feature.DEFER_TASKRUN: 1 << 13,
    Feature.NO_SQARRAY: 1 << 16,
}
COOP_TASKRUN = 1 << 8


@pytest.mark.parametrize("feature", [*Feature], ids=lambda feature: str(feature.name).lower())
def test_a_feature_says_which_kernel_brought_it_and_what_for(feature: Feature) -> None:
    assert re.fullmatch(r"[56]\.\d+", feature.kernel)
    assert 10 < len(feature.purpose) < 100
    assert getattr(uring.lib, f"GT_FEATURE_{feature.name}") == feature


@every_feature_and_all
def test_a_feature_that_is_unwanted_is_not_used(unwanted: Feature) -> None:
    with opened(unwanted=Feature(0)) as best, opened(unwanted=unwanted) as ring:
        assert not ring.features & unwanted
        for feature, flag in SETUP_FLAGS.items():
            assert bool(ring._ring.setup_flags & flag) == (feature in ring.features)
        missing = best.features & ~ring.features & ~unwanted
        if unwanted & FULL_TIER:
            assert ring.tier == "poll"
            assert ring.statistics().buffers == 0
            assert not missing & ~(Feature.BUFFER_RING | Feature.BUFFER_INCREMENT | Feature.DEFER_TASKRUN)
        else:
            assert ring.tier == best.tier
            assert not missing


@pytest.mark.parametrize("unwanted", [Feature.DEFER_TASKRUN, Feature.SINGLE_ISSUER])
def test_where_work_is_not_deferred_it_does_not_interrupt(unwanted: Feature) -> None:
    with opened(unwanted=unwanted) as ring, opened(unwanted=unwanted | Feature.TASKRUN_FLAG) as plain:
        assert not (ring.features | plain.features) & Feature.DEFER_TASKRUN
        assert bool(ring._ring.setup_flags & COOP_TASKRUN) == (Feature.TASKRUN_FLAG in ring.features)
        assert not plain._ring.setup_flags & COOP_TASKRUN


@every_feature_and_all
def test_finding_out_what_a_kernel_has_leaves_nothing_behind(unwanted: Feature) -> None:
    before = open_descriptors()
    with opened(unwanted=unwanted) as ring:
        assert len(open_descriptors()) == len(before) + 1
        statistics = ring.statistics()
        assert (statistics.submissions, statistics.completions, statistics.enter_calls) == (0, 0, 0)
        assert statistics.operations_in_flight == 0
        assert ring.enter(0.001) is False, "no completion is there, and none comes"
        assert ring.reap() == []
        assert ring.statistics().completions == 0


def test_what_a_kernel_has_is_found_out_through_the_smallest_queues_too() -> None:
    with opened(unwanted=Feature(0)) as large:
        for entries, completion_entries in [(1, 1), (1, 2), (2, 2), (4, 4)]:
            options = {"entries": entries, "completion_entries": completion_entries, "unwanted": Feature(0)}
            with opened(**options) as small, opened(**{**options, "unwanted": Feature.SUBMIT_ALL}) as stopping:
                assert small.features == large.features
                assert stopping.features == large.features & ~Feature.SUBMIT_ALL


@needs_full_tier
def test_features_of_this_kernel_are_told() -> None:
    with opened(unwanted=Feature(sum(BESIDE))) as plain, opened(unwanted=EVERYTHING) as bare:
        assert (plain.features, plain.tier) == (FULL_TIER, "full")
        assert (bare.features, bare.tier) == (Feature(0), "poll")


@every_feature_and_all
def test_a_ring_does_its_work_without(unwanted: Feature) -> None:
    with opened(unwanted=unwanted) as ring, socket_pair() as (one, other), socket_pair() as (idle, _):
        ready, late, changes, stopped, abandoned = [Results() for _ in range(5)]
        ring.poll(one.fileno(), PollEvent.OUT, ready)
        ring.poll(one.fileno(), PollEvent.IN, late)
        following = ring.poll(one.fileno(), PollEvent.IN, changes, multishot=True)
        to_stop = ring.poll(idle.fileno(), PollEvent.IN, stopped)
        to_abandon = ring.poll(idle.fileno(), PollEvent.IN, abandoned)
        drive(ring, lambda: ready.ended)
        assert ready.all == [PollEvent.OUT]
        assert not any(results.all for results in (late, changes, stopped))
        other.send(b"x")
        drive(ring, lambda: late.ended and len(changes.all) == 1)
        assert late.all == [PollEvent.IN]
        assert not changes.ended
        to_stop.cancel()
        to_abandon.cancel(abandon=True)
        following.cancel()
        drive(ring, lambda: stopped.ended and changes.ended and ring.statistics().operations_in_flight == 0)
        assert stopped.all == [-errno.ECANCELED]
        assert changes.final == -errno.ECANCELED
        assert abandoned.all == []
        sent = Results()
        ring.send(other.fileno(), b"hello", sent)
        drive(ring, lambda: sent.ended)
        assert one.recv(16) == b"xhello"
        assert ring.enter(0.001) is False, "nothing is left to be told"


@every_feature_and_all
def test_closing_ends_what_is_in_flight_without(unwanted: Feature) -> None:
    with socket_pair() as (one, other):
        ring = Ring(RingOptions(unwanted=unwanted))
        for multishot in (True, False):
            ring.poll(one.fileno(), PollEvent.IN, Results(), multishot=multishot)
        ring.submit()
        ring.poll(one.fileno(), PollEvent.IN, Results()).cancel()  # prepared, and not submitted
        assert ring.close() == 0
        assert ring.statistics().stale == 0
        one.close()  # nothing holds the socket any more, so the other end sees its end
        assert other.recv(1) == b""


@every_feature_and_all
def test_accepts_and_receives_are_for_rings_that_have_what_they_need(unwanted: Feature) -> None:
    with opened(unwanted=unwanted) as ring, listening() as listener, socket_pair() as (one, other):
        if Feature.MULTISHOT_ACCEPT not in ring.features:
            with pytest.raises(OSError, match="not supported"):
                ring.accept(listener.fileno(), Results())
        if ring.tier == "poll":
            with pytest.raises(OSError, match="not supported"):
                ring.receive(one.fileno(), Results())
        else:
            receiver = Receiver(ring, one)
            other.send(b"x")
            drive(ring, lambda: receiver.data == b"x")
        assert ring.statistics().operations_in_flight == (ring.tier == "full")


@needs_full_tier
@pytest.mark.parametrize(
    "unwanted",
    [*BESIDE, Feature(sum(BESIDE))],
    ids=lambda feature: str(feature.name).lower() if feature in BESIDE else "all optional",
)
def test_connections_echo_without(unwanted: Feature) -> None:
    message = pattern(300_000)

    async def main() -> None:
        info = gain_trio.backend_info()
        for feature in Feature:
            assert (str(feature.name).lower() in info.features) == (not feature & unwanted)
        [listener] = await gain_trio.open_listeners("tcp://127.0.0.1:0")
        async with listener, await gain_trio.connect(address_of(listener)) as client:
            async with await listener.accept() as served:
                await client.send(message)
                await served.send(await receive_exactly(served, len(message)))
                assert await receive_exactly(client, len(message)) == message

    ring_run(main, unwanted=unwanted)


@pytest.mark.parametrize("unwanted", [*NEEDED, EVERYTHING])
def test_no_connection_is_put_on_a_ring_of_tier_poll(unwanted: Feature) -> None:
    manager = UringIOManager(RingOptions(unwanted=unwanted))
    try:
        assert (manager.tier, manager.statistics().tier) == ("poll", "poll")
        with socket_pair() as (one, _other):
            with pytest.raises(RuntimeError, match=r'tier "poll".*GAIN_TRIO_UNWANTED'):
                RingConnection(manager, one.fileno(), Marks())
            assert one.fileno() in [int(name.split()[0]) for name in open_descriptors()], "it is its caller's still"
    finally:
        manager.close()


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


# --- cancels whose success needs no completion ---

quiet_or_not = pytest.mark.parametrize("unwanted", [Feature(0), Feature.CQE_SKIP], ids=["quiet", "acknowledged"])


def is_quiet(ring: Ring) -> bool:
    return Feature.CQE_SKIP in ring.features


@quiet_or_not
def test_a_cancel_that_succeeds_completes_only_if_it_must(unwanted: Feature) -> None:
    with opened(unwanted=unwanted) as ring, socket_pair() as (one, _other):
        results = Results()
        operation = ring.poll(one.fileno(), PollEvent.IN, results)
        ring.submit()
        operation.cancel()
        assert ring.statistics().operations_in_flight == (1 if is_quiet(ring) else 2)
        completions = drive(ring, lambda: ring.statistics().operations_in_flight == 0)
        assert [completion.result for completion in completions] == [-errno.ECANCELED]
        assert ring.statistics().completions == (1 if is_quiet(ring) else 2)
        assert ring.enter(0.001) is False


@quiet_or_not
@pytest.mark.parametrize("abandon", [False, True])
def test_a_cancel_that_comes_too_late_is_told_to_nobody(unwanted: Feature, abandon: bool) -> None:
    with opened(unwanted=unwanted) as ring, socket_pair() as (one, other):
        results = Results()
        other.send(b"x")
        operation = ring.poll(one.fileno(), PollEvent.IN, results)
        ring.submit()  # and it completes
        operation.cancel(abandon=abandon)
        ring.submit()  # finds nothing
        completions = drive(ring, lambda: ring.statistics().operations_in_flight == 0)
        drive(ring, lambda: ring.statistics().completions == 2)
        assert [completion.result for completion in completions] == ([] if abandon else [PollEvent.IN])
        assert results.all == ([] if abandon else [PollEvent.IN])
        assert ring.enter(0.001) is False


@quiet_or_not
def test_a_cancel_that_is_submitted_late_does_not_meet_the_slots_next_operation(unwanted: Feature) -> None:
    with opened(unwanted=unwanted) as ring, socket_pair() as (one, other), socket_pair() as (quiet, talker):
        first, second = Results(), Results()
        other.send(b"x")
        old = ring.poll(one.fileno(), PollEvent.IN, first)
        ring.submit()  # and it completes
        old.cancel()  # prepared
        ring.reap()
        assert first.all == [PollEvent.IN]
        new = ring.poll(quiet.fileno(), PollEvent.IN, second)
        same_slot = new.key & 0x0FFFFFFF == old.key & 0x0FFFFFFF
        assert same_slot == is_quiet(ring), "a cancel that completes keeps its slot until then"
        assert new.key != old.key
        ring.submit()
        drive(ring, lambda: ring.statistics().completions == 2)
        assert not second.ended
        talker.send(b"x")
        drive(ring, lambda: second.ended)
        assert second.all == [PollEvent.IN]


@quiet_or_not
@pytest.mark.parametrize("entries", [1, 4])
def test_hundreds_of_cancels_pass_a_small_queue(unwanted: Feature, entries: int) -> None:
    with opened(entries=entries, completion_entries=8, unwanted=unwanted) as ring, socket_pair() as (one, _other):
        results = [Results() for _ in range(300)]
        operations = [ring.poll(one.fileno(), PollEvent.IN, result) for result in results]
        for number, operation in enumerate(operations):
            operation.cancel(abandon=number % 3 == 0)
        drive(ring, lambda: ring.statistics().operations_in_flight == 0)
        for number, result in enumerate(results):
            assert result.all == ([] if number % 3 == 0 else [-errno.ECANCELED])


@quiet_or_not
def test_a_slot_is_used_over_and_over_while_cancels_come_too_late_or_not(unwanted: Feature) -> None:
    with opened(entries=4, unwanted=unwanted) as ring, socket_pair() as (idle, _), socket_pair() as (busy, other):
        other.send(b"x")
        for turn in range(500):
            results = [Results(), Results()]
            operations = [
                ring.poll(busy.fileno(), PollEvent.IN, results[0]),
                ring.poll(idle.fileno(), PollEvent.IN, results[1]),
            ]
            if turn % 2:
                ring.submit()
            for operation in operations:
                operation.cancel()
            drive(ring, lambda results=results: all(result.ended for result in results))  # type: ignore[misc]
            assert results[0].all in ([PollEvent.IN], [-errno.ECANCELED])
            assert results[1].all == [-errno.ECANCELED]
        drive(ring, lambda: ring.statistics().operations_in_flight == 0)


@pytest.mark.parametrize(
    "unwanted",
    [Feature(0), Feature.CANCEL_ANY, Feature.CANCEL_ANY | Feature.CQE_SKIP, EVERYTHING],
    ids=["all at once", "one by one", "one by one, acknowledged", "one by one on a bare ring"],
)
@pytest.mark.parametrize("entries", [4, 1024])
def test_closing_ends_hundreds_of_operations(unwanted: Feature, entries: int) -> None:
    ring = Ring(RingOptions(entries=entries, completion_entries=entries, unwanted=unwanted))
    with contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(socket_pair()) for _ in range(5)]
        results = [Results() for _ in range(600)]
        for number, result in enumerate(results):
            one, _other = pairs[number % len(pairs)]
            ring.poll(one.fileno(), PollEvent.IN, result, multishot=number % 7 == 0)
        if unwanted:
            ring.submit()  # else some of them are cancelled before they were submitted
        pairs[0][1].send(b"x")  # and some have completed
        assert ring.statistics().operations_in_flight == 600
        assert ring.close() == 0
        assert ring.statistics().operations_in_flight == 0
        assert ring.statistics().stale == 0


@needs_full_tier
@pytest.mark.parametrize("unwanted", [Feature(0), Feature.CANCEL_ANY, Feature.CANCEL_ANY | Feature.CQE_SKIP])
def test_a_run_ends_with_connections_that_receive_and_send(unwanted: Feature) -> None:
    kept: list[Any] = []
    data = bytes(24 << 20)  # more than the kernel takes

    async def main() -> UringIOManager:
        [listener] = await gain_trio.open_listeners("tcp://127.0.0.1:0")
        async with listener, trio.open_nursery() as nursery:
            for _ in range(20):
                client = await gain_trio.connect(address_of(listener))
                served = await listener.accept()
                kept.extend([client, served])
                nursery.start_soon(served.send, data)
                nursery.start_soon(served.receive)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        manager = current_io_manager()
        assert isinstance(manager, UringIOManager)
        assert manager.ring.statistics().operations_in_flight >= 40, "receives and sends"
        return manager

    ring = ring_run(main, unwanted=unwanted).ring
    assert ring.statistics().operations_in_flight == 0
    assert ring.statistics().stale == 0
    assert all(connection.fileno() == -1 for connection in kept)


@needs_full_tier
@pytest.mark.parametrize("unwanted", [Feature(0), Feature.CANCEL_ANY, Feature.CANCEL_ANY | Feature.CQE_SKIP])
def test_closing_ends_all_that_lasts_on_a_connection(unwanted: Feature) -> None:
    """Also on a connection that was not closed before."""
    ring = Ring(RingOptions(unwanted=unwanted))
    errors = (trio.ClosedResourceError, trio.BusyResourceError, trio.TooSlowError)
    proactor = fastpath.Proactor(ring.address, ring, OSError, *errors, False)
    one, other = socket.socketpair()
    with one, other:
        stream = fastpath.Connection(proactor, one.fileno(), 2, 1, 1)
        proactor.wait(0)
        assert ring.statistics().operations_in_flight == 2, "a receive, and the watch for the hangup"
        assert ring.close() == 0
        del stream


# --- single operations ---


def test_a_nop_completes_with_zero_once(ring: Ring) -> None:
    results = Results()
    operation = ring.nop(results)
    [completion] = drive(ring, lambda: results.ended)
    assert results.all == [0]
    assert completion == Completion(operation, 0, CompletionFlag(0))
    assert completion.is_final


def test_nothing_happens_before_the_ring_is_entered(ring: Ring) -> None:
    ring.nop(Results())
    assert ring.reap() == []
    assert ring.statistics().submissions == 0
    assert ring.statistics().operations_in_flight == 1


def test_entering_without_news_ends_at_the_timeout(ring: Ring) -> None:
    assert ring.enter(0) is True  # does not wait, and so has not waited in vain
    assert ring.enter(0.001) is False


def test_submitting_does_not_wait(ring: Ring) -> None:
    with socket_pair() as (one, other):
        results = Results()
        ring.poll(one.fileno(), PollEvent.IN, results)
        ring.submit()
        assert ring.statistics().submissions == 1
        other.send(b"x")
        drive(ring, lambda: results.ended)


def test_a_poll_tells_which_events_there_are(ring: Ring) -> None:
    with socket_pair() as (one, other):
        readable, writable, hung_up = Results(), Results(), Results()
        ring.poll(one.fileno(), PollEvent.OUT, writable)
        ring.poll(one.fileno(), PollEvent.IN, readable)
        drive(ring, lambda: writable.ended)
        assert writable.all == [PollEvent.OUT]
        assert readable.all == []
        other.send(b"x")
        drive(ring, lambda: readable.ended)
        assert readable.all == [PollEvent.IN]
        other.close()
        ring.poll(one.fileno(), PollEvent.OUT, hung_up)
        drive(ring, lambda: hung_up.ended)
        assert hung_up.final is not None
        assert hung_up.final & PollEvent.HUP


def test_a_multishot_poll_tells_of_each_change(ring: Ring) -> None:
    with socket_pair() as (one, other):
        results = Results()
        operation = ring.poll(one.fileno(), PollEvent.IN, results, multishot=True)
        for turn in range(1, 4):
            other.send(b"x")
            drive(ring, lambda turn=turn: len(results.all) >= turn)  # type: ignore[misc]
        assert not results.ended
        operation.cancel()
        drive(ring, lambda: results.ended)
        assert results.final == -errno.ECANCELED


@pytest.mark.parametrize("path", [__file__, os.path.dirname(__file__), "/dev/null"])
def test_a_poll_refuses_what_epoll_refuses(ring: Ring, path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(PermissionError):
            ring.poll(descriptor, PollEvent.IN, Results())
    finally:
        os.close(descriptor)
    with pytest.raises(OSError, match="descriptor") as caught:
        ring.poll(descriptor, PollEvent.IN, Results())
    assert caught.value.errno == errno.EBADF
    assert ring.statistics().operations_in_flight == 0


def test_a_poll_takes_what_epoll_takes_and_looks_like_a_file(ring: Ring) -> None:
    results = Results()
    with open("/proc/self/mounts") as mounts:
        ring.poll(mounts.fileno(), PollEvent.IN, results)
        drive(ring, lambda: results.ended)
    assert results.final is not None
    assert results.final & PollEvent.IN


@needs_full_tier
def test_an_accept_brings_a_descriptor_for_each_connection(ring: Ring) -> None:
    results = Results()
    with listening() as listener:
        operation = ring.accept(listener.fileno(), results)
        clients = [socket.create_connection(listener.getsockname()) for _ in range(5)]
        drive(ring, lambda: len(results.all) == 5)
        assert not results.ended
        for client, descriptor in zip(clients, results.all, strict=True):
            with socket.socket(fileno=descriptor) as accepted:
                assert not os.get_blocking(descriptor)
                assert not accepted.get_inheritable()
                client.sendall(b"x")
                client.close()
        operation.cancel()
        drive(ring, lambda: results.ended)
        assert results.final == -errno.ECANCELED


def test_a_send_sends(ring: Ring) -> None:
    with socket_pair() as (one, other):
        results = Results()
        ring.send(one.fileno(), b"hello", results)
        drive(ring, lambda: results.ended)
        assert results.all == [5]
        assert other.recv(16) == b"hello"


def test_a_send_keeps_its_data_alive(ring: Ring) -> None:
    with socket_pair() as (one, other):
        results = Results()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sent = pattern(1_000_000)
        only_reference = bytes(bytearray(sent))
        ring.send(one.fileno(), only_reference, results, msg_flags=socket.MSG_WAITALL)
        del only_reference
        received = bytearray()
        while len(received) < len(sent):
            ring.enter(0)
            ring.reap()
            with contextlib.suppress(BlockingIOError):
                received += other.recv(65536)
        drive(ring, lambda: results.ended)
        assert results.final == len(sent)
        assert received == sent


def test_a_send_cannot_be_abandoned_because_its_memory_is_read(ring: Ring) -> None:
    with socket_pair() as (one, _other):
        results = Results()
        operation = ring.send(one.fileno(), bytes(8 << 20), results, msg_flags=socket.MSG_WAITALL)
        ring.enter(0)
        with pytest.raises(ValueError, match="abandon"):
            operation.cancel(abandon=True)
        operation.cancel()
        drive(ring, lambda: results.ended)


# --- receiving ---


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


@needs_full_tier
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


@needs_full_tier
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


@needs_full_tier
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


# --- cancelling ---


def test_an_operation_can_be_cancelled_before_it_is_submitted(ring: Ring) -> None:
    with socket_pair() as (one, _other):
        results = Results()
        ring.poll(one.fileno(), PollEvent.IN, results).cancel()
        drive(ring, lambda: results.ended)
        assert results.all == [-errno.ECANCELED]


def test_an_operation_can_be_cancelled_in_flight_and_twice(ring: Ring) -> None:
    with socket_pair() as (one, _other):
        results = Results()
        operation = ring.poll(one.fileno(), PollEvent.IN, results)
        ring.submit()
        operation.cancel()
        operation.cancel()
        drive(ring, lambda: results.ended)
        assert results.all == [-errno.ECANCELED]
        drive(ring, lambda: ring.statistics().operations_in_flight == 0)


def test_a_cancel_may_be_too_late(ring: Ring) -> None:
    with socket_pair() as (one, other):
        results, after = Results(), Results()
        other.send(b"x")
        operation = ring.poll(one.fileno(), PollEvent.IN, results)
        ring.submit()
        operation.cancel()  # its completion is in the queue
        drive(ring, lambda: results.ended)
        assert results.all == [PollEvent.IN]
        drive(ring, lambda: ring.statistics().operations_in_flight == 0)
        operation.cancel()  # it is over, and has been told
        operation.cancel(abandon=True)
        ring.nop(after)
        drive(ring, lambda: after.ended)
        assert results.all == [PollEvent.IN]


@pytest.mark.parametrize("when", ["prepared", "submitted", "completed"])
def test_an_abandoned_operation_calls_nobody(ring: Ring, when: str) -> None:
    with socket_pair() as (one, other):
        results = Results()
        operation = ring.poll(one.fileno(), PollEvent.IN, results)
        if when != "prepared":
            ring.submit()
        if when == "completed":
            other.send(b"x")
            ring.enter(0)
        operation.cancel(abandon=True)
        drive(ring, lambda: ring.statistics().operations_in_flight == 0)
        assert results.all == []


@needs_full_tier
def test_an_abandoned_receive_gives_its_buffer_back() -> None:
    with (
        opened(buffer_count=1, buffer_size=64, unwanted=Feature.BUFFER_INCREMENT) as ring,
        socket_pair() as (one, other),
    ):
        operation = ring.receive(one.fileno(), Results())
        other.send(bytes(64))
        ring.enter(0)
        operation.cancel(abandon=True)
        drive(ring, lambda: ring.statistics().operations_in_flight == 0)
        receiver = Receiver(ring, one)
        other.send(b"next")
        drive(ring, lambda: receiver.data == b"next")


@needs_full_tier
def test_an_abandoned_accept_closes_the_descriptors_it_still_brings(ring: Ring) -> None:
    results = Results()
    with listening() as listener:
        operation = ring.accept(listener.fileno(), results)
        ring.submit()
        before = open_descriptors()
        clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
        ring.enter(0)  # accepted, and not yet told
        assert len(open_descriptors()) == len(before) + 6
        operation.cancel(abandon=True)
        drive(ring, lambda: ring.statistics().operations_in_flight == 0)
        assert len(open_descriptors()) == len(before) + 3
        assert results.all == []
        for client in clients:
            with client:
                client.settimeout(10)
                assert client.recv(1) == b""


@needs_full_tier
def test_closing_the_ring_closes_the_descriptors_that_nobody_took() -> None:
    with listening() as listener:
        before = open_descriptors()
        ring = Ring()
        ring.accept(listener.fileno(), Results())
        ring.submit()
        with socket.create_connection(listener.getsockname()):
            ring.enter(0)
            assert ring.close() == 0
        assert open_descriptors() == before


def test_a_cancel_that_finds_no_place_is_made_up_for() -> None:
    with opened() as ring, socket_pair() as (one, _other):
        kept, abandoned = Results(), Results()
        operations = [ring.poll(one.fileno(), PollEvent.IN, kept), ring.poll(one.fileno(), PollEvent.IN, abandoned)]
        ring.submit()
        entries, ring._ring.sq_entries = ring._ring.sq_entries, 0  # as if the kernel took none
        with pytest.raises(OSError, match="busy"):
            ring.nop(Results())
        operations[0].cancel()
        operations[1].cancel(abandon=True)
        ring._ring.sq_entries = entries
        drive(ring, lambda: ring.statistics().operations_in_flight == 0)
        assert kept.all == [-errno.ECANCELED]
        assert abandoned.all == []


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


@needs_full_tier
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

"""What a ring does without the kernel's features, one by one and without all."""

from __future__ import annotations

import errno
import re

import pytest
from support.descriptors import open_descriptors
from support.pairs import address_of, pattern, receive_exactly
from support.rings import EVERYTHING, Receiver, Results, listening, opened
from support.runs import drive, ring_run
from support.sockets import socket_pair

import gain_trio
from gain_trio import Feature, Marks, RingOptions
from gain_trio._io_manager import UringIOManager
from gain_trio._kernel import FULL_TIER, PollEvent, uring
from gain_trio._ring import Ring
from gain_trio._transports._backends._ring_connection import ring_connection

NEEDED = tuple(feature for feature in Feature if feature & FULL_TIER)
"""What connections on the ring need."""
BESIDE = tuple(feature for feature in Feature if not feature & FULL_TIER)
"""What they can do without."""

pytestmark = [
    pytest.mark.connections,
    pytest.mark.features,
    pytest.mark.driver,
    pytest.mark.ring,
    pytest.mark.usefixtures("no_descriptor_leak"),
]


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


@pytest.mark.usefixtures("full_tier")
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


@pytest.mark.usefixtures("full_tier")
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
                ring_connection(manager, one.fileno(), Marks())
            assert one.fileno() in [int(name.split()[0]) for name in open_descriptors()], "it is its caller's still"
    finally:
        manager.close()

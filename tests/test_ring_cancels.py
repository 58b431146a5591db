"""Cancels of a ring's operations, the abandoning of them, and a ring that closes over them."""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import Any

import pytest
import trio
import trio.testing
from support.descriptors import open_descriptors
from support.pairs import address_of
from support.rings import EVERYTHING, Receiver, Results, listening, opened
from support.runs import drive, ring_run
from support.sockets import socket_pair

import gain_trio
from gain_trio import Feature, RingOptions
from gain_trio._io_manager import UringIOManager
from gain_trio._io_manager._seam import current_io_manager
from gain_trio._kernel import PollEvent, fastpath
from gain_trio._ring import Ring

pytestmark = [
    pytest.mark.connections,
    pytest.mark.features,
    pytest.mark.driver,
    pytest.mark.ring,
    pytest.mark.usefixtures("no_descriptor_leak"),
]


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


@pytest.mark.usefixtures("full_tier")
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


@pytest.mark.usefixtures("full_tier")
@pytest.mark.parametrize("unwanted", [Feature(0), Feature.CANCEL_ANY, Feature.CANCEL_ANY | Feature.CQE_SKIP])
def test_closing_ends_all_that_lasts_on_a_connection(unwanted: Feature) -> None:
    """Also on a connection that was not closed before."""
    ring = Ring(RingOptions(unwanted=unwanted))
    errors = (trio.ClosedResourceError, trio.BusyResourceError, trio.TooSlowError)
    proactor = fastpath.Proactor(ring.address, ring, OSError, *errors, False)
    one, other = socket.socketpair()
    with one, other:
        stream = fastpath.Connection(proactor, one.fileno(), 2, 1, 1, None, 60.0)
        proactor.wait(0)
        assert ring.statistics().operations_in_flight == 2, "a receive, and the watch for the hangup"
        assert ring.close() == 0
        del stream


def test_what_a_poll_of_the_proactor_refuses(ring: Ring) -> None:
    errors = (trio.ClosedResourceError, trio.BusyResourceError, trio.TooSlowError)
    proactor: Any = fastpath.Proactor(ring.address, ring, OSError, *errors, False)
    table: dict[int, Any] = {}
    for arguments in ((), (table, 0, 1), ([], 0, 1, False)):
        with pytest.raises(TypeError, match="poll\\(\\) takes a dict"):
            proactor.poll(*arguments)
    for fd, events in (("0", 1), (0, "1"), (1 << 40, 1), (1 << 80, 1)):
        with pytest.raises((TypeError, OverflowError)):
            proactor.poll(table, fd, events, False)
    with pytest.raises(TypeError, match="something else than waits"):
        proactor.poll({0: None}, 0, 1, False)
    assert table == {}
    wait = proactor.poll(table, 0, 1, False)
    other = proactor.poll(table, 0, 1, False)  # no task waits in the first one
    assert table == {0: other}
    for each in (wait, other):
        each.close()


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


@pytest.mark.usefixtures("full_tier")
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


@pytest.mark.usefixtures("full_tier")
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


@pytest.mark.usefixtures("full_tier")
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

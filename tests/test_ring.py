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
from _helpers import descriptor_limit, drive, mapped_bytes, next_descriptor, ring_run, socket_pair
from pairs import address_of, open_descriptors, pattern, receive_exactly

import gain_trio
from gain_trio import Feature, RingOptions, RingUnavailable
from gain_trio._kernel import CompletionFlag, PollEvent, uring
from gain_trio._ring import Completion, Ring

OPTIONAL = (Feature.NO_SQARRAY, Feature.REGISTERED_FD, Feature.TASKRUN_FLAG, Feature.BUFFER_INCREMENT)
NONE_OF_THEM = Feature(sum(OPTIONAL))

pytestmark = pytest.mark.usefixtures("no_descriptor_leak")


@contextlib.contextmanager
def opened(**options: Any) -> Iterator[Ring]:
    """A ring, closed at the end with nothing left in flight and no completion that belonged to nobody."""
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


@pytest.mark.parametrize("name", ["entries", "completion_entries", "buffer_count", "buffer_size", "max_slots"])
def test_an_option_that_is_no_number_is_refused_by_name(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        RingOptions(**{name: "8"})  # type: ignore[arg-type]


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
    assert (options.entries, options.buffer_size, options.unwanted) == (8, 100, Feature(0))
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
        (errno.ENOSYS, "older than 5.1"),
        (errno.EPERM, "kernel.io_uring_disabled"),
        (errno.EACCES, "SELinux"),
        (errno.ENOMEM, "RLIMIT_MEMLOCK"),
        (errno.EINVAL, "older than 6.1"),
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


# --- features ---


@pytest.mark.parametrize("unwanted", [*OPTIONAL, NONE_OF_THEM], ids=lambda feature: feature.name or "all optional")
def test_a_feature_that_is_unwanted_is_not_used_and_connections_echo_without_it(unwanted: Feature) -> None:
    message = pattern(300_000)

    async def main() -> None:
        info = gain_trio.backend_info()
        for feature in OPTIONAL:
            assert feature.name is not None
            if feature & unwanted:
                assert feature.name.lower() not in info.features
        [listener] = await gain_trio.open_listeners("tcp://127.0.0.1:0")
        async with listener, await gain_trio.connect(address_of(listener)) as client:
            async with await listener.accept() as served:
                await client.send(message)
                await served.send(await receive_exactly(served, len(message)))
                assert await receive_exactly(client, len(message)) == message

    ring_run(main, unwanted=unwanted)


def test_features_of_this_kernel_are_told() -> None:
    with opened() as full, opened(unwanted=NONE_OF_THEM) as plain:
        assert Feature.BUFFER_RING in full.features
        assert plain.features == Feature.BUFFER_RING


def test_connections_need_receive_buffers_and_say_so() -> None:
    async def main() -> None:
        [listener] = await gain_trio.open_listeners("tcp://127.0.0.1:0")
        async with listener:
            with pytest.raises(RuntimeError, match="BUFFER_RING"):
                await gain_trio.connect(address_of(listener))

    ring_run(main, unwanted=Feature.BUFFER_RING)


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
        ring.send(one.fileno(), bytes(bytearray(sent)), results, msg_flags=socket.MSG_WAITALL)  # nobody else has it
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

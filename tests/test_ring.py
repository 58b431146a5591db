"""The ring by itself, without Trio: its life, its options, and single operations."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
from typing import Any

import pytest
from support.descriptors import descriptor_limit, mapped_bytes, next_descriptor
from support.pairs import pattern
from support.rings import Receiver, Results, listening, opened
from support.runs import drive
from support.sockets import socket_pair

import gain_trio
from gain_trio import Marks, RingOptions, RingUnavailable
from gain_trio._kernel import CompletionFlag, PollEvent, uring
from gain_trio._ring import Completion, Ring

pytestmark = [
    pytest.mark.connections,
    pytest.mark.features,
    pytest.mark.driver,
    pytest.mark.ring,
    pytest.mark.usefixtures("no_descriptor_leak"),
]


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


@pytest.mark.usefixtures("full_tier")
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


@pytest.mark.usefixtures("full_tier")
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


@pytest.mark.usefixtures("full_tier")
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

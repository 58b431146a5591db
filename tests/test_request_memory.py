"""The memory of the reader of requests: it changes no meaning, it is bounded, and it holds no secret of a client."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from gain_trio._http import Limits, RequestMemory, RequestReader
from gain_trio._http._request_fields import SECRETS

pytestmark = pytest.mark.no_run

LIMITS = Limits()


def request(*lines: str, target: str = "/") -> bytes:
    return "\r\n".join([f"GET {target} HTTP/1.1", "Host: here", *lines, "", ""]).encode("latin-1")


def reader(memory: RequestMemory) -> RequestReader:
    return RequestReader(memory, LIMITS)


def held(memory: RequestMemory) -> Iterator[bytes]:
    """All bytes that a memory refers to, however deep."""
    seen: set[int] = set()
    todo: list[Any] = [memory.whole, memory.sections, memory.lines, memory.framings, memory.recent]
    while todo:
        found = todo.pop()
        if id(found) in seen or isinstance(found, type):
            continue
        seen.add(id(found))
        if isinstance(found, bytes):
            yield found
        else:
            todo += gc.get_referents(found)


def entries(memory: RequestMemory) -> list[int]:
    return [len(memory.whole), len(memory.sections), len(memory.lines), len(memory.framings)]


def test_a_repeated_request_is_one_object_for_all_connections() -> None:
    memory = RequestMemory()
    first = reader(memory).feed_request(request("X: y"))
    assert first is not None
    assert reader(memory).feed_request(request("X: y")) is first
    other = reader(memory).feed_request(request("X: z"))
    assert other is not None
    assert other is not first
    assert other.pairs == ((b"host", b"here"), (b"x", b"z"))
    assert other.framing is first.framing


def test_the_version_and_the_case_of_names_make_other_requests() -> None:
    memory = RequestMemory()
    first = reader(memory).feed_request(request("Connection: keep-alive"))
    old = reader(memory).feed_request(request("Connection: keep-alive").replace(b"1.1", b"1.0"))
    assert first is not None
    assert old is not None
    assert (first.framing.minor, first.framing.connection) == (1, b"")
    assert (old.framing.minor, old.framing.connection) == (0, b"keep-alive")


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_no_secret_is_held(name: bytes) -> None:
    memory = RequestMemory()
    for spelled in (name.decode(), name.decode().title(), name.decode().upper()):
        for _ in range(3):
            one = reader(memory)
            for _ in range(3):
                found = one.feed_request(request("X: y", f"{spelled}: verysecret", "Y: z"))
                assert found is not None
                assert (name, b"verysecret") in found.pairs
    assert entries(memory)[2] > 0
    assert not [data for data in held(memory) if b"verysecret" in data]


def test_no_query_is_held() -> None:
    memory = RequestMemory()
    for _ in range(3):
        assert reader(memory).feed_request(request(target="/?token=verysecret")) is not None
    assert not [data for data in held(memory) if b"verysecret" in data]


def test_a_request_with_a_body_is_not_taken_for_one_without() -> None:
    memory = RequestMemory()
    whole = request("Content-Length: 2")
    for _ in range(3):
        one = reader(memory)
        assert one.feed_request(whole) is not None
        assert one.in_body
        one.feed(b"hi")
        assert one.take_body() == b"hi"
        assert one.feed_request(request()) is not None
        assert not one.in_body
    assert not memory.whole.get(whole)


def test_a_pair_of_requests_is_not_taken_for_one() -> None:
    memory = RequestMemory()
    for _ in range(3):
        one = reader(memory)
        assert one.feed_request(request() + request(target="/second")) is not None
        assert one.has_more
        second = one.next_request()
        assert second is not None
        assert second.target == b"/second"
        assert one.next_request() is None


def test_each_request_of_a_long_batch_is_found_again() -> None:
    memory = RequestMemory()
    one = reader(memory)
    first, other = request("X: y" * 20), request("X: z", target="/second")
    found = []
    for batch in (first * 40, first * 40 + other, other * 40, first + other, first * 40):
        following = one.feed_request(batch)
        while following is not None:
            found.append(following)
            following = one.next_request()
        assert (one.unread, one._data) == (0, b"")  # a connection that waits holds no request
    targets = [b"/"] * 80 + [b"/second"] * 41 + [b"/", b"/second"] + [b"/"] * 40
    assert [each.target for each in found] == targets
    assert len({id(each) for each in found[:80]}) == 1
    assert found[-38] is found[-1]
    assert len(memory.whole) == 2


def test_a_flood_of_different_requests_does_not_grow_it() -> None:
    memory = RequestMemory()
    most = [0, 0, 0, 0]
    for number in range(5000):
        found = reader(memory).feed_request(request(f"X: {number}", target=f"/{number}"))
        assert found is not None
        most = [max(counts) for counts in zip(most, entries(memory), strict=True)]
    for number in range(1000):
        reader(memory).feed_request(request().replace(b"here", b"here%d" % number))
        most = [max(counts) for counts in zip(most, entries(memory), strict=True)]
    assert most == [256, 256, 1024, 256]
    assert sum(map(len, held(memory))) < 1 << 20


@pytest.mark.parametrize("name", ["te", "x"])
def test_many_short_fields_are_not_held_together(name: str) -> None:
    memory = RequestMemory()
    for number in range(3):
        found = reader(memory).feed_request(request(*[f"{name}:"] * (200 + number)))
        assert found is not None
        assert len(found.pairs) == 201 + number
    assert not memory.sections
    assert not memory.whole
    assert len(memory.framings) == (0 if name == "te" else 1)


@pytest.mark.parametrize("size", [1, 20, 40])
def test_no_head_has_begun_after_one_in_pieces(size: int) -> None:
    whole = request("X: y", "Z: 1")
    memory = RequestMemory()
    for last in (whole, whole + whole):  # the second of a pair is found in the memory
        one = reader(memory)
        assert one.feed_request(last[:size]) is None
        assert one.in_head
        one.feed(last[size:])
        assert one.next_request() is not None
        assert not one.in_head
        if last != whole:
            assert one.next_request() is not None
        assert not one.in_head
        assert one.next_request() is None
        assert not one.in_head


def test_long_requests_and_lines_are_not_held() -> None:
    memory = RequestMemory()
    for _ in range(3):
        assert reader(memory).feed_request(request("X: " + "y" * 2000)) is not None
    assert not [data for data in held(memory) if len(data) > 1024]


def test_a_connection_whose_requests_all_differ_stops_to_look() -> None:
    memory = RequestMemory()
    one = reader(memory)
    for number in range(100):
        assert one.feed_request(request(f"X: {number}", target=f"/{number}")) is not None
    assert len(memory.whole) <= 4
    assert len(memory.sections) <= 4


def test_a_derived_object_is_found_again() -> None:
    memory = RequestMemory()
    first = reader(memory).feed_request(request())
    assert first is not None
    assert first.derived is None
    first.derived = "derived"
    again = reader(memory).feed_request(request())
    assert again is not None
    assert again.derived == "derived"

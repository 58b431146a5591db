"""The queues of a connection over a socket."""

from __future__ import annotations

import random

import pytest

from gain_trio._transports._connections._queues import (
    GATHERED,
    NOTHING,
    SMALL,
    Inbound,
    Message,
    Outbound,
    head_of,
    joined,
    message_of,
    without_head,
)

pytestmark = pytest.mark.no_run

LENGTHS = (0, 1, 2, 10, 1000, SMALL - 1, SMALL, SMALL + 1, 70_000)


@pytest.mark.parametrize("seed", range(20))
def test_inbound_is_what_was_put_in_less_what_was_taken_out(seed: int) -> None:
    random_ = random.Random(seed)
    queue: Inbound = NOTHING
    expected = b""
    for _ in range(200):
        if random_.random() < 0.5:
            data = random_.randbytes(random_.choice(LENGTHS))
            queue, expected = joined(queue, data), expected + data
        count = random_.choice([*LENGTHS, len(expected)])
        head = head_of(queue, count)
        assert head == expected[:count]
        assert type(head) is bytes
        if random_.random() < 0.5:
            queue, expected = without_head(queue, count), expected[count:]
        assert len(queue) == len(expected)
    assert queue == expected


def test_what_arrives_and_is_taken_whole_is_not_copied() -> None:
    data = bytes(range(256))
    queue = joined(NOTHING, data)
    assert head_of(queue, 256) is data
    assert without_head(queue, 256) is NOTHING


def next_of(queue: Outbound | Message) -> bytes:
    """Its head in one piece."""
    parts = [bytes(part) for part in queue.head()]
    assert 0 < len(parts) <= GATHERED
    assert all(parts)
    return b"".join(parts)


@pytest.mark.parametrize("seed", range(20))
def test_outbound_gives_out_what_was_put_in(seed: int) -> None:
    random_ = random.Random(seed)
    queue = Outbound()
    expected = taken = b""
    for _ in range(200):
        data = random_.randbytes(random_.choice(LENGTHS[1:]))
        start = random_.choice([0, len(data) // 2])
        queue.add(data, start)
        expected += data[start:]
        assert queue.size == len(expected) - len(taken)
        while queue.size and random_.random() < 0.6:
            head = next_of(queue)
            count = random_.randrange(len(head) + 1)
            taken += head[:count]
            queue.remove(count)
    while queue.size:
        head = next_of(queue)
        taken += head
        queue.remove(len(head))
    assert taken == expected


def test_small_pieces_lie_together_and_large_ones_are_referenced() -> None:
    queue = Outbound()
    for _ in range(100_000):
        queue.add(b"ab")
    assert len(queue._segments) == 4
    large = bytes(SMALL)
    queue.add(large)
    last = queue._segments[-1]
    assert isinstance(last, memoryview)
    assert last.obj is large
    assert queue.size == 200_000 + SMALL


@pytest.mark.parametrize("seed", range(20))
def test_a_message_gives_out_its_parts(seed: int) -> None:
    random_ = random.Random(seed)
    parts = [random_.randbytes(random_.choice(LENGTHS)) for _ in range(random_.randrange(200))]
    expected, taken = b"".join(parts), b""
    with message_of([random_.choice([bytes, bytearray, memoryview])(part) for part in parts]) as message:
        while message.parts:
            if random_.random() < 0.5:
                head = next_of(message)
                count = random_.randrange(len(head) + 1)
                message.remove(count)
                taken += head[:count]
            else:
                count = random_.choice([1, 1000, 100_000])
                piece = message.take(count)
                assert len(piece) == min(count, len(expected) - len(taken))
                taken += piece
        assert message.take(10) == b""
    assert taken == expected

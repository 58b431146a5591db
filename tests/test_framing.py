"""Messages out of a stream: receive_exactly, receive_until, receive_line."""

from __future__ import annotations

import os
import pickle
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from support.fuzz import cut, places
from support.pairs import MEBIBYTE, PATIENCE, Pair, open_pair, open_trio_pair, pattern, until, until_queued
from support.sockets import reset
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from gain_trio import Connection, IncompleteMessage, Marks, MessageTooLong
from gain_trio._transports._connections._framing import Framing

pytestmark = pytest.mark.connections

Call = Callable[[Connection], Awaitable[Any]]

CALLS: dict[str, Call] = {
    "receive_exactly": lambda connection: connection.receive_exactly(5),
    "receive_until": lambda connection: connection.receive_until(b"!"),
    "receive_line": lambda connection: connection.receive_line(),
}
each_call = pytest.mark.parametrize("call", list(CALLS.values()), ids=list(CALLS))


async def send_in_pieces(client: Connection, served: Connection, pieces: list[bytes]) -> None:
    """Send one piece after the other, each when the receiving task has seen the one before."""
    for piece in pieces:
        await client.send(piece)
        await client.flush()
        await wait_all_tasks_blocked()


# --- a number of bytes ---


async def test_exactly_what_is_there(pair: Pair) -> None:
    client, served = pair
    await client.send(b"abcdef")
    await until_queued(served, 6)
    assert await served.receive_exactly(1) == b"a"
    assert await served.receive_exactly(2) == b"bc"
    assert await served.receive_exactly(count=3) == b"def"
    assert served.inbound_buffered == 0


async def test_exactly_in_pieces(pair: Pair) -> None:
    client, served = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_in_pieces, client, served, [b"a", b"bc", b"def", b"gh"])
        assert await served.receive_exactly(4) == b"abcd"
        assert await served.receive_exactly(4) == b"efgh"


async def test_exactly_nothing_is_a_checkpoint(pair: Pair) -> None:
    client, served = pair
    await client.send(b"abc")
    await until_queued(served, 3)
    with assert_checkpoints():
        assert await served.receive_exactly(0) == b""
    assert served.inbound_buffered == 3


@pytest.mark.parametrize(
    ("count", "error"),
    [(-1, ValueError), (1.5, TypeError), ("1", TypeError), (None, TypeError), (1 << 70, OverflowError)],
)
async def test_exactly_refuses(pair: Pair, count: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        await pair[1].receive_exactly(count)


async def test_exactly_at_the_end(pair: Pair) -> None:
    client, served = pair
    await client.send(b"abc")
    await client.send_eof()
    for _ in range(3):
        with pytest.raises(IncompleteMessage, match="ended after 3 of 5 bytes") as caught:
            await served.receive_exactly(5)
        assert (caught.value.received, caught.value.expected) == (3, 5)
    assert await served.receive_exactly(2) == b"ab"
    assert served.next() == b"c"
    for _ in range(3):
        with pytest.raises(IncompleteMessage) as caught:
            await served.receive_exactly(1)
        assert (caught.value.received, caught.value.expected) == (0, 1)
    assert await served.receive_exactly(0) == b""
    assert await served.receive() == b""


@pytest.mark.parametrize("low", [0, 999])
async def test_exactly_more_than_the_high_mark(low: int) -> None:
    client, served = await open_pair(marks=Marks(receive_high=1000, receive_low=low))
    data = pattern(3 * MEBIBYTE)
    async with client, served, trio.open_nursery() as nursery:
        nursery.start_soon(client.send, data)
        await until_queued(served, 1000)  # it has stopped receiving when the call begins
        assert await served.receive_exactly(2 * MEBIBYTE) == data[: 2 * MEBIBYTE]
        assert await served.receive_exactly(MEBIBYTE) == data[2 * MEBIBYTE :]


async def test_exactly_between_the_marks() -> None:
    """Receiving has stopped, and the queue is above the low mark: it goes on nevertheless."""
    client, served = await open_pair(marks=Marks(receive_high=1000, receive_low=0))
    async with client, served:
        await client.send(bytes(1000))
        await until_queued(served, 1000)
        await wait_all_tasks_blocked()
        assert served.next(900) == bytes(900)
        await client.send(bytes(400))
        with trio.fail_after(PATIENCE):
            assert await served.receive_exactly(500) == bytes(500)


async def test_exactly_when_another_task_has_taken_some() -> None:
    """A mistake of the program, which costs it bytes of the message; but it does not wait for ever."""
    client, served = await open_pair(marks=Marks(receive_high=1000, receive_low=0))
    async with client, served, trio.open_nursery() as nursery:
        results: list[bytes] = []

        async def receive() -> None:
            results.append(await served.receive_exactly(2000))

        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        await client.send(b"a" * 1500)
        await until_queued(served, 1500)
        assert served.discard(600) == 600
        await client.send(b"b" * 1100)
        with trio.fail_after(PATIENCE):
            await until(lambda: bool(results))
        assert results == [b"a" * 900 + b"b" * 1100]


async def test_exactly_when_another_task_takes_some_of_what_was_enough() -> None:
    """The same, between the arrival of the last byte and the turn of the task that waits for it."""
    (first, eager), (second, served) = await open_pair(), await open_pair(marks=Marks(receive_high=1000, receive_low=0))
    results: list[bytes] = []
    taken: list[int] = []

    async def take() -> None:
        assert await eager.receive_exactly(1) == b"!"
        taken.append(served.discard(500))

    async def receive() -> None:
        results.append(await served.receive_exactly(1000))

    async with first, eager, second, served:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            nursery.start_soon(receive)
            await wait_all_tasks_blocked()
            await first.send(b"!")
            await second.send(b"a" * 1000)
            await until(lambda: bool(taken))
            await second.send(b"b" * taken[0])
            with trio.fail_after(PATIENCE):
                await until(lambda: bool(results))
        assert results == [b"a" * (1000 - taken[0]) + b"b" * taken[0]]


async def test_the_high_mark_holds_again_when_it_is_over() -> None:
    """A call for very much that is cancelled leaves a queue as bounded as it was."""
    client, served = await open_pair(marks=Marks(receive_high=4096, receive_low=0), client_marks=Marks(send_high=1))
    data = pattern(32 * MEBIBYTE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, data)
        async with trio.open_nursery() as inner:
            inner.start_soon(served.receive_exactly, len(data) + 1)
            await until_queued(served, MEBIBYTE)
            inner.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        held = served.inbound_buffered
        assert MEBIBYTE <= held < len(data) // 2
        await wait_all_tasks_blocked()
        assert served.inbound_buffered == held
        assert await served.receive_exactly(len(data)) == data
    await client.aclose()
    await served.aclose()


# --- up to a separator ---


async def test_until(pair: Pair) -> None:
    client, served = pair
    await client.send(b"one, two, three")
    await until_queued(served, 15)
    assert await served.receive_until(b", ") == b"one, "
    assert await served.receive_until(separator=b",", max_bytes=4) == b"two,"
    assert served.next() == b" three"


@pytest.mark.parametrize("separator", [b"\n", b"\r\n", b"\r\n\r\n", b"aab", b"abababac"])
async def test_until_a_separator_that_comes_in_two(pair: Pair, separator: bytes) -> None:
    client, served = pair
    for head in [b"", b"x", b"ab", separator[:-1]]:
        message = head + separator
        message = message[: message.index(separator) + len(separator)]
        for place in range(1, len(message)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_in_pieces, client, served, [message[:place], message[place:] + b"more"])
                assert await served.receive_until(separator) == message
            assert await served.receive_exactly(4) == b"more"


async def test_until_in_single_bytes(pair: Pair) -> None:
    client, served = pair
    message = b"\r\r\n\r\r\n\n\r\n\r\n"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_in_pieces, client, served, [bytes([byte]) for byte in message])
        assert await served.receive_until(b"\r\n\r\n") == message


async def test_until_more_than_the_high_mark() -> None:
    client, served = await open_pair(marks=Marks(receive_high=1000, receive_low=10))
    data = pattern(2 * MEBIBYTE).replace(b"\n", b" ")
    async with client, served, trio.open_nursery() as nursery:
        nursery.start_soon(client.send, data + b"\n" + b"rest")
        assert await served.receive_until(b"\n", max_bytes=len(data) + 1) == data + b"\n"
        assert await served.receive_exactly(4) == b"rest"


@pytest.mark.parametrize("separator", [b"|", b"-->"])
async def test_until_at_most(pair: Pair, separator: bytes) -> None:
    client, served = pair
    await client.send(b"12345" + separator)
    size = 5 + len(separator)
    await until_queued(served, size)
    for limit in range(len(separator), size):
        with pytest.raises(MessageTooLong, match=f"longer than {limit} bytes") as caught:
            await served.receive_until(separator, max_bytes=limit)
        assert caught.value.limit == limit
        assert served.inbound_buffered == size
    assert await served.receive_until(separator, max_bytes=size) == b"12345" + separator


async def test_until_at_most_is_told_before_the_separator_comes(pair: Pair) -> None:
    client, served = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_in_pieces, client, served, [b"123", b"45", b"678"])
        with pytest.raises(MessageTooLong):
            await served.receive_until(b"|", max_bytes=5)
        assert served.inbound_buffered == 5
    assert await served.receive_exactly(8) == b"12345678"


@pytest.mark.parametrize(
    ("separator", "max_bytes", "error"),
    [
        (b"", 10, ValueError),
        (b"abc", 2, ValueError),
        (b"a", 0, ValueError),
        (b"a", -1, ValueError),
        ("a", 10, TypeError),
        (bytearray(b"a"), 10, TypeError),
        (None, 10, TypeError),
        (b"a", "10", TypeError),
        (b"a", None, TypeError),
    ],
)
async def test_until_refuses(pair: Pair, separator: Any, max_bytes: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        await pair[1].receive_until(separator, max_bytes=max_bytes)


async def test_until_the_end(pair: Pair) -> None:
    client, served = pair
    await client.send(b"one|two")
    await client.send_eof()
    assert await served.receive_until(b"|") == b"one|"
    for _ in range(3):
        with pytest.raises(IncompleteMessage, match="ended after 3 bytes of a message, without") as caught:
            await served.receive_until(b"|")
        assert (caught.value.received, caught.value.expected) == (3, None)
    assert served.next() == b"two"
    for separator in [b"|", b"||"]:
        with pytest.raises(IncompleteMessage) as caught:
            await served.receive_until(separator)
        assert (caught.value.received, caught.value.expected) == (0, None)


# --- lines ---


async def test_lines(pair: Pair) -> None:
    client, served = pair
    await client.send(b"one\ntwo\r\n\n\r\n\rthree\r\r\nend\n")
    await client.send_eof()
    lines = []
    while (line := await served.receive_line()) is not None:
        lines.append(line)
    assert lines == [b"one", b"two", b"", b"", b"\rthree\r", b"end"]
    for _ in range(3):
        with assert_checkpoints():
            assert await served.receive_line() is None


async def test_a_line_that_is_not_ended(pair: Pair) -> None:
    client, served = pair
    await client.send(b"one\ntwo\r")
    await client.send_eof()
    assert await served.receive_line() == b"one"
    for _ in range(3):
        with pytest.raises(IncompleteMessage) as caught:
            await served.receive_line()
        assert (caught.value.received, caught.value.expected) == (4, None)
    assert served.next() == b"two\r"
    assert await served.receive_line() is None


async def test_a_line_that_is_too_long(pair: Pair) -> None:
    client, served = pair
    await client.send(b"12345\r\n")
    await until_queued(served, 7)
    with pytest.raises(MessageTooLong):
        await served.receive_line(max_bytes=6)
    assert await served.receive_line(max_bytes=7) == b"12345"
    with pytest.raises(ValueError, match="max_bytes"):
        await served.receive_line(max_bytes=0)


async def test_very_many_lines(pair: Pair) -> None:
    client, served = pair
    count = 30_000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, b"".join(b"line %d\r\n" % number for number in range(count)))
        for number in range(count):
            assert await served.receive_line() == b"line %d" % number


# --- all of them ---


@each_call
async def test_cancelled_in_the_middle_nothing_is_lost(pair: Pair, call: Call) -> None:
    client, served = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, served)
        await wait_all_tasks_blocked()
        await client.send(b"abc")
        await until_queued(served, 3)
        nursery.cancel_scope.cancel()
    assert served.peek() == b"abc"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, b"d!\n")
        assert await call(served) == b"abcd!"


@each_call
async def test_cancelled_when_all_of_it_has_come(pair: Pair, call: Call) -> None:
    client, served = pair
    await client.send(b"abcd!\n")
    await until_queued(served, 6)
    with trio.CancelScope() as scope:
        scope.cancel()
        await call(served)
    assert scope.cancelled_caught
    assert served.peek() == b"abcd!\n"
    assert await call(served) == b"abcd!"


@each_call
async def test_one_task_at_a_time(pair: Pair, call: Call) -> None:
    served = pair[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, served)
        await wait_all_tasks_blocked()
        for other in [*CALLS.values(), lambda connection: connection.receive()]:
            with pytest.raises(trio.BusyResourceError, match="already receiving"):
                await other(served)
        nursery.cancel_scope.cancel()


@each_call
async def test_closed_meanwhile(pair: Pair, call: Call) -> None:
    served = pair[1]

    async def receive() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await call(served)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        await served.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await call(served)


@each_call
async def test_reset_in_the_middle(call: Call) -> None:
    client, served = await open_trio_pair()
    async with served:
        await client.send_all(b"abc")
        await until_queued(served, 3)
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                with pytest.raises(trio.BrokenResourceError) as caught:
                    await call(served)
                assert isinstance(caught.value.__cause__, ConnectionResetError)

            nursery.start_soon(receive)
            await wait_all_tasks_blocked()
            reset(client)
        assert served.peek() == b"abc"
        with pytest.raises(trio.BrokenResourceError):
            await call(served)
        assert await served.receive_exactly(2) == b"ab"
        assert await served.receive() == b"c"


@each_call
async def test_sending_goes_on_beside_it(pair: Pair, call: Call) -> None:
    client, served = pair
    data = pattern(4 * MEBIBYTE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.send, data)
        results: list[bytes] = []

        async def receive() -> None:
            results.append(await call(served))

        nursery.start_soon(receive)
        assert await client.receive_exactly(len(data)) == data
        assert not results
        await client.send(b"abcd!\n")
    assert results == [b"abcd!"]


@pytest.mark.full_ring  # over a socket a task is resumed whenever the socket is readable
async def test_it_is_not_resumed_for_every_piece(pair: Pair) -> None:
    """A task that waits for a number of bytes is resumed when they are there, whatever else there is news of."""
    client, served = pair
    pieces = 20
    steps: list[int] = []

    class Counter(trio.abc.Instrument):
        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            if task.name == "receiver":
                steps.append(1)

    async def receive() -> None:
        assert await served.receive_exactly(pieces * 100) == bytes(pieces * 100)

    trio.lowlevel.add_instrument(Counter())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive, name="receiver")
        await wait_all_tasks_blocked()
        for number in range(pieces):
            await served.send(b"news of the other direction")
            await served.flush()
            await client.send(bytes(100))
            if number < pieces - 1:
                await until_queued(served, (number + 1) * 100)
    assert len(steps) == 2, "once to begin, and once when all was there"


@pytest.mark.full_ring  # over a socket every piece ends the wait
async def test_pieces_that_nobody_waits_for_are_no_news() -> None:
    """They do not end the run's wait for I/O either."""
    client, served = await open_trio_pair()
    pieces = 50
    waits: list[float] = []

    class Counter(trio.abc.Instrument):
        def after_io_wait(self, timeout: float) -> None:
            waits.append(timeout)

    def send() -> None:  # from outside of the run, where nothing else happens meanwhile
        for _ in range(pieces):
            assert sock.send(bytes(100)) == 100

    async with client, served:
        sock = socket.socket(fileno=os.dup(client.socket.fileno()))
        thread = threading.Thread(target=send)
        trio.lowlevel.add_instrument(Counter())
        with sock:
            thread.start()
            assert await served.receive_exactly(pieces * 100) == bytes(pieces * 100)
            thread.join()
    assert len(waits) <= 5


def test_the_exceptions() -> None:
    for error in [IncompleteMessage(3, 5), IncompleteMessage(3), MessageTooLong(7)]:
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert vars(again) == vars(error)
        assert str(again) == str(error)
    assert isinstance(IncompleteMessage(0), EOFError)
    assert isinstance(MessageTooLong(0), ValueError)


# --- what they stand on ---


async def test_fill_tells_how_much_there_is(pair: Pair) -> None:
    client, served = pair
    await client.send(b"abc")
    await until_queued(served, 3)
    assert await served._fill(1) == 3
    assert await served._fill(3) == 3
    with assert_checkpoints():
        assert await served._fill(0) == 3
    await client.send_eof()
    assert await served._fill(4) == 3
    with assert_checkpoints():
        assert await served._fill(4) == 3
    assert served.next() == b"abc"
    assert await served._fill(1) == 0


@pytest.mark.parametrize(
    ("count", "error"), [(-1, ValueError), (1.0, TypeError), (b"1", TypeError), (1 << 64, OverflowError)]
)
async def test_fill_refuses(pair: Pair, count: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        await pair[1]._fill(count)


async def test_find(pair: Pair) -> None:
    client, served = pair
    assert served._find(b"a", 0) == -1
    data = b"abcabc\0abc"
    await client.send(data)
    await until_queued(served, len(data))
    for taken in range(3):  # one chunk, and what is left of one
        rest = data[taken:]
        for separator in [b"a", b"c", b"abc", b"\0", b"x", b"bca", rest, rest + b"x"]:
            for start in range(len(rest) + 2):
                assert served._find(separator, start) == rest.find(separator, start)
        assert served.next(1) == rest[:1]
    assert served.inbound_buffered == len(data) - 3
    await served.aclose()
    with pytest.raises(trio.ClosedResourceError):
        served._find(b"a", 0)


@pytest.mark.full_ring  # what C has to check itself
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), TypeError),
        ((b"a",), TypeError),
        ((b"a", 0, 0), TypeError),
        (("a", 0), TypeError),
        ((bytearray(b"a"), 0), TypeError),
        ((b"a", None), TypeError),
        ((b"a", 1.0), TypeError),
        ((b"", 0), ValueError),
        ((b"a", -1), ValueError),
        ((b"a", 1 << 64), OverflowError),
    ],
)
async def test_find_refuses(pair: Pair, arguments: tuple[Any, ...], error: type[Exception]) -> None:
    find: Callable[..., int] = pair[1]._find
    with pytest.raises(error):
        find(*arguments)


# --- whatever the pieces ---

WORDS = st.lists(st.sampled_from([b"a", b"b", b"\r", b"\n", b"\r\n", b"ab" * 40]), max_size=40).map(b"".join)


def run_in_pieces(data: bytes, cuts: list[int], receive: Callable[[Connection, list[int]], Awaitable[None]]) -> None:
    """Send ``data`` in pieces to a task that is told where to keep the number of bytes that it has taken."""

    async def main() -> None:
        client, served = await open_pair(marks=Marks(receive_high=16, receive_low=3))
        taken = [0]
        sent = 0
        with trio.fail_after(PATIENCE):
            async with client, served, trio.open_nursery() as nursery:
                nursery.start_soon(receive, served, taken)
                for piece in cut(data, cuts):
                    await client.send(piece)
                    sent += len(piece)
                    await until(lambda: taken[0] + served.inbound_buffered >= sent)
                await client.send_eof()

    trio.run(main)


@given(WORDS, places(120), st.sampled_from([b"\n", b"\r\n", b"aa", b"aba", b"abab\r"]))
def test_until_is_split(data: bytes, cuts: list[int], separator: bytes) -> None:
    *messages, rest = data.split(separator)

    async def receive(connection: Connection, taken: list[int]) -> None:
        for message in messages:
            assert await connection.receive_until(separator) == message + separator
            taken[0] += len(message) + len(separator)
        with pytest.raises(IncompleteMessage) as caught:
            await connection.receive_until(separator)
        assert caught.value.received == len(rest)
        assert connection.next() == rest

    run_in_pieces(data, cuts, receive)


@given(WORDS, places(120))
def test_lines_are_split(data: bytes, cuts: list[int]) -> None:
    *lines, rest = data.split(b"\n")

    async def receive(connection: Connection, taken: list[int]) -> None:
        for line in lines:
            assert await connection.receive_line() == line.removesuffix(b"\r")
            taken[0] += len(line) + 1
        if rest:
            with pytest.raises(IncompleteMessage):
                await connection.receive_line()
            assert connection.next() == rest
        assert await connection.receive_line() is None

    run_in_pieces(data, cuts, receive)


@given(st.lists(st.integers(0, 60), max_size=12), places(300))
def test_exactly_is_slicing(counts: list[int], cuts: list[int]) -> None:
    data = pattern(sum(counts))

    async def receive(connection: Connection, taken: list[int]) -> None:
        for count in counts:
            assert await connection.receive_exactly(count) == data[taken[0] : taken[0] + count]
            taken[0] += count
        assert await connection.receive() == b""

    run_in_pieces(data, cuts, receive)


@given(st.data())
def test_any_calls_in_any_order_with_cancellations(choose: st.DataObject) -> None:
    """Against a model: the bytes themselves, and where one is in them."""
    data = choose.draw(WORDS)
    cuts = choose.draw(places(120))
    calls = choose.draw(st.lists(st.sampled_from(["exactly", "until", "line", "next", "cancel"]), max_size=20))

    async def cancelled(connection: Connection) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await connection.receive_line()

    async def receive(connection: Connection, taken: list[int]) -> None:
        for call in calls:
            rest = data[taken[0] :]
            if call == "exactly":
                count = len(rest) // 2
                assert await connection.receive_exactly(count) == rest[:count]
                taken[0] += count
            elif call == "until" and b"ab" in rest:
                assert await connection.receive_until(b"ab") == rest[: rest.index(b"ab") + 2]
                taken[0] += rest.index(b"ab") + 2
            elif call == "line" and b"\n" in rest:
                assert await connection.receive_line() == rest[: rest.index(b"\n")].removesuffix(b"\r")
                taken[0] += rest.index(b"\n") + 1
            elif call == "next":
                some = connection.next(2)
                assert rest.startswith(some)
                taken[0] += len(some)
            elif call == "cancel":
                await cancelled(connection)
        assert await connection.receive_exactly(len(data) - taken[0]) == data[taken[0] :]
        taken[0] = len(data)

    run_in_pieces(data, cuts, receive)


# --- how much is looked at ---


class Counted(Framing):
    """A queue that is filled by a piece a wait, and counts the bytes that searches look at."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._queue = b""
        self.searched = 0

    async def _fill(self, count: int, /) -> int:
        while len(self._queue) < count and (piece := next(self._pieces, b"")):
            self._queue += piece
        return len(self._queue)

    def _find(self, separator: bytes, start: int, /) -> int:
        self.searched += len(self._queue) - start
        return self._queue.find(separator, start)

    def next(self, count: int | None = None, /) -> bytes:
        taken, self._queue = self._queue[:count], self._queue[len(self._queue) if count is None else count :]
        return taken

    def _take_exactly(self, count: int, /) -> bytes | None:
        return self.next(count) if count <= len(self._queue) else None


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("separator", [b"\n", b"\r\n\r\n"])
async def test_a_search_goes_on_where_the_last_one_ended(size: int, separator: bytes) -> None:
    length = 10_000
    message = bytes(length) + separator
    connection = Counted(iter(cut(message, range(0, len(message), size))))
    assert await connection.receive_until(separator) == message
    assert connection.searched <= len(message) + (len(message) // size + 1) * len(separator)

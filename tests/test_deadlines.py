"""Deadlines of connections and idle timeouts, on a clock that jumps."""

from __future__ import annotations

import errno
import functools
import gc
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from support.pairs import MEBIBYTE, Pair, clog, open_trio_pair, pattern, receive_exactly, until
from trio.testing import MockClock, wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection, Marks
from gain_trio._transports._connections._deadlines import DeadlineKeeper, current_keeper

pytestmark = [pytest.mark.connections, pytest.mark.features]

BIG = 24 * MEBIBYTE
"""More than any peer's kernel holds."""


class DeliberateError(Exception):
    pass


def seconds_from_now(seconds: float) -> float:
    return trio.current_time() + seconds


RECEIVING: list[Callable[[Connection], Awaitable[object]]] = [
    lambda connection: connection.receive(),
    lambda connection: connection.receive(1),
    lambda connection: connection.receive_into(bytearray(10)),
    lambda connection: connection.receive_some(),
    lambda connection: connection.receive_exactly(10),
    lambda connection: connection.receive_until(b"\n"),
    lambda connection: connection.receive_line(),
    lambda connection: connection.__anext__(),
    lambda connection: connection.messages().__anext__(),
    lambda connection: connection.messages(connection.receive_line).__anext__(),
    lambda connection: connection.wait_data(),
]
receiving = pytest.mark.parametrize("call", RECEIVING)
SENDING: list[Callable[[Connection], Awaitable[object]]] = [
    lambda connection: connection.send(b"x"),
    lambda connection: connection.send_all(b"x"),
    lambda connection: connection.flush(),
    lambda connection: connection.wait_send_all_might_not_block(),
    lambda connection: connection.send_eof(),
]
sending = pytest.mark.parametrize("call", SENDING)


# --- of calls ---


async def test_a_connection_has_no_deadlines_at_first(pair: Pair) -> None:
    client, _ = pair
    assert (client.read_deadline, client.write_deadline, client.idle_timeout) == (math.inf, math.inf, math.inf)


@receiving
async def test_a_receive_that_is_too_slow(
    pair: Pair, autojump_clock: MockClock, call: Callable[[Connection], Awaitable[object]]
) -> None:
    client, served = pair
    for _ in range(3):
        start = trio.current_time()
        served.read_deadline = start + 5
        with pytest.raises(trio.TooSlowError, match="read deadline"):
            await call(served)
        assert trio.current_time() == start + 5
    # The connection is as good as before.
    served.read_deadline = math.inf
    await client.send(b"123456789\n")
    assert await served.receive_line() == b"123456789"
    await served.send(b"back")
    assert await client.receive() == b"back"


@sending
async def test_a_send_that_is_too_slow(
    autojump_clock: MockClock, call: Callable[[Connection], Awaitable[object]]
) -> None:
    client, served = await open_trio_pair()
    async with client:
        await clog(served)
        queued = served.outbound_buffered
        for _ in range(3):
            start = trio.current_time()
            served.write_deadline = start + 5
            with pytest.raises(trio.TooSlowError, match="write deadline"):
                await call(served)
            assert trio.current_time() == start + 5
        assert served.outbound_buffered <= queued, "a send that waits for others has queued nothing"
        served.write_deadline = math.inf
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.send, b"after that")
            received = await receive_exactly(client, BIG + len(b"after that"))
        assert received[-10:] == b"after that"
        served.abort()


@pytest.mark.parametrize("kind", [bytes, bytearray])
async def test_of_a_send_that_was_begun_the_rest_is_sent(autojump_clock: MockClock, kind: type[Any]) -> None:
    client, served = await open_trio_pair()
    data = pattern(BIG)
    async with client, served:
        buffer = kind(data)
        served.write_deadline = seconds_from_now(5)
        with pytest.raises(trio.TooSlowError):
            await served.send(buffer)
        if kind is bytearray:
            buffer[:] = bytes(len(buffer))  # it is the caller's again
        served.write_deadline = math.inf
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.send, b"the end")
            assert await receive_exactly(client, BIG) == data
            assert await receive_exactly(client, 7) == b"the end"


async def test_what_has_arrived_is_never_too_late(pair: Pair, autojump_clock: MockClock) -> None:
    client, served = pair
    await client.send(b"early")
    await until(lambda: served.inbound_buffered == 5)
    served.set_deadline(seconds_from_now(-100))
    assert await served.receive(2) == b"ea"
    with pytest.raises(trio.TooSlowError):
        await served.receive_exactly(10)
    assert await served.receive() == b"rly"
    with pytest.raises(trio.TooSlowError):
        await served.receive()
    await served.send(b"a send that need not wait")
    await served.flush()
    assert await client.receive() == b"a send that need not wait"


async def test_the_end_of_the_stream_is_an_answer(pair: Pair, autojump_clock: MockClock) -> None:
    client, served = pair
    served.read_deadline = seconds_from_now(5)
    await client.send_eof()
    assert await served.receive() == b""


async def test_moving_the_deadline_of_a_call_in_progress(pair: Pair, autojump_clock: MockClock) -> None:
    """Away and nearer, many times."""
    _client, served = pair
    ended: list[float] = []

    async def receive() -> None:
        with pytest.raises(trio.TooSlowError):
            await served.receive()
        ended.append(trio.current_time())

    start = trio.current_time()
    for deadlines in ([math.inf, 5], [5, 10, 20, 30], [30, 20, 10], [10, math.inf, 7], [3, 100, 4], [-1]):
        start = trio.current_time()
        served.read_deadline = math.inf
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked(0.001)
            moved = trio.current_time()
            for deadline in deadlines:
                served.read_deadline = start + deadline
        assert ended.pop() == max(moved, start + deadlines[-1])


async def test_a_deadline_that_is_renewed_never_comes(pair: Pair, autojump_clock: MockClock) -> None:
    client, served = pair
    for _ in range(50):
        served.read_deadline = seconds_from_now(10)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, b"x")
            assert await served.receive() == b"x"
        await trio.sleep(9)
    served.read_deadline = start = seconds_from_now(10)
    with pytest.raises(trio.TooSlowError):
        await served.receive()
    assert trio.current_time() == start


async def test_each_direction_has_its_own(autojump_clock: MockClock) -> None:
    client, served = await open_trio_pair()
    order: list[tuple[str, float]] = []

    async def too_slow(name: str, call: Awaitable[object]) -> None:
        with pytest.raises(trio.TooSlowError):
            await call
        order.append((name, trio.current_time() - start))

    async with client:
        await clog(served)
        start = trio.current_time()
        served.read_deadline, served.write_deadline = start + 7, start + 3
        async with trio.open_nursery() as nursery:
            nursery.start_soon(too_slow, "read", served.receive())
            nursery.start_soon(too_slow, "write", served.flush())
        assert order == [("write", 3), ("read", 7)]
        served.abort()


async def test_a_close_is_not_bound_by_the_write_deadline(autojump_clock: MockClock) -> None:
    client, served = await open_trio_pair()
    async with client:
        await clog(served)
        served.write_deadline = seconds_from_now(-1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.aclose)
            assert len(await receive_exactly(client, BIG)) == BIG
        assert await client.receive_some() == b""


async def test_cancelled_before_its_deadline_a_call_is_cancelled(pair: Pair, autojump_clock: MockClock) -> None:
    client, served = pair
    served.read_deadline = seconds_from_now(10)
    with trio.move_on_after(5) as scope:
        await served.receive()
    assert scope.cancelled_caught
    await trio.sleep(10)
    served.read_deadline = math.inf
    await client.send(b"still good")
    assert await served.receive() == b"still good"


@pytest.mark.parametrize(
    ("value", "error"), [(math.nan, ValueError), ("soon", (TypeError, ValueError)), (None, TypeError)]
)
async def test_a_deadline_is_a_number(pair: Pair, value: Any, error: type[Exception]) -> None:
    client, _ = pair
    for name in ("read_deadline", "write_deadline"):
        with pytest.raises(error):
            setattr(client, name, value)
    with pytest.raises(error):
        client.set_deadline(value)
    client.set_deadline(7)
    assert (client.read_deadline, client.write_deadline) == (7.0, 7.0)
    await client.aclose()
    client.set_deadline(math.inf)


async def test_many_deadlines_are_kept_by_one_task(autojump_clock: MockClock) -> None:
    ended: list[int] = []

    async def too_slow(connection: Connection, number: int) -> None:
        connection.read_deadline = 1000 + (number * 7 % 50)
        with pytest.raises(trio.TooSlowError):
            await connection.receive()
        assert trio.current_time() == 1000 + (number * 7 % 50)
        ended.append(number)

    await trio.sleep(1)
    pairs = []
    [listener] = await gain_trio.open_listeners("tcp://127.0.0.1:0")
    async with listener:
        for _ in range(50):
            client = await gain_trio.connect(f"tcp://127.0.0.1:{listener.local_address[1]}")
            pairs.append((client, await listener.accept()))
    async with trio.open_nursery() as nursery:
        for number, (_client, served) in enumerate(pairs):
            nursery.start_soon(too_slow, served, number)
        await wait_all_tasks_blocked(0.001)
        root = trio.lowlevel.current_root_task()
        assert root is not None
        system = [task.name for nursery in root.child_nurseries for task in nursery.child_tasks]
        assert system.count("gain_trio deadline keeper") <= 1
    assert ended == sorted(ended, key=lambda number: number * 7 % 50)
    for one in pairs:
        for connection in one:
            connection.abort()
    assert current_keeper()._heap.earliest is None, "closed connections have no entries"


async def test_a_connection_that_is_dropped_is_let_go(autojump_clock: MockClock) -> None:
    client, served = await open_trio_pair()
    served.read_deadline = seconds_from_now(100)
    with trio.move_on_after(1):
        await served.receive()
    await (
        trio.lowlevel.checkpoint()
    )  # Trio's loop keeps the outcome of a step, and with it its frames, until the next one
    with pytest.warns(ResourceWarning, match="unclosed"):
        del served
        gc.collect()
    assert await client.receive_some() == b"", "it was closed at once, and not when the keeper came"
    await trio.sleep(200)
    await client.aclose()


def test_the_keeper_is_the_runs_own() -> None:
    async def keeper() -> DeadlineKeeper:
        assert current_keeper() is current_keeper()
        return current_keeper()

    assert trio.run(keeper) is not trio.run(keeper)


# --- idle ---


async def test_an_idle_connection_is_closed_and_says_so(
    pair: Pair, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    client, served = pair
    caplog.set_level(logging.INFO, logger="gain_trio")
    start = trio.current_time()
    served.idle_timeout = 30
    assert served.idle_timeout == 30
    with pytest.raises(trio.BrokenResourceError) as caught:
        await served.receive()
    assert trio.current_time() == start + 30
    cause = caught.value.__cause__
    assert isinstance(cause, TimeoutError)
    assert cause.errno == errno.ETIMEDOUT
    assert await client.receive() == b"", "the peer is told"
    with pytest.raises(trio.BrokenResourceError):
        await served.send(b"too late")
    [record] = [record for record in caplog.records if "no byte was moved" in record.getMessage()]
    assert "30 seconds" in record.getMessage()


async def test_an_idle_connection_is_closed_when_the_log_fails(
    pair: Pair, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_record: logging.LogRecord) -> bool:
        raise DeliberateError("in the filter")

    client, served = pair
    logger = logging.getLogger("gain_trio")
    caplog.set_level(logging.INFO, logger.name)
    served.idle_timeout = client.idle_timeout = 30
    logger.addFilter(fail)
    try:
        for connection in pair:
            with pytest.raises(trio.BrokenResourceError):
                await connection.receive()
            assert connection._was_idle
    finally:
        logger.removeFilter(fail)
    assert capsys.readouterr().err.count("DeliberateError: in the filter") == 2


@pytest.mark.parametrize("direction", ["in", "out"])
async def test_a_byte_in_either_direction_starts_the_time_again(
    pair: Pair, autojump_clock: MockClock, direction: str
) -> None:
    client, served = pair
    served.idle_timeout = 10
    sender, receiver = (client, served) if direction == "in" else (served, client)
    for _ in range(10):
        await trio.sleep(9)
        await sender.send(b"x")
        assert await receiver.receive() == b"x"
    last = trio.current_time()
    with pytest.raises(trio.BrokenResourceError):
        await served.receive()
    assert trio.current_time() == last + 10


async def test_an_idle_timeout_can_be_changed_and_turned_off(pair: Pair, autojump_clock: MockClock) -> None:
    client, served = pair
    served.idle_timeout = 10
    await trio.sleep(5)
    served.idle_timeout = 100
    await trio.sleep(90)
    served.idle_timeout = math.inf
    await trio.sleep(1000)
    served.idle_timeout = 20
    await client.send(b"alive")
    assert await served.receive() == b"alive"
    start = trio.current_time()
    served.idle_timeout = 5
    with pytest.raises(trio.BrokenResourceError):
        await served.receive()
    assert trio.current_time() == start + 5


async def test_unsent_bytes_of_an_idle_connection_end_with_a_reset(autojump_clock: MockClock) -> None:
    client, served = await open_trio_pair()
    async with client:
        await clog(served)
        served.idle_timeout = 5
        with pytest.raises(trio.BrokenResourceError):
            await served.flush()
        await served.aclose()
        with pytest.raises(trio.BrokenResourceError):
            while await client.receive_some():
                pass


@pytest.mark.parametrize("seconds", [0, -1, math.nan])
async def test_an_idle_timeout_is_greater_than_nothing(pair: Pair, seconds: float) -> None:
    with pytest.raises(ValueError, match="more than 0 seconds"):
        pair[0].idle_timeout = seconds


async def test_a_closed_connection_is_not_idle(
    pair: Pair, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="gain_trio")
    client, served = pair
    client.idle_timeout = served.idle_timeout = 5
    await client.aclose()
    served.abort()
    assert current_keeper()._heap.earliest is None
    await trio.sleep(100)
    assert not [record for record in caplog.records if "no byte" in record.getMessage()]
    client.idle_timeout = 7  # is of no consequence any more


async def test_a_detached_connection_is_not_idle(
    pair: Pair, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The socket of a detached connection goes on, and belongs to its new owner."""
    caplog.set_level(logging.INFO, logger="gain_trio")
    client, served = pair
    served.idle_timeout = 5
    served.read_deadline = seconds_from_now(7)
    with trio.move_on_after(1):
        await served.receive()  # so that the keeper knows of it
    sock, _queued = await served.detach()
    with sock:
        assert current_keeper()._heap.earliest is None
        await trio.sleep(100)
        assert not caplog.records
        assert not served._was_idle
        sock.sendall(b"goes on")
        assert await client.receive_exactly(7) == b"goes on"


async def test_served_connections_that_are_idle_are_closed_and_counted(autojump_clock: MockClock) -> None:
    """A client that says nothing, and one that sends a byte a second, beside one that is served."""

    async def handler(connection: Connection) -> None:
        connection.read_deadline = seconds_from_now(60)
        await connection.receive_line()
        await connection.send(b"hello\n")

    async with trio.open_nursery() as nursery:
        serve = functools.partial(gain_trio.serve, idle_timeout=20)
        server = await nursery.start(serve, handler, "tcp://127.0.0.1:0")
        address = f"tcp://127.0.0.1:{server.addresses[0][1]}"
        async with await gain_trio.connect(address) as silent, await gain_trio.connect(address) as dripping:
            start = trio.current_time()
            ends: dict[str, float] = {}

            async def drip() -> None:
                with pytest.raises(trio.BrokenResourceError):
                    while True:
                        await dripping.send(b"x")
                        await trio.sleep(1)

            async def watch(name: str, connection: Connection) -> None:
                try:
                    assert await connection.receive() == b""
                except trio.BrokenResourceError:
                    pass
                ends[name] = trio.current_time() - start

            async with trio.open_nursery() as clients:
                clients.start_soon(drip)
                clients.start_soon(watch, "silent", silent)
                clients.start_soon(watch, "dripping", dripping)
                for _ in range(10):
                    async with await gain_trio.connect(address) as good:
                        await good.send(b"hi\n")
                        assert await good.receive_line() == b"hello"
                    await trio.sleep(5)
            assert ends["silent"] == 20
            assert 60 <= ends["dripping"] <= 62
        await until(lambda: server.active_connections == 0)
        statistics = server.statistics()
        assert (statistics.accepted, statistics.idle, statistics.too_slow) == (12, 1, 1)
        assert (statistics.broken, statistics.handler_errors) == (0, 0), "each connection has one cause"
        assert statistics.closed["finished"] == 10
        nursery.cancel_scope.cancel()


async def test_marks_bound_what_a_late_send_queues(autojump_clock: MockClock) -> None:
    """One buffer over the mark, and not one more a call."""
    client, served = await open_trio_pair(marks=Marks(send_high=MEBIBYTE))
    async with client:
        for _ in range(20):
            served.write_deadline = seconds_from_now(1)
            with pytest.raises(trio.TooSlowError):
                await served.send(bytearray(BIG))
        assert served.outbound_buffered <= BIG + MEBIBYTE
        served.abort()

"""The changes of a connection for callbacks, and sending without waiting: on the ring, over sockets, with TLS."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import AsyncIterator

import pytest
import trio
from support.certificates import open_tls_pair
from support.pairs import (
    MEBIBYTE,
    PATIENCE,
    QUIET,
    Pair,
    fill_kernel,
    open_pair,
    open_trio_pair,
    pattern,
    receive_all,
    receive_exactly,
    until,
)
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from gain_trio import Connection, Marks
from gain_trio._callback_base import END, STALLED, WRITTEN, Changes
from gain_trio._transports import CHANGED, ENDED
from gain_trio._transports._tls._tls_connection import TlsConnection

pytestmark = pytest.mark.connections

SMALL = Marks(receive_high=8192, receive_low=4096, send_high=16384)


@pytest.fixture(params=["plain", "tls"])
async def both(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    """The client's connection and the accepted one, whose marks are small."""
    pair: Pair = await (open_pair(marks=SMALL) if request.param == "plain" else open_tls_pair(marks=SMALL))
    yield pair
    for connection in pair:
        connection.abort()


async def told(changes: Changes, count: int) -> None:
    """Wait until ``count`` bytes have been reported, in pieces of any size."""
    while count > 0:
        arrived = await changes.next()
        assert arrived > 0, arrived
        count -= arrived
    assert count == 0


# --- what has arrived ---


async def test_each_byte_is_told_once_and_stays(both: Pair) -> None:
    client, served = both
    changes = Changes(served)
    for expected in (5, 10):
        await client.send(b"12345")
        assert await changes.next() == 5
        assert served.inbound_buffered == expected
    assert served._take_exactly(3) == b"123"
    await client.send(b"67")
    assert await changes.next() == 2
    assert served._take_exactly(100) is None
    assert served._take_exactly(9) == b"451234567"
    assert served._take_exactly(1) is None
    assert served._take_exactly(0) == served._take_exactly(-1) == b""


async def test_what_was_queued_before_is_told(both: Pair) -> None:
    client, served = both
    changes = Changes(served)
    await client.send(b"early bytes")
    assert await served._fill(11) == 11
    served.discard(6)
    assert await changes.next() == 5


async def test_what_is_taken_before_it_is_told_is_not_told(both: Pair) -> None:
    client, served = both
    changes = Changes(served)
    await client.send(b"first")
    assert await changes.next() == 5
    await client.send(b"second")
    assert await served._fill(11) == 11
    assert served.next(8) == b"firstsec"
    assert await changes.next() == 3
    await client.send(b"third")
    assert await served._fill(8) == 8
    served.discard()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(told, changes, 6)
        await wait_all_tasks_blocked()
        await client.send(b"fourth")


async def test_the_end_is_told_after_the_bytes_and_ever_after(both: Pair) -> None:
    client, served = both
    changes = Changes(served)
    await client.send(b"last")
    await client.aclose()
    await told(changes, 4)
    assert await changes.next() == END
    for _ in range(3):
        with assert_checkpoints():
            assert await changes.next() == END
    assert served.next() == b"last"


async def test_a_reset_is_raised_after_the_bytes() -> None:
    client, served = await open_pair()
    changes = Changes(served)
    await client.send(b"last")
    await told(changes, 4)
    client.abort()
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError) as caught:
            await changes.next()
        assert isinstance(caught.value.__cause__, ConnectionResetError)
    assert served.next() == b"last"
    await served.aclose()


async def test_a_failed_send_is_raised_by_the_wait() -> None:
    """A server of callbacks has no other call that could."""
    client, served = await open_pair()
    changes = Changes(served)
    assert served._send_nowait(bytes(32 * MEBIBYTE)) > 0
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await changes.next()

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        client.abort()
    await served.aclose()


async def test_cancelling_loses_nothing(both: Pair) -> None:
    client, served = both
    changes = Changes(served)
    for _ in range(3):
        with trio.move_on_after(0) as scope:
            await changes.next()
        assert scope.cancelled_caught
    await client.send(b"here")
    await until(lambda: served.inbound_buffered == 4 or served.fileno() >= 0)
    with trio.CancelScope() as scope:
        scope.cancel()
        await changes.next()
    assert scope.cancelled_caught
    await told(changes, 4)


async def test_one_task_at_a_time(both: Pair) -> None:
    client, served = both
    changes = Changes(served)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(told, changes, 1)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await changes.next()
        with pytest.raises(trio.BusyResourceError):
            await served.receive()
        await client.send(b"x")


async def test_closing_ends_the_wait(both: Pair) -> None:
    _client, served = both
    changes = Changes(served)

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await changes.next()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        await served.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await changes.next()
    with pytest.raises(trio.ClosedResourceError):
        served._send_nowait(b"late")
    with pytest.raises(trio.ClosedResourceError):
        served._take_exactly(1)
    with pytest.raises(trio.ClosedResourceError):
        changes.watch_written(True)
    changes.end()
    assert changes.take_written() == 0


async def test_the_program_can_end_it(both: Pair) -> None:
    client, served = both
    changes = Changes(served)

    async def wait() -> None:
        assert await changes.next() == END

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        changes.end()
        changes.end()
    await client.send(b"unheard")
    assert await changes.next() == END
    with assert_checkpoints():
        assert await changes.next() == END
    assert served._send_nowait(b"still sending") >= 0
    assert await receive_exactly(client, 13) == b"still sending"


async def test_what_the_program_has_ended_can_be_resumed(both: Pair) -> None:
    client, served = both
    changes = Changes(served)
    changes.end()
    assert await changes.next() == END
    await client.send(b"unheard")
    await until(lambda: client.outbound_buffered == 0)
    assert await changes.next() == END
    changes.resume()
    await told(changes, 7)
    await client.aclose()
    assert await changes.next() == END
    changes.resume()
    assert await changes.next() == END
    served.abort()
    with pytest.raises(trio.ClosedResourceError):
        changes.resume()


async def test_a_read_deadline_holds_for_it(autojump_clock: MockClock) -> None:
    client, served = await open_pair()
    changes = Changes(served)
    served.read_deadline = trio.current_time() + 5
    with pytest.raises(trio.TooSlowError):
        await changes.next()
    served.read_deadline = math.inf
    await client.send(b"good as before")
    await told(changes, 14)
    await client.aclose()
    await served.aclose()


# --- the connection's part of it ---


async def test_the_program_can_have_the_wait_answer(both: Pair) -> None:
    client, served = both
    answers: list[int] = []

    async def wait() -> None:
        answers.append(await served._wait_change(0))

    await client.send(b"bytes come after it")
    await until(lambda: client.outbound_buffered == 0)
    served._note_change()
    served._note_change()
    await wait()
    await wait()
    assert answers == [CHANGED, 19]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        served._note_change()
    assert answers == [CHANGED, 19, CHANGED]
    with trio.move_on_after(0) as scope:  # that was reported, and is no more
        await wait()
    assert scope.cancelled_caught
    await client.aclose()
    served._note_change()
    await wait()
    await wait()
    await wait()
    assert answers[3:] == [CHANGED, ENDED, ENDED]


async def test_an_answer_counts_what_receive_has_left(pair: Pair) -> None:
    client, served = pair
    await client.send(b"0123456789")
    assert await served.receive(4) == b"0123"
    assert await served._wait_change(0) == 6
    await client.send(b"more")
    assert await served._wait_change(0) == 4
    assert served.next() == b"456789more"


# --- a queue that no task reads from ---


async def test_a_stall_is_told_once_a_pause(both: Pair) -> None:
    client, served = both
    changes = Changes(served)
    data = pattern(MEBIBYTE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, data)
        taken = b""
        stalls = 0
        while len(taken) < len(data):
            change = await changes.next()
            if change == STALLED:
                stalls += 1
                with trio.move_on_after(0.01) as scope:
                    await changes.next()
                assert scope.cancelled_caught or served.inbound_buffered >= 8192
                taken += served.next()
            elif len(taken) + served.inbound_buffered == len(data):
                taken += served.next()
    assert taken == data
    assert stalls >= 1


async def test_a_task_that_waits_for_room_is_woken_by_taking(both: Pair) -> None:
    client, served = both
    changes = Changes(served)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, bytes(4 * MEBIBYTE))
        while await changes.next() != STALLED:
            pass
        woken = trio.Event()

        async def wait() -> None:
            assert await changes.next() > 0
            woken.set()

        nursery.start_soon(wait)
        await wait_all_tasks_blocked(0.01)
        assert not woken.is_set()
        served.discard(served.inbound_buffered - 4096)
        await woken.wait()
        nursery.cancel_scope.cancel()


async def stall(client: Connection, changes: Changes) -> None:
    """Have the queue be full, and the kernel hold more."""
    with trio.move_on_after(QUIET):
        while True:
            await client.send(bytes(65536))
    while await changes.next() != STALLED:
        pass


async def reset_told(changes: Changes) -> None:
    with trio.fail_after(PATIENCE), pytest.raises(trio.BrokenResourceError) as caught:
        await changes.next()
    assert isinstance(caught.value.__cause__, ConnectionResetError)


@pytest.mark.parametrize("waits", [False, True], ids=["before", "meanwhile"])
async def test_a_reset_is_told_though_the_queue_is_full(both: Pair, waits: bool) -> None:
    """Or a program that takes nothing would keep the connection for ever."""
    client, served = both
    changes = Changes(served, watches_resets=True)
    await stall(client, changes)
    async with trio.open_nursery() as nursery:
        if waits:
            nursery.start_soon(reset_told, changes)
            await wait_all_tasks_blocked()
        client.abort()
    await reset_told(changes)
    await reset_told(changes)


async def test_a_reset_that_was_told_early_comes_after_the_bytes_too(both: Pair) -> None:
    client, served = both
    changes = Changes(served, watches_resets=True)
    await stall(client, changes)
    client.abort()
    await reset_told(changes)
    taken = queued = len(served.next())
    with trio.fail_after(PATIENCE), pytest.raises(trio.BrokenResourceError) as caught:
        while await changes.next() != END:
            taken += len(served.next())
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    assert taken > queued


async def test_a_reset_behind_a_full_queue_is_not_told_to_who_will_take_it(both: Pair) -> None:
    client, served = both
    changes = Changes(served)
    await stall(client, changes)
    client.abort()
    with trio.move_on_after(QUIET):
        await changes.next()
        pytest.fail("there is nothing to tell")
    taken = queued = len(served.next())
    with trio.fail_after(PATIENCE), pytest.raises(trio.BrokenResourceError):
        while await changes.next() != END:
            taken += len(served.next())
    assert taken > queued


@pytest.mark.parametrize("more", [False, True], ids=["nothing behind it", "more in the kernel"])
async def test_a_send_that_fails_is_told_though_the_queue_is_full(both: Pair, more: bool) -> None:
    """A reset is not; but a program whose sends fail has learnt of it, and may take nothing any more."""
    client, served = both
    changes = Changes(served)
    if more:
        await stall(client, changes)
    else:
        await client.send(bytes(8192))
        while await changes.next() != STALLED:
            pass
    async with trio.open_nursery() as nursery:
        told = trio.Event()

        async def wait() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await changes.next()
            told.set()

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        client.abort()
        with trio.fail_after(PATIENCE):
            while True:
                try:
                    served._send_nowait(b"one more")
                except trio.BrokenResourceError:
                    break
                await wait_all_tasks_blocked(0.001)
            await told.wait()


async def test_the_end_of_both_sides_is_no_error_while_the_queue_is_full() -> None:
    """The socket has something to tell then, for ever, and that must neither end the wait nor keep the run busy."""
    client, served = await open_pair(marks=SMALL)
    changes = Changes(served, watches_resets=True)
    await client.send(bytes(60_000))
    await client.flush()
    await served.send_eof()
    while await changes.next() != STALLED:
        pass
    ended = trio.Event()
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with trio.fail_after(PATIENCE):
                while await changes.next() != END:
                    served.discard()
            ended.set()

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        await client.send_eof()
        await wait_all_tasks_blocked(QUIET)
        served.discard()
    assert ended.is_set()
    await client.aclose()
    await served.aclose()


async def test_a_full_queue_without_a_descriptor_to_watch_the_socket_with(
    both: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    client, served = both
    changes = Changes(served, watches_resets=True)
    monkeypatch.setattr("select.epoll", none_left)
    await stall(client, changes)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(told_something, changes)
        await wait_all_tasks_blocked()
        served.discard()
    changes.end()
    while await changes.next() != END:
        pass


async def told_something(changes: Changes) -> None:
    assert await changes.next() > 0


# --- sending without waiting ---


async def test_sends_are_in_order_whatever_is_used(both: Pair) -> None:
    client, served = both
    pieces = [pattern(size) for size in (0, 1, 100, 4095, 4096, 70_000, 3, 200_000)]
    for piece in pieces:
        served._send_nowait(piece)
        served._send_nowait(bytearray(piece))
        served._send_nowait(memoryview(piece)[: len(piece) // 2])
    expected = b"".join(piece + piece + piece[: len(piece) // 2] for piece in pieces)
    assert await receive_exactly(client, len(expected)) == expected
    await served.flush()
    assert served.outbound_buffered == 0
    await served.send(b"and so on")
    served._send_nowait(b", and on")
    assert await receive_exactly(client, 17) == b"and so on, and on"


async def test_what_is_sent_without_waiting_is_flushed_by_closing(both: Pair) -> None:
    client, served = both
    data = pattern(2 * MEBIBYTE)
    served._send_nowait(data)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.aclose)
        assert await receive_all(client) == data


async def test_a_cancelled_close_with_something_unsent_resets() -> None:
    client, served = await open_trio_pair()
    served._send_nowait(bytes(32 * MEBIBYTE))
    with trio.CancelScope() as scope:
        scope.cancel()
        await served.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await receive_all(client)
    await client.aclose()


async def test_it_does_not_overtake_a_send_that_waits(both: Pair) -> None:
    client, served = both
    data = bytearray(32 * MEBIBYTE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.send, data)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            served._send_nowait(b"in between")
        nursery.start_soon(receive_exactly, client, len(data))
    served._send_nowait(b"behind")
    assert await receive_exactly(client, 6) == b"behind"


async def test_after_send_eof_there_is_no_more(pair: Pair) -> None:
    _client, served = pair
    await served.send_eof()
    with pytest.raises(trio.ClosedResourceError, match="send_eof"):
        served._send_nowait(b"late")


@pytest.mark.parametrize("what", [5, "text", None, [1, 2]])
async def test_only_bytes_are_sent(both: Pair, what: object) -> None:
    client, served = both
    with pytest.raises(TypeError):
        served._send_nowait(what)  # type: ignore[arg-type]
    served._send_nowait(b"clean")
    assert await receive_exactly(client, 5) == b"clean"


# --- what the kernel has taken ---


async def test_written_bytes_add_up(both: Pair) -> None:
    client, served = both
    changes = Changes(served)
    served._send_nowait(b"before any request")
    await served.flush()
    changes.watch_written(True)
    data = pattern(4 * MEBIBYTE)
    total = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive_exactly, client, 18 + len(data))
        served._send_nowait(data)
        while total < len(data):
            assert await changes.next() == WRITTEN
            written = changes.take_written()
            assert written > 0 or isinstance(served, TlsConnection)  # of which a piece may have left in part
            total += written
    assert total == len(data)
    assert changes.take_written() == 0
    changes.watch_written(False)
    served._send_nowait(b"untold")
    await served.flush()
    await client.send(b"more")
    assert await changes.next() == 4
    assert changes.take_written() == 0


async def test_written_is_told_of_what_was_outbound_before(both: Pair) -> None:
    """A server that has had to pause, and then waits, is woken when there is room."""
    client, served = both
    changes = Changes(served)
    data = pattern(8 * MEBIBYTE)
    served._send_nowait(data)
    changes.watch_written(True)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive_exactly, client, len(data))
            while served.outbound_buffered:
                assert await changes.next() == WRITTEN
                changes.take_written()


async def test_written_is_told_to_a_wait_that_began_before_it_was_watched(both: Pair) -> None:
    client, served = both
    changes = Changes(served)
    data = pattern(8 * MEBIBYTE)
    served._send_nowait(data)
    told_written = trio.Event()

    async def wait() -> None:
        assert await changes.next() == WRITTEN
        assert changes.take_written() > 0 or isinstance(served, TlsConnection)
        told_written.set()

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            changes.watch_written(True)
            await wait_all_tasks_blocked()
            nursery.start_soon(receive_exactly, client, len(data))
            await told_written.wait()
            nursery.cancel_scope.cancel()


async def test_a_program_that_always_writes_hears_of_its_peer(both: Pair) -> None:
    """Where the kernel takes bytes at once there is a change at once.  The peer has its turn in between."""
    client, served = both
    changes = Changes(served)
    changes.watch_written(True)
    served._send_nowait(b"x")
    await client.send(b"hello")
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive_all, client)
            while (change := await changes.next()) == WRITTEN:
                changes.take_written()
                served._send_nowait(b"x")
            assert change == 5
            nursery.cancel_scope.cancel()


async def test_written_is_told_of_bytes_that_are_tls_own() -> None:
    client, served = await open_tls_pair()
    changes = Changes(served)
    await fill_kernel(served._below)
    changes.watch_written(True)
    served._below._send_nowait(b"as an answer to a renewal of keys")
    assert served.outbound_buffered
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive_all, client._below)
            assert await changes.next() == WRITTEN
            assert changes.take_written() == 0
            nursery.cancel_scope.cancel()
    client.abort()
    served.abort()


async def test_written_comes_before_what_has_arrived(both: Pair) -> None:
    client, served = both
    changes = Changes(served)
    changes.watch_written(True)
    served._send_nowait(b"answer")
    await client.send(b"question")
    await served.flush()
    assert await served._fill(8) == 8
    assert await changes.next() == WRITTEN
    assert changes.take_written() == 6
    assert await changes.next() == 8


async def test_written_is_told_though_the_stream_has_ended(both: Pair) -> None:
    client, served = both
    changes = Changes(served)
    changes.watch_written(True)
    changes.end()
    assert await changes.next() == END
    served._send_nowait(b"one more")
    await served.flush()
    assert await changes.next() == WRITTEN
    assert changes.take_written() == 8
    assert await changes.next() == END
    assert await receive_exactly(client, 8) == b"one more"


async def test_proceeding_from_a_full_kernel() -> None:
    """A task that waits is told when a peer that was slow begins to read."""
    client, served = await open_pair()
    changes = Changes(served)
    await fill_kernel(served)
    changes.watch_written(True)
    assert served._send_nowait(b"x" * 1000) == 1000
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            assert await changes.next() == WRITTEN
            assert changes.take_written() == 1000
            nursery.cancel_scope.cancel()

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        nursery.start_soon(receive_all, client)
    client.abort()
    served.abort()


@pytest.mark.parametrize("end", [False, True], ids=["open", "ended"])
async def test_written_is_told_while_the_queue_is_full(both: Pair, end: bool) -> None:
    client, served = both
    changes = Changes(served)
    changes.watch_written(True)
    await client.send(bytes(20_000))
    while await changes.next() != STALLED:
        pass
    data = pattern(8 * MEBIBYTE)
    served._send_nowait(data)
    if end and isinstance(client, TlsConnection):
        await client._below.send_eof()
    elif end:
        await client.send_eof()
    total = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive_exactly, client, len(data))
        while total < len(data):
            change = await changes.next()
            assert change in (WRITTEN, STALLED) or change > 0
            total += changes.take_written()
    assert total == len(data)

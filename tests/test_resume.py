"""A task that is resumed in place cannot tell, and nobody else can, that it was not Trio's scheduler that resumed it.

Every test runs both ways and makes the same assertions.
"""

from __future__ import annotations

import contextvars
import inspect
import signal
import sys
import threading
import traceback
import types
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from typing import Any, NoReturn, TypeVar

import outcome
import pytest
import trio
from pairs import PATIENCE, Pair, open_pair, pattern, receive_exactly, until, until_queued
from trio.testing import MockClock, assert_checkpoints, assert_no_checkpoints, wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

pytestmark = pytest.mark.full_ring  # a task that waits for a socket is never resumed in place

T = TypeVar("T")


def in_trio_task() -> bool:
    """``trio.lowlevel.in_trio_task()``, which Trio has had since 0.28 only."""
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return False
    return True


def in_trio_run() -> bool:
    """``trio.lowlevel.in_trio_run()``, likewise."""
    try:
        trio.current_time()
    except RuntimeError:
        return False
    return True


def run_with_pair(body: Callable[[Connection, Connection], Awaitable[T]], resume_in_place: bool, **options: Any) -> T:
    """``body(client, served)`` in a run of its own, whose wake-ups go the given way and are counted."""

    async def main() -> T:
        client, served = await open_pair()
        try:
            return await body(client, served)
        finally:
            client.abort()
            served.abort()

    return gain_trio.run(main, resume_in_place=resume_in_place, **options)


def wake_ups() -> tuple[int, int]:
    """How many tasks were resumed in place, and how many through the scheduler."""
    statistics: object = trio.lowlevel.current_statistics().io_statistics
    assert isinstance(statistics, gain_trio.UringStatistics)
    return statistics.resumed_in_place, statistics.rescheduled


async def woken_by(client: Connection, served: Connection, data: bytes = b"x") -> None:
    """Receive ``data``, having waited for it: what follows is in the step that the connection's news resumed.

    The send is answered from memory and leaves when the task waits; a nursery's end would be a checkpoint.
    """
    await client.send(data)
    assert await served.receive() == data


async def ping_pong(client: Connection, served: Connection, count: int) -> None:
    """Both ends wait all the time."""

    async def echo() -> None:
        for _ in range(count):
            await served.send(await served.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        for number in range(count):
            await client.send(number.to_bytes(4, "big"))
            assert await client.receive() == number.to_bytes(4, "big")


def test_the_two_ways(resume_in_place: bool) -> None:
    """The one test that tells them apart, by the counters."""

    async def body(client: Connection, served: Connection) -> None:
        await ping_pong(client, served, 50)
        in_place, rescheduled = wake_ups()
        assert (in_place > 0) == resume_in_place
        assert in_place + rescheduled >= 90
        if not resume_in_place:
            assert in_place == 0

    run_with_pair(body, resume_in_place)


def test_the_operators_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> int:
        client, served = await open_pair()
        await ping_pong(client, served, 10)
        client.abort()
        served.abort()
        return wake_ups()[0]

    for value, expected in (("0", False), ("1", True)):
        monkeypatch.setenv("GAIN_TRIO_RESUME_IN_PLACE", value)
        assert (gain_trio.run(main) > 0) == expected
        assert gain_trio.run(main, resume_in_place=False) == 0
        assert gain_trio.run(main, resume_in_place=True) > 0
    monkeypatch.setenv("GAIN_TRIO_RESUME_IN_PLACE", "yes")
    with pytest.raises(ValueError, match="GAIN_TRIO_RESUME_IN_PLACE must be 0 or 1, not 'yes'"):
        gain_trio.run(main)


# --- instruments ---


class Recorder(trio.abc.Instrument):
    """What happens to the tasks that were asked about, in its order."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.events: list[tuple[str, str]] = []
        self.io_waits = 0

    def _record(self, event: str, task: trio.lowlevel.Task) -> None:
        if task.name in self.names:
            self.events.append((event, task.name))

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self._record("spawned", task)

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        self._record("scheduled", task)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        assert trio.lowlevel.current_task() is task
        self._record("before", task)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        assert trio.lowlevel.current_task() is task
        self._record("after", task)

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self._record("exited", task)

    def before_io_wait(self, _timeout: float) -> None:
        self.io_waits += 1

    def after_io_wait(self, _timeout: float) -> None:
        self.io_waits -= 1


async def echo_ten(served: Connection) -> None:
    for _ in range(10):
        await served.send(await served.receive())


async def ask_ten(client: Connection) -> None:
    for _ in range(10):
        await client.send(b"ping")
        assert await client.receive() == b"ping"


def test_instruments_see_every_step() -> None:
    def record(resume_in_place: bool) -> list[tuple[str, str]]:
        recorder = Recorder("echo")

        async def body(client: Connection, served: Connection) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(echo_ten, served, name="echo")
                nursery.start_soon(ask_ten, client, name="ask")

        run_with_pair(body, resume_in_place, instruments=[recorder])
        return recorder.events

    in_place, scheduled = record(True), record(False)
    assert in_place == scheduled
    steps = [event for event, _name in in_place]
    assert steps[0] == "spawned"
    assert steps[-2:] == ["exited", "after"]
    assert steps.count("before") == steps.count("after") >= 10
    assert steps.count("scheduled") == steps.count("before")


@pytest.mark.parametrize("hook", ["task_scheduled", "before_task_step", "after_task_step"])
def test_an_instrument_with_one_hook(hook: str) -> None:
    def count(resume_in_place: bool) -> int:
        class One(trio.abc.Instrument):
            calls = 0

        def called(self: One, task: trio.lowlevel.Task) -> None:
            self.calls += task.name == "echo"

        setattr(One, hook, called)
        one = One()

        async def body(client: Connection, served: Connection) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(echo_ten, served, name="echo")
                nursery.start_soon(ask_ten, client, name="ask")

        run_with_pair(body, resume_in_place, instruments=[one])
        return one.calls

    assert count(True) == count(False) >= 10


def test_instruments_of_nothing_but_the_run_do_not_hinder(resume_in_place: bool) -> None:
    """One that watches spawning only is called, and tasks are resumed as without it."""

    class Spawned(trio.abc.Instrument):
        count = 0

        def task_spawned(self, _task: trio.lowlevel.Task) -> None:
            self.count += 1

    spawned = Spawned()

    async def body(client: Connection, served: Connection) -> None:
        await ping_pong(client, served, 5)
        assert (wake_ups()[0] > 0) == resume_in_place

    run_with_pair(body, resume_in_place, instruments=[spawned])
    assert spawned.count >= 2


def test_an_instrument_added_in_mid_run() -> None:
    """By a task that was woken by its connection: from the end of its own step on, everything is seen."""

    def record(resume_in_place: bool) -> list[tuple[str, str]]:
        recorder = Recorder("echo", "ask")

        async def echo(served: Connection) -> None:
            for number in range(10):
                data = await served.receive()
                if number == 4:
                    trio.lowlevel.add_instrument(recorder)
                if number == 8:
                    trio.lowlevel.remove_instrument(recorder)
                await served.send(data)

        async def body(client: Connection, served: Connection) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(echo, served, name="echo")
                nursery.start_soon(ask_ten, client, name="ask")

        run_with_pair(body, resume_in_place)
        return recorder.events

    in_place, scheduled = record(True), record(False)
    assert scheduled[0] == ("after", "echo")
    assert in_place == scheduled


def test_an_instrument_added_by_a_neighbour_of_the_same_tick() -> None:
    """Two connections have news; what the first one's task adds sees the second one's step."""

    def record(resume_in_place: bool) -> list[str]:
        recorder = Recorder("first", "second")

        async def receive(connection: Connection) -> None:
            await connection.receive()
            if not recorder.events:
                trio.lowlevel.add_instrument(recorder)

        async def main() -> None:
            pairs = [await open_pair() for _ in range(2)]
            async with trio.open_nursery() as nursery:
                for (_client, served), name in zip(pairs, ["first", "second"], strict=True):
                    nursery.start_soon(receive, served, name=name)
                await wait_all_tasks_blocked()
                for client, _served in pairs:
                    await client.send(b"x")
            for connection in (connection for pair in pairs for connection in pair):
                connection.abort()

        gain_trio.run(main, resume_in_place=resume_in_place)
        return [event for event, _name in recorder.events if event in ("before", "after", "exited")]

    assert record(True) == record(False) == ["exited", "after", "before", "exited", "after"]


# --- what surrounds a task ---

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nobody's")


def test_context_variables(resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        others = await open_pair()

        async def echo(connection: Connection, name: str) -> None:
            assert variable.get() == "main's"
            variable.set(name)
            for number in range(20):
                data = await connection.receive()
                assert variable.get() == (name if number == 0 else f"{name}{number - 1}")
                variable.set(f"{name}{number}")
                await connection.send(data)

        variable.set("main's")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, served, "first")
            nursery.start_soon(echo, others[1], "second")
            for _ in range(20):
                for connection in (client, others[0]):
                    await connection.send(b"x")
                    await connection.receive()
                    assert variable.get() == "main's"
        for connection in others:
            connection.abort()

    run_with_pair(body, resume_in_place)
    assert variable.get() == "nobody's"


def test_the_current_task_is_right(resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        me = trio.lowlevel.current_task()
        for _ in range(5):
            await woken_by(client, served)
            assert trio.lowlevel.current_task() is me
            assert in_trio_task()
            assert trio.lowlevel.current_task().coro.cr_running

    run_with_pair(body, resume_in_place)


def test_no_task_is_current_between_steps(resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        seen: list[bool] = []

        class Looker(trio.abc.Instrument):
            def before_io_wait(self, _timeout: float) -> None:
                seen.append(in_trio_task())

        await woken_by(client, served)
        trio.lowlevel.add_instrument(Looker())
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        assert seen
        assert not any(seen)

    run_with_pair(body, resume_in_place)


# --- checkpoints ---


def points() -> tuple[int, int]:
    """The cancel points and schedule points that the task has passed, as assert_checkpoints() counts them."""
    task: Any = trio.lowlevel.current_task()
    return task._cancel_points, task._schedule_points


def test_what_waits_is_a_checkpoint(resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        async with trio.open_nursery() as nursery:
            for call in (served.receive, served.receive_some, lambda: served.receive_into(bytearray(9))):
                nursery.start_soon(client.send, b"x")
                with assert_checkpoints():
                    await call()

            async def read() -> None:
                await receive_exactly(served, 16 << 20)

            nursery.start_soon(read)
            with assert_checkpoints():
                await client.send(bytes(16 << 20))
        await client.send(b"x")
        with assert_checkpoints():
            await client.flush()

    run_with_pair(body, resume_in_place)


def test_what_is_answered_from_memory_is_a_cancel_point_only(resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        await client.send(b"abc")
        await until_queued(served, 3)
        await client.flush()
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: served.receive(1),
            lambda: served.receive_into(bytearray(1)),
            lambda: client.send(b"x"),
            lambda: served.flush(),
        ]
        for call in calls:
            cancels, schedules = points()
            await call()
            assert points() == (cancels + 1, schedules)
        cancels, schedules = points()
        await client.send(b"")  # moves nothing, so a loop of it has to let the others in
        assert points() == (cancels + 1, schedules + 1)

    run_with_pair(body, resume_in_place)


def test_trios_own_methods_are_checkpoints(resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        await client.send(b"abc")
        await until_queued(served, 3)
        for call in (
            lambda: served.receive_some(1),
            lambda: client.send_all(b"x"),
            lambda: client.send_all(b""),
            client.wait_send_all_might_not_block,
            client.send_eof,
            client.aclose,
            client.aclose,
        ):
            with assert_checkpoints():
                await call()

    run_with_pair(body, resume_in_place)


def test_what_never_waits_is_no_checkpoint(resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        await woken_by(client, served)
        with assert_no_checkpoints():
            served.peek()
            served.next()
            served.discard()
            _ = served.inbound_buffered, served.outbound_buffered, served.remote_address
            client.abort()

    run_with_pair(body, resume_in_place)


def test_counters_of_both_ways_agree() -> None:
    """Every wait counts once, however it is woken."""

    def count(resume_in_place: bool) -> tuple[int, int]:
        counted = (0, 0)

        async def echo(served: Connection) -> None:
            nonlocal counted
            before = points()
            for _ in range(10):
                await served.send(await served.receive())
            after = points()
            counted = (after[0] - before[0], after[1] - before[1])

        async def body(client: Connection, served: Connection) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(echo, served)
                await wait_all_tasks_blocked()
                await ask_ten(client)

        run_with_pair(body, resume_in_place)
        return counted

    assert count(True) == count(False) == (20, 10)


# --- cancellation ---


def test_a_cancellation_that_is_pending(resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        await woken_by(client, served)
        await client.send(b"kept")
        await until_queued(served, 4)
        for call in (
            served.receive,
            lambda: served.send(b"x"),
            served.flush,
            lambda: served.receive_into(bytearray(1)),
        ):
            with trio.CancelScope() as scope:
                scope.cancel()
                with pytest.raises(trio.Cancelled):
                    await call()
            assert not scope.cancelled_caught
        assert served.outbound_buffered == 0
        assert await served.receive() == b"kept"

    run_with_pair(body, resume_in_place)


def test_a_cancellation_that_is_shielded_from(resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            with trio.CancelScope(shield=True):
                await woken_by(client, served)
                await served.send(b"y")
            with pytest.raises(trio.Cancelled):
                await served.receive()
        assert await client.receive() == b"y"

    run_with_pair(body, resume_in_place)


def test_a_cancellation_while_it_waits(resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        await woken_by(client, served)
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:

                async def cancel() -> None:
                    await wait_all_tasks_blocked()
                    scope.cancel()

                nursery.start_soon(cancel)
                await served.receive()
        assert scope.cancelled_caught
        await woken_by(client, served, b"goes on")

    run_with_pair(body, resume_in_place)


def test_a_task_cancels_itself_after_it_was_woken(resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        with trio.CancelScope() as scope:
            await woken_by(client, served)
            scope.cancel()
            await served.receive()
        assert scope.cancelled_caught
        with trio.CancelScope() as scope:
            await woken_by(client, served)
            scope.cancel()
            await trio.sleep_forever()
        assert scope.cancelled_caught

    run_with_pair(body, resume_in_place)


def test_a_neighbour_of_the_same_tick_cancels(resume_in_place: bool) -> None:
    """Two connections have news.  The first task woken cancels the second, which has its bytes or leaves them queued."""

    async def main() -> None:
        pairs = [await open_pair() for _ in range(2)]
        scopes = [trio.CancelScope(), trio.CancelScope()]
        received: dict[int, bytes] = {}

        async def receive(number: int) -> None:
            with scopes[number]:
                received[number] = await pairs[number][1].receive()
                scopes[1 - number].cancel()

        for _ in range(20):
            received.clear()
            scopes = [trio.CancelScope(), trio.CancelScope()]
            async with trio.open_nursery() as nursery:
                for number in range(2):
                    nursery.start_soon(receive, number)
                await wait_all_tasks_blocked()
                for client, _served in pairs:
                    await client.send(b"news")
            assert received
            for number, (_client, served) in enumerate(pairs):
                if number in received:
                    assert received[number] == b"news"
                    assert served.inbound_buffered == 0
                else:
                    assert scopes[number].cancelled_caught
                    await until_queued(served, 4)
                    assert served.next() == b"news"
            if resume_in_place:
                assert len(received) == 1, "the second one's cancellation came before its step"
        for connection in (connection for pair in pairs for connection in pair):
            connection.abort()

    gain_trio.run(main, resume_in_place=resume_in_place)


def test_a_neighbour_of_the_same_tick_closes(resume_in_place: bool) -> None:
    """It is told so, or has its bytes."""

    async def main() -> None:
        for _ in range(20):
            pairs = [await open_pair() for _ in range(2)]
            outcomes: list[object] = []

            async def receive(number: int, pairs: list[Pair], outcomes: list[object]) -> None:
                try:
                    outcomes.append(await pairs[number][1].receive())
                except trio.ClosedResourceError as error:
                    outcomes.append(type(error))
                else:
                    pairs[1 - number][1].abort()

            async with trio.open_nursery() as nursery:
                for number in range(2):
                    nursery.start_soon(receive, number, pairs, outcomes)
                await wait_all_tasks_blocked()
                for client, _served in pairs:
                    await client.send(b"news")
            # A wake-up carries no bytes: on a closed connection there are none, however its task is woken.
            assert outcomes == [b"news", trio.ClosedResourceError]
            for connection in (connection for pair in pairs for connection in pair):
                connection.abort()

    gain_trio.run(main, resume_in_place=resume_in_place)


# --- deadlines ---


def test_a_deadline_while_it_waits(resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        await woken_by(client, served)
        with trio.move_on_after(0.01) as scope:
            await served.receive()
        assert scope.cancelled_caught
        with pytest.raises(trio.TooSlowError), trio.fail_after(0.01):
            await served.receive()
        await woken_by(client, served)

    run_with_pair(body, resume_in_place)


def test_a_deadline_set_by_a_woken_task(resume_in_place: bool) -> None:
    """Its own, of another task, and of a sleep: whatever it does, the wait that it was woken from knows."""

    async def body(client: Connection, served: Connection) -> None:
        scope = trio.CancelScope()
        woken = trio.Event()

        async def sleep() -> None:
            with scope:
                await trio.sleep_forever()
            woken.set()

        async def handler() -> None:
            await served.receive()
            scope.deadline = trio.current_time() + 0.01  # of another task, and the earliest of all
            await served.receive()
            with trio.move_on_after(0.01) as own:
                await served.receive()
            assert own.cancelled_caught
            await served.send(b"x")
            await served.receive()
            await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sleep)
            nursery.start_soon(handler)
            await wait_all_tasks_blocked()
            await client.send(b"x")
            await woken.wait()  # nothing but the deadline ends this
            await client.send(b"x")
            assert await client.receive() == b"x"
            await client.send(b"x")

    run_with_pair(body, resume_in_place)


def test_a_sleep_right_after_a_wake_up(resume_in_place: bool) -> None:
    """No other deadline, no other traffic."""

    async def body(client: Connection, served: Connection) -> None:
        for _ in range(3):
            await client.send(b"x")
            await served.receive()
            await trio.sleep(0.001)

    run_with_pair(body, resume_in_place)


def test_a_deadline_moved_by_a_woken_task(resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        scope = trio.CancelScope(deadline=trio.current_time() + 3600)

        async def move() -> None:
            await served.receive()
            scope.deadline = trio.current_time() + 0.01

        async with trio.open_nursery() as nursery:
            nursery.start_soon(move)
            await wait_all_tasks_blocked()
            await client.send(b"x")
            with scope:
                await client.receive()
            assert scope.cancelled_caught

    run_with_pair(body, resume_in_place)


def test_a_busy_connection_starves_nobody(resume_in_place: bool) -> None:
    """Two ends that answer each other for ever; deadlines, sleeps, threads and new tasks go on beside them."""

    async def body(client: Connection, served: Connection) -> None:
        exchanged = 0

        async def answer(connection: Connection) -> None:
            nonlocal exchanged
            async for data in connection:
                exchanged += 1
                await connection.send(data)

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer, client)
                nursery.start_soon(answer, served)
                await client.send(b"ball")
                for _ in range(5):
                    before = exchanged
                    await trio.sleep(0.005)
                    with trio.move_on_after(0.005) as scope:
                        await trio.sleep_forever()
                    assert scope.cancelled_caught
                    await trio.to_thread.run_sync(lambda: None)
                    event = trio.Event()
                    trio.lowlevel.current_trio_token().run_sync_soon(event.set)
                    await event.wait()
                    assert exchanged > before
                    for _ in range(10):
                        await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()

    run_with_pair(body, resume_in_place)


def test_many_deadlines_set_and_left_by_a_busy_connection(resume_in_place: bool) -> None:
    """Each receive has its scope, as programs do; the earliest deadline of all is still met."""

    async def body(client: Connection, served: Connection) -> None:
        async def answer(connection: Connection) -> None:
            while True:
                with trio.fail_after(3600):
                    data = await connection.receive()
                await connection.send(data)

        with trio.move_on_after(0.1) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer, client)
                nursery.start_soon(answer, served)
                await client.send(b"ball")
        assert scope.cancelled_caught
        heap: Any = trio.lowlevel.current_statistics()
        assert heap.seconds_to_next_deadline > 0

    run_with_pair(body, resume_in_place)


# --- clocks and idleness ---


def test_wait_all_tasks_blocked_after_traffic(resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo_ten, served)
            nursery.start_soon(ask_ten, client)
            await wait_all_tasks_blocked()
        await client.send(b"x")
        with trio.fail_after(PATIENCE):
            await wait_all_tasks_blocked(0.01)
        assert served.inbound_buffered == 1

    run_with_pair(body, resume_in_place)


def test_a_woken_task_waits_for_idleness(resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        for _ in range(3):
            await woken_by(client, served)
            await wait_all_tasks_blocked()  # no scope here: a deadline would end the wait as well

    run_with_pair(body, resume_in_place)


def test_the_clock_jumps_when_only_connections_wait(resume_in_place: bool) -> None:
    clock = MockClock(autojump_threshold=0)

    async def body(client: Connection, served: Connection) -> None:
        await ping_pong(client, served, 10)
        with trio.move_on_after(1000) as scope:
            await served.receive()
        assert scope.cancelled_caught
        assert trio.current_time() >= 1000
        before = trio.current_time()
        await woken_by(client, served)
        await trio.sleep(500)
        assert trio.current_time() - before == 500

    run_with_pair(body, resume_in_place, clock=clock)


def test_a_woken_task_moves_the_clock(resume_in_place: bool) -> None:
    """By hand: what is due then is delivered then, though nothing else happens."""
    clock = MockClock()

    async def body(client: Connection, served: Connection) -> None:
        async def jump() -> None:
            await served.receive()
            clock.jump(10)
            await served.receive()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(jump)
            await wait_all_tasks_blocked()
            await client.send(b"x")
            await trio.sleep(5)
            assert trio.current_time() == 10
            nursery.cancel_scope.cancel()

    run_with_pair(body, resume_in_place, clock=clock)


def test_a_woken_task_sets_the_clock_going(resume_in_place: bool) -> None:
    clock = MockClock()

    async def body(client: Connection, served: Connection) -> None:
        async def start() -> None:
            await served.receive()
            clock.autojump_threshold = 0
            await served.receive()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(start)
            await wait_all_tasks_blocked()
            await client.send(b"x")
            await trio.sleep(5)
            nursery.cancel_scope.cancel()

    run_with_pair(body, resume_in_place, clock=clock)


# --- KeyboardInterrupt ---


def interrupted(error: BaseException) -> bool:
    """Whether it is a KeyboardInterrupt, or groups of nothing else."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(interrupted, error.exceptions))
    return isinstance(error, KeyboardInterrupt)


@pytest.fixture
def default_interrupts() -> Generator[None, None, None]:
    """Ctrl-C as Python has it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_in_a_woken_task(default_interrupts: None, resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        await woken_by(client, served)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        await woken_by(client, served)
        raise_in_frame()

    def raise_in_frame() -> None:
        signal.raise_signal(signal.SIGINT)
        pytest.fail("not reached")

    with pytest.raises(BaseException) as caught:
        run_with_pair(body, resume_in_place)
    assert interrupted(caught.value)
    assert "raise_in_frame" in "".join(traceback.format_exception(caught.value))


def test_an_interrupt_in_a_protected_frame(default_interrupts: None, resume_in_place: bool) -> None:
    """It is pending then, and delivered to the main task at its next checkpoint: this receive(), or one of a child."""

    @trio.lowlevel.enable_ki_protection
    def raise_protected() -> None:
        signal.raise_signal(signal.SIGINT)

    async def body(client: Connection, served: Connection) -> None:
        await client.send(b"kept")
        await until_queued(served, 4)
        raise_protected()
        with pytest.raises(KeyboardInterrupt):
            await served.receive()
        assert served.peek() == b"kept"
        assert await served.receive() == b"kept"

        await woken_by(client, served)
        raise_protected()
        with pytest.raises(KeyboardInterrupt):
            await served.receive()

        await woken_by(client, served)
        raise_protected()
        with pytest.raises(KeyboardInterrupt):
            await trio.sleep_forever()

    run_with_pair(body, resume_in_place)


def test_an_interrupt_by_a_woken_child_reaches_the_main_task(default_interrupts: None, resume_in_place: bool) -> None:
    @trio.lowlevel.enable_ki_protection
    def raise_protected() -> None:
        signal.raise_signal(signal.SIGINT)

    async def body(client: Connection, served: Connection) -> None:
        async def child() -> None:
            await served.receive()
            raise_protected()
            await served.receive()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
            await wait_all_tasks_blocked()
            await client.send(b"x")
            with pytest.raises(KeyboardInterrupt):
                await client.receive()
            nursery.cancel_scope.cancel()

    run_with_pair(body, resume_in_place)


def test_an_interrupt_while_everything_waits(default_interrupts: None, resume_in_place: bool) -> None:
    def in_a_thread() -> None:
        trio.from_thread.run(wait_all_tasks_blocked)  # from here on only Trio's own code runs in the main thread
        signal.raise_signal(signal.SIGINT)

    async def body(client: Connection, served: Connection) -> None:
        await woken_by(client, served)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, in_a_thread)
            with pytest.raises(KeyboardInterrupt):
                await served.receive()
        await woken_by(client, served)

    run_with_pair(body, resume_in_place)


# --- exceptions ---


class DeliberateError(Exception):
    pass


def frames(error: BaseException) -> list[str]:
    """The functions of its traceback, the first one first."""
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


def test_an_exception_of_a_woken_task() -> None:
    def fail(resume_in_place: bool) -> BaseException:
        async def fail_inside(served: Connection) -> None:
            await served.receive()
            raise DeliberateError

        async def handler(served: Connection) -> None:
            await fail_inside(served)

        async def body(client: Connection, served: Connection) -> BaseException:
            with pytest.raises(BaseExceptionGroup) as caught:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(handler, served)
                    await wait_all_tasks_blocked()
                    await client.send(b"x")
            [error] = caught.value.exceptions
            assert isinstance(error, BaseException)
            return error

        return run_with_pair(body, resume_in_place)

    errors = [fail(True), fail(False)]
    for error in errors:
        assert isinstance(error, DeliberateError)
        assert frames(error) == ["handler", "fail_inside"]
        assert error.__context__ is None
        assert error.__cause__ is None


def test_an_error_of_a_call_that_waited() -> None:
    def fail(resume_in_place: bool) -> BaseException:
        async def handler(served: Connection) -> None:
            await served.receive()

        async def body(client: Connection, served: Connection) -> BaseException:
            with pytest.raises(BaseExceptionGroup) as caught:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(handler, served)
                    await wait_all_tasks_blocked()
                    client.abort()
            [error] = caught.value.exceptions
            assert isinstance(error, BaseException)
            return error

        return run_with_pair(body, resume_in_place)

    errors = [fail(True), fail(False)]
    for error in errors:
        assert isinstance(error, trio.BrokenResourceError)
        assert frames(error) == ["handler"]
        assert isinstance(error.__cause__, ConnectionResetError)
    assert type(errors[0].__context__) is type(errors[1].__context__)


def test_the_context_of_exceptions(resume_in_place: bool) -> None:
    """What is being handled when a task waits is its own, and is there again when it goes on."""

    async def body(client: Connection, served: Connection) -> None:
        async def handle(connection: Connection, first: Exception) -> None:
            try:
                raise first
            except DeliberateError:
                await connection.receive()
                assert sys.exc_info()[1] is first
                with pytest.raises(ValueError, match="second") as caught:
                    raise ValueError("second")  # noqa: B904
                assert caught.value.__context__ is first
            assert sys.exc_info()[1] is None

        for error in (DeliberateError(1), DeliberateError(2)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(handle, served, error)
                nursery.start_soon(handle, client, DeliberateError(3))
                await wait_all_tasks_blocked()
                await client.send(b"x")
                await served.send(b"x")

    run_with_pair(body, resume_in_place)


@pytest.mark.parametrize("error", [DeliberateError, SystemExit, KeyboardInterrupt, trio.BrokenResourceError])
def test_the_end_of_a_woken_task_by_an_exception(error: type[BaseException], resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        async def handler() -> None:
            await served.receive()
            raise error

        async with trio.open_nursery() as nursery:
            nursery.start_soon(handler)
            nursery.start_soon(client.receive)
            await wait_all_tasks_blocked()
            await client.send(b"x")

    with pytest.raises(BaseExceptionGroup) as caught:
        run_with_pair(body, resume_in_place)
    assert caught.value.split(error)[1] is None


@pytest.mark.parametrize("error", [DeliberateError, SystemExit])
def test_the_end_of_the_main_task_by_an_exception(error: type[BaseException], resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        await client.send(b"x")
        await served.receive()
        raise error

    with pytest.raises(error):
        run_with_pair(body, resume_in_place)


def test_the_end_of_a_woken_task_by_return(resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> bytes:
        ended: list[bytes] = []

        async def handler() -> None:
            ended.append(await served.receive())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(handler)
            await wait_all_tasks_blocked()
            await client.send(b"x")
        await served.send(ended[0])
        return await client.receive()  # and by that of the main task, if it is resumed in place

    assert run_with_pair(body, resume_in_place) == b"x"


def test_a_main_task_that_returns_what_looks_special(resume_in_place: bool) -> None:
    for value in (None, (1, 2), StopIteration(3), ValueError("not raised"), outcome.Value(4)):

        async def body(client: Connection, served: Connection, value: object = value) -> object:
            await client.send(b"x")
            await served.receive()
            return value

        assert run_with_pair(body, resume_in_place) is value


def test_a_nursery_in_a_woken_task(resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        results: list[int] = []

        async def child(number: int, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
            task_status.started(number)
            await trio.lowlevel.checkpoint()
            results.append(number)

        async def handler() -> None:
            data = await served.receive()
            async with trio.open_nursery() as nursery:
                for number in data:
                    nursery.start_soon(child, number)
                assert await nursery.start(child, 9) == 9
            await served.send(bytes(sorted(results)))
            await served.receive()
            with pytest.raises(BaseExceptionGroup) as caught:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(served.receive)
                    nursery.start_soon(fail)
            assert caught.value.split(DeliberateError)[1] is None

        async def fail() -> NoReturn:
            raise DeliberateError

        async with trio.open_nursery() as nursery:
            nursery.start_soon(handler)
            await client.send(bytes([1, 2, 3]))
            assert await client.receive() == bytes([1, 2, 3, 9])
            await client.send(b"x")

    run_with_pair(body, resume_in_place)


# --- async generators ---


def test_async_generators(resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        cleaned_up: list[str] = []

        async def lines(connection: Connection) -> AsyncGenerator[bytes, None]:
            rest = b""
            try:
                async for data in connection:
                    *whole, rest = (rest + data).split(b"\n")
                    for line in whole:
                        yield line
            finally:
                with trio.CancelScope(shield=True):
                    await connection.send(b"bye")
                    await trio.lowlevel.checkpoint()
                cleaned_up.append("yes")

        async with trio.open_nursery() as nursery:

            async def send() -> None:
                for piece in (b"on", b"e\ntw", b"o\nthree\n"):
                    await client.send(piece)
                    await wait_all_tasks_blocked()

            nursery.start_soon(send)
            generator = lines(served)
            received: list[bytes] = []
            async for line in generator:
                received.append(line)
                if line == b"two":
                    break
            await generator.aclose()
        assert received == [b"one", b"two"]
        assert cleaned_up == ["yes"]
        assert await client.receive() == b"bye"

    run_with_pair(body, resume_in_place)


def test_an_async_generator_left_to_the_end_of_the_run(resume_in_place: bool) -> None:
    """It is closed inside the run: Trio's hooks knew of it, though it was first stepped by a task resumed in place."""
    kept: list[AsyncIterator[bytes]] = []
    cleaned_up: list[bool] = []

    async def data_of(connection: Connection) -> AsyncIterator[bytes]:
        try:
            async for data in connection:
                yield data
        finally:
            cleaned_up.append(in_trio_run())

    async def body(client: Connection, served: Connection) -> None:
        await woken_by(client, served)
        await client.send(b"x")
        kept.append(data_of(served))
        assert await kept[0].__anext__() == b"x"

    run_with_pair(body, resume_in_place)
    assert cleaned_up == [True]


# --- tasks that do the unusual ---


def test_the_unusual_yields(resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        await woken_by(client, served)
        await trio.lowlevel.cancel_shielded_checkpoint()
        await woken_by(client, served)
        with trio.CancelScope() as scope:
            scope.cancel()
            await trio.lowlevel.cancel_shielded_checkpoint()
        assert not scope.cancelled_caught

        async def straight_after(connection: Connection) -> None:
            await connection.receive()
            await trio.lowlevel.cancel_shielded_checkpoint()
            await connection.receive()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(straight_after, served)
            await wait_all_tasks_blocked()
            await client.send(b"x")
            await wait_all_tasks_blocked()
            await client.send(b"y")

    run_with_pair(body, resume_in_place)


@types.coroutine
def foreign_yield(value: object) -> Generator[object, object, object]:
    return (yield value)


def test_a_foreign_yield(resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> str:
        async def handler() -> None:
            await served.receive()
            await foreign_yield("asyncio's")

        with pytest.raises(BaseExceptionGroup) as caught:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(handler)
                await wait_all_tasks_blocked()
                await client.send(b"x")
        [error] = caught.value.exceptions
        assert isinstance(error, TypeError)
        assert frames(error)[:2] == ["handler", "foreign_yield"]
        return str(error)

    message = run_with_pair(body, resume_in_place)
    assert 'trio.run received unrecognized yield message "asyncio\'s"' in message or "asyncio's" in message
    assert message == run_with_pair(body, resume_in_place=False)


def test_detaching_for_good(resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        coroutine: Any = None
        steps: list[str] = []

        async def handler() -> None:
            nonlocal coroutine
            coroutine = trio.lowlevel.current_task().coro
            await served.receive()
            await trio.lowlevel.permanently_detach_coroutine_object(outcome.Value("detached"))
            steps.append("driven by somebody else")
            with pytest.raises(RuntimeError, match="must be called from async context"):
                raise RuntimeError("must be called from async context")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(handler)
            await wait_all_tasks_blocked()
            await client.send(b"x")
        assert steps == []
        with pytest.raises(StopIteration):
            coroutine.send(None)
        assert steps == ["driven by somebody else"]

    run_with_pair(body, resume_in_place)


def test_detaching_for_a_while(resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        task: Any = None
        detached = trio.Event()
        received: list[bytes] = []

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            return trio.lowlevel.Abort.FAILED

        async def handler() -> None:
            nonlocal task
            task = trio.lowlevel.current_task()
            received.append(await served.receive())
            detached.set()
            await trio.lowlevel.temporarily_detach_coroutine_object(abort)
            await foreign_yield("while detached")
            await trio.lowlevel.reattach_detached_coroutine_object(task, "reattached")
            received.append(await served.receive())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(handler)
            await wait_all_tasks_blocked()
            await client.send(b"x")
            await detached.wait()
            await trio.lowlevel.checkpoint()
            assert task.coro.send(None) == "while detached"
            assert task.coro.send(None) == "reattached"
            await wait_all_tasks_blocked()
            await client.send(b"y")
        assert received == [b"x", b"y"]

    run_with_pair(body, resume_in_place)


def test_a_task_that_is_not_a_coroutine_of_python(resume_in_place: bool) -> None:
    """start_soon(connection.receive): Trio wraps what is no native coroutine."""

    async def body(client: Connection, served: Connection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.receive)
            await wait_all_tasks_blocked()
            await client.send(b"x")

    run_with_pair(body, resume_in_place)


def test_a_call_inside_other_awaitables(resume_in_place: bool) -> None:
    """Driven by __next__, by send() and by a generator, as well as by await."""

    class Wrapped:
        def __init__(self, call: Awaitable[bytes]) -> None:
            self._call = call

        def __await__(self) -> Generator[Any, Any, bytes]:
            return (yield from self._call.__await__())

    @types.coroutine
    def by_hand(call: Any) -> Generator[Any, Any, bytes]:
        message = None
        while True:
            try:
                trap = call.send(message)
            except StopIteration as stop:
                result = stop.value
                assert isinstance(result, bytes)
                return result
            message = yield trap

    async def body(client: Connection, served: Connection) -> None:
        for wrap in (Wrapped, by_hand):
            for wait in (True, False):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(client.send, b"x")
                    if not wait:
                        await until_queued(served, 1)
                    assert await wrap(served.receive()) == b"x"
            with trio.move_on_after(0.001) as scope:
                await wrap(served.receive())
            assert scope.cancelled_caught

    run_with_pair(body, resume_in_place)


# --- tools that watch ---


def test_tracing(resume_in_place: bool) -> None:
    """As a debugger or a coverage tool does: every line of a woken task is seen, once."""
    lines: list[str] = []

    def trace(frame: types.FrameType, event: str, _arg: object) -> Any:
        if frame.f_code.co_name != "traced":
            return None
        if event == "line":
            lines.append(
                inspect.getsource(frame.f_code).splitlines()[frame.f_lineno - frame.f_code.co_firstlineno].strip()
            )
        return trace

    async def traced(client: Connection, served: Connection) -> None:
        await client.send(b"x")
        data = await served.receive()
        assert data == b"x"
        await served.send(b"y")
        assert await client.receive() == b"y"

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run_with_pair(traced, resume_in_place)
    finally:
        sys.settrace(before)
    assert list(dict.fromkeys(lines)) == [
        'await client.send(b"x")',
        "data = await served.receive()",
        'assert data == b"x"',
        'await served.send(b"y")',
        'assert await client.receive() == b"y"',
    ]


def test_profiling(resume_in_place: bool) -> None:
    calls: list[str] = []

    def profile(frame: types.FrameType, event: str, _arg: object) -> None:
        if frame.f_code.co_name == "profiled":
            calls.append(event)

    async def profiled(client: Connection, served: Connection) -> None:
        await client.send(b"x")
        await served.receive()

    sys.setprofile(profile)
    try:
        run_with_pair(profiled, resume_in_place)
    finally:
        sys.setprofile(None)
    assert calls[0] == "call"
    assert calls[-1] == "return"
    assert calls.count("call") == calls.count("return") >= 2


# --- threads and runs ---


def test_threads_from_a_woken_task(resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        variable.set("the task's")

        def in_a_thread(data: bytes) -> bytes:
            assert variable.get() == "the task's"
            trio.from_thread.run_sync(lambda: None)
            trio.from_thread.run(trio.lowlevel.checkpoint)
            return data.upper()

        async def handler() -> None:
            async for data in served:
                await served.send(await trio.to_thread.run_sync(in_a_thread, data))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(handler)
            for _ in range(20):
                await client.send(b"hello")
                assert await client.receive() == b"HELLO"
            await client.send_eof()

    run_with_pair(body, resume_in_place)


def test_many_runs(no_descriptor_leak: None, resume_in_place: bool) -> None:
    for _ in range(50):

        async def body(client: Connection, served: Connection) -> None:
            await ping_pong(client, served, 3)

        run_with_pair(body, resume_in_place)


def test_runs_in_three_threads(no_descriptor_leak: None, resume_in_place: bool) -> None:
    errors: list[BaseException] = []
    barrier = threading.Barrier(3, timeout=PATIENCE)

    async def body(client: Connection, served: Connection) -> None:
        await trio.to_thread.run_sync(barrier.wait)
        await ping_pong(client, served, 300)
        data = pattern(1 << 20)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, data)
            assert await receive_exactly(served, len(data)) == data

    def run() -> None:
        try:
            run_with_pair(body, resume_in_place)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_run_in_a_thread_of_a_run(resume_in_place: bool) -> None:
    async def body(client: Connection, served: Connection) -> None:
        async def inner(client: Connection, served: Connection) -> None:
            await ping_pong(client, served, 20)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, lambda: run_with_pair(inner, resume_in_place))
            await ping_pong(client, served, 20)

    run_with_pair(body, resume_in_place)


def test_a_task_that_everything_happens_to(resume_in_place: bool) -> None:
    """Woken, cancelled and closed at once: whatever comes first, the run ends well."""

    async def body(client: Connection, served: Connection) -> None:
        for _ in range(30):
            first, second = await open_pair()
            ended: list[object] = []

            async def receive(connection: Connection, ended: list[object]) -> None:
                with trio.CancelScope() as scope:
                    ended.append(scope)
                    try:
                        ended.append(await connection.receive())
                    except trio.ClosedResourceError as error:
                        ended.append(error)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive, second, ended)
                await until(lambda ended=ended: len(ended) == 1)  # type: ignore[misc]
                await first.send(b"x")
                await first.flush()
                scope = ended[0]
                assert isinstance(scope, trio.CancelScope)
                scope.cancel()
                second.abort()
            assert scope.cancelled_caught or isinstance(ended[1], (bytes, trio.ClosedResourceError))
            first.abort()

    run_with_pair(body, resume_in_place)

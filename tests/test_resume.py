"""Neither a task nor an observer can distinguish resuming in place from resuming by Trio's scheduler.

Every test runs both ways and makes the same assertions.
"""

from __future__ import annotations

import contextvars
import inspect
import signal
import socket
import sys
import threading
import time
import types
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from support.pairs import PATIENCE, open_pair, pattern, receive_exactly, until, until_queued
from support.two_ways import ask_ten, echo_ten, ping_pong, run_with_pair, woken_by
from trio.testing import assert_checkpoints, assert_no_checkpoints, wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection

pytestmark = [
    pytest.mark.connections,
    pytest.mark.features,
    pytest.mark.full_ring,
]  # a task that waits for a socket is never resumed in place


def in_trio_task() -> bool:
    """``trio.lowlevel.in_trio_task()``, which Trio has had since 0.28 only."""
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return False
    return True


IO_URING_ENTER = "426"  # on every architecture


def until_asleep(thread: int) -> None:
    """Until the thread sleeps in io_uring_enter(2), as proc_pid_syscall(5) tells."""
    deadline = time.monotonic() + PATIENCE
    while Path(f"/proc/self/task/{thread}/syscall").read_text().split()[0] != IO_URING_ENTER:
        assert time.monotonic() < deadline


def wake_ups() -> tuple[int, int]:
    """The numbers of tasks that were resumed in place and through the scheduler."""
    statistics: object = trio.lowlevel.current_statistics().io_statistics
    assert isinstance(statistics, gain_trio.UringStatistics)
    return statistics.resumed_in_place, statistics.rescheduled


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
    """An instrument that records the events of some tasks, in their order."""

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
    """A task that its connection has woken adds the instrument, which sees everything from the end of that step on."""

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

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


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
    assert variable.get() == "unset"


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


@pytest.mark.parametrize("receiver", ["the run's thread", "another thread"])
@pytest.mark.parametrize("exchanges", [1, 50])
def test_no_task_is_current_when_a_signal_ends_a_wait(resume_in_place: bool, exchanges: int, receiver: str) -> None:
    """Nor when the wait has resumed tasks before, and waits on.

    A signal that another thread receives does not interrupt the wait; the descriptor that Trio has it write to ends it.
    """
    seen: list[bool] = []
    run_thread = threading.get_native_id()

    def handler(*_: object) -> None:
        seen.append(in_trio_task())
        done.set()

    def talk(client: socket.socket) -> None:
        for _ in range(exchanges):
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        until_asleep(run_thread)
        to_run = receiver == "the run's thread"
        signal.pthread_kill(threading.main_thread().ident or 0 if to_run else threading.get_ident(), signal.SIGUSR1)
        assert done.wait(PATIENCE)
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        client.shutdown(socket.SHUT_WR)

    async def echo(connection: Connection) -> None:
        async with connection:
            while data := await connection.receive():
                await connection.send(data)

    async def main() -> None:
        theirs, ours = socket.socketpair()
        with theirs:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(echo, Connection.from_socket(ours))
                nursery.start_soon(trio.to_thread.run_sync, talk, theirs)

    done = threading.Event()
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        gain_trio.run(main, resume_in_place=resume_in_place)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [False]


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
    """Every wait counts once, in both ways of waking."""

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


# --- tools that watch ---


def test_a_counter_that_a_program_has_read_stays_as_it_was(resume_in_place: bool) -> None:
    """Where no other code has the int it is counted up in place."""

    async def body(client: Connection, served: Connection) -> None:
        task: Any = trio.lowlevel.current_task()
        await ping_pong(client, served, 400)
        read = [task._schedule_points, task._cancel_points]
        copies = [int(str(number)) for number in read]
        assert min(read) > 256  # of smaller ones Python has one object each
        await ping_pong(client, served, 10)
        assert read == copies
        later = [task._schedule_points, task._cancel_points]
        assert all(0 < after - before < 100 for after, before in zip(later, read, strict=True))

    run_with_pair(body, resume_in_place)


def test_tracing(resume_in_place: bool) -> None:
    """A tracer, like that of a debugger or a coverage tool, sees every line of a woken task once."""
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

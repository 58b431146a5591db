"""The pieces in C lose nothing when memory runs out, and leave Trio whole when Ctrl-C comes at any moment."""

from __future__ import annotations

import contextlib
import functools
import gc
import random
import signal
import socket
import sys
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import Any

import outcome
import pytest
import trio
from support.accelerated import run
from trio.testing import wait_all_tasks_blocked

from gain_trio._kernel import trio_core

pytestmark = [
    pytest.mark.usefixtures("not_installed"),
    pytest.mark.skipif(trio_core is None, reason="the compiled modules are not built here"),
]

FIRST_FAILURES = 40
"""More allocations than any of the calls makes."""

only_where_they_were_made = pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="newer interpreters make allocations of their own on the way out of an await"
)


async def count_to_large_numbers() -> None:
    """Make counting a schedule point allocate."""
    for _ in range(300):
        await trio.lowlevel.checkpoint()


def without_memory(call: Callable[[], object], failing: int) -> bool:
    """Whether a call needed the allocation with that number, which has failed."""
    testcapi = pytest.importorskip("_testcapi")
    testcapi.set_nomemory(failing, failing + 1)
    try:
        call()
    except MemoryError:
        return True
    finally:
        testcapi.remove_mem_hooks()
    return False


def begin(call: Callable[[], Awaitable[object]], failing: int, into: list[Any]) -> bool:
    """Whether what a call does before its first schedule point needed that allocation.

    If not, its coroutine is put into ``into``, and what it has yielded.  These are two places: appending would allocate.
    """
    coroutine: Any = call()

    def step() -> None:
        into[1] = coroutine.send(None)

    if without_memory(step, failing):
        coroutine.close()
        return True
    into[0] = coroutine
    return False


async def finish(coroutine: Any) -> Any:
    """Go on with a coroutine that has yielded at a schedule point."""
    await trio.lowlevel.checkpoint()
    try:
        coroutine.send(trio.lowlevel.current_task()._next_send or Resumed())
    except StopIteration as stop:
        return stop.value
    pytest.fail("it did not end behind its schedule point")


class Resumed:
    """What Trio resumes a task with."""

    def unwrap(self) -> None:
        return None


def take_spare_waits(count: int = 100) -> list[Any]:
    """Begin to wait so often that the C module has no spare object for another wait; the caller closes the coroutines."""
    waits: list[Any] = [trio.lowlevel.ParkingLot().park() for _ in range(count)]
    for wait in waits:
        wait.send(None)
    return waits


@only_where_they_were_made
def test_a_send_and_a_receive_without_memory_move_nothing() -> None:
    async def main() -> None:
        await count_to_large_numbers()
        send, receive = trio.open_memory_channel[int](100)
        held = take_spare_waits()
        failed = 0
        for failing in range(FIRST_FAILURES):
            begun: list[Any] = [None, None]
            held += take_spare_waits(5)  # checkpoints have given some back
            if begin(lambda number=failing: send.send(number), failing, begun):
                failed += 1
                assert send.statistics().current_buffer_used == 0
                continue
            await finish(begun[0])
            begun = [None, None]
            held += take_spare_waits(5)
            if begin(receive.receive, failing, begun):
                failed += 1
                assert receive.receive_nowait() == failing
                continue
            assert await finish(begun[0]) == failing
        assert failed
        for wait in held:
            wait.close()

    run(True, main)


@only_where_they_were_made
@pytest.mark.parametrize("name", ["receive", "send", "lot", "lock", "event"])
def test_a_wait_that_finds_no_memory_leaves_no_task_in_the_queue(name: str) -> None:
    async def main() -> None:
        await count_to_large_numbers()
        send, receive = trio.open_memory_channel[int](0)
        lot, lock, event = trio.lowlevel.ParkingLot(), trio.Lock(), trio.Event()

        async def keep() -> None:
            async with lock:
                await trio.sleep_forever()

        def waiting() -> int:
            statistics = send.statistics()
            return (
                statistics.tasks_waiting_receive
                + statistics.tasks_waiting_send
                + len(lot)
                + lock.statistics().tasks_waiting
                + event.statistics().tasks_waiting
            )

        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "receive": receive.receive,
            "send": lambda: send.send(1),
            "lot": lot.park,
            "lock": lock.acquire,
            "event": event.wait,
        }
        failed = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep)
            await wait_all_tasks_blocked()
            for failing in range(FIRST_FAILURES):
                begun: list[Any] = [None, None]
                if not begin(calls[name], failing, begun):
                    coroutine, trap = begun
                    assert waiting() == 1
                    assert trap.abort_func(None) is trio.lowlevel.Abort.SUCCEEDED
                    assert waiting() == 0
                    coroutine.close()
                    continue  # it needed no such allocation, or Trio has done it without
                failed += 1
                assert waiting() == 0
            nursery.cancel_scope.cancel()
        assert failed

    run(True, main)


@only_where_they_were_made
def test_an_event_that_finds_no_memory_has_not_happened() -> None:
    async def main() -> None:
        await count_to_large_numbers()
        event = trio.Event()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(event.wait)
            await wait_all_tasks_blocked()
            assert without_memory(event.set, 0)
            assert not event.is_set()
            assert event.statistics().tasks_waiting == 3
            event.set()

    run(True, main)


@only_where_they_were_made
@pytest.mark.parametrize("call", [trio.lowlevel.wait_readable, trio.lowlevel.wait_writable])
def test_a_descriptor_without_memory_is_waited_for_or_not(call: Callable[[Any], Awaitable[None]]) -> None:
    async def main() -> None:
        task: Any = trio.lowlevel.current_task()
        table = task._runner.io_manager._registered
        one, other = socket.socketpair()
        with one, other:
            failed = 0
            held: list[Any] = []
            for failing in range(FIRST_FAILURES):
                held += take_spare_waits()
                begun: list[Any] = [None, None]
                if begin(functools.partial(call, one), failing, begun):
                    failed += 1
                    entry = table.get(one.fileno())
                    assert entry is None or (entry.read_task, entry.write_task) == (None, None)
                    continue
                coroutine, trap = begun
                assert task in (table[one.fileno()].read_task, table[one.fileno()].write_task)
                assert trap.abort_func(None) is trio.lowlevel.Abort.SUCCEEDED
                assert one.fileno() not in table
                coroutine.close()
            assert failed
            for wait in held:
                wait.close()

    run(True, main, backend="trio")


@only_where_they_were_made
def test_a_scope_without_memory_is_entered_or_not() -> None:
    async def main() -> None:
        task: Any = trio.lowlevel.current_task()
        await count_to_large_numbers()
        failed = 0
        for failing in range(FIRST_FAILURES):
            before = task._cancel_status
            scope = trio.CancelScope(deadline=trio.current_time() + 1000)
            if without_memory(scope.__enter__, failing):
                failed += 1
                assert task._cancel_status is before
                continue
            scope.__exit__(None, None, None)
            assert task._cancel_status is before
        assert failed
        assert task._runner.deadlines._active == 0

    run(True, main)


@only_where_they_were_made
@pytest.mark.parametrize("error", [None, KeyError("x")], ids=["in time", "raising"])
def test_a_time_limit_without_memory_is_entered_and_left_or_not(error: Exception | None) -> None:
    """One whose end finds no memory is over when its manager is gone."""
    if error and tuple(map(int, trio.__version__.split(".")[:2])) < (0, 28):
        pytest.skip("in this Trio the end of a scope finds no memory for its own functions, and leaves the scope open")

    async def main() -> None:
        task: Any = trio.lowlevel.current_task()
        await count_to_large_numbers()
        failed = [0, 0, 0]
        for failing in range(FIRST_FAILURES):
            before = task._cancel_status
            made: list[Any] = [None]

            def make(into: list[Any] = made) -> None:
                into[0] = trio.fail_after(1000)

            failed[0] += without_memory(make, failing)
            manager: Any = trio.fail_after(1000)
            if without_memory(manager.__enter__, failing):
                failed[1] += 1
                assert task._cancel_status is before
                manager = trio.fail_after(1000)
            if task._cancel_status is before:
                manager.__enter__()
            leave = functools.partial(manager.__exit__, type(error) if error else None, error, None)
            failed[2] += without_memory(leave, failing)
            del manager, leave
            assert task._cancel_status is before
        assert failed[0]
        assert failed[1]
        assert error is None or failed[2]
        assert task._runner.deadlines._active == 0

    run(True, main)


@only_where_they_were_made
def test_an_async_generator_without_memory_is_noted_or_does_not_begin() -> None:
    async def numbers() -> AsyncGenerator[int, None]:
        yield 1

    async def main() -> None:
        await count_to_large_numbers()
        alive = trio.lowlevel.current_task()._runner.asyncgens.alive
        failed = 0
        for failing in range(FIRST_FAILURES):
            generator = numbers()
            if without_memory(generator.__anext__, failing):
                failed += 1
            else:
                assert generator in alive
            await generator.aclose()
            del generator
            assert not alive.data
        assert failed

    run(True, main)


async def enter_without_memory(manager: Any, failing: int) -> bool:
    """Whether entering needed that allocation."""
    testcapi = pytest.importorskip("_testcapi")
    testcapi.set_nomemory(failing, failing + 1)
    try:
        await manager.__aenter__()
    except MemoryError:
        return True
    finally:
        testcapi.remove_mem_hooks()
    return False


@only_where_they_were_made
# Python finalizes a nursery for whose attributes it has no memory, and Trio's finalizer looks at them.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_nursery_without_memory_is_open_or_not() -> None:
    async def main() -> None:
        task: Any = trio.lowlevel.current_task()
        await count_to_large_numbers()
        failed = 0
        for failing in range(FIRST_FAILURES):
            before = task._cancel_status
            manager = trio.open_nursery()
            if await enter_without_memory(manager, failing):
                failed += 1
                assert task._cancel_status is before
                assert task.child_nurseries == []
                continue
            assert len(task.child_nurseries) == 1
            await manager.__aexit__(None, None, None)
            assert task._cancel_status is before
        assert failed

    run(True, main)


# --- Ctrl-C at any moment ---


async def busy(seed: int) -> None:
    """Use everything, until a KeyboardInterrupt ends it."""
    chance = random.Random(seed)
    send, receive = trio.open_memory_channel[int](1)
    lock, lot = trio.Lock(), trio.lowlevel.ParkingLot()

    async def produce() -> None:
        while True:
            await send.send(1)

    async def consume() -> None:
        async for _ in receive:
            async with lock:
                await trio.lowlevel.checkpoint()

    async def scopes() -> None:
        while True:
            with trio.move_on_after(chance.choice((0, 0.0001))):
                await lot.park()
            with contextlib.suppress(trio.TooSlowError), trio.fail_after(chance.choice((0, 0.0001, 1))):
                await trio.lowlevel.checkpoint()
                async for _ in generate():
                    pass
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep, 0)

    async def generate() -> AsyncGenerator[None, None]:
        await trio.lowlevel.checkpoint()
        yield

    async def events() -> None:
        while True:
            event = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(event.wait)
                event.set()
            lot.unpark_all()

    async with trio.open_nursery() as nursery:
        for task in (produce, consume, scopes, events):
            nursery.start_soon(task)
        await trio.sleep_forever()


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exceptions of a group, and those that they came out of."""
    while error is not None:
        yield error
        for member in getattr(error, "exceptions", ()):
            yield from causes(member)
        error = error.__context__


# An interrupt may come between making a call and awaiting it: between the call of __aexit__ and its await, too, which leaves
# a nursery open.  Trio has an error for that, with the interrupt behind it.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("seed", range(8))
def test_control_c_at_any_moment(seed: int) -> None:
    """It comes out of the run, and Trio's bookkeeping is whole: no internal error."""
    pause = random.Random(seed).uniform(0.002, 0.03)
    timer = threading.Timer(pause, signal.raise_signal, [signal.SIGINT])

    async def main() -> None:
        timer.start()
        with trio.move_on_after(5):
            await busy(seed)

    result = outcome.capture(run, True, main)
    timer.join()
    found = {type(error) for error in causes(getattr(result, "error", None))}
    is_over = isinstance(result, outcome.Value)
    # Its traceback holds the frames of tasks that the interrupt has left in their scopes: these end here, in no later test.
    del result
    gc.collect()
    if is_over:
        pytest.skip("the interrupt came in a finalizer, and Python ignores what that raises")
    assert trio.TrioInternalError not in found
    assert KeyboardInterrupt in found


def test_runs_after_interrupts_are_as_ever() -> None:
    async def main() -> int:
        send, receive = trio.open_memory_channel[int](0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send.send, 7)
            return await receive.receive()

    assert run(True, main) == 7

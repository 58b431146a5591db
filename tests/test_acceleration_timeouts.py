"""``fail_after`` means the same with Trio's own code and with the piece in C: scope, exceptions and the context manager."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import math
import pickle
import re
import sys
import traceback
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio
import trio._timeouts
from support.accelerated import run
from support.collector import collecting_always
from trio.testing import MockClock

from gain_trio._acceleration._fail_after import FailAfter
from gain_trio._kernel import trio_core

pytestmark = [
    pytest.mark.usefixtures("not_installed"),
    pytest.mark.skipif(trio_core is None, reason="the compiled modules are not built here"),
]

TRIO = tuple(map(int, trio.__version__.split(".")[:2]))
PLAIN = contextlib._GeneratorContextManager
has_relative_deadlines = pytest.mark.skipif(TRIO < (0, 27), reason="fail_after is another function in this Trio")


@pytest.fixture(params=[False, True, ("timeouts",)], ids=["trio", "accelerated", "alone"])
def pieces(request: pytest.FixtureRequest) -> bool | tuple[str, ...]:
    value: bool | tuple[str, ...] = request.param
    return value


@pytest.fixture
def not_watched() -> Iterator[None]:
    """From Python 3.12 on a code object keeps that a tool has once watched it, as tests here do."""
    function = trio.fail_after.__wrapped__  # type: ignore[attr-defined]  # a context manager's function has it
    watched = function.__code__
    function.__code__ = watched.replace()
    yield
    function.__code__ = watched


def own_task() -> tuple[Any, ...]:
    """What a scope changes of a task and its run."""
    task = trio.lowlevel.current_task()
    deadlines = task._runner.deadlines
    status = task._cancel_status
    assert status is not None
    return status, set(status._children), set(status._tasks), deadlines._active


def frames(error: BaseException) -> list[tuple[str, str, int]]:
    """Where the traceback leads: function, file, and line."""
    return [(frame.name, frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]


# --- the scope ---


def test_a_block_that_ends_in_time(pieces: bool) -> None:
    async def main() -> None:
        before = own_task()
        for seconds in (5, 2.5, math.inf):
            with trio.fail_after(seconds) as scope:
                assert type(scope) is trio.CancelScope
                assert scope.deadline == trio.current_time() + seconds
                assert trio.current_effective_deadline() == scope.deadline
                await trio.sleep(1)
            assert not scope.cancelled_caught
            assert own_task() == before

    run(pieces, main, clock=MockClock(autojump_threshold=0))
    run(pieces, functools.partial(on_the_system_clock, 1000))


async def on_the_system_clock(seconds: float) -> None:
    before, now = own_task(), trio.current_time()
    with trio.fail_after(seconds) as outer, trio.fail_after(seconds) as scope:
        assert now + seconds <= outer.deadline <= scope.deadline
        await trio.lowlevel.checkpoint()
    assert own_task() == before


@has_relative_deadlines
def test_arguments(pieces: bool) -> None:
    async def main() -> None:
        for manager in (
            trio.fail_after(3, shield=True),
            trio.fail_after(seconds=3, shield=True),
            trio.fail_after(3.0, shield=True),
        ):
            with manager as scope:
                assert scope.shield
        with trio.fail_after(3) as scope:  # noqa: ASYNC100  # nothing waits in it
            assert not scope.shield
        for call in (
            lambda: trio.fail_after(),  # type: ignore[call-arg]
            lambda: trio.fail_after(3, True),  # type: ignore[call-arg, arg-type]
            lambda: trio.fail_after(3, shade=True),  # type: ignore[call-arg]
        ):
            with pytest.raises(TypeError, match=r"fail_after\(\)"):
                call()

    run(pieces, main)


@has_relative_deadlines
def test_numbers_that_are_refused_when_it_is_entered(pieces: bool) -> None:
    async def main() -> None:
        for seconds, error, text in (
            (-1, ValueError, "non-negative"),
            (math.nan, ValueError, "NaN"),
            ("soon", TypeError, "not supported"),
        ):
            manager: Any = trio.fail_after(seconds)  # type: ignore[arg-type]
            with pytest.raises(error, match=text) as raised:
                manager.__enter__()
            assert frames(raised.value)[-1][0] == "move_on_after"

    run(pieces, main)


def test_it_is_too_slow(pieces: bool) -> None:
    async def main() -> None:
        before = own_task()
        for seconds in (0, 1):
            with pytest.raises(trio.TooSlowError) as raised:
                with trio.fail_after(seconds) as scope:
                    await trio.sleep(2)
            assert scope.cancelled_caught
            assert isinstance(raised.value.__context__, trio.Cancelled)
            name, file, _line = frames(raised.value)[-1]
            assert (name, file) == ("fail_after" if TRIO >= (0, 27) else "fail_at", trio._timeouts.__file__)
            assert own_task() == before

    run(pieces, main, clock=MockClock(autojump_threshold=0))


def test_it_is_too_slow_on_the_system_clock(pieces: bool) -> None:
    async def main() -> None:
        before = own_task()
        with pytest.raises(trio.TooSlowError):
            with trio.fail_after(0.01):
                await trio.sleep_forever()
        assert own_task() == before

    run(pieces, main)


def test_a_deadline_that_nobody_noticed(pieces: bool) -> None:
    """The block ends without a checkpoint, after its time."""

    async def main() -> None:
        with trio.fail_after(0.5) as scope:  # noqa: ASYNC100  # nothing waits in it
            clock.jump(1)
        assert not scope.cancelled_caught
        with trio.fail_after(5) as scope:  # noqa: ASYNC100  # the same
            scope.cancel()
        assert scope.cancel_called
        assert not scope.cancelled_caught

    clock = MockClock()
    run(pieces, main, clock=clock)


def test_a_scope_around_it_is_cancelled(pieces: bool) -> None:
    async def main() -> None:
        with trio.CancelScope() as outer:
            outer.cancel()
            with trio.fail_after(5) as scope:
                await trio.sleep_forever()
            pytest.fail("it was not cancelled")
        assert outer.cancelled_caught
        assert not scope.cancelled_caught

    run(pieces, main)


# --- exceptions of its block ---


def note_traceback(error: BaseException) -> list[str]:
    return [name for name, _file, _line in frames(error)]


@pytest.mark.parametrize(
    "error",
    [KeyError("x"), StopIteration(3), RuntimeError("x"), GeneratorExit(), KeyboardInterrupt(), trio.TooSlowError()],
)
def test_an_exception_goes_through_as_it_is(pieces: bool, error: BaseException) -> None:
    async def main() -> None:
        before = own_task()
        context = ValueError("of the block")

        def fail() -> None:
            raise error from context

        with pytest.raises(type(error)) as raised:
            with trio.fail_after(5):  # noqa: ASYNC100  # it fails at once
                fail()
        assert raised.value is error
        assert error.__cause__ is context
        assert note_traceback(error) == ["main", "fail"]
        assert own_task() == before

    error.__traceback__ = None
    run(pieces, main)


def test_it_returns_what_it_returns(pieces: bool) -> None:
    """Called by hand, as an exit stack does."""

    async def main() -> None:
        manager: Any = trio.fail_after(5)
        scope = manager.__enter__()
        assert isinstance(scope, trio.CancelScope)
        assert manager.__exit__(None, None, None) is False
        manager = trio.fail_after(5)
        manager.__enter__()
        error = KeyError("x")
        assert manager.__exit__(KeyError, error, None) is False
        async with contextlib.AsyncExitStack() as stack:
            scope = stack.enter_context(trio.fail_after(5))
            assert trio.current_effective_deadline() == scope.deadline
        assert trio.current_effective_deadline() == math.inf

    run(pieces, main)


# --- wrong order ---


def outcome_of(call: Callable[[], object]) -> object:
    """What it returns, or what it raises."""
    try:
        return call()
    except BaseException as error:  # all of them are compared
        return type(error), re.sub("0x[0-9a-f]+", "0x", str(error))


@has_relative_deadlines
def test_calls_out_of_order() -> None:
    def enter(manager: Any) -> object:
        return type(manager.__enter__())

    def leave(manager: Any) -> object:
        return manager.__exit__(None, None, None)

    def fail(manager: Any) -> object:
        error = KeyError("x")
        return manager.__exit__(KeyError, error, None)

    orders = [
        (leave,),
        (fail,),
        (enter, enter, leave),
        (enter, leave, leave),
        (enter, leave, fail),
        (enter, leave, enter),
        (enter, fail, enter),
        (enter, fail, leave),
    ]

    async def main() -> list[object]:
        found: list[object] = []
        for order in orders:
            before = own_task()
            manager = trio.fail_after(5)
            found.append([outcome_of(functools.partial(step, manager)) for step in order])
            del manager
            gc.collect()
            assert own_task() == before, order
        return found

    assert run(True, main) == run(False, main)


def test_scopes_that_are_left_in_the_wrong_order() -> None:
    async def main() -> list[object]:
        first: Any = trio.fail_after(5)
        second: Any = trio.fail_after(6)
        first.__enter__()
        second.__enter__()
        return [
            outcome_of(lambda: first.__exit__(None, None, None)),
            outcome_of(lambda: second.__exit__(None, None, None)),
        ]

    assert run(True, main, clock=MockClock()) == run(False, main, clock=MockClock())


def test_one_that_is_dropped_in_its_block_leaves_its_scope(pieces: bool) -> None:
    async def main() -> None:
        before = own_task()
        manager: Any = trio.fail_after(5)
        scope = manager.__enter__()
        assert own_task() != before
        del manager
        gc.collect()
        assert own_task() == before
        assert not scope.cancelled_caught

    run(pieces, main)


# --- the manager ---


@has_relative_deadlines
def test_what_a_program_sees_of_it() -> None:
    """Only its exact type is another one."""

    def look(manager: Any) -> list[object]:
        names = ("gen", "func", "args", "kwds", "other")
        return [
            repr(manager).partition(" at ")[0],
            manager.__doc__,
            isinstance(manager, PLAIN),
            isinstance(manager, contextlib.AbstractContextManager),
            callable(manager),
            [outcome_of(functools.partial(getattr, manager, name)) for name in names if name != "gen"],
            type(manager.gen) if hasattr(manager, "gen") else None,
            getattr(manager.gen, "__qualname__", None),
            getattr(manager.gen, "gi_frame", None) is not None,
            [repr(outcome_of(functools.partial(pickle.dumps, manager, protocol))) for protocol in range(6)],
            type(copy.copy(manager).gen),
            manager.__class__,
            sorted(vars(manager)),
        ]

    async def main() -> list[object]:
        found = []
        for state in range(3):
            manager: Any = trio.fail_after(5, shield=True)
            if state > 0:
                manager.__enter__()
            if state > 1:
                manager.__exit__(None, None, None)
            found.append(look(manager))
            if state == 1:
                manager.__exit__(None, None, None)
        return found

    assert run(True, main) == run(False, main)


@has_relative_deadlines
def test_what_was_looked_at_still_works(pieces: bool) -> None:
    async def main() -> None:
        before = own_task()
        manager: Any = trio.fail_after(5)
        assert manager.args == (5,)
        with manager as scope:
            assert manager.gen.gi_frame.f_locals["scope"] is scope
            await trio.lowlevel.checkpoint()
        assert own_task() == before
        manager = trio.fail_after(1)
        with pytest.raises(trio.TooSlowError):
            with manager as scope:
                generator = manager.gen
                assert generator.gi_frame.f_locals["scope"] is scope
                await trio.sleep(2)
        assert generator.gi_frame is None
        assert own_task() == before

    run(pieces, main, clock=MockClock(autojump_threshold=0))


def test_as_a_decorator(pieces: bool) -> None:
    async def main() -> None:
        @trio.fail_after(5)
        def calculate(number: int) -> float:
            """Say when it is too late."""
            return number * trio.current_effective_deadline()

        assert calculate.__doc__ == "Say when it is too late."
        assert calculate(2) == 2 * (trio.current_time() + 5)
        assert calculate(number=3) == 3 * (trio.current_time() + 5)
        assert trio.current_effective_deadline() == math.inf

    if TRIO >= (0, 27):
        run(pieces, main, clock=MockClock())


@has_relative_deadlines
@pytest.mark.usefixtures("not_watched")
def test_the_piece_is_what_makes_it() -> None:
    async def main() -> type:
        return type(trio.fail_after(5))

    assert run(False, main) is PLAIN
    assert run(True, main) is FailAfter
    assert run(("timeouts",), main) is FailAfter
    assert run(("scopes",), main) is PLAIN
    assert type(trio.fail_after(5)) is PLAIN


@has_relative_deadlines
@pytest.mark.usefixtures("not_watched")
def test_one_of_a_run_that_has_ended() -> None:
    async def main() -> Any:
        manager = trio.fail_after(5)
        assert type(manager) is FailAfter
        return manager

    manager = run(True, main)

    async def use() -> None:
        with manager as scope:
            assert scope.deadline < math.inf
            await trio.lowlevel.checkpoint()

    run(False, use)


def test_it_keeps_nothing_alive(pieces: bool) -> None:
    """The scope goes with the block, and the manager with its last reference, without the collector."""

    async def main() -> None:
        manager: Any = trio.fail_after(math.inf)  # a deadline stays on Trio's heap for a while
        with manager as scope:
            pass
        seen, gone = weakref.ref(scope), weakref.ref(manager)
        del scope
        assert seen() is None
        del manager
        assert gone() is None

    gc.disable()
    try:
        run(pieces, main)
    finally:
        gc.enable()


@pytest.mark.slow
def test_with_a_collection_at_every_allocation(pieces: bool) -> None:
    async def main() -> None:
        before = own_task()
        for number in range(30):
            with contextlib.suppress(KeyError, trio.TooSlowError):
                with trio.fail_after(number % 3) as scope:
                    if number % 4 == 0:
                        raise KeyError
                    if number % 5 == 0:
                        await trio.sleep(4)
                    if number % 7 == 0:
                        scope.cancel()
            manager: Any = trio.fail_after(5)
            if number % 2:
                manager.__enter__()
            del manager
        gc.collect()
        assert own_task() == before

    with collecting_always():
        run(pieces, main, clock=MockClock(autojump_threshold=0))


# --- tools that watch, and programs that replace ---


@contextlib.contextmanager
def watched(
    watch: Callable[[Any], None], before: Any, look: Callable[[types.FrameType, str, object], Any]
) -> Iterator[None]:
    watch(look)
    try:
        yield
    finally:
        watch(before)


@has_relative_deadlines
@pytest.mark.parametrize("watch", [sys.settrace, sys.setprofile])
def test_a_tracer_and_a_profiler_see_the_generator(watch: Callable[[Any], None]) -> None:
    calls: list[str] = []

    def look(frame: types.FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code.co_filename == trio._timeouts.__file__:
            calls.append(frame.f_code.co_name)

    async def main() -> None:
        before = sys.gettrace() if watch is sys.settrace else sys.getprofile()
        with watched(watch, before, look):
            with trio.fail_after(5):
                await trio.lowlevel.checkpoint()

    run(False, main)
    by_trio, calls[:] = [*calls], []
    run(True, main)
    assert calls == by_trio
    assert calls.count("fail_after") == 2


@has_relative_deadlines
@pytest.mark.parametrize("when", ["before it is made", "before it is entered", "in its block"])
def test_move_on_after_is_replaced(pieces: bool, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    seen = []

    def other(seconds: float, *, shield: bool = False) -> trio.CancelScope:
        seen.append(seconds)
        return trio.move_on_after(seconds + 1, shield=shield)

    async def main() -> float:
        with monkeypatch.context() as patch:
            if when == "before it is made":
                patch.setattr(trio._timeouts, "move_on_after", other)
            manager = trio.fail_after(5)
            if when == "before it is entered":
                patch.setattr(trio._timeouts, "move_on_after", other)
            with manager as scope:
                if when == "in its block":
                    patch.setattr(trio._timeouts, "move_on_after", other)
                await trio.lowlevel.checkpoint()
            return scope.deadline - trio.current_time()

    expected = 5.0 if when == "in its block" else 6.0
    assert run(pieces, main, clock=MockClock()) == expected
    assert seen == ([] if when == "in its block" else [5])


@has_relative_deadlines
def test_methods_of_contextlib_are_replaced(pieces: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def entering(self: Any, original: Any = PLAIN.__enter__) -> Any:
        if self.gen.__name__ == "fail_after":  # other context managers are entered, too
            calls.append("enter")
        return original(self)

    async def main() -> None:
        with trio.fail_after(5):
            await trio.lowlevel.checkpoint()
        monkeypatch.setattr(PLAIN, "__enter__", entering)
        with trio.fail_after(5):
            await trio.lowlevel.checkpoint()
        monkeypatch.undo()

    run(pieces, main)
    assert calls == ["enter"]


@has_relative_deadlines
def test_the_exit_of_scopes_is_replaced(pieces: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    original = trio.CancelScope.__exit__
    calls = []

    def leaving(self: Any, *exc: Any) -> Any:
        calls.append(self)
        return original(self, *exc)

    async def main() -> None:
        monkeypatch.setattr(trio.CancelScope, "__exit__", leaving)
        with trio.fail_after(5) as scope:
            await trio.lowlevel.checkpoint()
        monkeypatch.undo()
        assert calls == [scope]

    run(pieces, main)

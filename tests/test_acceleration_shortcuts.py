"""Trio's functions that C calls without a frame of the interpreter: when C does, and when the functions' code runs."""

from __future__ import annotations

import math
import operator
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import outcome
import pytest
import trio
from support.accelerated import functions, run
from trio._core import _run
from trio.testing import wait_all_tasks_blocked

from gain_trio._acceleration import _switch
from gain_trio._kernel import trio_core

pytestmark = [
    pytest.mark.usefixtures("not_installed"),
    pytest.mark.skipif(trio_core is None, reason="the compiled modules are not built here"),
]

PATHS = {
    *(f"run:CancelScope.{name}" for name in ("__init__", "__enter__", "__exit__")),
    "run:Runner.task_exited",
    "run:Runner.reschedule",
}

enter = operator.methodcaller("__enter__")
"""Calls it from C, as ``with`` does."""


def with_shortcuts() -> set[str]:
    return {path for path, function in functions().items() if trio_core.has_shortcut(function)}


async def nothing() -> None:
    pass


def reschedule(task: Any, *outcomes: object) -> object:
    """Calls it from C, as the proactor does."""
    return operator.methodcaller("reschedule", task, *outcomes)(task._runner)


async def parked() -> Any:
    """Wait to be rescheduled: what the task was resumed with."""
    return await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.SUCCEEDED)


async def use_all() -> None:
    with trio.CancelScope():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(nothing)
            nursery.start_soon(parked)
            await wait_all_tasks_blocked()
            (task,) = nursery.child_tasks
            reschedule(task)


# --- in and out ---


def test_shortcuts_are_in_while_their_pieces_are() -> None:
    async def main() -> set[str]:
        return with_shortcuts()

    assert with_shortcuts() == set()
    assert run(True, main) == PATHS
    assert run(("spawning",), main) == {"run:Runner.task_exited"}
    assert run(("step",), main) == {"run:Runner.reschedule"}
    assert run(("checkpoints",), main) == set()
    assert run(False, main) == set()
    assert with_shortcuts() == set()


def test_what_set_shortcut_refuses() -> None:
    with pytest.raises(TypeError, match="a function and a name"):
        trio_core.set_shortcut(len, "scope_enter")
    with pytest.raises(TypeError, match="takes a function"):
        trio_core.has_shortcut(len)  # type: ignore[arg-type]  # that is the point


@contextmanager
def other_code(path: str, code: types.CodeType) -> Iterator[Any]:
    """The function has this code, as if a tool had put it in."""
    function = functions()[path]
    original = function.__code__
    function.__code__ = code
    try:
        yield function
    finally:
        function.__code__ = original


def test_the_code_of_a_tool_runs() -> None:
    def entered(self: object) -> object:
        return type(self)

    async def main() -> None:
        scope = trio.CancelScope()
        with other_code("run:CancelScope.__enter__", entered.__code__):
            assert enter(scope) is trio.CancelScope
        with scope:
            await trio.lowlevel.checkpoint()

    run(True, main)


def test_a_shortcut_does_not_outlive_the_code_of_a_tool(caplog: pytest.LogCaptureFixture) -> None:
    """A tool has replaced the code, which stays; the pointer beside it does not."""
    function = functions()["run:CancelScope.__enter__"]
    original = function.__code__

    async def main() -> None:
        function.__code__ = original.replace(co_name="of_a_tool")

    try:
        run(True, main)
        assert not trio_core.has_shortcut(function)
        assert "was replaced by another library" in caplog.text
    finally:
        function.__code__ = original
        # The switch believes that its own code is in; the next use sets that right.
        for swap in _switch.switch._swaps or ():
            if swap.function is function:
                swap.current = original


# --- tools that watch ---


EXPECTED = {path.partition(":")[2] for path in PATHS}


def called() -> tuple[Callable[[types.CodeType], None], Callable[[], set[str]]]:
    """Notes code objects; which of the functions' they were."""
    found: set[types.CodeType] = set()
    names = {path.partition(":")[2]: path for path in PATHS}

    def seen() -> set[str]:
        current = {name: functions()[path].__code__ for name, path in names.items()}
        return {name for name, code in current.items() if code in found}

    return found.add, seen


@pytest.mark.parametrize("watch", [sys.settrace, sys.setprofile])
def test_a_tracer_and_a_profiler_see_the_calls(watch: Callable[[Any], None]) -> None:
    note, seen = called()

    def look(frame: types.FrameType, event: str, _argument: object) -> None:
        if event == "call":
            note(frame.f_code)

    async def main() -> set[str]:
        await use_all()
        assert seen() == set()
        before = sys.gettrace() if watch is sys.settrace else sys.getprofile()
        watch(look)
        try:
            await use_all()
        finally:
            watch(before)
        return seen()

    assert run(True, main) == EXPECTED


@pytest.mark.skipif(sys.version_info < (3, 13), reason="before, C cannot ask whether a tool of sys.monitoring watches")
def test_a_monitoring_tool_sees_the_calls() -> None:
    monitoring: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore]  # the oldest Python has none
    note, seen = called()
    tool = next(number for number in (3, 4) if monitoring.get_tool(number) is None)

    async def main() -> set[str]:
        await use_all()
        monitoring.use_tool_id(tool, "a test")
        monitoring.register_callback(tool, monitoring.events.PY_START, lambda code, _offset: note(code))
        monitoring.set_events(tool, monitoring.events.PY_START)
        try:
            await use_all()
        finally:
            monitoring.set_events(tool, 0)
            monitoring.free_tool_id(tool)
        return seen()

    assert run(True, main) == EXPECTED


# --- what reschedule is called with ---


@pytest.mark.parametrize("accelerate", [True, False])
def test_a_task_is_resumed_with_what_it_was_rescheduled_with(accelerate: bool) -> None:
    async def main() -> list[object]:
        found: list[object] = []

        async def note() -> None:
            try:
                found.append(await parked())
            except ValueError as error:
                found.append(str(error))

        for given in ((), (_run._NO_SEND,), (outcome.Value(3),), (outcome.Error(ValueError("4")),)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(note)
                await wait_all_tasks_blocked()
                (task,) = nursery.child_tasks
                assert reschedule(task, *given) is None
                with pytest.raises(AssertionError):
                    reschedule(task, *given)
        return found

    assert run(accelerate, main) == [None, None, 3, "4"]


def test_another_default_counts() -> None:
    """What a program has made the default, the task is resumed with."""
    function = functions()["run:Runner.reschedule"]

    async def main() -> list[object]:
        found: list[object] = []

        async def note() -> None:
            found.append(await parked())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(note)
            await wait_all_tasks_blocked()
            (task,) = nursery.child_tasks
            before = function.__defaults__
            function.__defaults__ = (outcome.Value(5),)
            try:
                reschedule(task)
            finally:
                function.__defaults__ = before
        return found

    assert run(True, main) == [5]


# --- what a scope is called with ---


def attributes(scope: trio.CancelScope) -> dict[str, object]:
    return {name: getattr(scope, name) for name in sorted(_run.CancelScope.__slots__) if not name.startswith("__")}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shield": True},
        {"deadline": 5.0},
        {"deadline": -math.inf, "shield": False},
        {"deadline": 5},
        {"deadline": math.nan},
        {"deadline": "soon"},
        {str(b"shield", "ascii"): True},  # a name that is equal, and not the same string
        {"shield": 1},
        {"shelter": True},
        {"deadline": 5.0, "shelter": True},
        {"_deadline": 5.0},
    ],
)
def test_a_scope_is_made_as_trio_makes_it(options: dict[str, Any]) -> None:
    async def main() -> object:
        try:
            return attributes(trio.CancelScope(**options))
        except (TypeError, ValueError) as error:
            return type(error), str(error)

    assert run(True, main) == run(False, main)


def test_a_scope_takes_no_positional_arguments() -> None:
    async def main() -> str:
        with pytest.raises(TypeError) as caught:
            trio.CancelScope(5.0)  # type: ignore[misc]  # that is the point
        return str(caught.value)

    assert run(True, main) == run(False, main)


def test_defaults_that_a_program_has_changed_count() -> None:
    initialise = functions()["run:CancelScope.__init__"]

    async def main() -> bool:
        initialise.__kwdefaults__["shield"] = True
        try:
            return trio.CancelScope().shield
        finally:
            initialise.__kwdefaults__["shield"] = False

    assert run(True, main)
    assert run(False, main)


def test_a_default_that_is_gone_is_missed() -> None:
    initialise = functions()["run:CancelScope.__init__"]

    async def main() -> str:
        default = initialise.__kwdefaults__.pop("shield")
        try:
            with pytest.raises(TypeError, match="shield") as caught:
                trio.CancelScope()
            return str(caught.value)
        finally:
            initialise.__kwdefaults__["shield"] = default

    assert run(True, main) == run(False, main)


def test_unusual_scopes_are_trios() -> None:
    """A scope that is cancelled, one that is entered twice, and one whose block raises."""

    async def main() -> list[object]:
        seen: list[object] = []
        with trio.CancelScope() as scope:
            scope.cancel()
            await trio.lowlevel.checkpoint()
        seen.append(scope.cancelled_caught)
        with pytest.raises(RuntimeError) as caught:
            enter(scope)
        seen.append(str(caught.value))
        with pytest.raises(KeyError), trio.CancelScope():
            await trio.lowlevel.checkpoint()
            raise KeyError
        return seen

    assert run(True, main) == run(False, main)


# --- the names of tasks ---


def test_tasks_are_named_as_trio_names_them() -> None:
    class Server:
        async def serve(self) -> None:
            await nothing()

    async def of_no_module() -> None:
        await nothing()

    async def of_a_number() -> None:
        await nothing()

    of_no_module.__module__ = None  # type: ignore[assignment]  # that is the point
    of_a_number.__module__ = 7  # type: ignore[assignment]  # likewise
    of_a_number.__qualname__ = "größer als Ł"

    async def main() -> set[str]:
        async with trio.open_nursery() as nursery:
            for function in (nothing, Server().serve, of_no_module, of_a_number):
                nursery.start_soon(function)
            return {task.name for task in nursery.child_tasks}

    assert run(True, main) == run(False, main)

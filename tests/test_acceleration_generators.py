"""Async generators are noted and closed alike with Trio's own code and with the piece in C."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import trio
from support.accelerated import run
from support.collector import collecting_always

from gain_trio._kernel import trio_core

pytestmark = [
    pytest.mark.usefixtures("not_installed"),
    pytest.mark.skipif(trio_core is None, reason="the compiled modules are not built here"),
]


@pytest.fixture(params=[False, True, ("generators",)], ids=["trio", "accelerated", "alone"])
def pieces(request: pytest.FixtureRequest) -> bool | tuple[str, ...]:
    value: bool | tuple[str, ...] = request.param
    return value


def alive() -> Any:
    """Those that the run has noted."""
    return trio.lowlevel.current_task()._runner.asyncgens.alive


async def counting(log: list[str], name: str = "") -> AsyncGenerator[int, None]:
    try:
        for number in range(3):
            await trio.lowlevel.checkpoint()
            yield number
    finally:
        log.append(f"closed {name}")


def test_one_is_noted_while_it_lives(pieces: bool) -> None:
    async def main() -> None:
        assert type(alive()) is weakref.WeakSet
        before = len(alive())
        log: list[str] = []
        begun = counting(log)
        assert len(alive()) == before
        assert await begun.__anext__() == 0
        assert begun in alive()
        assert await begun.__anext__() == 1
        assert len(alive()) == before + 1
        other = counting(log)
        await other.asend(None)
        assert set(alive()) >= {begun, other}
        await begun.aclose()
        assert begun in alive()
        del begun
        assert len(alive()) == before + 1
        assert other in alive()
        assert [number async for number in other] == [1, 2]
        del other
        assert len(alive()) == before
        assert not alive().data
        assert log == ["closed ", "closed "]

    run(pieces, main)


def test_one_that_dies_while_the_set_is_iterated_over(pieces: bool) -> None:
    async def main() -> None:
        log: list[str] = []
        generators: list[Any] = []
        for number in range(4):
            generators.append(counting(log, str(number)))
            await generators[-1].__anext__()
        for generator in generators:
            await generator.aclose()
        seen = 0
        generator = None
        for _ in alive():
            seen += 1
            generators.clear()
            gc.collect()
        assert 1 <= seen <= 2
        del _
        assert len(alive()) == 0
        assert not alive().data
        assert not getattr(alive(), "_pending_removals", None)
        again = counting(log)
        await again.__anext__()
        assert set(alive()) == {again}
        await again.aclose()

    run(pieces, main)


def test_those_that_are_left_are_closed_at_the_end(pieces: bool) -> None:
    log: list[str] = []
    kept = []

    async def main() -> None:
        for name in "abc":
            kept.append(counting(log, name))
            await kept[-1].__anext__()

    run(pieces, main)
    assert sorted(log) == ["closed a", "closed b", "closed c"]


def test_one_that_is_dropped_is_closed_with_a_warning(pieces: bool) -> None:
    async def main() -> None:
        log: list[str] = []
        begun = counting(log)
        await begun.__anext__()
        with pytest.warns(ResourceWarning, match="counting.*was garbage collected before it had been exhausted"):
            del begun
            gc.collect()
        await trio.testing.wait_all_tasks_blocked()
        assert log == ["closed "]
        assert not alive().data

    run(pieces, main)


def test_one_that_begins_at_the_end_of_the_run(pieces: bool) -> None:
    """Then the set is a plain one, and those in it are closed, too."""
    log: list[str] = []
    kept = []

    async def outer() -> AsyncGenerator[int, None]:
        try:
            yield 1
        finally:
            inner = counting(log, "inner")
            kept.append(inner)
            await inner.aclose()
            with trio.CancelScope(shield=True):
                begun = counting(log, "begun")
                kept.append(begun)
                assert type(alive()) is set
                await begun.__anext__()
                assert begun in alive()

    async def main() -> None:
        kept.append(outer())
        await kept[-1].__anext__()

    run(pieces, main)
    assert log == ["closed begun"]


def test_hooks_around_the_run(pieces: bool) -> None:
    """What was set before is there again afterwards, and nothing of the run is kept."""
    before = sys.get_asyncgen_hooks()

    async def main() -> Any:
        hooks = sys.get_asyncgen_hooks()
        assert callable(hooks.firstiter)
        assert hooks.firstiter is not before.firstiter
        return weakref.ref(alive())

    seen = run(pieces, main)
    assert sys.get_asyncgen_hooks() == before
    gc.collect()
    assert seen() is None


def test_the_hook_in_no_task(pieces: bool) -> None:
    """A generator that no task begins is the host's, whose hook is called."""
    noted = []
    old = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(firstiter=noted.append)
    try:

        async def main() -> None:
            log: list[str] = []
            context = trio._core._run.GLOBAL_RUN_CONTEXT
            foreign, own = counting(log), counting(log)
            task = context.task
            del context.task
            try:
                step = foreign.__anext__()
            finally:
                context.task = task
            assert noted == [foreign]
            assert foreign not in alive()
            generators = trio.lowlevel.current_task()._runner.asyncgens
            assert id(foreign) in getattr(
                generators, "foreign", [id(foreign)]
            )  # which Trio before 0.28 marks otherwise
            await own.__anext__()
            assert noted == [foreign]
            await step
            await foreign.aclose()
            await own.aclose()

        run(pieces, main)
    finally:
        sys.set_asyncgen_hooks(*old)


def test_the_piece_is_what_sets_it() -> None:
    async def main() -> bool:
        return type(sys.get_asyncgen_hooks().firstiter) is type(len)

    assert run(True, main)
    assert run(("generators",), main)
    assert not run(False, main)
    assert not run(("scopes",), main)


def test_the_set_is_replaced(pieces: bool) -> None:
    """A program may give the run another one."""

    async def main() -> None:
        log: list[str] = []
        generators = trio.lowlevel.current_task()._runner.asyncgens
        first = counting(log)
        await first.__anext__()
        old, generators.alive = generators.alive, weakref.WeakSet()
        second = counting(log)
        await second.__anext__()
        assert set(old) == {first}
        assert set(generators.alive) == {second}
        generators.alive = old
        await first.aclose()
        await second.aclose()

    run(pieces, main)


@pytest.mark.slow
def test_with_a_collection_at_every_allocation(pieces: bool) -> None:
    async def main() -> None:
        log: list[str] = []
        kept = []
        for number in range(40):
            kept.append(counting(log))
            await kept[-1].__anext__()
            if number % 3 == 0:
                await kept.pop(0).aclose()
        assert len(alive()) == len(kept)
        for begun in kept:
            await begun.aclose()

    with collecting_always():
        run(pieces, main)

"""The coroutine of a server's handler, which its task resumes past the coroutine that keeps the connection's books."""

from __future__ import annotations

import functools
import gc
import signal
import sys
import traceback
import types
import weakref
from collections.abc import Coroutine, Generator
from typing import Any

import outcome
import pytest
import trio
from support.handler_tasks import (
    EXCHANGES,
    Books,
    DeliberateError,
    Handler,
    current_coroutine,
    run_handler,
    say,
    say_nothing,
    say_twice,
)
from support.two_ways import run_with_pair
from trio.testing import wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

pytestmark = [
    pytest.mark.connections,
    pytest.mark.features,
    pytest.mark.full_ring,
]  # a handler whose task is never resumed in place is awaited as ever

needs_exchange = pytest.mark.skipif(not EXCHANGES, reason="with this Trio a task keeps its coroutine")


@types.coroutine
def foreign_yield(message: object) -> Generator[object, object, object]:
    return (yield message)


# --- how it ends ---


@pytest.mark.parametrize("waits", [True, False])
def test_what_a_handler_returns(waits: bool, resume_in_place: bool) -> None:
    async def handler(served: Connection) -> bytes:
        return await served.receive() if waits else b"x"

    books = run_handler(handler, say if waits else say_nothing, resume_in_place=resume_in_place)
    assert books.result == b"x"
    assert books.steps == ["outer"]


@pytest.mark.parametrize("waits", [True, False])
def test_what_a_handler_raises(waits: bool, resume_in_place: bool) -> None:
    async def handler(served: Connection) -> None:
        if waits:
            await served.receive()
        raise DeliberateError

    error = run_handler(handler, say if waits else say_nothing, resume_in_place=resume_in_place).error
    assert error is not None
    assert [frame.name for frame in traceback.extract_tb(error.__traceback__)] == ["outer", "handler"]
    assert error.__context__ is None


def test_a_handler_that_is_cancelled(resume_in_place: bool) -> None:
    steps: list[str] = []

    async def handler(served: Connection) -> None:
        try:
            await served.receive()
        except trio.Cancelled:
            steps.append("cancelled")
            raise

    async def talk(_client: Connection, books: Books) -> None:
        books.task.parent_nursery.cancel_scope.cancel()

    books = run_handler(handler, talk, resume_in_place=resume_in_place)
    assert steps == ["cancelled"]
    assert books.steps == ["outer"]


def test_a_handler_whose_end_leaves_no_cycle(resume_in_place: bool) -> None:
    class Thing:
        pass

    found: list[weakref.ref[Thing]] = []

    async def handler(served: Connection) -> None:
        thing = Thing()
        found.append(weakref.ref(thing))
        await served.receive()

    gc.collect()
    gc.disable()
    try:
        run_handler(handler, say, resume_in_place=resume_in_place)
        assert found[0]() is None
    finally:
        gc.enable()


@needs_exchange
@pytest.mark.parametrize("raises", [True, False])
@pytest.mark.parametrize("waits", [True, False])
def test_code_that_runs_when_the_handlers_coroutine_goes(waits: bool, raises: bool) -> None:
    """It drives the task's coroutine, which belongs to the task, and takes nothing from it."""
    refused: list[str] = []

    async def handler(served: Connection) -> bytes:
        if waits:
            await served.receive()
        if raises:
            raise DeliberateError
        return b"x"

    class Watched(Books):
        async def outer(self, served: Connection, handler: Handler) -> None:
            task: Any = trio.lowlevel.current_task()

            def gone(_reference: object) -> None:
                with pytest.raises((ValueError, RuntimeError)) as caught:
                    task.coro.send(None)
                refused.append(str(caught.value))

            coroutine = handler(served)
            self.reference = weakref.ref(coroutine, gone)
            awaitable = served._handled(coroutine, type(self).outer.__code__)
            del coroutine
            try:
                self.result = await awaitable
            except DeliberateError as error:
                self.error = error

    books = Watched()

    async def body(client: Connection, served: Connection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(books.outer, served, handler)
            await wait_all_tasks_blocked()
            await client.send(b"x")

    run_with_pair(body, resume_in_place=True)
    assert len(refused) == 1
    assert (books.error is not None) == raises
    assert books.result == (None if raises else b"x")


# --- while it runs ---


def test_a_handler_that_waits_for_other_things_too(resume_in_place: bool) -> None:
    received: list[bytes] = []

    async def handler(served: Connection) -> None:
        for _ in range(3):
            received.append(await served.receive())
            await trio.lowlevel.checkpoint()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.lowlevel.checkpoint)
            await served.send(b"next")

    async def talk(client: Connection, _books: Books) -> None:
        for number in range(3):
            await client.send(b"%d" % number)
            assert await client.receive() == b"next"

    run_handler(handler, talk, resume_in_place=resume_in_place)
    assert received == [b"0", b"1", b"2"]


@needs_exchange
def test_the_task_has_the_coroutine_of_the_handler() -> None:
    seen: list[str] = []

    async def handler(served: Connection) -> None:
        await served.receive()
        coroutine = current_coroutine()
        assert coroutine.cr_running
        seen.append(coroutine.__name__)
        await served.receive()

    async def talk(client: Connection, books: Books) -> None:
        for _ in range(2):
            coroutine = books.task.coro
            assert coroutine is not books.own
            assert coroutine.cr_code.co_name == "handler"
            assert coroutine.cr_origin is None
            assert not coroutine.cr_running
            assert coroutine.__qualname__.endswith("handler")
            assert [frame.f_code.co_name for frame, _ in books.task.iter_await_frames()] == ["handler"]
            assert isinstance(coroutine, Coroutine)
            if sys.version_info >= (3, 11):
                assert coroutine.cr_suspended
            await client.send(b"x")
            await wait_all_tasks_blocked()

    books = run_handler(handler, talk)
    assert seen == ["handler"]
    assert books.task.coro is books.own


def test_an_unknown_message_of_a_handler(resume_in_place: bool) -> None:
    async def handler(served: Connection) -> None:
        await served.receive()
        try:
            await foreign_yield("of another loop")
        except TypeError:
            raise DeliberateError from None

    assert isinstance(run_handler(handler, say, resume_in_place=resume_in_place).error, DeliberateError)


def test_an_exception_that_a_handler_gets_and_goes_on(resume_in_place: bool) -> None:
    async def handler(served: Connection) -> bytes:
        await served.receive()
        with pytest.raises(TypeError):
            await foreign_yield("of another loop")
        return await served.receive()

    assert run_handler(handler, say_twice, resume_in_place=resume_in_place).result == b"y"


def test_ctrl_c_interrupts_a_handler(resume_in_place: bool) -> None:
    """In the step that the arrival has resumed, where the frame of the handler has none of the task's above it."""
    places: list[str] = []

    async def handler(served: Connection) -> None:
        await served.receive()
        try:
            signal.raise_signal(signal.SIGINT)
            places.append("behind it")
        except KeyboardInterrupt:
            places.append("in the handler")
            raise

    with pytest.raises((KeyboardInterrupt, BaseExceptionGroup)):
        run_handler(handler, say, resume_in_place=resume_in_place)
    assert places == ["in the handler"]


def test_a_handler_that_drives_itself(resume_in_place: bool) -> None:
    """It is told that it runs, as by a coroutine of Python's, and goes on."""

    async def handler(served: Connection) -> bytes:
        await served.receive()
        coroutine = current_coroutine()
        for drive in (functools.partial(coroutine.send, None), coroutine.close):
            with pytest.raises(ValueError, match=r"running|executing"):
                drive()
        with pytest.raises(ValueError, match=r"running|executing"):
            coroutine.throw(DeliberateError())
        return await served.receive()

    assert run_handler(handler, say_twice, resume_in_place=resume_in_place).result == b"y"


def test_a_handler_in_a_handler(resume_in_place: bool) -> None:
    async def inner(served: Connection) -> bytes:
        return await served.receive()

    async def handler(served: Connection) -> object:
        await served.receive()
        return await served._handled(inner(served), handler.__code__)

    assert run_handler(handler, say_twice, resume_in_place=resume_in_place).result == b"y"


# --- what drives it itself ---


async def detached(handler_steps: list[str], served: Connection) -> None:
    """A handler that leaves Trio, and waits for whatever drives it then."""
    try:
        await served.receive()
        await trio.lowlevel.permanently_detach_coroutine_object(outcome.Value(None))
        handler_steps.append("driven")
        await foreign_yield("again")
    finally:
        handler_steps.append("handler")


def run_detached() -> tuple[list[str], Any, Any]:
    """The steps, the coroutine of the task that has left, and that which it had first."""
    steps: list[str] = []
    kept: list[Any] = []

    async def outer(served: Connection) -> None:
        kept.append(current_coroutine())
        try:
            await served._handled(detached(steps, served), outer.__code__)
            await foreign_yield("behind it")
        finally:
            steps.append("outer")

    async def body(client: Connection, served: Connection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outer, served)
            await wait_all_tasks_blocked()
            [task] = nursery.child_tasks
            kept.append(task.coro)
            await client.send(b"x")

    run_with_pair(body, resume_in_place=True)
    return steps, kept[1], kept[0]


def test_driven_by_another_loop() -> None:
    steps, coroutine, _ = run_detached()
    assert coroutine.send(None) == "again"
    assert coroutine.send(None) == "behind it"
    assert steps == ["driven", "handler"]
    with pytest.raises(DeliberateError):
        coroutine.throw(DeliberateError())
    assert steps == ["driven", "handler", "outer"]
    with pytest.raises(RuntimeError, match="reuse"):
        coroutine.send(None)


def test_driven_by_the_first_coroutine() -> None:
    steps, _, outer = run_detached()
    assert outer.send(None) == "again"
    with pytest.raises(DeliberateError):
        outer.throw(DeliberateError())
    assert steps == ["driven", "handler", "outer"]


@pytest.mark.parametrize("first", [True, False])
def test_closed(first: bool) -> None:
    steps, coroutine, outer = run_detached()
    (outer if first else coroutine).close()
    assert steps == ["handler", "outer"]
    coroutine.close()
    outer.close()
    assert steps == ["handler", "outer"]
    assert coroutine.cr_frame is None
    assert not coroutine.cr_running
    with pytest.raises(RuntimeError, match="reuse"):
        coroutine.send(None)
    with pytest.raises(RuntimeError, match="reuse"):
        coroutine.throw(DeliberateError())


def test_closed_when_the_handler_has_ended() -> None:
    steps, coroutine, _ = run_detached()
    assert coroutine.send(None) == "again"
    assert coroutine.send(None) == "behind it"
    coroutine.close()
    assert steps == ["driven", "handler", "outer"]


def test_thrown_into_while_it_waits() -> None:
    steps, coroutine, _ = run_detached()
    with pytest.raises(DeliberateError):
        coroutine.throw(DeliberateError())
    assert steps == ["handler", "outer"]


def test_dropped() -> None:
    steps, coroutine, outer = run_detached()
    del coroutine, outer
    gc.collect()
    assert steps == ["handler", "outer"]


def test_an_awaitable_that_is_no_coroutine(resume_in_place: bool) -> None:
    class Ready:
        def __await__(self) -> Generator[object, object, object]:
            return foreign_yield("of another loop").__await__()

    async def body(_client: Connection, served: Connection) -> None:
        ready = Ready()
        assert served._handled(ready, current_coroutine().cr_code) is ready

    run_with_pair(body, resume_in_place)


def test_a_coroutine_that_is_not_the_tasks_own(resume_in_place: bool) -> None:
    async def handler(served: Connection) -> bytes:
        return await served.receive()

    async def body(client: Connection, served: Connection) -> None:
        coroutine = handler(served)
        assert served._handled(coroutine, body.__code__) is coroutine
        await client.send(b"x")
        assert await coroutine == b"x"

    run_with_pair(body, resume_in_place)


def test_a_coroutine_that_another_task_awaits(resume_in_place: bool) -> None:
    async def handler(served: Connection) -> bytes:
        return await served.receive()

    async def body(client: Connection, served: Connection) -> None:
        coroutine = handler(served)

        async def other() -> None:
            assert await coroutine == b"x"

        async def outer() -> None:
            with pytest.raises(RuntimeError, match="awaited already"):
                await served._handled(coroutine, outer.__code__)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            await wait_all_tasks_blocked()
            nursery.start_soon(outer)
            await wait_all_tasks_blocked()
            await client.send(b"x")

    run_with_pair(body, resume_in_place)


@needs_exchange
def test_one_that_another_task_awaits() -> None:
    kept: list[Any] = []

    async def handler(served: Connection) -> bytes:
        return await served.receive()

    async def other() -> None:
        own = current_coroutine()
        assert await kept[0] == b"x"
        assert current_coroutine() is own
        with pytest.raises(RuntimeError, match="reuse"):
            await kept[0]

    async def body(client: Connection, served: Connection) -> None:
        async def maker() -> None:
            kept.append(served._handled(handler(served), maker.__code__))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(maker)
        assert not isinstance(kept[0], types.CoroutineType)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            await wait_all_tasks_blocked()
            await client.send(b"x")

    run_with_pair(body, resume_in_place=True)


@needs_exchange
def test_one_that_is_never_awaited() -> None:
    async def handler() -> None:
        raise AssertionError

    async def body(_client: Connection, served: Connection) -> None:
        async def maker() -> None:
            with pytest.warns(RuntimeWarning, match="handler' was never awaited"):
                served._handled(handler(), maker.__code__)
            awaitable: Any = served._handled(handler(), maker.__code__)
            awaitable.close()
            with pytest.raises(RuntimeError, match="reuse"):
                await awaitable
            awaitable = served._handled(handler(), maker.__code__)
            with pytest.raises(DeliberateError):
                awaitable.throw(DeliberateError())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(maker)

    run_with_pair(body, resume_in_place=True)


# --- in a server ---


@needs_exchange
def test_a_server_resumes_its_handlers_so(resume_in_place: bool) -> None:
    names: list[str] = []

    async def handler(connection: Connection) -> None:
        while data := await connection.receive():
            names.append(current_coroutine().__name__)
            await connection.send(data)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(functools.partial(gain_trio.serve, handler, "tcp://127.0.0.1:0"))
            async with await gain_trio.connect(server.addresses[0]) as client:
                for _ in range(2):
                    await client.send(b"x")
                    assert await client.receive() == b"x"
            nursery.cancel_scope.cancel()

    gain_trio.run(main, resume_in_place=resume_in_place)
    assert names == (["handler", "handler"] if resume_in_place else ["_serve", "_serve"])

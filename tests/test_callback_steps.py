"""A callback that is called in its task's step without the handler's coroutine: what it, and others, see of the task."""

from __future__ import annotations

import contextvars
import gc
import os
import signal
import sys
import threading
import traceback
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, cast

import pytest
import trio
from support.handler_tasks import (
    EXCHANGES,
    Books,
    DeliberateError,
    Handler,
    Talk,
    current_coroutine,
    run_handler,
    say,
    say_twice,
)
from support.two_ways import run_with_pair
from trio.testing import wait_all_tasks_blocked

from gain_trio import Connection
from gain_trio._io_manager import current_manager

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

pytestmark = [pytest.mark.connections, pytest.mark.features, pytest.mark.full_ring]

Callback: TypeAlias = Callable[[Connection, int], object]


def deliver(served: Connection, callback: Callback, most: int = 100, timed: int = 100, learn: Any = None) -> Any:
    """Call back from the third delivery on: in the first two of a call the coroutine that awaits it takes part."""
    left = 2

    def called(served: Connection, count: int) -> None:
        nonlocal left
        if left:
            left -= 1
            assert served._take_exactly(count) == b"w" * count
        else:
            callback(served, count)

    return served._deliver(called, served, 0, most, timed, learn)


def warmed(talk: Talk) -> Talk:
    """The same behind two deliveries."""

    async def talk_behind(client: Connection, books: Books) -> None:
        for _ in range(2):
            await client.send(b"w")
            await wait_all_tasks_blocked()
        await talk(client, books)

    return talk_behind


def run_warmed(handler: Handler, talk: Talk = say, *, resume_in_place: bool = True) -> Books:
    return run_handler(handler, warmed(talk), resume_in_place=resume_in_place)


def run_callback(callback: Callback, talk: Talk = say, *, resume_in_place: bool = True) -> Books:
    """Call back for what arrives while the task waits, until the answer is another one."""

    async def handler(served: Connection) -> int:
        return cast("int", await deliver(served, callback))

    return run_warmed(handler, talk, resume_in_place=resume_in_place)


def take(served: Connection, count: int) -> bytes:
    """Take what has arrived, and end the delivery."""
    data = served._take_exactly(count)
    assert data is not None
    served._note_change()
    return data


def codes_above() -> Iterator[types.CodeType]:
    """What the frames run that have called the caller."""
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back


# --- the frames ---


def test_the_coroutine_is_resumed_for_the_answer_only(resume_in_place: bool) -> None:
    """From the third delivery on."""
    seen: list[bool] = []

    async def handler(served: Connection) -> int:
        def callback(served: Connection, count: int) -> None:
            seen.append(handler.__code__ in codes_above())
            assert served._take_exactly(count) is not None
            if len(seen) == 5:
                served._note_change()

        return await served._deliver(callback, served, 0, 100, 100, None)

    async def talk(client: Connection, _books: Books) -> None:
        for _ in range(5):
            await client.send(b"x")
            await wait_all_tasks_blocked()

    assert run_handler(handler, talk, resume_in_place=resume_in_place).result == 0
    alone = resume_in_place and EXCHANGES
    assert seen == [True, True] + [not alone] * 3


def test_the_traceback_is_that_of_a_callback_that_the_handler_calls(resume_in_place: bool) -> None:
    def callback(served: Connection, count: int) -> None:
        raise DeliberateError(count)

    error = run_callback(callback, resume_in_place=resume_in_place).error
    assert isinstance(error, DeliberateError)
    assert error.args == (1,)
    assert error.__context__ is None
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert names == ["outer", "handler", "called", "callback"]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, StopAsyncIteration])
def test_any_exception_reaches_the_handler(error: type[BaseException], resume_in_place: bool) -> None:
    caught: list[BaseException] = []

    def callback(served: Connection, count: int) -> None:
        take(served, count)
        raise error

    async def handler(served: Connection) -> bytes:
        try:
            await deliver(served, callback)
        except error as raised:
            caught.append(raised)
        return await served.receive()

    assert run_warmed(handler, say_twice, resume_in_place=resume_in_place).result == b"y"
    assert [type(raised) for raised in caught] == [error]


# --- Ctrl-C ---


def interrupted(callback: Callback, resume_in_place: bool) -> None:
    with pytest.raises((KeyboardInterrupt, BaseExceptionGroup)) as raised:
        run_callback(callback, resume_in_place=resume_in_place)
    error: BaseException = raised.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, KeyboardInterrupt)


def test_ctrl_c_interrupts_a_callback(resume_in_place: bool) -> None:
    places: list[str] = []

    def callback(served: Connection, count: int) -> None:
        assert not trio.lowlevel.currently_ki_protected()
        try:
            signal.raise_signal(signal.SIGINT)
            places.append("behind it")
        except KeyboardInterrupt:
            places.append("in the callback")
            raise

    interrupted(callback, resume_in_place)
    assert places == ["in the callback"]


def test_ctrl_c_interrupts_what_a_callback_calls(resume_in_place: bool) -> None:
    places: list[str] = []

    def numbers() -> Iterator[int]:
        assert not trio.lowlevel.currently_ki_protected()
        yield 1
        try:
            os.kill(os.getpid(), signal.SIGINT)
            places.append("behind it")
        except KeyboardInterrupt:
            places.append("in the generator")
            raise

    class Handler:
        def on_read(self, _served: Connection, _count: int) -> None:
            assert sum(map(abs, numbers())) == 1

    interrupted(Handler().on_read, resume_in_place)
    assert places == ["in the generator"]


def test_a_callback_that_is_protected_from_ctrl_c(resume_in_place: bool) -> None:
    places: list[str] = []

    @trio.lowlevel.enable_ki_protection
    def callback(served: Connection, count: int) -> None:
        assert trio.lowlevel.currently_ki_protected()
        signal.raise_signal(signal.SIGINT)
        places.append("behind it")
        take(served, count)

    interrupted(callback, resume_in_place)
    assert places == ["behind it"]


def test_a_handler_that_is_protected_from_ctrl_c(resume_in_place: bool) -> None:
    """So is its callback, as any code that it calls, whether the handler does it or what it awaits."""
    seen: list[bool] = []

    def callback(served: Connection, count: int) -> None:
        seen.append(trio.lowlevel.currently_ki_protected())
        take(served, count)

    @trio.lowlevel.enable_ki_protection
    async def handler(served: Connection) -> None:
        await deliver(served, callback)

    async def outer_handler(served: Connection) -> None:
        await handler(served)

    for protected in (handler, outer_handler):
        run_warmed(protected, resume_in_place=resume_in_place)
    assert seen == [True, True]


# --- the task as its callback sees it ---


def test_what_a_callback_sees_of_its_task(resume_in_place: bool) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="another's")
    tasks: list[Any] = []
    seen: list[str] = []

    def callback(served: Connection, count: int) -> None:
        task = trio.lowlevel.current_task()
        tasks.append(task)
        seen.append(variable.get())
        variable.set("the callback's")
        assert task.coro.cr_running
        assert task.coro.cr_await is None
        assert sys.version_info < (3, 11) or not task.coro.cr_suspended
        assert [frame for frame, _line in task.iter_await_frames()] == [task.coro.cr_frame]
        take(served, count)

    async def handler(served: Connection) -> None:
        tasks.append(trio.lowlevel.current_task())
        variable.set("the handler's")
        assert await deliver(served, callback) == 0
        seen.append(variable.get())

    run_warmed(handler, resume_in_place=resume_in_place)
    assert tasks[0] is tasks[1]
    assert seen == ["the handler's", "the callback's"]


@pytest.mark.skipif(not EXCHANGES, reason="with this Trio a task keeps its coroutine")
def test_the_frame_of_a_callback_is_for_the_code_that_it_calls() -> None:
    frames: list[types.FrameType] = []

    def look() -> None:
        frames.append(current_coroutine().cr_frame)

    def look_elsewhere(coroutine: Any) -> None:
        frames.append(coroutine.cr_frame)

    def callback(served: Connection, count: int) -> None:
        look()
        thread = threading.Thread(target=look_elsewhere, args=[current_coroutine()])
        thread.start()
        thread.join()
        take(served, count)

    async def handler(served: Connection) -> None:
        assert await deliver(served, callback) == 0
        look()

    run_warmed(handler, say)
    own = handler.__code__
    assert frames[0].f_code.co_name == "called"
    assert [frame.f_code for frame in frames[1:]] == [own, own]


def test_a_callback_that_drives_its_task(resume_in_place: bool) -> None:
    """It is told that it runs, and the delivery goes on."""
    calls: list[int] = []

    def callback(served: Connection, count: int) -> None:
        calls.append(count)
        coroutine = current_coroutine()
        for drive, arguments in (
            (coroutine.send, [None]),
            (coroutine.throw, [DeliberateError()]),
            (coroutine.close, []),
        ):
            with pytest.raises(ValueError, match=r"running|executing"):
                drive(*arguments)
        assert served._take_exactly(count) is not None
        if len(calls) == 2:
            served._note_change()

    assert run_callback(callback, say_twice, resume_in_place=resume_in_place).result == 0
    assert calls == [1, 1]


def test_a_callback_amidst_an_exception_that_its_handler_handles(resume_in_place: bool) -> None:
    handled: list[BaseException | None] = []

    def callback(served: Connection, count: int) -> None:
        handled.append(sys.exc_info()[1])
        take(served, count)

    async def handler(served: Connection) -> None:
        try:
            next(iter(()))
        except StopIteration as error:
            handled.append(error)
            await deliver(served, callback)

    run_warmed(handler, resume_in_place=resume_in_place)
    assert handled[0] is handled[1]


# --- what it does to the delivery ---


def test_a_callback_may_cancel_its_task(resume_in_place: bool) -> None:
    scope = trio.CancelScope()
    calls: list[int] = []

    def callback(served: Connection, count: int) -> None:
        calls.append(count)
        scope.cancel()

    async def handler(served: Connection) -> bytes:
        with scope:
            await deliver(served, callback)
        return await served.receive()

    assert run_warmed(handler, say_twice, resume_in_place=resume_in_place).result == b"x"
    assert scope.cancelled_caught
    assert calls == [1]


def test_a_callback_may_end_its_connection(resume_in_place: bool) -> None:
    async def handler(served: Connection) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await deliver(served, lambda served, _count: served.abort())

    run_warmed(handler, say, resume_in_place=resume_in_place)


def test_a_callback_may_end_the_call(resume_in_place: bool) -> None:
    calls: list[Any] = []

    async def handler(served: Connection) -> bytes:
        calls.append(deliver(served, lambda _served, _count: calls[0].close()))
        with pytest.raises(RuntimeError, match="ended by the callback"):
            await calls[0]
        with pytest.raises(RuntimeError, match="cannot reuse"):
            await calls.pop()
        return await served.receive()

    assert run_warmed(handler, say_twice, resume_in_place=resume_in_place).result == b"x"


@pytest.mark.skipif(not EXCHANGES, reason="with this Trio nothing is asked")
@pytest.mark.parametrize("fault", ["raise", "close the call", "close the connection"])
def test_what_is_asked_once_a_call_goes_wrong(
    fault: str, resume_in_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is code, in which handlers of signals and finalizers may run.  No bytes are lost that no callback got."""
    connections: list[Connection] = []
    calls: list[Any] = []
    got: list[bytes] = []
    errors = {
        "raise": DeliberateError,
        "close the call": RuntimeError,
        "close the connection": trio.ClosedResourceError,
    }

    def asked() -> bool:
        if fault == "raise":
            raise DeliberateError
        if fault == "close the call":
            calls[0].close()
        else:
            connections[0].abort()
        return False

    def callback(served: Connection, count: int) -> None:
        data = served._take_exactly(count)
        assert data is not None
        got.append(data)

    async def handler(served: Connection) -> None:
        connections.append(served)
        calls.append(served._deliver(callback, served, 0, 100, 100, None))
        with pytest.raises(errors[fault]):
            await calls[0]
        calls.clear()

    monkeypatch.setattr(trio.lowlevel, "currently_ki_protected", asked)
    run_handler(handler, say_twice, resume_in_place=resume_in_place)
    assert got == [b"x", b"y"]


def test_another_task_is_cancelled_by_a_callback_amidst_a_batch() -> None:
    """Both have bytes in the same batch: once it is cancelled its callback is not called.

    In place only: what Trio's scheduler has on its queue by then, it still steps.
    """
    scope = trio.CancelScope()
    calls: list[str] = []

    async def body(client: Connection, served: Connection) -> None:
        first, second = Books(), Books()

        def cancel(connection: Connection, count: int) -> None:
            calls.append("cancel")
            scope.cancel()
            take(connection, count)

        def never_behind_that(connection: Connection, count: int) -> None:
            calls.append("before")
            take(connection, count)

        async def handler(connection: Connection) -> None:
            await deliver(connection, cancel)

        async def cancelled(connection: Connection) -> None:
            with scope:
                await deliver(connection, never_behind_that)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.outer, served, handler)
            nursery.start_soon(second.outer, client, cancelled)
            for _ in range(2):
                await wait_all_tasks_blocked()
                client._send_nowait(b"w")
                served._send_nowait(b"w")
            await wait_all_tasks_blocked()
            client._send_nowait(b"x")
            served._send_nowait(b"y")

    run_with_pair(body, resume_in_place=True)
    assert calls in (["cancel"], ["before", "cancel"])


def test_a_slow_callback_answers(resume_in_place: bool) -> None:
    learned: list[int] = []

    async def talk(client: Connection, _books: Books) -> None:
        await client.send(b"xxx")

    async def handler(served: Connection) -> int:
        manager = current_manager("a test")
        assert manager is not None
        manager.proactor.slice_ns = 0

        def callback(served: Connection, count: int) -> None:
            assert served._take_exactly(count) == b"x" * count

        return cast("int", await deliver(served, callback, 2, 100, lambda count, _time: learned.append(count)))

    assert run_warmed(handler, talk, resume_in_place=resume_in_place).result == 0
    assert learned == [3]


def test_the_end_and_a_large_piece_are_for_the_handler(resume_in_place: bool) -> None:
    async def say_much(client: Connection, _books: Books) -> None:
        await client.send(b"xx")
        await wait_all_tasks_blocked()

    async def say_the_end(client: Connection, _books: Books) -> None:
        await client.send_eof()

    async def talk(client: Connection, books: Books) -> None:
        await say_much(client, books)
        await warmed(say_the_end)(client, books)

    async def handler(served: Connection) -> tuple[int, bytes, int]:
        much = await deliver(served, pytest.fail, 1, 1)
        return much, await served.receive(), await deliver(served, pytest.fail)

    assert run_warmed(handler, talk, resume_in_place=resume_in_place).result == (2, b"xx", -1)


def test_an_abandoned_delivery_is_freed() -> None:
    gone: list[weakref.ref[object]] = []

    def serve() -> None:
        class Kept:
            def on_read(self, served: Connection, count: int) -> None:
                take(served, count)

        kept = Kept()
        gone.append(weakref.ref(kept))
        assert run_callback(kept.on_read).result == 0
        run_callback(kept.on_read, talk=cancel_it)

    serve()
    gc.collect()
    assert gone[0]() is None


async def cancel_it(_client: Connection, books: Books) -> None:
    books.task.parent_nursery.cancel_scope.cancel()

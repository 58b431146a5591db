"""A task that is resumed in place is a coroutine like any: its exceptions, its end, async generators, unusual yields."""

from __future__ import annotations

import sys
import traceback
import types
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Generator
from typing import Any, NoReturn

import outcome
import pytest
import trio
from support.pairs import until_queued
from support.two_ways import run_with_pair, woken_by
from trio.testing import wait_all_tasks_blocked

from gain_trio import Connection

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

pytestmark = [
    pytest.mark.connections,
    pytest.mark.features,
    pytest.mark.full_ring,
]  # a task that waits for a socket is never resumed in place


def in_trio_run() -> bool:
    """``trio.lowlevel.in_trio_run()``, which Trio has had since 0.28 only."""
    try:
        trio.current_time()
    except RuntimeError:
        return False
    return True


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
    """A task that waits while it handles an exception has that exception again when it continues."""

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
            steps.append("driven by another loop")
            with pytest.raises(RuntimeError, match="must be called from async context"):
                raise RuntimeError("must be called from async context")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(handler)
            await wait_all_tasks_blocked()
            await client.send(b"x")
        assert steps == []
        with pytest.raises(StopIteration):
            coroutine.send(None)
        assert steps == ["driven by another loop"]

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
    """start_soon(connection.receive): Trio wraps an awaitable that is not a native coroutine."""

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


def test_a_call_that_is_closed_before_it_waits(resume_in_place: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By code that runs on the way: the keeper of deadlines, or a finalizer.  The connection stays as it was."""

    async def body(client: Connection, served: Connection) -> None:
        call: Any = served.receive()

        def close(connection: Connection, sending: bool, when: float, /) -> None:
            call.close()

        served.read_deadline = trio.current_time() + 60
        monkeypatch.setattr(type(served), "_watch", close)
        with pytest.raises(RuntimeError, match=r"^this receive\(\) or send\(\) was ended before it could wait$"):
            await call
        monkeypatch.undo()
        await client.send(b"x")
        assert await served.receive() == b"x"

    run_with_pair(body, resume_in_place)

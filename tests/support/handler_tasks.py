"""Handlers in tasks like those of a server, and what becomes of the coroutine that awaits them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeAlias, TypeVar

import outcome
import trio
from trio.testing import wait_all_tasks_blocked

from gain_trio import Connection
from support.two_ways import run_with_pair

T = TypeVar("T")
Handler: TypeAlias = Callable[[Connection], Coroutine[Any, Any, object]]

EXCHANGES = hasattr(trio.lowlevel.Task, "_ki_protected")
"""Whether this Trio asks a task's coroutine for its frame; an older one has marked the frame of the first one."""


class DeliberateError(Exception):
    pass


def current_coroutine() -> Any:
    return trio.lowlevel.current_task().coro


class Books:
    """Stands for the coroutine that keeps the books, and notes what becomes of it."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.task: Any = None
        self.own: Any = None
        self.result: object = None
        self.error: BaseException | None = None

    async def outer(self, served: Connection, handler: Handler) -> None:
        self.task = trio.lowlevel.current_task()
        self.own = self.task.coro
        try:
            self.result = await served._handled(handler(served), type(self).outer.__code__)
        except DeliberateError as error:
            self.error = error
        finally:
            assert current_coroutine() is self.own
            self.steps.append("outer")
        await trio.lowlevel.checkpoint()  # the task goes on as ever
        assert current_coroutine() is self.own


Talk: TypeAlias = Callable[[Connection, Books], Awaitable[object]]


def run_handler(handler: Handler, talk: Talk, *, resume_in_place: bool = True) -> Books:
    """Run the handler at one end of a pair in a task of its own; ``talk`` has the other end once that task waits."""
    books = Books()

    async def body(client: Connection, served: Connection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(books.outer, served, handler)
            await wait_all_tasks_blocked()
            await talk(client, books)

    run_with_pair(body, resume_in_place)
    return books


async def as_handler(served: Connection, handler: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What this returns or raises in a task of its own, as the handler of the connection."""
    ended: list[outcome.Outcome[T]] = []

    async def outer() -> None:
        try:
            ended.append(outcome.Value(await served._handled(handler(), outer.__code__)))
        except Exception as error:
            ended.append(outcome.Error(error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(outer)
    return ended.pop().unwrap()


async def say(client: Connection, _books: Books) -> None:
    await client.send(b"x")


async def say_twice(client: Connection, _books: Books) -> None:
    await client.send(b"x")
    await wait_all_tasks_blocked()
    await client.send(b"y")


async def say_nothing(_client: Connection, _books: Books) -> None:
    pass

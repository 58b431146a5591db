"""Running an app in a context of its own, without a task of its own.

A task costs more than everything else that a request needs, so an app runs in the task of its connection.  The context
variables that it sets must not be seen by the next request.

*Most apps set none.*  So an app is called as it is, and afterwards the loop compares the context with what it was
before, which is a comparison of two pointers.  From the first call that leaves a variable changed, the app is called by
:func:`in_context`, with a copy of the context that the connection began with.

*In a copy*: the first step of the call runs in the copy; while it waits, the task's context is that copy, because Trio makes
the further steps of a task in the context that the task has then.
"""

from __future__ import annotations

import contextvars
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

import trio

from gain_trio._server import ungrouped

from ._asgi_types import AsgiApp, Receive, Scope, Send


@types.coroutine
def in_context(context: contextvars.Context, coroutine: Coroutine[Any, Any, object]) -> Generator[Any, Any, None]:
    """Run a coroutine in a context, in the current task."""
    task = trio.lowlevel.current_task()
    own = task.context
    try:
        trap = context.run(coroutine.send, None)
        task.context = context
        while True:
            try:
                value = yield trap
            except BaseException as error:  # noqa: BLE001 - it is thrown on: Trio's refusal of a trap, or GeneratorExit
                trap = coroutine.throw(error)
            else:
                trap = coroutine.send(value)
    except StopIteration:
        return
    finally:
        task.context = own


async def call_app(app: AsgiApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Call an app."""
    await app(scope, receive, send)


async def in_task(call: Callable[[], Awaitable[object]], name: str) -> None:
    """Make a call in a task of its own, which has the name of the app."""
    with ungrouped():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, name=name)

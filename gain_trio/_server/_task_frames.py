"""Where a task waits: the chain of what it awaits, from its coroutine to the innermost awaitable.

The chain is read from the coroutines themselves, so a task pays nothing for it and does not notice.  No frame's local
variables are looked up by name: before Python 3.13 that leaves a copy of them in the frame, which keeps alive what the task
has dropped.
"""

from __future__ import annotations

import functools
import gc
import inspect
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import Any, Final, final

import attrs
import outcome
import trio

from gain_trio._kernel import fastpath, heads, load_error
from gain_trio._transports import Connection, shown

MOST_FRAMES: Final = 12
"""Frames of a task that are reported, the innermost ones."""
MOST_STEPS: Final = 500
"""Awaitables of a task that are looked at."""
MOST_TASKS: Final = 8
"""Children of a task that are looked at, and children of theirs, until one is found."""
LONGEST_NAME: Final = 200

_AWAITED: Final = ("cr_await", "gi_yieldfrom", "ag_await")
_FRAMES: Final = ("cr_frame", "gi_frame", "ag_frame")
_COROUTINES: Final = (CoroutineType,) if load_error else (CoroutineType, fastpath.Handler)
_KINDS: Final = (*_COROUTINES, GeneratorType, AsyncGeneratorType)
"""Python's own, and what stands for the coroutine of a handler.

The attributes of other awaitables may be code of the program's, which a look does not run.
"""
_OPAQUE: Final = frozenset({"async_generator_asend", "async_generator_athrow", "coroutine_wrapper", "anext_awaitable"})
"""Python's own awaitables that do not say what they await; the garbage collector does."""
_SEND: Final = None if heads is None else heads.Send
"""An ASGI app's ``send`` in C."""


_PACKAGE: Final = str(Path(__file__).parents[1])
_TRANSPORTS: Final = f"{_PACKAGE}/_transports/"
_OWN: Final = (f"{_PACKAGE}/", *(f"{Path(inspect.getfile(module)).parent}/" for module in (trio, outcome)))
"""This package, and what it stands on."""
_STANDARD_LIBRARY: Final = f"{Path(inspect.getfile(inspect)).parent}/"
_INSTALLED: Final = ("/site-packages/", "/dist-packages/")
"""In the paths of what installers have put there; those of Debian's packages are the second."""


@final
@attrs.frozen
class WaitingPlace:
    """The place where a task waits."""

    frames: tuple[str, ...]
    """The innermost frames, the outer ones first: ``file:line function``, escaped."""
    at: str | None
    """The innermost one that is the program's own; None if there is none."""
    waits_for_peer: bool
    """Whether that is a call of its own connection."""
    steps: int
    """Awaitables that were looked at: what it has cost."""


def waiting_place(task: trio.lowlevel.Task, connection: Connection | None) -> WaitingPlace:
    """Find the place where a task waits, or one of its children if it waits for these.

    Args:
      task: a task that does not run at the moment.
      connection: its own, whose calls wait for the peer.
    """
    frames: list[FrameType] = []
    steps = 0
    waits_for_peer = False
    for _ in range(MOST_TASKS):
        ends_nursery = False  # it waits for its children: what it awaits from there on are Trio's own means
        for awaitable in _chain(task.coro):
            steps += 1
            frame = _frame_of(awaitable)
            ends_nursery = ends_nursery or (frame is not None and _ends_nursery(frame))
            if frame is not None and not ends_nursery:
                frames.append(frame)
            waits_for_peer = waits_for_peer or (connection is not None and _is_call_of(awaitable, frame, connection))
        children = [child for nursery in task.child_nurseries[-1:] for child in nursery.child_tasks]
        if not children or not ends_nursery:
            break
        task, cost = _of_most_interest(children[:MOST_TASKS], connection)
        steps += cost
    of_handler = list(itertools.dropwhile(_is_own, frames)) or frames  # without the server's frames around it
    return WaitingPlace(tuple(map(_text, of_handler[-MOST_FRAMES:])), _own_place(of_handler), waits_for_peer, steps)


def _is_own(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_OWN)


def _ends_nursery(frame: FrameType) -> bool:
    return frame.f_code.co_name == "__aexit__" and _is_own(frame)


def _of_most_interest(
    children: list[trio.lowlevel.Task], connection: Connection | None
) -> tuple[trio.lowlevel.Task, int]:
    """The child that waits for its parent's peer, as one of a connection that is idle does; or the first one.

    With it comes how many awaitables were looked at for that.
    """
    if connection is None:
        return children[0], 0
    steps = 0
    for child in children:
        for awaitable in _chain(child.coro):
            steps += 1
            if _is_call_of(awaitable, _frame_of(awaitable), connection):
                return child, steps
    return children[0], steps


def _chain(coroutine: Any) -> Iterator[Any]:
    """A coroutine, what it awaits, what that awaits, and so on."""
    for _ in range(MOST_STEPS):
        if coroutine is None:
            return
        yield coroutine
        coroutine = _awaited_by(coroutine)


def _awaited_by(awaitable: Any) -> Any:
    for name in _AWAITED if type(awaitable) in _KINDS else ():
        awaited = getattr(awaitable, name, None)
        if awaited is not None:
            return awaited
    if _SEND is not None and type(awaitable) is _SEND:
        return awaitable.awaited
    if type(awaitable).__name__ in _OPAQUE:
        return next((found for found in gc.get_referents(awaitable) if _has_frame(found)), None)
    if type(awaitable) is GeneratorType:  # it may drive a coroutine by hand, as those that change the context do
        return next((found for found in _locals_of(awaitable) if type(found) in _COROUTINES), None)
    return None


def _has_frame(found: object) -> bool:
    return type(found) in _KINDS or type(found).__name__ in _OPAQUE


def _locals_of(awaitable: Any) -> list[Any]:
    """What a coroutine or a generator refers to, its local variables included."""
    found = gc.get_referents(awaitable)
    frame = _frame_of(awaitable)
    return (
        found + gc.get_referents(frame) if any(one is frame for one in found) else found
    )  # before Python 3.11 the frame has them


def _frame_of(awaitable: Any) -> FrameType | None:
    for name in _FRAMES if type(awaitable) in _KINDS else ():
        frame = getattr(awaitable, name, None)
        if frame is not None:
            return frame  # type: ignore[no-any-return]
    return None


def _is_call_of(awaitable: Any, frame: FrameType | None, connection: Connection) -> bool:
    """Whether this is a call of the connection's: a coroutine of the transports, or an awaitable in C, that refers to it."""
    if frame is None:
        if type(awaitable).__module__ != "gain_trio._fastpath":
            return False
    elif not frame.f_code.co_filename.startswith(_TRANSPORTS):
        return False
    return any(found is connection for found in _locals_of(awaitable))


def _own_place(frames: list[FrameType]) -> str | None:
    """The innermost frame of the program: of its own modules, or else of its libraries."""
    of_program = [frame for frame in frames if not _is_own(frame)]
    own = [frame for frame in of_program if not _is_of_a_library(frame.f_code.co_filename)]
    best = (own or of_program)[-1:]
    return _text(best[0]) if best else None


def _is_of_a_library(file: str) -> bool:
    return file.startswith(_STANDARD_LIBRARY) or any(folder in file for folder in _INSTALLED)


def _text(frame: FrameType) -> str:
    return f"{_code_text(frame.f_code)[0]}:{frame.f_lineno} {_code_text(frame.f_code)[1]}"


@functools.lru_cache(maxsize=1000)
def _code_text(code: Any) -> tuple[str, str]:
    """The file and the name of some code, escaped."""
    return shown(code.co_filename, LONGEST_NAME), shown(getattr(code, "co_qualname", code.co_name), LONGEST_NAME)

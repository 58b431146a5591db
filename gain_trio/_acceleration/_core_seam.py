"""The seam to Trio's core for its acceleration: the module of this package that names Trio's private parts.

Which functions get other code, and which others that code stands for, is said in ``_pieces.py``, by the names that
:func:`find` looks up.  What is taken for granted about them is what their fingerprints say: a body that has not been
tested with is not touched.
"""

from __future__ import annotations

import builtins
import collections
import contextlib
import heapq
import inspect
import itertools
import math
import select
import socket
import sys
import types
import weakref
from typing import Any

import attrs
import outcome
import trio
import trio.socket
from trio import _channel, _highlevel_socket, _socket, _sync, _timeouts, _util
from trio import abc as trio_abc
from trio._core import _asyncgens, _instrumentation, _io_epoll, _ki, _parking_lot, _run, _traps

from ._fail_after import TimeoutSeam

_PLACES: dict[str, object] = {
    "run": _run,
    "traps": _traps,
    "lowlevel": trio.lowlevel,
    "socket": _socket,
    "stream": _highlevel_socket,
    "abc": trio_abc,
    "util": _util,
    "instruments": _instrumentation,
    "lot": _parking_lot,
    "sync": _sync,
    "channel": _channel,
    "timeouts": _timeouts,
    "epoll": _io_epoll,
    "select": select,
    "outcome": outcome,
    "asyncgens": _asyncgens,
    "weakrefs": sys.modules[weakref.WeakSet.__module__],
    "contextlib": contextlib,
}

VALUE_METHODS = tuple(f"outcome:Value.{name}" for name in ("unwrap", "__init__", "__attrs_init__", "send"))
"""What is done with a value that a task is resumed with.  A piece that watches these looks at one list, and not at two."""

RELEASE: str = trio.__version__
"""Of this Trio."""

SYSTEM_CLOCK = _run.SystemClock


def find(path: str) -> object:
    """What ``"run:Runner.reschedule"`` names, as the class has it and not as an instance would.

    Raises:
      AttributeError: this Trio has nothing of that name.
    """
    place, _colon, names = path.partition(":")
    found = _PLACES[place]
    for name in names.split("."):
        if isinstance(found, type):
            try:
                found = next(vars(base)[name] for base in found.__mro__ if name in vars(base))
            except StopIteration:
                raise AttributeError(f"trio's {path} is gone") from None
        else:
            found = getattr(found, name)
    return found


def function_of(found: object) -> types.FunctionType:
    """The function with the body, within Trio's own wrappers, properties and class methods.

    Raises:
      TypeError: it is not a function of Python.
    """
    if isinstance(found, property):
        found = found.fget
    found = getattr(found, "__func__", found)
    while isinstance(found, types.FunctionType) and _is_wrapper(found):
        found = found.__wrapped__  # type: ignore[attr-defined]  # that is what makes it one
    if not isinstance(found, types.FunctionType):
        raise TypeError(f"{found!r} is not a Python function")
    return found


def _is_wrapper(function: types.FunctionType) -> bool:
    """Whether it only calls another one: ``enable_ki_protection`` before Trio 0.28, and ``contextmanager``."""
    wraps = getattr(function, "__wrapped__", None)
    wrappers = (_ki.__file__, contextlib.__file__)
    return isinstance(wraps, types.FunctionType) and function.__code__.co_filename in wrappers


def makes_manager(found: object) -> bool:
    """Whether it is what ``contextmanager`` has made of a function of Trio's."""
    return isinstance(found, types.FunctionType) and _is_wrapper(found) and _makes_manager(found.__code__)


def _makes_manager(code: types.CodeType) -> bool:
    return code.co_filename == contextlib.__file__ and code.co_names == ("_GeneratorContextManager",)


def layout_of(found: object) -> tuple[str, ...]:
    """The attributes of one of Trio's attrs classes, in order, and of which some are arguments."""
    if not isinstance(found, type):
        raise TypeError(f"{found!r} is not a class")
    fields = (
        f"{field.name} {field.init} {field.kw_only} {field.alias} {field.converter} {field.validator}"
        for field in attrs.fields(found)
    )
    return (*fields, *sorted(map(str, vars(found).get("__slots__", ()))))


def keep_protection(function: types.FunctionType, code: types.CodeType) -> types.CodeType:
    """``code`` with the same KeyboardInterrupt protection as the function's own.

    Since Trio 0.28 it hangs on the code object; before, on the wrapper or in the body, which both stay.
    """
    statuses = getattr(_ki, "_CODE_KI_PROTECTION_STATUS_WMAP", None)
    if statuses is None:
        return code
    try:
        protected: bool = statuses[function.__code__]
    except KeyError:
        return code
    statuses[code] = protected
    return code


async def _coroutine() -> None:
    """For the C module to look at."""


def translate(error: OSError) -> BaseException:
    """What a stream raises for it."""
    raised: BaseException
    if error.errno in _highlevel_socket._closed_stream_errnos:
        raised = trio.ClosedResourceError("this socket was already closed")
        raised.__context__ = error
        raised.__suppress_context__ = True
    else:
        raised = trio.BrokenResourceError(f"socket connection broken: {error}")
        raised.__context__ = error
        raised.__cause__ = error
    return raised


def unusual_yield(runner: Any, task: trio.lowlevel.Task, message: object) -> None:
    """A task has yielded something that Trio does not know."""
    error = TypeError(
        f"trio.run received unrecognized yield message {message!r}. Are you trying to use a library written for "
        "some other framework like asyncio? That won't work without some kind of compatibility shim."
    )
    # As Trio does: what yielded this does not unwrap outcomes, so the error is thrown in.
    runner.reschedule(task, error)
    task._next_send_fn = task.coro.throw


class CoreSeam:
    """What the C module needs of this process's Trio for any of the pieces; see configure.c.

    The attributes are looked up when an instance is made: one that a release of Trio has not keeps the pieces out, and not
    the package from being imported.
    """

    def __init__(self) -> None:
        self.task_type = _run.Task
        self.runner_type = _run.Runner
        self.scope_type = _run.CancelScope
        self.status_type = _run.CancelStatus
        self.deadlines_type = _run.Deadlines
        self.value_type = outcome.Value
        self.socket_type = _socket._SocketType
        self.stream_type = trio.SocketStream
        self.system_clock_type = _run.SystemClock
        self.plain_socket_type = socket.socket
        self.deque_type = collections.deque
        self.error_type = outcome.Error
        self.trap_type = _traps.WaitTaskRescheduled
        self.detach_type = _traps.PermanentlyDetachCoroutineObject
        self.checkpoint_message = _traps.CancelShieldedCheckpoint
        self.no_send = _run._NO_SEND
        self.run_context = _run.GLOBAL_RUN_CONTEXT
        self.infinity = _run.inf
        self.abort_succeeded = trio.lowlevel.Abort.SUCCEEDED
        self.unusual_yield = unusual_yield
        self.translate = translate
        self.checkpoint_if_cancelled = trio.lowlevel.checkpoint_if_cancelled
        self.wait_readable = trio.lowlevel.wait_readable
        self.wait_writable = trio.lowlevel.wait_writable
        self.sendto_function = socket.socket.sendto
        self.receive_method = _socket._SocketType.recv
        self.send_method = _socket._SocketType.send
        self.receive_some = trio.SocketStream.receive_some
        self.helper_method = _socket._SocketType._nonblocking_helper
        self.resolve_method = _socket._SocketType._resolve_address_nocp
        self.finished_method = _run.Nursery._child_finished
        self.close_method = _run.Nursery._check_nursery_closed
        self.detector_type = _util.ConflictDetector
        self.run_module = vars(_run)
        self.heappush = heapq.heappush
        self.lot_breakers: dict[Any, Any] = getattr(_run, "GLOBAL_PARKING_LOT_BREAKER", {})
        self.ki_key: str | None = getattr(_ki, "LOCALS_KEY_KI_PROTECTION_ENABLED", None)
        self.default_receive_size = _highlevel_socket.DEFAULT_RECEIVE_SIZE
        self.prune_threshold = _run.DEADLINE_HEAP_MIN_PRUNE_THRESHOLD
        # The factory that numbers tasks, which attrs has kept.
        numbered: Any = attrs.fields(_run.Task)._counter
        self.next_counter = numbered.default.factory
        if not (
            math.isinf(self.infinity) and isinstance(getattr(self.next_counter, "__self__", None), itertools.count)
        ):
            raise TypeError("infinity or the numbers of tasks are something else")

    def make_coroutine(self) -> Any:
        """A coroutine that is never awaited; the caller closes it."""
        return _coroutine()


# What nurseries and locks do with exceptions, from where C leaves off.  Trio's own code for it is in the middle of functions
# that C stands for, so it is written down again here; their fingerprints say that it is still the same.


def nursery_aborted(nursery: Any, raise_cancel: Any) -> trio.lowlevel.Abort:
    """``_nested_child_finished``: a KeyboardInterrupt is one of the nursery's exceptions, a cancellation is not."""
    raised = outcome.capture(raise_cancel)
    assert isinstance(raised, outcome.Error)
    exception = raised.error
    if not isinstance(exception, trio.Cancelled):
        if _has_reasons(nursery):
            reason = _run.CancelReason(source="KeyboardInterrupt", source_task=repr(nursery._parent_task))
            nursery._add_exc(exception, reason)
        else:
            nursery._add_exc(exception)
    del exception, raised  # or there is a cycle
    return trio.lowlevel.Abort.FAILED


def nursery_add(nursery: Any, exception: BaseException) -> None:
    """``_nested_child_finished``: the schedule point of a nursery without children has raised."""
    if _has_reasons(nursery):
        nursery._add_exc(exception, reason=None)
    else:
        nursery._add_exc(exception)


def _has_reasons(nursery: Any) -> bool:
    """Whether this Trio records why a scope was cancelled."""
    return "reason" in inspect.signature(nursery._add_exc).parameters


_GROUP: Any = getattr(builtins, "BaseExceptionGroup", None) or getattr(_run, "BaseExceptionGroup", None)
"""Python 3.10 has none of its own, and Trio imports one."""


def nursery_error(nursery: Any) -> BaseException:
    """The end of ``_nested_child_finished``: what a nursery with exceptions raises."""
    exceptions: list[BaseException] = nursery._pending_excs
    try:
        if not nursery._strict_exception_groups and len(exceptions) == 1:
            return exceptions[0]
        group: BaseException = _GROUP("Exceptions from Trio nursery", exceptions)
        if not nursery._strict_exception_groups:
            group.add_note(_run.NONSTRICT_EXCEPTIONGROUP_NOTE)  # type: ignore[attr-defined]  # exceptiongroup's has it
        return group
    finally:
        del nursery._pending_excs, exceptions


def broken_lock(lock: Any, error: BaseException) -> BaseException:
    """What ``_LockImpl.acquire`` raises when the owner of the lock has exited."""
    raised = trio.BrokenResourceError(f"Owner of this lock exited without releasing: {lock._owner}")
    raised.__context__ = error
    raised.__suppress_context__ = True
    return raised


class NurserySeam:
    """What the C of nurseries needs."""

    def __init__(self) -> None:
        self.nursery_type = _run.Nursery
        self.nursery_manager_type = _run.NurseryManager
        self.nested_method = _run.Nursery._nested_child_finished
        self.nursery_aborted = nursery_aborted
        self.nursery_add = nursery_add
        self.nursery_error = nursery_error


class LockSeam:
    """What the C of locks and parking lots needs."""

    def __init__(self) -> None:
        self.lot_type = _parking_lot.ParkingLot
        self.lock_type = _sync.Lock
        self.fifo_lock_type = _sync.StrictFIFOLock
        self.broken_resource_error = trio.BrokenResourceError
        self.broken_lock = broken_lock
        self.acquire_method = _sync._LockImpl.acquire
        self.acquire_nowait_method = _sync._LockImpl.acquire_nowait
        self.release_method = _sync._LockImpl.release


class EventSeam:
    """What the C of events needs."""

    def __init__(self) -> None:
        self.event_type = _sync.Event


class ChannelSeam:
    """What the C of memory channels needs."""

    def __init__(self) -> None:
        self.channel_state_type = _channel.MemoryChannelState
        self.send_channel_type = _channel.MemorySendChannel
        self.receive_channel_type = _channel.MemoryReceiveChannel
        self.end_of_channel = trio.EndOfChannel
        self.take_method = _channel.MemoryReceiveChannel.receive
        self.take_nowait_method = _channel.MemoryReceiveChannel.receive_nowait
        self.put_nowait_method = _channel.MemorySendChannel.send_nowait


class GeneratorSeam:
    """What the C of async generators needs."""

    def __init__(self) -> None:
        self.generators_type = _asyncgens.AsyncGenerators
        self.weak_set_type = weakref.WeakSet
        self.weak_set_defers = hasattr(weakref.WeakSet(), "_pending_removals")


class EpollSeam:
    """What the C of Trio's I/O manager on Linux needs."""

    def __init__(self) -> None:
        self.epoll_manager_type = _io_epoll.EpollIOManager
        self.epoll_waiters_type = _io_epoll.EpollWaiters
        self.epoll_type = select.epoll
        self.busy_resource_error = trio.BusyResourceError


PART_SEAMS = {
    "timeouts": TimeoutSeam,
    "nurseries": NurserySeam,
    "locks": LockSeam,
    "events": EventSeam,
    "channels": ChannelSeam,
    "epoll": EpollSeam,
    "generators": GeneratorSeam,
}
"""By piece: the facts about Trio that the C module needs for it, beyond :class:`CoreSeam`."""

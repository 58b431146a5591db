"""The pieces of Trio's core that are done in C: what each replaces, and what it stands for.

A piece goes in as a whole or not at all.  Its fingerprint is that of everything named here, replaced or only stood for, so
a release of Trio in which any of it is different keeps its own code for that piece.
"""

from __future__ import annotations

import types
from typing import Any, Final

import attrs
import trio.lowlevel

from gain_trio._kernel import trio_core

from . import _core_seam
from ._fingerprints import digest, fingerprint
from ._rewrite import Change, around_first, before_all, before_batch, before_last, rewrite


@attrs.frozen
class Part:
    """One function of Trio that gets other code."""

    path: str
    """Where it is; see ``_core_seam.find``."""
    call: str
    """The function of the C module."""
    inserted: str
    """The statements that call it."""
    change: Change = before_all
    by_layout: bool = False
    """The function is made by attrs: not its body is what counts, which differs between releases of attrs."""
    makes_manager: bool = False
    """The code goes into what ``contextmanager`` makes of Trio's function; one that it makes nothing of stays as it is."""

    @property
    def function(self) -> Any:
        """The function object, as it is."""
        found = _core_seam.find(self.path)
        return found if self.makes_manager else _core_seam.function_of(found)

    @property
    def is_there(self) -> bool:
        """Whether this Trio has what the part changes."""
        return not self.makes_manager or _core_seam.makes_manager(_core_seam.find(self.path))

    def make_code(self) -> types.CodeType:
        """The code that goes in."""
        function = self.function
        called = getattr(trio_core, self.call) if self.call else _socket_method(self.path)
        code = function.__code__
        keywords = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
        code = rewrite(function, self.change, self.inserted.replace("KEYWORDS", ", ".join(keywords)), called)
        return _core_seam.keep_protection(function, code)


@attrs.frozen
class Piece:
    """What goes in and comes out together."""

    name: str
    parts: tuple[Part, ...]
    stands_for: tuple[str, ...] = ()
    """Functions whose work is done by the C, too, or is relied on; with a ``?`` those that not every release has."""
    layouts: tuple[str, ...] = ()
    """Classes whose attributes it fills in."""
    watches: tuple[str, ...] = ()
    """What its functions call without naming it in their code, or only through others; see ``_guards.py``."""
    needs: tuple[str, ...] = ()
    """Other pieces without which it is nothing."""

    @property
    def present(self) -> tuple[Part, ...]:
        """The parts that there are in this Trio."""
        return tuple(part for part in self.parts if part.is_there)

    def fingerprint(self) -> str:
        """Of everything that it replaces and stands for, in this process.

        Raises:
          AttributeError, TypeError: something of it is gone, or is not a function any more.
        """
        return digest(self._lines())

    def _lines(self) -> list[str]:
        lines = []
        for path in (*(part.path for part in self.parts if not part.by_layout), *self.stands_for):
            try:
                found = _core_seam.find(path.removeprefix("?"))
            except AttributeError:
                if not path.startswith("?"):
                    raise
                lines.append(f"{path} is not there")
            else:
                lines.append(f"{path} {fingerprint(_core_seam.function_of(found).__code__)}")
        for part in self.parts:
            if part.makes_manager:
                made_by = fingerprint(part.function.__code__) if part.is_there else "nothing"
                lines.append(f"{part.path} is made a context manager by {made_by}")
        for path in self.layouts:
            lines.append(f"{path} {_core_seam.layout_of(_core_seam.find(path))}")
        return lines


def _socket_method(path: str) -> Any:
    """For a method that is made of a function of ``socket.socket``, which is in its closure."""
    closure = dict(
        zip(
            (function := _core_seam.function_of(_core_seam.find(path))).__code__.co_freevars,
            (cell.cell_contents for cell in function.__closure__ or ()),
            strict=True,
        )
    )
    writes = closure["wait_fn"] is trio.lowlevel.wait_writable
    if not writes and closure["wait_fn"] is not trio.lowlevel.wait_readable:
        raise TypeError(f"{path} waits for something else")
    return trio_core.SocketMethod(closure["fn"], writes, function.__name__)


_AWAIT: Final = "gain_trio_call = {}\nif gain_trio_call is not None:\n    return await gain_trio_call"


def _awaiting(path: str, call: str, arguments: str = "self") -> Part:
    """A part whose C returns what is to be awaited, or None where Trio's own code goes on."""
    return Part(path, call, _AWAIT.format(f"gain_trio_core({arguments})"))


_METHOD: Final = _AWAIT.format("gain_trio_core(self, args, kwargs)")
_METHODS: Final = ("recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into", "send", "_accept")

SOCKETS: Final = Piece(
    "sockets",
    (
        _awaiting("socket:_SocketType._nonblocking_helper", "socket_helper", "self, wait_fn, fn, args, kwargs"),
        *(Part(f"socket:_SocketType.{name}", "", _METHOD) for name in _METHODS),
        _awaiting("socket:_SocketType.sendto", "socket_sendto", "self, args"),
    ),
    stands_for=(
        "socket:_try_sync.__init__",
        "socket:_try_sync._is_blocking_io_error",
        "socket:_try_sync.__aenter__",
        "socket:_try_sync.__aexit__",
        "socket:_SocketType.__init__",
        "socket:_SocketType._resolve_address_nocp",
        "socket:_resolve_address_nocp",
        "run:checkpoint_if_cancelled",
        "traps:cancel_shielded_checkpoint",
    ),
    layouts=("run:Task", "run:CancelStatus"),
)

STREAMS: Final = Piece(
    "streams",
    (
        _awaiting("stream:SocketStream.receive_some", "receive_some", "self, max_bytes"),
        _awaiting("stream:SocketStream.send_all", "send_all", "self, data"),
        _awaiting("abc:ReceiveStream.__anext__", "stream_next"),
    ),
    stands_for=(
        *SOCKETS.stands_for,
        "socket:_SocketType._nonblocking_helper",
        "socket:_SocketType.recv",
        "socket:_SocketType.send",
        "socket:_SocketType.did_shutdown_SHUT_WR",
        "stream:_translate_socket_errors_to_stream_errors",
        "stream:SocketStream.__init__",
        "util:ConflictDetector.__init__",
        "util:ConflictDetector.__enter__",
        "util:ConflictDetector.__exit__",
    ),
    layouts=SOCKETS.layouts,
)

STEP: Final = Piece(
    "step",
    (
        Part("run:unrolled_run", "step_batch", "if gain_trio_core(runner, batch):\n    return", before_batch),
        Part("run:Runner.reschedule", "reschedule", "if gain_trio_core(self, task, next_send):\n    return"),
    ),
    stands_for=("run:Task._attempt_delivery_of_any_pending_cancel", "run:Task._attempt_delivery_of_pending_ki"),
    layouts=("run:Task", "run:Runner", "run:CancelStatus", "traps:WaitTaskRescheduled"),
    watches=_core_seam.VALUE_METHODS,
)

CHECKPOINTS: Final = Piece(
    "checkpoints",
    (
        Part(
            "run:checkpoint",
            "checkpoint",
            "gain_trio_call = gain_trio_core()\n"
            "if gain_trio_call is None:\n    pass\n"
            "elif await gain_trio_call:\n    return",
            around_first,
        ),
        Part("run:checkpoint_if_cancelled", "checkpoint_if_cancelled", "if gain_trio_core():\n    return"),
        Part(
            "traps:cancel_shielded_checkpoint",
            "cancel_shielded_checkpoint",
            "gain_trio_call = gain_trio_core()\nif gain_trio_call is None:\n    pass\nelse:\n    await gain_trio_call",
            around_first,
        ),
        Part(
            "traps:wait_task_rescheduled",
            "wait_task_rescheduled",
            "gain_trio_call = gain_trio_core(abort_func)\n"
            "if gain_trio_call is None:\n    pass\n"
            "else:\n    return await gain_trio_call",
            around_first,
        ),
    ),
    stands_for=("run:current_task",),
    layouts=("run:Task", "run:Runner", "run:CancelStatus", "traps:WaitTaskRescheduled"),
    watches=_core_seam.VALUE_METHODS,
)

_CLOCK: Final = ("run:SystemClock.current_time", "run:perf_counter")

SCOPES: Final = Piece(
    "scopes",
    (
        Part(
            "run:CancelScope.__init__", "scope_init", "if gain_trio_core(self, KEYWORDS):\n    return", by_layout=True
        ),
        Part("run:CancelScope.__enter__", "scope_enter", "if gain_trio_core(self):\n    return self"),
        Part(
            "run:CancelScope.__exit__",
            "scope_exit",
            "gain_trio_done = gain_trio_core(self, exc)\nif gain_trio_done is not None:\n    return gain_trio_done",
        ),
    ),
    stands_for=(
        "?run:CancelScope.__attrs_post_init__",
        "run:CancelScope._close",
        "run:CancelScope._might_change_registered_deadline",
        "run:CancelStatus.__attrs_post_init__",
        "run:CancelStatus.parent_cancellation_is_visible_to_us",
        "run:CancelStatus.recalculate",
        "run:CancelStatus.close",
        "run:Task._activate_cancel_status",
        "run:Deadlines.add",
        "run:Deadlines.remove",
    ),
    layouts=("run:CancelScope", "run:CancelStatus", "run:Deadlines", "run:Task", "run:Runner"),
    watches=_CLOCK,
)

SPAWNING: Final = Piece(
    "spawning",
    (
        Part(
            "run:Runner.spawn_impl",
            "spawn",
            "gain_trio_task = gain_trio_core(self, async_fn, args, nursery, name, system_task, context)\n"
            "if gain_trio_task is not None:\n    return gain_trio_task",
        ),
        Part("run:Nursery.start_soon", "start_soon", "if gain_trio_core(self, async_fn, args, name):\n    return"),
        Part("run:Runner.task_exited", "task_exited", "if gain_trio_core(self, task, outcome):\n    return"),
    ),
    stands_for=(
        "util:coroutine_or_error",
        "run:Nursery._child_finished",
        "run:Nursery._check_nursery_closed",
        "run:Task._activate_cancel_status",
        "run:Runner.reschedule",
    ),
    layouts=("run:Task", "run:Runner", "run:CancelStatus"),
)

TIMEOUTS: Final = Piece(
    "timeouts",
    (
        Part(
            "timeouts:move_on_after",
            "move_on_after",
            "gain_trio_scope = gain_trio_core(seconds, KEYWORDS)\n"
            "if gain_trio_scope is not None:\n    return gain_trio_scope",
        ),
        Part(
            "timeouts:fail_after",
            "fail_after",
            "gain_trio_manager = gain_trio_core(func, args, kwds)\n"
            "if gain_trio_manager is not None:\n    return gain_trio_manager",
            makes_manager=True,
        ),
    ),
    stands_for=(*SCOPES.stands_for, "run:CancelScope.__enter__", "run:CancelScope.__exit__", "timeouts:move_on_after"),
    layouts=SCOPES.layouts,
    watches=(
        *_CLOCK,
        "contextlib:_GeneratorContextManager",
        *(f"contextlib:_GeneratorContextManager.{name}" for name in ("__init__", "__enter__", "__exit__")),
    ),
)

NURSERIES: Final = Piece(
    "nurseries",
    (
        Part(
            "run:NurseryManager.__aenter__",
            "nursery_enter",
            "gain_trio_nursery = gain_trio_core(self)\nif gain_trio_nursery is not None:\n    return gain_trio_nursery",
        ),
        Part(
            "run:NurseryManager.__aexit__",
            "nursery_exit",
            "gain_trio_call = gain_trio_core(self, exc)\n"
            "if gain_trio_call is None:\n    pass\n"
            "else:\n"
            "    new_exc = await gain_trio_call\n"
            "    if new_exc is True:\n        return True",
            around_first,
        ),
    ),
    stands_for=(
        *SCOPES.stands_for,
        "run:CancelScope.__enter__",
        "run:Nursery.__init__",
        "run:Nursery._add_exc",
        "run:Nursery._check_nursery_closed",
        "run:Nursery._nested_child_finished",
        "traps:cancel_shielded_checkpoint",
        "traps:wait_task_rescheduled",
    ),
    layouts=(*SCOPES.layouts, "run:NurseryManager", "traps:WaitTaskRescheduled"),
    watches=_CLOCK,
)

_WAITS: Final = (
    "lowlevel:reschedule",
    "run:Runner.reschedule",
    "run:checkpoint",
    "run:checkpoint_if_cancelled",
    "traps:cancel_shielded_checkpoint",
    "traps:wait_task_rescheduled",
)
_WAIT_LAYOUTS: Final = ("run:Task", "run:Runner", "run:CancelStatus", "traps:WaitTaskRescheduled")
_DONE: Final = "if gain_trio_core({}):\n    return"

LOCKS: Final = Piece(
    "locks",
    (
        _awaiting("lot:ParkingLot.park", "park"),
        Part(
            "lot:ParkingLot.unpark",
            "unpark",
            "gain_trio_tasks = gain_trio_core(self, count)\nif gain_trio_tasks is not None:\n    return gain_trio_tasks",
        ),
        _awaiting("sync:_LockImpl.acquire", "acquire"),
        Part("sync:_LockImpl.release", "release", _DONE.format("self")),
        _awaiting("sync:AsyncContextManagerMixin.__aenter__", "lock_enter"),
        Part("sync:AsyncContextManagerMixin.__aexit__", "lock_exit", _DONE.format("self")),
    ),
    stands_for=(
        *_WAITS,
        "sync:_LockImpl.acquire_nowait",
        "lot:ParkingLot._pop_several",
        "?lot:add_parking_lot_breaker",
        "?lot:remove_parking_lot_breaker",
    ),
    layouts=(*_WAIT_LAYOUTS, "lot:ParkingLot", "sync:Lock", "sync:StrictFIFOLock"),
    watches=("lot:ParkingLot.__bool__", "lot:ParkingLot.__len__"),
)

EVENTS: Final = Piece(
    "events",
    (
        _awaiting("sync:Event.wait", "event_wait"),
        Part("sync:Event.set", "event_set", _DONE.format("self")),
    ),
    stands_for=("lowlevel:reschedule", "run:Runner.reschedule", "run:current_task", "traps:wait_task_rescheduled"),
    layouts=(*_WAIT_LAYOUTS, "sync:Event"),
)

CHANNELS: Final = Piece(
    "channels",
    (
        _awaiting("channel:MemorySendChannel.send", "channel_send", "self, value"),
        _awaiting("channel:MemoryReceiveChannel.receive", "channel_receive"),
        _awaiting("abc:ReceiveChannel.__anext__", "channel_next"),
    ),
    stands_for=(*_WAITS, "channel:MemorySendChannel.send_nowait", "channel:MemoryReceiveChannel.receive_nowait"),
    layouts=(
        *_WAIT_LAYOUTS,
        "channel:MemoryChannelState",
        "channel:MemorySendChannel",
        "channel:MemoryReceiveChannel",
    ),
)

TICK: Final = Piece(
    "tick",
    (Part("run:unrolled_run", "tick_batch", "if gain_trio_core(runner, batch):\n    return", before_batch),),
    stands_for=(
        "run:run",
        "run:Deadlines.expire",
        "run:Deadlines.next_deadline",
        "run:SystemClock.current_time",
        "run:SystemClock.deadline_to_sleep_time",
    ),
    layouts=("run:Runner", "run:Deadlines"),
    needs=("step",),
)

EPOLL: Final = Piece(
    "epoll",
    (_awaiting("epoll:EpollIOManager._epoll_wait", "epoll_wait", "self, fd, attr_name"),),
    stands_for=(
        "epoll:EpollIOManager.get_events",
        "epoll:EpollIOManager.process_events",
        "epoll:EpollIOManager._update_registrations",
        "epoll:EpollIOManager.wait_readable",
        "epoll:EpollIOManager.wait_writable",
        "lowlevel:wait_readable",
        "lowlevel:wait_writable",
        "lowlevel:reschedule",
        "run:Runner.reschedule",
        "traps:wait_task_rescheduled",
    ),
    layouts=(*_WAIT_LAYOUTS, "epoll:EpollIOManager", "epoll:EpollWaiters"),
)

GENERATORS: Final = Piece(
    "generators",
    (
        Part(
            "asyncgens:AsyncGenerators.install_hooks",
            "first_iteration",
            "gain_trio_hook = gain_trio_core(self, firstiter)\n"
            "if gain_trio_hook is not None:\n    firstiter = gain_trio_hook",
            before_last,
        ),
    ),
    stands_for=("weakrefs:WeakSet.__init__", "weakrefs:WeakSet.add"),
    layouts=("asyncgens:AsyncGenerators",),
)

READINESS: Final = Piece(
    "readiness",
    (
        Part(
            "socket:_SocketType.is_readable",
            "socket_readable",
            "gain_trio_ready = gain_trio_core(self)\nif gain_trio_ready is not None:\n    return gain_trio_ready",
        ),
    ),
    watches=("select:poll",),
)

PIECES: Final = (
    SOCKETS,
    STREAMS,
    STEP,
    CHECKPOINTS,
    SCOPES,
    SPAWNING,
    TICK,
    TIMEOUTS,
    NURSERIES,
    LOCKS,
    EVENTS,
    CHANNELS,
    EPOLL,
    GENERATORS,
    READINESS,
)
"""All of them.  Where two replace the same function, the later one's code is the one that counts."""

NAMES: Final = tuple(piece.name for piece in PIECES)

INTERFACE: Final = 5
"""How the code that goes in calls the C module, which has the same number: TC_INTERFACE in core.h.  It changes with the
arguments of a function that is there already; a function that is missing is found by its name."""


_USED: Final = ("configure", "set_manager", "set_pieces", "set_guards", "set_shortcut", "check_socket", "check_epoll")


def stale_build() -> str | None:
    """Why the compiled module does not go with this Python code, or None."""
    found = getattr(trio_core, "INTERFACE", 1)
    called = {part.call for piece in PIECES for part in piece.parts if part.call}
    missing = sorted(name for name in (*called, *_USED, "SocketMethod") if not hasattr(trio_core, name))
    if found == INTERFACE and not missing:
        return None
    what = f"has no {missing[0]}()" if missing else f"has interface {found}, not {INTERFACE}"
    return (
        f"the compiled module {trio_core.__name__} is of another version than the Python code: it {what}; build it again, "
        "with make in a checkout, or by installing gain_trio again"
    )

"""The seam to Trio: the one module that names Trio's private parts.

It is checked against Trio 0.25 to 0.35; CI runs the oldest and the newest, with Trio's own test suite.

The package assumes the following of Trio, and a maintainer checks it against a new release:

- ``trio._core._run.TheIOManager`` is looked up when a run is set up, and called without arguments.
- ``GLOBAL_RUN_CONTEXT`` is a ``threading.local`` with ``runner``, and ``task`` while a task is being stepped.  Its
  ``__dict__`` in a thread is one and the same object for the length of a run.
- ``Runner`` has ``clock``, ``io_manager``, ``instruments``, ``is_guest``, ``ki_pending``, ``main_task``, ``reschedule(task,
  outcome)``, ``task_exited(task, outcome)``.
- ``instruments`` is a dict, or a ``UserDict`` around one, of hook name to instruments; it always has ``"_all"`` and has a
  hook's name only while an instrument listens to it.
- ``Runner`` computes its timeout from its clock, ``runq``, ``deadlines``, ``waiting_for_idle`` and
  ``clock_autojump_threshold``, and from nothing else; ``deadlines._heap`` is a list whose first entry is the earliest
  deadline, registered or stale.
- A task counts in ``_schedule_points`` how often it has let the scheduler go on.
- ``Task._cancel_status`` is the innermost cancel scope that a task is in, as a ``CancelStatus`` with ``parent`` and
  ``_scope``. ``CancelScope._close(None)`` exits a scope, and in an outer one restores the status of the task, whatever
  was left open inside. ``Task._child_nurseries`` lists the nurseries that a task has open, and ``Nursery._closed``
  refuses new tasks.
- A parked task has ``_abort_func`` set and ``_next_send_fn`` None.  ``unrolled_run`` defines one step of a task;
  ``_ffi/fastpath/task.c`` puts the two side by side.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import outcome
import trio
from trio._core import _run, _traps


def current_runner() -> Any:
    """The runner of this thread, or None."""
    return getattr(_run.GLOBAL_RUN_CONTEXT, "runner", None)


def current_io_manager() -> object | None:
    """The I/O manager of this thread's run, or None."""
    runner = current_runner()
    return None if runner is None else runner.io_manager


def replace_io_manager(manager: object) -> None:
    """Put ``manager`` in the place of the current run's own, and close that.  The run must not have ticked yet."""
    runner = current_runner()
    replaced, runner.io_manager = runner.io_manager, manager
    replaced.close()


def default_io_manager() -> type[Any]:
    """The class that ``trio.run`` makes its I/O manager of."""
    return _run.TheIOManager


def set_default_io_manager(manager_class: type[Any]) -> None:
    """Set the class that ``trio.run`` makes its I/O manager of, in every thread, from the next run on."""
    setattr(_run, "TheIOManager", manager_class)  # noqa: B010  # a plain assignment to a type is an error to mypy


def waits_of(task: trio.lowlevel.Task) -> int:
    """How often a task has waited, or has passed a checkpoint: whenever that grows, other tasks had a turn."""
    return task._schedule_points


cancel_status_of: Callable[[trio.lowlevel.Task], object] = operator.attrgetter("_cancel_status")
"""The innermost cancel scope that a task is in: something to compare by ``is``."""


def leave_open_scopes(task: trio.lowlevel.Task, status: object, nurseries: int) -> None:
    """Leave the cancel scopes and nurseries that the current task has opened and not left.

    The tasks of such a nursery are cancelled, and nothing waits for them.

    Args:
      task: the current task.
      status: what :func:`cancel_status_of` has returned before.
      nurseries: how many nurseries the task had open then.
    """
    for nursery in task._child_nurseries[nurseries:]:
        nursery.cancel_scope.cancel()
        nursery._closed = True
    del task._child_nurseries[nurseries:]
    innermost: Any = task._cancel_status
    outermost = innermost
    while outermost.parent is not status:
        outermost = outermost.parent
    outermost._scope._close(None)


class RunSeam:
    """The parts of one run that the fast path needs.  It is made in the thread of the run, during it."""

    trap_type = _traps.WaitTaskRescheduled
    checkpoint = _traps.CancelShieldedCheckpoint
    task_type = trio.lowlevel.Task
    cancel_status_type = _run.CancelStatus
    abort_succeeded = trio.lowlevel.Abort.SUCCEEDED
    woken = outcome.Value(None)
    infinity = math.inf

    def __init__(self) -> None:
        self.runner = current_runner()
        self.run_context = _run.GLOBAL_RUN_CONTEXT.__dict__
        instruments = self.runner.instruments
        self.instruments = getattr(instruments, "data", instruments)
        self.reschedule = self.runner.reschedule
        self.runner_task_exited = self.runner.task_exited
        self.current_time = self.runner.clock.current_time
        self.currently_ki_protected = trio.lowlevel.currently_ki_protected
        self.is_guest: bool = self.runner.is_guest
        # A task may move a clock that is not the system's, and only Trio's loop reads that again.
        self.may_linger = not self.is_guest and type(self.runner.clock) is _run.SystemClock
        self.run_queue = self.runner.runq
        self.waiting_for_idle = self.runner.waiting_for_idle
        self.deadlines = self.runner.deadlines

    def task_exited(self, task: trio.lowlevel.Task, value: object, error: BaseException | None) -> None:
        """Report to Trio the end of a task that was resumed in place, unless it is not the main one and returns None."""
        self.runner.task_exited(task, outcome.Value(value) if error is None else outcome.Error(error))

    def step_observed(self, task: trio.lowlevel.Task) -> None:
        """Call the instrument that a task resumed in place has added, at the end of the task's step."""
        if "after_task_step" in self.runner.instruments:
            self.runner.instruments.call("after_task_step", task)

    def unusual_yield(self, task: trio.lowlevel.Task, message: object) -> None:
        """Treat as Trio does a yield of something else than a WaitTaskRescheduled, by a task resumed in place."""
        if message is _traps.CancelShieldedCheckpoint:
            self.runner.reschedule(task)
        elif type(message) is _traps.PermanentlyDetachCoroutineObject:
            self.runner.task_exited(task, message.final_outcome)
        else:
            error = TypeError(
                f"trio.run received unrecognized yield message {message!r}. Are you trying to use a library written for "
                "some other framework like asyncio? That won't work without some kind of compatibility shim."
            )
            # As Trio does: the awaitable that yielded this does not unwrap outcomes, so the error is thrown in.
            self.runner.reschedule(task, error)
            task._next_send_fn = task.coro.throw

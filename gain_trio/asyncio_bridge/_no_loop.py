"""The RuntimeError of a protocol that calls for asyncio's event loop, which does not exist here.

Up to Python 3.13 ``asyncio.get_event_loop()`` makes a loop in the main thread where none is running, and with it
``ensure_future``, ``Future()``, ``StreamReader()`` and others return something that is never going to happen: the loop is
never run.  So while protocols run, asyncio's event loop policy is wrapped in one that refuses this to their callbacks, and
to them alone.  The call stack shows which code calls, at the call, so that callbacks cost nothing more.

A loop that runs is asyncio's affair and does not come here: a guest run (:func:`gain_trio.start_guest_run`) in an asyncio
program has one, and its protocols may use it.  A policy of trio-asyncio, which has loops within Trio, is left alone.  A loop
that a protocol was given, one that runs in another thread for example, is its own affair.
"""

from __future__ import annotations

import asyncio
import linecache
import os
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, Final, final

_PACKAGE: Final = __name__.rpartition(".")[0]
_OWN: Final = frozenset({f"{_PACKAGE}._transport", f"{_PACKAGE}._protocol_handler"})
_MOST_FRAMES: Final = 10_000
_CURE: Final = (
    "Trio runs this program, and a future, task or timer of asyncio's would never happen. In place of a task have a handler "
    "of your own, or a memory channel to a task of your nursery; in place of a timer idle_timeout, or such a task "
    "(docs: Porting from asyncio.Protocol)"
)

# Python 3.14 has deprecated the public names.
_Policy: Any = getattr(asyncio.events, "_AbstractEventLoopPolicy", None) or asyncio.AbstractEventLoopPolicy
_get_policy: Any = getattr(asyncio.events, "_get_event_loop_policy", None) or asyncio.get_event_loop_policy
_set_policy: Any = getattr(asyncio.events, "_set_event_loop_policy", None) or asyncio.set_event_loop_policy


@final
class _NoLoopInCallbacks(_Policy):  # type: ignore[misc]  # Any, because it has two names
    """The policy that was there before, but for callbacks."""

    def __init__(self, before: Any) -> None:
        self.before = before

    def __getattr__(self, name: str) -> Any:
        return getattr(self.before, name)

    def get_event_loop(self) -> Any:
        """The loop that the policy has for this thread.

        Raises:
          RuntimeError: a callback of a protocol calls this.
        """
        _refuse_callbacks(sys._getframe(1))
        return self.before.get_event_loop()

    def set_event_loop(self, loop: Any) -> None:
        """Left to the policy."""
        self.before.set_event_loop(loop)

    def new_event_loop(self) -> Any:
        """A new loop of the policy: libraries call this after an error that there is none.

        Raises:
          RuntimeError: a callback of a protocol calls this, and not ``asyncio.run()``, which runs the loop.
        """
        asking = sys._getframe(1)
        if not _is_runner(asking):
            _refuse_callbacks(asking)
        return self.before.new_event_loop()

    def get_child_watcher(self) -> Any:
        """Left to the policy; Python 3.14 has none."""
        return self.before.get_child_watcher()

    def set_child_watcher(self, watcher: Any) -> None:
        """Left to the policy; Python 3.14 has none."""
        self.before.set_child_watcher(watcher)


def _refuse_callbacks(asking: FrameType) -> None:
    if _is_called_back(asking):
        raise RuntimeError(_refusal(asking))


def _is_runner(asking: FrameType) -> bool:
    """Whether the caller is asyncio.run(), or asyncio.Runner."""
    frame: FrameType | None = asking
    while frame is not None and _is_asyncios(frame):
        if frame.f_globals.get("__name__") == "asyncio.runners":
            return True
        frame = frame.f_back
    return False


def _is_asyncios(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] == "asyncio"


def _is_called_back(asking: FrameType) -> bool:
    frame: FrameType | None = asking
    for _ in range(_MOST_FRAMES):
        if frame is None:
            return False
        if frame.f_globals.get("__name__") in _OWN:
            return True
        frame = frame.f_back
    return False


def _refusal(asking: FrameType) -> str:
    """Names the call: the function of asyncio, and the line that it is in."""
    call = ""
    frame: FrameType | None = asking
    while frame is not None and _is_asyncios(frame):
        code = frame.f_code
        call = getattr(code, "co_qualname", code.co_name)
        owner = frame.f_locals.get("self")
        if owner is not None and code.co_name == "__init__":
            call = type(owner).__qualname__
        frame = frame.f_back
    where = ""
    if frame is not None:
        name, number = frame.f_code.co_filename, frame.f_lineno
        line = linecache.getline(name, number).strip()
        where = f" in {os.path.basename(name)}:{number}" + (f" ({line})" if line else "")  # noqa: PTH119 - a bare string
    named = f"asyncio.{call}()" if call else "a call of asyncio's"
    return f"{named}{where} needs asyncio's event loop, and there is none: {_CURE}"


def explain(error: Exception) -> None:
    """Add what helps to the error of asyncio's that says nothing but that no event loop runs (Python 3.11)."""
    if type(error) is RuntimeError and str(error) == "no running event loop" and sys.version_info >= (3, 11):
        error.add_note(_CURE)


def loop_that_does_not_run(protocol: object) -> str | None:
    """The attribute of a protocol that has an event loop which does not run, in no thread."""
    for name in ("loop", "_loop"):
        loop = getattr(protocol, name, None)
        if isinstance(loop, asyncio.AbstractEventLoop) and not loop.is_running():
            return name
    return None


@final
class NoLoop:
    """While protocols run, their callbacks get no event loop: a context that can be entered many times, in any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entered = 0

    def __enter__(self) -> None:
        with self._lock:
            self._entered += 1
            before = _get_policy()
            if not isinstance(before, _NoLoopInCallbacks) and not _has_loops_in_trio(before):
                _set_policy(_NoLoopInCallbacks(before))

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._entered -= 1
            policy = _get_policy()
            if not self._entered and isinstance(policy, _NoLoopInCallbacks):
                _set_policy(policy.before)


def _has_loops_in_trio(policy: Any) -> bool:
    return type(policy).__module__.partition(".")[0] == "trio_asyncio"


no_loop: Final = NoLoop()
"""This process's."""

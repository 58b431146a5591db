"""The signals that end a server, also one whose event loop is held up.

Trio passes a signal on to a task, and code that never yields lets no task run: an ``on_read`` that waits for a database,
for example.  Then three SIGTERMs would wait in a queue.  Python calls the signal's own handler all the same, between two
instructions of the code that holds the run up.  So this module counts the signals there, and from the second one on a
thread watches whether the run answers.

The thread is started by :func:`_thread.start_new_thread`, because :class:`threading.Thread` takes a lock that the
interrupted code may hold.
"""

from __future__ import annotations

import _thread
import contextlib
import functools
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final, final

import trio

from ._cut_off import MOST_ROUNDS, end_process
from ._time_limits import CUT_SECONDS, HURRIED_SECONDS

END_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
REPLACE_SIGNALS: Final = tuple(getattr(signal, name) for name in ("SIGHUP",) if hasattr(signal, name))
"""None on Windows."""

LOOK_SECONDS: Final = 0.1
"""Seconds between two looks at a run that has not answered.  The looks are counted, and not the time: a process that was
stopped for a minute has not been held up for one."""


@contextlib.contextmanager
def watched_signals(*numbers: int) -> Iterator[AsyncIterator[int]]:
    """Receive signals as :func:`trio.open_signal_receiver` does, and end the process when the run takes none of them.

    The run has 7 seconds to answer after the second signal of :data:`END_SIGNALS`, and 3 after the third.  Then the log says
    where it is held up, and the process ends with status 1.

    Raises:
      RuntimeError: this is not the main thread.
    """
    with trio.open_signal_receiver(*numbers) as signals:
        watch = SignalWatch(trio.lowlevel.current_trio_token())
        for number in END_SIGNALS:
            signal.signal(number, watch.counting(signal.getsignal(number)))
        try:
            yield signals
        finally:
            watch.is_over = True  # Trio puts the handlers of before back


@final
class SignalWatch:
    """Watches whether the run still answers after two signals to end."""

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self.is_over = False
        self._token = token
        self._signals = 0
        self._has_answered = False

    def counting(self, handler: Any) -> Callable[[int, Any], None]:
        """What Python is to call for a signal, in the main thread: count it, and do what Trio does."""
        return functools.partial(self._count, handler)

    def _count(self, handler: Any, number: int, frame: Any) -> None:
        self._signals += 1
        handler(number, frame)
        if self._signals == 2:
            # Without a thread the run ends by itself, as long as it is not held up.
            with contextlib.suppress(RuntimeError):
                _thread.start_new_thread(self._run, ())

    def _run(self) -> None:
        """In a thread: ask the run every second, until the server has ended."""
        while not self.is_over:
            self._has_answered = False
            try:
                self._token.run_sync_soon(self._answer)
            except trio.RunFinishedError:
                return
            looks = 0
            while not self._has_answered and not self.is_over:
                if looks * LOOK_SECONDS >= self._patience():
                    end_process([f"the run, which is held up in {place_of_main_thread()}"])
                time.sleep(LOOK_SECONDS)
                looks += 1
            time.sleep(HURRIED_SECONDS)

    def _patience(self) -> float:
        return CUT_SECONDS if self._signals <= 2 else HURRIED_SECONDS * MOST_ROUNDS

    def _answer(self) -> None:
        self._has_answered = True


def place_of_main_thread() -> str:
    """The function that the main thread is in, or was in when the signal came that it is just counting."""
    frame = outer = sys._current_frames().get(threading.main_thread().ident or 0)
    while outer is not None:
        is_signal = outer.f_code is SignalWatch._count.__code__
        outer = outer.f_back
        if is_signal:
            frame = outer
    if frame is None:
        return "a place that cannot be looked into"
    name = getattr(frame.f_code, "co_qualname", frame.f_code.co_name)  # co_qualname: Python 3.11
    return f"{frame.f_globals.get('__name__', '?')}.{name}, line {frame.f_lineno}"

"""Log records of worker processes, which the server's process logs.

A program sets logging up in its main function, which a worker does not run.  So a worker sends its records to the server,
where they go through the same loggers, filters and handlers as everything else, and lines of several processes do not get
mixed.  ``record.process`` and ``record.processName`` name the worker, ``record.exc_text`` has the
traceback, and ``record.exc_info`` an exception with the type's name and the message (``_remote_errors``).  A worker whose
program does set up the root logger when it is imported is left alone.

What cannot be sent fast enough is dropped and counted: a worker does not wait for a slow log.
"""

from __future__ import annotations

import logging
import logging.handlers
import pickle
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast, final

import trio

from gain_trio._transports import shown, shown_traceback

from ._control import ControlChannel
from ._control_messages import LogRecords, Message
from ._remote_errors import Description, description_of, exc_info_of

MOST_WAITING: Final = 1000
"""Records that wait to be sent."""
MOST_AT_ONCE: Final = 100
LARGEST_RECORD: Final = 32768
"""Characters of a record's text, and of each other string in it, or bytes of any other attribute: the rest is cut off."""
_COMPLAINTS: Final = logging.NullHandler()
"""Says on standard error what goes wrong with a record, as every handler does (:data:`logging.raiseExceptions`)."""

logger = logging.getLogger("gain_trio")


@final
class LogForwarder(logging.Handler):
    """In a worker: a handler that sends records to the server."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: deque[dict[str, Any]] = deque()
        self._dropped = 0
        self._token: trio.lowlevel.TrioToken | None = None
        self._record_queued = trio.Event()

    def install(self, levels: dict[str, int]) -> None:
        """Take the place of what the program has not set up, with the server's levels."""
        if logging.root.handlers:
            return
        logging.root.addHandler(self)
        for name, level in levels.items():
            logging.getLogger(name or None).setLevel(level)

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record.  Any thread may."""
        if len(self._waiting) >= MOST_WAITING:
            self._dropped += 1
            return
        try:
            self._waiting.append(_portable(record))
        except Exception:  # noqa: BLE001 - as all handlers do: what cannot be formatted is the program's, and no reason to fail
            self.handleError(record)
            return
        if self._token is not None:
            try:
                self._token.run_sync_soon(self._wake, idempotent=True)
            except trio.RunFinishedError:
                self._token = None

    def _wake(self) -> None:
        self._record_queued.set()

    async def run(self, control: ControlChannel) -> None:
        """Send records, until cancelled or until the server is gone."""
        self._token = trio.lowlevel.current_trio_token()
        while True:
            await self.send_all(control)
            self._record_queued = trio.Event()
            if not self._waiting:
                await self._record_queued.wait()

    async def send_all(self, control: ControlChannel) -> None:
        """Send what waits.  Cancelled, what it has not sent waits still."""
        while self._waiting or self._dropped:
            async with control.turn() as say:
                # Another task may have sent them while this one waited for its turn; other threads add some at the end.
                self._say_next(say)

    def _say_next(self, say: Callable[[Message], None]) -> None:
        """Some records, as many as go into a message; one that is too long for any is dropped."""
        count, dropped = min(MOST_AT_ONCE, len(self._waiting)), self._dropped
        while count or dropped:
            try:
                say(LogRecords(tuple(self._waiting[number] for number in range(count)), dropped))
            except ValueError:
                if count == 1:
                    self._waiting.popleft()
                    self._dropped += 1
                    return
                count //= 2
            else:
                for _ in range(count):
                    self._waiting.popleft()
                self._dropped -= dropped
                return

    def give_up(self) -> None:
        """Write what can no longer be sent to standard error, in short."""
        while self._waiting:
            record = self._waiting.popleft()
            sys.stderr.write(f"{shown(record['levelname'])}: {shown(record['msg'], LARGEST_RECORD)}\n")


def _portable(record: logging.LogRecord) -> dict[str, Any]:
    """Its attributes, with the text made and everything else that cannot be pickled left out."""
    attributes = dict(record.__dict__)
    attributes["msg"] = record.getMessage()
    attributes["args"] = None
    error = record.exc_info[1] if record.exc_info else None
    if error is not None and not record.exc_text:
        attributes["exc_text"] = shown_traceback(error)
    attributes["exc_info"] = None if error is None else description_of(error)
    return {
        name: _cut(value) if isinstance(value, str) else value
        for name, value in attributes.items()
        if _is_portable(value)
    }


def _is_portable(value: object) -> bool:
    if value is None or isinstance(value, str | int | float):
        return True
    try:
        return len(pickle.dumps(value)) <= LARGEST_RECORD
    except Exception:  # noqa: BLE001 - whatever an object of the program's raises there
        return False


def _cut(text: str) -> str:
    return text if len(text) <= LARGEST_RECORD else f"{text[:LARGEST_RECORD]} [cut]"


def log_for(message: LogRecords) -> None:
    """In the server: log what a worker has sent.

    A filter of the program's that raises would raise in the handler that logs, were it in this process.  That one is far
    away and has gone on, and neither the server nor the other connections are to suffer for it.
    """
    for attributes in message.records:
        record = logging.makeLogRecord(attributes)
        if record.exc_info:
            record.exc_info = exc_info_of(cast("Description", record.exc_info), record.exc_text or "")
        target = logging.getLogger(record.name)
        if target.isEnabledFor(record.levelno):
            try:
                target.handle(record)
            except Exception:  # noqa: BLE001 - whatever the program raises
                _COMPLAINTS.handleError(record)
    if message.dropped:
        logger.warning(
            "%d log records of a worker process were dropped: it logs faster than they can be sent", message.dropped
        )

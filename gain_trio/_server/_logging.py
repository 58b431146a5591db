"""Logging of the command line: to standard error, for people or for machines."""

from __future__ import annotations

import json
import logging
import math
import sys
from datetime import datetime, timezone
from typing import Any, Final, Literal, TypeAlias, final, get_args

from gain_trio._transports import shown, shown_traceback

LogFormat: TypeAlias = Literal["pretty", "json"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
FORMATS: tuple[LogFormat, ...] = get_args(LogFormat)
LEVELS: tuple[LogLevel, ...] = get_args(LogLevel)

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
"""The attributes that every LogRecord has; the program has added any other one by ``extra=``."""
_OWN: Final = frozenset({"time", "level", "logger", "message", "exception", "stack"})
"""What :class:`JsonFormatter` writes itself, beside ``process``, which is an attribute."""


@final
class JsonFormatter(logging.Formatter):
    """A formatter for :mod:`logging`: one JSON object a line, as ``gain-trio serve --log-format json`` writes.

    The object has ``time`` (UTC, ISO 8601, milliseconds), ``level``, ``logger``, ``process`` and ``message``, what the
    caller gave as ``extra``, and ``exception`` and ``stack`` if there is one.  Line breaks and control characters in a
    value are escaped, so nothing that a peer has sent can be taken for another line.  An ``extra`` with one of these names
    has an underscore behind it.  Values that JSON does not have are written as text.
    """

    def format(self, record: logging.LogRecord) -> str:
        """See :meth:`logging.Formatter.format`."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, tz=timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        for name, value in record.__dict__.items():
            if name not in _STANDARD:
                entry[f"{name}_" if name in _OWN else name] = value
        error = record.exc_info
        if record.exc_text and (not error or error[2] is None):  # of a worker process, which has sent the text
            entry["exception"] = record.exc_text
        elif error and error[1] is not None:
            entry["exception"] = self.formatException(error)
        if record.stack_info:
            entry["stack"] = self.formatStack(record.stack_info)
        try:
            return json.dumps(entry, default=str, allow_nan=False)
        except Exception:  # noqa: BLE001 - a NaN, a key that is no text, an object in itself, or one without text
            return json.dumps({name: _plain(value) for name, value in entry.items()})


def _plain(value: object) -> object:
    """The same value, or its text if it is one of several parts, or no number."""
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - whatever an object of the program's raises there
        return f"<{type(value).__qualname__}>"


@final
class LineFormatter(logging.Formatter):
    """For people: printable characters, and a message of several lines is indented from the second one on.

    So nothing that a peer has sent can be taken for a record, or reach the terminal as an escape sequence, whichever
    library has logged it.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """See :meth:`logging.Formatter.formatMessage`."""
        lines = [shown(line, len(line)) for line in super().formatMessage(record).split("\n")]
        return "\n    ".join(lines)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """See :meth:`logging.Formatter.formatException`."""
        return shown_traceback(ei[1]) if ei[1] is not None else ""


def configure_logging(level: LogLevel, style: LogFormat) -> None:
    """Have the process log to standard error, from this level on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter() if style == "json" else LineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)

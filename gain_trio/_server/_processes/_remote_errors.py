"""Exceptions of worker processes, as their log records have them in the server's process.

An exception itself is not sent: to unpickle it would run code of the program's, and many cannot be pickled.  Its type's
name, its message and its formatted traceback are.  Formatters expect ``record.exc_info`` of a record with an exception, so
the server makes one of these three: an exception whose type has the same name, whose text is the same message, and whose
cause prints the traceback of the worker process.
"""

from __future__ import annotations

import functools
from typing import final

from gain_trio._transports import shown

Description = tuple[str, str, str]
"""The type's module and name, and the message."""


class RemoteError(Exception):
    """An exception of a worker process.  Its type is a subclass with the name of the exception's own."""


@final
class RemoteTraceback(Exception):
    """The traceback of an exception of a worker process: the cause of a :class:`RemoteError`, as the text that it prints."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}\n"""'


def description_of(error: BaseException) -> Description:
    """What is sent of an exception, beside its traceback."""
    kind = type(error)
    return shown(kind.__module__), shown(kind.__qualname__), shown(error)


def exc_info_of(description: Description, traceback: str) -> tuple[type[RemoteError], RemoteError, None]:
    """What :func:`sys.exc_info` would say of it, but for the traceback, which is the cause's text."""
    module, name, message = description
    error = _kind(module, name)(message)
    error.__cause__ = RemoteTraceback(traceback)
    return type(error), error, None


@functools.lru_cache(maxsize=256)
def _kind(module: str, name: str) -> type[RemoteError]:
    return type(name.rpartition(".")[2], (RemoteError,), {"__module__": module, "__qualname__": name})

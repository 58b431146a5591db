"""Errors of the command, which have a line, and errors of the program that it runs, which have a traceback."""

from __future__ import annotations

import sys
import traceback
from typing import Final

from ._flag_words import in_flags
from ._parsing import fail

_LIBRARIES: Final = sys.stdlib_module_names | {
    "__main__",
    "attr",
    "exceptiongroup",
    "gain_trio",
    "outcome",
    "prometheus_client",
    "trio",
    "watchfiles",
}
"""The modules that raise errors about arguments, and never run code of the program by themselves."""


def is_of_the_program(error: BaseException) -> bool:
    """Whether the error was raised in code of the program that is served, or in what that has called."""
    frame = error.__traceback__
    while frame is not None:
        name: str = frame.tb_frame.f_globals.get("__name__", "")
        if name.partition(".")[0] not in _LIBRARIES:
            return True
        frame = frame.tb_next
    return False


def fail_with(error: Exception) -> int:
    """Print what went wrong, with its traceback if that is the program's, and return the exit status."""
    if is_of_the_program(error):
        traceback.print_exception(type(error), error, error.__traceback__)
    if isinstance(error, OSError):
        return fail(error.strerror or str(error))
    return fail(in_flags(str(error)) or type(error).__name__)

"""The code that the subcommands of ``gain-trio`` share: the type of their parsers, printing and failing."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from typing import TYPE_CHECKING, NoReturn, TypeAlias


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line.  The usage of a command with fifty options would hide what is wrong."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and how to list what is right, and end with status 2."""
        self.exit(2, f"{self.prog}: error: {message} ({self.prog} --help)\n")


if TYPE_CHECKING:
    Subparsers: TypeAlias = argparse._SubParsersAction[Parser]  # generic in the stubs only
else:
    Subparsers = argparse._SubParsersAction


def show(text: str) -> None:
    """Write to standard output.  A reader that closes the pipe before the end, as ``head`` does, is not an error.

    Characters that the encoding lacks are written as escapes.

    Raises:
      OSError: standard output cannot be written; ``filename`` is "standard output".
    """
    if sys.stdout is None:  # the descriptor was closed when Python started
        raise _unwritable(errno.EBADF)
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # Python flushes once more at its end
        os.close(nowhere)
        if not isinstance(error, BrokenPipeError):
            raise _unwritable(error.errno or errno.EIO) from error


def _unwritable(number: int) -> OSError:
    return OSError(number, os.strerror(number), "standard output")


def fail(reason: str, status: int = 1) -> int:
    """Print in one line what went wrong, and return the exit status."""
    print(f"gain-trio: {reason}", file=sys.stderr)
    return status

"""What the subcommands of ``gain-trio`` share: a parser of their own, how they print, and how they fail."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    Subparsers: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]  # generic in the stubs only
else:
    Subparsers = argparse._SubParsersAction


def show(text: str) -> None:
    """Write to standard output.  A reader that goes before the end, as ``head`` does, has read enough.

    Characters that its encoding has not are written as escapes.

    Raises:
      OSError: it cannot be written; ``filename`` is "standard output".
    """
    if sys.stdout is None:  # it was closed when Python started
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
    """Say in one line what went wrong; the exit status for it."""
    print(f"gain-trio: {reason}", file=sys.stderr)
    return status

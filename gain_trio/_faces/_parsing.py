"""What the subcommands of ``gain-trio`` share: a parser of their own, how they print, and how they fail."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    Subparsers: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]  # generic in the stubs only
else:
    Subparsers = argparse._SubParsersAction


def show(text: str) -> None:
    """Write to standard output.  A reader that goes before the end, as ``head`` does, has read enough."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end


def fail(reason: str) -> int:
    """Say in one line what went wrong; the exit status for it."""
    print(f"gain-trio: {reason}", file=sys.stderr)
    return 1

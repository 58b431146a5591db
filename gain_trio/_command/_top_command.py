"""``gain-trio top``: a running server, looked at."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Final

from ._parsing import Subparsers, fail, show
from ._top_client import ControlClient, Unwatchable
from ._top_view import UnknownAnswer, as_text, view_of

VARIABLE: Final = "GAIN_TRIO_CONTROL"
"""The variable of the environment that has the path, where no argument has it."""
_SHORTEST: Final = 1.0
_LONGEST: Final = 30.0

_DESCRIPTION: Final = """\
Show a running server: its processes, connections, bytes, requests and rings by the second, and its slow handlers with
the place in the program where each of them waits.  The server has to have a control socket, by --control PATH or
ServerConfig(control=...), and only its user and root may look at it.  q or Ctrl-C ends the screen.
"""
_EPILOG: Final = """\
examples:
  gain-trio asgi app:app --processes 2 --control /run/user/1000/app.sock
  gain-trio top /run/user/1000/app.sock
  gain-trio top /run/user/1000/app.sock --once
  gain-trio top /run/user/1000/app.sock --json | jq .connections.active

The exit status is 1 if the server cannot be looked at, or has ended meanwhile.
"""


def add_parser(commands: Subparsers) -> None:
    """Add the arguments of ``top``."""
    top = commands.add_parser(
        "top",
        help="show a running server: rates, processes, and where slow handlers wait",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("path", nargs="?", metavar="PATH", help=f"the server's --control PATH (${VARIABLE})")
    top.add_argument("--once", action="store_true", help="print one screen as text, and end")
    top.add_argument(
        "--json", action="store_true", help="print what the server answers, an object of JSON on each line"
    )
    top.add_argument(
        "--interval",
        type=_seconds,
        default=1.0,
        metavar="S",
        help="seconds between two looks, which rates are measured over (1)",
    )
    top.set_defaults(execute=execute)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = float("nan")
    if not _SHORTEST <= seconds <= _LONGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from {_SHORTEST:g} to {_LONGEST:g}")
    return seconds


def execute(options: argparse.Namespace) -> int:
    """Look at the server, and return the exit status."""
    path = options.path or os.environ.get(VARIABLE)
    if not path:
        return fail(f"give the PATH of the server's --control, or set {VARIABLE}")
    try:
        look = _look_of(options)
        with contextlib.closing(ControlClient(path)) as client:
            look(client, options.interval)
    except KeyboardInterrupt:
        return 0
    except (Unwatchable, UnknownAnswer, ImportError) as error:
        return fail(str(error))
    except OSError as error:
        return fail(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror))
    return 0


def _look_of(options: argparse.Namespace) -> Callable[[ControlClient, float], None]:
    """What is wanted.

    Raises:
      ImportError: the screen needs a package that is missing.
      Unwatchable: there is no terminal for a screen.
    """
    if options.json:
        return _print_json_once if options.once else _print_json
    if options.once:
        return _print_once
    if sys.stdout is None or not sys.stdout.isatty():
        raise Unwatchable("standard output is no terminal: give --once or --json")
    try:
        from ._top_screen import run_screen  # noqa: PLC0415 - an extra, which only this needs
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "rich":
            raise
        raise ImportError(
            'the screen needs the package rich: pip install "gain-trio[top]"; --once and --json do without'
        ) from error
    return run_screen


def _print_once(client: ControlClient, interval: float) -> None:
    before = client.ask()
    time.sleep(interval)
    show(as_text(view_of(client.ask(), before)))


def _print_json_once(client: ControlClient, _interval: float) -> None:
    show(json.dumps(client.ask()) + "\n")


def _print_json(client: ControlClient, interval: float) -> None:
    while True:
        show(json.dumps(client.ask()) + "\n")
        time.sleep(interval)

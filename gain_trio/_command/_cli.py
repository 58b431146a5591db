"""The command ``gain-trio``: its subcommands are a module each."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import NoReturn, cast

import gain_trio

from . import _asgi_command, _doctor_command, _locality_command, _seccomp_command, _serve_command, _top_command
from ._parsing import Parser, Subparsers


def _parsers() -> tuple[Parser, Subparsers]:
    parser = Parser(prog="gain-trio", description="Trio servers at the speed of io_uring.")
    parser.add_argument("--version", action="version", version=f"gain-trio {gain_trio.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _serve_command.add_parser(commands)
    _asgi_command.add_parser(commands)
    _top_command.add_parser(commands)
    _doctor_command.add_parser(commands)
    _seccomp_command.add_parser(commands)
    _locality_command.add_parser(commands)
    return parser, commands


def _refuse(parser: Parser, unknown: Sequence[str]) -> NoReturn:
    """End with status 2, and name what the subcommand's parser does not know, and what was perhaps meant."""
    first = next((argument for argument in unknown if argument.startswith("-")), "")
    near = difflib.get_close_matches(first.partition("=")[0], parser._option_string_actions, n=1, cutoff=0.7)
    cure = f"; did you mean {near[0]}?" if near else ""
    parser.error(f"unrecognized arguments: {' '.join(unknown)}{cure}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, or 1 for a failure, or 2 for wrong arguments.

    ``doctor``, whose 1 means something else, returns 2 for every failure.
    """
    parser, commands = _parsers()
    options, more = parser.parse_known_args(arguments)
    if more:
        # argparse looks for all positional arguments in one place, and people write some of them behind options.
        place = getattr(options, "takes_more", None)
        if place is None or any(argument.startswith("-") for argument in more):
            _refuse(commands.choices[options.command], more)
        getattr(options, place).extend(more)
    return cast("int", options.execute(options))

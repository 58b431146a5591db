"""``gain-trio locality``: the subcommand."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

from gain_trio._transports import shown

from ._locality import Change, LocalityError, Plan, apply, command, list_text, parse_cpus, plan
from ._parsing import Subparsers, fail, show

_DESCRIPTION = """\
Give each queue of a network interface a CPU of its own: its interrupts, what
is sent by it (XPS), and no handing on to other CPUs (RPS off). What is written
is printed as a shell script, with the way back at its end.

See "Perfect locality" in the documentation for what the server has to do.
"""


def add_parser(commands: Subparsers) -> None:
    """Add the arguments of ``locality``."""
    locality = commands.add_parser(
        "locality",
        help="give each queue of a network interface a CPU of its own",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    locality.add_argument("interface", metavar="IFACE", help="the network interface: eth0, for example")
    locality.add_argument("--dry-run", action="store_true", help="print what would be written, and write nothing")
    locality.add_argument("--cpus", metavar="LIST", help="the CPUs to use: 0-3,8 (all that are online)")
    locality.add_argument(
        "--undo-file", type=Path, metavar="FILE", help="write the way back there, too; a file that is there is kept"
    )
    # Tests make a tree up: this is the directory that has sys and proc.
    locality.add_argument("--root", type=Path, default=Path("/"), help=argparse.SUPPRESS)
    locality.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Print the changes, make them, and return the exit status."""
    root: Path = options.root
    try:
        cpus = None if options.cpus is None else parse_cpus(options.cpus)
        what = plan(options.interface, cpus, root=root)
        if options.dry_run:
            show(
                _text(
                    [*_heading(what), "# dry run: nothing is written", *_script(what.changes), *_way_back(what.changes)]
                )
            )
            return 0
        kept = _apply(what, options.undo_file, root)
        made = [change for change in what.changes if change not in kept]
        left = [f"# left alone, the kernel manages it: {shown(change.path)}, {shown(change.about)}" for change in kept]
        show(_text([*_heading(what), *_script(made), *left, *_way_back(made)]))
    except LocalityError as error:
        return fail(str(error))
    except FileExistsError as error:
        return fail(f"{error.filename}: there is a file already, maybe the only one that knows the way back")
    except OSError as error:
        return fail(f"{error.filename}: {error.strerror}")
    return 0


def _apply(what: Plan, undo_file: Path | None, root: Path) -> tuple[Change, ...]:
    """Write the undo file first, and make the changes then."""
    if undo_file is None or not what.changes:
        return apply(what, root=root)
    _write_undo_file(undo_file, what)
    try:
        return apply(what, root=root)
    except LocalityError as error:
        if not error.is_half_done:
            undo_file.unlink()
        raise


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _heading(what: Plan) -> Iterator[str]:
    yield f"# {shown(what.interface)}: a queue a CPU, of CPUs {list_text(what.cpus)}"
    for note in what.notes:
        yield f"# {shown(note, len(note))}"


def _script(changes: Iterable[Change]) -> Iterator[str]:
    yield from [f"{command(change)}  # {shown(change.about)}" for change in changes] or ["# it is so already"]


def _way_back(changes: Iterable[Change]) -> Iterator[str]:
    lines = [f"#   {command(change, undo=True)}" for change in changes]
    if lines:
        yield "# to undo it:"
        yield from lines


def _write_undo_file(path: Path, what: Plan) -> None:
    """Write the undo file before any change.  An existing one is older, and so closer to the original: it stays."""
    with path.open("x", encoding="utf-8", errors="surrogateescape") as file:
        file.write("#!/bin/sh\n" + _text(command(change, undo=True) for change in what.changes))
        file.flush()
    path.chmod(0o755)

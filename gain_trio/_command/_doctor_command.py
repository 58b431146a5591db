"""``gain-trio doctor``: the subcommand."""

from __future__ import annotations

import argparse
import shutil

from ._advice import advise
from ._doctor import collect
from ._doctor_page import SCHEMA, as_json, as_text
from ._parsing import Subparsers, fail, show

_NARROWEST, _WIDEST = 80, 100

_DESCRIPTION = """\
Report what this machine can do for gain_trio: whether io_uring works, and if
not why; which features the kernel has and a run uses; which limits matter; and
what the operator can improve. The command changes nothing, and needs no root.
"""

_EPILOG = f"""\
exit status:
  0  The ring can run here. Also where GAIN_TRIO_BACKEND=trio turns it off: the
     page then says that it could run, and that a run would not use it.
  1  The ring cannot run here. Programs do, on Trio's own I/O manager.
  2  There is no report: the arguments are wrong, or standard output cannot be
     written.

JSON (--json):
  One object of schema {SCHEMA}: ring, choice (what a run would be on), features,
  system, python, cpus, limits, sysctls, security, environment,
  resume_in_place, acceleration (name, active, reason), advice (key, level,
  text), and unknown, which maps the path of every value that could not be
  found out, and is null, to the reason. The number in "schema" is raised when
  a key goes away or changes its meaning; new keys may come without that.
"""


def add_parser(commands: Subparsers) -> None:
    """Add the arguments of ``doctor``."""
    doctor = commands.add_parser(
        "doctor",
        help="report what this machine can do, and what to mend",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    doctor.add_argument("--json", action="store_true", help="for machines")
    doctor.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Print the page, and return an exit status that says whether the ring can run."""
    facts = collect()
    advice = advise(facts)
    if options.json:
        page = as_json(facts, advice)
    else:
        width = min(max(shutil.get_terminal_size((_NARROWEST, 0)).columns, _NARROWEST), _WIDEST)
        page = as_text(facts, advice, width)
    try:
        show(page + "\n")
    except OSError as error:
        return fail(f"{error.filename}: {error.strerror}", 2)  # not 1, which says that the ring cannot run
    return 0 if facts.ring.runs else 1

"""The programs in examples/."""

from __future__ import annotations

import re

from support.processes import ROOT, Program

EXAMPLES = ROOT / "examples"


def listening(program: Program) -> tuple[str, int]:
    """Where an example says that it listens."""
    line = program.line()
    match = re.fullmatch(r"listening on (\S+) port (\d+)", line)
    assert match, line or program.end()
    return match[1], int(match[2])

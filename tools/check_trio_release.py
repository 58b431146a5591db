"""Check that the pieces of gain_trio's acceleration fit the installed Trio, and print the changes if they do not.

    python tools/check_trio_release.py              what fits; exit status 1 if something does not
    python tools/check_trio_release.py --record     add this Trio and this Python to the table of what was tested

Record a release when its own test suite has passed with ``GAIN_TRIO_ACCELERATE`` set to the pieces (``make trio-suite``).  A
piece that has no fingerprint yet is left out of a run, so the suite is run with ``GAIN_TRIO_ACCELERATE_UNTESTED=1``.
"""

from __future__ import annotations

import argparse
import pprint
import sys
from pathlib import Path

from gain_trio._acceleration import PIECES, _core_seam
from gain_trio._acceleration._fingerprints import PYTHON
from gain_trio._acceleration._tested import TESTED

TABLE = Path(__file__).resolve().parent.parent / "gain_trio/_acceleration/_tested.py"


def releases(text: str) -> list[str]:
    """The releases that an entry of the table names."""
    return [release for release in text.split() if release]


def record() -> None:
    """Write the table with this Trio in it."""
    table = {
        piece.name: {python: dict(found) for python, found in TESTED.get(piece.name, {}).items()} for piece in PIECES
    }
    for piece in PIECES:
        entries = table[piece.name].setdefault(PYTHON, {})
        known = releases(entries.get(piece.fingerprint(), ""))
        ordered = sorted({*known, _core_seam.RELEASE}, key=lambda release: [int(part) for part in release.split(".")])
        entries[piece.fingerprint()] = " ".join(ordered)
    head = TABLE.read_text(encoding="utf-8").partition("TESTED:")[0]
    body = pprint.pformat(table, width=118, sort_dicts=False)
    TABLE.write_text(f"{head}TESTED: Final[dict[str, dict[str, dict[str, str]]]] = {body}\n", encoding="utf-8")


def changes() -> int:
    """Print which pieces fit, and return the number of those that do not."""
    bad = 0
    for piece in PIECES:
        entries = TESTED.get(piece.name, {}).get(PYTHON, {})
        try:
            found = piece.fingerprint()
        except (AttributeError, TypeError) as error:
            bad += 1
            print(f"{piece.name:12} differs: {error}")
            continue
        if found in entries:
            print(f"{piece.name:12} fits: as in Trio {entries[found]}")
            continue
        bad += 1
        print(f"{piece.name:12} differs from everything that was tested with Python {PYTHON}; it is made of")
        for line in piece._lines():
            print(f"{'':12}   {line}")
    return bad


def main() -> int:
    """Compare or record, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="add what is installed to the table")
    if parser.parse_args().record:
        record()
        return 0
    print(f"Trio {_core_seam.RELEASE}, Python {PYTHON}")
    return 1 if changes() else 0


if __name__ == "__main__":
    sys.exit(main())

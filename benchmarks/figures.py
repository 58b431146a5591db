"""Draw the ratios of one run as an SVG: ``python benchmarks/figures.py RESULTS.json > docs/echo.svg``.

``python benchmarks/run.py --json RESULTS.json`` writes the results.  Each server has a bar, as long as the median over the
rounds, and a line from the smallest to the largest value.  The machine, the date and the command stand below the bars.
The picture is readable on a light and on a dark page: it has a background of its own, and follows the browser's colours.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

WIDTH = 760
MARGIN = 20
BARS = 170  # where the bars begin
FREE = 130  # to the right of the longest line, for its figures
TOP = 78
ROW = 26
BAR = 14
CAP = 3
LINE = 15
CAPTION_CHARACTERS = 120

REFERENCE = "c"
OURS = "gain_trio"
LABELS = {
    "gain_trio": "gain_trio, tasks",
    "gain_trio-callbacks": "gain_trio, callbacks",
    "gain_trio-deadlines": "gain_trio, deadlines",
    "gain_trio_sockets": "gain_trio, no ring",
    "uvloop": "uvloop, callbacks",
    "rloop": "rloop, callbacks",
    "asyncio": "asyncio, callbacks",
    "uvloop-streams": "uvloop, streams",
    "asyncio-streams": "asyncio, streams",
    "trio": "Trio, streams",
    "trio-on-ring": "Trio's streams, ring",
    "anyio-uvloop": "AnyIO on uvloop",
    "anyio-trio": "AnyIO on Trio",
}
TITLES = {
    "echo": "CPU time of the server for one echoed message",
    "churn": "CPU time of the server for one connection",
    "udp": "CPU time of the server for one echoed datagram",
}

STYLE = """\
  <style>
    text { font: 12px system-ui, sans-serif; fill: #24292f; }
    .title { font-size: 15px; font-weight: 600; }
    .faint { font-size: 11px; fill: #57606a; }
    .page { fill: #ffffff; stroke: #d0d7de; }
    .bar { fill: #9aa4af; }
    .ours { fill: #1a7f5a; }
    .spread { stroke: #24292f; fill: none; }
    .one { stroke: #57606a; stroke-dasharray: 3 3; }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3; }
      .faint { fill: #9da7b3; }
      .page { fill: #0d1117; stroke: #30363d; }
      .bar { fill: #6e7681; }
      .ours { fill: #2ea97a; }
      .spread { stroke: #e6edf3; }
      .one { stroke: #9da7b3; }
    }
  </style>"""


def subject_of(run: Mapping[str, Any]) -> str:
    """What the run measured, in words."""
    clients = f"{run['connections']:,} {'connection' if run['connections'] == 1 else 'connections'}"
    return f"{clients} over loopback, {run['size']:,} bytes a message; ratio to an echo server in C on io_uring (1.00)"


def row_of(number: int, name: str, ratio: Mapping[str, Any], scale: float) -> Iterator[str]:
    """The elements of one server."""
    middle_of_row = TOP + number * ROW + ROW // 2
    low, middle, high = (BARS + ratio[key] * scale for key in ("low", "middle", "high"))
    kind = "bar ours" if name.startswith(OURS) else "bar"
    digits = "{:.2f}".format
    figures = digits(ratio["middle"]) + ("*" if ratio.get("loud") else "")
    if digits(ratio["low"]) != digits(ratio["high"]):
        figures += f" ({digits(ratio['low'])}–{digits(ratio['high'])})"  # noqa: RUF001  # an en dash, as in the tables
        yield (
            f'  <path class="spread" d="M{low:.1f} {middle_of_row - CAP}v{2 * CAP}m0 {-CAP}H{high:.1f}'
            f'm0 {-CAP}v{2 * CAP}"/>'
        )
    yield f'  <text x="{BARS - 8}" y="{middle_of_row + 4}" text-anchor="end">{escape(LABELS.get(name, name))}</text>'
    yield f'  <text x="{max(middle, high) + 8:.1f}" y="{middle_of_row + 4}">{figures}</text>'
    bar = f'x="{BARS}" y="{middle_of_row - BAR // 2}" width="{middle - BARS:.1f}" height="{BAR}" rx="2"'
    yield f'  <rect class="{kind}" {bar}/>'


def rows_of(ratios: Mapping[str, Mapping[str, Any]], scale: float) -> Iterator[str]:
    """The elements of all servers, the cheapest first; bars lie below lines and text."""
    elements: list[str] = []
    for number, name in enumerate(sorted(ratios, key=lambda name: float(ratios[name]["middle"]))):
        elements += row_of(number, name, ratios[name], scale)
    yield from sorted(elements, key=lambda element: "<rect" not in element)


def caption_of(record: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    """The lines below the bars: the machine, the date, the command, and what an asterisk means."""
    lines = [
        *textwrap.wrap(f"{record['date']}: {record['machine']}", CAPTION_CHARACTERS),
        *textwrap.wrap(record["command"], CAPTION_CHARACTERS, break_on_hyphens=False),
    ]
    if any(ratio.get("loud") for ratio in run["ratio_to_c"].values()):
        lines.append("* In at least one round fewer than three slices were quiet; there, all slices count.")
    return lines


def picture(record: Mapping[str, Any], number: int) -> str:
    """The SVG of one of the record's runs.

    Raises:
      ValueError: the run measured no ratio of another server to the C server.
    """
    run = record["runs"][number]
    ratios = {name: ratio for name, ratio in run.get("ratio_to_c", {}).items() if name != REFERENCE}
    if not ratios:
        raise ValueError(f"run {number} ({run['mode']}) has no server beside the C server")
    scale = (WIDTH - MARGIN - FREE - BARS) / max(1.0, *(ratio["high"] for ratio in ratios.values()))
    bottom = TOP + len(ratios) * ROW
    caption = caption_of(record, run)
    height = bottom + 24 + len(caption) * LINE + MARGIN // 2
    one = BARS + scale
    title = f"{TITLES[run['mode']]}, as a ratio"
    words = "; ".join(f"{LABELS.get(name, name)} {ratio['middle']:.2f}" for name, ratio in ratios.items())
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title words">',
            f'  <title id="title">{escape(title)}</title>',
            f'  <desc id="words">{escape(f"{subject_of(run)}: {words}.")}</desc>',
            STYLE,
            f'  <rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="6"/>',
            f'  <text class="title" x="{MARGIN}" y="30">{escape(title)}</text>',
            f'  <text class="faint" x="{MARGIN}" y="50">{escape(subject_of(run))}</text>',
            *rows_of(ratios, scale),
            f'  <path class="one" d="M{one:.1f} {TOP - 6}V{bottom + 4}"/>',
            *(
                f'  <text class="faint" x="{MARGIN}" y="{bottom + 24 + index * LINE}">{escape(line)}</text>'
                for index, line in enumerate(caption)
            ),
            "</svg>",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, metavar="RESULTS.json", help="written by run.py --json")
    parser.add_argument("--run", type=int, default=0, help="which of its configurations, counted from 0 (default: 0)")
    arguments = parser.parse_args()
    try:
        record = json.loads(arguments.results.read_text(encoding="utf-8"))
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]  # a TextIOWrapper
        sys.stdout.write(picture(record, arguments.run))
    except (OSError, ValueError, IndexError) as error:
        sys.exit(f"figures.py: {error}")


if __name__ == "__main__":
    main()

"""A page with plots of one run: ``python benchmarks/_report.py RESULTS.json DIR``, and ``run.py --report DIR``.

Each plot is an SVG of its own, beside the page: ratios to C with their spread, by ``figures.py``; the distribution of
latencies; and the memory of an idle connection.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

import figures

LEFT, RIGHT, WIDTH = figures.BARS, 180, figures.WIDTH  # to the right there are three numbers
TOP, ROW, BAR = figures.TOP, figures.ROW, figures.BAR
AXIS = 26
BOX, WHISKERS, MIDDLE = (0.25, 0.75), (0.01, 0.99), 0.5
TAIL = 0.999

Record = Mapping[str, Any]

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>gain_trio: what was measured on {date}</title>
<style>
  :root {{ color-scheme: light dark; }}
  body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 780px; margin: 2rem auto; padding: 0 1rem; }}
  img {{ max-width: 100%; height: auto; }}
  dt {{ font-weight: 600; }}
  code {{ overflow-wrap: anywhere; }}
</style>
<h1>What was measured on {date}</h1>
<dl>
  <dt>Machine</dt><dd>{machine}</dd>
  <dt>Command</dt><dd><code>{command}</code></dd>
  <dt>Each measurement</dt><dd>{seconds:g} seconds for the server, and as long for the C server beside it, by turns</dd>
  <dt>Left out</dt><dd>{skipped}</dd>
</dl>
<p>A ratio is the CPU time of a server for a message over that of an echo server in C, which had its turns on the same CPU in
the same seconds; a line shows the smallest and the largest of the rounds. Latencies are those of closed loops of the load
generator, with the server's CPU fully used: they compare servers on this machine, and say nothing of a network.</p>
{plots}
<p><a href="results.json">All results</a> as JSON.</p>
</html>
"""


def good(results: Record) -> dict[str, list[Record]]:
    """The measurements of each server that did not fail."""
    found = {name: [run for run in runs if "error" not in run] for name, runs in results.items()}
    return {name: runs for name, runs in found.items() if runs}


def svg(title: str, subject: str, rows: list[str], elements: list[str], height: int) -> str:
    """A picture in the manner of figures.py."""
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    words = f"{subject}: {'; '.join(rows)}."
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title words">',
            f'  <title id="title">{escape(title)}</title>',
            f'  <desc id="words">{escape(words)}</desc>',
            figures.STYLE,
            f'  <rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="6"/>',
            f'  <text class="title" x="{figures.MARGIN}" y="30">{escape(title)}</text>',
            f'  <text class="faint" x="{figures.MARGIN}" y="50">{escape(subject)}</text>',
            *elements,
            "</svg>",
            "",
        ]
    )


def label(number: int, name: str) -> str:
    y = TOP + number * ROW + ROW // 2 + 4
    return f'  <text x="{LEFT - 8}" y="{y}" text-anchor="end">{escape(figures.LABELS.get(name, name))}</text>'


def kind_of(name: str) -> str:
    return "bar ours" if name.startswith(figures.OURS) else "bar"


# --- latencies ---


def latencies_of(runs: list[Record]) -> dict[float, float]:
    """Microseconds by share: the median over the rounds."""
    shares = [share for share, _value in runs[0]["latency_us"]]
    return {share: median(dict(map(tuple, run["latency_us"]))[share] for run in runs) for share in shares}


def ticks(low: float, high: float) -> Iterator[float]:
    """1, 2 and 5 times the powers of ten between two values."""
    for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        yield from (step * 10**power for step in (1, 2, 5) if low <= step * 10**power <= high)


def box(number: int, name: str, found: Mapping[float, float], place: Callable[[float], float]) -> Iterator[str]:
    """A server's distribution: a box of the middle half, its median, a line from 1 to 99 %, and a dot at 99.9 %."""
    y = TOP + number * ROW + ROW // 2
    (low, high), (first, last) = ((place(found[a]), place(found[b])) for a, b in (BOX, WHISKERS))
    middle = place(found[MIDDLE])
    yield (
        f'  <rect class="{kind_of(name)}" x="{low:.1f}" y="{y - BAR // 2}" width="{max(high - low, 2):.1f}" '
        f'height="{BAR}" rx="2"/>'
    )
    yield f'  <path class="spread" d="M{first:.1f} {y}H{last:.1f}M{middle:.1f} {y - BAR // 2}v{BAR}"/>'
    yield f'  <circle class="{kind_of(name)}" cx="{place(found[TAIL]):.1f}" cy="{y}" r="3"/>'
    figure = f"{found[MIDDLE]:,.0f} / {found[0.99]:,.0f} / {found[TAIL]:,.0f}"
    yield f'  <text x="{WIDTH - RIGHT + 12}" y="{y + 4}">{figure}</text>'


def latency_picture(run: Record) -> str | None:
    """The distributions of one configuration; None where the results have none."""
    results = {name: runs for name, runs in good(run["results"]).items() if "latency_us" in runs[0]}
    if not results:
        return None
    found = {name: latencies_of(runs) for name, runs in results.items()}
    low = min(values[WHISKERS[0]] for values in found.values()) * 0.9
    high = max(values[TAIL] for values in found.values()) * 1.1
    scale = (WIDTH - RIGHT - LEFT) / (math.log(high) - math.log(low))

    def place(value: float) -> float:
        return LEFT + (math.log(value) - math.log(low)) * scale

    bottom = TOP + len(found) * ROW
    elements: list[str] = []
    for tick in ticks(low, high):
        elements.append(f'  <path class="one" d="M{place(tick):.1f} {TOP - 6}V{bottom + 4}"/>')
        elements.append(
            f'  <text class="faint" x="{place(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>'
        )
    words = []
    for number, name in enumerate(sorted(found, key=lambda name: found[name][MIDDLE])):
        elements += [label(number, name), *box(number, name, found[name], place)]
        words.append(f"{name} {found[name][MIDDLE]:.0f}")
    subject = (
        f"{run['connections']:,} connections, {run['size']:,} bytes; µs, on a logarithmic scale: the middle half, "
        "its median, 1 to 99 %, 99.9 %"
    )
    return svg("Latency of an echoed message: median / 99 % / 99.9 %", subject, words, elements, bottom + AXIS)


# --- memory ---


def memory_picture(run: Record) -> str | None:
    """KiB an idle connection: the median over the rounds, and their spread."""
    found = {name: [float(one["per_connection_kib"]) for one in runs] for name, runs in good(run["results"]).items()}
    if not found:
        return None
    scale = (WIDTH - RIGHT - LEFT) / max(map(max, found.values()))
    elements, words = [], []
    for number, name in enumerate(sorted(found, key=lambda name: median(found[name]))):
        y = TOP + number * ROW + ROW // 2
        low, middle, high = min(found[name]), median(found[name]), max(found[name])
        width = max(middle * scale, 1)
        elements += [
            label(number, name),
            f'  <rect class="{kind_of(name)}" x="{LEFT}" y="{y - BAR // 2}" width="{width:.1f}" height="{BAR}" rx="2"/>',
            f'  <path class="spread" d="M{LEFT + low * scale:.1f} {y}H{LEFT + high * scale:.1f}"/>',
            f'  <text x="{LEFT + high * scale + 8:.1f}" y="{y + 4}">{middle:.2f}</text>',
        ]
        words.append(f"{name} {middle:.2f}")
    subject = f"KiB of the server's resident set for each of {run['connections']:,} connections"
    return svg("Memory of an idle connection", subject, words, elements, TOP + len(found) * ROW + figures.MARGIN)


# --- the page ---


def pictures(record: Record) -> Iterator[tuple[str, str, str]]:
    """The heading, file name and SVG of each plot."""
    for number, run in enumerate(record["runs"]):
        if run["mode"] == "memory":
            drawn = memory_picture(run)
            if drawn:
                yield "Memory", "memory.svg", drawn
            continue
        name = f"{run['connections']}-{run['size']}-{run['depth']}"
        heading = f"{run['connections']:,} connections, {run['size']:,} bytes, {run['depth']} under way on each"
        if set(run["ratio_to_c"]) - {figures.REFERENCE}:
            yield heading, f"ratio-{name}.svg", figures.picture(record, number)
        drawn = latency_picture(run)
        if drawn:
            yield heading, f"latency-{name}.svg", drawn


def write(folder: Path, record: Record) -> None:
    """Make the folder, with the page, the plots and the results."""
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    plots: list[str] = []
    last = ""
    for heading, name, drawn in pictures(record):
        (folder / name).write_text(drawn, encoding="utf-8")
        if heading != last:
            plots.append(f"<h2>{escape(heading)}</h2>")
        last = heading
        plots.append(f'<p><img src="{name}" alt="{escape(heading)}"></p>')
    page = PAGE.format(
        date=escape(record["date"]),
        machine=escape(record["machine"]),
        command=escape(record["command"]),
        seconds=record["seconds"],
        skipped=escape("; ".join(record["skipped"]) or "nothing"),
        plots="\n".join(plots),
    )
    (folder / "index.html").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    write(Path(sys.argv[2]), json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))

"""From results to Markdown: medians over rounds, with what they range over."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

from _measure import MIN_PAIRS, Config, Result

BASELINE = "uvloop"
DASH = "\N{EN DASH}"
LOUD = "\\*"
LOUD_NOTE = f"{LOUD} at least one round had too few quiet slices; there, all slices count."


@dataclass(frozen=True)
class Spread:
    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread | None:
        known = [value for value in values if math.isfinite(value)]
        return cls(median(known), min(known), max(known)) if known else None

    def text(self, digits: int) -> str:
        middle, low, high = (f"{v:,.{digits}f}" for v in (self.middle, self.low, self.high))
        return middle if low == high else f"{middle} ({low}{DASH}{high})"


def show(spread: Spread | None, digits: int = 2) -> str:
    return spread.text(digits) if spread else DASH


def is_loud(result: Result) -> bool:
    return bool(result["ratio_slices"] < MIN_PAIRS)


def ratio_to_c(result: Result) -> float:
    value = result["ratio_all"] if is_loud(result) else result["ratio"]
    return float("nan") if value is None else float(value)


def ratios_to_c(results: dict[str, list[Result]]) -> dict[str, dict[str, float | bool]]:
    """For --json, and for figures.py: the ratio of each server that was measured, as in the table."""
    ratios: dict[str, dict[str, float | bool]] = {}
    for name, runs in results.items():
        good = [run for run in runs if "error" not in run]
        if spread := Spread.of([ratio_to_c(run) for run in good]):
            loud = any(is_loud(run) for run in good)
            ratios[name] = {"middle": spread.middle, "low": spread.low, "high": spread.high, "loud": loud}
    return ratios


def cpu_us(result: Result) -> float:
    quiet = result["cpu_us_quiet"]
    return float(result["cpu_us"] if quiet is None or is_loud(result) else quiet)


def paired_ratios(runs: list[Result], baseline: list[Result]) -> list[float]:
    """Each round's ratio to C over the baseline's in the same round, where there are both."""
    return [
        ratio_to_c(run) / ratio_to_c(base)
        for run, base in zip(runs, baseline, strict=True)
        if "error" not in run and "error" not in base
    ]


def _echo_row(name: str, runs: list[Result], baselines: list[list[Result] | None]) -> str:
    good = [run for run in runs if "error" not in run]
    if not good:
        return f"| {name} | failed: {runs[0]['error']} |" + " |" * (7 + len(baselines))
    loud = LOUD if any(is_loud(run) for run in good) else ""
    label = name if len(good) == len(runs) else f"{name} ({len(good)} of {len(runs)} rounds)"
    cost = Spread.of([cpu_us(run) for run in good])
    user = [cpu_us(run) * run["user_share"] for run in good if run["user_share"] is not None]
    system = [cpu_us(run) * (1 - run["user_share"]) for run in good if run["user_share"] is not None]
    to_baselines = [Spread.of(paired_ratios(runs, baseline)) if baseline else None for baseline in baselines]
    quiet = sum(run["ratio_slices"] for run in good)
    turns = sum(run["slice_count"] // 2 for run in good)
    cells = (
        label,
        show(Spread.of([ratio_to_c(run) for run in good])) + loud,
        *map(show, to_baselines),
        show(cost),
        f"{median(user):.2f}" if user else DASH,
        f"{median(system):.2f}" if system else DASH,
        f"{median(run['requests_per_second'] for run in good):,.0f}",
        f"{median(run['p50_us'] for run in good):,.0f}",
        f"{median(run['p99_us'] for run in good):,.0f}",
        f"{quiet}/{turns}",
    )
    return f"| {' | '.join(cells)} |"


def echo_table(config: Config, mode: str, results: dict[str, list[Result]]) -> str:
    if mode == "churn":
        unit, plural = "connection", "connections"
        title = f"Churn: {config.connections} at a time, one message of {config.size} B each"
    elif mode == "udp":
        unit, plural = "datagram", "datagrams"
        title = f"UDP: {config.connections} clients, {config.size} B"
    else:
        unit, plural = "request", "requests"
        title = f"Echo: {config.connections} connections, {config.size} B, depth {config.depth}"
        title += f", beside {config.idle:,} idle ones" if config.idle else ""
    return _paired_table(title, results, (BASELINE,), unit, plural)


def http_table(title: str, results: dict[str, list[Result]], baselines: tuple[str, ...], unit: str = "request") -> str:
    """A table of servers that took turns with the C server, and their ratios to these of them."""
    return _paired_table(title, results, baselines, unit, f"{unit}s")


def _paired_table(
    title: str, results: dict[str, list[Result]], baselines: tuple[str, ...], unit: str, plural: str
) -> str:
    header = (
        "server",
        "ratio to C",
        *(f"ratio to {name}" for name in baselines),
        f"CPU µs/{unit}",
        "user",
        "system",
        f"{plural}/s",
        "p50 µs",
        "p99 µs",
        "quiet slices",
    )
    rows = [_echo_row(name, runs, [results.get(baseline) for baseline in baselines]) for name, runs in results.items()]
    lines = [f"### {title}", "", f"| {' | '.join(header)} |", "|---|" + "--:|" * (len(header) - 1), *rows]
    costs = [
        run["reference_cpu_us_quiet"]
        for runs in results.values()
        for run in runs
        if "error" not in run and run["reference_cpu_us_quiet"] is not None
    ]
    if costs:
        lines += ["", f"The C server beside them: {show(Spread.of(costs))} µs a {unit}."]
    if any(LOUD in row for row in rows):
        lines += ["", LOUD_NOTE]
    return "\n".join(lines)


def _memory_row(name: str, runs: list[Result]) -> str:
    good = [run for run in runs if "error" not in run]
    if not good:
        return f"| {name} | failed: {runs[0]['error']} | | |"
    cells = (
        name,
        show(Spread.of([run["per_connection_kib"] for run in good])),
        f"{median(run['before_kib'] for run in good) / 1024:,.1f}",
        f"{median(run['after_kib'] for run in good) / 1024:,.1f}",
    )
    return f"| {' | '.join(cells)} |"


def memory_table(connections: int, results: dict[str, list[Result]]) -> str:
    rows = [_memory_row(name, runs) for name, runs in results.items()]
    return "\n".join(
        [
            f"### Memory: {connections:,} idle connections",
            "",
            "| server | KiB a connection | RSS before, MiB | RSS with them, MiB |",
            "|---|--:|--:|--:|",
            *rows,
        ]
    )


TRANSFER_TITLES = {
    "up": "received by the server",
    "down": "sent by the server, from memory",
    "file": "sent by the server, from a file in the page cache",
}


def _transfer_row(name: str, runs: list[Result], baseline: list[Result] | None) -> str:
    good = [run for run in runs if "error" not in run]
    if not good:
        return f"| {name} | failed: {runs[0]['error']} |" + " |" * 4
    ratios: list[float] = []
    if baseline:
        pairs = zip(runs, baseline, strict=True)
        ratios = [a["cpu_per_gib"] / b["cpu_per_gib"] for a, b in pairs if "error" not in a and "error" not in b]
    user, system = (sum(run[key] for run in good) for key in ("user_seconds", "system_seconds"))
    cells = (
        name if len(good) == len(runs) else f"{name} ({len(good)} of {len(runs)} rounds)",
        show(Spread.of([run["mib_per_second"] for run in good]), 0),
        show(Spread.of([run["cpu_per_gib"] for run in good]), 3),
        show(Spread.of(ratios)),
        f"{user / (user + system):.0%}" if user + system else DASH,
    )
    return f"| {' | '.join(cells)} |"


def transfer_tables(mebibytes: int, results: dict[tuple[str, str], dict[str, list[Result]]]) -> str:
    lines: list[str] = []
    for (kind, direction), servers in results.items():
        header = ("server", "MiB/s", "CPU s/GiB", f"CPU ratio to {BASELINE}", "user")
        lines += [
            f"### Transfer: {mebibytes:,} MiB over {kind}, {TRANSFER_TITLES[direction]}",
            "",
            f"| {' | '.join(header)} |",
            "|---|" + "--:|" * 4,
            *[_transfer_row(name, runs, servers.get(BASELINE)) for name, runs in servers.items()],
            "",
        ]
    return "\n".join(lines)


def over_table(title: str, results: dict[str, list[Result]]) -> str:
    """A table of servers whose figures are compared with the baseline's of the same round."""
    header = ("server", "CPU µs/request", f"ratio to {BASELINE}", "user", "requests/s")
    baseline = results.get(BASELINE)
    rows = []
    for name, runs in results.items():
        good = [run for run in runs if "error" not in run]
        if not good:
            rows.append(f"| {name} | failed: {runs[0]['error']} |" + " |" * 3)
            continue
        ratios = [
            run["cpu_us"] / other["cpu_us"]
            for run, other in zip(runs, baseline or (), strict=False)
            if "error" not in run and "error" not in other
        ]
        used = sum(run["user_seconds"] + run["system_seconds"] for run in good)
        cells = (
            name if len(good) == len(runs) else f"{name} ({len(good)} of {len(runs)} rounds)",
            show(Spread.of([run["cpu_us"] for run in good])),
            show(Spread.of(ratios)),
            f"{sum(run['user_seconds'] for run in good) / used:.0%}" if used else DASH,
            f"{median(run['requests_per_second'] for run in good):,.0f}",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([f"### {title}", "", f"| {' | '.join(header)} |", "|---|" + "--:|" * 4, *rows])

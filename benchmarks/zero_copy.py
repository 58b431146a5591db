"""What a send with zero copy costs, as a ratio to one without: CPU time of the sender, and throughput.

    python benchmarks/zero_copy.py [TURNS]

On loopback, see c/zero_copy.c.  README.md beside this file says what it shows, and what it cannot.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

from _build import BuildError, build_zero_copy

SIZES = (4096, 16384, 65536, 262144, 1048576)
BYTES = 256 << 20
"""A turn."""
PATIENCE = 120.0


def main() -> None:
    turns = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    try:
        program = build_zero_copy()
    except BuildError as error:
        sys.exit(f"zero_copy.py: {error}")
    print("| bytes a send | CPU, ratio to a plain send | throughput, ratio | copied after all |")
    print("|--:|--:|--:|--:|")
    for size in SIZES:
        command = [str(program), str(size), str(BYTES), str(turns + 1)]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
        if result.returncode != 0:
            sys.exit(f"zero_copy.py: {result.stderr.strip()}")
        lines = [json.loads(line) for line in result.stdout.splitlines()][2:]  # the first pair warms up
        pairs = list(zip(lines[::2], lines[1::2], strict=True))
        cpu = [with_it["cpu_ns"] / without["cpu_ns"] for without, with_it in pairs]
        speed = [without["ns"] / with_it["ns"] for without, with_it in pairs]
        copied = statistics.mean(with_it["copied"] for _without, with_it in pairs)
        print(f"| {size:,} | {_summary(cpu)} | {_summary(speed)} | {copied:.0%} |", flush=True)


def _summary(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"  # noqa: RUF001  # a range


if __name__ == "__main__":
    main()

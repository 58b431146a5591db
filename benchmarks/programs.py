"""What existing Trio programs cost with Trio's own code, and with gain_trio's pieces in C.

    python benchmarks/programs.py [--programs hypercorn,trio-websocket,httpx] [--rounds 5] [--seconds 4]

Each program runs as it is, in a process pinned to one CPU, with its peer on the other, and takes turns of 100 ms.  A
server takes turns with the C server, as in run.py.  The clients of the variants take turns with each other.  Prints
microseconds of CPU time a request, and the ratio of Trio's own code to the pieces in C: the median of the rounds, with the
smallest and the largest.  README.md beside this file explains turns, and which are quiet.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from _build import Programs, build
from _http import ANSWER_BYTES, PLAINTEXT, Request, fields
from _measure import Config, LoadError, Result, Settings, measure, say, wait_for_quiet
from _servers import SERVERS, Spec, running
from _table import DASH, LOUD, LOUD_NOTE, Spread, cpu_us, is_loud, ratio_to_c, show
from _turns import Turns, connected, take_turns

SERVER_CPU, LOAD_CPU = 0, 1
CONNECTIONS = 64
MESSAGE_BYTES = 64
TURN_SECONDS = 0.1
MIN_QUIET = 0.4
RETRIES = 2

VARIANTS = {"trio": (), "accelerated": ("accelerated",), "on the ring": ("accelerated-ring",)}
"""What the rows are called, and the argument that the programs in servers/ take for it."""
BASELINE = "trio"

Round = dict[str, Turns]
"""What was measured in one round, by variant."""


def settings_of(programs: Programs, seconds: float) -> Settings:
    return Settings(
        programs=programs,
        rounds=1,
        seconds=seconds,
        retries=RETRIES,
        min_quiet=MIN_QUIET,
        server_cpu=SERVER_CPU,
        load_cpu=LOAD_CPU,
        churn=False,
        udp=False,
        keep_slices=False,
    )


def http_settings(programs: Programs, seconds: float) -> Settings:
    request = Request.write("programs", fields(), body=PLAINTEXT)
    return dataclasses.replace(settings_of(programs, seconds), request=request.path, check=request.check)


def measure_servers(command: tuple[str, ...], config: Config, settings: Settings) -> Round:
    """Each variant beside the C server.  Their ratios to it are compared, as run.py compares servers with uvloop."""
    results: dict[str, Result] = {}
    for name, variant in VARIANTS.items():
        file, *arguments = command
        label = f"{file}-{'-'.join(variant) or BASELINE}"
        spec = Spec(label, (sys.executable, str(SERVERS / file), "{port}", *arguments, *variant))
        results[name] = measure(spec, config, settings)
        if "error" in results[name]:
            raise LoadError(f"{label}: {results[name]['error']}")
    baseline = results[BASELINE]
    return {
        name: Turns(
            cpu_us(result),
            ratio_to_c(baseline) / ratio_to_c(result),
            0 if is_loud(result) else result["ratio_slices"],
            result["slice_count"] // 2,
        )
        for name, result in results.items()
    }


def measure_clients(file: str, seconds: float) -> Round:
    """A client of each variant, all connected to one HTTP server."""
    spec = Spec("peer", (sys.executable, str(SERVERS / "gain_trio_http.py"), "{port}"))
    with running(spec, LOAD_CPU) as server, ExitStack() as stack:
        clients = {
            name: stack.enter_context(connected(file, server, SERVER_CPU, *variant))
            for name, variant in VARIANTS.items()
        }
        wait_for_quiet({SERVER_CPU, LOAD_CPU})
        return take_turns(clients, round(seconds / TURN_SECONDS), TURN_SECONDS)


def row(name: str, rounds: list[Round]) -> str:
    turns = [one[name] for one in rounds]
    loud = LOUD if any(one.loud for one in turns) else ""
    ratio = DASH if name == BASELINE else show(Spread.of([one.ratio for one in turns]))
    quiet = f"{sum(one.quiet for one in turns)}/{sum(one.count for one in turns)}"
    cells = (name, show(Spread.of([one.cpu_us for one in turns]), 1), ratio + loud, quiet)
    return f"| {' | '.join(cells)} |"


def table(program: str, rounds: list[Round]) -> str:
    rows = [row(name, rounds) for name in VARIANTS]
    head = ["| variant | CPU µs/request | times cheaper than trio | quiet turns |", "|---|--:|--:|--:|"]
    note = ["", LOUD_NOTE] if any(LOUD in line for line in rows) else []
    return "\n".join([f"### {program}", "", *head, *rows, *note])


def summary(found: Round) -> str:
    return ", ".join(f"{name} {turns.cpu_us:.1f} µs ({turns.ratio:.2f})" for name, turns in found.items())


def known_programs(programs: Programs, seconds: float) -> dict[str, Callable[[], Round]]:
    http = http_settings(programs, seconds)
    echo = dataclasses.replace(settings_of(programs, seconds), websocket=True)
    return {
        "hypercorn": partial(
            measure_servers, ("hypercorn_asgi.py", "asgi_app:app"), Config(CONNECTIONS, ANSWER_BYTES, 1), http
        ),
        "trio-websocket": partial(measure_servers, ("websocket_trio.py",), Config(CONNECTIONS, MESSAGE_BYTES, 1), echo),
        "httpx": partial(measure_clients, "httpx_trio.py", seconds),
    }


def main() -> None:
    names = "hypercorn,trio-websocket,httpx"
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--programs", default=names, metavar="NAME,...", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="1 to 100 (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="of a variant's turns in a round, 0.5 to 60 (default: %(default)s)"
    )
    arguments = parser.parse_args()
    chosen = arguments.programs.split(",")
    if unknown := set(chosen) - set(names.split(",")):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {names}")
    if not 1 <= arguments.rounds <= 100 or not 0.5 <= arguments.seconds <= 60:
        parser.error("--rounds must be 1 to 100, --seconds 0.5 to 60")
    programs = known_programs(build(), arguments.seconds)
    os.sched_setaffinity(0, {LOAD_CPU})
    for program in chosen:
        rounds: list[Round] = []
        for number in range(arguments.rounds):
            rounds.append(programs[program]())
            say(f"  round {number + 1}/{arguments.rounds}, {program}: {summary(rounds[-1])}")
        print(table(program, rounds), end="\n\n", flush=True)


if __name__ == "__main__":
    main()

"""What existing Trio programs cost with Trio's own code, and with gain_trio's pieces in C.

    python benchmarks/programs.py [--programs hypercorn,trio-websocket,httpx] [--rounds 5] [--seconds 2]

Each program runs as it is, in a process pinned to one CPU, with its peer on the other; the variants of a program take
turns, round by round.  Prints microseconds of CPU time a request, and the ratio of Trio's own code to the pieces in C in the
same round: the median of the rounds, with the smallest and the largest.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial

from _build import build
from _http import ANSWER_BYTES, PLAINTEXT, Request, fields
from _measure import LoadError, say, wait_for_quiet
from _servers import SERVERS, Server, Spec, pinned, running
from _table import DASH, Spread, show

SERVER_CPU, LOAD_CPU = 0, 1
WARMUP_SECONDS = 0.5
PATIENCE_SECONDS = 30.0
CONNECTIONS = 64

VARIANTS = {"trio": (), "accelerated": ("accelerated",), "on the ring": ("accelerated-ring",)}
"""What the rows are called, and the argument that the programs in servers/ take for it."""


def measure_load(server: Server, seconds: float, *arguments: str) -> float:
    """Microseconds of the server's CPU time a message, or a request, of the generator's."""
    command = [
        *(str(build().load), "-p", str(server.port), "--pid", str(server.pid)),
        *("-c", str(CONNECTIONS), "-d", str(seconds), "-w", str(WARMUP_SECONDS), *arguments),
    ]
    with pinned(LOAD_CPU):
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=5 * seconds + PATIENCE_SECONDS, check=False
        )
    if result.returncode != 0:
        raise LoadError(result.stderr.strip())
    return float(json.loads(result.stdout)["cpu_us"])


def measure_http(server: Server, seconds: float) -> float:
    request = Request.write("programs", fields(), body=PLAINTEXT)
    request.check(server)
    return measure_load(server, seconds, "--request", str(request.path), "-s", str(ANSWER_BYTES))


def measure_websockets(server: Server, seconds: float) -> float:
    return measure_load(server, seconds, "--websocket", "-s", "64")


def measure_client(variant: tuple[str, ...], seconds: float) -> float:
    """Microseconds of an httpx client's CPU time a request to an HTTP server on the other CPU."""
    spec = Spec("peer", (sys.executable, str(SERVERS / "gain_trio_http.py"), "{port}"))
    with running(spec, LOAD_CPU) as peer:
        command = [sys.executable, str(SERVERS / "httpx_trio.py"), str(peer.port), str(seconds), *variant]
        with pinned(SERVER_CPU):
            result = subprocess.run(
                command, capture_output=True, text=True, timeout=seconds + PATIENCE_SECONDS, check=False
            )
    if result.returncode != 0:
        raise LoadError(f"httpx: {result.stderr.strip()}")
    answered = json.loads(result.stdout)
    return float(answered["cpu_seconds"] * 1e6 / answered["requests"])


def measure_server(
    command: tuple[str, ...], measure: Callable[[Server, float], float], variant: tuple[str, ...], seconds: float
) -> float:
    file, *arguments = command
    name = f"{file}-{'-'.join(variant) or 'trio'}"
    spec = Spec(name, (sys.executable, str(SERVERS / file), "{port}", *arguments, *variant))
    with running(spec, SERVER_CPU) as server:
        return measure(server, seconds)


def row(name: str, costs: list[float], baseline: list[float]) -> str:
    ratios = [before / after for before, after in zip(baseline, costs, strict=True)]
    cells = (name, show(Spread.of(costs), 1), DASH if costs is baseline else show(Spread.of(ratios)))
    return f"| {' | '.join(cells)} |"


def main() -> None:
    programs: dict[str, Callable[[tuple[str, ...], float], float]] = {
        "hypercorn": partial(measure_server, ("hypercorn_asgi.py", "asgi_app:app"), measure_http),
        "trio-websocket": partial(measure_server, ("websocket_trio.py",), measure_websockets),
        "httpx": measure_client,
    }
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--programs", default=",".join(programs), metavar="NAME,...", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (default: %(default)s)")
    arguments = parser.parse_args()
    chosen = arguments.programs.split(",")
    if unknown := set(chosen) - set(programs):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(programs)}")
    build()
    os.sched_setaffinity(0, {LOAD_CPU})
    for program in chosen:
        costs: dict[str, list[float]] = {name: [] for name in VARIANTS}
        for number in range(arguments.rounds):
            for name, variant in VARIANTS.items():
                wait_for_quiet({SERVER_CPU, LOAD_CPU})
                costs[name].append(programs[program](variant, arguments.seconds))
                say(f"  round {number + 1}/{arguments.rounds}, {program}, {name}: {costs[name][-1]:.1f} µs")
        rows = [row(name, of_variant, costs["trio"]) for name, of_variant in costs.items()]
        head = [f"### {program}", "", "| variant | CPU µs/request | times cheaper than trio |", "|---|--:|--:|"]
        print("\n".join([*head, *rows]), end="\n\n", flush=True)


if __name__ == "__main__":
    main()

"""HTTP plaintext servers under wrk: requests per second, and the server's CPU time for one.

The generator is not this project's here, and has no reference to take turns with.  So the servers are visited round by
round, and the figures of two servers in the same round are compared.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from _build import HERE
from _measure import LoadError, Result, Settings, attempt, run_rounds, say, wait_for_quiet
from _servers import SERVERS, Server, Spec, pinned, running
from _table import BASELINE, DASH, Spread, show

SCRIPT = HERE / "wrk" / "pipeline.lua"
DEFAULT_CONFIGS = "64:1,64:16"
WARMUP_SECONDS = 0.5
PATIENCE_SECONDS = 30.0
ACCEPT = "text/plain,text/html;q=0.9,application/xhtml+xml;q=0.9,application/xml;q=0.8,*/*;q=0.7"
REQUEST = f"GET /plaintext HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {ACCEPT}\r\nConnection: keep-alive\r\n\r\n".encode()
PLAINTEXT = b"Hello, World!"

# name, file in servers/ or beside, its arguments, what must be importable
HTTP_SERVERS = (
    ("gain_trio", "gain_trio_http.py", ("{port}",), ("gain_trio",)),
    ("gain_trio-callbacks", "../../examples/callback_http.py", ("tcp://127.0.0.1:{port}",), ("gain_trio",)),
    ("uvloop", "asyncio_http.py", ("{port}", "uvloop"), ("uvloop", "gain_trio")),
    ("asyncio", "asyncio_http.py", ("{port}", "asyncio"), ("gain_trio",)),
    ("gain_trio-asgi", "gain_trio_asgi.py", ("{port}",), ("gain_trio",)),
    ("uvicorn-asgi", "uvicorn_asgi.py", ("{port}",), ("uvicorn", "httptools", "uvloop")),
    ("hypercorn-asgi", "hypercorn_trio.py", ("{port}",), ("hypercorn", "trio")),
)


@dataclass(frozen=True)
class HttpConfig:
    connections: int
    depth: int

    @classmethod
    def parse(cls, text: str) -> HttpConfig:
        parts = text.split(":")
        if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise ValueError(f"with --http a configuration is connections:depth, not {text!r}")
        return cls(*map(int, parts))


def known_servers(python: str) -> dict[str, Spec]:
    return {
        name: Spec(name, (python, str(SERVERS / file), *arguments), needs)
        for name, file, arguments, needs in HTTP_SERVERS
    }


def check_answers(server: Server, depth: int) -> None:
    """A server that does not answer each request of a batch is not measured."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as client:
        client.sendall(REQUEST * depth)
        received = b""
        while received.count(PLAINTEXT) < depth:
            data = client.recv(65536)
            if not data:
                raise LoadError(f"{server.spec.name} answered {received.count(PLAINTEXT)} of {depth} requests")
            received += data
    if received.count(b"HTTP/1.1 200 ") != depth or not received.endswith(PLAINTEXT):
        raise LoadError(f"{server.spec.name} answered {depth} requests with {received[:200]!r}")


def cpu_seconds(pid: int) -> float:
    """What the process has used, all threads, as the scheduler accounts for it."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def run_wrk(server: Server, config: HttpConfig, load_cpu: int, seconds: float) -> float:
    """Requests per second."""
    command = [
        *("wrk", "-t", "1", "-c", str(config.connections), "-d", f"{max(1, round(seconds))}s"),
        *("-H", f"Accept: {ACCEPT}", "-H", "Connection: keep-alive"),
        *("-s", str(SCRIPT), f"http://127.0.0.1:{server.port}/plaintext", "--", str(config.depth)),
    ]
    with pinned(load_cpu):
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds + PATIENCE_SECONDS, check=False
        )
    if result.returncode != 0 or "Non-2xx" in result.stdout or "Socket errors" in result.stdout:
        raise LoadError(f"wrk: {result.stdout.strip()} {result.stderr.strip()}")
    rate = re.search(r"^Requests/sec: +([0-9.]+)$", result.stdout, re.MULTILINE)
    if rate is None:
        raise LoadError(f"wrk said nothing of requests: {result.stdout.strip()}")
    return float(rate[1])


def measure_once(spec: Spec, config: HttpConfig, settings: Settings) -> Result:
    wait_for_quiet(settings.cpus)
    with running(spec, settings.server_cpu) as server:
        check_answers(server, config.depth)
        run_wrk(server, config, settings.load_cpu, WARMUP_SECONDS)
        before = cpu_seconds(server.pid)
        rate = run_wrk(server, config, settings.load_cpu, settings.seconds)
        used = cpu_seconds(server.pid) - before
    return {"requests_per_second": rate, "cpu_us": used * 1e6 / (rate * max(1, round(settings.seconds)))}


def summary(result: Result) -> str:
    if "error" in result:
        return f"failed: {result['error']}"
    return f"{result['requests_per_second']:,.0f} requests/s, {result['cpu_us']:.2f} µs"


def _ratios(runs: list[Result], baseline: list[Result], key: str) -> list[float]:
    return [a[key] / b[key] for a, b in zip(runs, baseline, strict=True) if "error" not in a and "error" not in b]


def _row(name: str, runs: list[Result], baseline: list[Result] | None) -> str:
    good = [run for run in runs if "error" not in run]
    if not good:
        return f"| {name} | failed: {runs[0]['error']} |" + " |" * 3
    ratios = [
        show(Spread.of(_ratios(runs, baseline, key))) if baseline else DASH for key in ("requests_per_second", "cpu_us")
    ]
    cells = (
        name if len(good) == len(runs) else f"{name} ({len(good)} of {len(runs)} rounds)",
        f"{median(run['requests_per_second'] for run in good):,.0f}",
        ratios[0],
        show(Spread.of([run["cpu_us"] for run in good])),
        ratios[1],
    )
    return f"| {' | '.join(cells)} |"


def table(config: HttpConfig, results: dict[str, list[Result]]) -> str:
    rows = [_row(name, runs, results.get(BASELINE)) for name, runs in results.items()]
    return "\n".join(
        [
            f"### HTTP plaintext: {config.connections} connections, {config.depth} requests at a time",
            "",
            f"| server | requests/s | ratio to {BASELINE} | CPU µs/request | ratio to {BASELINE} |",
            "|---|--:|--:|--:|--:|",
            *rows,
        ]
    )


def run_http(specs: list[Spec], config: HttpConfig, settings: Settings) -> Result:
    if shutil.which("wrk") is None:
        raise ValueError("--http needs wrk (apt install wrk)")
    say(f"http, {config.connections}:{config.depth}")
    results = run_rounds(
        specs,
        settings.rounds,
        lambda spec: attempt(spec.name, lambda: measure_once(spec, config, settings)),
        summary,
    )
    print(table(config, results), end="\n\n", flush=True)
    return {"mode": "http", "connections": config.connections, "depth": config.depth, "results": results}

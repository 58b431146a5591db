"""Run the generator against one server at a time, round by round.

Every round visits every server once, so that a change of the machine's mood in the middle of a
run spreads over all of them instead of falling on one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _build import Programs
from _servers import START_SECONDS, Server, ServerError, Spec, end_group, pinned, running

MIN_PAIRS = 3  # fewer quiet slices than this make no median
BUSY_LIMIT = 0.08  # of the two CPUs, before a measurement is begun
QUIET_WAIT_SECONDS = 10.0
WARMUP_SECONDS = 0.5
IDLE_SECONDS = 120
SETTLE_SECONDS = 0.3
STOP_PATIENCE = 20.0

Result = dict[str, Any]


class LoadError(Exception):
    """The generator ended without a result."""


@dataclass(frozen=True)
class Config:
    connections: int
    size: int
    depth: int
    idle: int = 0
    """Connections to each of the two servers, beside those, that only wait."""

    @classmethod
    def parse(cls, text: str) -> Config:
        parts = text.split(":")
        if len(parts) not in {3, 4} or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise ValueError(f"a configuration is connections:size:depth or connections:size:depth:idle, not {text!r}")
        return cls(*map(int, parts))


@dataclass(frozen=True)
class Settings:
    programs: Programs
    rounds: int
    seconds: float
    retries: int
    min_quiet: float
    server_cpu: int
    load_cpu: int
    churn: bool
    udp: bool
    keep_slices: bool
    request: Path | None = None  # a file with an HTTP request, which is sent instead of messages
    answer_bytes: int | None = None  # of the body that the HTTP reference sends; None for its usual one
    websocket: bool = False
    check: Callable[[Server], None] | None = None  # a look at a server's answers before it is measured

    @property
    def cpus(self) -> set[int]:
        return {self.server_cpu, self.load_cpu}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Progress:
    """What is measured now, and how long the rest will take: a line on a terminal, which the next line replaces."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._began = time.monotonic()
        self._is_shown = sys.stderr.isatty()

    def left(self) -> str:
        """An estimate from the measurements that are over."""
        if not self._done:
            return ""
        seconds = (time.monotonic() - self._began) / self._done * (self._total - self._done)
        return f", about {seconds / 60:.0f} minutes left" if seconds >= 90 else f", about {seconds:.0f} s left"

    def begin(self, name: str) -> None:
        """Show what is measured now."""
        if self._is_shown:
            sys.stderr.write(f"\r\x1b[K  {self._done + 1} of {self._total}: {name}{self.left()}")
            sys.stderr.flush()

    def end(self, line: str) -> None:
        """Replace it by its result."""
        self._done += 1
        say(f"\r\x1b[K{line}" if self._is_shown else line)


def _busy_share(cpus: set[int], seconds: float = 0.2) -> float:
    def read() -> tuple[int, int]:
        total = idle = 0
        for line in Path("/proc/stat").read_text().splitlines():
            name, *fields = line.split()
            if name.startswith("cpu") and name[3:].isdecimal() and int(name[3:]) in cpus:
                ticks = [int(field) for field in fields[:8]]
                total += sum(ticks)
                idle += ticks[3] + ticks[4]
        return total, idle

    total_before, idle_before = read()
    time.sleep(seconds)
    total, idle = read()
    return 1 - (idle - idle_before) / max(1, total - total_before)


def wait_for_quiet(cpus: set[int]) -> None:
    """Let others finish what they do on these CPUs, for a while; then measure all the same."""
    deadline = time.monotonic() + QUIET_WAIT_SECONDS
    while time.monotonic() < deadline:
        if _busy_share(cpus) < BUSY_LIMIT:
            return


def _start_load(settings: Settings, arguments: list[str], program: Path | None = None) -> subprocess.Popen[str]:
    with pinned(settings.load_cpu):
        return subprocess.Popen(
            [str(program or settings.programs.load), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


def run_load(settings: Settings, arguments: list[str], patience: float, program: Path | None = None) -> Result:
    """What a generator (the one of echoes, or another program) has to say."""
    process = _start_load(settings, arguments, program)
    try:
        output, errors = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        raise LoadError(f"the generator was not done after {patience:.0f} s") from None
    finally:
        end_group(process)
    if process.returncode != 0:
        raise LoadError(errors.strip() or f"the generator ended with status {process.returncode}")
    result: Result = json.loads(output)
    return result


def _reference(settings: Settings, lifetime: float) -> Spec:
    program = settings.programs.datagram_reference if settings.udp else settings.programs.reference
    arguments = ["{port}", str(int(lifetime))]
    if settings.request:
        program = settings.programs.http_reference
        arguments += [] if settings.answer_bytes is None else [str(settings.answer_bytes)]
    return Spec("reference", (str(program), *arguments), udp=settings.udp)


@contextmanager
def _idle_connections(settings: Settings, port: list[str], count: int) -> Iterator[None]:
    """Inside the block, ``count`` connections are open and wait; the generator itself ends them after IDLE_SECONDS."""
    process = _start_load(settings, [*port, "-d", str(IDLE_SECONDS), "--idle", str(count)])
    try:
        if not process.stdout or not process.stdout.readline():
            raise LoadError(process.communicate()[1].strip())
        time.sleep(SETTLE_SECONDS)
        yield
        _, errors = process.communicate(timeout=STOP_PATIENCE)
        if process.returncode != 0:
            raise LoadError(errors.strip())
    except subprocess.TimeoutExpired:
        raise LoadError("the generator did not let go of its connections") from None
    finally:
        end_group(process)


def measure_once(spec: Spec, config: Config, settings: Settings) -> Result:
    """One measurement: the server and the reference beside each other, taking turns."""
    patience = 5 * settings.seconds + 30
    lifetime = patience + START_SECONDS + 30  # it ends by itself should we be killed
    with (
        running(_reference(settings, lifetime), settings.server_cpu) as reference,
        running(spec, settings.server_cpu) as server,
    ):
        if settings.check:
            settings.check(server)
        arguments = [
            *("-p", str(server.port), "--pid", str(server.pid)),
            *("--ref", str(reference.port), "--refpid", str(reference.pid)),
            *("-c", str(config.connections), "-s", str(config.size), "-P", str(config.depth)),
            *("-d", str(settings.seconds), "-w", str(WARMUP_SECONDS)),
            *(["--churn"] if settings.churn else []),
            *(["--udp"] if settings.udp else []),
            *(["--request", str(settings.request)] if settings.request else []),
            *(["--websocket"] if settings.websocket else []),
            *(["--slices"] if settings.keep_slices else []),
        ]
        with ExitStack() as stack:
            for port in (server.port, reference.port) if config.idle else ():
                stack.enter_context(_idle_connections(settings, ["-p", str(port)], config.idle))
            return run_load(settings, arguments, patience)


def measure_memory_once(spec: Spec, connections: int, settings: Settings) -> Result:
    """Measure the RSS that idle connections add, each with a handler parked in a receive."""
    with running(spec, settings.server_cpu) as server:
        port = ["-p", str(server.port), *(["--request", str(settings.request)] if settings.request else [])]
        # One connection first: what the server loads for its first is not the price of any.
        run_load(settings, [*port, "-d", str(IDLE_SECONDS), "--idle", "1"], patience=IDLE_SECONDS)
        time.sleep(SETTLE_SECONDS)
        before = server.resident_kib()
        with _idle_connections(settings, port, connections):
            after = server.resident_kib()
    return {
        "connections": connections,
        "before_kib": before,
        "after_kib": after,
        "per_connection_kib": (after - before) / connections,
    }


def attempt(name: str, once: Callable[[], Result]) -> Result:
    try:
        return once()
    except (ServerError, LoadError) as error:
        say(f"  {name}: {error}")
        return {"error": str(error)}


def _quiet_enough(result: Result, settings: Settings) -> bool:
    turns = result["slice_count"] / 2
    return bool(result["ratio_slices"] >= max(MIN_PAIRS, settings.min_quiet * turns))


def measure(spec: Spec, config: Config, settings: Settings) -> Result:
    """Measure until a run was quiet enough; the quietest one counts if none was.

    Noise is a reason to measure again.  An error is not: it is the result.
    """
    best: Result = {"error": "never run"}
    for number in range(settings.retries + 1):
        wait_for_quiet(settings.cpus)
        result = attempt(spec.name, lambda: measure_once(spec, config, settings))
        result["attempt"] = number
        if "error" in best or result.get("ratio_slices", -1) > best["ratio_slices"]:
            best = result
        if "error" in result or _quiet_enough(result, settings):
            break
    return best


def run_rounds(
    specs: list[Spec],
    rounds: int,
    measure_one: Callable[[Spec], Result],
    summarize: Callable[[Result], str] | None = None,
) -> dict[str, list[Result]]:
    results: dict[str, list[Result]] = {spec.name: [] for spec in specs}
    progress = Progress(rounds * len(specs))
    for number in range(rounds):
        for spec in specs:
            progress.begin(spec.name)
            result = measure_one(spec)
            results[spec.name].append(result)
            progress.end(f"  round {number + 1}/{rounds}, {spec.name}: {(summarize or summary)(result)}")
    return results


def summary(result: Result) -> str:
    if "error" in result:
        return f"failed: {result['error']}"
    if "per_connection_kib" in result:
        return f"{result['per_connection_kib']:.2f} KiB a connection"
    ratio = result["ratio"] if result["ratio"] is not None else float("nan")
    return (
        f"{result['cpu_us']:.2f} µs, ratio {ratio:.3f} from {result['ratio_slices']} of "
        f"{result['slice_count'] // 2} turns"
    )

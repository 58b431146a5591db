"""Client processes that take turns: each sends requests for a slice of time, one after the other, on one CPU.

All of them are alive all the time, connected to a server on the other CPU.  A slice of a client is compared with the mean of
the baseline's slices right before and after it, as ``run.py`` compares servers.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from _measure import MIN_PAIRS, LoadError
from _servers import SERVERS, Server, end_group, pinned, run_delay

MOST_DELAY = 0.03  # of a slice, which is quiet when the client and the server waited for less
PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Slice:
    """One turn of one client."""

    cpu_us: float
    """The CPU time that a request costs the client's process."""
    quiet: bool


@dataclass(frozen=True)
class Turns:
    """What a client took its turns with."""

    cpu_us: float
    ratio: float
    """How many times as much the baseline costs: the median over the slices; 1 for the baseline."""
    quiet: int
    count: int

    @property
    def loud(self) -> bool:
        """Whether too few slices were quiet, so that all of them count."""
        return self.quiet < MIN_PAIRS


class Client:
    """A client process, which waits for its turn."""

    def __init__(self, process: subprocess.Popen[str], server: Server) -> None:
        self._process = process
        self._server = server

    def take_turn(self, seconds: float) -> Slice:
        """Have the client send requests for so long.

        Raises:
          LoadError: it has ended, or does not answer.
        """
        stdin, stdout, errors = self._process.stdin, self._process.stdout, self._process.stderr
        assert stdin is not None
        assert stdout is not None
        assert errors is not None
        before = self._delay()
        try:
            stdin.write(f"{seconds}\n")
            stdin.flush()
        except BrokenPipeError:
            raise LoadError(errors.read().strip()) from None
        # The client writes one line a turn, so nothing is left in the buffer of the text stream when this waits.
        if not select.select([stdout], [], [], seconds + PATIENCE_SECONDS)[0]:
            raise LoadError(f"a client was not done after {seconds + PATIENCE_SECONDS:.0f} s")
        line = stdout.readline()
        if not line:
            raise LoadError(errors.read().strip())
        answered: dict[str, Any] = json.loads(line)
        cost = answered["cpu_seconds"] * 1e6 / max(1, answered["requests"])
        return Slice(cost, self._delay() - before < MOST_DELAY * seconds)

    def _delay(self) -> float:
        return run_delay(self._process.pid) + run_delay(self._server.pid)


@contextmanager
def connected(file: str, server: Server, cpu: int, *arguments: str) -> Iterator[Client]:
    """Inside the block, the program of ``servers/`` is a client of the server."""
    with pinned(cpu):
        process = subprocess.Popen(
            [sys.executable, str(SERVERS / file), str(server.port), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    try:
        yield Client(process, server)
    finally:
        end_group(process)


def _cost(slices: list[Slice]) -> float:
    quiet = [one.cpu_us for one in slices if one.quiet]
    return median(quiet if len(quiet) >= MIN_PAIRS else [one.cpu_us for one in slices])


def _compare(pairs: list[tuple[Slice, Slice]], slices: list[Slice]) -> Turns:
    """Compare each slice with the two of the baseline around it."""
    ratios = [
        ((before.cpu_us + after.cpu_us) / 2 / one.cpu_us, before.quiet and one.quiet and after.quiet)
        for (before, after), one in zip(pairs, slices, strict=True)
    ]
    quiet = [ratio for ratio, is_quiet in ratios if is_quiet]
    chosen = quiet if len(quiet) >= MIN_PAIRS else [ratio for ratio, _ in ratios]
    return Turns(_cost(slices), median(chosen), len(quiet), len(ratios))


def take_turns(clients: dict[str, Client], turns: int, seconds: float) -> dict[str, Turns]:
    """Give each client this number of turns.  The first client is the baseline, between any two of the others."""
    (baseline, first), *others = clients.items()
    for client in clients.values():  # what a process does only in its first turn does not count
        client.take_turn(seconds)
    slices: dict[str, list[Slice]] = {name: [] for name, _ in others}
    around = [first.take_turn(seconds)]
    for _ in range(turns):
        for name, client in others:
            slices[name].append(client.take_turn(seconds))
            around.append(first.take_turn(seconds))
    found = {baseline: Turns(_cost(around), 1.0, sum(one.quiet for one in around), len(around))}
    pairs = list(pairwise(around))
    for number, (name, _) in enumerate(others):
        found[name] = _compare(pairs[number :: len(others)], slices[name])
    return found

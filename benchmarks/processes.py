"""Connections per second of two worker processes against one, and what a connection costs them.

    python benchmarks/processes.py [ROUNDS]

The machine may have no more than two CPUs, and the client needs one of them, too.  So a connection has to
cost a server much more than the client that makes it; else the benchmark would measure the client's CPU.  The handler
here uses MILLISECONDS of CPU time for each, as one does that computes something.  One process and two are measured by turns.
Each pair of turns gives a ratio, and the table has the median:

    wall        connections a second of two processes, as a multiple of those of one
    per CPU     the same for each second of CPU time that the workers had, times two: the ratio on CPUs of
                their own, whatever other processes ran meanwhile

Beside them stands how much CPU the workers got: where that is not 1 and 2, "wall" says what the machine had to give, and not
what the server can do.
"""

from __future__ import annotations

import functools
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import get_args

import trio

import gain_trio
from gain_trio._server._server_config import Architecture

MILLISECONDS = 4.0
"""CPU time of the handler for each connection."""
SECONDS = 1.5
"""The length of a turn."""
CLIENTS = 8
"""Connections at a time."""
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)


async def burn(connection: gain_trio.Connection) -> None:
    await connection.receive()
    end = time.thread_time() + MILLISECONDS / 1000
    while time.thread_time() < end:
        pass
    await connection.send(b"x")


def serve(processes: int, architecture: Architecture) -> None:
    """In a process of its own, until it is killed."""

    async def main() -> None:
        config = gain_trio.ServerConfig(
            processes=processes,
            architecture=architecture,
            balancer="least_connections",
        )
        async with trio.open_nursery() as nursery:
            start = functools.partial(gain_trio.serve, burn, "tcp://127.0.0.1:0", config=config)
            server = await nursery.start(start)
            print(server.addresses[0][1], flush=True)

    gain_trio.run(main)


class Server:
    """One of the servers that are compared."""

    def __init__(self, processes: int, architecture: Architecture) -> None:
        command = [sys.executable, __file__, "serve", str(processes), architecture]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        # A process is the child of the thread that has started it.
        tasks = Path(f"/proc/{self._process.pid}/task").iterdir()
        self._workers = [child for task in tasks for child in (task / "children").read_text().split()]

    def cpu_time(self) -> float:
        """Seconds that the workers have had."""
        return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in self._workers) / 1e9

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def make_connections(port: int, until: float, counts: list[int]) -> None:
    count = 0
    while time.monotonic() < until:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"?")
            client.recv(1)
        count += 1
    counts.append(count)


def turn(server: Server) -> tuple[float, float]:
    """Connections per second, and CPU seconds of the workers a second."""
    counts: list[int] = []
    cpu, start = server.cpu_time(), time.monotonic()
    clients = [
        threading.Thread(target=make_connections, args=(server.port, start + SECONDS, counts)) for _ in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    took = time.monotonic() - start
    return sum(counts) / took, (server.cpu_time() - cpu) / took


def compare(architecture: Architecture, rounds: int) -> None:
    servers = {processes: Server(processes, architecture) for processes in (1, 2)}
    try:
        results: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
        own = time.process_time()
        begun = time.monotonic()
        for _ in range(rounds):
            for processes, server in servers.items():
                results[processes].append(turn(server))
        share = (time.process_time() - own) / (time.monotonic() - begun)
    finally:
        for server in servers.values():
            server.stop()
    wall = statistics.median(two[0] / one[0] for one, two in zip(results[1], results[2], strict=True))
    efficiency = statistics.median(
        (two[0] / two[1]) / (one[0] / one[1]) for one, two in zip(results[1], results[2], strict=True)
    )
    rates = {n: statistics.median(rate for rate, _cpu in found) for n, found in results.items()}
    cpus = {n: statistics.median(cpu for _rate, cpu in found) for n, found in results.items()}
    print(
        f"{architecture:16} {rates[1]:8.0f} {rates[2]:8.0f} {wall:6.2f} x   per CPU {2 * efficiency:5.2f} x   "
        f"workers used {cpus[1]:.2f} and {cpus[2]:.2f} CPUs, the client {share:.2f}"
    )


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    print(f"{os.cpu_count()} CPUs, {MILLISECONDS} ms of CPU a connection; connections a second with 1 and 2 processes")
    for architecture in ARCHITECTURES:
        compare(architecture, rounds)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(int(sys.argv[2]), "reactor" if sys.argv[3] == "reactor" else "socket_sharding")
    else:
        main()

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
import selectors
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import _http
from _build import BUILD
from _measure import LoadError, say, wait_for_quiet
from _servers import SERVERS, Server, Spec, pinned, running
from _table import DASH, Spread, show

SERVER_CPU, LOAD_CPU = 0, 1
WARMUP_SECONDS = 0.5
PATIENCE_SECONDS = 30.0
CONNECTIONS = 64
MESSAGE = bytes(range(64))

VARIANTS = {"trio": (), "accelerated": ("accelerated",), "on the ring": ("accelerated-ring",)}
"""What the rows are called, and the argument that the programs in servers/ take for it."""


MASK = b"\x11\x22\x33\x44"
FRAME = bytes([0x82, 0x80 | len(MESSAGE)]) + MASK + bytes(b ^ MASK[i % 4] for i, b in enumerate(MESSAGE))
ECHO = bytes([0x82, len(MESSAGE)]) + MESSAGE
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class WebSockets:
    """Clients in this process that echo one message at a time, on the CPU of the load."""

    def __init__(self, port: int) -> None:
        self._selector = selectors.DefaultSelector()
        for _ in range(CONNECTIONS):
            client = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.sendall(UPGRADE)
            head = b""
            while b"\r\n\r\n" not in head:
                data = client.recv(4096)
                if not data:
                    raise LoadError(f"the WebSocket server refused: {head!r}")
                head += data
            if not head.startswith(b"HTTP/1.1 101") or not head.endswith(b"\r\n\r\n"):
                raise LoadError(f"the WebSocket server answered {head!r}")
            self._selector.register(client, selectors.EVENT_READ, bytearray())

    def close(self) -> None:
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()

    def echo(self, seconds: float) -> int:
        """Keep one message under way on every connection for this long, and return how many came back."""
        echoed = 0
        end = time.monotonic() + seconds
        under_way = len(self._selector.get_map())
        for key in self._selector.get_map().values():
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.sendall(FRAME)
        while under_way:
            ready = self._selector.select(PATIENCE_SECONDS)
            if not ready:
                raise LoadError(f"no WebSocket message came back for {PATIENCE_SECONDS:.0f} s")
            for key, _ in ready:
                client, received = key.fileobj, key.data
                assert isinstance(client, socket.socket)
                received += client.recv(4096)
                if len(received) < len(ECHO):
                    continue
                if received != ECHO:
                    raise LoadError(f"a WebSocket message came back as {bytes(received)!r}")
                received.clear()
                echoed += 1
                if time.monotonic() < end:
                    client.sendall(FRAME)
                else:
                    under_way -= 1
        return echoed


def measure_websockets(server: Server, seconds: float) -> float:
    """Microseconds of the server's CPU time a message."""
    clients = WebSockets(server.port)
    try:
        clients.echo(WARMUP_SECONDS)
        before = _http.cpu_seconds(server.pid)
        echoed = clients.echo(seconds)
        return (_http.cpu_seconds(server.pid) - before) * 1e6 / echoed
    finally:
        clients.close()


def measure_http(server: Server, seconds: float) -> float:
    """Microseconds of the server's CPU time a request."""
    config = _http.HttpConfig(CONNECTIONS, 1)
    _http.run_wrk(server, config, LOAD_CPU, WARMUP_SECONDS)
    before = _http.cpu_seconds(server.pid)
    rate = _http.run_wrk(server, config, LOAD_CPU, seconds)
    return (_http.cpu_seconds(server.pid) - before) * 1e6 / (rate * max(1, round(seconds)))


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
    file: str, measure: Callable[[Server, float], float], variant: tuple[str, ...], seconds: float
) -> float:
    spec = Spec(f"{file}-{'-'.join(variant) or 'trio'}", (sys.executable, str(SERVERS / file), "{port}", *variant))
    with running(spec, SERVER_CPU) as server:
        return measure(server, seconds)


def row(name: str, costs: list[float], baseline: list[float]) -> str:
    ratios = [before / after for before, after in zip(baseline, costs, strict=True)]
    cells = (name, show(Spread.of(costs), 1), DASH if costs is baseline else show(Spread.of(ratios)))
    return f"| {' | '.join(cells)} |"


def main() -> None:
    programs: dict[str, Callable[[tuple[str, ...], float], float]] = {
        "hypercorn": partial(measure_server, "hypercorn_trio.py", measure_http),
        "trio-websocket": partial(measure_server, "websocket_trio.py", measure_websockets),
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
    if "hypercorn" in chosen and shutil.which("wrk") is None:
        parser.error("hypercorn needs wrk (apt install wrk)")
    BUILD.mkdir(exist_ok=True)
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

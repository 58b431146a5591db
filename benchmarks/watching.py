"""What looking at a server costs it: CPU of its processes, by turns with no watcher.

    python benchmarks/watching.py [ROUNDS]

A web app is served by two worker processes with a control socket (``control=``, ``gain-trio top``).  In turns of SECONDS its
watchers are none, one that looks once a second, and as many as may look at all, each of which asks again at once.  Every
round has all three, in another order each time, first with all connections idle and then with a load that is the same in
all turns: each connection asks for a page every PAUSE seconds.

The table has the CPU time of all processes of the server as a percentage of one CPU, and what is beyond the turn of the same
round without watchers: medians, and the smallest and the largest in brackets.  The CPU time is the scheduler's
(/proc/PID/task/*/schedstat).  The server is pinned to one CPU, clients and watchers to another one.  Where requests a second
differ between the rows of a load, the machine was too slow for it, and the figures mean nothing.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import random
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import trio
from _servers import cpu_seconds, end_group, pinned

import gain_trio
import gain_trio.asgi

ROUNDS: Final = 10
SECONDS: Final = 5.0
"""The length of a turn."""
SETTLED: Final = 0.5
"""Seconds between two turns, in which what is left of the one before ends."""
PATIENCE: Final = 30.0
CONNECTIONS: Final = 64
WAITING: Final = 16
"""Connections beside those whose requests wait for something: they are shown as slow."""
PAUSE: Final = 0.05
"""Seconds from one request of a connection to its next one: 64 connections ask 1280 times a second."""
SERVER_CPU, LOAD_CPU = 0, 1
PAGE: Final = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
WAIT: Final = b"GET /wait HTTP/1.1\r\nHost: here\r\n\r\n"
ASK: Final = b'{"version": 1, "request": "snapshot"}\n'

WATCHERS: Final[dict[str, tuple[int, float]]] = {
    "none": (0, 0.0),
    "one look a second": (1, 1.0),
    "eight without a pause": (8, 0.0),
}
"""The number of watchers, and the seconds from one request of a watcher to its next one."""


async def app(scope: Any, _receive: Any, send: Any) -> None:
    """A page, and one that does not come."""
    if scope["path"] == "/wait":
        await trio.sleep_forever()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def serve(path: str) -> None:
    """In a process of its own, until it is killed."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            start = functools.partial(
                gain_trio.asgi.serve,
                "watching:app",
                "tcp://127.0.0.1:0",
                processes=2,
                control=path,
                app_lifespan="off",
                timeout_keep_alive=3600,  # the idle ones stay
            )
            server = await nursery.start(start)
            print(server.addresses[0][1], flush=True)

    gain_trio.run(main)


class Server:
    """The server, and how much CPU its processes use."""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, __file__, "--serve", str(path)]
        here = str(Path(__file__).parent)
        with pinned(SERVER_CPU):
            self._process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))},
            )
        self.path = path
        try:
            assert self._process.stdout is not None
            line = self._process.stdout.readline()
            if not line:
                sys.exit("watching.py: the server has not started; its error is above")
            self.port = int(line)
            with contextlib.closing(Watcher(path)) as watcher:
                self._pids = [process["pid"] for process in watcher.look()["processes"]]
        except BaseException:
            self.end()
            raise

    def cpu_seconds(self) -> float:
        """What all processes have used."""
        return sum(map(cpu_seconds, self._pids))

    def end(self) -> None:
        end_group(self._process)


class Watcher:
    """A client of the control socket, as ``gain-trio top`` is one."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("rb")

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def look(self) -> Any:
        self._socket.sendall(ASK)
        answer = json.loads(self._file.readline())
        if "error" in answer:
            sys.exit(f"watching.py: the server answers {answer['error']!r}")
        return answer

    def look_until(self, end: float, interval: float, counts: list[int]) -> None:
        """Look again and again, and add the number of answers."""
        count = 0
        while (began := time.monotonic()) < end:
            self.look()
            count += 1
            time.sleep(max(min(began + interval, end) - time.monotonic(), 0))
        counts.append(count)


def connect(port: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


class Load:
    """Clients that ask for the page, evenly over time; one that has no answer yet when it is to ask leaves that out."""

    def __init__(self, clients: list[socket.socket]) -> None:
        self._clients = clients
        self._waiting: dict[socket.socket, bytes] = {}  # with what has come of the answer
        self._selector = selectors.DefaultSelector()
        for client in clients:
            self._selector.register(client, selectors.EVENT_READ)

    def run(self, end: float) -> int:
        """Ask until then, await all answers, and return their number."""
        began, answers = time.monotonic(), 0
        for number, client in enumerate(itertools.cycle(self._clients)):
            due = began + number * PAUSE / len(self._clients)
            if due >= end:
                break
            while (left := due - time.monotonic()) > 0:
                answers += self._receive(left)
            if client not in self._waiting:
                client.sendall(PAGE)
                self._waiting[client] = b""
            answers += self._receive(0)
        while self._waiting:
            if time.monotonic() > end + PATIENCE:
                sys.exit(f"watching.py: the server has not answered for {PATIENCE:g} seconds")
            answers += self._receive(1)
        return answers

    def _receive(self, seconds: float) -> int:
        """Receive the answers that have come, or come within this time, and return their number."""
        whole = 0
        for key, _events in self._selector.select(seconds):
            assert isinstance(key.fileobj, socket.socket)
            if not (data := key.fileobj.recv(65536)):
                sys.exit("watching.py: the server has closed a connection")
            self._waiting[key.fileobj] += data
            if self._waiting[key.fileobj].endswith(b"\r\n\r\nok"):
                del self._waiting[key.fileobj]
                whole += 1
        return whole


def turn(server: Server, load: Load | None, kind: str) -> tuple[float, float, float]:
    """Percent of a CPU, requests a second, and answers to watchers a second; without a load the connections are idle."""
    number, interval = WATCHERS[kind]
    time.sleep(SETTLED)
    counts: list[int] = []
    with contextlib.ExitStack() as stack:
        watchers = [stack.enter_context(contextlib.closing(Watcher(server.path))) for _ in range(number)]
        cpu, began = server.cpu_seconds(), time.monotonic()
        end = began + SECONDS
        threads = [threading.Thread(target=watcher.look_until, args=(end, interval, counts)) for watcher in watchers]
        for thread in threads:
            thread.start()
        answers = 0 if load is None else load.run(end)
        for thread in threads:
            thread.join()
        time.sleep(max(end - time.monotonic(), 0))
        took = time.monotonic() - began
        used = server.cpu_seconds() - cpu
    return 100 * used / took, answers / took, sum(counts) / took


def measure(server: Server, load: Load | None, rounds: int) -> None:
    found: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in WATCHERS}
    order = list(WATCHERS)
    for _ in range(rounds):
        random.shuffle(order)
        for kind in order:
            found[kind].append(turn(server, load, kind))
    alone = [percent for percent, _requests, _looks in found["none"]]
    state = "idle" if load is None else f"a request each every {1000 * PAUSE:g} ms"
    print(f"\n{CONNECTIONS} connections, {state}\n")
    print("| watchers | CPU | beyond none | answers/s | requests/s |")
    print("|---|---|---|---|---|")
    for kind, turns in found.items():
        percents, requests, looks = zip(*turns, strict=True)
        more = [percent - without for percent, without in zip(percents, alone, strict=True)]
        beyond = spread(more) if kind != "none" else ""
        print(
            f"| {kind} | {spread(percents)} | {beyond} | {statistics.median(looks):.1f} "
            f"| {statistics.median(requests):,.0f} |"
        )


def spread(percents: Any) -> str:
    return f"{statistics.median(percents):.2f} % [{min(percents):.2f}, {max(percents):.2f}]"


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """A server, and what it leaves, for the length of a with statement."""
    with tempfile.TemporaryDirectory(prefix="gain_trio-") as folder:
        server = Server(Path(folder) / "control.sock")
        try:
            yield server
        finally:
            server.end()


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    if rounds < 1:
        sys.exit("watching.py: there must be at least one round")
    with running() as server, pinned(LOAD_CPU), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server.port)) for _ in range(CONNECTIONS)]
        for _ in range(WAITING):
            stack.enter_context(connect(server.port)).sendall(WAIT)
        load = Load(clients)
        load.run(time.monotonic() + SECONDS)  # what is done once is done
        print(f"{rounds} rounds, turns of {SECONDS:g} s, 2 worker processes, {WAITING} requests that wait")
        for busy in (None, load):
            measure(server, busy, rounds)


if __name__ == "__main__":
    serve(sys.argv[2]) if sys.argv[1:2] == ["--serve"] else main()

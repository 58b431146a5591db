"""Load on a server whose worker processes are recycled all the time: no request may be lost.

    python tools/recycling.py [--requests 10000] [--architecture reactor] [--by connections|lifetime|signals]

Six clients send requests to ``gain-trio serve --handler http`` with two worker processes: three open a connection for each
request, three keep theirs.  A kept connection that the server closes between two requests is opened again, and the request
sent again: that is what a client of HTTP/1.1 does (RFC 9112, 9.3.1).  Every other request without its answer is lost.
Exit status 1 if there is one, or if no process was replaced.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time

import attrs
import trio

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
CLIENTS = 6
LIMITS = {
    "connections": ["--max-connections-per-worker", "300", "--max-connections-per-worker-jitter", "100"],
    "lifetime": ["--max-worker-lifetime", "2"],
    "signals": [],
}


@attrs.define
class Counts:
    """What has become of the requests."""

    left: int
    answered: int = 0
    opened_again: int = 0
    lost: list[str] = attrs.field(factory=list)
    slowest: float = 0.0


async def ask(stream: trio.SocketStream) -> str:
    """Send a request.

    Returns:
      Nothing when it was answered, ``"closed"`` when the connection was closed before the answer's first byte, or else what
      has become of the answer.
    """
    received = b""
    try:
        await stream.send_all(REQUEST)
        while not received.endswith(b"Hello, World!"):
            data = await stream.receive_some()
            if not data:
                return "closed" if not received else f"cut off after {received!r}"
            received += data
    except trio.BrokenResourceError as error:
        return "closed" if not received else f"broken after {received!r}: {error.__cause__}"
    return "" if received.startswith(b"HTTP/1.1 200 OK\r\n") else f"answered {received!r}"


async def client(port: int, counts: Counts, keeps: bool) -> None:
    """Send requests until there are none left."""
    stream: trio.SocketStream | None = None
    while counts.left > 0:
        counts.left -= 1
        start = time.monotonic()
        is_new = stream is None
        if stream is None:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
        trouble = await ask(stream)
        if trouble == "closed" and not is_new:
            counts.opened_again += 1
            await stream.aclose()
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            trouble = await ask(stream)
        if trouble:
            counts.lost.append(trouble)
        else:
            counts.answered += 1
        counts.slowest = max(counts.slowest, time.monotonic() - start)
        if trouble or not keeps:
            await stream.aclose()
            stream = None
    if stream is not None:
        await stream.aclose()


async def load(port: int, counts: Counts, pid: int, by: str) -> None:
    """Run the clients, and send SIGHUPs meanwhile if that is asked for."""
    async with trio.open_nursery() as nursery:
        if by == "signals":
            nursery.start_soon(disturb, pid)
        async with trio.open_nursery() as clients:
            for number in range(CLIENTS):
                clients.start_soon(client, port, counts, bool(number % 2))
        nursery.cancel_scope.cancel()


async def disturb(pid: int) -> None:
    """Have the server replace its processes every second."""
    while True:
        await trio.sleep(1)
        os.kill(pid, signal.SIGHUP)


def main() -> int:
    """Serve, load, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--architecture", choices=("reactor", "socket_sharding"), default="reactor")
    parser.add_argument("--by", choices=tuple(LIMITS), default="connections")
    options = parser.parse_args()
    command = [sys.executable, "-m", "gain_trio", "serve", "tcp://127.0.0.1:0", "--handler", "http", "--processes", "2"]
    command += ["--architecture", options.architecture, "--log-level", "info", *LIMITS[options.by]]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as server,
    ):
        assert server.stdout is not None
        port = int(server.stdout.readline().split(":")[2].partition(";")[0])
        counts = Counts(options.requests)
        start = time.monotonic()
        try:
            trio.run(load, port, counts, server.pid, options.by)
        finally:
            seconds = time.monotonic() - start
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=60)
        log.seek(0)
        replaced = len(re.findall(r"worker process \d+ \(\d+, on \w+\) serves", log.read())) - 2
    print(
        f"{options.architecture}, by {options.by}: {counts.answered} of {options.requests} requests answered in "
        f"{seconds:.1f} s, {len(counts.lost)} lost, {counts.opened_again} kept connections opened again, "
        f"{replaced} processes replaced, the slowest {counts.slowest:.2f} s, exit status {server.returncode}"
    )
    for trouble in counts.lost[:10]:
        print(f"  {trouble}")
    return int(bool(counts.lost) or replaced < 1 or server.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())

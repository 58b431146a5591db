"""Load on a server whose worker processes, or whose certificate, are replaced all the time: no request may be lost.

    python tools/recycling.py [--requests 10000] [--architecture reactor] [--by connections|lifetime|signals|certificates]
                              [--handler http|callbacks] [--tls] [--processes 2] [--backend io_uring|trio]

Six clients send requests to ``gain-trio serve`` with two worker processes: three open a connection for each request, three
keep theirs.  A kept connection that the server closes between two requests is opened again, and the request sent again:
that is what a client of HTTP/1.1 does (RFC 9112, 9.3.1).  Every other request without its answer is lost.

With ``--by certificates`` there is another certificate before each SIGHUP, and a connection that begins when that one is in
use has to get it; with ``--processes 0`` the server is one process, which loads the certificate again.  The handler is
``http``, which is a handler of connections, or one of callbacks in this file.

Exit status 1 if a request is lost or a certificate is old, or if nothing was replaced.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import attrs
import trio
from soak_asgi import Certificates, is_rolled

from gain_trio.callbacks import Conn, EventHandler

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
CLIENTS = 6
LIMITS = {
    "connections": ["--max-connections-per-worker", "300", "--max-connections-per-worker-jitter", "100"],
    "lifetime": ["--max-worker-lifetime", "2"],
    "signals": [],
    "certificates": [],
}
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nHello, World!"


class Answers(EventHandler):
    """Answers each request, and looks at nothing of it but its end."""

    def on_read(self, conn: Conn, _count: int) -> None:
        """Answer the requests that are whole."""
        whole = conn.peek().rfind(b"\r\n\r\n") + 4
        if whole >= 4:
            conn.write(ANSWER * conn.next(whole).count(b"\r\n\r\n"))


@attrs.define
class Counts:
    """What has become of the requests."""

    left: int
    answered: int = 0
    opened_again: int = 0
    lost: list[str] = attrs.field(factory=list)
    slowest: float = 0.0
    rolls: int = 0
    certificates: Certificates | None = None
    newest: int = 0
    """Connections with a certificate that was in use already, or is of the roll in progress."""


async def connect(port: int, counts: Counts) -> trio.abc.Stream:
    """Open a connection, which has the certificate that is in use."""
    certificates = counts.certificates
    oldest = 0 if certificates is None else certificates.in_use  # before the server may have accepted the connection
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    if certificates is None:
        return stream
    tls: Any = trio.SSLStream(stream, certificates.client_context, server_hostname="localhost", https_compatible=True)
    try:
        await tls.do_handshake()
    except trio.BrokenResourceError as error:
        counts.lost.append(f"no handshake: {error.__cause__}")
        return stream
    number = certificates.serials.index(int(tls.getpeercert()["serialNumber"], 16))
    if number < oldest:
        counts.lost.append(f"a new connection has certificate {number}, and {oldest} was in use before")
    counts.newest += number >= oldest
    return tls  # type: ignore[no-any-return]


async def ask(stream: trio.abc.Stream) -> str:
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
    stream: trio.abc.Stream | None = None
    while counts.left > 0:
        counts.left -= 1
        start = time.monotonic()
        is_new = stream is None
        if stream is None:
            stream = await connect(port, counts)
        trouble = await ask(stream)
        if trouble == "closed" and not is_new:
            counts.opened_again += 1
            await stream.aclose()
            stream = await connect(port, counts)
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


async def load(port: int, counts: Counts, server: Served, options: argparse.Namespace) -> None:
    """Run the clients, and send SIGHUPs meanwhile if that is asked for."""
    async with trio.open_nursery() as nursery:
        if options.by in {"signals", "certificates"}:
            nursery.start_soon(disturb, counts, server, options.processes)
        async with trio.open_nursery() as clients:
            for number in range(CLIENTS):
                clients.start_soon(client, port, counts, bool(number % 2))
        nursery.cancel_scope.cancel()


async def disturb(counts: Counts, server: Served, processes: int) -> None:
    """Have the server replace its processes, or its certificate, again and again."""
    while True:
        await trio.sleep(0.5)
        if counts.certificates is not None:
            counts.certificates.issue()
        server.process.send_signal(signal.SIGHUP)
        counts.rolls += 1
        while not is_rolled(server.lines(), counts.rolls, processes):  # noqa: ASYNC110 - another process writes the log
            await trio.sleep(0.05)
        if counts.certificates is not None:
            counts.certificates.in_use = counts.rolls


@attrs.frozen
class Served:
    """A server in a process of its own, and the file of its log."""

    process: subprocess.Popen[str]
    log: IO[str]

    def lines(self) -> str:
        """What it has logged."""
        return Path(self.log.name).read_text()


@contextlib.contextmanager
def serving(options: argparse.Namespace, certificates: Certificates | None) -> Iterator[Served]:
    """Run the server for the length of the block."""
    handler = "http" if options.handler == "http" else "recycling:Answers"
    command = [sys.executable, "-m", "gain_trio", "serve", "tcp://127.0.0.1:0", "--handler", handler]
    command += ["--architecture", options.architecture, "--log-level", "info", *LIMITS[options.by]]
    if options.processes:
        command += ["--processes", str(options.processes)]
    if certificates is not None:
        command += ["--tls-cert", str(certificates.file)]
    environment = {**os.environ, "GAIN_TRIO_BACKEND": options.backend, "PYTHONPATH": os.pathsep.join(sys.path)}
    with (
        tempfile.NamedTemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as process,
    ):
        try:
            yield Served(process, log)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


def main() -> int:
    """Serve, load, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--architecture", choices=("reactor", "socket_sharding"), default="reactor")
    parser.add_argument("--by", choices=tuple(LIMITS), default="connections")
    parser.add_argument("--handler", choices=("http", "callbacks"), default="http")
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--backend", choices=("auto", "io_uring", "trio"), default="auto")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tls = options.tls or options.by == "certificates"
        certificates = Certificates(Path(folder)) if tls else None
        counts = Counts(options.requests, certificates=certificates)
        with serving(options, certificates) as server:
            assert server.process.stdout is not None
            port = int(server.process.stdout.readline().rpartition(":")[2].partition(";")[0])
            start = time.monotonic()
            trio.run(load, port, counts, server, options)
            seconds = time.monotonic() - start
            replaced = len(re.findall(r"worker process \d+ \(\d+, on \w+\) serves", server.lines())) - options.processes
    return report(options, counts, seconds, replaced, server.process.returncode)


def report(options: argparse.Namespace, counts: Counts, seconds: float, replaced: int, status: int) -> int:
    """Print what was found, and return the exit status."""
    how = f"{options.architecture}, {options.handler}, {options.backend}, by {options.by}"
    tls = f", {counts.newest} connections with the certificate in use, {counts.rolls} certificates"
    print(
        f"{how}: {counts.answered} of {options.requests} requests answered in {seconds:.1f} s, {len(counts.lost)} lost, "
        f"{counts.opened_again} kept connections opened again, {replaced} processes replaced"
        f"{tls if counts.certificates is not None else ''}, the slowest {counts.slowest:.2f} s, exit status {status}"
    )
    for trouble in counts.lost[:10]:
        print(f"  {trouble}")
    return int(bool(counts.lost) or (replaced < 1 and counts.rolls < 1) or status != 0)


if __name__ == "__main__":
    sys.exit(main())

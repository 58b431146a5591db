"""A server of a web app under clients that behave badly, for a long time; and one that is replaced under load.

    python tools/soak_asgi.py soak [--seconds 600] [--backend io_uring|trio]
    python tools/soak_asgi.py rolls [--rolls 31] [--requests 0] [--tls] [--processes 2] [--backend io_uring|trio]

``soak``: clients that abort, trickle, and do not read, beside clients that behave.  Each answer to the latter has to be
right, the memory and the descriptors of the server may not grow after the first third, and at the end no request is in
progress, no error is in the log, and the server drains.

``rolls``: SIGHUP replaces two worker processes again and again, while clients send requests on connections that they keep,
and on new ones.  No request may fail.  (A request on a kept connection that the server is closing just then, and that has
brought no byte of an answer, is sent once more on a new connection, as RFC 9112, section 9.3.1, has it.)  With ``--tls``
there is another certificate before each roll, and a connection that begins when the roll is over gets that one.  With
``--processes 0`` the server is one process, whose certificate alone is renewed.  The rolls go on until there were this
number of them, and of requests.

The server is ``gain-trio asgi`` in a process of its own, with the app of this file.  The clients are plain Trio.  The exit
status is 0 if nothing was found.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import random
import re
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import trio

HERE: Final = Path(__file__).resolve().parent
PATIENCE: Final = 180.0
"""Seconds for a start, for one request and for an end, on a machine that is busy."""
LARGE: Final = bytes(range(256)) * 4096
"""1 MiB, more than the kernel keeps for a client that does not read."""
RSS_GROWTH_KIB: Final = 4096
"""What the server's memory may grow by between the first third of a soak and its end."""
OPTIONS: Final = ("--timeout-head", "3", "--timeout-body", "3", "--timeout-send", "3", "--timeout-keep-alive", "3")
"""Short limits, so that the server ends many connections that trickle or do not read."""
MASK: Final = b"\x00\x01\x02\x03"


# --- the app ---


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Echo bodies and messages; /large has 1 MiB."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "websocket":
        await echo_messages(receive, send)
    else:
        await answer(scope["path"], receive, send)


async def lifespan(receive: Any, send: Any) -> None:
    """Start and end."""
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def answer(path: str, receive: Any, send: Any) -> None:
    """One response."""
    body = bytearray()
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        body += event.get("body", b"")
        if not event.get("more_body", False):
            break
    content = LARGE if path == "/large" else bytes(body)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(content))]})
    for start in range(0, len(content), 65536):
        await send({"type": "http.response.body", "body": content[start : start + 65536], "more_body": True})
    await send({"type": "http.response.body"})


async def echo_messages(receive: Any, send: Any) -> None:
    """A WebSocket."""
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] != "websocket.disconnect":
        await send({"type": "websocket.send", "bytes": event["bytes"]})


# --- the server ---


class Server:
    """The command in a process of its own; see :func:`serving`."""

    def __init__(self, process: subprocess.Popen[str], port: int, metrics: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.metrics = metrics
        self.log = log

    def usage(self) -> tuple[int, int]:
        """Its resident memory in KiB, and its descriptors."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        resident = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
        assert resident
        return int(resident[1]), len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    async def metric(self, name: str) -> float:
        """A sample of its metrics."""
        async with await trio.open_tcp_stream("127.0.0.1", self.metrics) as stream:
            await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            text = b"".join([data async for data in stream]).decode()
        found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
        assert found, f"no metric {name}"
        return float(found[1])

    def problems(self) -> list[str]:
        """Lines of its log that should not be there."""
        return [line for line in self.log.read_text().splitlines() if re.search(r"ERROR|CRITICAL|Traceback", line)]


def free_port() -> int:
    """A port that no process listens on."""
    import socket  # noqa: PLC0415 - trio.socket is what the rest uses

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def serving(backend: str, *options: str) -> AsyncIterator[Server]:
    """The server, for the duration of the block.  Its end is looked at by :func:`end`."""
    with tempfile.TemporaryDirectory() as folder:
        port, metrics, log = free_port(), free_port(), Path(folder, "log")
        command = [
            *(sys.executable, "-m", "gain_trio", "asgi", "soak_asgi:app", f"tcp://127.0.0.1:{port}"),
            *("--app-dir", str(HERE), "--log-level", "info", "--metrics", f"tcp://127.0.0.1:{metrics}"),
            *options,
        ]
        with log.open("w") as output:
            environment = os.environ | {"GAIN_TRIO_BACKEND": backend}
            process = subprocess.Popen(command, stdout=output, stderr=output, text=True, env=environment)
        try:
            with trio.fail_after(PATIENCE):
                # It listens before its processes serve, and a SIGHUP before they do is ignored.
                while not re.search(r"^serving ", log.read_text(), re.MULTILINE):
                    if process.poll() is not None:
                        raise SystemExit(f"the server does not start:\n{log.read_text()}")
                    await trio.sleep(0.05)
            yield Server(process, port, metrics, log)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


async def end(server: Server) -> list[str]:
    """Drain the server; what is wrong with that."""
    server.process.send_signal(signal.SIGTERM)
    with trio.move_on_after(PATIENCE):
        while server.process.poll() is None:
            await trio.sleep(0.02)
    status = server.process.poll()
    return [] if status == 0 else [f"after SIGTERM the exit status is {status}"]


# --- clients ---


class Broken(Exception):
    """A connection ended before the answer was complete; ``received`` says whether any of it had come."""

    def __init__(self, text: str, *, received: bool) -> None:
        super().__init__(text)
        self.received = received


class Client:
    """One connection, with answers that have a Content-Length."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.certificate = 0
        """The serial number of the server's certificate, of a connection over TLS."""
        self._buffer = bytearray()
        self.is_last = False
        """Whether the server has said that it closes the connection."""

    @classmethod
    async def connect(cls, server: Server, context: ssl.SSLContext | None = None) -> Client:
        """Open one."""
        stream: trio.abc.Stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        if context is None:
            return cls(stream)
        tls: Any = trio.SSLStream(stream, context, server_hostname="localhost", https_compatible=True)
        try:
            await tls.do_handshake()
        except trio.BrokenResourceError as error:
            raise Broken(f"no handshake: {error.__cause__!r}", received=False) from error
        client = cls(tls)
        client.certificate = int(tls.getpeercert()["serialNumber"], 16)
        return client

    async def _fill(self) -> None:
        try:
            data = await self.stream.receive_some(65536)
        except trio.BrokenResourceError as error:
            raise Broken(f"reset: {error.__cause__!r}", received=bool(self._buffer)) from error
        if not data:
            raise Broken("closed", received=bool(self._buffer))
        self._buffer += data

    async def send(self, data: bytes) -> None:
        """Send all."""
        try:
            await self.stream.send_all(data)
        except trio.BrokenResourceError as error:
            raise Broken(f"cannot send: {error.__cause__!r}", received=bool(self._buffer)) from error

    async def answer(self) -> tuple[int, bytes]:
        """The status and the body of the next answer."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            await self._fill()
        head = bytes(self._buffer[:end]).lower()
        self.is_last = b"\r\nconnection: close" in head
        length = int(re.search(rb"\r\ncontent-length: (\d+)", head)[1])  # type: ignore[index]
        while len(self._buffer) < end + 4 + length:
            await self._fill()
        body = bytes(self._buffer[end + 4 : end + 4 + length])
        del self._buffer[: end + 4 + length]
        return int(head.split()[1]), body

    async def exactly(self, count: int) -> bytes:
        """Receive this number of bytes."""
        while len(self._buffer) < count:
            await self._fill()
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def abort(self) -> None:
        """Reset the connection."""
        stream = self.stream.transport_stream if isinstance(self.stream, trio.SSLStream) else self.stream
        assert isinstance(stream, trio.SocketStream)
        stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        stream.socket.close()


def request(target: str = "/", body: bytes = b"", *fields: str) -> bytes:
    """A POST."""
    lines = [f"POST {target} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *fields, "", ""]
    return "\r\n".join(lines).encode() + body


def frame(opcode: int, payload: bytes) -> bytes:
    """A short frame of a WebSocket's client."""
    masked = bytes(byte ^ MASK[place % 4] for place, byte in enumerate(payload))
    return bytes([opcode, 0x80 | len(payload)]) + MASK + masked


def check(status: int, body: bytes, expected: bytes) -> None:
    """Raise AssertionError unless an answer is right."""
    if status != 200 or body != expected:
        raise AssertionError(f"an answer of status {status} has {len(body)} bytes instead of {len(expected)}")


class Soak:
    """The clients of a soak, each a function that a task calls over and over."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.done: Counter[str] = Counter()
        self.problems: list[str] = []

    async def keeps(self) -> None:
        """Several requests on one connection, each with a body of its own; some together."""
        client = await Client.connect(self.server)
        async with client.stream:
            for _ in range(random.randrange(1, 30)):
                bodies = [random.randbytes(random.randrange(0, 3000)) for _ in range(random.randrange(1, 5))]
                await client.send(b"".join(request(body=body) for body in bodies))
                for body in bodies:
                    check(*await client.answer(), body)
                    self.done["answers"] += 1

    async def reads_much(self) -> None:
        """1 MiB, in chunks of its own choice."""
        client = await Client.connect(self.server)
        async with client.stream:
            await client.send(request("/large"))
            check(*await client.answer(), LARGE)
            self.done["large answers"] += 1

    async def aborts(self) -> None:
        """Resets, anywhere in a request or its answer."""
        client = await Client.connect(self.server)
        whole = request(random.choice(["/", "/large"]), random.randbytes(2000))
        await client.send(whole[: random.randrange(1, len(whole) + 1)])
        if random.random() < 0.5:
            with trio.move_on_after(random.random() / 20), contextlib.suppress(Broken):
                await client.exactly(1 << 20)
        client.abort()
        self.done["aborted"] += 1

    async def trickles(self) -> None:
        """A request in many pieces: it has its answer, or is refused if the machine was too busy to send it in time."""
        client = await Client.connect(self.server)
        async with client.stream:
            body = random.randbytes(50)
            whole = request(body=body)
            begin = trio.current_time()
            try:
                while whole:
                    size = random.randrange(1, 40)
                    await client.send(whole[:size])
                    whole = whole[size:]
                    await trio.sleep(random.random() / 20)
                status, received = await client.answer()
            except Broken:
                status, received = 408, b""
            if status == 408 and trio.current_time() - begin > 2:
                self.done["too slow"] += 1
            else:
                check(status, received, body)
                self.done["trickled"] += 1

    async def stops(self) -> None:
        """Part of a request, and then nothing: the server ends that."""
        client = await Client.connect(self.server)
        whole = request(body=bytes(500))
        await client.send(whole[: random.randrange(0, len(whole))])
        with contextlib.suppress(Broken):
            await client.exactly(1 << 20)
        await client.stream.aclose()
        self.done["cut off"] += 1

    async def does_not_read(self) -> None:
        """Many large answers, none of them read: the server ends that, and keeps little of them meanwhile."""
        client = await Client.connect(self.server)
        with contextlib.suppress(Broken):
            await client.send(request("/large") * 20)
        await trio.sleep(3)
        client.abort()
        self.done["not read"] += 1

    async def talks(self) -> None:
        """Messages of a WebSocket; some end without a close frame."""
        client = await Client.connect(self.server)
        await client.send(
            b"GET /socket HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        answer = bytearray()
        while not answer.endswith(b"\r\n\r\n"):
            answer += await client.exactly(1)
        assert answer.startswith(b"HTTP/1.1 101 "), answer
        for _ in range(random.randrange(1, 50)):
            message = random.randbytes(random.randrange(1, 126))
            await client.send(frame(0x82, message))
            while True:
                head = await client.exactly(2)
                echo = await client.exactly(head[1])
                if head[0] != 0x89:
                    break
                await client.send(frame(0x8A, echo))  # the answer to a ping
            if head[0] != 0x82 or echo != message:
                raise AssertionError(f"a message came back as {head!r}, {echo!r}")
            self.done["messages"] += 1
        client.abort()

    async def repeat(self, client: Callable[[], Awaitable[None]], until: float) -> None:
        """Call a client until the time is up, and note what is wrong."""
        while trio.current_time() < until and len(self.problems) < 20:
            try:
                with trio.fail_after(PATIENCE):
                    await client()
            except (Broken, OSError, AssertionError, trio.TooSlowError) as error:
                self.problems.append(f"{client.__name__}: {type(error).__name__}: {error}")


async def soak(backend: str, seconds: float) -> list[str]:
    """See the top of this file."""
    async with serving(backend, *OPTIONS) as server:
        clients = Soak(server)
        begin = trio.current_time()
        samples: list[tuple[float, int, int]] = []
        counts = [
            *((clients.keeps, 6), (clients.reads_much, 2), (clients.aborts, 4), (clients.trickles, 4)),
            *((clients.stops, 8), (clients.does_not_read, 4), (clients.talks, 3)),
        ]
        async with trio.open_nursery() as nursery:
            for client, count in counts:
                for _ in range(count):
                    nursery.start_soon(clients.repeat, client, begin + seconds)
            while (now := trio.current_time()) < begin + seconds:
                samples.append((now - begin, *server.usage()))
                await trio.sleep(min(2.0, seconds / 30))
        problems = clients.problems
        with trio.move_on_after(PATIENCE):
            while await server.metric("gain_trio_connections_active"):
                await trio.sleep(0.1)
        for name in ("gain_trio_connections_active", "gain_trio_requests_in_progress"):
            if (left := await server.metric(name)) != 0:
                problems.append(f"{name} is {left:g} when all clients are gone")
        problems += growth(samples)
        problems += await end(server)
        problems += server.problems()[:20]
        print(f"soak, {backend}, {seconds:g} s: {dict(clients.done)}; {shown(samples)}", flush=True)
    return problems


def growth(samples: list[tuple[float, int, int]]) -> list[str]:
    """Whether the memory or the descriptors have grown: the most in the last third beside the most in the second."""
    third = len(samples) // 3
    before, after = samples[third : 2 * third], samples[2 * third :]
    problems = []
    if max(rss for _, rss, _ in after) > max(rss for _, rss, _ in before) + RSS_GROWTH_KIB:
        problems.append(f"the memory grows: {shown(samples)}")
    if max(files for _, _, files in after) > 2 * max(files for _, _, files in before):
        problems.append(f"the descriptors grow: {shown(samples)}")
    return problems


def shown(samples: list[tuple[float, int, int]]) -> str:
    """Some of the samples."""
    step = max(len(samples) // 6, 1)
    return "; ".join(f"{at:.0f} s: {rss} KiB, {files} files" for at, rss, files in samples[::step])


class Rolls:
    """The clients of a server that is replaced."""

    def __init__(self, server: Server, certificates: Certificates | None) -> None:
        self.server = server
        self.certificates = certificates
        self.done: Counter[str] = Counter()
        self.problems: list[str] = []
        self.is_over = False

    async def one(self, client: Client, *fields: str) -> None:
        """A request and its answer."""
        body = random.randbytes(random.randrange(0, 2000))
        with trio.fail_after(PATIENCE):
            await client.send(request("/", body, *fields))
            check(*await client.answer(), body)

    @property
    def requests(self) -> int:
        """The number of requests that were answered."""
        return self.done["on new connections"] + self.done["on kept connections"]

    async def connect(self) -> Client:
        """Open a connection, which has the newest certificate if the roll was over before."""
        certificates = self.certificates
        if certificates is None:
            return await Client.connect(self.server)
        oldest = certificates.in_use
        client = await Client.connect(self.server, certificates.client_context)
        number = certificates.serials.index(client.certificate)
        if number < oldest:
            raise AssertionError(f"a new connection has certificate {number}, and {oldest} was in use before")
        self.done[
            "with a certificate of the roll in progress" if number > oldest else "with the newest certificate"
        ] += 1
        return client

    async def closes(self) -> None:
        """One request a connection."""
        client = await self.connect()
        await self.one(client, "Connection: close")
        await client.stream.aclose()
        self.done["on new connections"] += 1

    async def keeps(self) -> None:
        """Requests on one connection until the server closes it."""
        client = await self.connect()
        is_first = True
        try:
            while not self.is_over and not client.is_last:
                await self.one(client)
                self.done["on kept connections"] += 1
                is_first = False
                await trio.sleep(random.random() / 100)
        except Broken as error:
            if is_first or error.received:
                raise
            self.done["closed while a request was sent"] += 1
            again = await self.connect()
            await self.one(again, "Connection: close")
            await again.stream.aclose()
        finally:
            client.abort()

    async def repeat(self, client: Callable[[], Awaitable[None]]) -> None:
        """Call a client until the rolls are over, and note what is wrong."""
        while not self.is_over and len(self.problems) < 20:
            try:
                await client()
            except (Broken, OSError, AssertionError, trio.TooSlowError) as error:
                self.problems.append(f"{client.__name__}: {type(error).__name__}: {error}")


async def rolls(backend: str, least: int, requests: int, *, tls: bool, processes: int) -> list[str]:
    """See the top of this file."""
    with tempfile.TemporaryDirectory() as folder:
        certificates = Certificates(Path(folder)) if tls else None
        options = [] if certificates is None else ["--tls-cert", str(certificates.file)]
        if processes:
            options += ["--processes", str(processes)]
        async with serving(backend, *options) as server:
            clients = Rolls(server, certificates)
            number = 0
            async with trio.open_nursery() as nursery:
                for client in (clients.closes, clients.keeps):
                    for _ in range(4):
                        nursery.start_soon(clients.repeat, client)
                while not clients.problems and (number < least or clients.requests < requests):
                    number += 1
                    if certificates is not None:
                        certificates.issue()
                    await roll(server, number, processes)
                    if certificates is not None:
                        certificates.in_use = number
                clients.is_over = True
            problems = [*clients.problems, *await end(server), *server.problems()[:20]]
            name = f"rolls, {backend}{', TLS' if tls else ''}, {processes} worker processes"
            print(f"{name}: {number} rolls; {dict(clients.done)}", flush=True)
    return problems


async def roll(server: Server, number: int, processes: int) -> None:
    """Have all processes replaced, or the certificate of one process, and wait until the old ones are gone."""
    server.process.send_signal(signal.SIGHUP)
    with trio.fail_after(4 * PATIENCE):
        while not is_rolled(server.log.read_text(), number, processes):
            await trio.sleep(0.05)


def is_rolled(log: str, number: int, processes: int) -> bool:
    """Whether this roll is over."""
    if not processes:
        return log.count("uses a new TLS context from now on") >= number
    begun = re.findall(r"worker process \d \((?:pid )?(\d+), .* serves", log)
    old = begun[: processes * number]
    return len(begun) >= processes * (number + 1) and not any(Path("/proc", pid).exists() for pid in old)


class Certificates:
    """The server's file, with one certificate after the other, and the authority that issues them."""

    def __init__(self, folder: Path) -> None:
        import trustme  # noqa: PLC0415 - only TLS needs it

        self._authority = trustme.CA()
        self.file = folder / "server.pem"
        self.client_context = ssl.create_default_context()
        self._authority.configure_trust(self.client_context)
        self.serials: list[int] = []
        self.in_use = 0
        """The place of the oldest one that a new connection may get."""
        self.issue()

    def issue(self) -> None:
        """Replace the certificate."""
        from cryptography import x509  # noqa: PLC0415 - trustme needs it

        issued = self._authority.issue_cert("localhost")
        self.serials.append(x509.load_pem_x509_certificate(issued.cert_chain_pems[0].bytes()).serial_number)
        new = self.file.with_suffix(".new")
        issued.private_key_and_cert_chain_pem.write_to_path(new)
        new.rename(self.file)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("soak", "rolls"):
        command = commands.add_parser(name)
        command.add_argument("--backend", choices=["io_uring", "trio"], default="io_uring")
        if name == "soak":
            command.add_argument("--seconds", type=float, default=600.0)
        else:
            command.add_argument("--rolls", type=int, default=31)
            command.add_argument("--requests", type=int, default=0)
            command.add_argument("--processes", type=int, default=2)
            command.add_argument("--tls", action="store_true")
    arguments = parser.parse_args()
    begin = time.monotonic()
    if arguments.command == "soak":
        problems = trio.run(soak, arguments.backend, arguments.seconds)
    else:
        if not (arguments.tls or arguments.processes):
            parser.error("one process renews its certificate and nothing else: --processes 0 needs --tls")
        options = {"tls": arguments.tls, "processes": arguments.processes}
        start = functools.partial(rolls, arguments.backend, arguments.rolls, arguments.requests, **options)
        problems = trio.run(start)
    print(f"{time.monotonic() - begin:.0f} s, {len(problems)} problems", flush=True)
    for problem in problems:
        print(f"  {problem}", flush=True)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()

"""HTTP plaintext servers, and what other measurements of HTTP servers need: requests, and a look at the answers.

The generator's ``--request`` sends one request over and over and compares all answers with the first one; this module looks
at that first answer.
"""

from __future__ import annotations

import dataclasses
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from _build import BUILD
from _measure import Config, LoadError, Result, Settings, measure, run_rounds, say
from _servers import SERVERS, Server, Spec
from _table import http_table

DEFAULT_CONFIGS = "64:1,64:16"
PATIENCE_SECONDS = 30.0
ANSWER_BYTES = 256  # about as many as a plaintext answer has
PLAINTEXT = b"Hello, World!"
ACCEPT = "text/plain,text/html;q=0.9,application/xhtml+xml;q=0.9,application/xml;q=0.8,*/*;q=0.7"

# name, file in servers/ or beside, its arguments, what must be importable
HTTP_SERVERS = (
    ("gain_trio", "gain_trio_http.py", ("{port}",), ("gain_trio",)),
    ("gain_trio-callbacks", "../../examples/callback_http.py", ("tcp://127.0.0.1:{port}",), ("gain_trio",)),
    ("uvloop", "asyncio_http.py", ("{port}", "uvloop"), ("uvloop", "gain_trio")),
    ("asyncio", "asyncio_http.py", ("{port}", "asyncio"), ("gain_trio",)),
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

    @property
    def load(self) -> Config:
        return Config(self.connections, ANSWER_BYTES, self.depth)


@dataclass(frozen=True)
class Request:
    """A request in a file, for the generator, and the body that it is to be answered with."""

    path: Path
    text: bytes
    body: bytes | None  # None: of any bytes, `length` of them
    length: int

    @classmethod
    def write(cls, name: str, text: str, *, body: bytes | None = None, length: int = 0) -> Request:
        BUILD.mkdir(exist_ok=True)
        path = BUILD / f"{name}.request"
        path.write_bytes(text.encode())
        return cls(path, text.encode(), body, len(body) if body is not None else length)

    def check(self, server: Server) -> None:
        """Raise LoadError unless the server answers two requests that come at once, both rightly."""
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as client:
            client.sendall(self.text * 2)
            stream = client.makefile("rb")
            for _ in range(2):
                self._check_answer(server.spec.name, *_answer(stream))

    def _check_answer(self, name: str, status: bytes, body: bytes) -> None:
        if not status.startswith(b"HTTP/1.1 200 ") or len(body) != self.length or self.body not in (None, body):
            raise LoadError(f"{name} answered with {status!r} and {len(body)} bytes, {body[:100]!r}")


def _answer(stream: BinaryIO) -> tuple[bytes, bytes]:
    status = line = stream.readline()
    length = None
    while line not in (b"\r\n", b""):
        line = stream.readline()
        if match := re.fullmatch(rb"content-length: *(\d+)\r\n", line, re.IGNORECASE):
            length = int(match[1])
    if length is None:
        raise LoadError(f"an answer without a Content-Length, after {status!r}")
    return status, stream.read(length)


def fields(*more: str) -> str:
    """A GET with the fields that TechEmpower's generator sends, and these."""
    lines = ["GET /plaintext HTTP/1.1", "Host: 127.0.0.1", f"Accept: {ACCEPT}", "Connection: keep-alive", *more]
    return "\r\n".join([*lines, "", ""])


def known_servers(reference: Path, python: str) -> dict[str, Spec]:
    specs = {"c": Spec("c", (str(reference), "{port}"))}
    for name, file, arguments, needs in HTTP_SERVERS:
        specs[name] = Spec(name, (python, str(SERVERS / file), *arguments), needs)
    return specs


def run_http(specs: list[Spec], config: HttpConfig, settings: Settings) -> Result:
    say(f"http, {config.connections}:{config.depth}")
    request = Request.write("plaintext", fields(), body=PLAINTEXT)
    settings = dataclasses.replace(settings, request=request.path, check=request.check)
    results = run_rounds(specs, settings.rounds, lambda spec: measure(spec, config.load, settings))
    title = f"HTTP plaintext: {config.connections} connections, {config.depth} requests at a time"
    print(http_table(title, results, ("uvloop",)), end="\n\n", flush=True)
    return {"mode": "http", "connections": config.connections, "depth": config.depth, "results": results}

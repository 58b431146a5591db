"""Servers of web apps, with one ASGI app each time: by turns with the C server, as everything else.

A *row* is a question: an app, a request, and how many of them are in flight.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from _build import BUILD
from _http import ANSWER_BYTES, PLAINTEXT, Request, fields
from _measure import Config, Settings, attempt, measure, measure_memory_once, run_rounds, say
from _servers import SERVERS, Spec
from _table import http_table, memory_table

FILE = BUILD / "asgi.bin"
FILE_BYTES = 64 << 20
MESSAGE_BYTES = 64
IDLE = 5000
JSON = b'{"message":"Hello, World!"}'
BASELINES = ("granian", "uvicorn")

# A browser's, and a number that is another one in each request.
NINE_FIELDS = fields(
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Accept-Language: en-GB,en;q=0.5",
    "Accept-Encoding: gzip, deflate, br, zstd",
    "Referer: https://example.org/start",
    "Priority: u=0, i",
    "X-Request-Id: 0b8a5e4c-########",
)


@dataclass(frozen=True)
class AsgiServer:
    name: str
    file: str
    needs: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    has_worker: bool = False

    def spec(self, python: str, app: str) -> Spec:
        command = (python, str(SERVERS / self.file), "{port}", app, *self.arguments)
        variables = {"BENCHMARK_FILE": str(FILE)}
        return Spec(self.name, command, self.needs, variables=variables, has_worker=self.has_worker)


GAIN_TRIO = AsgiServer("gain_trio", "gain_trio_asgi.py", ("gain_trio",))
SOCKETS = AsgiServer("gain_trio-sockets", "gain_trio_asgi.py", ("gain_trio",), ("trio",))
GRANIAN = AsgiServer("granian", "granian_asgi.py", ("granian", "uvloop"), has_worker=True)
UVICORN = AsgiServer("uvicorn", "uvicorn_asgi.py", ("uvicorn", "httptools", "uvloop"))
UVICORN_WEBSOCKETS = dataclasses.replace(
    UVICORN, arguments=("websockets",), needs=("uvicorn", "httptools", "uvloop", "websockets")
)
UVICORN_SANSIO = dataclasses.replace(UVICORN_WEBSOCKETS, name="uvicorn-sansio", arguments=("websockets-sansio",))
HYPERCORN = AsgiServer("hypercorn", "hypercorn_asgi.py", ("hypercorn", "trio"))
ALL = (GAIN_TRIO, SOCKETS, GRANIAN, UVICORN, HYPERCORN)


@dataclass(frozen=True)
class Row:
    title: str
    config: Config
    app: str = "asgi_app:app"
    servers: tuple[AsgiServer, ...] = ALL
    request: str | None = fields()
    body: bytes | None = PLAINTEXT
    body_length: int = 0
    needs: str | None = None


FAST = (GAIN_TRIO, SOCKETS, GRANIAN, UVICORN)
ROWS = {
    "plain": Row("a trivial app: 64 connections, 1 request at a time", Config(64, ANSWER_BYTES, 1)),
    "json": Row(
        "Starlette, JSON: 64 connections, 1 request at a time",
        Config(64, ANSWER_BYTES, 1),
        app="starlette_app:json",
        body=JSON,
        needs="starlette",
    ),
    "fields": Row(
        "a trivial app, nine request fields, one of them new each time: 64 connections, 1 request at a time",
        Config(64, ANSWER_BYTES, 1),
        servers=FAST,
        request=NINE_FIELDS,
    ),
    "pipelined": Row(
        "a trivial app: 64 connections, 16 requests at a time", Config(64, ANSWER_BYTES, 16), servers=FAST
    ),
    "many": Row("a trivial app: 512 connections, 1 request at a time", Config(512, ANSWER_BYTES, 1), servers=FAST),
    "file": Row(
        "Starlette, FileResponse of 64 MiB: 4 connections, 1 request at a time",
        Config(4, 65536, 1),
        app="starlette_app:file",
        servers=FAST,
        body=None,
        body_length=FILE_BYTES,
        needs="starlette",
    ),
    "websocket": Row(
        f"WebSocket echo: 64 connections, messages of {MESSAGE_BYTES} B",
        Config(64, MESSAGE_BYTES, 1),
        app="asgi_app:websocket",
        servers=(GAIN_TRIO, SOCKETS, GRANIAN, UVICORN_WEBSOCKETS, UVICORN_SANSIO),
        request=None,
    ),
    "memory": Row("a trivial app", Config(IDLE, ANSWER_BYTES, 1)),
}


def known_servers(rows: list[str], python: str) -> dict[str, Spec]:
    """All servers of these rows, each with the app of one of them."""
    return {name: spec for row in rows for name, spec in specs_of(ROWS[row], python).items()}


def specs_of(row: Row, python: str) -> dict[str, Spec]:
    specs = {server.name: server.spec(python, row.app) for server in row.servers}
    if row.needs is None:
        return specs
    return {name: dataclasses.replace(spec, needs=(*spec.needs, row.needs)) for name, spec in specs.items()}


def run_row(name: str, chosen: list[Spec], python: str, settings: Settings) -> dict[str, Any]:
    """Measure those of a row's servers that were chosen."""
    row = ROWS[name]
    names = {spec.name for spec in chosen}
    specs = [spec for spec in specs_of(row, python).values() if spec.name in names]
    say(f"asgi, {name}")
    settings = dataclasses.replace(settings, websocket=row.request is None)
    if row.request is not None:
        request = Request.write(f"asgi-{name}", row.request, body=row.body, length=row.body_length)
        settings = dataclasses.replace(settings, request=request.path, check=request.check)
    if row.body_length:
        _write_file()
        settings = dataclasses.replace(settings, answer_bytes=row.body_length)
    if name == "memory":
        results = run_rounds(
            specs,
            settings.rounds,
            lambda spec: attempt(spec.name, lambda: measure_memory_once(spec, IDLE, settings)),
        )
        table = memory_table(IDLE, results)
    else:
        results = run_rounds(specs, settings.rounds, lambda spec: measure(spec, row.config, settings))
        table = http_table(f"ASGI, {row.title}", results, BASELINES, "message" if settings.websocket else "request")
    print(table, end="\n\n", flush=True)
    return {"mode": "asgi", "row": name, "results": results}


def _write_file() -> None:
    """64 MiB that no file system can leave out as a hole; in the page cache afterwards."""
    if not FILE.exists() or FILE.stat().st_size != FILE_BYTES:
        FILE.write_bytes(bytes(range(1, 129)) * (FILE_BYTES // 128))
    FILE.read_bytes()

"""serve(metrics=...): the statistics for Prometheus."""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
import trio
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from support import worker_handlers as handlers
from support.fuzz import given, st
from support.metrics import GET, ask_metrics, scrape
from support.pairs import receive_all, receive_exactly, until
from support.servers import LOCAL, connect, echo, serving
from support.workers import clients_of, soon

import gain_trio
from gain_trio import Server
from gain_trio._server import _metrics
from gain_trio._server._program_metrics import GatheredMetrics

pytestmark = [pytest.mark.connections, pytest.mark.one_backend]

PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [None, 2])
async def test_the_numbers_are_those_of_the_server(processes: int | None) -> None:
    options: dict[str, Any] = {"metrics": LOCAL, "workers": 2, "processes": processes}
    async with serving(echo, **options) as server:
        clients = [await connect(server) for _ in range(5)]
        for client in clients:
            await client.send(b"12345")
            await receive_exactly(client, 5)
        await clients.pop().aclose()
        await soon(lambda: server.statistics().finished == 1 and server.statistics().bytes_sent == 25)
        now = await scrape(server)
        assert now["gain_trio_connections_accepted_total",] == 5
        assert now["gain_trio_connections_active",] == 4
        assert now["gain_trio_connections_closed_total", "finished"] == 1
        assert now["gain_trio_connections_closed_total", "error"] == 0
        assert now["gain_trio_received_bytes_total",] == now["gain_trio_sent_bytes_total",] == 25
        by_consumer = [now["gain_trio_consumer_connections_total", str(i)] for i in range(2 * (processes or 1))]
        assert sum(by_consumer) == 5
        assert now["gain_trio_worker_processes",] == (processes or 0)
        assert now["gain_trio_worker_restarts_total",] == 0
        for client in clients:
            client.abort()


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.slow
async def test_a_restart_is_counted_and_nothing_counted_is_lost() -> None:
    async with serving(handlers.tell_process, metrics=LOCAL, processes=1) as server:
        async with clients_of(server, 3):
            await soon(lambda: server.statistics().accepted == 3)
        [pid] = await worker_pids(server)
        handlers.os.kill(pid, handlers.signal.SIGKILL)
        async with clients_of(server, 1):
            await soon(lambda: server.statistics().accepted == 4)
        now = await scrape(server)
        assert now["gain_trio_worker_restarts_total",] == 1
        assert now["gain_trio_connections_accepted_total",] == 4


async def test_health_and_readiness() -> None:
    async with serving(echo, metrics=LOCAL) as server:
        client = await connect(server)
        await until(lambda: server.active_connections == 1)
        for path in (b"/healthz", b"/ready"):
            status, fields, content = await ask_metrics(server, b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (status, content, fields["cache-control"]) == ("HTTP/1.1 200 OK", "200 OK\n", "no-store")
            status, _fields, content = await ask_metrics(server, b"HEAD " + path + b" HTTP/1.1\r\n\r\n")
            assert (status, content) == ("HTTP/1.1 200 OK", "")
            status, fields, _content = await ask_metrics(
                server, b"POST " + path + b" HTTP/1.1\r\nContent-Length: 0\r\n\r\n"
            )
            assert (status, fields["allow"]) == ("HTTP/1.1 405 Method Not Allowed", "get, head")
        server.stop_accepting()
        assert await statuses(server) == ["HTTP/1.1 200 OK", "HTTP/1.1 503 Service Unavailable"]
        server._begin_to_drain(60)
        assert await statuses(server) == ["HTTP/1.1 200 OK", "HTTP/1.1 503 Service Unavailable"]
        client.abort()


async def statuses(server: Server) -> list[str]:
    """Whether it is healthy, and whether it is ready."""
    return [(await ask_metrics(server, b"GET /" + path + b" HTTP/1.1\r\n\r\n"))[0] for path in (b"healthz", b"ready")]


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.slow
async def test_a_server_of_processes_is_ready_while_one_answers_and_counts_all_of_them() -> None:
    async with serving(handlers.tell_process, metrics=LOCAL, processes=1) as server:
        assert await statuses(server) == ["HTTP/1.1 200 OK", "HTTP/1.1 200 OK"]
        now = await scrape(server)
        [pid] = await worker_pids(server)
        sizes = [resident_memory(one) for one in ("self", pid)]
        assert max(sizes) < now["process_resident_memory_bytes",] < 2 * sum(sizes)
        own = len(os.listdir("/proc/self/fd"))
        assert now["process_open_fds",] > own
        assert 0 < now["process_start_time_seconds",] < time.time()
        handlers.os.kill(pid, handlers.signal.SIGKILL)
        await soon(lambda: server._process_counts() == (1, 1))
        then = await scrape(server)
        assert then["process_cpu_seconds_total",] >= now["process_cpu_seconds_total",] > 0
        server.stop_accepting()
        assert await statuses(server) == ["HTTP/1.1 200 OK", "HTTP/1.1 503 Service Unavailable"]


def resident_memory(process: int | str) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE_SIZE


async def worker_pids(server: Server) -> list[int]:
    async with await connect(server) as client:
        await client.send(b"?")
        return [int(await receive_exactly(client, 8))]


async def test_openmetrics_for_who_accepts_it() -> None:
    async with serving(echo, metrics=LOCAL) as server:
        request = b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n"
        status, fields, content = await ask_metrics(server, request)
        assert status == "HTTP/1.1 200 OK"
        assert fields["content-type"].startswith("application/openmetrics-text")
        assert {family.name for family in parse_openmetrics(content)} >= {"gain_trio_connections_accepted"}


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "405 Method Not Allowed"),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", "200 OK"),
        (b"HEAD / HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"HEAD /metrics HTTP/1.x\r\n\r\n", "400 Bad Request"),
        (b"HEAD /metrics HTTP/1.1\r\nX: " + b"x" * _metrics.LARGEST_REQUEST, "431 Request Header Fields Too Large"),
        (b"GET /metrics?name=x HTTP/1.0\r\n\r\n", "200 OK"),
        (b"GET http://x/metrics HTTP/1.1\r\n\r\n", "200 OK"),
        (b"GET /metrics HTTP/1.x\r\n\r\n", "400 Bad Request"),
        (b"hello\r\n\r\n", "400 Bad Request"),
        (b"GET /metrics SPDY/3\r\n\r\n", "400 Bad Request"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * _metrics.LARGEST_REQUEST, "431 Request Header Fields Too Large"),
    ],
)
async def test_other_requests(request_: bytes, status: str) -> None:
    async with serving(echo, metrics=LOCAL) as server:
        answer, _fields, content = await ask_metrics(server, request_)
        assert answer == f"HTTP/1.1 {status}"
        assert bool(content) is not request_.startswith(b"HEAD")


@pytest.mark.parametrize(
    "accept",
    [
        b"application/openmetrics-text; version=abc",
        b"application/openmetrics-text; version=",
        b"application/openmetrics-text; version==1; version",
        b"application/openmetrics-text; version=1.\xb2",
        b"application/openmetrics-text; version=" + b"9" * 5000,
        b"text/plain; version=-; escaping=",
        b",;=,;;==,",
        bytes(range(0x80, 0x100)),
    ],
)
async def test_any_accept_is_answered_without_a_line_in_the_log(
    accept: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(echo, metrics=LOCAL) as server:
        status, fields, content = await ask_metrics(server, b"GET /metrics HTTP/1.1\r\nAccept: " + accept + b"\r\n\r\n")
        assert status == "HTTP/1.1 200 OK"
        assert fields.keys() == {"content-type", "content-length", "connection"}
        assert "gain_trio_connections_accepted" in content
    assert not [record for record in caplog.records if record.levelno >= logging.INFO and record.name == "gain_trio"]


@pytest.mark.parametrize(
    "accept",
    [
        b"application/openmetrics-text; version=1.0\n.0; escaping=allow-utf-8",
        b"application/openmetrics-text; version=1.0.0; escaping=nonsense\nX: y",
        b"text/plain; version=1.0.0; escaping=\x1b[31m",
        b"\0",
    ],
)
async def test_an_accept_with_control_characters_is_refused(accept: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(echo, metrics=LOCAL) as server:
        status, fields, _content = await ask_metrics(
            server, b"GET /metrics HTTP/1.1\r\nAccept: " + accept + b"\r\n\r\n"
        )
        assert status == "HTTP/1.1 400 Bad Request"
        assert fields.keys() == {"content-type", "content-length", "connection"}
    assert not [record for record in caplog.records if record.levelno >= logging.INFO and record.name == "gain_trio"]


HEADS = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from(
            [
                b"GET /metrics HTTP/1.1\r\n",
                b"HEAD /metrics HTTP/1.0\r\n",
                b"Accept:",
                b"accept: application/openmetrics-text;",
                b"text/plain;",
                b"version=",
                b"escaping=",
                b"\r\n",
                b",",
            ]
        ),
    ),
    max_size=10,
).map(b"".join)


@given(HEADS)
def test_any_request_has_an_answer(head: bytes) -> None:
    server: Any = types.SimpleNamespace(_is_ready=lambda: True)
    answer = _metrics._MetricsHandler(server)._understood(head.partition(b"\r\n\r\n")[0])
    if not isinstance(answer, bytes):
        content, content_type, error = _metrics._exposition(answer.accept, [], GatheredMetrics())
        assert error is None
        answer = answer.answer(content, content_type)
    assert re.match(rb"HTTP/1\.1 (200|400|404|405|414|417|431|501|505) [A-Za-z -]+\r\n", answer)
    fields = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    assert all(re.fullmatch(rb"[A-Za-z-]+: [\x20-\x7e]+", field) for field in fields)


async def test_silent_clients_hold_up_no_scrape(autojump_clock: trio.testing.MockClock) -> None:
    async with serving(echo, metrics=LOCAL) as server:
        [(host, port)] = server.metrics_addresses
        silent = [await gain_trio.connect(f"tcp://{host}:{port}") for _ in range(3 * _metrics.MOST_AT_ONCE)]
        start = trio.current_time()
        autojump_clock.autojump_threshold = math.inf  # metrics are encoded in a thread, which the clock does not see
        assert await scrape(server)
        assert trio.current_time() == start
        autojump_clock.autojump_threshold = 0
        for client in silent:
            with pytest.raises((trio.BrokenResourceError, gain_trio.IncompleteMessage)):
                await client.receive_exactly(1)
            await client.aclose()
        assert trio.current_time() - start <= _metrics.HEAD_TIMEOUT + 1


async def test_who_asks_slowly_is_cut_off(autojump_clock: trio.testing.MockClock) -> None:
    async with serving(echo, metrics=LOCAL) as server:
        [(host, port)] = server.metrics_addresses
        async with await gain_trio.connect(f"tcp://{host}:{port}") as client:
            start = trio.current_time()
            await client.send(GET[:-2])
            with pytest.raises(trio.BrokenResourceError):
                await client.receive()
            assert trio.current_time() - start <= _metrics.HEAD_TIMEOUT + 1


async def test_who_goes_away_does_no_harm() -> None:
    async with serving(echo, metrics=LOCAL) as server:
        [(host, port)] = server.metrics_addresses
        for data in (b"", b"GET"):
            async with await gain_trio.connect(f"tcp://{host}:{port}") as client:
                if data:
                    await client.send(data)
        assert await scrape(server)


async def test_the_log_names_the_endpoint(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(echo, metrics=LOCAL) as server:
        monkeypatch.setattr(server, "statistics", lambda: 1 // 0)
        [(host, port)] = server.metrics_addresses
        async with await gain_trio.connect(f"tcp://{host}:{port}") as client:
            await client.send(GET)
            assert await receive_all(client) == b""
        monkeypatch.undo()
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.getMessage().startswith("handler gain_trio metrics failed with ZeroDivisionError")


async def test_the_endpoint_goes_with_the_server() -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(lambda **status: gain_trio.serve(echo, LOCAL, metrics=LOCAL, **status))
        await server.drain(1)
    [(host, port)] = server.metrics_addresses
    await until(lambda: True)
    with pytest.raises(OSError, match="connect"):
        await gain_trio.connect(f"tcp://{host}:{port}")


async def test_an_address_that_is_taken_is_told() -> None:
    [listener] = await gain_trio.open_listeners(LOCAL)
    async with listener:
        with pytest.raises(OSError, match="cannot listen"):
            await gain_trio.serve(echo, LOCAL, metrics=f"tcp://127.0.0.1:{listener.local_address[1]}")


async def test_without_the_package_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ImportError, match=r'pip install "gain-trio\[metrics\]"'):
        await gain_trio.serve(echo, LOCAL, metrics=LOCAL)

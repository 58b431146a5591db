"""The program's own metrics at the server's endpoint."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import ExitStack
from typing import Any

import pytest
import trio
from prometheus_client import REGISTRY, Counter, Gauge
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.registry import Collector
from support import counting
from support.asgi_serving import ask as ask_app
from support.asgi_serving import closing, hello, serving_app
from support.metrics import ask_metrics, scrape
from support.pairs import receive_exactly
from support.servers import LOCAL, connect, echo, serving
from support.workers import children, soon

from gain_trio import Server
from gain_trio._server import _metrics
from gain_trio._server import _program_metrics as program_metrics
from gain_trio._server._processes import _metrics_gathering
from gain_trio._server._processes._control_messages import MetricsReport, decode, encode
from gain_trio._server._program_metrics import Family, MergedMetrics, ProgramMetrics, Sample

pytestmark = [pytest.mark.connections, pytest.mark.one_backend, pytest.mark.usefixtures("forked_workers")]

INCOMPLETE = "gain_trio_program_metrics_incomplete"


async def scraped(server: Server, accept: str = "text/plain") -> str:
    status, _, content = await ask_metrics(
        server, f"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n".encode()
    )
    assert status == "HTTP/1.1 200 OK"
    return content


@pytest.fixture
def registered() -> Iterable[Any]:
    """A function that registers a collector until the test ends."""
    with ExitStack() as stack:

        def register(collector: Any) -> Any:
            REGISTRY.register(collector)
            stack.callback(REGISTRY.unregister, collector)
            return collector

        yield register


# --- in one process ---


async def test_what_the_program_counts_is_beside_what_the_server_counts(registered: Any) -> None:
    counter = registered(Counter("own_things", "Things.", ["kind"], registry=None))
    gauge = registered(Gauge("own_level", "A level.", registry=None))
    counter.labels("a").inc(3)
    gauge.set(7)
    async with serving(echo, metrics=LOCAL) as server:
        now = await scrape(server)
    assert (now["own_things_total", "a"], now["own_level",]) == (3, 7), "one process: no label is added"
    assert now["gain_trio_connections_active",] == 0
    assert now[INCOMPLETE,] == 0
    assert ("python_gc_collections_total", "0") in now, "prometheus_client's own collectors are in the registry, too"


async def test_an_app_has_its_own_metrics_there(registered: Any) -> None:
    counter = registered(Counter("own_requests", "Requests.", registry=None))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        counter.inc()
        await hello(scope, receive, send)

    async with serving_app(app, metrics=LOCAL) as server:
        await ask_app(server, closing())
        assert (await scrape(server))["own_requests_total",] == 1


class Broken(Collector):
    """Fails after its first metric."""

    def collect(self) -> Iterable[Metric]:
        """Yield one metric."""
        yield GaugeMetricFamily("own_before", "It comes before the failure.", 1)
        raise LookupError("no sensor\nforged line")

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand."""
        return []


async def test_a_collector_that_fails_is_logged_and_costs_its_metrics(
    registered: Any, caplog: pytest.LogCaptureFixture
) -> None:
    registered(Broken())
    async with serving(echo, metrics=LOCAL) as server:
        now = await scrape(server)
        await scrape(server)
        assert now["own_before",] == 1
        assert now[INCOMPLETE,] == 1
        assert now["gain_trio_connections_active",] == 0
    [record] = [record for record in caplog.records if "collector" in record.message]
    assert "no sensor\\nforged line" in record.message


class Fixed(Collector):
    """Has these metrics."""

    def __init__(self, *metrics: Metric) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """All of them."""
        return self._metrics

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand."""
        return []


async def test_metrics_that_cannot_be_encoded_leave_the_servers(
    registered: Any, caplog: pytest.LogCaptureFixture
) -> None:
    wrong: Any = "no number"
    registered(Fixed(GaugeMetricFamily("own_wrong", "Text.", value=wrong)))
    async with serving(echo, metrics=LOCAL) as server:
        now = await scrape(server)
        assert now["gain_trio_connections_active",] == 0
        assert now[INCOMPLETE,] == 1
        assert ("own_wrong",) not in now
    assert "cannot encode" in caplog.text


async def test_a_name_of_the_servers_stays_the_servers(registered: Any) -> None:
    registered(Fixed(GaugeMetricFamily("gain_trio_connections_active", "Forged.", value=999)))
    async with serving(echo, metrics=LOCAL) as server:
        now = await scrape(server)
    assert now["gain_trio_connections_active",] == 0
    assert now[INCOMPLETE,] == 1


async def test_too_many_samples_are_left_out_by_family(registered: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_metrics, "MOST_SAMPLES", 100)
    large = CounterMetricFamily("own_large", "Too many.", labels=["n"])
    for number in range(101):
        large.add_metric([str(number)], 1)
    registered(Fixed(large))
    registered(Fixed(GaugeMetricFamily("own_small", "One.", value=1)))
    async with serving(echo, metrics=LOCAL) as server:
        now = await scrape(server)
    assert now["own_small",] == 1
    assert not any(key[0] == "own_large_total" for key in now)
    assert now[INCOMPLETE,] == 1


async def test_a_collector_that_does_not_return_holds_up_no_server(
    registered: Any, autojump_clock: trio.testing.MockClock
) -> None:
    may_end = threading.Event()

    class Stuck(Fixed):
        def collect(self) -> Iterable[Metric]:
            may_end.wait()
            return super().collect()

    registered(Stuck())
    handed: list[int] = []
    async with serving(echo, metrics=LOCAL) as server:
        try:
            with trio.move_on_after(60):
                async with await connect(server) as client:
                    await client.send(b"?")
                    assert await receive_exactly(client, 1) == b"?"
                gathered = await server._program_metrics()
                handed.append(gathered.incomplete)
        finally:
            may_end.set()
    assert handed == [1]


# --- of several processes ---


def family(kind: str, *values: tuple[str, dict[str, str], float], name: str = "x", mode: str = "") -> Family:
    return Family(
        name, "", kind, "", mode, tuple(Sample(n, tuple(labels.items()), value) for n, labels, value in values)
    )


def merged(*parts: tuple[str | None, Family]) -> dict[Any, float]:
    total = MergedMetrics()
    for worker, of_worker in parts:
        total.add(ProgramMetrics((of_worker,)), worker)
    assert total.is_complete
    return {
        (sample.name, *sample.labels): sample.value for found in total.result().families for sample in found.samples
    }


def test_what_only_grows_is_added_and_outlives_its_process() -> None:
    one = family("counter", ("x_total", {"a": "1"}, 2), ("x_created", {"a": "1"}, 50.0))
    other = family("counter", ("x_total", {"a": "1"}, 3), ("x_created", {"a": "1"}, 40.0), ("x_total", {"a": "2"}, 1))
    gone = family("counter", ("x_total", {"a": "1"}, 100))
    found = merged((None, gone), ("0", one), ("1", other))
    assert found == {
        ("x_total", ("a", "1")): 105,
        ("x_created", ("a", "1")): 40.0,
        ("x_total", ("a", "2")): 1,
    }


@pytest.mark.parametrize(("mode", "value"), [("sum", 9), ("min", 2), ("max", 7)])
def test_a_gauge_follows_its_mode(mode: str, value: float) -> None:
    one, other = (family("gauge", ("x", {}, number), mode=mode) for number in (7, 2))
    assert merged((None, one), ("0", one), ("1", other)) == {("x",): value}, "what is gone does not count"


@pytest.mark.parametrize("kind", ["gauge", "stateset", "unknown", "gaugehistogram"])
def test_the_rest_has_a_label_of_its_process(kind: str) -> None:
    one, other = (family(kind, ("x", {"worker": "theirs"}, number), mode="all") for number in (7, 2))
    assert merged((None, one), ("0", one), ("1", other)) == {
        ("x", ("exported_worker", "theirs"), ("worker", "0")): 7,
        ("x", ("exported_worker", "theirs"), ("worker", "1")): 2,
    }


def test_quantiles_are_not_added() -> None:
    one, other = (family("summary", ("x", {"quantile": "0.5"}, n), ("x_count", {}, n)) for n in (7, 2))
    assert merged((None, one), ("0", one), ("1", other)) == {
        ("x_count",): 16,
        ("x", ("quantile", "0.5"), ("worker", "0")): 7,
        ("x", ("quantile", "0.5"), ("worker", "1")): 2,
    }


def test_one_name_of_two_types_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    total = MergedMetrics()
    total.add(ProgramMetrics((family("counter", ("x_total", {}, 1)),)), "0")
    total.add(ProgramMetrics((family("gauge", ("x", {}, 1)),)), "1")
    assert not total.is_complete
    assert [found.kind for found in total.result().families] == ["counter"]
    monkeypatch.setattr(program_metrics, "MOST_IN_ALL", 1)
    total = MergedMetrics()
    total.add(ProgramMetrics((family("info", ("x_info", {}, 1)),)), "0")
    total.add(ProgramMetrics((family("info", ("y_info", {}, 1), name="y"),)), "0")
    assert not total.is_complete


async def test_the_most_that_a_process_reports_is_one_message(registered: Any) -> None:
    """The bound of a message is above the bounds of metrics, whatever the labels are."""
    wide = "\N{GRINNING FACE}" * 25
    large = CounterMetricFamily("own_large", "Many.", labels=["label"])
    for number in range(program_metrics.MOST_SAMPLES - 1000):
        large.add_metric([f"{number}{wide}"], number)
    registered(Fixed(large))
    report = await program_metrics.reported_metrics()
    assert report.is_complete is (program_metrics.MOST_SAMPLES * 140 < program_metrics.MOST_BYTES)
    found = decode(encode(MetricsReport(1, report)))
    assert found == MetricsReport(1, report)


def long_names() -> Metric:
    family = CounterMetricFamily("own_" + "n" * 300, "Many.", labels=["label"])
    for number in range(program_metrics.MOST_SAMPLES - 1000):
        family.add_metric([str(number)], number)
    return family


def many_labels() -> Metric:
    family = CounterMetricFamily("own_many", "Many.", labels=[f"l{number}" for number in range(40)])
    for number in range(program_metrics.MOST_SAMPLES - 1000):
        family.add_metric([str(number)] * 40, number)
    return family


def long_text() -> Metric:
    return GaugeMetricFamily("own_text", "t" * (5 << 20), value=1)


@pytest.mark.parametrize("make", [long_names, many_labels, long_text])
async def test_what_is_long_in_a_metric_does_not_end_a_worker_process(
    registered: Any, make: Callable[[], Metric]
) -> None:
    """A message that is too long for the control channel would."""
    registered(Fixed(make()))
    report = await program_metrics.reported_metrics()
    assert not report.is_complete
    assert encode(MetricsReport(1, report))


async def test_metrics_without_samples_have_a_bound_too(registered: Any) -> None:
    registered(Fixed(*(Metric(f"own_{number}", "", "counter") for number in range(100_000))))
    report = await program_metrics.reported_metrics()
    assert not report.is_complete
    assert encode(MetricsReport(1, report))


@pytest.fixture
async def two_processes(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    """A server whose processes have the time they need: on a busy machine that is more than a scrape should wait."""
    monkeypatch.setattr(_metrics_gathering, "GATHERING", 100)
    monkeypatch.setattr(_metrics, "TIMEOUT", 110)
    async with serving(counting.greet, metrics=LOCAL, processes=2) as server:
        yield server


async def greeted(server: Server) -> int:
    async with await connect(server) as client:
        await client.send(b"?")
        return int(await receive_exactly(client, 8))


@pytest.mark.slow
async def test_worker_processes_count_together(two_processes: Server) -> None:
    server = two_processes
    pids = [await greeted(server) for _ in range(4)]
    now = await scrape(server)
    assert now["greetings_total", "plain"] == 4
    assert now["sizes_bytes_count",] == now["sizes_bytes_bucket", "100.0"] == 4
    assert (now["sizes_bytes_bucket", "10.0"], now["sizes_bytes_sum",]) == (0, 200)
    assert (now["waits_seconds_count",], now["waits_seconds_sum",]) == (4, 2)
    assert now["greeting_open",] == 2
    assert now["greeting_largest",] == max(pids)
    assert {now["greeting_process", "0"], now["greeting_process", "1"]} == set(pids)
    assert now["greeting_build_info", "1"] == 1
    assert now["greeting_state", "warm", "0"] == now["greeting_state", "warm", "1"] == 1
    assert now["process_resident_memory_bytes",] > 0, "the server has summed what is the same of every process"
    assert now[INCOMPLETE,] == 0
    families = {found.name: found for found in parse_openmetrics(await scraped(server, "application/openmetrics-text"))}
    assert families["greetings"].type == "counter"


@pytest.mark.slow
async def test_what_processes_have_counted_outlives_them(two_processes: Server) -> None:
    server = two_processes
    for _ in range(2):
        await greeted(server)
    assert (await scrape(server))["greetings_total", "plain"] == 2
    old = children()
    await server._renew()
    await soon(lambda: not set(old) & set(children()))
    now = await scrape(server)
    assert now["greetings_total", "plain"] == 2
    assert now.get(("greeting_open",), 0) == 0, "their gauges are gone"
    for _ in range(2):
        await greeted(server)
    assert (await scrape(server))["greetings_total", "plain"] == 4
    killed = children()[0]
    os.kill(killed, signal.SIGKILL)
    await soon(lambda: killed not in children() and server._process_counts() == (2, 1))
    now = await scrape(server)
    assert now["greetings_total", "plain"] == 4, "what was scraped once stays"
    assert now[INCOMPLETE,] == 0


@pytest.mark.slow
async def test_a_process_that_does_not_answer_has_what_it_last_reported(
    two_processes: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = two_processes
    for _ in range(2):
        await greeted(server)
    before = await scrape(server)
    stopped = children()[0]
    monkeypatch.setattr(_metrics_gathering, "GATHERING", 0.2)
    os.kill(stopped, signal.SIGSTOP)
    try:
        now = await scrape(server)
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert now["greetings_total", "plain"] == before["greetings_total", "plain"] == 2
    assert now[INCOMPLETE,] == 1
    await soon_complete(server)


async def soon_complete(server: Server) -> None:
    with trio.fail_after(30):
        while (await scrape(server))[INCOMPLETE,]:
            pass

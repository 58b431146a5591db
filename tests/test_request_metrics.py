"""What is counted of the requests to web apps, over all processes, and how many of them a process serves."""

from __future__ import annotations

import logging
import math
from typing import Any

import attrs
import pytest
import trio
from support import web_apps
from support.asgi_serving import LOCAL, ask, client_of, closing, request, serving_app
from support.metrics import scrape
from support.pairs import until
from support.workers import ARCHITECTURES, children, soon

import gain_trio
from gain_trio import Server
from gain_trio._server import BUCKETS
from gain_trio._server._statistics import ServerStatistics
from gain_trio.asgi import RequestStatistics
from gain_trio.asgi._request_observers import RequestCounter, RequestLimit, joined

pytestmark = [pytest.mark.connections, pytest.mark.one_backend, pytest.mark.usefixtures("forked_workers")]

APP = "support.web_apps:plain"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [None, 2])
async def test_requests_are_counted_by_status_and_duration(processes: int | None) -> None:
    async with serving_app(APP, metrics=LOCAL, processes=processes) as server:
        for target in ("/", "/", "/201", "/404", "/503", "/fail"):
            await ask(server, closing(target=target))
        await soon(lambda: completed(server) == 6)
        now = await scrape(server)
        counts = {key[1]: value for key, value in now.items() if key[0] == "gain_trio_requests_total"}
        assert counts == {"none": 0, "1xx": 0, "2xx": 3, "3xx": 0, "4xx": 1, "5xx": 2}
        assert now["gain_trio_requests_in_progress",] == 0
        assert now["gain_trio_request_duration_seconds_count",] == 6
        assert now["gain_trio_request_duration_seconds_bucket", "+Inf"] == 6
        assert now["gain_trio_request_duration_seconds_sum",] > 0
        assert now["gain_trio_connections_accepted_total",] == 6


def completed(server: Server) -> int:
    requests = server.statistics().requests
    assert requests is not None
    return requests.completed


async def test_a_request_is_in_progress_until_its_response_is_over() -> None:
    may_end = trio.Event()

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await may_end.wait()
        await web_apps.answer(send, "done")

    async with serving_app(app, metrics=LOCAL) as server, client_of(server) as client:
        await client.send(request())
        await until(lambda: server.active_connections == 1)
        while (await scrape(server))["gain_trio_requests_in_progress",] != 1:
            await trio.lowlevel.checkpoint()
        may_end.set()
        await client.receive_until(b"done")
        now = await scrape(server)
        assert now["gain_trio_requests_in_progress",] == 0
        assert now["gain_trio_requests_total", "2xx"] == 1


@pytest.mark.slow
async def test_the_counts_of_processes_that_are_gone_stay() -> None:
    async with serving_app(APP, metrics=LOCAL, processes=1) as server:
        await ask(server, closing())
        await soon(lambda: completed(server) == 1)
        [old] = children()
        await server._renew()
        await soon(lambda: old not in children())
        await ask(server, closing())
        await soon(lambda: completed(server) == 2)


async def test_without_metrics_nothing_is_counted() -> None:
    async with serving_app(APP) as server:
        await ask(server, closing())
        assert server.statistics().requests is None
    async with serving_app(APP, max_requests=100) as server:
        await ask(server, closing())
        assert server.statistics().requests is None


def test_statistics_are_added() -> None:
    one = RequestStatistics(1, (0, 1, 2, 3, 4, 5), (1,) * 16, 0.5)
    other = RequestStatistics(2, (1, 1, 1, 1, 1, 1), (2,) * 16, 1.5)
    both = RequestStatistics(3, (1, 2, 3, 4, 5, 6), (3,) * 16, 2.0)
    assert one + other == both
    assert one + RequestStatistics() == one
    assert both.completed == 21
    nothing = ServerStatistics.total([])
    with_one, with_other = (attrs.evolve(nothing, requests=requests) for requests in (one, other))
    assert ServerStatistics.total([nothing, with_one, with_other]).requests == both
    assert ServerStatistics.total([nothing, nothing]).requests is None


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.0011, 0.3, 60.0, 61.0, 1e6])
def test_a_duration_is_in_one_bucket(seconds: float) -> None:
    times = iter([100.0, 100.0 + seconds])
    counter = RequestCounter(lambda: next(times))
    counter.ended(counter.began({}), {}, 200, 0, None)
    found = counter.statistics()
    assert sum(found.by_duration) == 1
    place = found.by_duration.index(1)
    bounds = [-1.0, *BUCKETS, math.inf]
    taken = (100.0 + seconds) - 100.0
    assert bounds[place] < taken <= bounds[place + 1]


def test_a_status_beyond_all_classes_counts_as_none() -> None:
    counter = RequestCounter()
    counter.ended(counter.began({}), {}, 999, 0, None)
    counter.ended(counter.began({}), {}, 0, 0, None)
    assert counter.statistics().by_status == (2, 0, 0, 0, 0, 0)


def test_several_observers_are_one() -> None:
    assert joined([]) is None
    one, other = RequestCounter(), RequestCounter()
    assert joined([one]) is one
    several = joined([one, other])
    assert several is not None
    several.ended(several.began({}), {}, 200, 0, None)
    assert one.statistics().completed == other.statistics().completed == 1


# --- max_requests ---


def test_the_limit_varies_by_chance() -> None:
    def requests_until_reached() -> int:
        limit, count = RequestLimit(10, 5), 0
        while not limit.reached.is_set():
            limit.ended(limit.began({}), {}, 200, 0, None)  # type: ignore[func-returns-value]
            count += 1
        return count

    counts = {requests_until_reached() for _ in range(500)}
    assert counts == {10, 11, 12, 13, 14, 15}


async def test_a_server_in_one_process_ends_after_its_requests(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gain_trio"):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(lambda **status: gain_trio.asgi.serve(APP, LOCAL, max_requests=3, **status))
            for _ in range(3):
                [answer] = await ask(server, closing())
                assert answer.status == 200
        # serve() has returned
    assert "has served enough" in caplog.text
    assert server.draining.is_set()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_a_process_is_replaced_after_its_requests(architecture: str) -> None:
    async with serving_app(APP, processes=1, architecture=architecture, max_requests=5) as server:
        [first] = children()
        seen: list[int] = []
        while len(set(seen)) < 3:
            [answer] = await ask(server, closing())
            assert answer.status == 200, "no request is refused"
            seen.append(int(answer.body))
        assert seen[:5] == [first] * 5
        assert server._process_counts() == (1, 0), "nothing has died"

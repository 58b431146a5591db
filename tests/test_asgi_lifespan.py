"""The lifespan of ASGI apps: startup, shutdown, state, and the apps that have none."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from support import lifespans, web_apps
from support.asgi_serving import LOCAL, ask, closing, serving_app
from support.pairs import until
from support.workers import ARCHITECTURES, children, raises_alone, soon
from trio.testing import MockClock, wait_all_tasks_blocked

import gain_trio
from gain_trio import WorkerFailed
from gain_trio._server._time_limits import LIFESPAN_GRACE
from gain_trio.asgi import AsgiConfig
from gain_trio.asgi._lifespan import RETURNS_WITHIN, AppLifespan

pytestmark = [pytest.mark.connections, pytest.mark.one_backend]

STARTED = {"type": "lifespan.startup.complete"}
ENDED = {"type": "lifespan.shutdown.complete"}


class App:
    """An app whose lifespan is a function, and which answers with its state."""

    def __init__(self, lifespan: Callable[[Any, Any, Any], Awaitable[None]]) -> None:
        self._lifespan = lifespan
        self.scopes: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        else:
            await web_apps.answer(send, str(scope.get("state")))


async def well_behaved(scope: Any, receive: Any, send: Any) -> None:
    """A lifespan as frameworks have it, with a state."""
    assert await receive() == {"type": "lifespan.startup"}
    scope["state"]["pool"] = "full"
    scope["state"]["list"] = []
    await send(STARTED)
    assert await receive() == {"type": "lifespan.shutdown"}
    await send(ENDED)


def started(app: Any, *, app_lifespan: AppLifespan = "auto", **options: Any) -> Any:
    """Serve an app with its lifespan for the duration of a with statement."""
    return serving_app(app, app_lifespan=app_lifespan, **options)


async def serve(app: Any, **options: Any) -> None:
    await gain_trio.asgi.serve(app, LOCAL, **options)


# --- the start ---


async def test_the_scope_and_the_events() -> None:
    app = App(well_behaved)
    async with started(app):
        assert app.scopes == [
            {
                "type": "lifespan",
                "asgi": {"version": "3.0", "spec_version": "2.0"},
                "state": {"pool": "full", "list": []},
            }
        ]


async def test_the_server_starts_when_the_app_has() -> None:
    may_start = trio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await may_start.wait()
        await well_behaved(scope, receive, send)

    app = App(slow)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _() -> None:
            async with started(app) as server:
                [answer] = await ask(server, closing())
                assert answer.body == b"{'pool': 'full', 'list': []}"

        await until(lambda: len(app.scopes) == 1)
        await wait_all_tasks_blocked()
        assert len(app.scopes) == 1
        may_start.set()


async def test_each_request_has_a_shallow_copy_of_the_state() -> None:
    app = App(well_behaved)
    async with started(app) as server:
        for _ in range(2):
            await ask(server, closing())
    state, one, other = (scope["state"] for scope in app.scopes)
    assert one == other == state
    assert one is not other
    assert one["list"] is other["list"] is state["list"]
    one["more"] = 1
    assert "more" not in other


# --- apps that have none ---


async def raises(_scope: Any, _receive: Any, _send: Any) -> None:
    raise LookupError("what is a lifespan?")


async def returns(_scope: Any, _receive: Any, _send: Any) -> None:
    """Do nothing."""


async def asks_and_returns(_scope: Any, receive: Any, _send: Any) -> None:
    await receive()


@pytest.mark.parametrize("lifespan", [raises, returns, asks_and_returns])
async def test_an_app_that_does_not_answer_has_no_lifespan(lifespan: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gain_trio"):
        async with started(App(lifespan)) as server:
            [answer] = await ask(server, closing())
            assert answer.body == b"None", "no key"
    [record] = [record for record in caplog.records if "has no lifespan" in record.getMessage()]
    assert record.levelno == logging.INFO


async def test_it_is_an_error_where_one_is_asked_for() -> None:
    with pytest.raises(LookupError, match="what is a lifespan"):
        await serve(App(raises), app_lifespan="on")
    with pytest.raises(RuntimeError, match="the app App has no lifespan: its call returned"):
        await serve(App(returns), app_lifespan="on")


async def test_off_means_that_the_app_is_not_asked() -> None:
    app = App(well_behaved)
    async with started(app, app_lifespan="off") as server:
        [answer] = await ask(server, closing())
        assert answer.body == b"None"
    assert [scope["type"] for scope in app.scopes] == ["http"]


def test_there_are_three_modes() -> None:
    with pytest.raises(ValueError, match="app_lifespan"):
        AsgiConfig(app_lifespan="maybe")  # type: ignore[arg-type]


# --- failures ---


@pytest.mark.parametrize("mode", ["auto", "on"])
async def test_a_start_that_fails_ends_the_server(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    async def fails(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})
        await receive()  # which nothing will ever answer

    async def fails_and_raises(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})
        raise LookupError("the database is missing")

    with pytest.raises(RuntimeError, match="the app App could not start: no database"):
        await serve(App(fails), app_lifespan=mode)
    with pytest.raises(LookupError, match="the database is missing"):
        await serve(App(fails_and_raises), app_lifespan=mode)
    assert not caplog.records


async def test_an_error_while_it_serves_ends_the_server() -> None:
    fails = trio.Event()

    async def later(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(STARTED)
        await fails.wait()
        raise LookupError("the pool has burst")

    with raises_alone(LookupError, "the pool has burst"):
        async with started(App(later)):
            fails.set()
            await trio.sleep_forever()


async def test_an_end_that_fails_is_logged_and_raised(caplog: pytest.LogCaptureFixture) -> None:
    async def says_so(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(STARTED)
        await receive()
        await send({"type": "lifespan.shutdown.failed", "message": "it does not close"})

    async def raises_at_end(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(STARTED)
        await receive()
        raise LookupError("of the end")

    with raises_alone(RuntimeError, "the app App could not end: it does not close"):
        async with started(App(says_so)):
            pass
    with raises_alone(LookupError, "of the end"):
        async with started(App(raises_at_end)):
            pass
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2


@pytest.mark.parametrize(
    ("message", "event"),
    [
        (ENDED, "lifespan.startup"),
        ({"type": "http.response.start", "status": 200}, "lifespan.startup"),
        ({"type": "lifespan.shutdown.failed"}, "lifespan.startup"),
    ],
)
async def test_an_answer_to_nothing_is_an_error_of_the_app(message: Any, event: str) -> None:
    async def confused(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(message)

    with pytest.raises(RuntimeError, match=f"the app sends .*, and the event that it answers is '{event}'"):
        await serve(App(confused), app_lifespan="on")


# --- the end ---


async def test_a_cancelled_server_gives_the_app_its_shutdown() -> None:
    events: list[str] = []

    async def lifespan(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(STARTED)
        events.append((await receive())["type"])
        await trio.lowlevel.checkpoint()  # which raises in a cancelled scope
        await send(ENDED)
        events.append("complete")
        await trio.lowlevel.checkpoint()
        events.append("and done")

    async with started(App(lifespan)):
        pass
    assert events == ["lifespan.shutdown", "complete", "and done"]


async def test_an_app_may_return_before_its_shutdown() -> None:
    async def lifespan(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(STARTED)

    async with started(App(lifespan)) as server:
        [answer] = await ask(server, closing())
        assert answer.body == b"{}"


async def test_an_app_that_waits_for_more_events_ends() -> None:
    async def lifespan(_scope: Any, receive: Any, send: Any) -> None:
        while True:
            event = await receive()
            await send({"type": event["type"] + ".complete"})

    async with started(App(lifespan)):
        pass


async def test_its_end_is_bounded(autojump_clock: MockClock) -> None:
    async def lifespan(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(STARTED)
        await receive()
        await trio.sleep_forever()

    began = trio.current_time()
    with raises_alone(trio.TooSlowError, "took too long"):
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda **status: gain_trio.asgi.serve(App(lifespan), LOCAL, **status))
            nursery.cancel_scope.cancel()
    assert trio.current_time() - began == pytest.approx(LIFESPAN_GRACE)


@pytest.mark.parametrize("mode", ["auto", "on"])
async def test_an_app_that_could_not_start_and_does_not_return_is_cancelled(
    mode: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    cancelled = False

    async def fails(_scope: Any, receive: Any, send: Any) -> None:
        nonlocal cancelled
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            cancelled = True
            raise

    began = trio.current_time()
    with pytest.raises(RuntimeError, match="the app App could not start: no database"):
        await serve(App(fails), app_lifespan=mode)
    assert trio.current_time() - began == pytest.approx(RETURNS_WITHIN)
    assert cancelled
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "has not returned 5 seconds after lifespan.startup.failed" in record.getMessage()


@pytest.mark.parametrize("answer", ["complete", "failed"])
async def test_an_app_that_has_ended_and_does_not_return_is_cancelled(
    answer: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def lifespan(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(STARTED)
        await receive()
        await send({"type": f"lifespan.shutdown.{answer}", "message": "no disk"})
        await trio.sleep_forever()

    with contextlib.nullcontext() if answer == "complete" else raises_alone(RuntimeError, "could not end: no disk"):
        async with started(App(lifespan)) as server:
            began = trio.current_time()
            await server.drain(3600)
    assert trio.current_time() - began == pytest.approx(RETURNS_WITHIN)
    assert any(f"after lifespan.shutdown.{answer}" in record.getMessage() for record in caplog.records)


# --- with the lifespan of any server ---


async def test_it_is_within_that_of_the_server() -> None:
    events: list[str] = []

    @contextlib.asynccontextmanager
    async def outer() -> AsyncIterator[str]:
        events.append("outer begins")
        yield "outer value"
        events.append("outer ends")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            events.append(f"app begins with {gain_trio.lifespan_value()}")
            await well_behaved(scope, receive, send)
            events.append("app ends")
        else:
            await web_apps.answer(send, gain_trio.lifespan_value())

    async with started(app, lifespan=outer) as server:
        [answer] = await ask(server, closing())
        assert answer.body == b"outer value"
    assert events == ["outer begins", "app begins with outer value", "app ends", "outer ends"]


# --- worker processes ---


@pytest.fixture
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> lifespans.Recorded:
    monkeypatch.setenv(web_apps.FILE, str(tmp_path / "lines"))
    return lifespans.Recorded(tmp_path / "lines")


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_each_process_has_its_own(architecture: str, lines: lifespans.Recorded) -> None:
    async with started("support.web_apps:recorded", processes=2, architecture=architecture) as server:
        pids = children()
        assert sorted(lines.of("starts")) == pids
        for _ in range(4):
            [answer] = await ask(server, closing())
            in_state, in_request = map(int, answer.body.split())
            assert in_state == in_request
            assert in_state in pids
        assert lines.of("ends") == []
        await server._renew()
        await soon(lambda: sorted(lines.of("ends")) == pids)
        assert len(lines.of("starts")) == 4
    assert sorted(lines.of("ends")) == sorted(lines.of("starts"))


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.slow
async def test_one_that_cannot_start_is_a_worker_that_failed(lines: lifespans.Recorded, tmp_path: Path) -> None:
    (tmp_path / "fail").touch()
    with pytest.raises(WorkerFailed, match="LookupError: the database is missing") as caught:
        await serve("support.web_apps:recorded", processes=2)
    assert "web_apps.py" in caught.value.worker_traceback
    assert lines.lines() == []


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.slow
async def test_one_that_cannot_end_is_a_worker_that_failed(
    lines: lifespans.Recorded, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "fail_at_end").touch()
    with raises_alone(WorkerFailed, "could not end: it does not close"):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(
                lambda **status: gain_trio.asgi.serve("support.web_apps:recorded", LOCAL, processes=1, **status)
            )
            await server.drain(60)
    assert "could not end: it does not close" in caplog.text
    assert os.getpid() not in lines.of("starts")

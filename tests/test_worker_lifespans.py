"""serve(lifespan=..., processes=N): a lifespan in each worker process."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import trio
from support.lifespans import Recorded, stay, tell_value
from support.pairs import PATIENCE, receive_all
from support.servers import connect, serving
from support.workers import ARCHITECTURES, children, process_of, raises_alone, soon

import gain_trio
from gain_trio import Server, WorkerFailed
from gain_trio.callbacks import EventHandler

pytestmark = [
    pytest.mark.connections,
    pytest.mark.slow,
    pytest.mark.one_backend,
    pytest.mark.usefixtures("forked_workers"),
]


@pytest.fixture
def lifespan(tmp_path: Path) -> Recorded:
    return Recorded(tmp_path / "lines")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_each_process_has_its_own(architecture: str, lifespan: Recorded) -> None:
    async with serving(tell_value, processes=2, architecture=architecture, lifespan=lifespan) as server:
        pids = children()
        assert sorted(lifespan.of("begins")) == pids, "before the server has started"
        seen = set()
        with trio.fail_after(PATIENCE):
            while len(seen) < 2:
                async with await connect(server) as client:
                    seen.add(await process_of(client))
        assert seen == set(pids)
        assert lifespan.of("ends") == []
    assert sorted(lifespan.of("ends")) == pids


@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_nothing_is_accepted_before_it_has_begun(architecture: str, lifespan: Recorded, tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    address = f"unix://{tmp_path}/socket" if architecture == "reactor" else "tcp://127.0.0.1:0"
    async with trio.open_nursery() as nursery:
        started: list[Server] = []

        @nursery.start_soon
        async def _() -> None:
            async with serving(
                tell_value, address, processes=1, architecture=architecture, lifespan=lifespan
            ) as server:
                started.append(server)
                await trio.sleep_forever()

        await soon(lambda: len(lifespan.of("enters")) == 1)
        if architecture == "reactor":  # with port 0 only the server knows the port
            client = await gain_trio.connect(address)
            await client.send(b"?")
        assert not started
        hold.unlink()
        await soon(lambda: bool(started))
        if architecture == "socket_sharding":
            client = await connect(started[0])
            await client.send(b"?")
        assert [int(await client.receive_exactly(8))] == lifespan.of("begins") == children()
        client.abort()
        nursery.cancel_scope.cancel()


async def test_one_that_cannot_begin_ends_the_server(lifespan: Recorded, tmp_path: Path) -> None:
    (tmp_path / "fail").touch()
    with pytest.raises(WorkerFailed, match="the database is missing") as caught:
        await gain_trio.serve(tell_value, "tcp://127.0.0.1:0", processes=2, lifespan=lifespan)
    assert "Traceback" in caught.value.worker_traceback
    assert "LookupError" in caught.value.reason
    assert children() == []


async def test_one_that_cannot_begin_later_is_tried_again(
    lifespan: Recorded, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fail = tmp_path / "fail"
    async with serving(tell_value, processes=1, lifespan=lifespan) as server:
        [old] = children()
        async with await connect(server) as client:
            assert await process_of(client) == old
        fail.touch()
        await server._renew()
        assert "goes on, because its successor failed" in caplog.text
        assert children() == [old]
        os.kill(old, signal.SIGKILL)
        await soon(lambda: "could not begin to serve, and is tried again: LookupError" in caplog.text)
        fail.unlink()
        async with await connect(server) as client:
            assert await process_of(client) != old
    assert len(lifespan.of("ends")) == 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_a_rolling_restart_begins_the_new_ones_first(architecture: str, lifespan: Recorded) -> None:
    async with serving(tell_value, processes=2, architecture=architecture, lifespan=lifespan) as server:
        old = lifespan.of("begins")
        async with await connect(server) as client:
            served_by = await process_of(client)
            await server._renew()
            new = lifespan.of("begins")[2:]
            assert len(new) == 2
            assert not set(new) & set(old)
            await soon(lambda: len(lifespan.of("ends")) == 1)
            assert served_by not in lifespan.of("ends"), "it has a connection"
            assert await process_of(client) == served_by
        await soon(lambda: sorted(lifespan.of("ends")) == sorted(old))
        await soon(lambda: sorted(children()) == sorted(new))
    begun = {pid: lifespan.lines().index(f"begins {pid}") for pid in new}
    first_end = next(number for number, line in enumerate(lifespan.lines()) if line.startswith("ends"))
    assert min(begun.values()) < first_end


@pytest.mark.parametrize("how", ["drained", "cancelled", "by two signals"])
async def test_an_error_in_its_end_is_logged_and_raised(
    how: str, lifespan: Recorded, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "fail_at_end").touch()
    with raises_alone(WorkerFailed, "the database does not close"):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(
                lambda **status: gain_trio.serve(
                    stay, "tcp://127.0.0.1:0", processes=2, lifespan=lifespan, signals="signal" in how, **status
                )
            )
            client = await connect(server)
            await soon(lambda: server.active_connections == 1)
            if how == "drained":
                nursery.start_soon(server.drain, 0)
            elif how == "cancelled":
                nursery.cancel_scope.cancel()
            else:
                os.kill(os.getpid(), signal.SIGTERM)
                await server.draining.wait()
                os.kill(os.getpid(), signal.SIGTERM)
    client.abort()
    assert len(lifespan.of("ends")) == 2
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 2
    assert all("failed: the database does not close" in record.getMessage() for record in errors)
    assert all(record.exc_text and "Traceback" in record.exc_text for record in errors)


async def test_an_error_in_the_end_of_a_process_that_is_replaced_is_logged_and_no_more(
    lifespan: Recorded, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fail = tmp_path / "fail_at_end"
    fail.touch()
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            lambda **status: gain_trio.serve(tell_value, "tcp://127.0.0.1:0", processes=1, lifespan=lifespan, **status)
        )
        await server._renew()
        await soon(lambda: "failed: the database does not close" in caplog.text)
        [supervisor] = server._pool.supervisors
        await soon(lambda: len(supervisor.workers) == 1)  # the server has seen it gone, later than it was
        fail.unlink()
        await server.drain(60)
    # serve() has returned
    assert len(lifespan.of("ends")) == 2


async def test_a_process_that_begins_can_be_told_to_end(lifespan: Recorded, tmp_path: Path) -> None:
    """Its lifespan is cancelled then; nothing waits for it until the process is killed."""
    (tmp_path / "hold").touch()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: gain_trio.serve(tell_value, "tcp://127.0.0.1:0", processes=1, lifespan=lifespan))
            await soon(lambda: len(lifespan.of("enters")) == 1)
            scope.cancel()
    assert children() == []
    assert lifespan.of("begins") == []


async def test_callbacks_in_processes_have_one(lifespan: Recorded) -> None:
    async with trio.open_nursery() as nursery:
        server: Any = await nursery.start(
            lambda **status: gain_trio.callbacks.serve(
                EventHandler(), "tcp://127.0.0.1:0", processes=2, lifespan=lifespan, **status
            )
        )
        pids = children()
        assert sorted(lifespan.of("begins")) == pids
        async with await connect(server) as client:
            server.async_shutdown()
            assert await receive_all(client) == b""
    assert sorted(lifespan.of("ends")) == pids


async def test_one_that_cannot_be_sent_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lifespan=.* cannot be sent to worker processes"):
        await gain_trio.serve(tell_value, "tcp://127.0.0.1:0", processes=1, lifespan=lambda: None)  # type: ignore[arg-type,return-value]

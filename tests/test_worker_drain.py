"""A worker process that is to end: connections that have just come are heard first, and none comes any more."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from support import worker_handlers as handlers
from support.certificates import certificate, client_context
from support.pairs import PATIENCE, open_pair, receive_all, receive_exactly
from support.servers import LOCAL
from support.workers import ARCHITECTURES, soon
from trio.testing import MockClock

import gain_trio
from gain_trio import ServerConfig
from gain_trio._server._consumer import Consumer, ConsumerSettings
from gain_trio._server._processes import _hand_off
from gain_trio._server._processes._log_forwarding import LogForwarder
from gain_trio._server._processes._worker import Worker, WorkerSockets
from gain_trio._transports import FIRST_SECONDS

pytestmark = [pytest.mark.connections, pytest.mark.slow, pytest.mark.usefixtures("forked_workers")]


class Server:
    """A worker's own, as far as its drain can see; ``has_silent`` until some time."""

    def __init__(self, heard_at: float) -> None:
        self.draining = trio.Event()
        self.calls: list[tuple[str, float, float]] = []
        self._heard_at = heard_at
        self._acceptors = [SimpleNamespace(is_over=False)]

    @property
    def has_silent(self) -> bool:
        return trio.current_time() < self._heard_at

    def stop_accepting(self) -> None:
        self.calls.append(("stop", trio.current_time(), 0.0))
        self._acceptors[0].is_over = True

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 - the signature of Server.drain
        self.calls.append(("drain", trio.current_time(), timeout))
        self.draining.set()


@pytest.fixture
def worker() -> Iterator[Any]:
    """A worker that is not run."""
    own, other = _hand_off.open_pair()
    with own, other:
        yield Worker(handlers.tell_process, ServerConfig(), WorkerSockets((), other), LogForwarder(), has_metrics=False)


def server_of(worker: Any, unheard_for: float) -> Server:
    server = Server(trio.current_time() + unheard_for)
    worker._server, worker._consumers = server, [server]
    return server


@pytest.mark.parametrize("unheard_for", [0.0, 0.3, 1000.0])
@pytest.mark.parametrize("seconds", [0.0, 0.5, 30.0])
async def test_a_drain_waits_for_first_words_within_a_bound(
    unheard_for: float, seconds: float, worker: Any, autojump_clock: MockClock
) -> None:
    begin = trio.current_time()
    server = server_of(worker, unheard_for)
    await worker._drain(seconds)
    (stop, stopped_at, _), (told, told_at, left) = server.calls
    assert (stop, told, stopped_at) == ("stop", "drain", begin), "first it takes no new connections"
    waited = told_at - begin
    assert waited <= min(unheard_for, seconds, FIRST_SECONDS) + 0.011
    assert waited >= min(unheard_for, seconds, FIRST_SECONDS) - 1e-9
    assert left == pytest.approx(seconds - waited)


async def test_a_second_drain_ends_the_wait(worker: Any, autojump_clock: MockClock) -> None:
    server = server_of(worker, 1000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker._drain, 30)
        await trio.testing.wait_all_tasks_blocked()
        await worker._drain(0)
    assert [name for name, _when, _left in server.calls] == ["stop", "stop", "drain", "drain"]
    assert server.calls[-1][1] < FIRST_SECONDS


async def test_what_has_brought_nothing_is_unheard() -> None:
    entered, leave = trio.Event(), trio.Event()

    async def prepare(connection: Any) -> Any:
        entered.set()
        await leave.wait()
        return connection

    consumer = Consumer(0, ConsumerSettings(handlers.tell_process, prepare=[prepare]))
    client, accepted = await open_pair()
    async with client, trio.open_nursery() as nursery:
        await nursery.start(consumer.run)
        assert not consumer.has_silent
        consumer.hand_off(accepted)
        await entered.wait()
        await client.send(b"?")  # which may be of a handshake
        assert consumer.has_silent
        leave.set()
        await receive_exactly(client, 8)
        assert not consumer.has_silent
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_a_client_that_has_just_connected_is_served(architecture: str, tls: bool, tmp_path: Path) -> None:
    options: dict[str, Any] = {"processes": 2, "architecture": architecture}
    arguments: dict[str, Any] = {}
    if tls:
        chain = tmp_path / "chain.pem"
        chain.write_bytes(certificate().private_key_and_cert_chain_pem.bytes())
        options["ssl_context"] = functools.partial(handlers.load_context, str(chain))
        arguments = {"ssl_context": client_context(), "server_hostname": "localhost"}
    async with trio.open_nursery() as nursery:
        handler = handlers.WhenUnpickled(handlers.tell_process_until_drained, handlers.be_patient_with_first_words)
        serve = functools.partial(gain_trio.serve, handler, LOCAL, **options)
        server = await nursery.start(serve)
        client = await gain_trio.connect(f"tcp://127.0.0.1:{server.addresses[0][1]}", **arguments)
        await soon(lambda: server.statistics().accepted == 1)
        nursery.start_soon(server.drain, 60)
        await server.draining.wait()
        with trio.fail_after(PATIENCE):
            await client.send(b"?")
            assert int(await receive_exactly(client, 8)) > 0
            assert await receive_all(client) == b""
            await client.aclose()

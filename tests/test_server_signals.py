"""serve(signals=True) in one process: what SIGTERM, SIGINT and SIGHUP do."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import Any

import pytest
import trio
from support.pairs import PATIENCE, receive_all, until
from support.servers import LOCAL, connect

import gain_trio
from gain_trio import Connection, Server

pytestmark = pytest.mark.connections

ENDS = [signal.SIGTERM, signal.SIGINT]


async def stay(connection: Connection) -> None:
    """Wait until the client ends the connection, and send it a message when the server drains."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tell, connection)
        await connection.receive()
        nursery.cancel_scope.cancel()
    await connection.send(b"bye")


async def tell(connection: Connection) -> None:
    await connection.draining.wait()
    await connection.send(b"draining")


async def start(nursery: trio.Nursery, **options: Any) -> Server:
    server = await nursery.start(lambda **status: gain_trio.serve(stay, LOCAL, signals=True, **options, **status))
    assert isinstance(server, Server)
    return server


@pytest.mark.parametrize("number", ENDS)
async def test_the_first_signal_drains(number: signal.Signals) -> None:
    async with trio.open_nursery() as nursery:
        server = await start(nursery)
        client = await connect(server)
        await until(lambda: server.active_connections == 1)
        os.kill(os.getpid(), number)
        assert await client.receive() == b"draining"
        assert server.draining.is_set()
        with pytest.raises(OSError, match="connect"):
            await connect(server)
        await client.send(b"!")
        assert await receive_all(client) == b"bye"
        await client.aclose()
    # serve() has returned
    assert server.statistics().finished == 1


@pytest.mark.parametrize("number", ENDS)
async def test_the_second_signal_cancels(number: signal.Signals) -> None:
    async with trio.open_nursery() as nursery:
        server = await start(nursery)
        async with await connect(server) as client:
            await until(lambda: server.active_connections == 1)
            os.kill(os.getpid(), signal.SIGTERM)
            assert await client.receive() == b"draining"
            os.kill(os.getpid(), number)
            assert await receive_all(client) == b""
    assert server.statistics().cancelled == 1
    assert server.cut_off == 0, "the operator has cut it off, and not the server"


async def test_the_graceful_timeout_ends_what_does_not_end() -> None:
    async with trio.open_nursery() as nursery:
        server = await start(nursery, graceful_timeout=0.05)
        async with await connect(server) as client:
            await until(lambda: server.active_connections == 1)
            os.kill(os.getpid(), signal.SIGTERM)
            assert (await receive_all(client)) in (b"draining", b"")
    assert server.statistics().cancelled == server.cut_off == 1


async def test_sighup_without_processes_is_logged_and_does_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gain_trio"):
        async with trio.open_nursery() as nursery:
            server = await start(nursery)
            async with await connect(server) as client:
                os.kill(os.getpid(), signal.SIGHUP)
                with trio.fail_after(PATIENCE):
                    while "SIGHUP replaces worker processes" not in caplog.text:
                        await trio.lowlevel.checkpoint()
                await client.send(b"!")
                assert await receive_all(client) == b"bye"
            nursery.cancel_scope.cancel()


async def test_handlers_of_signals_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (*ENDS, signal.SIGHUP)]
    async with trio.open_nursery() as nursery:
        await start(nursery)
        assert signal.getsignal(signal.SIGTERM) is not before[0]
        nursery.cancel_scope.cancel()
    assert [signal.getsignal(number) for number in (*ENDS, signal.SIGHUP)] == before


async def test_what_the_server_raises_comes_out_as_without_signals() -> None:
    with pytest.raises(ValueError, match="not an address"):
        await gain_trio.serve(stay, "nowhere", signals=True)
    [listener] = await gain_trio.open_listeners(LOCAL)
    async with listener:
        with pytest.raises(OSError, match="cannot listen"):
            await gain_trio.serve(stay, f"tcp://127.0.0.1:{listener.local_address[1]}", signals=True)


def test_another_thread_is_refused() -> None:
    caught: list[BaseException] = []

    def run() -> None:
        try:
            trio.run(lambda: gain_trio.serve(stay, LOCAL, signals=True))
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    [error] = caught
    assert "in the main thread" in str(error)

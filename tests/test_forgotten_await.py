"""A call whose ``await`` was forgotten is told by name, as it is of a coroutine; and one that failed to begin is none."""

from __future__ import annotations

import gc
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import trio
from support.pairs import PATIENCE, open_pair

import gain_trio
from gain_trio import Connection, DatagramEndpoint
from gain_trio._io_manager._seam import current_io_manager

pytestmark = pytest.mark.connections

CALLS: dict[str, Callable[[Connection], object]] = {
    "receive": lambda connection: connection.receive(),
    "receive_into": lambda connection: connection.receive_into(bytearray(1)),
    "__anext__": lambda connection: connection.__anext__(),
    "(messages.*)?__anext__": lambda connection: connection.messages().__anext__(),
    "wait_data": lambda connection: connection.wait_data(),
    "receive_some": lambda connection: connection.receive_some(),
    "receive_exactly": lambda connection: connection.receive_exactly(1),
    "receive_until": lambda connection: connection.receive_until(b"\n", max_bytes=10),
    "_fill": lambda connection: connection._fill(1),
    "wait_change": lambda connection: connection._wait_change(0),
    "send": lambda connection: connection.send(b"x"),
    "send_all": lambda connection: connection.send_all(b"x"),
    "flush": lambda connection: connection.flush(),
    "send_eof": lambda connection: connection.send_eof(),
    "aclose": lambda connection: connection.aclose(),
    "detach": lambda connection: connection.detach(),
}
ENDPOINT_CALLS: dict[str, Callable[[DatagramEndpoint], object]] = {
    "receive": lambda endpoint: endpoint.receive(),
    "(__anext__|receive)": lambda endpoint: anext(endpoint),
    "send": lambda endpoint: endpoint.send(b"x", ("127.0.0.1", 9)),
}


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_of_a_connection(name: str) -> None:
    client, served = await open_pair()
    async with client, served:
        for _ in range(2):  # the second may get the memory of the first
            with pytest.warns(RuntimeWarning, match=rf"^coroutine '.*{name.lstrip('_')}' was never awaited") as caught:
                CALLS[name](served)
            assert [warning.filename for warning in caught] == [__file__]
        await client.send(b"x")
        assert await served.receive() == b"x"


@pytest.mark.parametrize("data", [b"x", bytearray(b"x"), [b"x", bytearray(b"y")]])
async def test_a_send_of_anything(data: Any) -> None:
    client, served = await open_pair()
    async with client, served:
        with pytest.warns(RuntimeWarning, match="send.* was never awaited"):
            served.send(data)
        if isinstance(data, bytearray):
            data.append(1)  # the call does not hold it any more


@pytest.mark.parametrize("name", ENDPOINT_CALLS)
async def test_a_call_of_an_endpoint(name: str) -> None:
    async with await gain_trio.open_datagram_endpoint("udp://127.0.0.1:0") as endpoint:
        for _ in range(2):
            with pytest.warns(RuntimeWarning, match=rf"^coroutine '.*{name.lstrip('_')}' was never awaited"):
                ENDPOINT_CALLS[name](endpoint)


@pytest.mark.full_ring
@pytest.mark.parametrize(("events", "name"), [(1, "wait_readable"), (4, "wait_writable")])
async def test_a_poll(events: int, name: str) -> None:
    client, served = await open_pair()
    async with client, served:
        manager: Any = current_io_manager()
        with pytest.warns(RuntimeWarning, match=f"^coroutine '{name}' was never awaited"):
            manager.proactor.poll({}, client.fileno(), events, False)


async def test_one_in_a_cycle() -> None:
    client, served = await open_pair()
    async with client, served:
        cycle: list[object] = [served.receive()]
        cycle.append(cycle)
        del cycle
        with pytest.warns(RuntimeWarning, match="receive.* was never awaited"):
            gc.collect()


async def test_what_is_no_forgotten_await() -> None:
    """Closed, refused, cancelled before it began to wait, or awaited."""
    client, served = await open_pair()
    async with client, served:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for call in (served.receive(), served.send(b"x"), served.flush()):
                call.close()
            with pytest.raises(ValueError):
                await served.receive(0)
            for refused in (lambda: served.send("text"), lambda: served.send([b"x", 1]), lambda: served.flush(1)):
                with pytest.raises(TypeError):
                    call = refused()  # type: ignore[call-overload]
                    await call
            await client.send(b"x")
            assert await served.receive() == b"x"
            await client.send(b"x")
            await client.flush()
            with trio.CancelScope() as scope:
                scope.cancel()
                await served.receive_some()
            with trio.CancelScope() as scope:
                scope.cancel()
                await served.receive()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(served.receive)


FORGETFUL = """
import trio, gain_trio
async def main():
    [listener] = await gain_trio.open_listeners("tcp://127.0.0.1:0")
    async with listener, await gain_trio.connect("tcp://127.0.0.1:%d" % listener.local_address[1]) as client:
        async with await listener.accept() as served:
            client.send(b"x")
            await client.send(b"y")
            assert await served.receive() == b"y"
            print("went on")
gain_trio.run(main)
"""


def test_where_warnings_are_errors() -> None:
    """Python prints the warning as an error without a caller, and the program goes on, as after a coroutine."""
    command = [sys.executable, "-W", "error", "-c", FORGETFUL]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ended.stdout == "went on\n"
    assert ended.returncode == 0
    assert "Exception ignored" in ended.stderr
    assert "RuntimeWarning: coroutine '" in ended.stderr
    assert "send' was never awaited" in ended.stderr

"""The memory of a call is another call's next, and the garbage collector may come while one goes."""

from __future__ import annotations

import gc
import warnings

import pytest
from support.collector import collecting_always
from support.pairs import open_pair

from gain_trio import Connection

pytestmark = pytest.mark.connections


class Collecting(bytearray):
    """What it belongs to is being taken apart when it goes, and then the collector comes."""

    gone = 0

    def __del__(self) -> None:
        gc.collect()
        Collecting.gone += 1


async def exchange(client: Connection, served: Connection, rounds: int) -> None:
    for number in range(rounds):
        message = number.to_bytes(4, "big")
        await client.send(message)
        await served.send(await served.receive())
        assert await client.receive() == message


async def test_a_collection_at_every_turn() -> None:
    client, served = await open_pair()
    async with client, served:
        with collecting_always():
            await exchange(client, served, 50)


async def test_a_collection_while_a_forgotten_call_goes() -> None:
    client, served = await open_pair()
    async with client, served:
        before = Collecting.gone
        for _ in range(20):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # it is never awaited
                served.send([Collecting(b"x"), b"y"])
            await exchange(client, served, 1)
        assert Collecting.gone == before + 20


@pytest.mark.full_ring  # over sockets it is a coroutine, which is closed when it goes
async def test_a_collection_while_a_waiting_call_goes() -> None:
    """It has been driven by hand up to where it waits, and then dropped."""
    client, served = await open_pair()
    async with client, served:
        before = Collecting.gone
        for _ in range(20):
            call = served.receive_into(Collecting(b"x")).__await__()
            assert call.send(None) is not None  # type: ignore[attr-defined]
            del call
            await exchange(client, served, 1)
        assert Collecting.gone == before + 20


async def test_a_collection_while_the_last_call_takes_its_connection_along() -> None:
    client, served = await open_pair()
    async with client, served:
        before = Collecting.gone
        for _ in range(5):
            other, lost = await open_pair()
            lost.context = Collecting(b"x")
            await other.aclose()
            await lost.aclose()
            call = lost.receive()
            call.close()
            del other, lost, call
            await exchange(client, served, 1)
        assert Collecting.gone == before + 5

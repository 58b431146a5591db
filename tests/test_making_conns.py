"""How a conn begins: as a copy of one that has no connection yet, where there is the C that copies it."""

from __future__ import annotations

import sys
import threading

import pytest
import trio
from support.certificates import open_tls_pair
from support.pairs import Pair, open_pair, pattern
from trio.testing import wait_all_tasks_blocked

from gain_trio._callback_base import PacedDelivery
from gain_trio._kernel import fastpath
from gain_trio._transports import Connection, Marks
from gain_trio.callbacks import Config, Conn, EventHandler
from gain_trio.callbacks._event_server import callbacks_of
from gain_trio.callbacks._stream_conn import ConnSettings, StreamConn, changes_of, maker_of_conns
from gain_trio.callbacks._stream_driver import StreamDriver

pytestmark = pytest.mark.connections

needs_copying = pytest.mark.skipif(fastpath is None, reason="copied() is compiled")


def new_settings() -> ConnSettings:
    return ConnSettings(1000, "raise", trio.lowlevel.current_trio_token(), threading.get_ident())


def slots_of(thing: object) -> dict[str, object]:
    names = [name for kind in type(thing).__mro__ for name in kind.__dict__.get("__slots__", ())]
    return {name: getattr(thing, name) for name in names if name != "__weakref__" and hasattr(thing, name)}


async def test_a_conn_has_all_that_its_class_begins_with(any_pair: Pair) -> None:
    _client, served = any_pair
    settings = new_settings()
    made = slots_of(maker_of_conns(served, settings)(served))
    usual = slots_of(StreamConn(served, changes_of(served), settings))
    assert slots_of(made.pop("_changes")) == slots_of(usual.pop("_changes"))
    assert made == usual


async def test_conns_share_nothing_that_changes(any_pair: Pair) -> None:
    client, served = any_pair
    make = maker_of_conns(served, new_settings())
    one, other = make(served), make(served)
    one.context = "one"
    one.close()
    assert one._changes.is_over
    assert not other._changes.is_over
    assert other.context is None
    assert other.write(b"data") == 4
    assert await client.receive_exactly(4) == b"data"


async def test_a_conn_begins_with_the_pace_of_its_server(any_pair: Pair) -> None:
    _client, served = any_pair
    settings = new_settings()
    settings.pace.size = PacedDelivery.SMALLEST
    make = maker_of_conns(served, settings)
    assert make(served)._whole == PacedDelivery.SMALLEST
    settings.pace.size = PacedDelivery.FIRST
    assert make(served)._whole == PacedDelivery.WHOLE


async def test_one_driver_serves_connections_of_several_classes() -> None:
    class Echo(EventHandler):
        def on_read(self, conn: Conn, n: int) -> None:
            conn.write(conn.next(n).upper())

    driver = StreamDriver(callbacks_of(Echo()), Config(), Marks())

    async def talk(client: Connection) -> None:
        for word in (b"one", b"two"):
            await client.send(word)
            assert await client.receive_exactly(3) == word.upper()
        await client.aclose()

    for _ in range(2):
        for opened in (open_pair, open_tls_pair):
            client, served = await opened()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(talk, client)
                await driver(served)
            assert served._is_closed


async def test_connections_of_several_classes_are_served_at_a_time() -> None:
    class Echo(EventHandler):
        def on_read(self, conn: Conn, n: int) -> None:
            conn.write(conn.next(n))

    driver = StreamDriver(callbacks_of(Echo()), Config(), Marks())
    data = pattern(30_000)  # more than is called back for at once
    async with trio.open_nursery() as nursery:
        clients = []
        for opened in (open_pair, open_tls_pair):
            client, served = await opened()
            nursery.start_soon(driver, served)
            clients.append(client)
        await wait_all_tasks_blocked()
        for client in clients * 2:
            await client.send(data)
            assert await client.receive_exactly(len(data)) == data
        for client in clients:
            await client.aclose()


class Base:
    __slots__ = ("__weakref__", "one")


class Derived(Base):
    __slots__ = ("three", "two")

    one: object
    two: object
    three: object


@needs_copying
def test_a_copy_has_the_same_objects_in_its_slots() -> None:
    value = object()
    original = Derived()
    original.one, original.two = value, "two"
    before = sys.getrefcount(value)
    copies = [fastpath.copied(original) for _ in range(100)]
    assert sys.getrefcount(value) == before + 100
    for copy in copies:
        assert type(copy) is Derived
        assert slots_of(copy) == {"one": value, "two": "two"}
    del copies, copy
    assert sys.getrefcount(value) == before


@needs_copying
@pytest.mark.parametrize("thing", [Exception(), 3, "text", [], Base, test_a_copy_has_the_same_objects_in_its_slots])
def test_what_has_more_than_slots_is_not_copied(thing: object) -> None:
    with pytest.raises(TypeError, match="class of slots"):
        fastpath.copied(thing)

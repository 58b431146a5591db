"""A handler that cannot work is refused when its server is made, and none that can work is."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest
import trio
from support.pairs import receive_all, until
from support.processes import command
from support.servers import LOCAL, echo

import gain_trio
from gain_trio import Connection
from gain_trio._server._checks import check_handler
from gain_trio.callbacks import Conn, EventHandler

pytestmark = pytest.mark.connections


async def two(_number: int, connection: Connection) -> None:
    await echo(connection)


async def with_options(connection: Connection, *, limit: int = 1) -> None:
    assert limit
    await echo(connection)


class Served:
    async def method(self, connection: Connection) -> None:
        await echo(connection)

    @classmethod
    async def of_class(cls, connection: Connection) -> None:
        await echo(connection)

    @staticmethod
    async def static(connection: Connection) -> None:
        await echo(connection)

    async def __call__(self, connection: Connection) -> None:
        await echo(connection)


@functools.wraps(echo)
def wrapping(*arguments: Any) -> Any:
    return echo(*arguments)


def declared(connection: Connection) -> Awaitable[None]:
    return echo(connection)


class WithoutSignature:
    """A callable without a signature, like one of an extension module."""

    @property
    def __signature__(self) -> Any:
        raise ValueError("there is none")

    async def __call__(self, *arguments: Any) -> None:
        await echo(*arguments)


async def anything(*arguments: Any, **_options: Any) -> None:
    await echo(*arguments)


GOOD = [
    echo,
    functools.partial(two, 1),
    functools.partial(functools.partial(with_options), limit=2),
    with_options,
    Served().method,
    Served.of_class,
    Served.static,
    Served(),
    functools.partial(Served()),
    wrapping,
    declared,
    lambda connection: echo(connection),
    WithoutSignature(),
    anything,
]


@pytest.mark.parametrize("handler", GOOD)
async def test_what_can_work_is_accepted(handler: Any) -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(gain_trio.serve, handler, LOCAL)
        async with await gain_trio.connect(server.addresses[0]) as client:
            await client.send(b"hello")
            await client.send_eof()
            assert await receive_all(client) == b"hello"
        await until(lambda: server.statistics().finished == 1)
        nursery.cancel_scope.cancel()


def test_a_function_without_a_signature_is_accepted() -> None:
    with pytest.raises(ValueError, match="signature"):
        inspect.signature(max)
    check_handler(max)


async def test_a_mock_is_accepted() -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(gain_trio.serve, AsyncMock(), LOCAL)
        await nursery.start(gain_trio.serve_datagrams, AsyncMock(), "udp://127.0.0.1:0")
        nursery.cancel_scope.cancel()


def plain(connection: Connection) -> None:
    """Not async."""


async def none() -> None:
    """Without arguments."""


async def keyword(connection: Connection, *, needed: int) -> None:
    """With one that is never given."""


async def generator(connection: Connection) -> Any:
    yield connection


class Sync:
    def method(self, connection: Connection) -> None:
        """Not async."""

    def __call__(self, connection: Connection) -> None:
        """Not async."""

    async def three(self, connection: Connection, more: int) -> None:
        """With too many."""


BAD = [
    (plain, "not an async function"),
    (functools.partial(plain), "not an async function"),
    (Sync().method, "not an async function"),
    (Sync(), "not an async function"),
    (none, "takes"),
    (two, "takes"),
    (keyword, "needed"),
    (Sync().three, "takes"),
    (functools.partial(two, 1, 2), "takes"),
    (generator, "yield"),
    (Sync, "class"),
    (None, "cannot be called"),
    ("echo", "cannot be called"),
    (lambda: None, "takes"),
]


@pytest.mark.parametrize(("handler", "why"), BAD)
@pytest.mark.parametrize("processes", [None, 1])
async def test_what_cannot_work_is_refused(handler: Any, why: str, processes: int | None) -> None:
    with pytest.raises(TypeError, match=why) as caught:
        await gain_trio.serve(handler, LOCAL, processes=processes)
    assert "async function of one connection" in str(caught.value)


async def of_datagram(_data: bytes, _address: Any, _endpoint: Any) -> None:
    """A handler of datagrams."""


@pytest.mark.parametrize(
    ("handler", "why"), [(echo, "takes"), (plain, "not an async"), (3, "cannot be called"), (generator, "yield")]
)
async def test_handlers_of_datagrams_too(handler: Any, why: str) -> None:
    with pytest.raises(TypeError, match=why):
        await gain_trio.serve_datagrams(handler, "udp://127.0.0.1:0")
    async with trio.open_nursery() as nursery:
        await nursery.start(gain_trio.serve_datagrams, of_datagram, "udp://127.0.0.1:0")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("name", ["on_start", "on_accept", "on_read", "on_write", "on_close"])
async def test_callbacks_too(name: str) -> None:
    def wrong(self: EventHandler) -> None:
        """Takes nothing."""

    handler = type("Handler", (EventHandler,), {name: wrong})()
    with pytest.raises(TypeError, match=rf"{name}\(\).*takes"):
        await gain_trio.callbacks.serve(handler, LOCAL)
    with pytest.raises(TypeError, match=name):
        gain_trio.callbacks.EventServer(handler)


async def test_factories_of_protocols_too() -> None:
    class Protocol:
        def __init__(self, needed: int) -> None:
            """Takes something."""

    with pytest.raises(TypeError, match="takes"):
        gain_trio.asyncio_bridge.ProtocolHandler(Protocol)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "network"), [("plain", "tcp"), ("none", "tcp"), ("with_options", "udp")])
def test_the_command_says_so(name: str, network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent), *sys.path])
    status, _out, err = command("serve", f"{network}://127.0.0.1:0", "--handler", f"{Path(__file__).stem}:{name}")
    assert status != 0
    assert "the handler" in err


# --- addresses ---


@pytest.mark.parametrize(
    "address",
    ["tcp://127.0.0.1:0", "tcp://0.0.0.0:0", "tcp://[::1]:0", "tcp://[::]:0", "tcp://:0", "tcp://localhost:0"],
)
async def test_a_servers_addresses_can_be_connected_to(address: str) -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(gain_trio.serve, echo, address)
        for each in server.addresses:
            await exchange(each)
        nursery.cancel_scope.cancel()


async def exchange(address: Any) -> None:
    async with await gain_trio.connect(address) as client:
        await client.send(b"hello")
        assert await client.receive_exactly(5) == b"hello"


@pytest.mark.parametrize("name", ["unix://{}/socket", "unix://{}/s%20p%25a%FFce", "unix://@gain_trio{}%00x"])
async def test_so_can_those_of_unix_servers(name: str, tmp_path: Path) -> None:
    address = name.format(tmp_path if "@" not in name else tmp_path.name)
    async with trio.open_nursery() as nursery:
        server = await nursery.start(gain_trio.serve, echo, address)
        await exchange(server.addresses[0])
        nursery.cancel_scope.cancel()


async def send_back(data: bytes, address: Any, endpoint: gain_trio.DatagramEndpoint) -> None:
    await endpoint.send(data, address)


@pytest.mark.parametrize(
    ("address", "own"),
    [
        ("udp://127.0.0.1:0", "udp://127.0.0.1:0"),
        ("udp://0.0.0.0:0", "udp://127.0.0.1:0"),
        ("udp://[::]:0", "udp://[::1]:0"),
        ("unix://{}/server", "unix://{}/client"),
    ],
)
async def test_so_can_those_of_servers_of_datagrams(address: str, own: str, tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(gain_trio.serve_datagrams, send_back, address.format(tmp_path))
        endpoint = await gain_trio.open_datagram_endpoint(own.format(tmp_path), remote_address=server.address)
        async with endpoint:
            await endpoint.send(b"hello")
            assert (await endpoint.receive())[0] == b"hello"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("address", [("127.0.0.1",), ("127.0.0.1", "80"), ("127.0.0.1", 70000), (1, 2), b"", 3, None])
async def test_what_is_no_address_is_refused(address: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        await gain_trio.connect(address)


# --- context ---


async def test_context_is_assigned_on_both_kinds_of_connection() -> None:
    seen: list[object] = []

    class Handler(EventHandler):
        def on_accept(self, conn: Conn) -> None:
            seen.append(conn.context)
            conn.context = "mine"

        def on_close(self, conn: Conn, err: BaseException | None) -> None:  # noqa: ARG002 - the signature of callbacks
            seen.append(conn.context)
            conn.set_context("again")
            seen.append(conn.context)

    async with trio.open_nursery() as nursery:
        server = await nursery.start(gain_trio.callbacks.serve, Handler(), LOCAL)
        async with await gain_trio.connect(server.addresses[0]) as client:
            client.context = seen
            assert client.context is seen
        await until(lambda: len(seen) == 3)
        nursery.cancel_scope.cancel()
    assert seen == [None, "mine", "again"]

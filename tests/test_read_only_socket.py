"""``connection.socket`` and ``listener.socket``: code that was written for Trio's own streams and listeners reads them.

Trio's own servers of WebSockets and of ASGI run here unchanged over listeners of gain_trio.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio
import trio_websocket
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from support.certificates import client_context, open_tls_pair, server_context
from support.pairs import PATIENCE, Pair, open_pair, open_trio_pair, open_unix_pair
from support.servers import serving

import gain_trio
from gain_trio._transports._connections._read_only_socket import _INSTEAD
from gain_trio.sockets import ReadOnlySocket

pytestmark = pytest.mark.connections

# --- what it shows ---


async def test_it_shows_what_the_socket_shows(pair: Pair) -> None:
    client, served = pair
    assert isinstance(served.socket, ReadOnlySocket)
    assert served.socket.family == socket.AF_INET
    assert served.socket.type == socket.SOCK_STREAM
    assert served.socket.proto == socket.IPPROTO_TCP
    assert served.socket.fileno() == served.fileno()
    assert served.socket.getsockname() == client.socket.getpeername() == served.local_address
    assert served.socket.getpeername() == client.socket.getsockname() == served.remote_address
    assert served.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert served.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 4) == b"\1\0\0\0"
    assert repr(served.socket) == f"<gain_trio.sockets.ReadOnlySocket of 127.0.0.1:{served.local_address[1]}>"


async def test_a_unix_socket_has_its_path(tmp_path: Any) -> None:
    path = str(tmp_path / "socket")
    client, served = await open_unix_pair(f"unix://{path}")
    async with client, served:
        assert served.socket.family == socket.AF_UNIX
        assert (served.socket.getsockname(), served.socket.getpeername()) == (path, "")


async def test_over_tls_it_is_the_socket_below() -> None:
    client, served = await open_tls_pair()
    async with client, served:
        assert served.socket.getpeername() == client.socket.getsockname() == client.local_address


async def test_after_a_close_it_says_what_a_closed_socket_says() -> None:
    client, served = await open_pair()
    view = served.socket
    await served.aclose()
    await client.aclose()
    assert view.fileno() == -1
    assert repr(view) == "<gain_trio.sockets.ReadOnlySocket, closed>"
    for read in (view.getsockname, view.getpeername, lambda: view.family, lambda: view.getsockopt(1, 1)):
        with pytest.raises(OSError) as caught:
            read()
        assert caught.value.errno == errno.EBADF


async def test_after_a_reset_the_peer_is_not_connected() -> None:
    client, served = await open_trio_pair()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    await client.aclose()
    with trio.fail_after(PATIENCE), pytest.raises(trio.BrokenResourceError):
        await served.receive()
    with pytest.raises(OSError) as caught:
        served.socket.getpeername()
    assert caught.value.errno == errno.ENOTCONN
    await served.aclose()


async def test_a_listener_has_one_too() -> None:
    [listener] = await gain_trio.open_listeners("tcp://127.0.0.1:0")
    async with listener:
        assert listener.socket.getsockname() == listener.local_address
        assert listener.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        with pytest.raises(OSError) as caught:
            listener.socket.getpeername()
        assert caught.value.errno == errno.ENOTCONN
    assert listener.socket.fileno() == -1


# --- what it refuses ---


@pytest.mark.parametrize("name", sorted(_INSTEAD))
async def test_what_would_move_bytes_behind_the_connections_back_is_refused(name: str, pair: Pair) -> None:
    _client, served = pair
    with pytest.raises(RuntimeError, match=rf"socket\.{name}\(\) is not possible: .*; use "):
        getattr(served.socket, name)()


def test_every_method_of_a_socket_is_there_or_refused_by_name() -> None:
    """But for what only tells about the Python object, and what another system has."""
    others = {"connect_ex", "get_inheritable", "getblocking", "gettimeout", "ioctl", "set_inheritable", "share"}
    others |= {"sendmsg_afalg", "timeout"}
    names = {name for name in dir(socket.socket) if not name.startswith("_")}
    assert names - others - set(dir(ReadOnlySocket)) == set(_INSTEAD)


async def test_it_has_no_other_attributes(pair: Pair) -> None:
    with pytest.raises(AttributeError, match="'ReadOnlySocket' object has no attribute 'colour'"):
        _ = pair[0].socket.colour
    with pytest.raises(AttributeError):
        pair[0].socket.family = 5  # type: ignore[misc]  # refused when it runs, too


# --- what reads it ---


@contextlib.asynccontextmanager
async def trio_serving(handler: Callable[[Any], Awaitable[object]]) -> AsyncIterator[tuple[str, int]]:
    """Trio's ``serve_listeners`` on a listener of ours."""
    [listener] = await gain_trio.open_listeners("tcp://127.0.0.1:0")
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, handler, [listener])
        yield listener.local_address
        nursery.cancel_scope.cancel()


async def test_a_handler_of_trios_streams_is_served_unchanged() -> None:
    async def greet(stream: trio.SocketStream) -> None:
        _host, port, *_ = stream.socket.getpeername()
        await stream.send_all(b"hello, port %d\n" % port)
        async for data in stream:
            await stream.send_all(data)
        await stream.send_eof()

    async with trio_serving(greet) as address:
        with trio.fail_after(PATIENCE):
            client = await trio.open_tcp_stream(*address)
            async with client:
                await client.send_all(b"bye")
                await client.send_eof()
                received = b"".join([bytes(data) async for data in client])
                assert received == b"hello, port %d\nbye" % client.socket.getsockname()[1]


async def test_a_handler_of_trios_tls_streams_is_served_unchanged() -> None:
    async def greet(stream: trio.SSLStream[trio.SocketStream]) -> None:
        await stream.do_handshake()
        await stream.send_all(b"%d" % stream.transport_stream.socket.getpeername()[1])
        await stream.aclose()

    [listener] = await gain_trio.open_listeners("tcp://127.0.0.1:0")
    tls: Any = trio.SSLListener(listener, server_context())
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, greet, [tls])
        with trio.fail_after(PATIENCE):
            below = await trio.open_tcp_stream(*listener.local_address)
            client = trio.SSLStream(below, client_context(), server_hostname="localhost")
            received = b"".join([bytes(data) async for data in client])
            assert received == b"%d" % below.socket.getsockname()[1]
            await client.aclose()
        nursery.cancel_scope.cancel()


class AnyListener(trio.abc.Listener[Any]):
    """A listener of no special type: trio-websocket's server wants an ``SSLListener`` to be over a ``SocketListener``."""

    def __init__(self, listener: trio.abc.Listener[Any]) -> None:
        self.accept = listener.accept  # type: ignore[method-assign]  # the same call
        self.aclose = listener.aclose  # type: ignore[method-assign]

    async def accept(self) -> Any: ...

    async def aclose(self) -> None: ...


@pytest.mark.parametrize("tls", [False, True])
async def test_the_websocket_server_of_trio_websocket(tls: bool) -> None:
    async def echo(request: trio_websocket.WebSocketRequest) -> None:
        connection = await request.accept()
        with contextlib.suppress(trio_websocket.ConnectionClosed):
            while True:
                await connection.send_message(f"{connection.remote}: {await connection.get_message()}")

    [listener] = await gain_trio.open_listeners("tcp://127.0.0.1:0")
    port = listener.local_address[1]
    accepting: Any = listener
    if tls:
        accepting = AnyListener(trio.SSLListener(accepting, server_context()))
    server = trio_websocket.WebSocketServer(echo, [accepting])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        with trio.fail_after(PATIENCE):
            options: dict[str, ssl.SSLContext] = {"ssl_context": client_context()} if tls else {}
            url = f"wss://localhost:{port}" if tls else f"ws://127.0.0.1:{port}"
            async with trio_websocket.open_websocket_url(url, **options) as client:
                await client.send_message("hello")
                answer = await client.get_message()
        assert answer.endswith(": hello")
        assert answer.startswith('Endpoint(address="127.0.0.1"' if tls else "<gain_trio.Connection")
        nursery.cancel_scope.cancel()


async def app(scope: Any, _receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """Answers with the addresses of both ends, as Hypercorn has read them."""
    body = f"{scope['server'][1]} {scope['client'][1]}".encode()
    headers = [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.mark.parametrize("by", ["trio.serve_listeners", "gain_trio.serve"])
async def test_hypercorn(by: str) -> None:
    """Its server of one connection reads the family and both addresses."""
    config = Config()
    hypercorn = functools.partial(TCPServer, ASGIWrapper(app), config, WorkerContext(None), ConnectionState({}))

    async def ask(address: tuple[str, int]) -> None:
        with trio.fail_after(PATIENCE):
            client = await trio.open_tcp_stream(*address[:2])
            async with client:
                await client.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                answer = b"".join([bytes(data) async for data in client])
                head, _, body = answer.partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
                assert body.split() == [b"%d" % address[1], b"%d" % client.socket.getsockname()[1]]

    if by == "trio.serve_listeners":
        async with trio_serving(hypercorn) as address:
            await ask(address)
    else:

        async def handler(connection: gain_trio.Connection) -> None:
            await hypercorn(connection)

        async with serving(handler) as server:
            await ask(server.addresses[0])

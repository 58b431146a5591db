"""WebSockets of real apps with clients that other projects have written."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
import trio_websocket
import websockets.exceptions
import websockets.sync.client
from support import web_apps, websocket_apps
from support.certificates import client_context, server_context
from support.http_answers import GET, answers
from support.pairs import PATIENCE, receive_all, until
from support.websocket_servers import peer_of, serving_websockets
from websockets.sync.client import ClientConnection

from gain_trio import Server
from gain_trio.asgi import AsgiConfig
from gain_trio.asgi._asgi_handler import AsgiHandler

pytestmark = [pytest.mark.connections, pytest.mark.one_backend, pytest.mark.usefixtures("forked_workers")]

T = TypeVar("T")


@pytest.fixture(autouse=True)
def nothing_seen() -> Iterator[None]:
    websocket_apps.SEEN.clear()
    yield
    websocket_apps.SEEN.clear()


def port_of(server: Server) -> int:
    return int(server.addresses[0][1])


@contextlib.contextmanager
def client(server: Server, path: str = "/", **options: Any) -> Iterator[ClientConnection]:
    """The client of the package websockets, which blocks its thread."""
    with websockets.sync.client.connect(
        f"ws://127.0.0.1:{port_of(server)}{path}", open_timeout=PATIENCE, close_timeout=PATIENCE, **options
    ) as connection:
        yield connection


async def in_thread(function: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(function)


# --- the client of websockets ---


@pytest.mark.parametrize("compression", [None, "deflate"])
async def test_messages_of_all_sizes_and_kinds(compression: str | None) -> None:
    async with serving_websockets(websocket_apps.send_back) as server:

        def talk() -> None:
            with client(server, compression=compression, max_size=None) as connection:
                assert bool(connection.protocol.extensions) is (compression is not None)
                for size in (0, 1, 125, 126, 127, 65535, 65536, 300_000):
                    text = "ü" * size
                    connection.send(text)
                    assert connection.recv(PATIENCE) == text
                    data = os.urandom(size)
                    connection.send(data)
                    assert connection.recv(PATIENCE) == data
                connection.send(["in ", "several ", "fragments"])
                assert connection.recv(PATIENCE) == "in several fragments"
                connection.send([b"\x00", b"\xff" * 70_000])
                assert connection.recv(PATIENCE) == b"\x00" + b"\xff" * 70_000
                assert connection.ping("ping").wait(PATIENCE)

        await in_thread(talk)


async def test_the_close_code_of_the_client() -> None:
    async with serving_websockets(websocket_apps.starlette_app) as server:

        def talk() -> None:
            with client(server, "/shouting") as connection:
                connection.send("hello")
                assert connection.recv(PATIENCE) == "HELLO"
                connection.close(4321, "why not")
                assert connection.close_code == 4321

        await in_thread(talk)
        await until(lambda: bool(websocket_apps.SEEN))
    assert websocket_apps.SEEN == [("shouting", 4321)]


async def test_the_close_code_of_the_app() -> None:
    async with serving_websockets(websocket_apps.starlette_app) as server:

        def talk() -> None:
            with client(server, "/closing") as connection:
                assert connection.recv(PATIENCE) == b"bye"
                with pytest.raises(websockets.exceptions.ConnectionClosed):
                    connection.recv(PATIENCE)
                assert (connection.close_code, connection.close_reason) == (4001, "enough")

        await in_thread(talk)


async def test_a_message_that_is_too_long_for_the_server() -> None:
    async with serving_websockets(websocket_apps.send_back, ws_max_size=1000) as server:

        def talk() -> None:
            with client(server) as connection:
                with pytest.raises(websockets.exceptions.ConnectionClosed):
                    connection.send("x" * 5_000_000)
                    connection.recv(PATIENCE)
                assert connection.close_code == 1009

        await in_thread(talk)


async def test_subprotocols() -> None:
    async with serving_websockets(websocket_apps.send_back) as server:

        def talk() -> str | None:
            with client(server, subprotocols=["chat", "superchat"]) as connection:  # type: ignore[list-item]
                return connection.subprotocol

        assert await in_thread(talk) == "chat"


async def test_over_tls() -> None:
    async with serving_websockets(websocket_apps.send_back, ssl_context=server_context()) as server:

        def talk() -> None:
            with websockets.sync.client.connect(
                f"wss://127.0.0.1:{port_of(server)}/",
                ssl=client_context(),
                server_hostname="localhost",
                close_timeout=PATIENCE,
            ) as connection:
                connection.send("x" * 200_000)
                assert connection.recv(PATIENCE) == "x" * 200_000

        await in_thread(talk)
        url = f"wss://localhost:{port_of(server)}/"
        async with trio_websocket.open_websocket_url(url, ssl_context=client_context()) as client_on_trio:
            await client_on_trio.send_message("text")
            assert await client_on_trio.get_message() == "text"
            await client_on_trio.aclose(3000)
            assert client_on_trio.closed is not None
            assert client_on_trio.closed.code == 3000


async def test_over_a_unix_socket(tmp_path: Path) -> None:
    async with serving_websockets(websocket_apps.send_back, f"unix://{tmp_path}/socket"):

        def talk() -> None:
            with websockets.sync.client.unix_connect(f"{tmp_path}/socket", "ws://here/") as connection:
                connection.send("hello")
                assert connection.recv(PATIENCE) == "hello"

        await in_thread(talk)


async def test_many_clients_at_a_time() -> None:
    async with serving_websockets(websocket_apps.send_back) as server:

        def talk(number: int) -> None:
            with client(server) as connection:
                for turn in range(20):
                    connection.send(f"{number} {turn}" * 100)
                    assert connection.recv(PATIENCE) == f"{number} {turn}" * 100

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(trio.to_thread.run_sync, talk, number)


async def test_a_drain_tells_the_client_1012() -> None:
    async with serving_websockets(websocket_apps.starlette_app) as server:
        talking = threading.Event()

        def talk() -> tuple[int | None, str | None]:
            with client(server, "/shouting") as connection:
                connection.send("hello")
                assert connection.recv(PATIENCE) == "HELLO"
                talking.set()
                with pytest.raises(websockets.exceptions.ConnectionClosed):
                    connection.recv(PATIENCE)
                return connection.close_code, connection.close_reason

        async with trio.open_nursery() as nursery:

            async def drain() -> None:
                await in_thread(talking.wait)
                await server.drain(PATIENCE)

            nursery.start_soon(drain)
            assert (await in_thread(talk))[0] == 1012
    assert websocket_apps.SEEN == [("shouting", 1012)]


async def test_worker_processes() -> None:
    async with serving_websockets("support.websocket_apps:send_back", processes=1) as server:

        def talk() -> str | bytes:
            with client(server, subprotocols=["process"]) as connection:  # type: ignore[list-item]
                process = connection.recv(PATIENCE)
                connection.send("hello")
                assert connection.recv(PATIENCE) == "hello"
                return process

        assert int(await in_thread(talk)) != os.getpid()


# --- the client of trio-websocket ---


async def test_with_a_client_on_trio() -> None:
    async with serving_websockets(websocket_apps.send_back) as server:
        url = f"ws://127.0.0.1:{port_of(server)}/"
        async with trio_websocket.open_websocket_url(url) as connection:
            await connection.send_message("text")
            assert await connection.get_message() == "text"
            await connection.send_message(b"\x00" * 100_000)
            assert await connection.get_message() == b"\x00" * 100_000
            with trio.fail_after(PATIENCE):
                await connection.ping(b"payload")
            await connection.aclose(3000, "done")
            assert connection.closed is not None
            assert connection.closed.code == 3000


async def test_many_clients_on_trio() -> None:
    async with serving_websockets(websocket_apps.send_back) as server:
        url = f"ws://127.0.0.1:{port_of(server)}/"

        async def talk(number: int) -> None:
            async with trio_websocket.open_websocket_url(url) as connection:
                for turn in range(10):
                    await connection.send_message(f"{number} {turn}")
                    assert await connection.get_message() == f"{number} {turn}"

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(talk, number)


# --- Starlette and FastAPI ---


async def test_json_of_starlette() -> None:
    async with serving_websockets(websocket_apps.starlette_app) as server:

        def talk() -> None:
            with client(server, "/json") as connection:
                assert connection.response is not None
                assert connection.response.headers["x-own"] == "1"
                for number in range(5):
                    connection.send(json.dumps({"number": number}))
                    assert json.loads(connection.recv(PATIENCE)) == {"number": number + 1}

        await in_thread(talk)


@pytest.mark.parametrize(("path", "status", "body"), [("/denied", 402, b"members only"), ("/nothing", 403, b"")])
async def test_a_denied_client_gets_the_response(path: str, status: int, body: bytes) -> None:
    async with serving_websockets(websocket_apps.starlette_app) as server:

        def talk() -> tuple[int, bytes]:
            with pytest.raises(websockets.exceptions.InvalidStatus) as caught, client(server, path):
                pass
            response = caught.value.response
            return response.status_code, bytes(response.body or b"")

        assert await in_thread(talk) == (status, body)


async def test_a_fastapi_app(caplog: pytest.LogCaptureFixture) -> None:
    async with serving_websockets(websocket_apps.fastapi_app) as server:

        def talk() -> None:
            with client(server, "/rooms/7?name=me") as connection:
                assert json.loads(connection.recv(PATIENCE)) == {"room": 7, "name": "me", "resource": "resource"}
                connection.send("hello")
                assert connection.recv(PATIENCE) == "hello"

        await in_thread(talk)
        await until(lambda: len(websocket_apps.SEEN) == 2)
    assert websocket_apps.SEEN == [("room", 1000), ("resource", 0)]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_client_that_vanishes_from_an_app_that_does_not_care(caplog: pytest.LogCaptureFixture) -> None:
    """Starlette raises WebSocketDisconnect out of such an app."""

    async def careless(scope: Any, receive: Any, send: Any) -> None:
        from starlette.websockets import WebSocket

        websocket = WebSocket(scope, receive, send)
        await websocket.accept()
        while True:
            await websocket.receive_text()

    async with serving_websockets(careless) as server:

        def talk() -> None:
            with client(server) as connection:
                connection.socket.shutdown(socket.SHUT_RDWR)

        await in_thread(talk)
        await until(lambda: server.active_connections == 0)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("app", [websocket_apps.starlette_app, websocket_apps.fastapi_app])
async def test_http_beside_websockets(app: Any) -> None:
    async with serving_websockets(app) as server:
        stream = await trio.open_tcp_stream("127.0.0.1", port_of(server))
        async with stream:
            await stream.send_all(
                GET.replace(b"/plaintext", b"/").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
            )
            [answer] = answers(await receive_all(stream))
        assert answer.status == 200
        assert b"home" in answer.body


# --- without WebSockets ---


async def test_without_websockets_a_handshake_is_an_ordinary_request() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 418})
        await send({"type": "http.response.body"})

    async with serving_websockets(app, websockets=False) as server:

        def talk() -> int:
            with pytest.raises(websockets.exceptions.InvalidStatus) as caught, client(server):
                pass
            return caught.value.response.status_code

        assert await in_thread(talk) == 418


@pytest.fixture
def without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == "websockets" or name.startswith("gain_trio.asgi._websocket"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "websockets", None)


@pytest.mark.usefixtures("without_the_package")
def test_without_the_package_the_error_names_the_cure() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"gain-trio\[asgi\]"):
        AsgiHandler(websocket_apps.send_back, AsgiConfig(websockets=True))
    AsgiHandler(websocket_apps.send_back, AsgiConfig(websockets=False))


@pytest.mark.usefixtures("without_the_package")
@pytest.mark.parametrize("options", [{}, {"websockets": False}], ids=str)
async def test_without_the_package_http_is_served(options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await web_apps.answer(send, scope["type"])

    caplog.set_level(logging.INFO, "gain_trio")
    async with serving_websockets(app, **options) as server, peer_of(server) as peer:
        await peer.response()
        assert peer.status == 200
        while b"http" not in peer.received:
            peer.received += await peer.stream.receive_some()
    lines = [record for record in caplog.records if "gain-trio[asgi]" in record.getMessage()]
    assert [record.levelno for record in lines] == ([] if options else [logging.INFO])


@pytest.mark.parametrize("value", ["auto", 1, 0])
def test_whether_there_are_websockets_is_one_of_three(value: Any) -> None:
    with pytest.raises(TypeError, match="websockets is True, False or None"):
        AsgiConfig(websockets=value)


def test_with_the_package_they_are_served_unless_refused() -> None:
    served = [
        AsgiHandler(websocket_apps.send_back, AsgiConfig(websockets=value)).websocket is not None
        for value in (None, True, False)
    ]
    assert served == [True, True, False]

"""A server of an ASGI app for the duration of a with statement, and what its clients do."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

import gain_trio
from gain_trio import Connection, Marks, Server
from gain_trio.asgi import AsgiApp
from gain_trio.asgi._lifespan import AppLifespan

from .http_answers import Answer, answers
from .pairs import PATIENCE, receive_all

LOCAL = "tcp://127.0.0.1:0"
TEXT = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
BODY = {"type": "http.response.body", "body": b"Hello, World!"}
PIECE = {"type": "http.response.body", "body": b"x" * 1000, "more_body": True}

FEW = Marks(receive_high=4096, receive_low=1024)
"""The marks of one that soon reads no more."""


class Broken(Exception):
    """An app's own."""


async def fails_at_once(_scope: Any, _receive: Any, _send: Any) -> None:
    """An app that raises before it sends."""
    raise Broken("at once")


def tracebacks(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What was logged of errors."""
    return [record for record in caplog.records if record.levelno >= logging.ERROR]


async def hello(_scope: Any, _receive: Any, send: Any) -> None:
    """An app that says hello, whatever the request is."""
    await send(TEXT)
    await send(BODY)


@contextlib.asynccontextmanager
async def serving_app(
    app: AsgiApp | str,
    address: Any = LOCAL,
    *,
    patience: float = PATIENCE,
    app_lifespan: AppLifespan = "off",
    **options: Any,
) -> AsyncIterator[Server]:
    """Serve an app for the duration of a with statement, which has ``patience`` seconds."""
    with trio.fail_after(patience):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(
                lambda **status: gain_trio.asgi.serve(app, address, app_lifespan=app_lifespan, **options, **status)
            )
            assert isinstance(server, Server)
            yield server
            nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def client_of(server: Server, *, marks: Marks | None = None) -> AsyncIterator[Connection]:
    """A client of a server on 127.0.0.1, which is reset at the end unless it was closed."""
    client = await gain_trio.connect(f"tcp://127.0.0.1:{server.addresses[0][1]}", marks=marks)
    try:
        yield client
    finally:
        client.abort()


def request(method: str = "GET", target: str = "/", *fields: str, body: bytes = b"", version: str = "1.1") -> bytes:
    """A request.  The body needs a field that says its length."""
    lines = [f"{method} {target} HTTP/{version}", "Host: here", *fields, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def closing(method: str = "GET", target: str = "/", *fields: str, body: bytes = b"") -> bytes:
    """The last request of a connection."""
    return request(method, target, "Connection: close", *fields, body=body)


async def raw_answer(server: Server, sent: bytes) -> bytes:
    """All that comes back until the server closes the connection, as it does after a request that says so."""
    async with client_of(server) as client:
        await client.send(sent)
        return await receive_all(client)


async def ask(server: Server, sent: bytes, *methods: str) -> list[Answer]:
    """The same as responses to requests with these methods."""
    return answers(await raw_answer(server, sent), *methods)


async def head_of_response(client: Connection) -> bytes:
    """Receive the head of a response, with the empty line."""
    return await client.receive_until(b"\r\n\r\n")


async def receive_hello(client: Connection) -> None:
    """Receive a response of hello."""
    await head_of_response(client)
    assert await client.receive_exactly(13) == b"Hello, World!"

"""serve(lifespan=...): what is opened before the first connection and closed after the last, in one process."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import math
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from support import lifespans
from support.descriptors import open_descriptors
from support.pairs import PATIENCE, receive_all, receive_exactly, until
from support.servers import LOCAL, connect, echo, serving
from support.workers import raises_alone
from trio.testing import MockClock, wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection, Server, ServerConfig, lifespan_value
from gain_trio._server._time_limits import LIFESPAN_GRACE
from gain_trio.asyncio_bridge import ProtocolHandler
from gain_trio.callbacks import Conn, EventHandler, EventServer

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

pytestmark = [pytest.mark.connections, pytest.mark.one_backend]

Lifespan = Callable[[], contextlib.AbstractAsyncContextManager[object]]


class Recorded:
    """A lifespan that lists what happens, and waits where it is told to."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.may_begin = trio.Event()
        self.may_begin.set()
        self.may_end = trio.Event()
        self.may_end.set()

    @contextlib.asynccontextmanager
    async def __call__(self) -> AsyncIterator[str]:
        self.events.append("enters")
        await self.may_begin.wait()
        self.events.append("begins")
        try:
            yield "the value"
        finally:
            self.events.append("leaves")
            await trio.lowlevel.checkpoint()
            await self.may_end.wait()
            self.events.append("ends")

    async def serve_one(self, connection: Connection) -> None:
        """A handler."""
        self.events.append("handler begins")
        try:
            async for data in connection.messages():
                await connection.send(data)
        finally:
            self.events.append("handler ends")


async def tell(connection: Connection) -> None:
    """A handler that sends the value of the lifespan."""
    await connection.send(lifespan_value().encode())


async def answer_of(server: Server) -> bytes:
    """Everything that the server sends to a client."""
    async with await connect(server) as client:
        return await receive_all(client)


async def start(
    nursery: trio.Nursery, handler: Any, lifespan: Lifespan, address: str = LOCAL, **options: Any
) -> Server:
    server = await nursery.start(
        lambda **status: gain_trio.serve(handler, address, lifespan=lifespan, **options, **status)
    )
    assert isinstance(server, Server)
    return server


# --- its beginning ---


async def test_nothing_is_accepted_before_it_has_begun(tmp_path: Path) -> None:
    lifespan = Recorded()
    lifespan.may_begin = trio.Event()
    address = f"unix://{tmp_path}/socket"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: gain_trio.serve(lifespan.serve_one, address, lifespan=lifespan))
        await until(lambda: lifespan.events == ["enters"])
        async with await gain_trio.connect(address) as client:
            await client.send(b"hello")
            await wait_all_tasks_blocked(0.01)
            assert lifespan.events == ["enters"]
            lifespan.may_begin.set()
            assert await receive_exactly(client, 5) == b"hello"
        await until(lambda: lifespan.events == ["enters", "begins", "handler begins", "handler ends"])
        nursery.cancel_scope.cancel()
    assert lifespan.events[4:] == ["leaves", "ends"]


async def test_a_server_has_started_when_it_has_begun() -> None:
    lifespan = Recorded()
    async with trio.open_nursery() as nursery:
        await start(nursery, echo, lifespan)
        assert lifespan.events == ["enters", "begins"]
        nursery.cancel_scope.cancel()


async def test_an_error_in_its_beginning_is_what_serve_raises(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    @contextlib.asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        await waits.wait()
        raise LookupError("the database is missing")
        yield

    waits = trio.Event()
    address = f"unix://{tmp_path}/socket"
    descriptors = open_descriptors()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _() -> None:
            with pytest.raises(LookupError, match="the database is missing"):
                await gain_trio.serve(echo, address, lifespan=broken)

        await until((tmp_path / "socket").exists)
        client = await trio.open_unix_socket(f"{tmp_path}/socket")
        waits.set()
        with contextlib.suppress(trio.BrokenResourceError):  # its connection was never accepted
            assert await client.receive_some() == b""
        await client.aclose()
    assert open_descriptors() == descriptors
    assert not caplog.records


async def test_its_beginning_can_be_cancelled() -> None:
    lifespan = Recorded()
    lifespan.may_begin = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: gain_trio.serve(echo, LOCAL, lifespan=lifespan))
        await until(lambda: lifespan.events == ["enters"])
        nursery.cancel_scope.cancel()
    assert lifespan.events == ["enters"]


async def test_a_signal_cancels_its_beginning() -> None:
    lifespan = Recorded()
    lifespan.may_begin = trio.Event()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _() -> None:
            with pytest.raises(KeyboardInterrupt, match="before the server was up"):
                await gain_trio.serve(echo, LOCAL, lifespan=lifespan, signals=True)

        await until(lambda: lifespan.events == ["enters"])
        os.kill(os.getpid(), signal.SIGTERM)
    assert lifespan.events == ["enters"]


async def test_an_address_that_is_taken_is_found_first() -> None:
    lifespan = Recorded()
    async with serving(echo) as server:
        with pytest.raises(OSError, match="cannot listen"):
            await gain_trio.serve(echo, f"tcp://127.0.0.1:{server.addresses[0][1]}", lifespan=lifespan)
    assert lifespan.events == []


# --- its value ---


async def test_handlers_find_its_value_in_their_tasks_and_threads() -> None:
    found = []

    async def handler(connection: Connection) -> None:
        found.append(lifespan_value())
        found.append(await trio.to_thread.run_sync(lifespan_value))
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _() -> None:
                found.append(lifespan_value())

    async with serving(handler, lifespan=lifespans.named, workers=2) as server:
        for _ in range(2):
            assert await answer_of(server) == b""
    assert found == ["the value"] * 6


async def test_handlers_see_the_context_variables_that_it_sets() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        variable.set("set")
        yield

    async def handler(connection: Connection) -> None:
        await connection.send(f"{variable.get()} {lifespan_value()}".encode())

    async with serving(handler, lifespan=lifespan) as server:
        assert await answer_of(server) == b"set None"


async def test_there_is_no_value_elsewhere() -> None:
    with pytest.raises(RuntimeError, match="handlers of a server that was given lifespan="):
        lifespan_value()
    async with serving(echo, lifespan=lifespans.named):
        with pytest.raises(RuntimeError, match="called somewhere else"):
            lifespan_value()


async def test_servers_within_servers_have_their_own() -> None:
    @contextlib.asynccontextmanager
    async def inner() -> AsyncIterator[str]:
        yield "inner"

    async def outer(connection: Connection) -> None:
        async with serving(tell, lifespan=inner) as server:
            await connection.send(await answer_of(server))
        await connection.send(b" " + lifespan_value().encode())

    async with serving(outer, lifespan=lifespans.named) as server:
        assert await answer_of(server) == b"inner the value"


async def test_callbacks_find_its_value() -> None:
    lifespan = Recorded()
    found = []

    class Handler(EventHandler):
        def on_accept(self, conn: Conn) -> None:  # noqa: ARG002 - the callback's signature
            found.append(lifespan_value())

        def on_read(self, conn: Conn, n: int) -> None:
            conn.write(conn.next(n) + lifespan_value().encode())

    for async_handler in (False, True):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(
                lambda **status: gain_trio.callbacks.serve(
                    Handler(), LOCAL, lifespan=lifespan, async_handler=async_handler, **status
                )
            )
            assert isinstance(server, EventServer)
            async with await gain_trio.connect(f"tcp://127.0.0.1:{server.addresses[0][1]}") as client:
                await client.send(b"x")
                assert await receive_exactly(client, 10) == b"xthe value"
                server.async_shutdown()
                assert await receive_all(client) == b""
    assert found == ["the value"] * 2
    assert lifespan.events == ["enters", "begins", "leaves", "ends"] * 2


async def test_protocols_find_its_value() -> None:
    import asyncio

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            transport.write(lifespan_value().encode())
            transport.close()

    async with serving(ProtocolHandler(Protocol), lifespan=lifespans.named) as server:
        assert await answer_of(server) == b"the value"


async def test_handlers_of_datagrams_find_its_value() -> None:
    lifespan = Recorded()

    async def handler(data: bytes, address: Any, endpoint: gain_trio.DatagramEndpoint) -> None:
        await endpoint.send(data + lifespan_value().encode(), address)

    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            lambda **status: gain_trio.serve_datagrams(handler, "udp://127.0.0.1:0", lifespan=lifespan, **status)
        )
        async with await gain_trio.open_datagram_endpoint("udp://127.0.0.1:0") as client:
            await client.send(b"x", server.address)
            assert (await client.receive())[0] == b"xthe value"
        nursery.cancel_scope.cancel()
    assert lifespan.events == ["enters", "begins", "leaves", "ends"]
    with pytest.raises(TypeError, match="lifespan"):
        await gain_trio.serve_datagrams(handler, "udp://127.0.0.1:0", lifespan=3)  # type: ignore[arg-type]


# --- its end ---


async def test_a_drain_ends_after_it() -> None:
    lifespan = Recorded()
    lifespan.may_end = trio.Event()
    async with trio.open_nursery() as nursery:
        server = await start(nursery, lifespan.serve_one, lifespan)
        client = await connect(server)
        await until(lambda: "handler begins" in lifespan.events)
        async with trio.open_nursery() as drain:
            drain.start_soon(server.drain, 60)
            assert await receive_all(client) == b""
            await until(lambda: lifespan.events[3:] == ["handler ends", "leaves"])
            await wait_all_tasks_blocked()
            assert drain.child_tasks
            lifespan.may_end.set()
        await client.aclose()
        assert lifespan.events[5:] == ["ends"]
    # serve() has returned


async def test_a_cancellation_ends_the_handlers_first_and_then_it_ends_in_peace() -> None:
    lifespan = Recorded()
    async with trio.open_nursery() as nursery:
        server = await start(nursery, lifespan.serve_one, lifespan)
        client = await connect(server)
        await until(lambda: "handler begins" in lifespan.events)
        nursery.cancel_scope.cancel()
    client.abort()
    assert lifespan.events[2:] == ["handler begins", "handler ends", "leaves", "ends"]


async def test_tasks_in_its_nursery_outlive_the_handlers() -> None:
    send, receive = trio.open_memory_channel[str](1)
    written = []

    async def write() -> None:
        async for line in receive:
            await trio.lowlevel.checkpoint()  # which raises when it is cancelled
            written.append(line)

    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with trio.open_nursery() as inner, send:
            inner.start_soon(write)
            yield

    async def handler(connection: Connection) -> None:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            send.send_nowait("the last words of the handler")

    begun = trio.Event()
    async with trio.open_nursery() as nursery:
        server = await start(nursery, handler, lifespan)
        client = await connect(server)
        await begun.wait()
        nursery.cancel_scope.cancel()
    client.abort()
    assert written == ["the last words of the handler"]


async def test_an_error_in_its_nursery_ends_the_server(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        await fails.wait()
        raise LookupError("the connection to the database is lost")

    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with trio.open_nursery() as inner:
            inner.start_soon(fail)
            yield

    fails = trio.Event()
    with raises_alone(LookupError, "the database is lost"):
        async with trio.open_nursery() as nursery:
            await start(nursery, echo, lifespan)
            fails.set()
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert "lifespan" in record.getMessage()
    assert "fail" in caplog.text


@contextlib.asynccontextmanager
async def broken_at_the_end() -> AsyncIterator[None]:
    try:
        yield
    finally:
        await trio.lowlevel.checkpoint()
        raise LookupError("the database does not close")


@pytest.mark.parametrize("how", ["drained", "cancelled", "by a signal", "by two signals"])
async def test_an_error_in_its_end_is_logged_and_raised(how: str, caplog: pytest.LogCaptureFixture) -> None:
    with raises_alone(LookupError, "the database does not close"):
        async with trio.open_nursery() as nursery:
            server = await start(nursery, lifespans.stay, broken_at_the_end, signals="signal" in how)
            client = await connect(server)
            await until(lambda: server.active_connections == 1)
            if how == "drained":
                nursery.start_soon(server.drain, 0)
            elif how == "cancelled":
                nursery.cancel_scope.cancel()
            else:
                os.kill(os.getpid(), signal.SIGTERM)
                await server.draining.wait()
                if how == "by a signal":
                    await client.aclose()
                else:
                    os.kill(os.getpid(), signal.SIGTERM)
    client.abort()
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "lifespan broken_at_the_end failed: the database does not close" in record.getMessage()
    assert "Traceback" in caplog.text


async def test_an_error_of_the_server_reaches_it_and_is_not_its_own(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[BaseException] = []

    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with trio.open_nursery():
            try:
                yield
            except ExceptionGroup as error:
                seen.append(error)
                raise

    async def handler(_connection: Connection) -> None:
        raise LookupError("of the handler")

    with raises_alone(LookupError, "of the handler"):
        async with trio.open_nursery() as nursery:
            client = await connect(await start(nursery, handler, lifespan, strict=True))
    client.abort()
    assert len(seen) == 1
    assert "the lifespan" not in caplog.text


async def test_its_end_is_bounded(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    lifespan = Recorded()
    lifespan.may_end = trio.Event()
    began = trio.current_time()
    with raises_alone(trio.TooSlowError, "took too long"):
        async with trio.open_nursery() as nursery:
            await start(nursery, echo, lifespan)
            nursery.cancel_scope.cancel()
    assert trio.current_time() - began == pytest.approx(LIFESPAN_GRACE)
    assert lifespan.events == ["enters", "begins", "leaves"]
    assert "took too long, and was cancelled" in caplog.text


@pytest.mark.parametrize(("seconds", "expected"), [(60, 60), (1, LIFESPAN_GRACE)])
async def test_in_a_drain_it_has_the_rest_of_its_time(
    autojump_clock: MockClock, seconds: float, expected: float
) -> None:
    lifespan = Recorded()
    lifespan.may_end = trio.Event()
    began = trio.current_time()
    with raises_alone(trio.TooSlowError):
        async with trio.open_nursery() as nursery:
            server = await start(nursery, echo, lifespan)
            await server.drain(seconds)
    assert trio.current_time() - began == pytest.approx(expected)


async def test_a_drain_without_a_limit_gives_it_all_the_time_until_it_is_cancelled(autojump_clock: MockClock) -> None:
    lifespan = Recorded()
    lifespan.may_end = trio.Event()
    began = trio.current_time()
    with raises_alone(trio.TooSlowError):
        async with trio.open_nursery() as nursery:
            server = await start(nursery, echo, lifespan)
            nursery.start_soon(server.drain, math.inf)
            await trio.sleep(1000)
            assert lifespan.events[2:] == ["leaves"]
            nursery.cancel_scope.cancel()
    assert trio.current_time() - began == pytest.approx(1000 + LIFESPAN_GRACE)


# --- refusals ---


@contextlib.asynccontextmanager
async def fine() -> AsyncIterator[None]:
    yield


async def generator() -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize(
    ("lifespan", "match"),
    [
        (generator, "contextlib.asynccontextmanager above an async def"),
        (echo, "contextlib.asynccontextmanager above an async def"),
        (fine(), "give the function that makes it"),
        (3, "a function that returns an async context manager, or None, not 3"),
    ],
)
def test_something_else_is_refused(lifespan: Any, match: str) -> None:
    with pytest.raises(TypeError, match=match):
        ServerConfig(lifespan=lifespan)


async def test_one_that_returns_something_else_is_refused() -> None:
    with pytest.raises(TypeError, match="the lifespan int must return an async context manager, not 0"):
        await gain_trio.serve(echo, LOCAL, lifespan=int)  # type: ignore[arg-type]


async def test_a_server_can_be_awaited_without_a_nursery() -> None:
    lifespan = Recorded()
    with trio.move_on_after(PATIENCE) as scope:

        @contextlib.asynccontextmanager
        async def ended() -> AsyncIterator[None]:
            async with lifespan():
                scope.cancel()
                yield

        await gain_trio.serve(echo, LOCAL, lifespan=ended)
    assert scope.cancelled_caught
    assert lifespan.events == ["enters", "begins", "leaves", "ends"]

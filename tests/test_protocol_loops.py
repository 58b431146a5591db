"""Protocols that ask for asyncio's event loop: there is none, and they are told so."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import trio
from support.pairs import PATIENCE, receive_all, until
from support.servers import connect, serving

import gain_trio
from gain_trio.asyncio_bridge import ProtocolHandler, _no_loop

pytestmark = pytest.mark.connections


async def nothing() -> None:
    pass


@contextlib.contextmanager
def coroutine() -> Iterator[Coroutine[Any, Any, None]]:
    """One that no event loop is going to run."""
    made = nothing()
    try:
        yield made
    finally:
        made.close()


def with_coroutine(call: Callable[[Any], object]) -> Callable[[], object]:
    def do() -> object:
        with coroutine() as made:
            return call(made)

    return do


CALLS: dict[str, Callable[[], object]] = {
    "asyncio.get_running_loop": lambda: asyncio.get_running_loop(),
    "asyncio.get_event_loop": lambda: asyncio.get_event_loop(),
    "asyncio.new_event_loop": lambda: asyncio.new_event_loop(),
    "call_later": lambda: asyncio.get_event_loop().call_later(1, print),
    "asyncio.create_task": with_coroutine(asyncio.create_task),
    "asyncio.ensure_future": with_coroutine(asyncio.ensure_future),
    "asyncio.gather": with_coroutine(asyncio.gather),
    "asyncio.shield": with_coroutine(asyncio.shield),
    "asyncio.as_completed": with_coroutine(lambda made: next(asyncio.as_completed([made]))),  # type: ignore[arg-type]
    "asyncio.Task": with_coroutine(lambda made: asyncio.Task(made)),
    "asyncio.Future": lambda: asyncio.Future(),
    "asyncio.wrap_future": lambda: asyncio.wrap_future(concurrent.futures.Future[None]()),
    "asyncio.StreamReader": lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()),
}
CALLBACKS = ["factory", "connection_made", "data_received", "eof_received", "pause_writing", "connection_lost"]


def protocol_that_calls(where: str, call: Callable[[], object]) -> type[asyncio.Protocol]:
    class Calls(asyncio.Protocol):
        def __init__(self) -> None:
            self._at("factory")

        def _at(self, here: str) -> None:
            if here == where:
                call()

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport: Any = transport
            self._at("connection_made")

        def data_received(self, _data: bytes) -> None:
            self._at("data_received")
            if where == "pause_writing":
                self.transport.write(bytes(12 << 20))
                self.transport.abort()

        def eof_received(self) -> None:
            self._at("eof_received")

        def pause_writing(self) -> None:
            self._at("pause_writing")

        def connection_lost(self, _exc: Exception | None) -> None:
            self._at("connection_lost")

    return Calls


async def have_called(protocol: type[asyncio.Protocol]) -> None:
    """Serve one client that says something and ends."""
    with trio.fail_after(PATIENCE):
        async with serving(ProtocolHandler(protocol)) as server:
            client = await connect(server)
            with contextlib.suppress(trio.BrokenResourceError):
                await client.send(b"x")
                await client.send_eof()
                await receive_all(client)
            client.abort()
            await until(lambda: sum(server.statistics().closed.values()) == 1)


@pytest.mark.parametrize("where", CALLBACKS)
async def test_whatever_needs_a_loop_is_refused(where: str) -> None:
    for name, call in CALLS.items():
        raised: list[Exception] = []

        def do(call: Callable[[], object] = call, raised: list[Exception] = raised) -> None:
            try:
                call()
            except Exception as error:
                raised.append(error)

        await have_called(protocol_that_calls(where, do))
        assert [type(error) for error in raised] == [RuntimeError], name


@pytest.mark.parametrize("where", ["factory", "connection_made", "data_received"])
async def test_the_log_names_the_call_and_the_cure(where: str, caplog: pytest.LogCaptureFixture) -> None:
    for name, call in CALLS.items():
        caplog.clear()
        await have_called(protocol_that_calls(where, call))
        assert caplog.text.count("Traceback") == 1, name
        if sys.version_info >= (3, 11) or name not in {"asyncio.get_running_loop", "asyncio.create_task"}:
            assert "Trio runs this program" in caplog.text, name
        assert name.rpartition(".")[2] in caplog.text


@pytest.mark.parametrize("name", ["ensure_future", "gather", "StreamReader", "new_event_loop"])
def test_the_message_names_a_function_of_asyncios(name: str) -> None:
    raised: list[str] = []

    def ask() -> None:
        try:
            CALLS[f"asyncio.{name}"]()
        except RuntimeError as error:
            raised.append(str(error))

    trio.run(have_called, protocol_that_calls("data_received", ask))
    assert raised[0].startswith(f"asyncio.{name}() in test_protocol_loops.py:")


async def test_the_policy_is_left_as_it_was() -> None:
    before = _no_loop._get_policy()
    policies: list[object] = []
    await have_called(protocol_that_calls("data_received", lambda: policies.append(_no_loop._get_policy())))
    assert policies != [before]
    assert _no_loop._get_policy() is before


async def test_a_policy_that_is_set_meanwhile_stays() -> None:
    before = _no_loop._get_policy()
    other = type(before)()
    try:
        await have_called(protocol_that_calls("data_received", lambda: _no_loop._set_policy(other)))
        assert _no_loop._get_policy() is other
    finally:
        _no_loop._set_policy(before)


async def test_asyncio_goes_on_in_other_threads() -> None:
    answers: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert asyncio.get_event_loop() is loop
        answers.append(await loop.run_in_executor(None, lambda: "executed"))
        future = loop.create_future()
        loop.call_later(0.001, future.set_result, "called later")
        answers.append(await future)
        answers.append(await asyncio.ensure_future(asyncio.sleep(0, "slept")))

    def elsewhere() -> None:
        thread = threading.Thread(target=lambda: asyncio.run(main()))
        thread.start()
        thread.join()

    await have_called(protocol_that_calls("data_received", elsewhere))
    assert answers == ["executed", "called later", "slept"]


async def test_a_loop_of_its_own_that_is_run_is_its_own_affair() -> None:
    async def main() -> str:
        return await asyncio.ensure_future(asyncio.sleep(0, "slept"))

    answers: list[str] = []
    await have_called(protocol_that_calls("data_received", lambda: answers.append(asyncio.run(main()))))
    assert answers == ["slept"]


async def test_code_outside_of_callbacks_is_left_alone() -> None:
    """While a protocol runs, too."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        got = trio.Event()

        class Silent(asyncio.Protocol):
            def connection_made(self, _transport: asyncio.BaseTransport) -> None:
                got.set()

        async with serving(ProtocolHandler(Silent)) as server, await connect(server):
            await got.wait()
            assert asyncio.get_event_loop() is loop
            asyncio.new_event_loop().close()
    finally:
        asyncio.set_event_loop(None)
        loop.close()


async def test_a_loop_set_before_is_no_loop_for_callbacks() -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        await test_whatever_needs_a_loop_is_refused("data_received")
    finally:
        asyncio.set_event_loop(None)
        loop.close()


async def test_a_loop_that_was_given_and_does_not_run_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.new_event_loop()

    class HasLoop(asyncio.Protocol):
        def __init__(self) -> None:
            self._loop = loop

    try:
        with trio.fail_after(PATIENCE):
            async with serving(ProtocolHandler(HasLoop)) as server:
                for _ in range(2):
                    async with await connect(server) as client:
                        await client.send_eof()
                        assert await receive_all(client) == b""
    finally:
        loop.close()
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1
    assert "HasLoop" in told[0]
    assert "never happens" in told[0]


def test_the_loop_of_an_asyncio_program_with_a_guest_run() -> None:
    """The loop runs, so a protocol may use it."""
    called: list[str] = []

    async def serve_one() -> None:
        def use() -> None:
            asyncio.get_running_loop().call_soon(called.append, "soon")
            asyncio.ensure_future(note())  # noqa: RUF006 - the loop goes on until it has run

        async def note() -> None:
            called.append("task")

        await have_called(protocol_that_calls("data_received", use))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Any] = loop.create_future()
        gain_trio.start_guest_run(
            serve_one, run_sync_soon_threadsafe=loop.call_soon_threadsafe, done_callback=ended.set_result
        )
        (await ended).unwrap()
        await asyncio.sleep(0)

    asyncio.run(main())
    assert sorted(called) == ["soon", "task"]


# --- callbacks that would have to be awaited ---


class Awaited(asyncio.Protocol):
    async def data_received(self, data: bytes) -> None:  # type: ignore[override]
        pass


def test_a_class_with_an_async_callback_is_refused() -> None:
    with pytest.raises(TypeError, match=r"data_received\(\) of the protocol Awaited is an async def"):
        ProtocolHandler(Awaited)


async def test_an_object_with_an_async_callback_ends_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(ProtocolHandler(lambda: Awaited())) as server, await connect(server) as client:
        with trio.fail_after(PATIENCE), contextlib.suppress(trio.BrokenResourceError):
            assert await receive_all(client) == b""
    assert "data_received() of the protocol Awaited is an async def" in caplog.text

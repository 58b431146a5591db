"""A call of the `send` of ASGI apps in C: it is awaited, ended and dropped as a coroutine is."""

from __future__ import annotations

import gc
import inspect
import types
from collections.abc import Callable, Generator
from typing import Any

import pytest
import trio
import trio.testing
from support.exchanges import USUAL, Recorder, driven, exchange_over

from gain_trio._kernel import heads
from gain_trio._server._task_frames import waiting_place
from gain_trio.asgi._exchange import DONE, NOTHING, HttpExchange

pytestmark = [
    pytest.mark.skipif(heads is None, reason="the compiled modules are not built here"),
    pytest.mark.one_backend,
]

IN_C_AND_IN_PYTHON = pytest.mark.parametrize("way", ["send", "send_in_python"])
"""For what a call of the one is as a coroutine of the other."""


def started_exchange(connection: Recorder, way: str) -> tuple[HttpExchange, Any]:
    """An exchange that has been given the start of a response, and the call that sends the rest."""
    exchange = exchange_over(connection)
    assert driven(exchange.send(USUAL[0]))[0] == "returned"
    return exchange, getattr(exchange, way)(USUAL[1])


def test_nothing_happens_before_it_is_awaited() -> None:
    connection = Recorder()
    exchange = exchange_over(connection)
    first, second = map(exchange.send, USUAL)
    assert driven(second)[0] == "RuntimeError"  # there is no response yet
    assert driven(first)[0] == "returned"
    assert driven(exchange.send(USUAL[1]))[0] == "returned"
    assert connection.sent.startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_call_that_is_never_awaited_warns_and_others_do_not() -> None:
    exchange = exchange_over(Recorder())
    with pytest.warns(RuntimeWarning, match=r"coroutine 'HttpExchange.send' was never awaited"):
        exchange.send(USUAL[0])
    exchange.send(USUAL[0]).close()
    with pytest.raises(KeyError):
        exchange.send(USUAL[0]).throw(KeyError("x"))
    assert exchange.phase == NOTHING
    gc.collect()


@IN_C_AND_IN_PYTHON
def test_a_message_is_given_by_its_place_or_by_its_name(way: str) -> None:
    """As a coroutine function takes it: wrappers of ``send`` pass on what they get."""
    connection = Recorder()
    send = getattr(exchange_over(connection), way)
    assert str(inspect.signature(send)).startswith("(message")
    assert driven(send(message=USUAL[0]))[0] == "returned"
    assert driven(send(message=USUAL[1]))[0] == "returned"
    assert connection.sent.startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), {}),
        (USUAL, {}),
        ((USUAL[0],), {"message": USUAL[0]}),
        ((), {"event": USUAL[0]}),
        ((), {"messages": USUAL[0]}),
        ((), {"message": USUAL[0], "more": 1}),
    ],
)
@IN_C_AND_IN_PYTHON
def test_other_arguments_are_refused(way: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"send"):
        getattr(exchange_over(Recorder()), way)(*arguments, **named)


def test_a_call_is_awaited_once() -> None:
    call = exchange_over(Recorder()).send(USUAL[0])
    assert driven(call)[0] == "returned"
    assert driven(call) == ("RuntimeError", "cannot reuse an awaited send(): call it again")


@types.coroutine
def suspended() -> Generator[None, None, None]:
    """Wait for the test, which drives the awaitable by hand."""
    yield


@pytest.mark.parametrize("body", [b"x", bytearray(b"x")], ids=["usual", "not usual"])
def test_a_response_that_is_closed_while_it_is_sent_is_incomplete(monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    connection = Recorder()

    async def send(_data: bytes) -> None:
        await suspended()

    monkeypatch.setattr(connection, "send", send)
    exchange = exchange_over(connection)
    assert driven(exchange.send(USUAL[0]))[0] == "returned"
    call = exchange.send({"type": "http.response.body", "body": body})
    call.send(None)
    assert not exchange.is_incomplete
    call.close()
    assert exchange.is_incomplete
    call.close()
    assert driven(call)[0] == "RuntimeError"


@pytest.mark.parametrize("body", [b"x", bytearray(b"x")], ids=["usual", "not usual"])
async def test_it_waits_as_long_as_the_connection_does_and_shows_where(body: bytes) -> None:
    connection = Recorder()
    connection.block = trio.Event()
    exchange = exchange_over(connection)
    await exchange.send(USUAL[0])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(exchange.send, {"type": "http.response.body", "body": body})
        await trio.testing.wait_all_tasks_blocked()
        (task,) = nursery.child_tasks
        assert any("exchanges.py" in frame and frame.endswith("send") for frame in waiting_place(task, None).frames)
        assert connection.sent == b""
        connection.block.set()
    assert connection.sent.endswith(b"\r\n\r\nx")


@IN_C_AND_IN_PYTHON
async def test_a_second_task_that_awaits_a_call_leaves_the_first_alone(way: str) -> None:
    connection = Recorder()
    connection.block = trio.Event()
    exchange, call = started_exchange(connection, way)

    async def wait() -> None:
        await call

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(RuntimeError, match="is being awaited already"):
            await call
        connection.block.set()
    assert connection.sent.startswith(b"HTTP/1.1 200 OK\r\n")
    assert not exchange.is_incomplete


@IN_C_AND_IN_PYTHON
@pytest.mark.parametrize("place", ["clock", "connection"])
@pytest.mark.parametrize("method", ["send", "throw", "close"])
def test_code_that_runs_in_a_call_neither_resumes_nor_ends_it(
    monkeypatch: pytest.MonkeyPatch, way: str, place: str, method: str
) -> None:
    connection = Recorder()
    exchange, call = started_exchange(connection, way)
    refused = []

    def meddle() -> float:
        arguments: dict[str, tuple[Any, ...]] = {"send": (None,), "throw": (KeyError("x"),), "close": ()}
        with pytest.raises(ValueError, match="already"):
            getattr(call, method)(*arguments[method])
        refused.append(place)
        return 5.0

    async def send(data: bytes) -> None:
        meddle()
        connection.sent += data

    if place == "clock":
        exchange.http.clock = meddle
    else:
        monkeypatch.setattr(connection, "send", send)
    assert driven(call) == ("returned", "None")
    assert refused
    assert connection.sent.startswith(b"HTTP/1.1 200 OK\r\n")
    assert not exchange.is_incomplete


@IN_C_AND_IN_PYTHON
@pytest.mark.parametrize("in_cycle", [False, True])
def test_a_response_that_is_dropped_while_it_is_sent_is_incomplete(
    monkeypatch: pytest.MonkeyPatch, way: str, in_cycle: bool
) -> None:
    connection = Recorder()
    cycle: list[Any] = []

    async def send(_data: bytes, _cycle: Any = cycle) -> None:
        await suspended()

    monkeypatch.setattr(connection, "send", send)
    exchange, call = started_exchange(connection, way)
    call.send(None)
    if in_cycle:
        cycle.append(call)
        monkeypatch.undo()
        del send, cycle
    del call
    gc.collect()
    assert exchange.is_incomplete


class Answer:
    """An iterator that suspends once, or fails; it has neither `throw` nor `close`."""

    def __init__(self, failure: Exception | None = None) -> None:
        self._left: list[Any] = [failure or "answer", None]

    def __await__(self) -> Answer:
        return self

    def __next__(self) -> None:
        following = self._left.pop()
        if isinstance(following, Exception):
            raise following
        if following is not None:
            raise StopIteration(following)


@types.coroutine
def answer() -> Generator[None, None, str]:
    """The same by a generator."""
    yield
    return "answer"


@IN_C_AND_IN_PYTHON
@pytest.mark.parametrize("awaitable", [Answer, answer])
def test_any_awaitable_of_a_connection_is_awaited_and_its_answer_dropped(
    monkeypatch: pytest.MonkeyPatch, way: str, awaitable: Callable[[], Any]
) -> None:
    connection = Recorder()
    monkeypatch.setattr(connection, "send", lambda _data: awaitable())
    exchange, call = started_exchange(connection, way)
    call.send(None)
    assert driven(call) == ("returned", "None")
    assert not exchange.is_incomplete
    for end, error in ((lambda: call.throw(KeyError("x")), KeyError), (lambda: call.close(), None)):
        exchange, call = started_exchange(connection, way)
        call.send(None)
        if error is None:
            end()
        else:
            with pytest.raises(error):
                end()
        assert exchange.is_incomplete


@IN_C_AND_IN_PYTHON
def test_a_connection_that_answers_an_exception_returns_from_the_call(
    monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    @types.coroutine
    def send(_data: bytes) -> Generator[None, None, str]:
        try:
            yield
        except KeyError:
            return "answer"
        raise AssertionError("nothing was raised")

    connection = Recorder()
    monkeypatch.setattr(connection, "send", send)
    exchange, call = started_exchange(connection, way)
    call.send(None)
    with pytest.raises(StopIteration) as caught:
        call.throw(KeyError("x"))
    assert caught.value.value is None
    assert not exchange.is_incomplete


@IN_C_AND_IN_PYTHON
@pytest.mark.parametrize("place", ["clock", "connection"])
def test_a_stop_iteration_is_no_return(monkeypatch: pytest.MonkeyPatch, way: str, place: str) -> None:
    def stop(*_arguments: object) -> Any:
        raise StopIteration

    connection = Recorder()
    exchange, call = started_exchange(connection, way)
    if place == "clock":
        exchange.http.clock = stop
    else:
        monkeypatch.setattr(connection, "send", stop)
    assert driven(call) == ("RuntimeError", "coroutine raised StopIteration")
    assert exchange.is_incomplete == (place == "connection")


def test_a_call_that_runs_out_of_memory_has_sent_nothing_or_all() -> None:
    testcapi = pytest.importorskip("_testcapi")
    connection = Recorder()
    assert driven(started_exchange(connection, "send")[1])[0] == "returned"
    whole, failed = connection.sent, 0
    for failing in range(40):
        connection = Recorder()
        exchange, call = started_exchange(connection, "send")
        testcapi.set_nomemory(failing, failing + 1)
        try:
            call.send(None)
        except StopIteration:
            assert exchange.phase == DONE
        except MemoryError:
            failed += 1
        finally:
            testcapi.remove_mem_hooks()
            call.close()
        assert connection.sent in {b"", whole}
        assert exchange.is_incomplete == (exchange.phase == DONE and not connection.sent)
    assert failed

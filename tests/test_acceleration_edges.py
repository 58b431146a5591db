"""What a program may do in the middle of a call, or to Trio's classes, has the same effect with the pieces in C.

What only the pieces have to get right (a call that is driven or closed while it is being resumed) raises, and never crashes.
"""

from __future__ import annotations

import functools
import os
import socket
import sys
import types
from collections.abc import Callable
from typing import Any

import outcome
import pytest
import trio
from support.accelerated import run, stream_pair
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from gain_trio._kernel import trio_core

pytestmark = [
    pytest.mark.usefixtures("not_installed"),
    pytest.mark.skipif(trio_core is None, reason="the compiled modules are not built here"),
]

with_buffers_in_python = pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.12 has __buffer__")
PATIENCE = 10


@pytest.fixture(params=[False, True], ids=["trio", "accelerated"])
def pieces(request: pytest.FixtureRequest) -> bool:
    value: bool = request.param
    return value


def awaited(coroutine: Any) -> Any:
    """What a coroutine waits for in the end: an object of the C module, when a piece is in."""
    while isinstance(coroutine, types.CoroutineType):
        coroutine = coroutine.cr_await
    return coroutine


class Resumed:
    """What a task is resumed with: a function runs when it is unwrapped."""

    def __init__(self, unwrap: Callable[[], object]) -> None:
        self.unwrap = unwrap


# --- nothing asked for ---


def test_no_bytes_are_received_at_once(pieces: bool) -> None:
    async def main() -> None:
        one, other = trio.socket.socketpair()
        with one, other, trio.fail_after(PATIENCE):
            for _ in range(2):
                with assert_checkpoints():
                    assert await one.recv(0) == b""
                assert await one.recv(0, socket.MSG_PEEK) == b""
                with assert_checkpoints():
                    assert await one.recv_into(bytearray()) == 0
                assert await one.recv_into(bytearray(), 0) == 0
                await other.send(b"x")
            assert await one.recv(5) == b"xx"

    run(pieces, main)


def test_no_bytes_of_a_datagram(pieces: bool) -> None:
    async def main() -> None:
        with trio.socket.socket(type=socket.SOCK_DGRAM) as one, trio.fail_after(PATIENCE):
            await one.bind(("127.0.0.1", 0))
            await one.sendto(b"datagram", one.getsockname())
            assert await one.recv(0) == b""
            assert await one.recv_into(bytearray()) == 0
            assert await one.recv(10) == b"datagram"

    run(pieces, main)


# --- exceptions thrown in ---


def test_a_stop_iteration_thrown_into_a_wait_is_an_error(pieces: bool) -> None:
    """It would say that the wait has returned."""

    async def main() -> None:
        for make in (trio.lowlevel.ParkingLot().park, trio.lowlevel.cancel_shielded_checkpoint, trio.Lock().acquire):
            coroutine: Any = make()
            coroutine.send(None)
            with pytest.raises(RuntimeError, match="raised StopIteration") as caught:
                coroutine.throw(StopIteration(5))
            assert any(isinstance(cause, StopIteration) for cause in causes(caught.value))

    run(pieces, main)


def causes(error: BaseException) -> list[BaseException]:
    """An exception's cause, the cause of that, and so on."""
    found = []
    while error.__cause__ is not None:
        error = error.__cause__
        found.append(error)
    return found


@pytest.mark.parametrize("call", ["recv", "iterate", "send"])
@pytest.mark.parametrize("begun", [False, True])
def test_a_stop_iteration_thrown_into_a_call_of_a_socket(call: str, begun: bool) -> None:
    calls: list[Any] = []

    async def main() -> None:
        one, other = await stream_pair()
        if call == "recv":
            coroutine: Any = one.socket.recv(5)
        else:
            coroutine = one.__anext__() if call == "iterate" else one.send_all(bytes(10_000_000))

        async def child() -> None:
            await coroutine

        async with one, other:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(child)
                await wait_all_tasks_blocked()
                calls.append(awaited(coroutine))
                if begun:
                    with pytest.raises(RuntimeError, match="raised StopIteration"):
                        calls[0].throw(StopIteration())
                nursery.cancel_scope.cancel()

    if not begun:
        run(True, main)
    else:
        with pytest.raises(BaseException):  # noqa: B017  # the child's call is over, so resuming it raises
            run(True, main)
    assert type(calls[0]).__name__ == "SocketCall"


# Python 3.12 and newer warn of such a call.
@pytest.mark.filterwarnings("ignore:the .type, exc, tb. signature:DeprecationWarning")
def test_a_traceback_that_is_thrown_in_is_kept(pieces: bool) -> None:
    places: dict[str, object] = {}
    with pytest.raises(KeyError) as elsewhere:
        places["elsewhere"]
    traceback = elsewhere.tb

    async def main() -> None:
        for make in (trio.lowlevel.ParkingLot().park, trio.lowlevel.cancel_shielded_checkpoint):
            coroutine: Any = make()
            coroutine.send(None)
            with pytest.raises(KeyError) as caught:
                coroutine.throw(KeyError, KeyError("thrown"), traceback)
            found = caught.value.__traceback__
            while found is not None and found.tb_next is not None:
                found = found.tb_next
            assert found is traceback
            coroutine = make()
            coroutine.send(None)
            with pytest.raises(TypeError, match="traceback"):
                coroutine.throw(KeyError, KeyError("thrown"), "no traceback")

    run(pieces, main)


def test_a_lock_that_is_free_translates_no_exception(pieces: bool) -> None:
    async def main() -> None:
        lock = trio.Lock()
        coroutine: Any = lock.acquire()
        coroutine.send(None)
        error = trio.BrokenResourceError("of the program")
        with pytest.raises(trio.BrokenResourceError) as caught:
            coroutine.throw(error)
        assert caught.value is error
        lock.release()

    run(pieces, main)


# --- ended while it is resumed ---


CALLS = ("park", "acquire", "receive", "iterate", "nursery", "recv", "receive_some", "send_all")


# A nursery keeps what is thrown in, and cancels itself.
@pytest.mark.parametrize(
    ("name", "end"),
    [(name, end) for name in CALLS for end in ("close", "send", "throw") if (name, end) != ("nursery", "throw")],
)
def test_a_call_that_is_ended_while_it_is_resumed(name: str, end: str) -> None:
    async def main() -> None:
        one, other = await stream_pair()
        await other.send_all(b"there")
        send, receive = trio.open_memory_channel[int](1)
        send.send_nowait(1)
        manager = trio.open_nursery()
        if name == "nursery":
            await manager.__aenter__()
        calls: dict[str, Callable[[], Any]] = {
            "park": trio.lowlevel.ParkingLot().park,
            "acquire": trio.Lock().acquire,
            "receive": receive.receive,
            "iterate": receive.__anext__,
            "nursery": functools.partial(manager.__aexit__, None, None, None),
            "recv": functools.partial(one.socket.recv, 5),
            "receive_some": one.__anext__,
            "send_all": functools.partial(one.send_all, b"data"),
        }
        coroutine = calls[name]()
        coroutine.send(None)
        call = awaited(coroutine)
        assert type(call).__module__ == "gain_trio._trio_core"

        def ended() -> None:
            with pytest.raises((StopIteration, StopAsyncIteration, KeyError)):
                if end == "close":
                    call.close()
                    raise KeyError
                call.send(outcome.Value(None)) if end == "send" else call.throw(KeyError())

        try:
            with pytest.raises(RuntimeError, match="ended while it was resumed"):
                coroutine.send(Resumed(ended))
        finally:
            coroutine.close()
            await one.aclose()
            await other.aclose()
            if name == "nursery" and end == "close":
                await manager.__aexit__(None, None, None)

    run(True, main)


# --- closed by code that runs in a call ---


@with_buffers_in_python
@pytest.mark.parametrize("call", ["send", "recv_into", "sendto"])
def test_a_buffer_that_closes_the_socket(pieces: bool, call: str) -> None:
    """No other file that gets the number is touched."""
    opened: list[Any] = []

    class Buffer:
        def __init__(self, sock: Any) -> None:
            self.sock = sock

        def __buffer__(self, flags: int) -> memoryview:
            if not opened:
                number = self.sock.fileno()
                self.sock.close()
                opened.extend(take_number(number))
            return memoryview(bytearray(b"data"))

    async def main() -> None:
        if call == "sendto":
            one = trio.socket.socket(type=socket.SOCK_DGRAM)
            with pytest.raises(OSError, match="Bad file descriptor"):
                await one.sendto(Buffer(one), ("127.0.0.1", 9))
            return
        one, other = trio.socket.socketpair()
        with other:
            with pytest.raises(OSError, match="Bad file descriptor"):
                await (one.send(Buffer(one)) if call == "send" else one.recv_into(Buffer(one)))

    try:
        run(pieces, main)
        assert opened[0].recv(10) == b"untouched"
        with pytest.raises(BlockingIOError):
            opened[1].recv(10)
    finally:
        for sock in opened:
            sock.close()


def take_number(number: int) -> tuple[socket.socket, socket.socket]:
    """Two connected sockets, of which the first has this number and the bytes b"untouched" to be read."""
    one, other = socket.socketpair()
    if one.fileno() != number:
        os.dup2(one.fileno(), number)
        one.close()
        one = socket.socket(fileno=number)
    other.send(b"untouched")
    one.setblocking(False)
    other.setblocking(False)
    return one, other


def test_an_audit_hook_that_closes_the_socket(pieces: bool) -> None:
    opened: list[socket.socket] = []
    watched: list[trio.socket.SocketType] = []

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "socket.sendto" and watched:
            sock = watched.pop()
            number = sock.fileno()
            sock.close()
            opened.extend(take_number(number))

    async def main() -> None:
        one = trio.socket.socket(type=socket.SOCK_DGRAM)
        watched.append(one)
        with pytest.raises(OSError, match="Bad file descriptor"):
            await one.sendto(b"data", ("127.0.0.1", 9))

    sys.addaudithook(hook)  # for good: Python removes none
    try:
        run(pieces, main)
        assert opened[0].recv(10) == b"untouched"
        with pytest.raises(BlockingIOError):
            opened[1].recv(10)
    finally:
        for sock in opened:
            sock.close()


# --- what keeps the bookkeeping ---


@pytest.mark.skipif(
    not hasattr(trio.lowlevel, "add_parking_lot_breaker"), reason="this Trio does not know who breaks a lock"
)
def test_bookkeeping_of_another_kind_raises(pieces: bool) -> None:
    async def main() -> None:
        breakers: dict[Any, Any] = trio.run.__globals__["GLOBAL_PARKING_LOT_BREAKER"]
        lock = trio.Lock()
        await lock.acquire()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lock.acquire)
            await wait_all_tasks_blocked()
            (task,) = nursery.child_tasks
            breakers[task] = ()
            with pytest.raises((AttributeError, TypeError)):
                lock.release()
            del breakers[task]

    run(pieces, main)


# --- replaced methods ---


@pytest.mark.parametrize("on", ["instance", "class"])
def test_replaced_methods_of_locks_are_asked(pieces: bool, on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def main() -> None:
        lock = trio.Lock()
        acquire, acquire_nowait, release = lock.acquire, lock.acquire_nowait, lock.release

        async def mine(*_self: object) -> None:
            asked.append("acquire")
            await acquire()

        def at_once(*_self: object) -> None:
            asked.append("acquire_nowait")
            acquire_nowait()

        def leave(*_self: object) -> None:
            asked.append("release")
            release()

        with monkeypatch.context() as patch:
            target = lock if on == "instance" else trio.Lock
            for name, function in (("acquire", mine), ("acquire_nowait", at_once), ("release", leave)):
                patch.setattr(target, name, function)
            async with lock:
                assert lock.locked()
            assert not lock.locked()
        async with lock:
            assert lock.locked()

    run(pieces, main)
    assert asked == ["acquire", "acquire_nowait", "release"]


@pytest.mark.parametrize("on", ["instance", "class"])
def test_replaced_methods_of_channels_are_asked(pieces: bool, on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def main() -> None:
        send, receive = trio.open_memory_channel[int](3)
        receive_value, receive_now, send_now = receive.receive, receive.receive_nowait, send.send_nowait

        async def mine(*_self: object) -> int:
            asked.append("receive")
            return await receive_value()

        def at_once(*_self: object) -> int:
            asked.append("receive_nowait")
            return receive_now()

        def send_at_once(*arguments: Any) -> None:
            asked.append("send_nowait")
            send_now(arguments[-1])

        with monkeypatch.context() as patch:
            target: Any = receive if on == "instance" else trio.MemoryReceiveChannel
            patch.setattr(target, "receive", mine)
            patch.setattr(target, "receive_nowait", at_once)
            patch.setattr(send if on == "instance" else trio.MemorySendChannel, "send_nowait", send_at_once)
            await send.send(7)
            async for value in receive:
                assert value == 7
                break
        await send.send(8)
        async for value in receive:
            assert value == 8
            break

    run(pieces, main)
    assert asked == ["send_nowait", "receive", "receive_nowait"]


def test_replaced_methods_of_one_stream_are_asked(pieces: bool) -> None:
    asked: list[str] = []

    async def receive_some(max_bytes: int | None = None) -> bytes:
        asked.append("receive_some")
        return b"mine"

    async def recv(count: int) -> bytes:
        asked.append("recv")
        return b"mine, too"

    async def send(data: bytes) -> int:
        asked.append("send")
        return len(data)

    async def main() -> None:
        one, other = await stream_pair()
        async with one, other:
            one.receive_some = receive_some  # type: ignore[method-assign]
            async for data in one:
                assert data == b"mine"
                break
            other.socket.recv = recv  # type: ignore[method-assign]
            other.socket.send = send  # type: ignore[method-assign, assignment]
            assert await other.receive_some() == b"mine, too"
            await other.send_all(b"data")

    run(pieces, main)
    assert asked == ["receive_some", "recv", "send"]

"""Trio's contract holds with its own code and with the pieces in C: every test makes its assertions of both."""

from __future__ import annotations

import contextvars
import ctypes
import errno
import functools
import gc
import itertools
import signal
import socket
import struct
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.lowlevel
from support.accelerated import NAMES, run, stream_pair
from trio._core import _run
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from gain_trio._kernel import trio_core

pytestmark = [
    pytest.mark.usefixtures("not_installed"),
    pytest.mark.skipif(trio_core is None, reason="the compiled modules are not built here"),
]


@pytest.fixture(params=[False, True], ids=["trio", "accelerated"])
def pieces(request: pytest.FixtureRequest) -> bool:
    value: bool = request.param
    return value


# --- cancelling ---


def test_calls_in_a_cancelled_scope_do_nothing(pieces: bool) -> None:
    async def main() -> None:
        one, other = await stream_pair()
        async with one, other:
            await other.send_all(b"there")
            calls: list[Callable[[], Any]] = [
                one.receive_some,
                lambda: one.receive_some(3),
                lambda: one.send_all(b"never"),
                lambda: one.socket.recv(5),
                lambda: one.socket.recv_into(bytearray(5)),
                lambda: one.socket.send(b"never"),
                one.__anext__,
                trio.lowlevel.checkpoint,
                trio.lowlevel.checkpoint_if_cancelled,
                functools.partial(trio.sleep, 0),
                functools.partial(trio.sleep, 1),
            ]
            for call in calls:
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await call()
                    pytest.fail("it was not cancelled")
                assert scope.cancelled_caught
            assert await one.receive_some() == b"there"
            with trio.CancelScope() as scope:
                scope.cancel()
                await trio.lowlevel.cancel_shielded_checkpoint()
            assert not scope.cancelled_caught
            await one.send_eof()
            assert not await other.receive_some()

    run(pieces, main)


def test_waiting_calls_are_cancelled_and_lose_nothing(pieces: bool) -> None:
    async def main() -> None:
        one, other = await stream_pair()
        async with one, other:
            for call in (one.receive_some, lambda: one.socket.recv(10), lambda: one.socket.recv_into(bytearray(10))):
                with trio.move_on_after(0.01) as scope:
                    await call()  # type: ignore[operator]
                assert scope.cancelled_caught
            with trio.move_on_after(0.01) as scope:
                await one.send_all(bytes(10_000_000))
            assert scope.cancelled_caught
            await one.send_eof()
            arrived = [data async for data in other]
            assert 0 < sum(map(len, arrived)) < 10_000_000
            assert not any(b"".join(map(bytes, arrived)))

    run(pieces, main)


def test_a_checkpoint_that_is_cancelled_while_it_yields(pieces: bool) -> None:
    async def main() -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def canceller() -> None:
                    scope.cancel()

                nursery.start_soon(canceller)
                for _ in range(3):
                    await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught

    run(pieces, main)


def test_deadlines_and_the_mock_clock(pieces: bool) -> None:
    async def main() -> list[float]:
        times = [trio.current_time()]
        with trio.move_on_after(5) as scope:
            await trio.sleep(100)
        assert scope.cancelled_caught
        times.append(trio.current_time())
        with pytest.raises(trio.TooSlowError):
            with trio.fail_after(3):
                await trio.sleep_forever()
        times.append(trio.current_time())
        with trio.CancelScope(deadline=8) as whole:  # a number that is not a float
            await trio.lowlevel.checkpoint()
        assert whole.cancelled_caught
        with trio.CancelScope(deadline=trio.current_time() - 1) as late:
            await trio.lowlevel.checkpoint()
        assert late.cancelled_caught
        with trio.CancelScope(deadline=trio.current_time() + 7) as moved:
            moved.deadline += 10
            await trio.sleep_forever()
        times.append(trio.current_time())
        await trio.sleep(2)
        times.append(trio.current_time())
        return times

    assert run(pieces, main, clock=MockClock(autojump_threshold=0)) == [0, 5, 8, 25, 27]


def test_scopes_count_their_deadlines(pieces: bool) -> None:
    async def main() -> None:
        runner = trio.lowlevel.current_task()._runner
        for _ in range(5000):
            with trio.CancelScope(deadline=trio.current_time() + 1000):  # noqa: ASYNC100  # only it counts here
                pass
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        assert runner.deadlines._active == 0
        assert len(runner.deadlines._heap) <= 1001
        with trio.CancelScope(deadline=trio.current_time() + 1000) as scope:  # noqa: ASYNC100  # the same
            assert runner.deadlines._active == 1
            scope.cancel()
            assert runner.deadlines._active == 0

    run(pieces, main)


@pytest.mark.parametrize(
    "arguments",
    [{"deadline": float("nan")}, {"relative_deadline": -1}, {"relative_deadline": 1, "deadline": 1}],
)
def test_scopes_that_there_cannot_be(pieces: bool, arguments: dict[str, float]) -> None:
    async def main() -> None:
        try:
            trio.CancelScope(relative_deadline=1)
        except TypeError:
            pytest.skip("this Trio has no relative deadlines")
        with pytest.raises(ValueError, match=r"deadline|timeout"):
            trio.CancelScope(**arguments)

    run(pieces, main)


def test_scopes_are_entered_once_and_left_in_order(pieces: bool) -> None:
    async def main() -> None:
        scope = trio.CancelScope(shield=True)
        assert scope.shield
        with scope:
            pass
        with pytest.raises(RuntimeError, match="may only be used for a single"):
            scope.__enter__()
        outer, inner = trio.CancelScope(), trio.CancelScope()
        outer.__enter__()
        inner.__enter__()
        with pytest.raises(RuntimeError, match="still within its child"):
            outer.__exit__(None, None, None)
        inner.__exit__(None, None, None)
        with pytest.raises(RuntimeError, match="already been exited"):
            inner.__exit__(None, None, None)
        with pytest.raises(KeyError), trio.CancelScope():  # noqa: ASYNC100  # what passes through it is the point
            raise KeyError

    run(pieces, main)


def test_shields(pieces: bool) -> None:
    async def main() -> list[str]:
        seen = []
        with trio.CancelScope() as outer:
            outer.cancel()
            with trio.CancelScope(shield=True) as inner:
                await trio.lowlevel.checkpoint()
                seen.append("shielded")
                inner.shield = False
                try:
                    await trio.lowlevel.checkpoint()
                finally:
                    seen.append("not shielded")
        return seen

    assert run(pieces, main) == ["shielded", "not shielded"]


# --- sockets and streams ---


def test_errors_of_streams(pieces: bool) -> None:
    async def main() -> None:
        one, other = await stream_pair()
        with pytest.raises(ValueError, match="max_bytes must be >= 1"):
            await one.receive_some(0)
        with pytest.raises(TypeError):
            await one.receive_some("many")  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            await one.send_all("text")  # type: ignore[arg-type]
        with assert_checkpoints():
            await one.send_all(b"")
        await other.aclose()
        with pytest.raises(trio.BrokenResourceError) as caught:
            await one.send_all(b"x")
        assert isinstance(caught.value.__cause__, BrokenPipeError)
        assert caught.value.__cause__.errno == errno.EPIPE
        assert not await one.receive_some()
        await one.aclose()
        with pytest.raises(trio.ClosedResourceError) as closed:
            await one.receive_some()
        assert closed.value.__cause__ is None
        assert closed.value.__suppress_context__
        with pytest.raises(trio.ClosedResourceError):
            await one.send_all(b"x")
        with pytest.raises(trio.ClosedResourceError):
            await one.send_all(b"")

    run(pieces, main)


def test_a_reset_while_it_waits(pieces: bool) -> None:
    async def main() -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        client = await trio.open_tcp_stream(*listeners[0].socket.getsockname()[:2])
        served = await listeners[0].accept()
        served.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        caught: list[BaseException | None] = []

        async def receive() -> None:
            with pytest.raises(trio.BrokenResourceError) as error:
                await client.receive_some()
            caught.append(error.value.__cause__)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await wait_all_tasks_blocked()
            await served.aclose()
        assert isinstance(caught[0], ConnectionResetError)
        await client.aclose()
        await listeners[0].aclose()

    run(pieces, main)


def test_one_task_in_a_direction(pieces: bool) -> None:
    async def main() -> None:
        one, other = await stream_pair()
        async with one, other, trio.open_nursery() as nursery:
            nursery.start_soon(one.receive_some)
            nursery.start_soon(one.send_all, bytes(10_000_000))
            await wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await one.receive_some()
            with pytest.raises(trio.BusyResourceError):
                await one.socket.recv(1)
            with pytest.raises(trio.BusyResourceError):
                await one.send_all(b"x")
            nursery.cancel_scope.cancel()

    run(pieces, main)


def test_closing_ends_what_waits(pieces: bool) -> None:
    async def main() -> None:
        one, other = await stream_pair()
        ended: list[str] = []

        async def expect_closed(call: Callable[[], Any], name: str) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await call()
            ended.append(name)

        async with other, trio.open_nursery() as nursery:
            nursery.start_soon(expect_closed, one.receive_some, "receive")
            nursery.start_soon(expect_closed, lambda: one.send_all(bytes(10_000_000)), "send")
            await wait_all_tasks_blocked()
            await one.aclose()
        assert sorted(ended) == ["receive", "send"]

    run(pieces, main)


def test_all_calls_of_sockets(pieces: bool) -> None:
    async def main() -> None:
        one, other = trio.socket.socketpair()
        with one, other:
            assert await one.send(b"abcdef") == 6
            assert await other.recv(2, socket.MSG_PEEK) == b"ab"
            assert await other.recv(2) == b"ab"
            buffer = bytearray(2)
            assert await other.recv_into(buffer) == 2
            assert buffer == b"cd"
            assert await other.recv_into(buffer, nbytes=1) == 1
            assert buffer == b"ed"
            assert await other.recvfrom(10) == (b"f", None)
            assert await one.sendmsg([b"gh", b"ij"]) == 4
            data, ancillary, _flags, _address = await other.recvmsg(10, 10)
            assert (data, ancillary) == (b"ghij", [])
            assert await one.send(memoryview(b"kl")) == 2
            assert (await other.recvfrom_into(buffer))[0] == 2
            assert await one.send(b"", 0) == 0
            with pytest.raises(ValueError, match=r"negative|buffer"):
                await other.recv(-1)
            with pytest.raises(ValueError, match="buffer"):
                await other.recv_into(buffer, 3)
            with assert_checkpoints(), pytest.raises(TypeError):
                await other.recv("many")  # type: ignore[arg-type]
            with assert_checkpoints(), pytest.raises(TypeError):
                await one.send("text")  # type: ignore[arg-type]
            with pytest.raises(TypeError):
                await other.recv()  # type: ignore[call-arg]

    run(pieces, main)


def test_a_buffer_may_change_its_size_while_recv_into_waits(pieces: bool) -> None:
    async def main() -> None:
        one, other = trio.socket.socketpair()
        buffer = bytearray(2)
        counts: list[int] = []

        async def receive() -> None:
            counts.append(await other.recv_into(buffer))

        with one, other:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                await wait_all_tasks_blocked()
                buffer.extend(bytes(8))
                await one.send(b"0123456789")
        assert counts == [10]
        assert buffer == b"0123456789"

    run(pieces, main)


def test_datagrams_and_truncation(pieces: bool) -> None:
    async def main() -> None:
        one, other = (trio.socket.socket(type=socket.SOCK_DGRAM) for _ in range(2))
        with one, other:
            await one.bind(("127.0.0.1", 0))
            await other.bind(("127.0.0.1", 0))
            assert await one.sendto(b"datagram", other.getsockname()) == 8
            assert await other.recv(3, socket.MSG_PEEK) == b"dat"
            assert len(await other.recv(3, socket.MSG_PEEK | socket.MSG_TRUNC)) >= 3
            assert await other.recvfrom(100) == (b"datagram", one.getsockname())
            await other.connect(one.getsockname())
            await other.send(b"")
            assert await one.recv(10) == b""  # an empty datagram

    run(pieces, main)


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_addresses_of_datagrams(pieces: bool, family: socket.AddressFamily, host: str) -> None:
    async def main() -> None:
        one, other = (trio.socket.socket(family, socket.SOCK_DGRAM) for _ in range(2))
        with one, other:
            try:
                await one.bind((host, 0))
            except OSError:
                pytest.skip(f"there is no {host} here")
            await other.bind((host, 0))
            address = other.getsockname()
            port = address[1]
            for target in (address, (host, port), ("localhost", port) if family == socket.AF_INET else address):
                assert await one.sendto(b"data", target) == 4
                assert await one.sendto(memoryview(b"more"), socket.MSG_DONTWAIT, target) == 4
                assert await other.recvfrom(100) == (b"data", one.getsockname())
                assert await other.recvfrom(100, socket.MSG_PEEK) == (b"more", one.getsockname())
                assert await other.recvfrom(2) == (b"mo", one.getsockname())
            with pytest.raises((OverflowError, OSError)):
                await one.sendto(b"data", (host, 65536))
            with pytest.raises((OverflowError, OSError)):
                await one.sendto(b"data", (host, -1))
            with pytest.raises(ValueError, match="address should be a"):
                await one.sendto(b"data", host)
            with assert_checkpoints(), pytest.raises(TypeError):
                await one.sendto("text", address)  # type: ignore[arg-type]
            with assert_checkpoints(), pytest.raises(OSError) as caught:
                await one.sendto(bytes(100_000), address)
            assert caught.value.errno == errno.EMSGSIZE
            with trio.move_on_after(0) as scope:
                await one.sendto(b"never", address)
            assert scope.cancelled_caught
            with trio.move_on_after(0.01) as scope:
                await other.recvfrom(100)
            assert scope.cancelled_caught

    run(pieces, main)


def test_audit_hooks_see_a_sendto(pieces: bool) -> None:
    seen: list[object] = []

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if listening and event == "socket.sendto":
            seen.append(arguments[1])

    async def main() -> None:
        with trio.socket.socket(type=socket.SOCK_DGRAM) as one:
            await one.bind(("127.0.0.1", 0))
            addresses.append(one.getsockname())
            await one.sendto(b"x", addresses[0])

    addresses: list[object] = []
    listening = True
    sys.addaudithook(hook)  # for good: Python removes none
    try:
        run(pieces, main)
    finally:
        listening = False
    assert seen == addresses


def test_recvfrom_of_a_stream(pieces: bool) -> None:
    async def main() -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        client = await trio.open_tcp_stream(*listeners[0].socket.getsockname()[:2])
        served = await listeners[0].accept()
        async with client, served, listeners[0]:
            await client.send_all(b"x")
            assert await served.socket.recvfrom(10) == (b"x", None)

    run(pieces, main)


def test_large_receives(pieces: bool) -> None:
    async def main() -> None:
        one, other = await stream_pair()
        async with one, other, trio.open_nursery() as nursery:
            data = bytes(range(256)) * 4096
            nursery.start_soon(one.send_all, data)
            received = b""
            while len(received) < len(data):
                received += await other.receive_some(1_000_000)
            assert received == data

    run(pieces, main)


def test_subclasses_and_replaced_methods_are_asked(pieces: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    original = trio.socket.SocketType
    socket_class: Any = trio.socket.from_stdlib_socket.__globals__["_SocketType"]
    asked: list[str] = []

    async def recv(self: Any, *args: Any) -> bytes:
        asked.append("recv")
        return b"mine"

    async def main() -> None:
        assert isinstance(one.socket, original)
        assert await one.receive_some() == b"mine"
        async for data in one:
            assert data == b"mine"
            break

    left, right = socket.socketpair()
    one = trio.SocketStream(trio.socket.from_stdlib_socket(left))
    monkeypatch.setattr(socket_class, "recv", recv)
    run(pieces, main)
    assert asked == ["recv", "recv"]
    left.close()
    right.close()
    gc.collect()


# --- tasks ---

variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)


def test_tasks_are_what_they_are(pieces: bool) -> None:
    class Owner:
        async def method(self) -> None:
            names.append(trio.lowlevel.current_task().name)

    async def child(number: int) -> None:
        task = trio.lowlevel.current_task()
        names.append(task.name)
        assert task.parent_nursery is not None
        assert task.parent_nursery.parent_task is parent
        assert task.child_nurseries == []
        assert variable.get() == 3
        variable.set(number)

    names: list[str] = []
    parent: Any = None

    async def main() -> None:
        nonlocal parent
        parent = trio.lowlevel.current_task()
        variable.set(3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child, 1)
            nursery.start_soon(child, 2, name="named")
            nursery.start_soon(child, 4, name=len)
            nursery.start_soon(Owner().method)
            assert len(nursery.child_tasks) == 4
        assert variable.get() == 3
        with pytest.raises(RuntimeError, match="Nursery is closed"):
            nursery.start_soon(child, 1)

    run(pieces, main)
    here = f"{__name__}.test_tasks_are_what_they_are.<locals>"
    assert sorted(names) == sorted([f"{here}.child", "named", "builtins.len", f"{here}.Owner.method"])


def test_the_task_that_a_program_makes_the_current_one(pieces: bool) -> None:
    """The task of the run's context counts, and not the one that was stepped."""

    async def main() -> None:
        task = trio.lowlevel.current_task()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await wait_all_tasks_blocked()
            (other,) = nursery.child_tasks
            counted: list[int] = [task._cancel_points, other._cancel_points]
            await trio.lowlevel.checkpoint_if_cancelled()
            _run.GLOBAL_RUN_CONTEXT.task = other
            try:
                await trio.lowlevel.checkpoint_if_cancelled()
            finally:
                _run.GLOBAL_RUN_CONTEXT.task = task
            assert [task._cancel_points, other._cancel_points] == [counted[0] + 1, counted[1] + 1]
            await trio.lowlevel.checkpoint_if_cancelled()
            assert task._cancel_points == counted[0] + 2
            nursery.cancel_scope.cancel()

    run(pieces, main)


@pytest.mark.parametrize("first", [250, 1000, (1 << 30) - 5, (1 << 60) - 5, -5], ids=str)
def test_counters_of_a_task(pieces: bool, first: int) -> None:
    """A number that was read stays what it was."""

    async def main() -> None:
        task = trio.lowlevel.current_task()
        task._cancel_points = task._schedule_points = first
        seen = []
        for _ in range(10):
            await trio.lowlevel.checkpoint()
            seen.append((task._cancel_points, task._schedule_points))
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
        assert seen == [(first + number, first + number) for number in range(1, 31, 3)]

    run(pieces, main)


def test_what_cannot_be_spawned(pieces: bool) -> None:
    async def needs_one(argument: int) -> None:
        pytest.fail(f"called with {argument}")

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            with pytest.raises(TypeError, match="missing 1 required positional argument"):
                nursery.start_soon(needs_one)
            with pytest.raises(TypeError, match="appears to be synchronous"):
                nursery.start_soon(len, "x")  # type: ignore[arg-type]
            coroutine: Any = needs_one(1)
            with pytest.raises(TypeError, match="expecting an async function"):
                nursery.start_soon(coroutine)
            assert not nursery.child_tasks

    run(pieces, main)


def test_exceptions_of_tasks(pieces: bool) -> None:
    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise KeyError("mine")

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(fail)

    with pytest.raises(BaseException) as caught:  # a group; Python 3.10 has no name for it
        run(pieces, main)
    (error,) = caught.value.exceptions  # type: ignore[attr-defined]
    assert isinstance(error, KeyError)
    names = []
    traceback = error.__traceback__
    while traceback is not None:
        names.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    assert names == ["fail"]


def test_a_message_of_somebody_else(pieces: bool) -> None:
    class Foreign:
        def __await__(self) -> Any:
            yield "what Trio does not know"

    async def main() -> None:
        with pytest.raises(TypeError, match="unrecognized yield message 'what Trio does not know'"):
            await Foreign()
        await trio.lowlevel.checkpoint()

    run(pieces, main)


def test_instruments_see_the_same(pieces: bool) -> None:
    class Witness(trio.abc.Instrument):
        def task_spawned(self, task: Any) -> None:
            note("spawned", task)

        def task_scheduled(self, task: Any) -> None:
            note("scheduled", task)

        def before_task_step(self, task: Any) -> None:
            assert trio.lowlevel.current_task() is task
            note("before", task)

        def after_task_step(self, task: Any) -> None:
            note("after", task)

        def task_exited(self, task: Any) -> None:
            note("exited", task)

    seen: list[str] = []

    def note(what: str, task: Any) -> None:
        if task.name in ("child", "sleeper"):
            seen.append(f"{what} {task.name}")

    async def child() -> None:
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child, name="child")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 0.001, name="sleeper")

    run(pieces, main, instruments=[Witness()])
    steps = ["before", "scheduled", "after"]
    expected = ["spawned", "scheduled", *steps, *steps, "before", "exited", "after"]
    assert seen[: len(expected)] == [f"{what} child" for what in expected]
    rest = ["spawned", "scheduled", "before", "after", "scheduled", "before", "exited", "after"]
    assert seen[len(expected) :] == [f"{what} sleeper" for what in rest]


# --- KeyboardInterrupt ---


def test_control_c_in_a_task(pieces: bool) -> None:
    async def main() -> None:
        await trio.lowlevel.checkpoint()
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it was not interrupted")

    with pytest.raises(KeyboardInterrupt):
        run(pieces, main)


def test_control_c_where_it_is_protected(pieces: bool) -> None:
    """Only the main task is interrupted then, at its next checkpoint."""
    order: list[str] = []

    @trio.lowlevel.enable_ki_protection
    async def protected() -> None:
        signal.raise_signal(signal.SIGINT)
        order.append("after the signal")
        await trio.lowlevel.checkpoint()
        order.append("after a checkpoint")

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(protected)
            with trio.CancelScope(shield=True):
                try:
                    await trio.sleep_forever()
                finally:
                    order.append("main")

    with pytest.raises(BaseException) as caught:  # Trio decides whether in a group
        run(pieces, main)
    assert "KeyboardInterrupt" in repr(caught.value)
    assert order[0] == "after the signal"
    assert "main" in order


def test_control_c_between_steps_interrupts_no_other_task(pieces: bool) -> None:
    """A signal that arrives in Trio's own code, here at the end of a step, is for the main task."""

    class Interrupter(trio.abc.Instrument):
        done = False

        def after_task_step(self, task: Any) -> None:
            if task.name == "busy" and not self.done:
                self.done = True
                signal.raise_signal(signal.SIGINT)

    turns = 0

    async def busy() -> None:
        nonlocal turns
        for _ in range(10):
            await trio.lowlevel.cancel_shielded_checkpoint()
            turns += 1

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(busy, name="busy")
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                pytest.fail("a task was interrupted")

    with pytest.raises(BaseException) as caught:  # Trio decides whether in a group
        run(pieces, main, instruments=[Interrupter()])
    assert "KeyboardInterrupt" in repr(caught.value)
    assert turns == 50


def test_control_c_between_ticks_interrupts_no_other_task(pieces: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither does one that arrives between a wait and the first step behind it, here while the order is chosen."""
    by_libc = ctypes.PyDLL(None)["raise"]  # of which Python learns no sooner than it looks for signals
    turns = 0

    async def busy() -> None:
        nonlocal turns
        for _ in range(10):
            await trio.lowlevel.cancel_shielded_checkpoint()
            turns += 1

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(busy)
            await trio.lowlevel.checkpoint()
            numbers = itertools.chain([signal.SIGINT], itertools.repeat(0))
            random = functools.partial(next, map(by_libc, numbers))
            monkeypatch.setattr(trio._core._run, "_r", types.SimpleNamespace(random=random))
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                pytest.fail("a task was interrupted")

    with pytest.raises(BaseException) as caught:  # Trio decides whether in a group
        run(pieces, main)
    assert "KeyboardInterrupt" in repr(caught.value)
    assert turns == 10


RAISES_IN_THE_WAIT = """
import os, signal, sys, warnings
import trio, gain_trio

warnings.simplefilter("ignore")

class Mine(Exception):
    pass

def handler(number, frame):
    raise Mine

async def main():
    await trio.lowlevel.checkpoint()
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    await trio.sleep_forever()

signal.signal(signal.SIGALRM, handler)
try:
    gain_trio.run(main, accelerate=bool(int(sys.argv[1])))
except BaseException as error:
    print(type(error).__name__, flush=True)
os._exit(0)  # the tasks of an abandoned run complain of it
"""


def test_a_signal_handler_that_raises_in_the_wait(pieces: bool) -> None:
    """It comes out of the run as it is."""
    command = [sys.executable, "-c", RAISES_IN_THE_WAIT, str(int(pieces))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "Mine", done.stderr


# --- the tick ---


@pytest.mark.parametrize("piece", [True, False], ids=["in C", "by Trio"])
def test_who_makes_a_tick(piece: bool) -> None:
    """In C deadlines are expired when one has passed; Trio's loop calls that with each tick."""
    calls = 0
    expire = trio._core._run.Deadlines.expire.__code__

    def count(frame: types.FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code is expire

    async def main() -> None:
        with trio.move_on_after(1000):
            sys.setprofile(count)
            for _ in range(100):
                await trio.lowlevel.checkpoint()
            sys.setprofile(None)

    run(tuple(name for name in NAMES if piece or name != "tick"), main)
    assert (calls < 10) == piece

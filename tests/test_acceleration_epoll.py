"""Waiting for descriptors on Trio's own I/O manager is the same with its own code and with the pieces in C."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio
from support.accelerated import NAMES, run
from trio.lowlevel import wait_readable, wait_writable
from trio.testing import wait_all_tasks_blocked

from gain_trio._kernel import trio_core

pytestmark = [
    pytest.mark.usefixtures("not_installed"),
    pytest.mark.skipif(trio_core is None, reason="the compiled modules are not built here"),
]

PATIENCE = 10
WITHOUT_TICK = tuple(name for name in NAMES if name != "tick")


@pytest.fixture(params=[False, True, ("epoll",), WITHOUT_TICK], ids=["trio", "accelerated", "epoll", "without tick"])
def pieces(request: pytest.FixtureRequest) -> bool | tuple[str, ...]:
    value: bool | tuple[str, ...] = request.param
    return value


@contextlib.contextmanager
def a_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets of the standard library."""
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        yield one, other


def waiting() -> tuple[int, int]:
    """How many tasks wait to read and to write, but for Trio's own, which waits for calls of other threads."""
    statistics: Any = trio.lowlevel.current_statistics().io_statistics
    assert statistics.backend == "epoll"
    return statistics.tasks_waiting_read - 1, statistics.tasks_waiting_write


def fill(sock: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(bytes(65536))


def drain(sock: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while sock.recv(65536):
            pass


async def on_epoll(main: Callable[[], Awaitable[None]]) -> None:
    with trio.fail_after(PATIENCE):
        await wait_all_tasks_blocked()
        await main()
        await wait_all_tasks_blocked()  # a signal may just have woken Trio's own task
    assert waiting() == (0, 0)


def check(pieces: bool | tuple[str, ...], main: Callable[[], Awaitable[None]]) -> None:
    run(pieces, on_epoll, main, backend="trio")


def test_both_directions_of_a_descriptor(pieces: bool) -> None:
    woken: list[str] = []

    async def wait(call: Callable[[Any], Awaitable[None]], target: object, name: str) -> None:
        await call(target)
        woken.append(name)

    async def main() -> None:
        with a_pair() as (one, other):
            fill(one)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait, wait_readable, one, "read")
                nursery.start_soon(wait, wait_writable, one.fileno(), "write")
                await wait_all_tasks_blocked()
                assert waiting() == (1, 1)
                other.send(b"x")
                await wait_all_tasks_blocked()
                assert woken == ["read"]
                assert waiting() == (0, 1)
                drain(other)
            assert woken == ["read", "write"]
            for call in (wait_readable, wait_writable):
                await call(one)  # once more, of a descriptor that the kernel knows

    check(pieces, main)


def test_one_task_in_a_direction(pieces: bool) -> None:
    async def main() -> None:
        with a_pair() as (one, other):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait_readable, one)
                await wait_all_tasks_blocked()
                for target in (one, one.fileno()):
                    with pytest.raises(trio.BusyResourceError, match="another task is already reading"):
                        await wait_readable(target)
                await wait_writable(one)
                assert waiting() == (1, 0)
                other.send(b"x")

    check(pieces, main)


def test_a_cancelled_wait_leaves_the_other_direction(pieces: bool) -> None:
    async def main() -> None:
        with a_pair() as (one, other):
            fill(one)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait_writable, one)
                for _ in range(2):
                    with trio.CancelScope() as scope:
                        async with trio.open_nursery() as inner:
                            inner.start_soon(wait_readable, one)
                            await wait_all_tasks_blocked()
                            scope.cancel()
                    assert waiting() == (0, 1)
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await wait_readable(one)
                assert scope.cancelled_caught
                assert waiting() == (0, 1)
                drain(other)

    check(pieces, main)


def test_closing_ends_the_waits(pieces: bool) -> None:
    ended: list[str] = []

    async def expect_closed(call: Callable[[Any], Awaitable[None]], sock: socket.socket) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await call(sock)
        ended.append(call.__name__)

    async def main() -> None:
        with a_pair() as (one, _other):
            fill(one)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(expect_closed, wait_readable, one)
                nursery.start_soon(expect_closed, wait_writable, one)
                await wait_all_tasks_blocked()
                trio.lowlevel.notify_closing(one)
                assert waiting() == (0, 0)

    check(pieces, main)
    assert sorted(ended) == ["wait_readable", "wait_writable"]


def test_a_hang_up_wakes_both(pieces: bool) -> None:
    async def main() -> None:
        with a_pair() as (one, other):
            fill(one)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait_readable, one)
                nursery.start_soon(wait_writable, one)
                await wait_all_tasks_blocked()
                other.close()

    check(pieces, main)


def test_descriptors_that_cannot_be_waited_for(pieces: bool) -> None:
    async def main() -> None:
        with tempfile.TemporaryFile() as file:
            for call in (wait_readable, wait_writable):
                with pytest.raises(PermissionError):
                    await call(file)
                with pytest.raises(PermissionError):
                    await call(file.fileno())
            gone = file.fileno()
        with pytest.raises(OSError, match="Bad file descriptor"):
            await wait_readable(gone)

    check(pieces, main)


def test_a_descriptor_that_was_closed_behind_its_back(pieces: bool) -> None:
    """The task that waited for it wakes with the error of the next task that waits for the number."""
    errors: list[int] = []

    async def wait(number: int) -> None:
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            await wait_readable(number)
        errors.append(caught.value.errno)

    async def main() -> None:
        with a_pair() as (one, _other):
            number = one.detach()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait, number)
                await wait_all_tasks_blocked()
                os.close(number)
                with pytest.raises(OSError, match="Bad file descriptor"):
                    await wait_writable(number)
        assert len(errors) == 1

    check(pieces, main)


def test_more_descriptors_than_a_wait_has_on_its_stack(pieces: bool) -> None:
    woken: list[int] = []

    async def wait(number: int, sock: socket.socket) -> None:
        await wait_readable(sock)
        woken.append(number)

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            pairs = [stack.enter_context(a_pair()) for _ in range(100)]
            async with trio.open_nursery() as nursery:
                for number, (one, _other) in enumerate(pairs):
                    nursery.start_soon(wait, number, one)
                await wait_all_tasks_blocked()
                assert waiting() == (100, 0)
                for _one, other in pairs:
                    other.send(b"x")
                await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()
                assert sorted(woken) == list(range(100)), "they were not woken by one wait"

    check(pieces, main)


def test_threads_and_signals_end_a_wait(pieces: bool) -> None:
    handled: list[int] = []

    def handle(number: int, _frame: object) -> None:
        handled.append(number)

    async def main() -> None:
        with a_pair() as (one, other):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait_readable, one)
                await wait_all_tasks_blocked()
                assert await trio.to_thread.run_sync(trio.from_thread.run_sync, other.send, b"x") == 1
        with trio.open_signal_receiver(signal.SIGUSR1) as signals:
            signal.raise_signal(signal.SIGUSR1)
            async for number in signals:
                assert number == signal.SIGUSR1
                break
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        while not handled:  # noqa: ASYNC110  # by a signal's handler, which interrupts the wait
            await trio.sleep(0.005)

    before = signal.signal(signal.SIGALRM, handle)
    try:
        check(pieces, main)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_wait_that_is_ended_from_outside_can_still_be_cancelled() -> None:
    """A program drives the awaitable that a task is parked in: the task's wait fails, and the run goes on."""

    async def main() -> None:
        with a_pair() as (one, _other):
            coroutine: Any = wait_readable(one)  # noqa: ASYNC105  # a task awaits it

            async def child() -> None:
                with pytest.raises(RuntimeError):
                    await coroutine

            async with trio.open_nursery() as nursery:
                nursery.start_soon(child)
                await wait_all_tasks_blocked()
                wait = coroutine
                while hasattr(wait, "cr_await"):
                    wait = wait.cr_await
                assert type(wait).__name__ == "Wait"
                wait.close()
                nursery.cancel_scope.cancel()

    check(True, main)


def test_the_piece_says_when_it_is_off() -> None:
    """Runs without it leave no trace in the next one: what the C module uses is switched with the code."""

    async def main() -> None:
        with a_pair() as (one, other):
            other.send(b"x")
            await wait_readable(one)
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(one.dup()))
            async with stream:
                assert await stream.receive_some(1) == b"x"
                with trio.move_on_after(0.001) as scope:
                    await stream.receive_some(1)
                assert scope.cancelled_caught

    for pieces in (True, WITHOUT_TICK, tuple(name for name in NAMES if name != "epoll"), ("sockets",), False, True):
        check(pieces, main)

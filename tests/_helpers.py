"""What the tests of the ring, of the I/O manager and of faults share."""

from __future__ import annotations

import contextlib
import resource
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import trio
from pairs import PATIENCE, until

import gain_trio
from gain_trio import Connection, UringStatistics
from gain_trio._ring import Completion, Ring

T = TypeVar("T")


def bounded(async_fn: Callable[[], Awaitable[T]], patience: float = PATIENCE) -> Callable[[], Awaitable[T]]:
    """The same function, failing when it has not ended after a long while."""

    async def in_time() -> T:
        with trio.fail_after(patience):
            return await async_fn()

    return in_time


def ring_run(async_fn: Callable[[], Awaitable[T]], *, in_place: bool | None = None, **options: object) -> T:
    """``gain_trio.run(async_fn)`` on a ring with these options, failing when it has not ended after a long while."""
    ring = gain_trio.RingOptions(**options)  # type: ignore[arg-type]
    return gain_trio.run(bounded(async_fn), ring=ring, resume_in_place=in_place)


def statistics() -> UringStatistics:
    """Of the current run."""
    found: object = trio.lowlevel.current_statistics().io_statistics
    assert isinstance(found, UringStatistics)
    return found


async def until_let_go() -> None:
    """Until the kernel has let go of every connection that was closed.  Over sockets, closing does not return before."""
    found: object = trio.lowlevel.current_statistics().io_statistics
    if isinstance(found, UringStatistics):
        await until(lambda: statistics().connections == 0)


class WaitCounter(trio.abc.Instrument):
    """Counts how often the run has waited for news: a loop that spins does little else."""

    def __init__(self) -> None:
        self.waits = 0

    def before_io_wait(self, _timeout: float) -> None:
        self.waits += 1


def drive(ring: Ring, until: Callable[[], bool]) -> list[Completion]:
    """Enter and reap until the condition holds; all completions meanwhile."""
    completions: list[Completion] = []
    for _ in range(100_000):
        completions += ring.reap()
        if until():
            return completions
        assert ring.enter(PATIENCE), f"nothing arrived; {ring.statistics()}"
    raise AssertionError("the condition did not come to hold")


async def echo(connection: Connection) -> None:
    """Send back what arrives until the end, or until the peer aborts."""
    with contextlib.suppress(trio.BrokenResourceError):
        async for data in connection:
            await connection.send(data)


@contextlib.contextmanager
def socket_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected non-blocking sockets, closed at the end."""
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        yield one, other


def fill(sock: socket.socket) -> int:
    """Write until the kernel takes no more; how much that was."""
    total = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            total += sock.send(bytes(65536))
    return total


def read_available(sock: socket.socket) -> bytes:
    """All that can be read without waiting."""
    received = bytearray()
    with contextlib.suppress(BlockingIOError):
        while data := sock.recv(65536):
            received += data
    return bytes(received)


@contextlib.contextmanager
def descriptor_limit(limit: int) -> Iterator[None]:
    """RLIMIT_NOFILE for the length of the block: new descriptors get numbers below it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def mapped_bytes() -> int:
    """The process's address space, touched or not."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def next_descriptor() -> int:
    """The lowest free number, which the next descriptor gets."""
    with socket.socket() as probe:
        return probe.fileno()

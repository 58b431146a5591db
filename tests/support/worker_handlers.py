"""Handlers for worker processes, which import them from here, and objects that act when a worker unpickles them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import trio

from gain_trio import Connection
from gain_trio._server._processes import _worker
from gain_trio.callbacks import Conn, EventHandler


async def tell_process(connection: Connection) -> None:
    """Answer every byte with this process's id, in 8 digits."""
    while data := await connection.receive():
        await connection.send(b"%08d" % os.getpid() * len(data))


async def tell_process_until_told(connection: Connection) -> None:
    """Answer every byte with the process's id, until the server drains and the client has sent an X."""
    await connection.send(b"%08d" % os.getpid())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_announce, connection)
        while await connection.receive(1) not in (b"X", b""):
            await connection.send(b"%08d" % os.getpid())
        nursery.cancel_scope.cancel()


async def tell_process_until_drained(connection: Connection) -> None:
    """Answer every byte with the process's id, until the server drains: by an event and a deadline, as many handlers do."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_when_drained, connection)
        with contextlib.suppress(trio.TooSlowError):
            while data := await connection.receive():
                await connection.send(b"%08d" % os.getpid() * len(data))
        nursery.cancel_scope.cancel()


async def _end_when_drained(connection: Connection) -> None:
    await connection.draining.wait()
    connection.read_deadline = trio.current_time()


async def _announce(connection: Connection) -> None:
    await connection.draining.wait()
    await connection.send(b"draining")


async def answer_large(connection: Connection) -> None:
    """For each request, a byte, an answer of a mebibyte in pieces, begun before the server drains."""
    while await connection.receive(1):
        for number in range(64):
            await connection.send(bytes([number]) * 16384)
            await trio.lowlevel.checkpoint()


async def block(connection: Connection) -> None:
    """Block the event loop, as a faulty handler does, also if the server is cancelled right behind the answer."""
    with trio.CancelScope(shield=True):
        await connection.send(b"%08d" % os.getpid())
        await connection.flush()
    time.sleep(3600)  # noqa: ASYNC251 - that is what it is for


async def wait_in_thread(connection: Connection) -> None:
    """Wait for a thread that never ends."""
    await connection.receive()
    with trio.CancelScope(shield=True):
        await connection.send(b"%08d" % os.getpid())
        await connection.flush()
        await trio.to_thread.run_sync(threading.Event().wait)


async def shielded(connection: Connection) -> None:
    """Ignore cancellation."""
    await connection.send(b"%08d" % os.getpid())
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()


async def fail(connection: Connection) -> None:
    await connection.receive()
    raise LookupError("the handler's own")


async def burn(connection: Connection) -> None:
    """Use 2 ms of CPU time, answer, and end."""
    await connection.receive()
    end = time.thread_time() + 0.002
    while time.thread_time() < end:
        pass
    await connection.send(b"%08d" % os.getpid())


def for_control_channel(do: Callable[[socket.socket], Any]) -> None:
    """Call ``do`` with every socket that resembles the control channel, as a program with a wrong descriptor may."""
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as sock:
            if sock.family == socket.AF_UNIX and sock.type == socket.SOCK_STREAM:
                do(sock)


async def disturb(connection: Connection) -> None:
    await connection.send(b"%08d" % os.getpid())
    await connection.flush()
    for_control_channel(lambda sock: sock.send(b"nonsense" * 2))
    await trio.sleep_forever()


async def hang_up_on_the_server(_connection: Connection) -> None:
    """Have the server take the process for one that ends, and stay."""
    for_control_channel(lambda sock: sock.shutdown(socket.SHUT_WR))
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()


async def tell_signals(connection: Connection) -> None:
    """Send whether a program that this handler starts has the default actions for SIGINT and SIGHUP."""
    code = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, "
    code += "signal.getsignal(signal.SIGHUP) is signal.SIG_DFL)"
    done = await trio.run_process([sys.executable, "-c", code], capture_stdout=True)
    await connection.send(done.stdout)


async def tell_placement(connection: Connection) -> None:
    """Send the CPUs and the nice value of the process."""
    cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    await connection.send(f"{cpus} {os.getpriority(os.PRIO_PROCESS, 0)}".encode())


class EchoProtocol(asyncio.Protocol):
    """A protocol for asyncio that puts the id of its process before each answer."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(b"%08d" % os.getpid() + data)


class Unhurried(EventHandler):
    """A handler that reports its beginning, waits for a file to exist, and writes the error of ``on_close`` to another."""

    def __init__(self, go_on: Path, closed: Path) -> None:
        self._go_on = go_on
        self._closed = closed

    async def on_read(self, conn: Conn, n: int) -> None:
        conn.discard(n)
        conn.write(b"begun")
        while not self._go_on.exists():  # noqa: ASYNC110 - another process makes it
            await trio.sleep(0.01)
        conn.write(b" and done")

    def on_close(self, conn: Conn, err: BaseException | None) -> None:  # noqa: ARG002 - the callback's signature
        self._closed.write_text(repr(err))


def be_patient_with_first_words() -> None:
    """Make a worker wait a minute for a connection's first byte, so that slow tests pass."""
    _worker.FIRST_SECONDS = 60.0


def load_context(chain: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(chain)
    return context


def make_no_context() -> ssl.SSLContext:
    raise LookupError("the certificate is missing")


class WhenUnpickled:
    """A handler with a function that a worker calls first, when it unpickles the handler."""

    def __init__(self, handler: Callable[[Connection], Any], do: Callable[..., Any], *arguments: Any) -> None:
        self._handler = handler
        self._do = do
        self._arguments = arguments

    async def __call__(self, connection: Connection) -> None:
        await self._handler(connection)

    def __reduce__(self) -> Any:
        return _unpickle, (self._handler, self._do, self._arguments)


class NoneIfThere:
    """A handler that is none in a worker while there is a file: its module has changed on disk."""

    def __init__(self, handler: Callable[[Connection], Any], path: Path) -> None:
        self._handler = handler
        self._path = path

    async def __call__(self, connection: Connection) -> None:
        await self._handler(connection)

    def __reduce__(self) -> Any:
        return _handler_unless, (self._handler, self._path)


def _handler_unless(handler: Callable[[Connection], Any], path: Path) -> Any:
    return 5 if path.exists() else handler


def _unpickle(
    handler: Callable[[Connection], Any], do: Callable[..., Any], arguments: tuple[Any, ...]
) -> WhenUnpickled:
    do(*arguments)
    return WhenUnpickled(handler, do, *arguments)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_soon() -> None:
    """Start a thread that ends the process, most likely when it has just begun to serve."""
    threading.Timer(0.4, os._exit, [3]).start()


async def end_process(connection: Connection) -> None:
    await connection.send(b"bye")
    await connection.aclose()
    os._exit(3)


async def end_process_at_once(_connection: Connection) -> None:
    os._exit(3)


def complain() -> None:
    raise LookupError("this program cannot start")


def complain_if(path: Path) -> None:
    if path.exists():
        complain()


def die_if(path: Path) -> None:
    if path.exists():
        die()


def wait_while(path: Path) -> None:
    while path.exists():
        time.sleep(0.01)


def tell_and_wait_while(path: Path, told: Path) -> None:
    """Wait while a file exists, and write the process id to the other file first."""
    if path.exists():
        part = told.with_suffix(".part")
        part.write_text(str(os.getpid()))
        part.rename(told)
    wait_while(path)


def limit_descriptors(count: int) -> None:
    """Let the process open ``count`` more descriptors than it has."""
    used = max(map(int, os.listdir("/proc/self/fd")))
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1 + count, hard))


async def spin(connection: Connection) -> None:
    """Block the event loop by an endless computation."""
    await connection.send(b"%08d" % os.getpid())
    await connection.flush()
    while True:
        pass


class BusyThreads(EventHandler):
    """A handler that blocks its thread; the event loop goes round if that is another one (``async_handler``)."""

    def on_read(self, conn: Conn, n: int) -> None:
        conn.discard(n)
        os.write(conn.fd, b"%08d" % os.getpid())
        threading.Event().wait()


class BlockingEvents(EventHandler):
    """A handler that blocks the event loop in a callback."""

    def on_read(self, conn: Conn, n: int) -> None:
        conn.discard(n)
        os.write(conn.fd, b"%08d" % os.getpid())  # which is sent at once
        time.sleep(3600)

"""Code of others in the middle of ours: an interrupt, a finalizer, a garbage collection, a fork.

Python runs such code wherever it likes.  Where it did harm once it is put there on purpose: by tracing, which calls a
function when another one is entered, as the interpreter looks for signals there.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
import trio
from support.descriptors import is_open
from support.pairs import PATIENCE, open_pair, until
from support.runs import bounded
from trio.testing import wait_all_tasks_blocked

import gain_trio
from gain_trio import Connection, open_datagram_endpoint, open_listeners
from gain_trio._io_manager import current_manager
from gain_trio._transports._backends._ring_connection import RingConnection
from gain_trio._transports._datagrams._ring_endpoint import RingEndpoint

pytestmark = [pytest.mark.connections, pytest.mark.usefixtures("no_descriptor_leak")]

LOCAL = "tcp://127.0.0.1:0"


@contextlib.contextmanager
def when(event: str, name: str, function: Callable[[], object], *, file: str = "") -> Iterator[list[str]]:
    """Call it once, when a function of this name is entered (``"call"``) or left (``"return"``)."""
    happened: list[str] = []

    def trace(frame: FrameType, what: str, _argument: object) -> Any:
        if frame.f_code.co_name != name or file not in frame.f_code.co_filename or happened:
            return None
        if what == event:
            happened.append(name)
            function()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield happened
    finally:
        sys.settrace(before)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


@contextlib.asynccontextmanager
async def interrupted() -> Any:
    """The main task is interrupted at its next checkpoint, and not before."""
    yield
    with pytest.raises(KeyboardInterrupt):
        await trio.lowlevel.checkpoint()


# --- Ctrl-C ---


@pytest.mark.parametrize("how", ["abort", "close now", "close soon"])
def test_an_interrupt_in_a_close_leaves_nobody_waiting(how: str) -> None:
    ways = {"abort": Connection.abort, "close now": Connection._close_now, "close soon": Connection._close_soon}

    async def main() -> None:
        client, served = await open_pair()
        told = trio.Event()

        async def read() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await served.receive()
            told.set()

        descriptor = served.fileno()
        async with client, trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await wait_all_tasks_blocked()
            async with interrupted():
                with when("call", "reschedule", interrupt) as happened:
                    getattr(served, ways[how].__name__)()
            assert happened
            await told.wait()
        await until(lambda: not is_open(descriptor))

    gain_trio.run(bounded(main))


def test_an_interrupt_in_a_close_tells_all_who_wait_for_an_endpoint() -> None:
    async def main() -> None:
        endpoint = await open_datagram_endpoint("udp://127.0.0.1:0")
        told: list[int] = []

        async def read(number: int) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await endpoint.receive()
            told.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(read, number)
                await wait_all_tasks_blocked()
            async with interrupted():
                with when("call", "reschedule", interrupt) as happened:
                    endpoint.close()
            assert happened
        assert sorted(told) == [0, 1, 2]

    gain_trio.run(bounded(main))


def test_an_interrupt_while_a_deadline_is_moved_loses_no_deadline() -> None:
    async def main() -> None:
        pairs = [await open_pair() for _ in range(3)]
        late: list[int] = []

        async def read(number: int) -> None:
            with pytest.raises(trio.TooSlowError):
                await pairs[number][1].receive()
            late.append(number)

        now = trio.current_time()
        for number, (_client, served) in enumerate(pairs):
            served.read_deadline = now + 1000 + number
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(read, number)
            await wait_all_tasks_blocked()
            async with interrupted():
                with when("return", "_cut", interrupt, file="_deadlines.py") as happened:  # in no heap at this moment
                    pairs[2][1].read_deadline = now
            assert happened
            for _client, served in pairs[:2]:
                served.read_deadline = now
        assert sorted(late) == [0, 1, 2]
        for pair in pairs:
            for connection in pair:
                await connection.aclose()

    gain_trio.run(bounded(main))


@pytest.mark.full_ring
def test_an_interrupt_of_an_accept_closes_a_descriptor_once() -> None:
    async def main() -> None:
        [listener] = await open_listeners(LOCAL)
        async with listener:
            with socket.create_connection(listener.local_address[:2]):
                async with interrupted():
                    with when("return", "ring_connection", interrupt) as happened:
                        accepted = await listener.accept()
                assert happened
                descriptor = accepted.fileno()
                await accepted.aclose()
                await until(lambda: not is_open(descriptor))

    gain_trio.run(bounded(main))


# --- finalizers and garbage collections ---


@pytest.mark.full_ring
def test_an_endpoint_that_is_closed_while_a_call_begins_to_wait() -> None:
    async def main() -> None:
        async with await open_datagram_endpoint("udp://127.0.0.1:0") as endpoint:
            with when("call", "__init__", endpoint.close, file="WaitTaskRescheduled") as happened:
                with pytest.raises(trio.ClosedResourceError):
                    await endpoint.receive()
            assert happened

    gain_trio.run(bounded(main))


DROPPED_IN_A_CYCLE = """
import gc, socket, trio, trio.testing, gain_trio

async def main():
    peers = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(220)]
    for after in range(20, 220, 10):
        gc.collect()
        gc.disable()
        endpoint = await gain_trio.open_datagram_endpoint("udp://127.0.0.1:0")
        endpoint.context = [endpoint]
        await trio.testing.wait_all_tasks_blocked()  # its receive is armed
        for peer in peers:
            peer.sendto(b"x", endpoint.local_address)
        pairs = [(number, [number]) for number in range(4000)]  # so that a new tuple is new memory
        del endpoint
        gc.set_threshold(gc.get_count()[0] + after, 1000, 1000)
        gc.enable()
        await trio.testing.wait_all_tasks_blocked(0.01)
        del pairs
    for peer in peers:
        peer.close()

gain_trio.run(main, backend="io_uring")
print("survived")
"""


@pytest.mark.full_ring
def test_an_endpoint_that_is_collected_while_its_datagram_is_taken() -> None:
    """Python before 3.12 can begin a garbage collection wherever an object is made."""
    environment = {**os.environ, "PYTHONMALLOC": "debug", "PYTHONWARNINGS": "ignore::ResourceWarning"}
    command = [sys.executable, "-c", DROPPED_IN_A_CYCLE]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, env=environment)
    assert (result.returncode, result.stdout, result.stderr) == (0, "survived\n", "")


@pytest.mark.full_ring
def test_a_finalizer_that_hides_ours_does_not_keep_the_descriptor() -> None:
    class OwnEndpoint(RingEndpoint):  # type: ignore[misc]  # which is final, for who checks types
        def __del__(self) -> None:
            pass

    class OwnConnection(RingConnection):  # type: ignore[misc]
        def __del__(self) -> None:
            pass

    async def main() -> None:
        manager = current_manager("a test")
        assert manager is not None
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.bind(("127.0.0.1", 0))
            descriptor = sock.fileno()
            endpoint = OwnEndpoint(manager, sock, None, queue_size=10, queue_bytes=1000, max_size=100)
        one, other = socket.socketpair()
        one.setblocking(False)
        connection = OwnConnection(manager.proactor, one.detach(), 2, 1, 1, gain_trio.Marks(), 1.0)
        await wait_all_tasks_blocked()
        del endpoint, connection
        gc.collect()
        await until(lambda: not is_open(descriptor))
        with other:
            other.setblocking(False)
            await trio.lowlevel.wait_readable(other)
            assert other.recv(1) == b""

    gain_trio.run(bounded(main))


# --- a fork ---

FORKING_HANDLER = """
import os, signal, sys, threading, trio, gain_trio

child = None
once = [True]

def handler(number, frame):
    global child
    try:
        once.pop()  # in one step: another signal may come in the middle of this handler, and in the child
    except IndexError:
        return
    child = os.fork()

signal.signal(signal.SIGUSR1, handler)
main_thread = threading.get_ident()

def kill():
    threading.Event().wait(0.2)  # the run waits by then, most likely; else this shows less
    while once:
        signal.pthread_kill(main_thread, signal.SIGUSR1)
        threading.Event().wait(0.01)

async def main():
    thread = threading.Thread(target=kill)
    thread.start()
    while child is None:  # the run must not be over before it has forked
        await trio.sleep(0.5)

try:
    gain_trio.run(main, backend="io_uring")
except RuntimeError as error:
    if child != 0:
        raise
    os._exit(7 if "parent process" in str(error) else 8)
except BaseException:
    os._exit(9)
if child == 0:
    os._exit(10)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.full_ring
def test_a_signal_handler_that_forks_while_the_run_waits() -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKING_HANDLER]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "7\n", "")

"""No descriptor is left behind by a run that does not begin, or does not end, as runs do."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import socket
import subprocess
import sys
import termios
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import trio
import trio.testing
from support.descriptors import open_descriptors
from support.pairs import PATIENCE, open_pair

from gain_trio import RingOptions, open_datagram_endpoint
from gain_trio._io_manager import UringIOManager
from gain_trio._io_manager._seam import current_io_manager

pytestmark = [pytest.mark.connections, pytest.mark.driver, pytest.mark.ring]


# --- a KeyboardInterrupt while a ring is opened ---


class Interrupted(KeyboardInterrupt):
    """The test's own."""


def interrupt_at(step: int) -> Any:
    """A trace function that raises at the so-maniest step of this package."""
    left = step

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal left
        if "gain_trio" not in frame.f_code.co_filename or "__del__" in frame.f_code.co_name:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == 0:
                raise Interrupted
        return trace

    return trace


@pytest.mark.slow
def test_an_interrupt_at_any_step_of_opening_leaves_no_descriptor() -> None:
    """Between any two instructions, which is where Python runs signal handlers."""
    options = RingOptions(entries=8, completion_entries=16, buffer_count=2, buffer_size=4096)
    UringIOManager(options).close()
    gc.collect()
    before = open_descriptors()
    # CPython 3.12 tells a trace function of opcodes only if a frame wanted them before there was a trace function.
    sys._getframe().f_trace_opcodes = True
    step = 0
    opened = False
    while not opened:
        step += 1
        tracing = sys.gettrace()
        sys.settrace(interrupt_at(step))
        try:
            manager = UringIOManager(options)
            opened = True
        except Interrupted:
            pass
        finally:
            sys.settrace(tracing)
        if opened:
            manager.close()
        assert open_descriptors() == before, f"at step {step}"
    assert step > 100


def test_a_manager_whose_reactor_cannot_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_descriptors()
    manager = UringIOManager()

    class Stubborn:
        def close(self) -> int:
            raise Interrupted

    proactor, manager.proactor = manager.proactor, Stubborn()  # type: ignore[assignment]
    with pytest.raises(Interrupted):
        manager.close()
    assert manager.ring.closed
    del proactor, manager
    gc.collect()
    assert open_descriptors() == before


# --- a guest run that its host has abandoned ---


ABANDONED = """
import gc, os, socket, sys, threading, time
import trio
import gain_trio
from support.descriptors import open_descriptors

async def main(clients):
    [listener] = await gain_trio.open_listeners("tcp://127.0.0.1:0")
    clients.append(socket.create_connection(listener.local_address, timeout=30))
    connection = await listener.accept()
    endpoint = await gain_trio.open_datagram_endpoint("udp://127.0.0.1:0")
    one, _ = trio.socket.socketpair()
    async with trio.open_nursery() as nursery:
        for call in (connection.receive, endpoint.receive, listener.accept):
            nursery.start_soon(call)
        nursery.start_soon(one.recv, 1)
        await trio.lowlevel.checkpoint()
        clients.append(None)
        while True:  # a wait would be in another thread, which holds the run
            await trio.lowlevel.checkpoint()

def host(clients, abandoned, collected):
    todo = []
    gain_trio.start_guest_run(
        main,
        clients,
        run_sync_soon_threadsafe=todo.append,
        done_callback=print,
        backend="io_uring",
        host_uses_signal_set_wakeup_fd=True,
    )
    ticks = 0 if sys.argv[1] == "unbegun" else 10_000
    while ticks and None not in clients:
        if todo:
            todo.pop(0)()
        ticks -= 1
        time.sleep(0.001)
    todo.clear()
    del todo
    abandoned.set()
    collected.wait(30)

gain_trio.run(trio.sleep, 0)
gc.disable()
before = open_descriptors()
clients, abandoned, collected = [], threading.Event(), threading.Event()
thread = threading.Thread(target=host, args=(clients, abandoned, collected))
thread.start()
abandoned.wait(30)
if sys.argv[1] == "other thread has a ring":
    async def collect():
        gc.collect()
        await trio.sleep(0.01)
    gain_trio.run(collect, backend="io_uring")
gc.collect()
clients = [client for client in clients if client]
for client in clients:  # closed in the kernel, too
    try:
        print("the client sees", client.recv(1))
    except ConnectionResetError:
        print("the client sees", b"")
    client.close()
assert open_descriptors() == before, (before, open_descriptors())
collected.set()
thread.join()
print("no descriptor is left")
"""


@pytest.mark.slow
@pytest.mark.parametrize("when", ["unbegun", "begun", "other thread has a ring"])
def test_a_guest_run_that_is_collected_in_another_thread(when: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ABANDONED, when],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    expected = "" if when == "unbegun" else "the client sees b''\n"
    assert ended.stdout == f"{expected}no descriptor is left\n", ended.stderr


# --- receives that end early ---


@pytest.mark.full_ring
async def test_a_receive_for_which_there_is_no_memory_is_over() -> None:
    """The received data is lost, so the connection is broken; later data stays in the kernel."""
    testcapi = pytest.importorskip("_testcapi")
    client, served = await open_pair()
    async with client, served:
        await trio.testing.wait_all_tasks_blocked()
        with socket.socket(fileno=os.dup(client.fileno())) as peer:
            peer.setblocking(True)
            peer.send(b"lost")
            manager = current_io_manager()
            assert isinstance(manager, UringIOManager)
            wait = manager.proactor.wait
            testcapi.set_nomemory(0, 1)
            try:
                wait(0)
            finally:
                testcapi.remove_mem_hooks()
            for call in (served.receive, served.receive_some):
                with pytest.raises(trio.BrokenResourceError) as caught:
                    await call()
                assert isinstance(caught.value.__cause__, OSError)
                assert caught.value.__cause__.errno == errno.ENOMEM
            await trio.testing.wait_all_tasks_blocked()
            peer.send(b"more")
            await trio.testing.wait_all_tasks_blocked()
            assert bytes_in_kernel(served.fileno()) == 4
            assert served.inbound_buffered == 0
            await served.send(b"answer")  # the other direction is sound
            assert await client.receive() == b"answer"


def bytes_in_kernel(descriptor: int) -> int:
    found = fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4))
    return int.from_bytes(found, sys.byteorder)


@pytest.mark.full_ring
async def test_the_buffer_of_a_stale_completion_goes_back_to_its_group() -> None:
    """There are none as long as the ring's books are right, so one is made by a false entry."""
    manager = current_io_manager()
    assert isinstance(manager, UringIOManager)
    ring = manager.ring
    async with await open_datagram_endpoint("udp://127.0.0.1:0") as endpoint:
        with socket.socket(type=socket.SOCK_DGRAM) as peer:
            await trio.testing.wait_all_tasks_blocked()
            before = ring.statistics().buffers_free
            slots = [ring._ring.slots[index] for index in range(ring._ring.slot_count)]
            [slot] = [slot for slot in slots if slot.kind == 3]
            for count in range(1, 2 * ring.options.datagram_buffer_count):
                slot.generation += 1
                peer.sendto(b"stale", endpoint.local_address)
                await trio.testing.wait_all_tasks_blocked()
                assert ring.statistics().stale == count
                slot.generation -= 1
            assert ring.statistics().buffers_free == before
            peer.sendto(b"datagram", endpoint.local_address)
            with trio.fail_after(PATIENCE):
                assert (await endpoint.receive())[0] == b"datagram"

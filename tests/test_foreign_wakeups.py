"""Tasks of a connection that programs wake themselves, and what goes wrong while one is woken.

Every test wakes a task in place where that is done, while the run waits.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import Any

import outcome
import pytest
import trio
import trio.testing
from support.pairs import PATIENCE, open_pair

import gain_trio
from gain_trio import Connection

pytestmark = [pytest.mark.connections, pytest.mark.full_ring]  # over sockets a task is parked by Trio alone

in_place = pytest.mark.parametrize("resume_in_place", [True, False], ids=["in_place", "scheduled"])


def parked_by_another(_raise_cancel: Any) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.SUCCEEDED


def send_now(connection: Connection, data: bytes) -> None:
    """Past the connection, so that it is there when the run waits next."""
    sock = socket.socket(fileno=connection.fileno())
    try:
        sock.send(data)
    finally:
        sock.detach()


@in_place
def test_a_task_that_is_parked_with_an_abort_function_of_its_own(resume_in_place: bool) -> None:
    """The task has made the first step of the call itself, and waits by its own means."""

    async def main() -> bytes:
        client, served = await open_pair()
        async with client, served, trio.open_nursery() as nursery:
            received = b""

            async def receive_by_hand() -> None:
                nonlocal received
                call: Any = served.receive().__await__()
                next(call)
                await trio.lowlevel.wait_task_rescheduled(parked_by_another)
                with pytest.raises(StopIteration) as stopped:
                    call.send(None)
                received = stopped.value.value

            nursery.start_soon(receive_by_hand)
            await trio.testing.wait_all_tasks_blocked()
            await client.send(b"message")
        return received

    assert gain_trio.run(main, backend="io_uring", resume_in_place=resume_in_place) == b"message"


@in_place
def test_a_task_that_was_rescheduled_by_another_when_its_bytes_come(resume_in_place: bool) -> None:
    async def main() -> bytes:
        client, served = await open_pair()
        async with client, served, trio.open_nursery() as nursery:
            received = b""
            task: Any = None

            async def receive() -> None:
                nonlocal received, task
                task = trio.lowlevel.current_task()
                received = await served.receive()

            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            send_now(client, b"message")
            trio.lowlevel.reschedule(task, outcome.Value(None))
        return received

    assert gain_trio.run(main, backend="io_uring", resume_in_place=resume_in_place) == b"message"


ERROR_IN_A_STEP = """
import sys, socket, warnings
import trio, trio.testing
import gain_trio
from gain_trio._io_manager._seam import RunSeam

async def main():
    [listener] = await gain_trio.open_listeners("tcp://127.0.0.1:0")
    peer = socket.create_connection(listener.local_address)
    connection = await listener.accept()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.receive)
        await trio.testing.wait_all_tasks_blocked()
        peer.send(b"message")
        await trio.sleep(30)

async def next_main():
    return "the next run has run"

def fail(*_):
    raise LookupError("of the test")

as_it_was, RunSeam.task_exited = RunSeam.task_exited, fail
try:
    gain_trio.run(main, backend="io_uring", resume_in_place=True)
except trio.TrioInternalError as error:
    print(repr(error.__cause__))
RunSeam.task_exited = as_it_was
print(gain_trio.run(next_main, backend="io_uring"))
"""


def test_an_error_in_a_step_is_an_internal_error_of_the_run() -> None:
    """Also in one that is made while the run waits, outside of Trio's loop; and the next run can begin.

    In a process of its own, because what such an error leaves behind has no end.
    """
    command = [sys.executable, "-c", ERROR_IN_A_STEP]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ended.stdout == "LookupError('of the test')\nthe next run has run\n", ended.stderr

"""A second signal ends a process also while a thread is busy, and says what it was busy with."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from support.processes import Program, connect, running

from gain_trio._server._end_signals import SignalWatch, place_of_main_thread

pytestmark = [pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX"), pytest.mark.one_backend]

SCRIPT = """
import functools, sys, threading
import trio
import gain_trio
from gain_trio._server import _cut_off, _end_signals

never = threading.Event()


def stuck():
    print("busy", flush=True)
    never.wait()


async def held_up(function):
    function()


async def handler(connection):
    await connection.receive()
    await trio.to_thread.run_sync(stuck)


async def of_datagram(data, address, endpoint):
    await trio.to_thread.run_sync(stuck)


class Busy(gain_trio.callbacks.EventHandler):
    def on_start(self, server):
        print(server.addresses[0][1], flush=True)

    def on_read(self, conn, n):
        stuck()


async def main():
    async with trio.open_nursery() as nursery:
        start = functools.partial(gain_trio.serve, handler, "tcp://127.0.0.1:0", signals=True, graceful_timeout=60)
        server = await nursery.start(start)
        print(server.addresses[0][1], flush=True)


# as a program
kind, seconds = sys.argv[1], float(sys.argv[2])
if kind.startswith("held up"):
    _end_signals.CUT_SECONDS = seconds
else:  # a run that this machine is slow to run is not to be taken for one that is held up
    _cut_off.CUT_SECONDS = seconds
    _end_signals.CUT_SECONDS = _end_signals.HURRIED_SECONDS = 3600

if kind == "serve":
    gain_trio.run(main)
elif kind == "listen_and_serve":
    gain_trio.callbacks.listen_and_serve("tcp://127.0.0.1:0", Busy(), async_handler=True, graceful_timeout=60)
elif kind == "held up":
    gain_trio.callbacks.listen_and_serve("tcp://127.0.0.1:0", Busy(), graceful_timeout=60)
elif kind == "held up by serve":
    trio.to_thread.run_sync = held_up
    gain_trio.run(main)
elif kind == "start_as_main_process":
    server = gain_trio.callbacks.EventServer(Busy(), async_handler=True, graceful_timeout=60)
    server.start_as_main_process("tcp://127.0.0.1:0")
else:
    from gain_trio._command._cli import main
    sys.path.insert(0, sys.argv[3])
    handlers = {
        "command": ["handler"],
        "callbacks by command": ["Busy", "--async-handler"],
        "held up by command": ["Busy"],
    }
    sys.exit(main(["serve", "tcp://127.0.0.1:0", "--graceful-timeout", "60", "--handler",
                   *(f"served:{word}" if not word.startswith("-") else word for word in handlers[kind])]))
"""
HELD_UP = ["held up", "held up by serve", "held up by command"]
KINDS = ["serve", "listen_and_serve", "start_as_main_process", "command", "callbacks by command"]


@contextmanager
def busy_server(kind: str, seconds: float, folder: Path) -> Iterator[Program]:
    """A server whose thread is busy for ever."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    module = SCRIPT.partition("# as a program")[0].replace("print(server.addresses[0][1], flush=True)", "pass")
    (folder / "served.py").write_text(module)
    with running(script, kind, str(seconds), folder) as program:
        line = program.line()
        port = int(line) if line.isdigit() else int(line.split("127.0.0.1:")[1].partition(";")[0])
        with connect("127.0.0.1", port) as client:
            client.sendall(b"x")
            while (line := program.line()) != "busy":
                assert line, "it ended"
            yield program


@pytest.mark.parametrize("kind", KINDS)
def test_a_busy_thread_does_not_keep_the_process(kind: str, tmp_path: Path) -> None:
    with busy_server(kind, 0.1, tmp_path) as program:
        for number in (signal.SIGTERM, signal.SIGINT):  # two of a kind may become one
            program.interrupt(number)
        check_end(kind, program)


@pytest.mark.parametrize("kind", ["serve", "start_as_main_process", "callbacks by command"])
def test_further_signals_shorten_the_time(kind: str, tmp_path: Path) -> None:
    with busy_server(kind, 3600, tmp_path) as program:
        for _ in range(100):
            program.interrupt(signal.SIGTERM)
            if program.ends_within(0.3):
                break
        check_end(kind, program)


@pytest.mark.parametrize("seconds", [0.1, 3600], ids=["two signals", "more signals"])
@pytest.mark.parametrize("kind", HELD_UP)
def test_a_run_that_is_held_up_does_not_keep_the_process(kind: str, seconds: float, tmp_path: Path) -> None:
    with busy_server(kind, seconds, tmp_path) as program:
        for number in range(100):
            if number in (0, 1, 30, 60) or seconds > 1:  # two that a busy machine delivers together are one
                program.interrupt(signal.SIGTERM)
            if program.ends_within(0.3):
                break
        status, _, errors = program.end()
    assert status == 1
    assert "status 1" in errors
    assert "the run, which is held up in" in errors
    assert "stuck, line" in errors or "threading" in errors


async def test_what_holds_the_run_up_is_not_the_signal_that_comes_meanwhile() -> None:
    places: list[str] = []

    def look(_number: int, _frame: object) -> None:
        with ThreadPoolExecutor(1) as pool:
            places.append(pool.submit(place_of_main_thread).result())

    watch = SignalWatch(trio.lowlevel.current_trio_token())

    def interrupted() -> None:
        watch.counting(look)(signal.SIGTERM, None)

    interrupted()
    [place] = places
    assert "interrupted, line" in place


def check_end(kind: str, program: Program) -> None:
    status, _, errors = program.end()
    assert status == 1
    assert "status 1" in errors
    assert ("handler" if kind in {"serve", "command"} else "Busy") in errors
    assert "for the thread" in errors

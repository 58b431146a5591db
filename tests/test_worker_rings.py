"""Worker processes that cannot have a ring do without, and one line says so; and memory that comes back late."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import trio
from support import restricted
from support import worker_handlers as handlers

import gain_trio
from gain_trio import BackendInfo
from gain_trio._io_manager import _backend_choice
from gain_trio._kernel import load_error
from gain_trio._ring import Ring, _ring
from gain_trio._server._processes._worker import main
from gain_trio._server._processes._worker_launcher import WorkerLauncher
from gain_trio._transports._addresses import _bind_retry

pytestmark = [pytest.mark.connections, pytest.mark.slow]

compiled = pytest.mark.skipif(load_error is not None, reason="a ring needs the compiled modules")

PROGRAM = """
import logging
import sys

import trio

import gain_trio
from support import worker_handlers
from support.workers import process_of


async def main():
    options = {"processes": int(sys.argv[1]), "architecture": sys.argv[2]}
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            lambda **status: gain_trio.serve(worker_handlers.tell_process, "tcp://127.0.0.1:0", **options, **status)
        )
        async with await gain_trio.connect(f"tcp://127.0.0.1:{server.addresses[0][1]}") as client:
            await process_of(client)
        print(server._process_counts()[0], flush=True)
        nursery.cancel_scope.cancel()


logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
gain_trio.run(main, backend=sys.argv[3])
"""


def serve_restricted(restriction: str, *arguments: str) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != "GAIN_TRIO_BACKEND"}
    environment["PYTHONPATH"] = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, restricted.__file__, restriction, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.no_run
@compiled
@pytest.mark.parametrize("architecture", ["reactor", "socket_sharding"])
def test_workers_without_memory_for_a_ring_do_without_and_one_line_says_so(architecture: str) -> None:
    """The limit is for all processes of a user: there is room for one ring, or two, and on some kernels for all."""
    out = serve_restricted("memlock=700", "5", architecture, "auto")
    assert out.pop() == "5"
    if out:
        [line] = out
        assert "ENOMEM" in line
        assert "RLIMIT_MEMLOCK is 700 KiB" in line
        assert "demanded" not in line
        # Other tests may leave no room even for the ring of the server itself.
        assert re.match(r"[1-5] of 5 worker processes have no ring, |running on Trio's own I/O manager: ", line)


@pytest.mark.no_run
@compiled
def test_a_ring_that_is_demanded_is_demanded_of_workers() -> None:
    with pytest.raises(AssertionError, match="RingUnavailable"):
        serve_restricted("memlock=0", "2", "reactor", "io_uring")


async def test_what_is_demanded_of_a_worker(backend: BackendInfo) -> None:
    demanded = WorkerLauncher(handlers.tell_process, gain_trio.ServerConfig(), main).run.backend
    assert demanded in ({"trio"} if backend.backend == "trio" else {"io_uring", "auto"})


@compiled
@pytest.mark.parametrize("wanted", ["auto", "io_uring"])
def test_a_run_knows_whether_its_ring_was_demanded(wanted: Any) -> None:
    manager = _backend_choice.open_manager(_backend_choice.BackendSetting(wanted, "a test"), None, None)
    if isinstance(manager, BackendInfo):
        pytest.skip(manager.reason)
    assert manager.is_demanded is (wanted == "io_uring")
    manager.close()


# --- what the kernel gives back late ---


@compiled
@pytest.mark.parametrize("refused", ["gt_ring_open", "gt_buffers_open"])
def test_a_ring_waits_for_memory_that_comes_back(refused: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = [-errno.ENOMEM] * 3
    attempts = []

    class Library:
        def __init__(self, real: Any) -> None:
            self._real = real

        def __getattr__(self, name: str) -> Any:
            real = getattr(self._real, name)
            return real if name != refused else lambda *arguments: refusals.pop() if refusals else real(*arguments)

    class Module:
        lib = Library(_ring.uring.lib)
        ffi = _ring.uring.ffi

    monkeypatch.setattr(_ring, "uring", Module)
    monkeypatch.setattr(_ring.time, "sleep", attempts.append)
    try:
        ring = Ring()
    except gain_trio.RingUnavailable as error:
        pytest.skip(str(error))
    ring.close()
    assert attempts == [_ring.PAUSE] * 3


@compiled
def test_a_ring_that_gets_no_memory_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Module:
        class lib:  # noqa: N801 - cffi's name
            @staticmethod
            def gt_ring_open(*_arguments: object) -> int:
                return -errno.ENOMEM

            @staticmethod
            def gt_ring_close(_ring: object) -> None:
                """Nothing is open."""

        ffi = _ring.uring.ffi

    monkeypatch.setattr(_ring, "uring", Module)
    begin = time.monotonic()
    with pytest.raises(gain_trio.RingUnavailable, match="ENOMEM"):
        Ring()
    assert time.monotonic() - begin >= _ring.PATIENCE


class Taken:
    """An address that is in use for some attempts."""

    def __init__(self, attempts: int) -> None:
        self.left = attempts

    def bind(self) -> None:
        if self.left:
            self.left -= 1
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


async def test_an_address_that_becomes_free_is_taken() -> None:
    taken = Taken(5)
    await _bind_retry.bind_with_retries(taken.bind)
    assert taken.left == 0


async def test_an_address_that_stays_in_use_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bind_retry, "RETRY_SECONDS", 0.01)
    with pytest.raises(OSError, match="in use"):
        await _bind_retry.bind_with_retries(Taken(1 << 30).bind)


@pytest.mark.parametrize("kind", ["listeners", "endpoint"])
async def test_an_address_is_had_as_soon_as_it_is_free(kind: str) -> None:
    """The owner is closed by another task, which has its turn while the address is waited for."""
    owner = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "listeners" else socket.SOCK_DGRAM)
    owner.bind(("127.0.0.1", 0))
    if kind == "listeners":
        owner.listen()
    port = owner.getsockname()[1]

    async def close() -> None:
        owner.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(close)
        if kind == "listeners":
            [listener] = await gain_trio.open_listeners(f"tcp://127.0.0.1:{port}")
            await listener.aclose()
        else:
            async with await gain_trio.open_datagram_endpoint(f"udp://127.0.0.1:{port}"):
                pass


async def test_a_unix_address_is_had_as_soon_as_it_is_free(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    owner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    owner.bind(str(path))
    owner.listen()

    async def close() -> None:
        owner.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(close)
        [listener] = await gain_trio.open_listeners(f"unix://{path}")
        await listener.aclose()

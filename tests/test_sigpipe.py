"""A program whose SIGPIPE is at its default, as programs at a terminal set it, survives a peer that is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from support.pairs import PATIENCE

from gain_trio._transports._connections._file_sending import _sigpipe_taken

CASES = ("send", "parts", "buffer", "large", "file", "unix send", "unix file", "descriptors", "tls send", "tls file")
PROGRAM = """
import os, signal, sys
from functools import partial
from pathlib import Path
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
import trio
import gain_trio
from support.certificates import open_tls_pair
from support.pairs import open_pair, open_unix_pair

CALLS = {
    "send": lambda connection: connection.send(b"x"),
    "parts": lambda connection: connection.send([b"x", b"y"]),
    "buffer": lambda connection: connection.send(bytearray(9000)),
    "large": lambda connection: connection.send(bytes(1 << 22)),
    "file": lambda connection: connection.send_file("file"),
    "descriptors": lambda connection: connection.send_fds(b"x", [0]),
}

def open_for(case):
    if case == "descriptors":
        return open_unix_pair("unix://" + os.getcwd() + "/socket", pass_fds=True)
    if case.startswith("unix"):
        return open_unix_pair("unix://" + os.getcwd() + "/socket")
    return open_tls_pair() if case.startswith("tls") else open_pair()

async def until_broken(call):
    try:
        with trio.fail_after(30):
            while True:
                await call()
                await trio.lowlevel.checkpoint()
    except trio.BrokenResourceError:
        pass

async def main(cases):
    for case in cases:
        client, served = await open_for(case)
        async with served:
            client.abort()
            await until_broken(served.receive if not case.startswith(("unix", "desc")) else lambda: served.send(b"x"))
            for _ in range(2):
                await until_broken(partial(CALLS[case.split()[-1]], served))
        print(case, flush=True)

os.chdir(sys.argv[1])
Path("file").write_bytes(bytes(1 << 22))
gain_trio.run(partial(main, sys.argv[2:]))
"""


def test_every_kind_of_send(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), *CASES]
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert ended.returncode == 0, f"{ended.returncode}, after {ended.stdout!r}: {ended.stderr}"
    assert tuple(ended.stdout.splitlines()) == CASES


def test_a_thread_takes_the_signal_that_it_has_caused_and_no_other() -> None:
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with _sigpipe_taken():
        assert signal.SIGPIPE in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        signal.pthread_kill(threading.get_ident(), signal.SIGPIPE)
        assert signal.SIGPIPE in signal.sigpending()
    assert signal.SIGPIPE not in signal.sigpending()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == blocked

"""Where the compiled modules are missing the package can still be imported, and says what is wrong when it is used."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
sys.modules["gain_trio._uring"] = sys.modules["gain_trio._fastpath"] = None  # importing them raises ImportError
import trio
import gain_trio, gain_trio.pytest_plugin

async def main():
    raise AssertionError("no run was to start")

for start in (lambda: gain_trio.run(main), gain_trio.install):
    try:
        start()
    except gain_trio.RingUnavailable as error:
        assert error.errno is None
        print(error)
print(gain_trio.backend_info().backend)

async def on_trio():
    try:
        await gain_trio.connect("tcp://127.0.0.1:1")
    except RuntimeError as error:
        print(error)

trio.run(on_trio)
"""


def test_without_the_compiled_modules() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=30, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    run, install, backend, connect = result.stdout.splitlines()
    assert "the compiled modules of gain_trio are missing" in run
    assert run == install
    assert backend == "trio"
    assert "Trio's own I/O manager" in connect

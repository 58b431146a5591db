"""The C library keeps the memory of a batch of messages for the next one."""

from __future__ import annotations

import os
import platform

import pytest
from support import processes

pytestmark = [
    pytest.mark.memory,
    pytest.mark.skipif(
        platform.libc_ver()[0] != "glibc" or "asan" in os.environ.get("LD_PRELOAD", ""),
        reason="another C library, or a sanitizer, frees memory by rules of its own",
    ),
]

PAGES_OF_A_BATCH = 64 * 64 * 1024 // 4096

BATCHES = """
import resource, sys
import gain_trio

async def nothing():
    pass

if sys.argv[1] == "after a run":
    gain_trio.run(nothing)

def batch():
    messages = [bytes([1]) * 65536 for _ in range(64)]

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

batch()
before = faults()
for _ in range(10):
    batch()
print((faults() - before) // 10)
"""


def faults_of_a_batch(*, after_a_run: bool) -> int:
    """Page faults in a process of its own, of which the first batch has been freed."""
    status, out, err = processes.interpreted("-c", BATCHES, "after a run" if after_a_run else "plain")
    assert (status, err) == (0, "")
    return int(out)


def test_a_batch_of_messages_takes_the_memory_of_the_one_before() -> None:
    assert faults_of_a_batch(after_a_run=False) >= PAGES_OF_A_BATCH // 2  # or else the test shows nothing
    assert faults_of_a_batch(after_a_run=True) < PAGES_OF_A_BATCH // 50


def test_a_setting_of_the_user_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", str(128 * 1024))
    assert faults_of_a_batch(after_a_run=True) >= PAGES_OF_A_BATCH // 4

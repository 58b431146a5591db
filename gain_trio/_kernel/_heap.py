"""Freed memory that the C library keeps for the next batch of messages.

The messages of one batch are freed together, at the top of the heap, and glibc gives the top back to the kernel as soon as
more than M_TRIM_THRESHOLD of it is free: 128 KiB at first.  The next batch then takes a page fault for each page that it
gets back.  Both thresholds of glibc follow the program
(mallopt(3), "dynamic mmap threshold"): when the program frees a block that malloc has mapped by itself, blocks of that size
come from the heap from then on, and twice that size may be free at its top.  A program that has ever freed a large buffer is
in this state anyhow.
"""

from __future__ import annotations

_BLOCK_BYTES = 8 * 1024 * 1024


def keep_freed_memory() -> None:
    """Have glibc keep up to 16 MiB of freed memory at the top of this process's heap.

    It costs two system calls.  The block is never written to, so it takes no memory.  Where ``MALLOC_TRIM_THRESHOLD_``,
    ``MALLOC_MMAP_THRESHOLD_`` or ``MALLOC_TOP_PAD_`` is set in the environment, or mallopt(3) was called, glibc follows that
    and not the program, and this has no effect; nor has it with another C library.
    """
    bytes(_BLOCK_BYTES)

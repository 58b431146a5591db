"""What a process uses, as the kernel counts it: of any process of this user, a stopped one included."""

from __future__ import annotations

import os
from pathlib import Path


def resident_memory(pid: int) -> int | None:
    """The bytes that a process has in memory (proc(5), statm); None if it is gone, or the system does not say."""
    try:
        # As bytes: a codec is imported when it is first used, and a user that the server has become may be unable to.
        pages = Path(f"/proc/{pid}/statm").read_bytes().split()[1]
    except OSError:
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float | None:
    """The CPU time that a process has used (proc(5), stat); None if it is gone, or the system does not say."""
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The name before the parenthesis may have spaces and parentheses of its own.
    user, system = line.rpartition(b")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

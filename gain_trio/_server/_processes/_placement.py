"""Where worker processes run: a CPU each, and how nice they are."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterable

from gain_trio._server._server_config import ServerConfig

HIGH_PRIORITY = -19
"""The nice value of a process that is to run before others: what ``process_priority`` stands for."""

SO_INCOMING_CPU = getattr(socket, "SO_INCOMING_CPU", 49)
"""<asm-generic/socket.h>, Linux 3.19; Python has a name for it since 3.11."""


def available_cpus() -> list[int]:
    """The CPUs that this process may run on, by number; all of the machine's on a system without CPU affinity."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def check_placement(config: ServerConfig) -> None:
    """See that the system can do what the configuration asks for.

    Raises:
      ValueError: it cannot; says what.
    """
    if config.cpu_affinity and not hasattr(os, "sched_setaffinity"):
        raise ValueError(
            f"cpu_affinity=True asks for sched_setaffinity(2), which {sys.platform} does not have; leave it out"
        )
    if config.priority is not None:
        _check_priority("priority")


def take_process_priority(priority: int) -> None:
    """Give this process, the server's own, the priority.

    Raises:
      ValueError: the system has no priorities.
      OSError: it may not; says what would help.
    """
    _check_priority("process_priority")
    take_place(None, priority)


def _check_priority(option: str) -> None:
    if not hasattr(os, "setpriority"):
        raise ValueError(f"{option} asks for setpriority(2), which {sys.platform} does not have; leave it out")


def prefer_cpu(sockets: Iterable[socket.socket], cpu: int) -> None:
    """Have these, of all that listen on a port, get the connections that arrive on this CPU (socket(7)).

    Raises:
      ValueError: the kernel has no such thing.
    """
    for sock in sockets:
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_INCOMING_CPU, cpu)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise
            raise ValueError("cpu_affinity=True asks for SO_INCOMING_CPU, which this kernel does not have") from error


def take_place(cpu: int | None, priority: int | None) -> None:
    """In a worker: run on this CPU only, with this nice value.

    Raises:
      OSError: it may not; says what would help.
    """
    if cpu is not None:
        try:
            os.sched_setaffinity(0, {cpu})
        except OSError as error:
            reason = f"cannot run on CPU {cpu} alone: {error.strerror}; is it taken from this process by a cpuset?"
            raise OSError(error.errno, reason) from error
    if priority is not None:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, priority)
        except OSError as error:
            reason = (
                f"cannot take the priority {priority}: {error.strerror}; one below the present "
                f"{os.getpriority(os.PRIO_PROCESS, 0)} takes the privilege CAP_SYS_NICE, or an RLIMIT_NICE that allows it"
            )
            raise type(error)(error.errno, reason) from error

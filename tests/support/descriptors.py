"""The open descriptors of the process, and ways to limit them."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections.abc import Iterator


def open_descriptors() -> list[str]:
    """The descriptors that /proc/self/fd lists, without that of the listing."""
    descriptors = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
        descriptors.append(f"{name} {target.partition(':')[0]}")
    return sorted(descriptors)


def is_open(descriptor: int) -> bool:
    """Whether this number is an open descriptor of the process."""
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def next_descriptor() -> int:
    """The lowest free number, which the next descriptor gets."""
    with socket.socket() as probe:
        return probe.fileno()


@contextlib.contextmanager
def descriptor_limit(limit: int) -> Iterator[None]:
    """Set RLIMIT_NOFILE for the duration of the block: new descriptors get numbers below it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def no_descriptors_left() -> Iterator[None]:
    """Let the process open no more descriptors than it has, for the duration of the block."""
    lowest_free = os.dup(0)
    os.close(lowest_free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def mapped_bytes() -> int:
    """The size of the process's address space, used or not."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()

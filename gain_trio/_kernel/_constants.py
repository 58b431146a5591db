"""The kernel's flags that Python code reads or sets, as enums (linux/io_uring.h, poll(2), accept(2))."""

from __future__ import annotations

import enum


class Feature(enum.IntFlag):
    """What a kernel may or may not have.  Each is found out by trying it; ``enum gt_feature`` in ring.h."""

    NO_SQARRAY = 1 << 0
    """Linux 6.6: SQEs are taken in ring order, without an index array."""
    REGISTERED_FD = 1 << 1
    """Linux 5.18: ``io_uring_enter`` without looking the ring's descriptor up."""
    BUFFER_RING = 1 << 2
    """Linux 5.19: provided buffers for receives."""
    BUFFER_INCREMENT = 1 << 3
    """Linux 6.12: provided buffers are consumed bit by bit, so that large ones serve small messages well."""
    TASKRUN_FLAG = 1 << 4
    """Linux 5.19: the kernel says when it has work for us, so that a look costs no system call."""


class CompletionFlag(enum.IntFlag):
    """``cqe->flags``."""

    BUFFER = 1 << 0
    """The upper 16 bits are the number of a provided buffer."""
    MORE = 1 << 1
    """The operation goes on: this is not its final completion."""
    SOCK_NONEMPTY = 1 << 2
    NOTIF = 1 << 3
    BUF_MORE = 1 << 4


class PollEvent(enum.IntFlag):
    """poll(2) events, on every Linux architecture."""

    IN = 0x001
    OUT = 0x004
    ERR = 0x008
    HUP = 0x010
    RDHUP = 0x2000
    """The peer has sent its last.  io_uring reports it whether asked for or not."""


class AcceptFlag(enum.IntFlag):
    """accept4(2) flags."""

    NONBLOCK = 0o4000
    CLOEXEC = 0o2000000


class RegisterOp(enum.IntEnum):
    """io_uring_register(2) opcodes used from Python."""

    EVENTFD = 4

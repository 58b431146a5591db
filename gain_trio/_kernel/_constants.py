"""The kernel's flags that Python code reads or sets, as enums (linux/io_uring.h, poll(2), accept(2))."""

from __future__ import annotations

import enum
from typing import Literal, TypeAlias

Tier: TypeAlias = Literal["full", "poll", "none"]
"""How much of io_uring a run has.

- ``"full"``: connections run on the ring, by completions.
- ``"poll"``: the ring waits for readiness, and connections go over sockets, as on Trio's own I/O manager.
- ``"none"``: there is no ring.
"""


class Feature(enum.IntFlag):
    """A feature that some kernels have, and that the package uses where the kernel has it.

    The ring finds each by trying it, never by the kernel's version.  ``RingOptions.unwanted`` leaves any of them unused.
    """

    # enum gt_feature in ring.h
    NO_SQARRAY = 1 << 0
    REGISTERED_FD = 1 << 1
    BUFFER_RING = 1 << 2
    BUFFER_INCREMENT = 1 << 3
    TASKRUN_FLAG = 1 << 4
    SUBMIT_ALL = 1 << 5
    CQE_SKIP = 1 << 6
    CANCEL_ANY = 1 << 7
    SINGLE_ISSUER = 1 << 8
    DEFER_TASKRUN = 1 << 9
    MULTISHOT_ACCEPT = 1 << 10
    MULTISHOT_RECEIVE = 1 << 11
    NO_IOWAIT = 1 << 12
    REGISTERED_FILES = 1 << 13

    @property
    def kernel(self) -> str:
        """The Linux release that brought this feature, such as ``"6.6"``."""
        return _FACTS[self][0]

    @property
    def purpose(self) -> str:
        """The use that the package makes of this feature, in a line."""
        return _FACTS[self][1]


_FACTS = {
    Feature.NO_SQARRAY: ("6.6", "submissions are taken in order, without an index array"),
    Feature.REGISTERED_FD: ("5.18", "system calls need not look the ring's descriptor up"),
    Feature.BUFFER_RING: ("5.19", "all connections receive into the same few buffers"),
    Feature.BUFFER_INCREMENT: ("6.12", "buffers are used up bit by bit, so that large ones serve small messages, too"),
    Feature.TASKRUN_FLAG: (
        "5.19",
        "the kernel says when it has completions to collect; without, a look is a system call",
    ),
    Feature.SUBMIT_ALL: ("5.18", "a submission that fails does not hold up the ones behind it"),
    Feature.CQE_SKIP: ("5.17", "a cancel that succeeds has no completion of its own"),
    Feature.CANCEL_ANY: ("5.19", "closing cancels everything at once, and not one operation after the other"),
    Feature.SINGLE_ISSUER: ("6.0", "the kernel relies on one thread to submit"),
    Feature.DEFER_TASKRUN: ("6.1", "completions are made when they are waited for, and do not interrupt the program"),
    Feature.MULTISHOT_ACCEPT: ("5.19", "one operation accepts all connections of a listener"),
    Feature.MULTISHOT_RECEIVE: ("6.0", "one operation receives all data of a connection"),
    Feature.NO_IOWAIT: ("6.15", "a program that waits for its peers shows as idle, and not as waiting for a disk"),
    Feature.REGISTERED_FILES: ("6.14", "sends need not look the descriptor of a busy connection up"),
}

FULL_TIER = (
    Feature.BUFFER_RING
    | Feature.SINGLE_ISSUER
    | Feature.DEFER_TASKRUN
    | Feature.MULTISHOT_ACCEPT
    | Feature.MULTISHOT_RECEIVE
)
"""What connections on the ring need."""


class CompletionFlag(enum.IntFlag):
    """``cqe->flags``."""

    BUFFER = 1 << 0
    """The upper 16 bits of the flags are the number of a provided buffer."""
    MORE = 1 << 1
    """The operation goes on: more completions of it follow."""
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
    """The peer has shut its sending side down.  io_uring reports this event even if the caller did not request it."""


class AcceptFlag(enum.IntFlag):
    """accept4(2) flags."""

    NONBLOCK = 0o4000
    CLOEXEC = 0o2000000


class RegisterOp(enum.IntEnum):
    """io_uring_register(2) opcodes used from Python."""

    EVENTFD = 4
    UNREGISTER_EVENTFD = 5

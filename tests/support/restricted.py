"""Run Python without access to a ring: ``python restricted.py RESTRICTION ...`` becomes ``python ...``, restricted.

An errno by name (``EPERM``) installs a seccomp filter that has io_uring_setup(2) fail with it, as the profiles of container
runtimes do.  ``memlock`` takes away the right to lock memory, ``memlock=700`` beyond that many KiB.  Both outlive
execve(2), and no system call undoes them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import struct
import sys

IO_URING_SETUP = 425  # the same numbers on every architecture (include/uapi/asm-generic/unistd.h)
IO_URING_ENTER = 426

PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
CAP_IPC_LOCK = 14
SECCOMP_MODE_FILTER = 2
SECCOMP_RET_ALLOW = 0x7FFF0000
SECCOMP_RET_ERRNO = 0x00050000
BPF_LOAD_WORD = 0x20  # BPF_LD | BPF_W | BPF_ABS
BPF_JUMP_IF_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
BPF_JUMP_IF_GREATER = 0x25  # BPF_JMP | BPF_JGT | BPF_K
BPF_JUMP_UNLESS_LESS = 0x35  # BPF_JMP | BPF_JGE | BPF_K
BPF_RETURN = 0x06  # BPF_RET | BPF_K
OFFSET_OF_NUMBER = 0  # struct seccomp_data: the system call's number comes first
OFFSET_OF_SECOND = 24 if sys.byteorder == "little" else 28  # its second argument's lower half


def refuse(system_call: int, number: int, second: range = range(1 << 32)) -> None:
    """Make the system call fail with this errno in this thread and what it starts, from now on.

    It fails only where its second argument, of 32 bits, is in the range ``second``.
    """
    instructions = [
        (BPF_LOAD_WORD, 0, 0, OFFSET_OF_NUMBER),
        (BPF_JUMP_IF_EQUAL, 0, 4, system_call),
        (BPF_LOAD_WORD, 0, 0, OFFSET_OF_SECOND),
        (BPF_JUMP_UNLESS_LESS, 0, 2, second[0]),
        (BPF_JUMP_IF_GREATER, 1, 0, second[-1]),
        (BPF_RETURN, 0, 0, SECCOMP_RET_ERRNO | number),
        (BPF_RETURN, 0, 0, SECCOMP_RET_ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in instructions))
    # struct sock_fprog: an unsigned short, and a pointer at its natural alignment
    program = ctypes.create_string_buffer(struct.pack("@HP", len(instructions), ctypes.addressof(code)))
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0)


def lock_no_memory(beyond: int) -> None:
    """Set RLIMIT_MEMLOCK to ``beyond`` KiB.

    It does not bind root, so the capability that exempts root is gone after execve(2).
    """
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (beyond << 10, beyond << 10))
    if os.geteuid() == 0:
        prctl(PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0)


def prctl(*arguments: object) -> None:
    """Call prctl(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"prctl{arguments[:2]}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    name, _equals, number = sys.argv[1].partition("=")
    if name == "memlock":
        lock_no_memory(int(number or 0))
    else:
        refuse(IO_URING_SETUP, getattr(errno, sys.argv[1]))
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])

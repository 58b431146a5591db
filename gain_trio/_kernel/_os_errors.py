"""errno to exceptions, and the kernel's refusal of a ring to a reason that a person can act on."""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Callable
from pathlib import Path


class RingUnavailable(RuntimeError):
    """The caller or the operator requires io_uring, and this process cannot use it.

    Attributes:
      errno (int | None): the kernel's error, or None when the compiled modules are missing.
    """

    errno: int | None

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


def os_error(number: int) -> OSError:
    """The :exc:`OSError` (or its subclass) of an errno, positive or negative."""
    number = abs(number)
    return OSError(number, os.strerror(number))


def check(result: int) -> int:
    """Return a result of the kernel, or raise :exc:`OSError` if it is a negative errno."""
    if result < 0:
        raise os_error(result)
    return result


def kernel_version(release: str) -> tuple[int, int] | None:
    """(6, 12) for "6.12.3-generic", or None if the string names no Linux release."""
    major, _dot, rest = release.partition(".")
    minor = rest.replace("-", ".").replace("+", ".").partition(".")[0]
    try:
        return int(major), int(minor)
    except ValueError:
        return None


_PROC = Path("/proc")
_SYSCALLS = "io_uring_setup, io_uring_enter and io_uring_register"
_CAP_SYS_ADMIN = 21


def _read(path: Path) -> str | None:
    """The content of a file of /proc, or None if an older kernel or a sandbox does not provide it."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def _number(text: str | None, base: int = 10) -> int | None:
    try:
        return None if text is None else int(text, base)
    except ValueError:
        return None


def _own_status(field: str) -> str | None:
    """A field of proc_pid_status(5) of this thread, because seccomp filters and capabilities belong to threads."""
    for line in (_read(_PROC / "thread-self/status") or "").splitlines():
        name, _colon, value = line.partition(":")
        if name == field:
            return value.strip()
    return None


def _seccomp_filters() -> bool:
    """Whether system calls of this process pass a seccomp filter (mode 2; proc_pid_status(5))."""
    return _own_status("Seccomp") == "2"


def _may_despite_sysctl() -> bool:
    """Whether ``kernel.io_uring_disabled=1`` lets this process through (Documentation/admin-guide/sysctl/kernel.rst)."""
    capabilities = _number(_own_status("CapEff"), 16)
    if capabilities is not None and capabilities >> _CAP_SYS_ADMIN & 1:
        return True
    group = _number(_read(_PROC / "sys/kernel/io_uring_group"))
    return group is not None and group in {os.getegid(), *os.getgroups()}


def _why_not_permitted() -> str:
    """The reason of an EPERM: usually the sysctl (Linux 6.6), which can be read, or a seccomp profile."""
    disabled = _read(_PROC / "sys/kernel/io_uring_disabled")
    if disabled == "2":
        return (
            "the sysctl kernel.io_uring_disabled is 2, which forbids it to all users; set it to 0 "
            "(sysctl -w kernel.io_uring_disabled=0, as root of the host)"
        )
    if disabled == "1" and not _may_despite_sysctl():
        return (
            "the sysctl kernel.io_uring_disabled is 1, which forbids it to this user; set it to 0, or put the user into "
            "the group whose number is in the sysctl kernel.io_uring_group"
        )
    if _seccomp_filters():
        return (
            "a seccomp profile forbids it, as the default ones of Docker and Kubernetes do; "
            f"use a profile that allows {_SYSCALLS}"
        )
    return "a security module of this system forbids it (SELinux or another); allow io_uring in its policy"


def _why_not_there() -> str:
    """The reason of an ENOSYS: the kernel lacks the system call, or a filter hides it, as where the sysctl (6.6) exists."""
    profile = f"use a profile that allows {_SYSCALLS}"
    if _read(_PROC / "sys/kernel/io_uring_disabled") is not None:
        return f"the kernel has it, and a seccomp profile or a sandbox hides it, as Podman's default profile does; {profile}"
    release = platform.release()
    if _seccomp_filters():
        return (
            f"the kernel ({release}) is older than 5.1 or built without io_uring, or a seccomp profile or sandbox hides it; "
            f"use Linux 6.1 or newer, and {profile.removeprefix('use ')}"
        )
    return (
        f"the kernel ({release}) is older than 5.1, built without io_uring (CONFIG_IO_URING), or a sandbox such as gVisor; "
        "use Linux 6.1 or newer"
    )


def _why_no_memory() -> str:
    """The reason of an ENOMEM: a limit of the control group, or of locked memory.

    The kernel counts a ring as memory of the control group.  Linux before 5.12, and again 6.18, counts it as locked
    memory of a user without CAP_IPC_LOCK, too.
    """
    import resource  # noqa: PLC0415  # Unix only

    soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    limit = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft // 1024} KiB"
    return (
        f"this user may not lock as much memory (RLIMIT_MEMLOCK is {limit}, and a ring of the default size takes about 210 "
        "KiB of it), or the control group has none left; raise the limit (ulimit -l), or ask for fewer entries in "
        "RingOptions"
    )


def _why_invalid() -> str:
    """The reason of an EINVAL: the kernel refuses even the plainest set-up, or lacks what that needs."""
    release = platform.release()
    version = kernel_version(release)
    if version is not None and version < (5, 11):
        return (
            f"the kernel ({release}) is older than 5.11, which brought the least that gain_trio needs; "
            "use Linux 6.1 or newer"
        )
    return (
        f"this kernel's io_uring ({release}), or a sandbox's such as gVisor's, lacks what gain_trio needs; "
        "use Linux 6.1 or newer, and no sandbox with an io_uring of its own"
    )


_WHY: dict[int, Callable[[], str]] = {
    errno.EPERM: _why_not_permitted,
    errno.ENOSYS: _why_not_there,
    errno.ENOMEM: _why_no_memory,
    errno.EINVAL: _why_invalid,
    errno.EACCES: lambda: (
        "a security module of this system forbids it (SELinux, AppArmor); allow io_uring in its policy"
    ),
    errno.EMFILE: lambda: "the process has no free file descriptor; raise RLIMIT_NOFILE (ulimit -n)",
    errno.ENFILE: lambda: "the system has no free file descriptor; raise the sysctl fs.file-max",
}


def ring_unavailable(number: int) -> RingUnavailable:
    """The exception that says why the kernel refused a ring, and what the operator can change."""
    number = abs(number)
    what = f"io_uring cannot be used: {errno.errorcode.get(number, number)} ({os.strerror(number)})"
    why = _WHY.get(number)
    return RingUnavailable(f"{what}: {why()}" if why else what, number)

"""errno to exceptions."""

from __future__ import annotations

import errno
import os


class RingUnavailable(RuntimeError):
    """io_uring was wanted and cannot be had here.

    Attributes:
      errno (int | None): what the kernel said, or None when the compiled modules are missing.
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
    """Pass a result of the kernel through, raising :exc:`OSError` for a negative errno."""
    if result < 0:
        raise os_error(result)
    return result


_CURES = {
    errno.ENOSYS: "the kernel is older than 5.1 or was built without io_uring; use Linux 6.1 or newer",
    errno.EPERM: (
        "it is forbidden here, by kernel.io_uring_disabled (read it with sysctl) or by a seccomp profile such as "
        "Docker's default; allow io_uring_setup, io_uring_enter and io_uring_register"
    ),
    errno.EACCES: "it is forbidden here by a security policy (SELinux, AppArmor); allow io_uring",
    errno.ENOMEM: "locked memory is limited; raise RLIMIT_MEMLOCK (ulimit -l) or ask for fewer entries in RingOptions",
    errno.EINVAL: "the kernel is older than 6.1, which brought what the ring is built on; use Linux 6.1 or newer",
    errno.EMFILE: "the process has no free file descriptor; raise RLIMIT_NOFILE (ulimit -n)",
    errno.ENFILE: "the system has no free file descriptor; raise fs.file-max",
}


def ring_unavailable(number: int) -> RingUnavailable:
    """Why a ring could not be opened, and what would help."""
    number = abs(number)
    cause = f"io_uring cannot be used: {errno.errorcode.get(number, number)} ({os.strerror(number)})"
    cure = _CURES.get(number)
    return RingUnavailable(f"{cause}: {cure}" if cure else cause, number)

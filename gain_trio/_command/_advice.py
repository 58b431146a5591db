"""The advice of ``gain-trio doctor``, as a function of facts.

It advises only where the operator can do something.  A *problem* keeps the ring from running, or is a setting that a run
cannot obey; a *hint* is about an improvement.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias, final

import attrs

from gain_trio._kernel import kernel_version

from ._doctor import Choice, Facts, Limit, Unknown

Level: TypeAlias = Literal["problem", "hint"]

_LOW_NOFILE = 4096
"""The fewest descriptors that draw no hint.  A server needs one a connection; shells start with 1024."""
_LOW_SOMAXCONN = 1024
"""The smallest backlog that draws no hint: Linux had 128 until 5.4, and has 4096 since."""
_LOW_PORTS = 10_000
_ENOUGH_MEMLOCK = 1 << 20
"""Bytes.  The queues of the default ring take about 210 KiB, and other rings of the same user count too."""
_CAP_IPC_LOCK = 14


def _page() -> Path:
    """The page "Running in containers": a wheel has it beside this module, a checkout among the other pages."""
    shipped = Path(__file__).with_name("containers.md")
    return shipped if shipped.exists() else Path(__file__).parents[2] / "docs" / "containers.md"


@final
@attrs.frozen
class Advice:
    """One piece of advice to the operator."""

    key: str
    """The stable name of its subject, for machines."""
    level: Level
    text: str


def _older(facts: Facts, major: int, minor: int) -> bool:
    version = kernel_version(facts.system.kernel) if facts.system.name == "Linux" else None
    return version is not None and version < (major, minor)


# --- the ring does not run ---


def _sysctl(facts: Facts) -> Advice | None:
    disabled = facts.sysctls["kernel.io_uring_disabled"]
    if disabled == 2:
        text = (
            "kernel.io_uring_disabled=2 forbids io_uring to all users. To allow it, as root of the host: "
            "sysctl -w kernel.io_uring_disabled=0 (and in /etc/sysctl.d/ for good)."
        )
    elif disabled == 1:
        text = (
            "kernel.io_uring_disabled=1 forbids io_uring to processes without CAP_SYS_ADMIN. To allow it to a group, as "
            "root of the host: sysctl -w kernel.io_uring_group=NUMBER, and run the program with that group; or to "
            "all users: sysctl -w kernel.io_uring_disabled=0."
        )
    else:
        return None
    return Advice("io_uring_disabled", "problem", text)


def _seccomp(facts: Facts, *, certain: bool) -> Advice | None:
    if facts.security.seccomp != 2:
        return None
    verb = "forbids" if certain else "may forbid"
    text = (
        f"A seccomp profile {verb} io_uring to this process, as the default profiles of Docker, Podman and Kubernetes do. "
        "To allow it: make a profile with gain-trio seccomp DEFAULT.json -o io_uring.json, and start the container with "
        f"--security-opt seccomp=io_uring.json. What that costs, and how Kubernetes does it: {_page()}."
    )
    return Advice("seccomp", "problem", text)


def _not_permitted(facts: Facts) -> Iterator[Advice]:
    by_sysctl = _sysctl(facts)
    by_seccomp = _seccomp(facts, certain=by_sysctl is None)
    if by_sysctl is not None:
        yield by_sysctl
    if by_seccomp is not None:
        yield by_seccomp
    if by_sysctl is None and by_seccomp is None:
        yield _security_module(facts)


def _security_module(facts: Facts) -> Advice:
    text = "A security module of this system (SELinux, AppArmor) may forbid io_uring: see its log, and allow it there."
    if facts.security.seccomp == 2:
        text += f" Or the seccomp filter of this process does, though the usual ones answer otherwise: see {_page()}."
    return Advice("security_module", "problem", text)


def _not_there(facts: Facts) -> Iterator[Advice]:
    # Only a kernel built with io_uring has the sysctl (6.6): where it exists, ENOSYS is not the kernel's own answer.
    knows_io_uring = isinstance(facts.sysctls["kernel.io_uring_disabled"], int)
    if any("gVisor" in sign for sign in facts.system.container):
        text = "gVisor has no io_uring for programs like this one. Another runtime has, if it is to be allowed there."
        yield Advice("gvisor", "problem", text)
    elif _older(facts, 5, 1):
        yield Advice("kernel", "problem", "io_uring came with Linux 5.1. Use Linux 6.1 or newer.")
    elif (by_seccomp := _seccomp(facts, certain=knows_io_uring)) is not None:
        yield by_seccomp
    else:
        text = (
            "The kernel was built without io_uring (CONFIG_IO_URING), or a sandbox hides it. Use a kernel that has it."
        )
        yield Advice("kernel", "problem", text)


def _no_ring(facts: Facts) -> Iterator[Advice]:
    number = facts.ring.errno
    if isinstance(facts.python.modules, Unknown):
        if facts.system.name == "Linux" and facts.python.implementation == "CPython":
            text = (
                "Install gain_trio again where it can be built (a C compiler, Python's headers, the kernel's headers of "
                "5.14 or newer), or from a wheel for this Python."
            )
            yield Advice("modules", "problem", text)
        else:
            text = "There is no ring here: io_uring is a part of Linux, and gain_trio uses it on CPython."
            yield Advice("platform", "problem", text)
    elif number == errno.EPERM:
        yield from _not_permitted(facts)
    elif number == errno.EACCES:
        yield _security_module(facts)
    elif number == errno.ENOSYS:
        yield from _not_there(facts)
    elif number == errno.EINVAL:
        whose = "This kernel's io_uring" if _older(facts, 5, 11) else "This kernel's io_uring, or a sandbox's (gVisor),"
        yield Advice("kernel", "problem", f"{whose} lacks what gain_trio needs. Use Linux 6.1 or newer.")
    elif number in (errno.EMFILE, errno.ENFILE):
        text = "There is no free file descriptor. Raise RLIMIT_NOFILE (ulimit -n) or the sysctl fs.file-max."
        yield Advice("descriptors", "problem", text)
    elif number == errno.ENOMEM:
        yield from _memlock(facts, "problem")
        text = (
            "There is too little memory for the ring: raise the memory limit of the control group, or make the ring smaller "
            "(RingOptions)."
        )
        yield Advice("memory", "problem", text)
    if isinstance(facts.choice, Choice):
        text = "Programs run without the ring meanwhile: on Trio's own I/O manager, with the same API, more slowly."
        yield Advice("fallback", "hint", text)


# --- the ring runs ---


def _weak_ring(facts: Facts) -> Iterator[Advice]:
    if facts.ring.tier == "poll":
        text = (
            "The kernel's io_uring can wait (tier poll), but not carry connections, which go over sockets. "
            "Linux 6.1 or newer has the rest (tier full)."
        )
        yield Advice("tier", "hint", text)
    elif "buffer_increment" not in facts.ring.features:
        since = "Before Linux 6.12" if _older(facts, 6, 12) else "Without buffer_increment"
        text = (
            f"{since} every receive takes a whole buffer, however small the message. Few large messages want "
            "RingOptions(buffer_size=65536), many small ones the default; a newer kernel serves both well."
        )
        yield Advice("buffer_increment", "hint", text)


def _memlock(facts: Facts, level: Level) -> Iterator[Advice]:
    """Advise on the limit of locked memory, which counts rings on some kernels (before 5.12, and again in 6.18)."""
    limit = facts.limits["memlock"]
    if isinstance(limit, Unknown) or limit.soft == "unlimited":
        return
    if limit.soft < _ENOUGH_MEMLOCK:
        text = (
            f"Only {limit.soft} bytes may be locked (RLIMIT_MEMLOCK), and on many kernels rings count as locked memory: "
            "some 210 KiB each, over all processes of a user. "
            "Raise it: ulimit -l, LimitMEMLOCK= of systemd, --ulimit memlock=-1 of Docker."
        )
        yield Advice("memlock", level, text)


def _may_lock_any(facts: Facts) -> bool:
    """Whether this process is exempt from the limit.  Root may not be: containers take capabilities away."""
    capabilities = facts.security.capabilities
    return isinstance(capabilities, int) and bool(capabilities >> _CAP_IPC_LOCK & 1)


# --- the environment, and what servers need ---


def _environment(facts: Facts) -> Iterator[Advice]:
    if isinstance(facts.choice, Unknown):
        if not facts.ring.runs and facts.environment["GAIN_TRIO_BACKEND"] == "io_uring":
            text = (
                "GAIN_TRIO_BACKEND=io_uring demands a ring and none can run, so gain_trio.run() would fail. Unset it."
            )
        else:
            text = f"gain_trio.run() would fail here: {facts.choice.reason}."
        yield Advice("environment", "problem", text)
    # A run reads this variable where it is about to open a ring, before it knows whether it can.
    if isinstance(facts.resume_in_place, Unknown) and facts.environment["GAIN_TRIO_BACKEND"] != "trio":
        yield Advice("environment", "problem", f"gain_trio.run() would fail here: {facts.resume_in_place.reason}.")
    if not facts.ring.runs or not isinstance(facts.choice, Choice):
        return
    if facts.choice.backend != "io_uring":
        said = facts.environment["GAIN_TRIO_BACKEND"]
        text = f"The ring could run, but a run would not use it: {facts.choice.reason}."
        if said:
            text += " To use it, unset GAIN_TRIO_BACKEND."
        yield Advice("turned_off", "hint", text)
    elif facts.environment["GAIN_TRIO_UNWANTED"]:
        names = ", ".join(feature.name for feature in facts.features if feature.available and not feature.used)
        if names:
            yield Advice("unwanted", "hint", f"GAIN_TRIO_UNWANTED turns off what this kernel has: {names}.")


def _larger(hard: int | Literal["unlimited"]) -> str:
    return "as far as you like" if hard == "unlimited" else f"up to {hard}"


def _nofile(limit: Limit) -> Advice | None:
    if limit.soft == "unlimited" or limit.soft >= _LOW_NOFILE:
        return None
    text = (
        f"A server of this process can hold at most some {limit.soft} connections, because it may open {limit.soft} files "
        "(RLIMIT_NOFILE). "
    )
    if limit.hard != limit.soft:
        text += f"It can be raised without root {_larger(limit.hard)}: ulimit -n, or LimitNOFILE= of systemd."
    else:
        text += (
            "The hard limit is the same, so root must raise it: LimitNOFILE= of systemd, --ulimit nofile= of Docker."
        )
    return Advice("nofile", "hint", text)


def _serving(facts: Facts) -> Iterator[Advice]:
    nofile = facts.limits["nofile"]
    if isinstance(nofile, Limit) and (advice := _nofile(nofile)) is not None:
        yield advice
    somaxconn = facts.sysctls["net.core.somaxconn"]
    if isinstance(somaxconn, int) and somaxconn < _LOW_SOMAXCONN:
        text = (
            f"At most {somaxconn} connections may wait to be accepted on a listener (net.core.somaxconn), even if the "
            "server sets a larger backlog; more are refused or delayed in a burst. Linux has 4096 since 5.4: sysctl -w "
            "net.core.somaxconn=4096, or --sysctl net.core.somaxconn=4096 of Docker."
        )
        yield Advice("somaxconn", "hint", text)
    ports = facts.sysctls["net.ipv4.ip_local_port_range"]
    if isinstance(ports, tuple) and len(ports) == 2 and (count := ports[1] - ports[0] + 1) < _LOW_PORTS:
        text = (
            f"Connections to one and the same address and port can be {count} at a time (net.ipv4.ip_local_port_range). A "
            "proxy or load generator may want more."
        )
        yield Advice("ports", "hint", text)


def _root(facts: Facts) -> Iterator[Advice]:
    if facts.system.user_id != 0 or not facts.ring.runs:
        return
    if facts.sysctls["kernel.io_uring_disabled"] == 1:
        text = (
            "io_uring is allowed to this process only because it is root (kernel.io_uring_disabled=1). Rather than running "
            "a server as root, name a group that may: sysctl -w kernel.io_uring_group=NUMBER."
        )
    else:
        text = (
            "This is root, which the ring does not need. Ports below 1024 do not either: CAP_NET_BIND_SERVICE or "
            "net.ipv4.ip_unprivileged_port_start is enough."
        )
    yield Advice("root", "hint", text)


def advise(facts: Facts) -> tuple[Advice, ...]:
    """All advice that follows from the facts, problems first."""
    found = [
        *(_weak_ring(facts) if facts.ring.runs else _no_ring(facts)),
        *_environment(facts),
        *(_memlock(facts, "hint") if facts.ring.runs and not _may_lock_any(facts) else ()),
        *_serving(facts),
        *_root(facts),
    ]
    return tuple(sorted(found, key=lambda advice: advice.level != "problem"))

"""``gain-trio doctor``: the abilities of this machine, as facts.

Its three parts share only :class:`Facts`: collecting (here), advising (``_advice.py``, a function of facts, so that tests
can make up any machine), and the page (``_doctor_page.py``).

Operators run it where things are broken: in containers that hide /proc, on other systems than Linux, with wrong
environment variables.  So every probe fails by itself, and returns an :class:`Unknown` with the reason in the place of the
value.  A probe imports a module that only Linux has when it runs, not before.

There are two rings.  The doctor opens the *machine's* with every feature wanted, and it shows what the kernel can do.
:func:`gain_trio.backend_info` describes the *chosen* one, of a run that starts now, the environment's wishes included.
"""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, final

import attrs

import gain_trio
from gain_trio import PieceInfo
from gain_trio._io_manager import resume_in_place_default
from gain_trio._kernel import Feature, Tier, load_error
from gain_trio._ring import Ring, RingOptions

from ._cgroup import cpu_quota

T = TypeVar("T")

VARIABLES = ("GAIN_TRIO_BACKEND", "GAIN_TRIO_UNWANTED", "GAIN_TRIO_RESUME_IN_PLACE", "GAIN_TRIO_ACCELERATE")
"""The environment variables by which the operator configures runs."""

SYSCTLS = (
    "kernel.io_uring_disabled",
    "kernel.io_uring_group",
    "net.core.somaxconn",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.ip_local_port_range",
    "fs.file-max",
    "fs.nr_open",
)

_NOP_TIMEOUT = 5.0  # seconds; a nop completes at once, and a kernel where it does not is broken


@final
@attrs.frozen
class Unknown:
    """The reason why a value is unknown, in its place."""

    reason: str


Fact: TypeAlias = T | Unknown
"""A value, or the reason why it is unknown."""


@final
@attrs.frozen
class SystemFacts:
    """The system that the program runs on."""

    name: str
    """``Linux``, ``Darwin``, ``Windows``."""
    kernel: str
    """The kernel's release, as of ``uname -r``."""
    architecture: str
    user_id: Fact[int]
    """The effective user number; 0 is root."""
    container: tuple[str, ...]
    """Signs of a container.  An empty tuple disproves nothing, and some signs prove little."""


@final
@attrs.frozen
class PythonFacts:
    """The interpreter and the packages that the program runs with."""

    implementation: str
    version: str
    gain_trio: str
    trio: Fact[str]
    cffi: Fact[str]
    modules: Fact[bool]
    """True if the compiled modules of gain_trio are there."""


@final
@attrs.frozen
class CpuFacts:
    """The CPUs of this machine, and this process's share of them."""

    count: Fact[int]
    usable: Fact[int]
    """The CPUs that this process may run on (``sched_getaffinity``)."""
    quota: Fact[float | None]
    """The number of CPUs whose time the control group grants, or None if it sets no bound."""


@final
@attrs.frozen
class RingFacts:
    """The machine's ring, with every feature wanted."""

    runs: bool
    """Whether the doctor could open a ring and complete an operation on it."""
    tier: Tier
    features: tuple[str, ...]
    reason: str | None
    """Why the ring does not run."""
    errno: int | None
    """The kernel's error for that."""


@final
@attrs.frozen
class Choice:
    """The backend of a run that starts now."""

    backend: str
    tier: Tier
    reason: str
    features: tuple[str, ...]


@final
@attrs.frozen
class FeatureFacts:
    """A feature of the kernel."""

    name: str
    kernel: str
    """The Linux release that brought it."""
    purpose: str
    available: bool
    """Whether the machine's ring has it."""
    used: bool
    """Whether a run that starts now would use it."""


@final
@attrs.frozen
class Limit:
    """A resource limit of this process."""

    soft: int | Literal["unlimited"]
    hard: int | Literal["unlimited"]


@final
@attrs.frozen
class SecurityFacts:
    """The restrictions of this process."""

    seccomp: Fact[int]
    """0 for no filter, 1 for strict mode, 2 for a filter (proc_pid_status(5))."""
    no_new_privs: Fact[bool]
    capabilities: Fact[int]
    """The effective capabilities, a bit each (capabilities(7))."""


@final
@attrs.frozen(kw_only=True)
class Facts:
    """All facts about this machine."""

    ring: RingFacts
    choice: Fact[Choice]
    features: tuple[FeatureFacts, ...]
    system: SystemFacts
    python: PythonFacts
    cpus: CpuFacts
    limits: Mapping[str, Fact[Limit]]
    """The resource limits ``nofile`` and ``memlock``."""
    sysctls: Mapping[str, Fact[int | tuple[int, ...]]]
    security: SecurityFacts
    environment: Mapping[str, str | None]
    """Those of :data:`VARIABLES` that are set, with their values."""
    resume_in_place: Fact[bool]
    """Whether the ring resumes waiting tasks where it reaps their completion."""
    acceleration: Fact[tuple[PieceInfo, ...]] = ()
    """The pieces of Trio's own hot path that a run that starts now would execute in C, and the reasons against others."""


def probe(function: Callable[..., T], *arguments: Any) -> Fact[T]:
    """Return the result of a function, or an :class:`Unknown` with the reason if it raises."""
    try:
        return function(*arguments)
    except OSError as error:
        place = f": {error.filename}" if error.filename is not None else ""
        return Unknown(f"{error.strerror or error}{place}")
    except Exception as error:  # noqa: BLE001  # every failure of a probe is a finding, and the next probe still runs
        return Unknown(str(error) or type(error).__name__)


# --- the ring ---


def _try_ring(unwanted: Feature) -> RingFacts:
    """Open a ring and send an operation through it."""
    try:
        ring = Ring(RingOptions(unwanted=unwanted))
    except gain_trio.RingUnavailable as error:
        return RingFacts(False, "none", (), str(error), error.errno)
    results: list[int] = []
    try:
        ring.nop(lambda result, _flags: results.append(result))
        ring.enter(_NOP_TIMEOUT)
        ring.reap()
        if results != [0]:
            raise OSError(errno.EIO, f"it completed with {results}" if results else "it did not complete")  # noqa: TRY301
        features = tuple(feature.name.lower() for feature in Feature if feature & ring.features and feature.name)
        return RingFacts(True, ring.tier, features, None, None)
    except OSError as error:
        reason = f"a ring can be opened, but the simplest operation on it fails: {error.strerror}"
        return RingFacts(False, "none", (), reason, error.errno)
    finally:
        ring.close()


def _ring() -> RingFacts:
    found = probe(_try_ring, Feature(0))
    return RingFacts(False, "none", (), found.reason, None) if isinstance(found, Unknown) else found


def _choice() -> Choice:
    info = gain_trio.backend_info()
    return Choice(info.backend, info.tier, info.reason, info.features)


def _acceleration() -> tuple[PieceInfo, ...]:
    return gain_trio.backend_info().acceleration


def _features(ring: RingFacts, choice: Fact[Choice]) -> tuple[FeatureFacts, ...]:
    used = () if isinstance(choice, Unknown) else choice.features
    return tuple(
        FeatureFacts(name, feature.kernel, feature.purpose, name in ring.features, name in used)
        for feature in Feature
        for name in [(feature.name or "").lower()]
    )


# --- the system ---


def _sysctl(root: Path, name: str) -> int | tuple[int, ...]:
    text = (root / "proc/sys" / name.replace(".", "/")).read_text(encoding="ascii")
    first, *more = map(int, text.split())
    return (first, *more) if more else first


def _status(root: Path, field: str, base: int = 10) -> int:
    # The thread's file, because each field that the doctor reads belongs to a thread.
    for line in (root / "proc/thread-self/status").read_text(encoding="ascii", errors="replace").splitlines():
        name, _colon, value = line.partition(":")
        if name == field:
            return int(value, base)
    raise LookupError(f"/proc/thread-self/status has no line {field}")


def _flag(root: Path, field: str) -> bool:
    return _status(root, field) != 0


def _limit(name: str) -> Limit:
    try:
        import resource  # noqa: PLC0415  # Unix only
    except ImportError:
        raise LookupError(f"{platform.system()} has no such limits") from None
    number = getattr(resource, name, None)
    if number is None:
        raise LookupError(f"{platform.system()} has no {name}")
    soft, hard = resource.getrlimit(number)
    endless = resource.RLIM_INFINITY
    return Limit("unlimited" if soft == endless else soft, "unlimited" if hard == endless else hard)


def _user_id() -> int:
    if not hasattr(os, "geteuid"):
        raise LookupError(f"{platform.system()} has no user numbers")
    return os.geteuid()


def _exists(root: Path, name: str) -> bool:
    return (root / name).exists()


def _mentions(root: Path, name: str, words: tuple[str, ...]) -> str | None:
    text = (root / name).read_text(encoding="utf-8", errors="replace")
    return next((word for word in words if word in text), None)


def container_signs(root: Path, environment: Mapping[str, str], release: str) -> tuple[str, ...]:
    """The signs of a container.  No sign is certain, and a runtime need not leave one."""
    signs = [f"/{name} is there" for name in (".dockerenv", "run/.containerenv") if probe(_exists, root, name) is True]
    if environment.get("container"):  # set by Podman, LXC and systemd-nspawn
        signs.append(f"the environment says container={environment['container']}")
    if environment.get("KUBERNETES_SERVICE_HOST"):
        signs.append("the environment has KUBERNETES_SERVICE_HOST")
    word = probe(_mentions, root, "proc/self/cgroup", ("docker", "kubepods", "containerd", "crio", "libpod", "lxc"))
    if isinstance(word, str):
        signs.append(f"the control group's name has {word} in it")
    if "gvisor" in release.lower():
        signs.append("the kernel calls itself gVisor")
    return tuple(signs)


def _system(root: Path, environment: Mapping[str, str]) -> SystemFacts:
    signs = container_signs(root, environment, platform.release())
    return SystemFacts(platform.system(), platform.release(), platform.machine(), probe(_user_id), signs)


def _modules() -> bool:
    if load_error is not None:
        raise LookupError(load_error)
    return True


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise LookupError("not installed") from None


def _python() -> PythonFacts:
    return PythonFacts(
        platform.python_implementation(),
        platform.python_version(),
        gain_trio.__version__,
        probe(_version, "trio"),
        probe(_version, "cffi"),
        probe(_modules),
    )


def _cpu_count() -> int:
    count = os.cpu_count()
    if count is None:
        raise LookupError("the system does not say")
    return count


def _usable_cpus() -> int:
    if not hasattr(os, "sched_getaffinity"):
        raise LookupError(f"{platform.system()} does not say")
    return len(os.sched_getaffinity(0))


def collect(root: Path = Path("/"), environment: Mapping[str, str] | None = None) -> Facts:
    """Collect all facts.  The caller must not be in a Trio run, because the facts are about runs to come.

    Args:
      root: the directory that has ``proc`` and ``sys``.
      environment: the variables that show a container and the operator's wishes; None for the real ones.  (The ring and
        the choice always depend on the real ones.)
    """
    environment = os.environ if environment is None else environment
    ring, choice = _ring(), probe(_choice)
    return Facts(
        ring=ring,
        choice=choice,
        features=_features(ring, choice),
        system=_system(root, environment),
        python=_python(),
        cpus=CpuFacts(probe(_cpu_count), probe(_usable_cpus), probe(cpu_quota, root)),
        limits={"nofile": probe(_limit, "RLIMIT_NOFILE"), "memlock": probe(_limit, "RLIMIT_MEMLOCK")},
        sysctls={name: probe(_sysctl, root, name) for name in SYSCTLS},
        security=SecurityFacts(
            probe(_status, root, "Seccomp"), probe(_flag, root, "NoNewPrivs"), probe(_status, root, "CapEff", 16)
        ),
        environment={name: environment.get(name) for name in VARIABLES},
        resume_in_place=probe(resume_in_place_default),
        acceleration=probe(_acceleration),
    )

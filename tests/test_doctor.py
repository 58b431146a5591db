"""gain-trio doctor: its advice on made-up machines, its probes on made-up files, its page, and the command run for real."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
from support.processes import TIMEOUT, interpreted, run

import gain_trio
from gain_trio import PieceInfo
from gain_trio._command import _doctor
from gain_trio._command._advice import Advice, advise
from gain_trio._command._cgroup import cpu_quota
from gain_trio._command._doctor import (
    SYSCTLS,
    VARIABLES,
    Choice,
    CpuFacts,
    Facts,
    FeatureFacts,
    Limit,
    PythonFacts,
    RingFacts,
    SecurityFacts,
    SystemFacts,
    Unknown,
    collect,
    container_signs,
)
from gain_trio._command._doctor_page import as_json, as_text
from gain_trio._kernel import Feature, kernel_version, load_error
from gain_trio._ring import Ring, RingOptions

pytestmark = [pytest.mark.slow, pytest.mark.no_run]

NAMES = tuple(feature.name.lower() for feature in Feature if feature.name)
GONE = Unknown("No such file or directory: /proc/x")

HEALTHY = Facts(
    ring=RingFacts(True, "full", NAMES, None, None),
    choice=Choice("io_uring", "full", "a ring could be opened", NAMES),
    features=tuple(FeatureFacts(name, "6.1", f"the purpose of {name}", True, True) for name in NAMES),
    system=SystemFacts("Linux", "6.12.1", "x86_64", 1000, ()),
    python=PythonFacts("CPython", "3.13.1", "0.1.0", "0.30.0", "2.0.0", True),
    cpus=CpuFacts(8, 8, None),
    limits={"nofile": Limit(65536, 65536), "memlock": Limit(8 << 20, 8 << 20)},
    sysctls={
        "kernel.io_uring_disabled": 0,
        "kernel.io_uring_group": -1,
        "net.core.somaxconn": 4096,
        "net.ipv4.tcp_max_syn_backlog": 2048,
        "net.ipv4.ip_local_port_range": (32768, 60999),
        "fs.file-max": 9223372036854775807,
        "fs.nr_open": 1048576,
    },
    security=SecurityFacts(0, False, 0),
    environment=dict.fromkeys(VARIABLES),
    resume_in_place=True,
    acceleration=(
        PieceInfo("sockets", True, "it is asked for"),
        PieceInfo("tick", False, "it was not tested with this"),
    ),
)


def machine(facts: Facts = HEALTHY, **changes: Any) -> Facts:
    """A machine like that one, but for ``system__kernel="5.15"``, ``sysctls={"net.core.somaxconn": 128}`` and the like."""
    for path, value in changes.items():
        name, _separator, field = path.partition("__")
        part = getattr(facts, name)
        new = attrs.evolve(part, **{field: value}) if field else {**part, **value} if isinstance(part, dict) else value
        facts = attrs.evolve(facts, **{name: new})
    return facts


def without_ring(number: int | None, reason: str = "io_uring cannot be used", **changes: Any) -> Facts:
    """A machine whose kernel refuses a ring."""
    facts = machine(
        ring=RingFacts(False, "none", (), reason, number),
        choice=Choice("trio", "none", reason, ()),
        features=tuple(attrs.evolve(feature, available=False, used=False) for feature in HEALTHY.features),
    )
    return machine(facts, **changes)


def keys(facts: Facts) -> list[str]:
    return [advice.key for advice in advise(facts)]


def only(facts: Facts, key: str) -> Advice:
    (advice,) = [advice for advice in advise(facts) if advice.key == key]
    return advice


# --- advice ---


def test_a_healthy_machine_gets_no_advice() -> None:
    assert advise(HEALTHY) == ()


@pytest.mark.parametrize(
    ("facts", "key", "words"),
    [
        (without_ring(errno.EPERM, sysctls={"kernel.io_uring_disabled": 2}), "io_uring_disabled", ["=2", "sysctl -w"]),
        (
            without_ring(errno.EPERM, sysctls={"kernel.io_uring_disabled": 1}),
            "io_uring_disabled",
            ["io_uring_group=NUMBER", "io_uring_disabled=0"],
        ),
        (without_ring(errno.EPERM, security__seccomp=2), "seccomp", ["forbids", "gain-trio seccomp", "containers.md"]),
        (without_ring(errno.ENOSYS, security__seccomp=2), "seccomp", ["profile forbids", "gain-trio seccomp"]),
        (
            without_ring(errno.ENOSYS, security__seccomp=2, sysctls={"kernel.io_uring_disabled": GONE}),
            "seccomp",
            ["may forbid"],
        ),
        (without_ring(errno.EPERM), "security_module", ["SELinux"]),
        (without_ring(errno.EACCES), "security_module", ["SELinux"]),
        (without_ring(errno.EACCES, security__seccomp=2), "security_module", ["SELinux", "seccomp filter"]),
        (without_ring(errno.ENOSYS), "kernel", ["CONFIG_IO_URING"]),
        (without_ring(errno.ENOSYS, security__seccomp=2, system__kernel="4.19.0"), "kernel", ["5.1"]),
        (
            without_ring(errno.ENOSYS, system__container=("the kernel calls itself gVisor",)),
            "gvisor",
            ["gVisor has no"],
        ),
        (without_ring(errno.EINVAL), "kernel", ["gVisor", "Linux 6.1"]),
        (without_ring(errno.EINVAL, system__kernel="5.4.0"), "kernel", ["This kernel's io_uring lacks", "Linux 6.1"]),
        (without_ring(errno.EMFILE), "descriptors", ["ulimit -n"]),
        (without_ring(errno.ENOMEM), "memory", ["control group"]),
        (without_ring(None, python__modules=Unknown("they are missing")), "modules", ["C compiler"]),
        (
            without_ring(None, python__modules=Unknown("no Linux"), system__name="Darwin", system__kernel="23.1.0"),
            "platform",
            ["a part of Linux"],
        ),
    ],
)
def test_a_machine_without_a_ring_is_told_the_cause_and_the_cure(facts: Facts, key: str, words: list[str]) -> None:
    first, *more = advise(facts)
    assert (first.key, first.level) == (key, "problem")
    assert [word for word in words if word not in first.text] == []
    assert [advice.key for advice in more] == ["fallback"]


def test_where_the_sysctl_and_a_filter_may_both_be_the_cause_both_are_named() -> None:
    facts = without_ring(errno.EPERM, sysctls={"kernel.io_uring_disabled": 1}, security__seccomp=2)
    assert keys(facts) == ["io_uring_disabled", "seccomp", "fallback"]
    assert "may forbid" in only(facts, "seccomp").text


@pytest.mark.parametrize("kernel", ["5.4.0-150-generic", "5.11.22"])
def test_before_5_12_locked_memory_counts(kernel: str) -> None:
    limit = {"memlock": Limit(64 << 10, 64 << 10)}
    facts = without_ring(errno.ENOMEM, system__kernel=kernel, limits=limit)
    assert keys(facts) == ["memlock", "memory", "fallback"]
    assert "65536 bytes" in only(facts, "memlock").text
    assert only(machine(system__kernel=kernel, limits=limit), "memlock").level == "hint"


def test_the_capability_exempts_from_the_limit_and_being_root_does_not() -> None:
    limit = {"memlock": Limit(64 << 10, 64 << 10)}
    exempt = machine(limits=limit, security__capabilities=1 << 14)
    assert keys(exempt) == []
    assert keys(machine(exempt, system__user_id=0)) == ["root"]
    root_in_a_container = machine(limits=limit, system__user_id=0, security__capabilities=0xA80425FB)
    assert keys(root_in_a_container) == ["memlock", "root"]
    assert keys(machine(limits=limit, security__capabilities=GONE)) == ["memlock"]


def test_where_memory_was_refused_a_low_limit_is_told_whoever_is_exempt() -> None:
    """The capability may be that of a user namespace, which does not count."""
    limit = {"memlock": Limit(64 << 10, 64 << 10)}
    facts = without_ring(errno.ENOMEM, limits=limit, security__capabilities=1 << 14, system__user_id=0)
    assert keys(facts) == ["memlock", "memory", "fallback"]


@pytest.mark.parametrize("memlock", [Limit(8 << 20, 8 << 20), Limit("unlimited", "unlimited"), GONE])
def test_where_enough_memory_may_be_locked_there_is_nothing_to_advise(memlock: Limit | Unknown) -> None:
    assert keys(machine(limits={"memlock": memlock})) == []


@pytest.mark.parametrize("kernel", ["5.11.0", "6.18.1"])
def test_too_little_memory_to_lock_is_told(kernel: str) -> None:
    assert only(machine(system__kernel=kernel, limits={"memlock": Limit(0, 0)}), "memlock").level == "hint"


def test_a_kernel_before_6_12_and_one_before_6_1_are_told_what_newer_ones_have() -> None:
    older = tuple(name for name in NAMES if name != "buffer_increment")
    facts = machine(system__kernel="6.1.0-18-amd64", ring__features=older)
    assert keys(facts) == ["buffer_increment"]
    assert "Before Linux 6.12" in only(facts, "buffer_increment").text
    assert keys(machine(system__kernel="5.15.0", ring__tier="poll", ring__features=())) == ["tier"]


def test_root_is_told_that_it_is_not_needed_and_where_it_is_what_to_do_instead() -> None:
    assert "does not need" in only(machine(system__user_id=0), "root").text
    facts = machine(system__user_id=0, sysctls={"kernel.io_uring_disabled": 1})
    assert keys(facts) == ["root"]
    assert "io_uring_group" in only(facts, "root").text


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (Limit(1024, 524288), ["1024", "without root up to 524288"]),
        (Limit(256, "unlimited"), ["256", "without root as far as you like"]),
        (Limit(1024, 1024), ["1024", "root must raise it"]),
    ],
)
def test_few_files_are_few_connections(limit: Limit, words: list[str]) -> None:
    advice = only(machine(limits={"nofile": limit}), "nofile")
    assert advice.level == "hint"
    assert [word for word in words if word not in advice.text] == []


@pytest.mark.parametrize("limit", [Limit(4096, 4096), Limit("unlimited", "unlimited"), GONE])
def test_enough_files_or_an_unknown_number_is_nothing_to_say(limit: Limit | Unknown) -> None:
    assert keys(machine(limits={"nofile": limit})) == []


def test_small_limits_of_the_network_are_named_with_the_number() -> None:
    facts = machine(sysctls={"net.core.somaxconn": 128, "net.ipv4.ip_local_port_range": (50000, 50999)})
    assert keys(facts) == ["somaxconn", "ports"]
    assert "At most 128 " in only(facts, "somaxconn").text
    assert "can be 1000 at a time" in only(facts, "ports").text


def test_what_is_not_known_is_no_reason_for_advice() -> None:
    facts = machine(
        sysctls=dict.fromkeys(SYSCTLS, GONE),
        limits={"nofile": GONE, "memlock": GONE},
        cpus=CpuFacts(GONE, GONE, GONE),
        security=SecurityFacts(GONE, GONE, GONE),
        system__user_id=GONE,
    )
    assert advise(facts) == ()
    assert keys(without_ring(errno.EPERM, security__seccomp=GONE, sysctls=dict.fromkeys(SYSCTLS, GONE))) == [
        "security_module",
        "fallback",
    ]


def test_a_ring_that_the_environment_turns_off() -> None:
    choice = Choice("trio", "none", "it was asked for by GAIN_TRIO_BACKEND=trio", ())
    facts = machine(choice=choice, environment={"GAIN_TRIO_BACKEND": "trio"})
    assert keys(facts) == ["turned_off"]
    assert "unset GAIN_TRIO_BACKEND" in only(facts, "turned_off").text


def test_features_that_the_environment_turns_off() -> None:
    first, *others = HEALTHY.features
    features = (attrs.evolve(first, used=False), *others)
    facts = machine(features=features, environment={"GAIN_TRIO_UNWANTED": first.name})
    assert keys(facts) == ["unwanted"]
    assert only(facts, "unwanted").text.endswith(f": {first.name}.")


def test_settings_that_cannot_be_obeyed_are_problems() -> None:
    complaint = Unknown("GAIN_TRIO_BACKEND must be one of auto, io_uring, trio, not 'tiro'")
    advice = only(machine(choice=complaint, environment={"GAIN_TRIO_BACKEND": "tiro"}), "environment")
    assert (advice.level, complaint.reason in advice.text) == ("problem", True)
    complaint = Unknown("GAIN_TRIO_RESUME_IN_PLACE must be 0 or 1, not 'x'")
    for backend in (None, "", "auto", "io_uring"):
        advice = only(machine(resume_in_place=complaint, environment={"GAIN_TRIO_BACKEND": backend}), "environment")
        assert (advice.level, complaint.reason in advice.text) == ("problem", True)
    assert "environment" in keys(without_ring(errno.EPERM, resume_in_place=complaint))


def test_a_setting_of_the_ring_that_is_wrong_is_no_problem_where_no_ring_is_opened() -> None:
    choice = Choice("trio", "none", "it was asked for by GAIN_TRIO_BACKEND=trio", ())
    complaint = Unknown("GAIN_TRIO_RESUME_IN_PLACE must be 0 or 1, not 'x'")
    facts = machine(choice=choice, resume_in_place=complaint, environment={"GAIN_TRIO_BACKEND": "trio"})
    assert keys(facts) == ["turned_off"]


def test_a_ring_that_is_demanded_and_cannot_be_had() -> None:
    facts = without_ring(
        errno.EPERM, security__seccomp=2, choice=Unknown("no"), environment={"GAIN_TRIO_BACKEND": "io_uring"}
    )
    assert keys(facts) == ["seccomp", "environment"]
    assert "demands a ring" in only(facts, "environment").text


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("6.12.3", (6, 12)),
        ("6.1.0-18-amd64", (6, 1)),
        ("5.15-rc5", (5, 15)),
        ("6.6+", (6, 6)),
        ("4.4.0", (4, 4)),
        ("10", None),
        ("", None),
        ("rolling", None),
    ],
)
def test_releases_of_kernels(release: str, version: tuple[int, int] | None) -> None:
    assert kernel_version(release) == version


# --- probes ---


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_facts_are_read_from_the_files_of_proc(tmp_path: Path) -> None:
    write(tmp_path, "proc/sys/kernel/io_uring_disabled", "1\n")
    write(tmp_path, "proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n")
    status = "Name:\tpython\nCapEff:\t00000000a80425fb\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n"
    write(tmp_path, "proc/thread-self/status", status)
    facts = collect(tmp_path, {"GAIN_TRIO_UNWANTED": "buffer_ring"})
    assert facts.sysctls["kernel.io_uring_disabled"] == 1
    assert facts.sysctls["net.ipv4.ip_local_port_range"] == (32768, 60999)
    assert facts.security == SecurityFacts(2, True, 0xA80425FB)
    assert facts.environment == {**dict.fromkeys(VARIABLES), "GAIN_TRIO_UNWANTED": "buffer_ring"}


def test_files_that_are_not_there_are_unknown_with_the_reason(tmp_path: Path) -> None:
    facts = collect(tmp_path, {})
    for name in SYSCTLS:
        value = facts.sysctls[name]
        assert isinstance(value, Unknown)
        assert value.reason == f"No such file or directory: {tmp_path}/proc/sys/{name.replace('.', '/')}"
    assert isinstance(facts.security.seccomp, Unknown)
    assert isinstance(facts.security.capabilities, Unknown)
    assert isinstance(facts.cpus.quota, Unknown)
    assert facts.system.container == ()


def test_files_that_make_no_sense_are_unknown_too(tmp_path: Path) -> None:
    write(tmp_path, "proc/sys/net/core/somaxconn", "a lot")
    write(tmp_path, "proc/sys/fs/nr_open", "")
    (tmp_path / "proc/sys/fs/file-max").mkdir()  # reading it fails, for root as well
    write(tmp_path, "proc/thread-self/status", "Name:\tpython\nCapEff:\tall\n")
    write(tmp_path, "proc/self/cgroup", "nonsense\n")
    facts = collect(tmp_path, {})
    values = [facts.sysctls[name] for name in ("net.core.somaxconn", "fs.nr_open", "fs.file-max")]
    values += [facts.security.seccomp, facts.security.capabilities, facts.cpus.quota]
    assert all(isinstance(value, Unknown) for value in values)
    assert "Is a directory" in str(facts.sysctls["fs.file-max"])
    assert facts.security.no_new_privs == Unknown("/proc/thread-self/status has no line NoNewPrivs")


@pytest.mark.parametrize(
    ("files", "environment", "release", "signs"),
    [
        ({}, {}, "6.12.1", 0),
        ({".dockerenv": ""}, {}, "6.12.1", 1),
        ({"run/.containerenv": ""}, {"container": "podman"}, "6.12.1", 2),
        ({"proc/self/cgroup": "0::/kubepods/besteffort/pod1\n"}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "6.12.1", 2),
        ({"proc/self/cgroup": "0::/user.slice\n"}, {}, "6.12.1", 0),
        ({}, {}, "4.19.0-gvisor", 1),
    ],
)
def test_signs_of_a_container(
    tmp_path: Path, files: dict[str, str], environment: dict[str, str], release: str, signs: int
) -> None:
    for name, text in files.items():
        write(tmp_path, name, text)
    assert len(container_signs(tmp_path, environment, release)) == signs


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/\n", "cgroup.controllers": "cpu"}, None),  # the root group has no cpu.max
        ({"proc/self/cgroup": "0::/a/b\n", "cgroup.controllers": "cpu", "a/b/cpu.max": "150000 100000"}, 1.5),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "cgroup.controllers": "cpu",
                "a/b/cpu.max": "max 100000",
                "a/cpu.max": "50000 100000",  # the group above is the stricter one
            },
            0.5,
        ),
        ({"proc/self/cgroup": "0::/of/the/host\n", "cgroup.controllers": "cpu", "cpu.max": "200000 100000"}, 2.0),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/a\n0::/\n",
                "cpu,cpuacct/a/cpu.cfs_quota_us": "400000",
                "cpu,cpuacct/a/cpu.cfs_period_us": "100000",
            },
            4.0,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/\n",
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
            },
            None,
        ),
    ],
)
def test_the_quota_of_the_control_group(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    for name, text in files.items():
        write(tmp_path, name if name.startswith("proc/") else f"sys/fs/cgroup/{name}", text)
    assert cpu_quota(tmp_path) == quota


@pytest.mark.parametrize("groups", ["3:memory:/\n0::/\n", "3:cpu:/\n"])
def test_a_quota_that_cannot_be_seen_is_not_taken_for_none(tmp_path: Path, groups: str) -> None:
    write(tmp_path, "proc/self/cgroup", groups)
    with pytest.raises((LookupError, OSError)):
        cpu_quota(tmp_path)


def test_a_probe_that_fails_does_not_keep_the_others_from_telling(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> Any:
        raise ZeroDivisionError

    for name in ("_usable_cpus", "_version", "_limit", "_try_ring", "_choice"):
        monkeypatch.setattr(_doctor, name, fail)
    facts = collect()
    reason = Unknown("ZeroDivisionError")
    assert facts.cpus.usable == facts.python.cffi == facts.limits["nofile"] == facts.choice == reason
    assert facts.ring == RingFacts(False, "none", (), "ZeroDivisionError", None)
    assert facts.cpus.count != reason
    assert as_text(facts, advise(facts))
    assert json.loads(as_json(facts, advise(facts)))


def test_systems_that_have_less_than_linux(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)  # importing it raises ImportError, as on Windows
    monkeypatch.delattr("os.geteuid", raising=False)
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("platform.system", lambda: "Windows")
    facts = collect(tmp_path, {})
    assert facts.limits["memlock"] == Unknown("Windows has no such limits")
    assert facts.system.user_id == Unknown("Windows has no user numbers")
    assert facts.cpus.usable == Unknown("Windows does not say")
    assert as_text(facts, advise(facts))


# --- the page ---


@pytest.mark.parametrize("facts", [HEALTHY, without_ring(errno.EPERM, "no " * 50, security__seccomp=2)])
@pytest.mark.parametrize("width", [80, 100])
def test_the_page_names_everything_and_keeps_to_its_width(facts: Facts, width: int) -> None:
    page = as_text(facts, advise(facts), width)
    lines = page.splitlines()
    assert max(map(len, lines)) <= width
    assert not any(line != line.rstrip() for line in lines)
    words = [
        *NAMES,
        *SYSCTLS,
        *VARIABLES,
        "RLIMIT_NOFILE",
        "RLIMIT_MEMLOCK",
        "seccomp",
        "NoNewPrivs",
        "CapEff",
        "6.12.1",
    ]
    assert [word for word in words if word not in page] == []


def test_the_page_says_of_each_feature_whether_it_is_used() -> None:
    used, unused, missing = HEALTHY.features[:3]
    features = (used, attrs.evolve(unused, used=False), attrs.evolve(missing, available=False, used=False))
    lines = as_text(machine(features=features), ()).splitlines()
    for feature, state in ((used, "used"), (unused, "not used"), (missing, "missing")):
        (line,) = [line for line in lines if line.startswith(f"  {feature.name} ")]
        assert line.split(maxsplit=2)[2].startswith(f"{state}  ")


def test_the_page_says_that_a_run_would_fail_and_that_a_value_is_not_known() -> None:
    page = as_text(machine(choice=Unknown("GAIN_TRIO_BACKEND is wrong"), cpus=CpuFacts(4, 2, 1.5)), (), 100)
    assert "nothing, it would fail: GAIN_TRIO_BACKEND is wrong" in page
    assert "4; usable by this process: 2; the control group grants the time of 1.5" in page
    assert "None: there is nothing to mend." in page
    assert "not known (No such file" in as_text(machine(sysctls={"fs.nr_open": GONE}), ())


def test_the_page_lists_the_pieces_of_trio_in_c() -> None:
    lines = [line.strip() for line in as_text(machine(), (), 100).splitlines()]
    assert "sockets  in C" in lines
    assert "tick     Trio's: it was not tested with this" in lines
    none = tuple(PieceInfo(name, False, "GAIN_TRIO_ACCELERATE=0 says so") for name in ("sockets", "tick"))
    assert "none of it: GAIN_TRIO_ACCELERATE=0 says so" in as_text(machine(acceleration=none), (), 100)
    assert "not known (GAIN_TRIO_ACCELERATE is wrong)" in as_text(
        machine(acceleration=Unknown("GAIN_TRIO_ACCELERATE is wrong")), (), 100
    )


def test_the_keys_of_the_json_are_stable() -> None:
    facts = machine(sysctls={"net.core.somaxconn": GONE}, limits={"memlock": Limit("unlimited", "unlimited")})
    content = json.loads(as_json(facts, (Advice("a", "hint", "Do."),)))
    assert set(content) == {
        "schema", "ring", "choice", "features", "system", "python", "cpus", "limits", "sysctls", "security",
        "environment", "resume_in_place", "acceleration", "advice", "unknown",
    }  # fmt: skip
    assert content["schema"] == 1
    assert set(content["ring"]) == {"runs", "tier", "features", "reason", "errno"}
    assert set(content["choice"]) == {"backend", "tier", "reason", "features"}
    assert {tuple(piece) for piece in content["acceleration"]} == {("name", "active", "reason")}
    assert {tuple(feature) for feature in content["features"]} == {("name", "kernel", "purpose", "available", "used")}
    assert set(content["system"]) == {"name", "kernel", "architecture", "user_id", "container"}
    assert set(content["python"]) == {"implementation", "version", "gain_trio", "trio", "cffi", "modules"}
    assert set(content["cpus"]) == {"count", "usable", "quota"}
    assert content["limits"] == {
        "nofile": {"soft": 65536, "hard": 65536},
        "memlock": {"soft": "unlimited", "hard": "unlimited"},
    }
    assert set(content["sysctls"]) == set(SYSCTLS)
    assert content["sysctls"]["net.ipv4.ip_local_port_range"] == [32768, 60999]
    assert content["sysctls"]["net.core.somaxconn"] is None
    assert content["unknown"] == {"sysctls.net.core.somaxconn": GONE.reason}
    assert set(content["security"]) == {"seccomp", "no_new_privs", "capabilities"}
    assert set(content["environment"]) == set(VARIABLES)
    assert content["advice"] == [{"key": "a", "level": "hint", "text": "Do."}]


# --- the command ---


def ring_can_run() -> bool:
    try:
        Ring(RingOptions(unwanted=Feature(0))).close()
    except gain_trio.RingUnavailable:
        return False
    return True


def test_the_exit_status_says_whether_the_ring_can_run() -> None:
    status, out, err = run("-m", "gain_trio", "doctor")
    assert (status, err) == (0 if ring_can_run() else 1, "")
    assert out.startswith("The ring runs here:    yes, tier " if ring_can_run() else "The ring runs here:    no: ")


@pytest.mark.parametrize("backend", ["auto", "trio"])
def test_the_environment_does_not_change_what_the_machine_can_do(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setenv("GAIN_TRIO_BACKEND", backend)
    status, out, err = run("-m", "gain_trio", "doctor", "--json")
    assert (status, err) == (0 if ring_can_run() else 1, "")
    content = json.loads(out)
    assert content["ring"]["runs"] is ring_can_run()
    assert content["environment"]["GAIN_TRIO_BACKEND"] == backend
    assert [feature["name"] for feature in content["features"]] == list(NAMES)
    assert content["python"]["gain_trio"] == gain_trio.__version__


@pytest.mark.parametrize("backend", ["auto", "io_uring", "trio"])
def test_a_wrong_setting_is_a_finding_and_no_crash(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setenv("GAIN_TRIO_BACKEND", backend)
    monkeypatch.setenv("GAIN_TRIO_RESUME_IN_PLACE", "perhaps")
    status, out, err = run("-m", "gain_trio", "doctor", "--json")
    assert (status, err) == (0 if ring_can_run() else 1, "")
    content = json.loads(out)
    assert "'perhaps'" in content["unknown"]["resume_in_place"]
    fails, _out, _err = run("-c", "import gain_trio, trio; gain_trio.run(trio.sleep, 0)")
    assert ("environment" in [advice["key"] for advice in content["advice"]]) == bool(fails)
    assert bool(fails) == (backend != "trio")


def test_a_reader_that_has_enough_is_no_error() -> None:
    """``gain-trio doctor | head``."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        result = subprocess.run(
            [sys.executable, "-m", "gain_trio", "doctor"],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    finally:
        os.close(writing)
    assert (result.returncode, result.stderr) == (0 if ring_can_run() else 1, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [["doctor"], ["doctor", "--json"]])
@pytest.mark.parametrize(
    ("redirection", "reason"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")]
)
def test_a_page_that_cannot_be_written_does_not_say_that_there_is_no_ring(
    arguments: list[str], redirection: str, reason: str
) -> None:
    command = ["sh", "-c", f'"$@" {redirection}', "sh", sys.executable, "-m", "gain_trio", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (result.returncode, result.stderr) == (2, f"gain-trio: standard output: {reason}\n")


@pytest.mark.skipif(load_error is not None, reason="there are no compiled modules to ask the kernel with")
def test_a_ring_refused_for_lack_of_memory_to_lock_is_told_so_to_root_too() -> None:
    if not ring_can_run():
        pytest.skip("there is no ring to refuse")
    restricted = Path(__file__).resolve().parent / "support" / "restricted.py"
    status, out, err = run(restricted, "memlock", "-m", "gain_trio", "doctor", "--json")
    content = json.loads(out)
    assert (status, err) == (0 if content["ring"]["runs"] else 1, "")
    assert not content["security"]["capabilities"] >> 14 & 1
    assert "memlock" in [advice["key"] for advice in content["advice"]]


WITHOUT_MODULES = """
import sys
sys.modules["gain_trio._uring"] = sys.modules["gain_trio._fastpath"] = None  # importing them raises ImportError
from gain_trio._command._cli import main
sys.exit(main(["doctor"]))
"""


def test_without_the_compiled_modules_it_says_so_and_ends_with_status_1() -> None:
    status, out, err = interpreted("-c", WITHOUT_MODULES)
    assert (status, err) == (1, "")
    assert "The ring runs here:    no: " in out
    assert "compiled modules  not there: " in out


FORBIDDING = """
import ctypes, struct, sys
number, answer = map(int, sys.argv[1:])
# load the number of the system call; if it is that one, answer with the errno, else allow
program = b"".join(struct.pack("HBBI", *line) for line in (
    (0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x50000 | answer), (0x06, 0, 0, 0x7FFF0000),
))
lines = ctypes.create_string_buffer(program, len(program))
header = ctypes.create_string_buffer(struct.pack("@HP", 4, ctypes.addressof(lines)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0, "PR_SET_NO_NEW_PRIVS"
assert libc.prctl(22, 2, header, 0, 0) == 0, "PR_SET_SECCOMP, SECCOMP_MODE_FILTER"
from gain_trio._command._cli import main
sys.exit(main(["doctor", "--json"]))
"""
SETUP, ENTER = 425, 426  # io_uring_setup and io_uring_enter, on every architecture that gain_trio has been tried on


@pytest.mark.skipif(load_error is not None, reason="there are no compiled modules to ask the kernel with")
@pytest.mark.parametrize("answer", [errno.EPERM, errno.ENOSYS], ids=["as Docker answers", "as Podman answers"])
@pytest.mark.parametrize("number", [SETUP, ENTER], ids=["setup", "enter"])
def test_a_seccomp_filter_is_found_out(number: int, answer: int) -> None:
    if not ring_can_run():
        pytest.skip("there is no ring to forbid")
    status, out, err = run("-c", FORBIDDING, str(number), str(answer))
    assert (status, err) == (1, "")
    content = json.loads(out)
    assert (content["ring"]["runs"], content["ring"]["errno"]) == (False, answer)
    assert (content["security"]["seccomp"], content["security"]["no_new_privs"]) == (2, True)
    assert "seccomp" in [advice["key"] for advice in content["advice"]]


def test_help_tells_what_the_exit_status_means() -> None:
    status, out, err = run("-m", "gain_trio", "doctor", "--help")
    assert (status, err) == (0, "")
    assert "exit status:" in out
    assert "GAIN_TRIO_BACKEND=trio" in out
    assert "  2  There is no report" in out
    assert max(map(len, out.splitlines())) <= 80

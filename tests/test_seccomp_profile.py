"""gain-trio seccomp: what it makes of profiles in all their forms, and the command run for real."""

from __future__ import annotations

import copy
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.processes import TIMEOUT, command, run

from gain_trio._command._seccomp import SYSCALLS, Profile, ProfileError, allow_io_uring, parse, render, resolve
from gain_trio._command._seccomp_command import write_atomically

pytestmark = pytest.mark.no_run

SECCOMP = ("-m", "gain_trio", "seccomp")
ALLOW, DENY, LOG = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_LOG"
NEW_RULE = {"names": list(SYSCALLS), "action": ALLOW, "args": []}
READ = {"names": ["read", "write"], "action": ALLOW}


def profile(*rules: dict[str, Any], default: str = DENY, **more: Any) -> Profile:
    return {"defaultAction": default, **more, "syscalls": list(rules)}


DOCKER = profile(
    READ,
    {
        "names": ["personality"],
        "action": ALLOW,
        "args": [{"index": 0, "value": 18446744073709551615, "op": "SCMP_CMP_EQ"}],
    },
    {"names": ["ptrace"], "action": ALLOW, "includes": {"minKernel": "4.8"}},
    {"names": ["openat3"], "action": ALLOW, "includes": {"minKernel": "9.0"}},
    {"names": ["arch_prctl"], "action": ALLOW, "includes": {"arches": ["amd64", "x32"]}},
    {"names": ["breakpoint"], "action": ALLOW, "includes": {"arches": ["arm", "arm64"]}},
    {"names": ["bpf", "mount"], "action": ALLOW, "includes": {"caps": ["CAP_SYS_ADMIN"]}},
    {"names": ["chroot"], "action": ALLOW, "includes": {"caps": ["CAP_SYS_CHROOT"]}},
    {"names": ["clone3"], "action": DENY, "errnoRet": 38, "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
    {"names": ["old"], "action": DENY, "excludes": {"minKernel": "5.1"}},
    defaultErrnoRet=1,
    archMap=[
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
        {"architecture": "SCMP_ARCH_RISCV64", "subArchitectures": None},
    ],
)
"""A profile with everything that Docker's has, in few lines."""


# --- allowing ---


@pytest.mark.parametrize(
    "base", [profile(READ), profile(), DOCKER, {"defaultAction": DENY}, profile(READ, default="SCMP_ACT_KILL")]
)
def test_one_rule_for_exactly_three_system_calls_is_added_at_the_end(base: Profile) -> None:
    before = copy.deepcopy(base)
    outcome = allow_io_uring(base)
    assert outcome.changed
    assert outcome.profile == {**base, "syscalls": [*base.get("syscalls", []), NEW_RULE]}
    assert list(outcome.profile)[: len(base)] == list(base)  # the order of the keys is kept too
    assert base == before


def test_an_old_profile_with_a_name_a_rule_gets_three_rules() -> None:
    base = profile({"name": "read", "action": ALLOW, "args": []}, architectures=["SCMP_ARCH_X86_64"])
    added = allow_io_uring(base).profile["syscalls"][1:]
    assert added == [{"name": name, "action": ALLOW, "args": []} for name in SYSCALLS]


@pytest.mark.parametrize(
    "action", [DENY, "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP", "SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE"]
)
def test_they_are_taken_out_of_the_rules_that_deny_them(action: str) -> None:
    base = profile(
        READ,
        {"names": ["vmsplice", *SYSCALLS, "uselib"], "action": action, "errnoRet": 1},
        {"names": ["io_uring_setup"], "action": action, "args": [{"index": 0, "value": 9, "op": "SCMP_CMP_GT"}]},
        {"name": "io_uring_enter", "action": action},
    )
    outcome = allow_io_uring(base)
    rest = {"names": ["vmsplice", "uselib"], "action": action, "errnoRet": 1}
    assert outcome.profile["syscalls"] == [READ, rest, NEW_RULE]
    assert "taken out of 3 rule(s)" in outcome.summary


def test_denied_by_a_rule_and_allowed_by_default() -> None:
    """A rule that repeats the default is refused by some runtimes, so none is added."""
    outcome = allow_io_uring(profile({"names": ["mount", *SYSCALLS], "action": DENY}, default=ALLOW))
    assert outcome.profile["syscalls"] == [{"names": ["mount"], "action": DENY}]


def test_denied_by_one_rule_and_allowed_by_another() -> None:
    outcome = allow_io_uring(profile(NEW_RULE, {"names": list(SYSCALLS), "action": DENY}))
    assert outcome.changed
    assert outcome.profile["syscalls"] == [NEW_RULE]


@pytest.mark.parametrize(
    ("base", "how"),
    [
        (profile(NEW_RULE), "by its rules"),
        (profile({"names": [*SYSCALLS, "read"], "action": LOG}), "by its rules"),
        (profile(*({"name": name, "action": ALLOW} for name in SYSCALLS)), "by its rules"),
        (profile(default=ALLOW), "by its defaultAction, SCMP_ACT_ALLOW"),
        (profile(READ, default=LOG), "by its defaultAction, SCMP_ACT_LOG"),
    ],
)
def test_what_is_allowed_already_is_left_alone(base: Profile, how: str) -> None:
    outcome = allow_io_uring(base)
    assert (outcome.changed, outcome.profile) == (False, base)
    assert f"allowed already, {how}; nothing is changed" in outcome.summary


@pytest.mark.parametrize(
    "rule",
    [
        {"names": list(SYSCALLS[:2]), "action": ALLOW},  # not all of them
        {"names": list(SYSCALLS), "action": ALLOW, "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": list(SYSCALLS), "action": ALLOW, "excludes": {"arches": ["s390x"]}},
        {"names": list(SYSCALLS), "action": ALLOW, "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_LE"}]},
    ],
)
def test_what_is_allowed_sometimes_is_allowed_always_afterwards(rule: dict[str, Any]) -> None:
    outcome = allow_io_uring(profile(rule))
    assert outcome.changed
    assert outcome.profile["syscalls"] == [rule, NEW_RULE]


@pytest.mark.parametrize("base", [DOCKER, profile({"name": "read", "action": ALLOW}), profile(READ, default=ALLOW)])
def test_a_second_time_changes_nothing(base: Profile) -> None:
    once = allow_io_uring(base).profile
    assert allow_io_uring(once).profile == once
    assert not allow_io_uring(once).changed


# --- the plain form ---


def names(plain: Profile) -> set[str]:
    return {name for rule in plain["syscalls"] for name in rule["names"]}


def test_the_plain_form_has_no_conditions_left() -> None:
    plain = resolve(allow_io_uring(DOCKER).profile, "amd64")
    assert set(plain) == {"defaultAction", "defaultErrnoRet", "architectures", "syscalls"}
    assert plain["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    assert {key for rule in plain["syscalls"] for key in rule} == {"names", "action", "args", "errnoRet"}
    assert names(plain) == {"read", "write", "personality", "ptrace", "arch_prctl", "clone3", *SYSCALLS}
    assert {"names": ["clone3"], "action": DENY, "errnoRet": 38} in plain["syscalls"]


def test_the_plain_form_for_another_architecture_and_capabilities() -> None:
    plain = resolve(DOCKER, "riscv64", ["CAP_SYS_ADMIN", "CAP_SYS_CHROOT"])
    assert plain["architectures"] == ["SCMP_ARCH_RISCV64"]
    assert names(plain) == {"read", "write", "personality", "ptrace", "bpf", "mount", "chroot"}


def test_the_plain_form_of_a_plain_profile_is_the_same() -> None:
    base = profile({**READ, "errnoRet": 0}, architectures=["SCMP_ARCH_AARCH64"], flags=["SECCOMP_FILTER_FLAG_LOG"])
    assert resolve(base, "amd64") == base


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        (profile({**READ, "includes": {"weekday": "monday"}}), r"syscalls\[0\]\.includes has a condition .* weekday"),
        (
            profile({**READ, "excludes": {"minKernel": "new"}}),
            r"syscalls\[0\]\.excludes\.minKernel is not a kernel version",
        ),
        (profile({**READ, "errno": "EPERM"}), r"syscalls\[0\] has errno without errnoRet"),
        (profile(archMap=[{"architecture": "SCMP_ARCH_S390X"}]), "its archMap lacks SCMP_ARCH_X86_64"),
    ],
)
def test_what_cannot_be_resolved_is_an_error(base: Profile, reason: str) -> None:
    with pytest.raises(ProfileError, match=reason):
        resolve(base, "amd64")


# --- reading ---


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is not JSON"),
        ("defaultAction: SCMP_ACT_ERRNO", "it is not JSON"),
        ("[" * 100_000, "it is nested too deeply"),
        ("[]", "it is not a seccomp profile: not an object"),
        ("{}", "there is no defaultAction"),
        ('{"linux": {"seccomp": {}}}', "the configuration of a container"),
        ('{"defaultAction": 1}', "defaultAction is not an action"),
        ('{"defaultAction": "ALLOW"}', "defaultAction is not an action"),
        ('{"defaultAction": "SCMP_ACT_ERRNO", "defaultAction": "SCMP_ACT_ALLOW"}', "has 'defaultAction' twice"),
        ('{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": {}}', "syscalls is not a list"),
        ('{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [1]}', r"syscalls\[0\] is not an object"),
        (
            '{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"name": "read", "action": "SCMP_ACT_ALLOW"}, {}]}',
            r"syscalls\[1\] has neither name nor names",
        ),
        ('{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": "read"}]}', r"syscalls\[0\].names is not a list"),
        ('{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"name": 1}]}', r"syscalls\[0\].name is not a string"),
        ('{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": []}]}', r"syscalls\[0\].action is not an action"),
        (
            '{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"name": "a", "names": ["b"]}]}',
            r"syscalls\[0\] has both name and names",
        ),
        (
            '{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86"], "archMap": [{}]}',
            "both architectures and archMap",
        ),
        (
            '{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"name": "a", "action": "SCMP_ACT_ALLOW", "includes": 1}]}',
            r"syscalls\[0\].includes is not an object",
        ),
        *(
            (
                json.dumps(profile({**READ, condition: {what: wrong}})),
                rf"syscalls\[0\].{condition}.{what} is not a list",
            )
            for condition in ("includes", "excludes")
            for what in ("arches", "caps")
            for wrong in ("amd64", 5, [["amd64"]])
        ),
        (json.dumps(profile(archMap={"architecture": "x"})), "archMap is not a list"),
        (json.dumps(profile(archMap=["SCMP_ARCH_X86_64"])), r"archMap\[0\] is not an object"),
        (json.dumps(profile(archMap=[{"architecture": ["x"]}])), r"archMap\[0\].architecture is not a string"),
        (
            json.dumps(profile(archMap=[{}, {"architecture": "x", "subArchitectures": "y"}])),
            r"archMap\[1\].subArchitectures is not a list of strings",
        ),
    ],
)
def test_what_is_no_profile_is_an_error_that_says_where(text: str, reason: str) -> None:
    with pytest.raises(ProfileError, match=reason):
        parse(text)


@pytest.mark.parametrize(
    "text", ['{"defaultAction": "SCMP_ACT_ERRNO"}', '{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": null}']
)
def test_a_profile_may_have_no_rules(text: str) -> None:
    assert allow_io_uring(parse(text)).profile["syscalls"] == [NEW_RULE]


# --- the command ---


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A profile as a file, indented by two."""
    path = tmp_path / "base.json"
    path.write_text(json.dumps(DOCKER, indent=2))
    return path


def test_it_writes_to_standard_output_as_the_base_is_indented(base: Path) -> None:
    status, out, err = run(*SECCOMP, base)
    assert (status, json.loads(out)) == (0, allow_io_uring(DOCKER).profile)
    assert err == "gain-trio: io_uring_setup, io_uring_enter, io_uring_register are allowed now\n"
    before, after = base.read_text().splitlines(), out.splitlines()
    assert [line for line in before if line not in after] == []
    assert after[: len(before) - 3] == before[:-3]  # the rest is the end of the list, with the new rule in it
    assert run(*SECCOMP, base)[1] == out  # the same every time


def test_it_writes_a_file_and_its_own_work_comes_out_as_it_went_in(base: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    assert run(*SECCOMP, base, "-o", first)[:2] == (0, "")
    status, out, err = run(*SECCOMP, first, "--output", second)
    assert (status, out) == (0, "")
    assert "allowed already" in err
    assert second.read_bytes() == first.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["base.json", "first.json", "second.json"]


def test_what_is_allowed_already_comes_out_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "odd.json"
    path.write_bytes(b'{"defaultAction":\r\n  "SCMP_ACT_ALLOW" }')
    assert run(*SECCOMP, path, "-o", tmp_path / "out.json")[:2] == (0, "")
    assert (tmp_path / "out.json").read_bytes() == path.read_bytes()


def test_it_reads_standard_input(base: Path) -> None:
    with base.open() as file:
        result = subprocess.run(
            [sys.executable, *SECCOMP, "-"], stdin=file, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    assert (result.returncode, json.loads(result.stdout)) == (0, allow_io_uring(DOCKER).profile)


def test_the_plain_form_by_the_command(base: Path) -> None:
    status, out, _err = run(*SECCOMP, base, "--oci", "--architecture", "amd64", "--capability", "CAP_SYS_CHROOT")
    assert status == 0
    assert json.loads(out) == resolve(allow_io_uring(DOCKER).profile, "amd64", ["CAP_SYS_CHROOT"])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["missing.json"], "missing.json: No such file or directory"),
        (["."], ".: Is a directory"),
        (["text.json"], "text.json: it is not JSON: Expecting value: line 1 column 1 (char 0)"),
        (["binary.json"], "binary.json: it is not UTF-8"),
        (["base.json", "-o", "no/such/folder.json"], "gain-trio: no/such/folder.json: No such file or directory\n"),
        (["base.json", "-o", "text.json/below"], "gain-trio: text.json/below: Not a directory\n"),
        (["base.json", "-o", "."], ". is not a regular file"),
        (["base.json", "-o", "/dev/null"], "/dev/null is not a regular file"),
        (["base.json", "--capability", "CAP_SYS_CHROOT"], "--architecture and --capability are for --oci"),
        (["base.json", "--oci", "--architecture", "amd64", "--capability", "chroot"], "'chroot' is not a capability"),
        (["odd.json", "--oci", "--architecture", "amd64"], "odd.json: archMap[0] is not an object"),
        (["base.json", "--oci", "--architecture", "s390x"], "base.json: its archMap lacks SCMP_ARCH_S390X"),
    ],
)
def test_what_goes_wrong_is_one_line_and_status_1(base: Path, arguments: list[str], reason: str) -> None:
    (base.parent / "text.json").write_text("hello")
    (base.parent / "binary.json").write_bytes(b"\xff\xfe{}")
    (base.parent / "odd.json").write_text(json.dumps(profile(archMap=["SCMP_ARCH_X86_64"])))
    status, out, err = command("seccomp", *arguments, cwd=base.parent)
    assert (status, out) == (1, "")
    assert err.startswith("gain-trio: ")
    assert reason in err
    assert err.count("\n") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    ("redirection", "reason"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")]
)
def test_an_output_that_cannot_be_written_is_not_blamed_on_the_base(base: Path, redirection: str, reason: str) -> None:
    command = ["sh", "-c", f'"$@" {redirection}', "sh", sys.executable, *SECCOMP, str(base)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (result.returncode, result.stderr) == (1, f"gain-trio: standard output: {reason}\n")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path, link = tmp_path / "profile.json", tmp_path / "link.json"
    path.write_text("old")
    link.symlink_to(path)
    with pytest.raises(UnicodeEncodeError):
        write_atomically(link, "new, up to here: \ud800")
    assert path.read_text() == "old"
    write_atomically(link, "new")
    assert link.is_symlink()
    assert path.read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["link.json", "profile.json"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask  # as of any file: a container engine may be another user


def test_rendering_keeps_what_is_not_ascii_and_large_numbers() -> None:
    content = profile(READ, comment="für alle", value=18446744073709551615)
    assert json.loads(render(content)) == content
    assert "für alle" in render(content)
    assert render(content).startswith('{\n\t"defaultAction"')
    assert render(content, '{\n    "defaultAction"').startswith('{\n    "defaultAction"')


def test_help_tells_where_the_default_profiles_are() -> None:
    status, out, err = run(*SECCOMP, "--help")
    assert (status, err) == (0, "")
    assert "/usr/share/containers/seccomp.json" in out
    assert "--oci" in out

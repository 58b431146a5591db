"""Seccomp profiles of container runtimes, and adding the three system calls of io_uring to one.

A profile is a list of rules over a default action.  The OCI runtime specification has the plain form; Docker and Podman
extend it, and this module reads these variants::

    OCI             "names": [...]          "architectures": [...]     for runc, crun, and containerd of Kubernetes
    Docker, Podman  "includes", "excludes"  "archMap": [...]           conditions that the engine resolves for a container
    Docker 1.10     "name": "..."           "architectures": [...]     one system call a rule

A rule allows (``SCMP_ACT_ALLOW``, or ``SCMP_ACT_LOG``, which logs and allows) or does something else, which this module
calls denying.  If a profile both allows and denies the same system call, the runtime and its libseccomp decide, and may
refuse the profile: that is why :func:`allow_io_uring` removes a denial instead of only adding a rule.

:func:`allow_io_uring` works on every variant and keeps it.  :func:`resolve` makes the plain form of the others, for
runtimes that would skip a condition, and so always allow what the profile allows sometimes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any, TypeAlias, final

import attrs

Profile: TypeAlias = dict[str, Any]
"""A profile as the JSON parser returns it."""

SYSCALLS = ("io_uring_setup", "io_uring_enter", "io_uring_register")

ARCHITECTURES: Mapping[str, str] = {
    "amd64": "SCMP_ARCH_X86_64",
    "arm64": "SCMP_ARCH_AARCH64",
    "loongarch64": "SCMP_ARCH_LOONGARCH64",
    "ppc64le": "SCMP_ARCH_PPC64LE",
    "riscv64": "SCMP_ARCH_RISCV64",
    "s390x": "SCMP_ARCH_S390X",
}
"""The names in ``archMap`` and ``architectures``, by the names in ``includes`` and ``excludes``."""

_ALLOWING = ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG")
_OLDEST_KERNEL = (5, 11)
"""The kernel for ``minKernel``: a kernel with a ring for gain_trio is no older, and rules for newer ones are left out."""


class ProfileError(ValueError):
    """The text is not a seccomp profile; the message says why."""


@final
@attrs.frozen
class ProfileChange:
    """A profile that allows io_uring, and a report of the change."""

    profile: Profile
    changed: bool
    summary: str
    """A sentence on what was changed."""


# --- reading ---


def _object_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object, refusing two equal keys, because readers of JSON disagree on which one counts."""
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _value in pairs]
        raise ProfileError(f"an object has {next(name for name in names if names.count(name) > 1)!r} twice")
    return content


def parse(text: str) -> Profile:
    """Read a profile.

    Raises:
      ProfileError: the text is not a profile.
    """
    try:
        profile = json.loads(text, object_pairs_hook=_object_once)
    except json.JSONDecodeError as error:
        raise ProfileError(f"it is not JSON: {error}") from None
    except RecursionError:
        raise ProfileError("it is nested too deeply") from None
    _check(profile)
    assert isinstance(profile, dict)
    return profile


def _check(profile: Any) -> None:
    if not isinstance(profile, dict):
        raise ProfileError("it is not a seccomp profile: not an object with a defaultAction")
    if "defaultAction" not in profile:
        if isinstance(profile.get("linux"), dict) and "seccomp" in profile["linux"]:
            raise ProfileError("it is the configuration of a container; the profile is what it has as linux.seccomp")
        raise ProfileError("it is not a seccomp profile: there is no defaultAction")
    _check_action(profile["defaultAction"], "defaultAction")
    rules = profile.get("syscalls")
    if rules is not None and not isinstance(rules, list):
        raise ProfileError("it is not a seccomp profile: syscalls is not a list")
    if profile.get("architectures") and profile.get("archMap"):
        raise ProfileError("it has both architectures and archMap, which runtimes refuse")
    _check_arch_map(profile.get("archMap"))
    for number, rule in enumerate(rules or ()):
        _check_rule(rule, f"syscalls[{number}]")


def _check_action(action: Any, where: str) -> None:
    if not isinstance(action, str) or not action.startswith("SCMP_ACT_"):
        raise ProfileError(f"{where} is not an action (SCMP_ACT_...): {json.dumps(action)[:60]}")


def _check_strings(value: Any, where: str) -> None:
    if value is not None and not (isinstance(value, list) and all(isinstance(entry, str) for entry in value)):
        raise ProfileError(f"{where} is not a list of strings")


def _check_arch_map(entries: Any) -> None:
    if entries is not None and not isinstance(entries, list):
        raise ProfileError("archMap is not a list")
    for number, entry in enumerate(entries or ()):
        where = f"archMap[{number}]"
        if not isinstance(entry, dict):
            raise ProfileError(f"{where} is not an object")
        if entry.get("architecture") is not None and not isinstance(entry["architecture"], str):
            raise ProfileError(f"{where}.architecture is not a string")
        _check_strings(entry.get("subArchitectures"), f"{where}.subArchitectures")


def _check_rule(rule: Any, where: str) -> None:
    if not isinstance(rule, dict):
        raise ProfileError(f"{where} is not an object")
    name, names = rule.get("name"), rule.get("names")
    if name and names:
        raise ProfileError(f"{where} has both name and names, which runtimes refuse")
    if name is not None and not isinstance(name, str):
        raise ProfileError(f"{where}.name is not a string")
    _check_strings(names, f"{where}.names")
    if not name and names is None:
        raise ProfileError(f"{where} has neither name nor names")
    _check_action(rule.get("action"), f"{where}.action")
    for condition in ("includes", "excludes"):
        if rule.get(condition) is not None and not isinstance(rule[condition], dict):
            raise ProfileError(f"{where}.{condition} is not an object")
        for what in ("arches", "caps"):
            _check_strings((rule.get(condition) or {}).get(what), f"{where}.{condition}.{what}")


# --- allowing ---


def _rules(profile: Profile) -> list[dict[str, Any]]:
    return profile.get("syscalls") or []


def _names(rule: dict[str, Any]) -> list[str]:
    return rule.get("names") or ([rule["name"]] if rule.get("name") else [])


def _is_unconditional(rule: dict[str, Any]) -> bool:
    return not any(rule.get(key) for key in ("args", "includes", "excludes"))


def _denies(rule: dict[str, Any]) -> bool:
    """Whether the rule has another action than allowing for one of the system calls."""
    return rule["action"] not in _ALLOWING and not set(SYSCALLS).isdisjoint(_names(rule))


def _allowed_by(rules: list[dict[str, Any]]) -> bool:
    allowed = {
        name for rule in rules if rule["action"] in _ALLOWING and _is_unconditional(rule) for name in _names(rule)
    }
    return allowed.issuperset(SYSCALLS)


def _new_rules(rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One rule for the system calls; three in a profile of the old form, where a rule has one name."""
    if rules and not any("names" in rule for rule in rules):
        return [{"name": name, "action": "SCMP_ACT_ALLOW", "args": []} for name in SYSCALLS]
    return [{"names": list(SYSCALLS), "action": "SCMP_ACT_ALLOW", "args": []}]


def allow_io_uring(profile: Profile) -> ProfileChange:
    """Return the profile with the three system calls of io_uring allowed for all arguments.

    The function removes them from the rules that deny them, and removes a rule that is left without a name.  Everything
    else stays, in its order.  A profile that allows them already is returned unchanged.
    """
    what = ", ".join(SYSCALLS)
    rules = _rules(profile)
    denials = sum(map(_denies, rules))
    default_allows = profile["defaultAction"] in _ALLOWING
    if not denials and (default_allows or _allowed_by(rules)):
        how = f"by its defaultAction, {profile['defaultAction']}" if default_allows else "by its rules"
        return ProfileChange(profile, False, f"{what} are allowed already, {how}; nothing is changed")

    kept = []
    for rule in rules:
        if not _denies(rule):
            kept.append(rule)
        elif left := [name for name in _names(rule) if name not in SYSCALLS]:
            kept.append({**rule, "names": left})
    # If the default allows them, no rule is added: some versions of runc refuse a rule that repeats the default.
    if not default_allows and not _allowed_by(kept):
        kept += _new_rules(rules)
    taken = f", and taken out of {denials} rule(s) that denied them" if denials else ""
    return ProfileChange({**profile, "syscalls": kept}, True, f"{what} are allowed now{taken}")


# --- the plain form ---


def _version(text: Any, where: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", text) if isinstance(text, str) else None
    if match is None:
        raise ProfileError(f"{where} is not a kernel version: {json.dumps(text)[:60]}")
    return int(match[1]), int(match[2])


def _applies(rule: dict[str, Any], where: str, architecture: str, capabilities: Collection[str]) -> bool:
    """Whether the engine would apply the rule: all its ``includes`` hold, and none of its ``excludes``."""
    included, excluded = rule.get("includes") or {}, rule.get("excludes") or {}
    for name, condition in (("includes", included), ("excludes", excluded)):
        if odd := set(condition) - {"arches", "caps", "minKernel"}:
            raise ProfileError(f"{where}.{name} has a condition that is not known here: {min(odd)}")
    if included.get("arches") and architecture not in included["arches"]:
        return False
    if not set(included.get("caps") or ()) <= set(capabilities):
        return False
    if included.get("minKernel") and _version(included["minKernel"], f"{where}.includes.minKernel") > _OLDEST_KERNEL:
        return False
    if architecture in (excluded.get("arches") or ()) or set(excluded.get("caps") or ()) & set(capabilities):
        return False
    minimum = excluded.get("minKernel")
    return not minimum or _version(minimum, f"{where}.excludes.minKernel") > _OLDEST_KERNEL


def _errno(holder: dict[str, Any], number: str, name: str, where: str) -> dict[str, Any]:
    """The field ``errnoRet`` if there is one; Podman writes the errno's name beside it."""
    if holder.get(number) is not None:
        return {number: holder[number]}
    if holder.get(name):
        raise ProfileError(f"{where} has {name} without {number}, which the plain form cannot express")
    return {}


def resolve(profile: Profile, architecture: str, capabilities: Collection[str] = ()) -> Profile:
    """Return the profile in the plain form of the OCI runtime specification, with its conditions resolved.

    Args:
      profile: a profile in any of the forms.
      architecture: one of :data:`ARCHITECTURES`.
      capabilities: those that the container will be able to hold (its bounding set), as ``CAP_SYS_CHROOT``.  Fewer are
        stricter.

    Raises:
      ProfileError: the profile has a condition that this function cannot resolve.
    """
    plain: Profile = {"defaultAction": profile["defaultAction"]}
    plain |= _errno(profile, "defaultErrnoRet", "defaultErrno", "the profile")
    scmp = ARCHITECTURES[architecture]
    if profile.get("archMap"):
        mapped = next((entry for entry in profile["archMap"] if entry.get("architecture") == scmp), None)
        if mapped is None:
            raise ProfileError(f"its archMap lacks {scmp}")
        plain["architectures"] = [scmp, *(mapped.get("subArchitectures") or ())]
    elif profile.get("architectures"):
        plain["architectures"] = profile["architectures"]
    plain |= {key: profile[key] for key in ("flags", "listenerPath", "listenerMetadata") if profile.get(key)}
    plain["syscalls"] = []
    for number, rule in enumerate(_rules(profile)):
        where = f"syscalls[{number}]"
        if not _names(rule) or not _applies(rule, where, architecture, capabilities):
            continue
        new = {"names": _names(rule), "action": rule["action"], **_errno(rule, "errnoRet", "errno", where)}
        if rule.get("args"):
            new["args"] = rule["args"]
        plain["syscalls"].append(new)
    return plain


# --- writing ---


def render(profile: Profile, like: str = "") -> str:
    """Write a profile as text, indented like ``like``, so that a diff shows the change only."""
    indentation = re.search(r'\n([ \t]+)"', like)
    return json.dumps(profile, indent=indentation[1] if indentation else "\t", ensure_ascii=False) + "\n"

"""The doctor's page: facts and advice as text for a terminal, and as JSON for machines.

The JSON is stable: a key keeps its name and meaning for as long as :data:`SCHEMA` is the same; new keys may be added.  An
unknown value is ``null``, and ``unknown`` maps its dotted path to the reason.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import attrs

from ._advice import Advice
from ._doctor import Choice, Facts, FeatureFacts, Limit, Unknown

SCHEMA = 1
"""The version of the JSON: it is raised when a key goes away or changes its meaning."""

_INDENT = "  "
_SECCOMP = {0: "0 (nothing is filtered)", 1: "1 (strict mode)", 2: "2 (a filter decides)"}
_DISABLED = {0: "0 (allowed)", 1: "1 (for CAP_SYS_ADMIN and io_uring_group only)", 2: "2 (forbidden to all users)"}


# --- JSON ---


def _plain(value: Any, path: str, unknown: dict[str, str]) -> Any:
    """Convert a fact to JSON's types, and add the reason of an unknown value to ``unknown``."""
    if isinstance(value, Unknown):
        unknown[path] = value.reason
        return None
    if attrs.has(type(value)):
        value = {field.name: getattr(value, field.name) for field in attrs.fields(type(value))}
    if isinstance(value, Mapping):
        return {key: _plain(entry, f"{path}.{key}" if path else key, unknown) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry, f"{path}[{number}]", unknown) for number, entry in enumerate(value)]
    return value


def as_json(facts: Facts, advice: tuple[Advice, ...]) -> str:
    """All facts and advice as JSON, for machines."""
    unknown: dict[str, str] = {}
    content = _plain(facts, "", unknown)
    content |= {"advice": [attrs.asdict(line) for line in advice], "unknown": unknown}
    return json.dumps({"schema": SCHEMA, **content}, indent=2)


# --- text ---


def _bytes(count: int | Literal["unlimited"]) -> str:
    if count == "unlimited":
        return "unlimited"
    if count >= 1024 and count % 1024 == 0:
        return f"{count // 1024} KiB"
    return f"{count} bytes"


def _limit(value: Limit | Unknown, *, in_bytes: bool = False) -> str:
    if isinstance(value, Unknown):
        return _unknown(value)
    show = _bytes if in_bytes else str
    return f"soft {show(value.soft)}, hard {show(value.hard)}"


def _unknown(value: Unknown) -> str:
    return f"not known ({value.reason})"


def _show(value: object, names: Mapping[int, str] | None = None) -> str:
    if isinstance(value, Unknown):
        return _unknown(value)
    if isinstance(value, tuple):
        return " to ".join(map(str, value))
    if names is not None and isinstance(value, int) and value in names:
        return names[value]
    return str(value)


def _wrap(text: str, width: int, first: str, later: str) -> str:
    """Wrap a text, but never inside a word, so that a user can copy a path or command as a whole."""
    return textwrap.fill(
        text, width, initial_indent=first, subsequent_indent=later, break_long_words=False, break_on_hyphens=False
    )


def _table(rows: list[tuple[str, str]], width: int) -> Iterator[str]:
    column = max(len(name) for name, _value in rows) + 2
    for name, value in rows:
        yield _wrap(value, width, f"{_INDENT}{name:<{column}}", _INDENT + " " * column)


def _verdict(facts: Facts, width: int) -> Iterator[str]:
    ring, choice = facts.ring, facts.choice
    if ring.runs:
        carried = "connections run on it" if ring.tier == "full" else "connections go over sockets"
        yield _wrap(f"yes, tier {ring.tier}: {carried}", width, "The ring runs here:    ", " " * 23)
    else:
        yield _wrap(f"no: {ring.reason}", width, "The ring runs here:    ", " " * 23)
    if isinstance(choice, Choice):
        on = f"io_uring, tier {choice.tier}" if choice.backend == "io_uring" else "Trio's own I/O manager"
        reason = "" if choice.reason == ring.reason else f": {choice.reason}"
        yield _wrap(on + reason, width, "A run would be on:     ", " " * 23)
    else:
        reason = choice.reason.replace(ring.reason, "the ring cannot run") if ring.reason else choice.reason
        yield _wrap(f"nothing, it would fail: {reason}", width, "A run would be on:     ", " " * 23)


def _cpus(facts: Facts) -> str:
    cpus = facts.cpus
    parts = [_show(cpus.count)]
    if cpus.usable != cpus.count:
        parts.append(f"usable by this process: {_show(cpus.usable)}")
    if isinstance(cpus.quota, Unknown):
        parts.append(f"quota of the control group: {_unknown(cpus.quota)}")
    elif cpus.quota is not None:
        parts.append(f"the control group grants the time of {cpus.quota:g}")
    return "; ".join(parts)


def _machine(facts: Facts) -> list[tuple[str, str]]:
    system, python = facts.system, facts.python
    modules = "there" if python.modules is True else f"not there: {_reason(python.modules)}"
    signs = "; ".join(system.container)
    return [
        ("kernel", f"{system.name} {system.kernel} on {system.architecture}"),
        ("Python", f"{python.implementation} {python.version}"),
        ("packages", f"gain_trio {python.gain_trio}, trio {_show(python.trio)}, cffi {_show(python.cffi)}"),
        ("compiled modules", modules),
        ("CPUs", _cpus(facts)),
        ("container", f"perhaps: {signs}" if signs else "no sign of one"),
    ]


def _reason(value: object) -> str:
    return value.reason if isinstance(value, Unknown) else str(value)


def _state(feature: FeatureFacts, facts: Facts) -> str:
    if feature.used:
        return "used"
    if not facts.ring.runs:
        return "-"
    return "not used" if feature.available else "missing"


def _features(facts: Facts, width: int) -> Iterator[str]:
    column = max(len(feature.name) for feature in facts.features) + 2
    head = f"{'':{column}}Linux  here      what for"
    yield _INDENT + head
    for feature in facts.features:
        first = f"{_INDENT}{feature.name:<{column}}{feature.kernel:<7}{_state(feature, facts):<10}"
        yield _wrap(feature.purpose, width, first, " " * len(first))


def _limits(facts: Facts) -> list[tuple[str, str]]:
    names = {"kernel.io_uring_disabled": _DISABLED, "kernel.io_uring_group": {-1: "-1 (none)"}}
    privileges, capabilities = facts.security.no_new_privs, facts.security.capabilities
    return [
        ("open files (RLIMIT_NOFILE)", _limit(facts.limits["nofile"])),
        ("locked memory (RLIMIT_MEMLOCK)", _limit(facts.limits["memlock"], in_bytes=True)),
        *((name, _show(value, names.get(name))) for name, value in facts.sysctls.items()),
        ("seccomp", _show(facts.security.seccomp, _SECCOMP)),
        (
            "NoNewPrivs",
            {True: "yes", False: "no"}[privileges] if isinstance(privileges, bool) else _unknown(privileges),
        ),
        ("CapEff", _unknown(capabilities) if isinstance(capabilities, Unknown) else f"{capabilities:016x}"),
    ]


def _acceleration(facts: Facts, width: int) -> Iterator[str]:
    pieces = facts.acceleration
    if isinstance(pieces, Unknown):
        yield _wrap(_unknown(pieces), width, _INDENT, _INDENT)
    elif not any(piece.active for piece in pieces) and len({piece.reason for piece in pieces}) == 1:
        yield _wrap(f"none of it: {pieces[0].reason}", width, _INDENT, _INDENT)
    else:
        yield from _table(
            [(piece.name, "in C" if piece.active else f"Trio's: {piece.reason}") for piece in pieces], width
        )


def _advice(advice: tuple[Advice, ...], width: int) -> Iterator[str]:
    if not advice:
        yield f"{_INDENT}None: there is nothing to mend."
    for number, line in enumerate(advice, 1):
        yield _wrap(f"{line.level}: {line.text}", width, f"{_INDENT}{number}. ", _INDENT + "   ")


def as_text(facts: Facts, advice: tuple[Advice, ...], width: int = 80) -> str:
    """The page as text, for a terminal of ``width`` columns."""
    environment = [(name, "not set" if said is None else repr(said)) for name, said in facts.environment.items()]
    return "\n".join(
        [
            *_verdict(facts, width),
            "",
            "Machine",
            *_table(_machine(facts), width),
            "",
            "Kernel features",
            *_features(facts, width),
            "",
            "Limits",
            *_table(_limits(facts), width),
            "",
            "Trio's own hot path in C",
            *_acceleration(facts, width),
            "",
            "Environment",
            *_table(environment, width),
            "",
            "Advice",
            *_advice(advice, width),
        ]
    )

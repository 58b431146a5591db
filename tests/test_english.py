"""The rules of English in CONTRIBUTING.md, as far as single words show whether a text keeps them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from support.processes import ROOT

FOLDERS = ("gain_trio", "_ffi", "docs", "examples", "benchmarks", "tools", "tests")
KINDS = (".py", ".pyi", ".c", ".h", ".md", ".rst")

RULES = {
    "every sentence has an actor": r"\b(?:nobody|somebody|anybody|whoever|whomever)\b",
    "a number is a number": r"\bso many\b",
    "subject, verb, object": r"(?:^|[.:;]\s|\"\"\"|[#*]\s)\s*Of (?:the|a|an|all|those|these|what)\b",
    "no subject is negated": r"\b(?:who|what|which) (?:is|are) (?:no|none)\b",
    "the standard word": r"\b(?:torn|deaf|to be had)\b",
}
LEFT = {
    "every sentence has an actor": 36,
    "a number is a number": 5,
    "subject, verb, object": 8,
    "no subject is negated": 0,
    "the standard word": 1,
}
"""How often a rule is still broken, at most.  These numbers only become smaller."""


def texts() -> Iterator[tuple[str, str]]:
    """Every file that people read, by its name in the project."""
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in KINDS]
    for path in sorted([*paths, *ROOT.glob("*.md")]):
        name = path.relative_to(ROOT).as_posix()
        if name not in ("tests/test_english.py", "gain_trio/_uring.c") and "/." not in name:
            yield name, path.read_text(encoding="utf-8")


def breaches(rule: str) -> list[str]:
    """Where a rule is broken."""
    pattern = re.compile(RULES[rule], re.MULTILINE | re.IGNORECASE if rule != "subject, verb, object" else re.MULTILINE)
    return [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match[0].strip()}"
        for name, text in texts()
        for match in pattern.finditer(text)
    ]


@pytest.mark.parametrize("rule", RULES)
def test_the_rules_are_kept(rule: str) -> None:
    found = breaches(rule)
    assert len(found) <= LEFT[rule], found


@pytest.mark.parametrize("rule", RULES)
def test_pages_examples_and_benchmarks_keep_them_all(rule: str) -> None:
    assert not [
        breach
        for breach in breaches(rule)
        if breach.startswith(("docs/", "examples/", "benchmarks/")) or ".md:" in breach
    ]


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("every sentence has an actor", "Whoever waits is woken."),
        ("a number is a number", "At most so many bytes."),
        ("subject, verb, object", '"""Of the two, the first.'),
        ("subject, verb, object", "It is. Of all errors, this"),
        ("no subject is negated", "what is no address is refused"),
        ("the standard word", "where a ring is not to be had"),
    ],
)
def test_the_words_are_found(rule: str, text: str) -> None:
    assert re.search(RULES[rule], text, re.IGNORECASE)

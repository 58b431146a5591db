"""The rules of English and the glossary in CONTRIBUTING.md, as far as a test can tell whether a text keeps them."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator

import pytest
from support.processes import ROOT

pytestmark = pytest.mark.no_run

FOLDERS = ("gain_trio", "_ffi", "docs", "examples", "benchmarks", "tools", "tests")
KINDS = (".py", ".pyi", ".c", ".h", ".md", ".rst")

RULES = {
    "every sentence has an actor": r"\b(?<!\")(?:nobody|somebody|anybody|everybody|someone|anyone|whoever|whomever)\b",
    "a number is a number": r"\bso many\b",
    "subject, verb, object": r"(?:^|[.:;]\s|\"\"\"|[#*]\s)\s*Of (?:the|a|an|all|those|these|what)\b",
    "no subject is negated": r"\b(?:who|what|which) (?:is|are) (?:no|none)\b",
    "only people tell and hear": r"\b(?:tells|told|hears|heard)\b",
    "the standard word": r"\b(?:torn|deaf|to be had|cannot be had)\b",
}
"""What breaks a rule.  (``"nobody"`` in quotes is a user of the system.)"""
CASE_COUNTS = ("subject, verb, object",)
NOT_IN_TESTS = ("only people tell and hear",)
"""The names of tests are no prose."""


def texts() -> Iterator[tuple[str, str]]:
    """Every file that people read, by its name in the project."""
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in KINDS]
    for path in sorted([*paths, *ROOT.glob("*.md")]):
        name = path.relative_to(ROOT).as_posix()
        if name not in ("tests/test_english.py", "gain_trio/_uring.c") and "/." not in name:
            yield name, path.read_text(encoding="utf-8")


def breaches(rule: str) -> list[str]:
    """Where a rule is broken."""
    pattern = re.compile(RULES[rule], re.MULTILINE if rule in CASE_COUNTS else re.MULTILINE | re.IGNORECASE)
    return [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match[0].strip()}"
        for name, text in texts()
        if not (rule in NOT_IN_TESTS and name.startswith("tests/"))
        for match in pattern.finditer(text)
    ]


@pytest.mark.parametrize("rule", RULES)
def test_the_rules_are_kept(rule: str) -> None:
    assert not breaches(rule)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("every sentence has an actor", "Whoever waits is woken."),
        ("a number is a number", "At most so many bytes."),
        ("subject, verb, object", '"""Of the two, the first.'),
        ("subject, verb, object", "It is. Of all errors, this"),
        ("no subject is negated", "what is no address is refused"),
        ("only people tell and hear", "the socket tells of its error"),
        ("the standard word", "where a ring is not to be had"),
    ],
)
def test_the_words_are_found(rule: str, text: str) -> None:
    assert re.search(RULES[rule], text, re.IGNORECASE)


# --- the glossary ---

ROW = re.compile(
    r"^\| (?P<word>[a-z][a-z -]*) \| (?P<meaning>[^|]+) \| `(?P<path>[^`]+)`: `(?P<name>\w+)` \|$", re.MULTILINE
)


def glossary() -> list[re.Match[str]]:
    """The rows of the glossary's table."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("\n## Glossary\n")[2].partition("\n## ")[0]
    rows = list(ROW.finditer(text))
    assert len(rows) == text.count("\n|") - 2 > 30, (
        "every row but the heading's two has a word, a meaning, a file and a name"
    )
    return rows


def test_a_word_has_one_meaning() -> None:
    words = [row["word"] for row in glossary()]
    assert not [word for word, count in Counter(words).items() if count > 1]


def defines(path: str, name: str) -> bool:
    """Whether a file defines a name: by a class, a function, an assignment, or a type, a struct or a function of C."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".py"):
        pattern = rf"^\s*(?:class|def|async def) {name}\b|^{name}\b(?:: [\w.]+)? ="
    else:
        pattern = rf"^(?:typedef )?(?:struct|enum|union) {name}\b|^}} {name};|^[\w \*]+\b{name}\("
    return re.search(pattern, text, re.MULTILINE) is not None


def test_what_the_glossary_names_is_there() -> None:
    rows = glossary()
    assert not [(row["path"], row["name"]) for row in rows if not defines(row["path"], row["name"])]


def test_a_class_name_is_defined_once() -> None:
    homes = Counter(
        node.name
        for path in (ROOT / "gain_trio").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    )
    assert len(homes) > 100
    assert not [name for name, count in homes.items() if count > 1]

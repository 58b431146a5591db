"""How the tests are laid out: what modules share is in support/, once."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SUPPORT = sorted(TESTS.glob("support/*.py"))
MODULES = sorted(TESTS.glob("test_*.py"))
ONCE = ("echo", "reset", "serving")
"""Helpers that every second module could use: what only resembles one of them has a name of its own."""


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports, late imports included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module


@pytest.mark.parametrize("path", [*SUPPORT, *MODULES], ids=lambda path: str(path.relative_to(TESTS)))
def test_no_module_imports_a_test_module(path: Path) -> None:
    assert not {name for name in imported(path) if name.startswith(("test_", "tests."))}


def test_everything_shared_is_in_support() -> None:
    """Every other file beside the tests could be imported, too, from two places by two names."""
    assert sorted(path.name for path in TESTS.glob("*.py") if path not in MODULES) == ["conftest.py"]


def test_helpers_are_defined_once() -> None:
    homes: dict[str, set[str]] = defaultdict(set)
    for path in [*SUPPORT, *MODULES]:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name in ONCE:
                homes[node.name].add(str(path.relative_to(TESTS)))
    assert homes == {"echo": {"support/servers.py"}, "reset": {"support/sockets.py"}, "serving": {"support/servers.py"}}

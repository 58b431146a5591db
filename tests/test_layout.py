"""The layout of the tests: code that modules share is in support/, once."""

from __future__ import annotations

import ast
import functools
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.markers import may_be_chosen

pytestmark = pytest.mark.no_run

TESTS = Path(__file__).parent
SUPPORT = sorted(TESTS.glob("support/*.py"))
MODULES = sorted(TESTS.glob("test_*.py"))
OPENERS = {
    "connect",
    "EventServer",
    "listen_and_serve",
    "open_datagram_endpoint",
    "open_listeners",
    "serve",
    "serve_datagrams",
}
"""The functions that open connections, listeners and endpoints; ``from_socket`` of their classes does, too."""
PUBLIC = ("gain_trio", "gain_trio.asgi", "gain_trio.callbacks")
"""The modules that have them."""
RING = ("support.rings", "opened")
"""What opens a ring by itself, which the sanitizers are to see, too."""
ONCE = ("echo", "reset", "serving")
"""Helpers that every second module could use: what only resembles one of them has a name of its own."""


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """A module, parsed; most tests here want all of them."""
    return ast.parse(path.read_text())


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports, late imports included."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module


def test_no_module_imports_a_test_module() -> None:
    assert not [
        (path.name, name)
        for path in [*SUPPORT, *MODULES]
        for name in imported(path)
        if any(part.startswith("test_") or part == "tests" for part in name.split("."))
    ]


def test_everything_shared_is_in_support() -> None:
    """Every other file beside the tests could be imported, too, from two places by two names."""
    assert sorted(path.name for path in TESTS.glob("*.py") if path not in MODULES) == ["conftest.py"]


def test_hypothesis_looks_at_no_clock() -> None:
    """Its profile is loaded with ``support.fuzz``, before the tests of a module are made."""
    for path in MODULES:
        names = set(imported(path))
        assert "hypothesis" not in names or "support.fuzz" in names, path.name


def test_helpers_are_defined_once() -> None:
    homes: dict[str, set[str]] = defaultdict(set)
    for path in [*SUPPORT, *MODULES]:
        for node in tree_of(path).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name in ONCE:
                homes[node.name].add(str(path.relative_to(TESTS)))
    assert homes == {"echo": {"support/servers.py"}, "reset": {"support/sockets.py"}, "serving": {"support/servers.py"}}


# --- which modules open connections ---


def imported_names(tree: ast.Module) -> dict[str, tuple[str, str]]:
    """The names that the module's imports bind, with the module that each comes from."""
    return {
        alias.asname or alias.name: (node.module or "", alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def uses(node: ast.AST, opening: set[str]) -> bool:
    """Whether any of these names, also as a fixture's, or ``gain_trio.serve`` and the like, is below the node."""
    return any(
        (isinstance(found, ast.Name) and found.id in opening)
        or (isinstance(found, ast.arg) and found.arg in opening)
        or (isinstance(found, ast.Attribute) and found.attr == "from_socket")
        or (isinstance(found, ast.Attribute) and found.attr in OPENERS and ast.unparse(found.value) in PUBLIC)
        for found in ast.walk(node)
    )


def opening_names(tree: ast.Module, shared: set[tuple[str, str]]) -> set[str]:
    """The names in a module by which it can open connections; ``shared``: the functions of support/ that do."""
    return {
        name
        for name, (module, of) in imported_names(tree).items()
        if (module in PUBLIC and of in OPENERS) or (module, of) in shared
    }


@functools.cache
def shared_openers() -> set[tuple[str, str]]:
    """The functions and classes of support/, and the fixtures of conftest.py, that open connections, by their modules."""
    trees = {f"support.{path.stem}": tree_of(path) for path in SUPPORT}
    trees["conftest"] = tree_of(TESTS / "conftest.py")
    found = {RING}
    while True:
        more = set(found)
        for module, tree in trees.items():
            names = opening_names(tree, found) | {name for home, name in found if home == module}
            more |= {
                (module, node.name)
                for node in tree.body
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and uses(node, names)
            }
        if more == found:
            return found
        found = more


def opens_connections(path: Path, shared: set[tuple[str, str]]) -> bool:
    tree = tree_of(path)
    fixtures = {name for home, name in shared if home == "conftest"}
    return uses(tree, opening_names(tree, shared) | fixtures)


def module_markers(path: Path) -> set[str]:
    """The markers that all tests of a module have: ``pytestmark``."""
    return {
        node.attr
        for statement in tree_of(path).body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "pytestmark"
        for node in ast.walk(statement.value)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pytest.mark"
    }


def test_a_module_that_opens_connections_says_so() -> None:
    """The sanitizers run a module by its marker, so each such module must have it."""
    shared = shared_openers()
    assert {path.name for path in MODULES if "connections" in module_markers(path)} == {
        path.name for path in MODULES if opens_connections(path, shared)
    }


def test_what_opens_connections_is_found() -> None:
    shared = shared_openers()
    assert {
        ("support.servers", "serving"),
        ("support.pairs", "open_pair"),
        ("support.tls_pairs", "connect_tls"),
        ("support.event_servers", "started"),
        ("support.two_ways", "run_with_pair"),
        ("support.workers", "clients_of"),
        ("conftest", "tls_pair"),
    } <= shared
    assert not {home for home, _ in shared} & {"support.processes", "support.sockets"}


# --- what a target imports ---


@pytest.mark.parametrize(
    ("expression", "chosen"),
    [
        ("driver", False),
        ("slow", True),
        ("not slow", True),
        ("connections and not slow", True),
        ("connections and driver", False),
        ("connections or not connections", True),
        ("(driver or slow) and not memory", True),
        ("(connections and not slow) and driver", False),
        ("not connections", False),
        ("not (connections or driver)", False),
        ("slow and not connections", False),
    ],
)
@pytest.mark.parametrize(
    "every", ["pytest.mark.connections", "[pytest.mark.connections]", "[\n    pytest.mark.connections,\n]"]
)
def test_a_module_is_left_out_that_no_test_of_is_chosen(expression: str, chosen: bool, every: str) -> None:
    text = f"pytestmark = {every}\n\n@pytest.mark.slow\ndef test() -> None: ...\n"
    assert may_be_chosen(expression, text) is chosen


def test_no_marker_is_made_where_a_modules_text_does_not_show_it() -> None:
    made = {path.name: re.findall(r"pytest\.mark\.(\w+)", path.read_text()) for path in SUPPORT}
    assert {name for names in made.values() for name in names} <= {"parametrize"}

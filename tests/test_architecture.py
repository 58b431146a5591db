"""A module imports only from the floors below its own, and from its own package."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import gain_trio
from gain_trio import Feature
from gain_trio._kernel import FULL_TIER

PACKAGE = Path(gain_trio.__file__).parent
NAME = "gain_trio"

FLOORS = (
    "_kernel",
    "_ring",
    "_io_manager",
    "_transports",
    "_http",
    "_server",
    "callbacks",
    "asyncio_bridge",
    "_command",
)
"""The packages, from the lowest floor up."""
FACES = ("callbacks", "asyncio_bridge", "_command")
"""The packages of the top floor, which may import what users see."""
COMPILED = ("_uring", "_fastpath")
"""Built from _ffi/, below everything."""
ROOF = ("__init__", "__main__", "pytest_plugin")
"""Modules on top, which nothing on a floor imports but the faces: to them gain_trio is what users see."""

MODULES = sorted(PACKAGE.rglob("*.py"))


class Import:
    """One imported name, in full: ``gain_trio._ring._options`` of ``from ._options import RingOptions``."""

    def __init__(self, module: str, line: int, *, at_runtime: bool) -> None:
        self.module = module
        self.line = line
        self.at_runtime = at_runtime

    def is_in(self, package: str) -> bool:
        """Whether it is this package, or something of it."""
        return self.module == package or self.module.startswith(package + ".")


def is_type_checking(test: ast.expr) -> bool:
    """``if TYPE_CHECKING:``."""
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def walk(node: ast.AST, *, at_runtime: bool = True) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import statement below a node, and whether it is executed."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node, at_runtime
    elif isinstance(node, ast.If) and is_type_checking(node.test):
        for statement in node.body:
            yield from walk(statement, at_runtime=False)
        for statement in node.orelse:
            yield from walk(statement, at_runtime=at_runtime)
    else:
        for child in ast.iter_child_nodes(node):
            yield from walk(child, at_runtime=at_runtime)


def imports(path: Path) -> list[Import]:
    """What a module imports.  ``from package import name`` counts as ``package.name``, which may be a module."""
    package = [NAME, *path.relative_to(PACKAGE).parent.parts]
    found = []
    for node, at_runtime in walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            above = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{prefix}.{alias.name}" for alias in node.names]
        found += [Import(name, node.lineno, at_runtime=at_runtime) for name in names]
    return found


def floor_of(path: Path) -> str:
    """The package or the top module that a file belongs to."""
    first, *_ = path.relative_to(PACKAGE).parts
    return first.removesuffix(".py")


def allowed(path: Path, imported: Import) -> bool:
    """Whether a module may import this from within gain_trio."""
    floor = floor_of(path)
    _name, _dot, rest = imported.module.partition(".")
    target = rest.partition(".")[0]
    if floor in ROOF:
        return True
    if target in COMPILED:  # who may do so at runtime has a test of its own
        return True
    if target in FLOORS:
        return FLOORS.index(target) <= FLOORS.index(floor)
    return floor in FACES  # what is not on a floor is the roof


def where(path: Path, imported: Import) -> str:
    return f"{path.relative_to(PACKAGE.parent)}:{imported.line} imports {imported.module}"


def test_every_module_is_on_a_floor() -> None:
    assert len(MODULES) > len(FLOORS)
    assert {floor_of(path) for path in MODULES} == {*FLOORS, *ROOF}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_below(path: Path) -> None:
    upward = [i for i in imports(path) if i.is_in(NAME) and not allowed(path, i)]
    assert not upward, [where(path, i) for i in upward]


def test_only_the_seam_names_trios_private_parts() -> None:
    seam = PACKAGE / "_io_manager" / "_seam.py"
    private = {
        path: [i for i in imports(path) if i.is_in("trio") and any(p.startswith("_") for p in i.module.split("."))]
        for path in MODULES
    }
    assert any(i.is_in("trio._core") for i in private.pop(seam))
    # A type for a signature does no harm, but the core is the seam's alone even so.
    named = [where(path, i) for path, found in private.items() for i in found if i.at_runtime or i.is_in("trio._core")]
    assert not named


def test_only_the_kernels_door_imports_the_compiled_modules() -> None:
    door = PACKAGE / "_kernel" / "_modules.py"
    users = {
        path
        for path in MODULES
        for i in imports(path)
        if i.at_runtime and any(i.is_in(f"{NAME}.{module}") for module in COMPILED)
    }
    assert users == {door}


def test_attributes_do_not_reach_around_the_seam() -> None:
    """``trio._core.x`` as an attribute names the private parts just as well."""
    seam = PACKAGE / "_io_manager" / "_seam.py"
    found = [
        f"{path.relative_to(PACKAGE.parent)}:{node.lineno}"
        for path in MODULES
        if path != seam
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and isinstance(node.value, ast.Name)
        and node.value.id == "trio"
    ]
    assert not found


@pytest.mark.parametrize(
    ("file", "source", "fine"),
    [
        ("_ring/_x.py", "from gain_trio._kernel import check", True),
        ("_ring/_x.py", "from ._options import RingOptions", True),
        ("_ring/_x.py", "from .._io_manager import run", False),
        ("_ring/_x.py", "import gain_trio._server._serve", False),
        ("_server/_x.py", "from gain_trio import serve", False),
        ("_server/_x.py", "import gain_trio", False),
        ("_kernel/_x.py", "def late():\n    from gain_trio import _transports", False),
        ("_command/_x.py", "import gain_trio", True),
    ],
)
def test_the_rule_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str, source: str, fine: bool) -> None:
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    path = tmp_path / file
    path.parent.mkdir()
    path.write_text(source)
    (imported,) = imports(path)
    assert imported.is_in(NAME)
    assert allowed(path, imported) is fine


# --- which kernel features the tests run without ---

MAKEFILE = Path(__file__).resolve().parent.parent / "Makefile"


def made_of(pattern: str) -> dict[str, list[str]]:
    """The variables of the Makefile that match, and the words in each."""
    found = re.findall(rf"^({pattern}) := (.*)$", MAKEFILE.read_text(), re.MULTILINE)
    return {name: value.replace(",", " ").split() for name, value in found}


def test_the_makefile_tests_without_each_feature() -> None:
    named = made_of("optional|needed")
    assert set(named["needed"]) == {
        feature.name.lower() for feature in Feature if feature in FULL_TIER and feature.name
    }
    assert {*named["optional"], *named["needed"]} == {name.lower() for name in Feature.__members__}


def test_every_two_features_are_tested_in_all_four_ways() -> None:
    """Both used, both unused, and either without the other, by few runs: the first of them leaves nothing unused."""
    rows = [set[str](), *map(set, made_of(r"pair_\d").values())]
    assert len(rows) == 6
    for one, other in itertools.combinations(made_of("optional")["optional"], 2):
        assert {(one in row, other in row) for row in rows} == {(a, b) for a in (False, True) for b in (False, True)}

"""A module imports only from the floors below its own and from its own package, past no face, and in no circle."""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import pytest

import gain_trio
from gain_trio import Connection, Feature
from gain_trio._kernel import FULL_TIER

pytestmark = pytest.mark.no_run

PACKAGE = Path(gain_trio.__file__).parent
NAME = "gain_trio"

FLOORS = (
    "_kernel",
    "_ring",
    "_acceleration",
    "_io_manager",
    "_transports",
    "_http",
    "_server",
    "_callback_base",
    "callbacks",
    "asyncio_bridge",
    "asgi",
    "sockets",
    "logs",
    "testing",
    "_command",
)
"""The packages, from the lowest floor up; two are single modules."""
FACES = ("callbacks", "asyncio_bridge", "asgi", "testing", "_command")
"""The packages of the top floor, which may import what users see."""
COMPILED = ("_uring", "_fastpath", "_trio_core", "_heads")
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


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """A module, parsed; most tests here want all of them."""
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports(path: Path) -> list[Import]:
    """The imports of a module.  ``from package import name`` counts as ``package.name``, which may be a module."""
    package = [NAME, *path.relative_to(PACKAGE).parent.parts]
    found = []
    for node, at_runtime in walk(tree_of(path)):
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


def test_a_file_name_is_of_one_module() -> None:
    names = Counter(path.name for path in MODULES)
    assert {name for name, count in names.items() if count > 1} == {"__init__.py"}


def test_every_module_is_on_a_floor() -> None:
    assert len(MODULES) > len(FLOORS)
    assert {floor_of(path) for path in MODULES} == {*FLOORS, *ROOF}


def test_a_module_imports_only_from_below() -> None:
    inside = [(path, i) for path in MODULES for i in imports(path) if i.is_in(NAME)]
    assert len(inside) > len(MODULES)
    assert not [where(path, i) for path, i in inside if not allowed(path, i)]


SEAMS = (PACKAGE / "_io_manager" / "_seam.py", PACKAGE / "_acceleration" / "_core_seam.py")


def test_only_the_seams_name_trios_private_parts() -> None:
    private = {
        path: [i for i in imports(path) if i.is_in("trio") and any(p.startswith("_") for p in i.module.split("."))]
        for path in MODULES
    }
    for seam in SEAMS:
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
    found = [
        f"{path.relative_to(PACKAGE.parent)}:{node.lineno}"
        for path in MODULES
        if path not in SEAMS
        for node in ast.walk(tree_of(path))
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


# --- faces: what another package uses is what the package's __init__ exports ---


def module_name(path: Path) -> str:
    """``gain_trio._ring._options``; a package's ``__init__`` has the package's name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join([NAME, *(parts[:-1] if parts[-1] == "__init__" else parts)])


@functools.cache
def faces() -> dict[str, set[str]]:
    """The exports of each package: its ``__all__``."""
    found = {}
    for path in MODULES:
        if path.name == "__init__.py":
            exported = [
                statement.value
                for statement in tree_of(path).body
                if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__"
            ]
            found[module_name(path)] = set(ast.literal_eval(exported[0])) if exported else set[str]()
    return found


def foreign_package(path: Path, imported: Import, packages: Iterable[str]) -> str | None:
    """The outermost package on the way to what is imported that the importing module is not in, or None."""
    home = ".".join([NAME, *path.relative_to(PACKAGE).parent.parts])
    parts = imported.module.split(".")
    ways = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    return next((way for way in ways if way in packages and not f"{home}.".startswith(f"{way}.")), None)


def past_the_face(path: Path) -> list[str]:
    """The imports of a module that reach into another package."""
    exported = faces()
    found = []
    for imported in imports(path):
        package = foreign_package(path, imported, exported)
        if package is not None and imported.module != package:
            name = imported.module.removeprefix(f"{package}.")
            if name not in exported[package]:
                found.append(where(path, imported))
    return found


def test_no_import_goes_past_a_packages_face() -> None:
    assert not [breach for path in MODULES for breach in past_the_face(path)]


def test_the_package_itself_exports_few_names() -> None:
    """Those that most programs import.  The others have a module of their own, named for their subject."""
    assert len(gain_trio.__all__) <= 36


# --- circles ---


def circles(edges: Mapping[str, Collection[str]]) -> list[list[str]]:
    """The sets of nodes that reach each other: Tarjan's strongly connected components, of more than one node."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = lowest[node] = len(index)
        stack.append(node)
        for other in edges.get(node, ()):
            if other not in index:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in stack:
                lowest[node] = min(lowest[node], index[other])
        if lowest[node] == index[node]:
            place = stack.index(node)
            if len(stack) - place > 1:
                found.append(sorted(stack[place:]))
            del stack[place:]

    for node in edges:
        if node not in index:
            visit(node)
    return found


def imported_modules(path: Path, modules: Collection[str]) -> set[str]:
    """The modules of gain_trio that a module imports, be it late or for its types; its own package's face is one, too."""
    found = set()
    for imported in imports(path):
        package, _, _name = imported.module.rpartition(".")
        found.add(imported.module if imported.module in modules else package)
    return (found & set(modules)) - {module_name(path)}


def test_no_modules_of_a_package_import_each_other_in_a_circle() -> None:
    """Late imports count, and those for types.

    Between packages the floors hold; the faces import what users see, which imports them.
    """
    floors = {module_name(path): floor_of(path) for path in MODULES}
    edges = {
        module_name(path): [
            other for other in sorted(imported_modules(path, floors)) if floors[other] == floor_of(path)
        ]
        for path in MODULES
    }
    assert sum(map(len, edges.values())) > len(MODULES)
    assert not circles(edges)


C_FILES = sorted((PACKAGE.parent / "_ffi").rglob("*.c"))


def c_text(path: Path) -> str:
    """A C file without comments, strings and preprocessor lines."""
    text = re.sub(r"/\*.*?\*/", " ", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r"//[^\n]*|\"(?:[^\"\\\n]|\\.)*\"", " ", text)
    return re.sub(r"^#(?:[^\n]*\\\n)*[^\n]*$", "", text, flags=re.MULTILINE)


def c_definitions(text: str) -> set[str]:
    """The functions of a file that others can call: formatted as they are, a definition begins its line."""
    return set(re.findall(r"^(?!static\b)[A-Za-z_][\w \*]*?\b(\w+)\([^;{}]*\)\s*\{", text, re.MULTILINE))


def test_no_c_files_call_each_other_in_a_circle() -> None:
    texts = {path.name: c_text(path) for path in C_FILES}
    homes = {function: name for name, text in texts.items() for function in c_definitions(text)}
    assert {"gt_ring_open", "gt_ring_sqe"} <= homes.keys()
    edges = {
        name: sorted({homes[word] for word in set(re.findall(r"\w+", text)) & homes.keys()} - {name})
        for name, text in texts.items()
    }
    assert not circles(edges)


def test_circles_are_found() -> None:
    assert circles({"a": ["b"], "b": ["c"], "c": ["a", "d"], "d": [], "e": ["f"], "f": ["e"]}) == [
        ["a", "b", "c"],
        ["e", "f"],
    ]
    assert not circles({"a": ["b", "c"], "b": ["c"], "c": []})


# --- the contract of a connection ---


HAS_RING = importlib.util.find_spec("gain_trio._fastpath") is not None


def implementations() -> list[type[Connection]]:
    """The classes that connections are of: one fewer in the pure wheel, which has no ring."""
    if HAS_RING:
        importlib.import_module("gain_trio._transports._backends._ring_connection")
    found = [Connection, *Connection.__subclasses__()]
    for one in found:
        found += [other for other in one.__subclasses__() if other not in found]
    return [one for one in found if not inspect.isabstract(one)]


def test_the_contract_is_small() -> None:
    assert len(Connection.__abstractmethods__) <= 20
    assert len(implementations()) >= 3 + HAS_RING


def test_inheritance_is_no_filing_system() -> None:
    """Seven of the classes are Trio's and Python's."""
    assert not [(one, one.__mro__) for one in implementations() if len(one.__mro__) > 10]


PRIMITIVE = ("_wait_change", "_note_change")
"""What connections have for code that is called back."""


def test_no_part_of_the_contract_is_for_callbacks_alone() -> None:
    assert not set(PRIMITIVE) & set(dir(Connection))
    assert not [
        (one, name) for one in implementations() for name in PRIMITIVE if not callable(getattr(one, name, None))
    ]


def used_of_connections(package: str) -> set[str]:
    """The private names of the contract that a package uses."""
    names = {name for name in (*dir(Connection), *PRIMITIVE) if name.startswith("_") and not name.startswith("__")}
    return {
        node.attr
        for path in (PACKAGE / package).rglob("*.py")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and node.attr in names
    }


def test_all_that_only_callbacks_use_of_a_connection_is_one_wait() -> None:
    callbacks = set().union(*map(used_of_connections, ("_callback_base", "callbacks", "asyncio_bridge")))
    assert {"_send_nowait", *PRIMITIVE} <= callbacks
    below = set().union(*map(used_of_connections, ("_transports", "_http", "_server")))
    assert callbacks - below <= set(PRIMITIVE)


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

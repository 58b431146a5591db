"""What a program may replace while the C stands for it: methods of Trio's classes, and names of its modules.

The C of a piece does in one step what Trio's functions do by calling each other.  Trio finds these by name, each time; a
program, a test or a tracing tool that has set another function in such a place expects Trio to call it.  So the C looks
whether all of them are what they were (``guard.c``), and leaves the call to Trio's code when one is not.

Which they are is read from the code of Trio's functions.
"""

from __future__ import annotations

import dis
import enum
import sys
import types
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

import attrs

from . import _core_seam

if TYPE_CHECKING:
    from ._pieces import Piece

_LOADS_GLOBAL: Final = frozenset({"LOAD_GLOBAL", "LOAD_NAME"})
_LOADS_ATTRIBUTE: Final = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_BETWEEN: Final = frozenset({"PUSH_NULL", "CACHE", "PRECALL", "EXTENDED_ARG"})

_MAKERS: Final = ("__new__", "__init__", "__attrs_init__", "__attrs_post_init__")
"""What calling a class calls."""
_MADE_IN_C: Final = frozenset({"Task", "Nursery", "CancelScope", "CancelStatus"})
"""The classes of which the C makes objects without calling them."""
_ONLY_DATA: Final = frozenset({"CancelStatus"})
"""Classes of a layout whose methods the functions do not call, though others of the same name."""

_ROOTS: Final = ("trio", "outcome", "socket", "_weakrefset")
"""The packages that the C stands for.  What it needs of the rest of the standard library, it calls."""

_LOOKED_UP: Final = frozenset({"_r", "_ALLOW_DETERMINISTIC_SCHEDULING"})
"""What the C itself looks up each time."""

_UNUSUAL: Final = frozenset(
    {"CancelReason", "MockClock", "collapse_exception_group", "getaddrinfo", "warn_deprecated", "warnings"}
)
"""What Trio's functions look up only in cases that the C leaves to them."""

OUTCOMES: Final = "outcomes"
"""What every piece does with what a task is resumed with, and parked by: as if it were a piece, for the C."""
_OF_OUTCOMES: Final = (*_core_seam.VALUE_METHODS, "traps:WaitTaskRescheduled.__init__")

Namespace = type | types.ModuleType

_RUN_CODE: Final = (types.FunctionType, types.MethodDescriptorType, property, classmethod, staticmethod)


@attrs.frozen
class Guard:
    """A class or a module, and what its names stand for."""

    namespace: Namespace
    values: dict[str, object]


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for value in code.co_consts:
        if isinstance(value, types.CodeType):
            yield from _codes(value)


def _chains(code: types.CodeType) -> Iterator[tuple[str, ...]]:
    """The global names that the code looks up, each with the attributes that it looks up of it: ``("trio", "socket")``."""
    for one in _codes(code):
        chain: list[str] = []
        for instruction in dis.get_instructions(one):
            if instruction.opname in _LOADS_GLOBAL:
                if chain:
                    yield tuple(chain)
                chain = [instruction.argval]
            elif instruction.opname in _LOADS_ATTRIBUTE and chain:
                chain.append(instruction.argval)
            elif instruction.opname not in _BETWEEN and chain:
                yield tuple(chain)
                chain = []
        if chain:
            yield tuple(chain)


def _in_class(owner: type, name: str) -> object:
    """What the class has by that name, itself or from a base; None if it is nothing that runs code."""
    for base in owner.__mro__:
        if base is not object and name in vars(base):
            found = vars(base)[name]
            return found if isinstance(found, _RUN_CODE) else None
    return None


def _counts(value: object) -> bool:
    """Whether another value in its place is another behaviour: constants and exceptions are what they are."""
    if isinstance(value, type):
        return not issubclass(value, BaseException | enum.Enum)
    return callable(value) or isinstance(value, types.ModuleType | property | classmethod | staticmethod)


def _is_of_trio(namespace: Namespace) -> bool:
    name = namespace.__name__ if isinstance(namespace, types.ModuleType) else namespace.__module__
    return name.partition(".")[0] in _ROOTS


def _is_submodule(place: Namespace, value: object) -> bool:
    return (
        isinstance(place, types.ModuleType)
        and isinstance(value, types.ModuleType)
        and value.__name__.startswith(f"{place.__name__}.")
    )


def _follow(function: types.FunctionType, chain: tuple[str, ...]) -> Iterator[tuple[Namespace, str, object]]:
    """What a chain leads to, from the function's module on."""
    place: object = sys.modules.get(function.__globals__["__name__"])
    for name in chain:
        if isinstance(place, types.ModuleType):
            value = vars(place).get(name)
        elif isinstance(place, type):
            if (value := _in_class(place, name)) is None:  # perhaps its metaclass has it
                place = type(place)
                value = _in_class(place, name)
        else:
            return
        if value is None or not _is_of_trio(place):
            return  # a name of the language's, or gone: then it is not looked up in this Trio
        if not _is_submodule(place, value):  # which is what its package has, and is imported by its name
            yield place, name, value
        place = value


def _owner(path: str) -> type | None:
    """The class in ``"run:Runner.reschedule"``."""
    owner, dot, _name = path.rpartition(".")
    found = _core_seam.find(owner) if dot else None
    return found if isinstance(found, type) else None


def _existing(paths: Iterable[str]) -> list[str]:
    found = []
    for path in paths:
        try:
            _core_seam.find(path.removeprefix("?"))
        except AttributeError:
            continue  # a "?" path, which not every release has: the fingerprint says whether it has to be there
        found.append(path.removeprefix("?"))
    return found


class _Table:
    """Guards in the making."""

    def __init__(self) -> None:
        self.found: dict[Namespace, dict[str, object]] = {}

    def add(self, namespace: Namespace, name: str, value: object) -> None:
        if name not in _LOOKED_UP | _UNUSUAL and value is not None and _counts(value):
            self.found.setdefault(namespace, {})[name] = value

    def add_method(self, owner: type, name: str) -> None:
        self.add(owner, name, _in_class(owner, name))

    def add_path(self, path: str) -> None:
        place, _separator, name = path.rpartition("." if "." in path else ":")
        owner = _owner(path)
        if owner is not None:
            self.add_method(owner, name)
        elif isinstance(module := _core_seam._PLACES.get(place), types.ModuleType):
            self.add(module, name, vars(module).get(name))

    def guards(self) -> tuple[Guard, ...]:
        return tuple(Guard(namespace, values) for namespace, values in self.found.items())


def _without_bases(classes: set[type]) -> list[type]:
    """A class changes with its bases."""
    return [one for one in classes if not any(other is not one and issubclass(other, one) for other in classes)]


def guards(piece: Piece) -> tuple[Guard, ...]:
    """Everything that the functions a piece stands for look up by name, with what it is now.

    Which object a method is looked up in, the code does not say: each class of the piece that has a method of that name
    counts.
    """
    table = _Table()
    stands_for = _existing(piece.stands_for)
    paths = [*(part.path for part in piece.parts if not part.by_layout), *stands_for]
    functions = [_core_seam.function_of(_core_seam.find(path)) for path in paths]
    data = {_core_seam.find(path) for path in piece.layouts if path.rpartition(":")[2] in _ONLY_DATA}
    classes = {owner for path in paths if (owner := _owner(path)) is not None}
    classes |= {found for path in piece.layouts if isinstance(found := _core_seam.find(path), type)} - data
    for function in functions:
        for chain in _chains(function.__code__):
            for namespace, name, value in _follow(function, chain):
                table.add(namespace, name, value)
                if isinstance(value, type) and value.__name__ in _MADE_IN_C:
                    for maker in _MAKERS:
                        table.add_method(value, maker)
    names = {name for function in functions for code in _codes(function.__code__) for name in code.co_names}
    for owner in _without_bases(classes):
        for name in names:
            table.add_method(owner, name)
    for path in (*stands_for, *_existing(piece.watches)):
        table.add_path(path)
    return table.guards()


def guards_of_outcomes() -> tuple[Guard, ...]:
    """The same for :data:`OUTCOMES`."""
    table = _Table()
    for path in _OF_OUTCOMES:
        table.add_path(path)
    return table.guards()


def rows(found: Iterable[Guard]) -> tuple[tuple[object, tuple[str, ...], tuple[object, ...]], ...]:
    """As the C takes them: a module's dict in its place."""
    return tuple(
        (
            guard.namespace if isinstance(guard.namespace, type) else vars(guard.namespace),
            tuple(guard.values),
            tuple(guard.values.values()),
        )
        for guard in found
    )

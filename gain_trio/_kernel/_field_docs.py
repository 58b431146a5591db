"""The docstrings of fields, for ``help()``.

An option is written once, and its docstring is the string below its field.  Editors and Sphinx read it there, in the source.
Python keeps no such string.  What it has for members of a class with ``__slots__`` is a ``__slots__`` that is a dict: its
values are their docstrings.  So the dict reads the source, when the first value is asked for.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import TypeVar, final

C = TypeVar("C", bound=type)


@final
class _FieldDocs(dict[str, str]):
    """The names of the slots, and their docstrings."""

    def __init__(self, cls: type) -> None:
        super().__init__(dict.fromkeys(cls.__dict__["__slots__"], ""))
        self._cls = cls
        self._is_read = False

    def __getitem__(self, name: str) -> str:
        if not self._is_read:
            self._is_read = True
            self.update((field, text) for field, text in _read(self._cls).items() if field in self)
        return super().__getitem__(name)


def _read(cls: type) -> dict[str, str]:
    """What stands below the fields of a class; nothing where there is no source, as in a program without it."""
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):
        return {}
    [definition] = ast.parse(textwrap.dedent(source)).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            text = below.value.value if isinstance(below.value, ast.Constant) else None
            if isinstance(text, str):
                found[field.target.id] = inspect.cleandoc(text)
    return found


def documented_fields(cls: C) -> C:
    """A class decorator, outside of attrs': ``help()`` shows the docstrings of the fields.

    A subclass without a decorator of its own shows those that it inherits.
    """
    cls.__slots__ = _FieldDocs(cls)  # type: ignore[attr-defined]  # every class may have it
    return cls

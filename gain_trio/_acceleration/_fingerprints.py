"""Fingerprints: whether a function of Trio is one that its replacement was tested with.

A fingerprint is a hash of everything that makes a function do what it does: its bytecode, its constants and the names that
it uses, those of the functions within it included.  Line numbers, annotations and docstrings are not in it, so the same body
in another release of Trio has the same one.  The bytecode differs between versions of Python, so each has its own.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
import types
from collections.abc import Iterable, Iterator

_FLAGS = (
    inspect.CO_VARARGS
    | inspect.CO_VARKEYWORDS
    | inspect.CO_GENERATOR
    | inspect.CO_COROUTINE
    | inspect.CO_ITERABLE_COROUTINE
    | inspect.CO_ASYNC_GENERATOR
)

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
"""The versions of Python that share their bytecode."""


def _constant(value: object) -> str:
    if isinstance(value, types.CodeType):
        return f"code {digest(describe(value))}"
    if isinstance(value, frozenset):  # in no certain order
        return f"frozenset {sorted(map(_constant, value))}"
    if isinstance(value, tuple):
        return f"tuple {[_constant(item) for item in value]}"
    return f"{type(value).__name__} {value!r}"


def describe(code: types.CodeType) -> Iterator[str]:
    """What makes the code what it is, line by line."""
    yield f"{code.co_argcount} {code.co_posonlyargcount} {code.co_kwonlyargcount} {code.co_flags & _FLAGS}"
    yield code.co_code.hex()
    yield getattr(code, "co_exceptiontable", b"").hex()
    yield f"{code.co_names} {code.co_varnames} {code.co_freevars} {code.co_cellvars}"
    for number, value in enumerate(code.co_consts):
        is_docstring = number == 0 and isinstance(value, str)
        yield "docstring" if is_docstring else _constant(value)


def digest(lines: Iterable[str]) -> str:
    """A hash of lines, as it is in the table."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@functools.cache
def fingerprint(code: types.CodeType) -> str:
    """The digest of a function's code; kept until :func:`forget_fingerprints`, because pieces have functions in common."""
    return digest(describe(code))


def forget_fingerprints() -> None:
    """Give back what was kept."""
    fingerprint.cache_clear()

"""Trio's function with a call of the C module in it.

The new code is compiled from Trio's own source, with one change: at its beginning, or in the place of one statement, the C
module is called.  It does the ordinary case and says so; for any other the rest of the function, which is Trio's, runs as
ever.  So names, signature, line numbers and the exceptions of everything unusual are Trio's, and only the code object is
another.

That the source is that of the function that is running (a file may have changed on disk) is seen from compiling it
unchanged: it must give the same fingerprint.
"""

from __future__ import annotations
import __future__

import ast
import functools
import inspect
import linecache
import textwrap
import types
from collections.abc import Callable, Iterator
from typing import Any, Final

from ._fingerprints import fingerprint

CALL: Final = "gain_trio_core"
"""The local variable that has the C function, and the constant that is replaced by it."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
Change = Callable[[Function, list[ast.stmt]], None]
"""Changes a function; the second argument are the statements to be put in."""


class CannotRewrite(Exception):
    """There is no new code for a function; the message says why."""


def _parse(source: str) -> list[ast.stmt]:
    return ast.parse(textwrap.dedent(source)).body


def _is_mark(statement: ast.stmt) -> bool:
    """``locals()[...] = True``, with which Trio before 0.28 protects a function from KeyboardInterrupt: stays first."""
    return (
        isinstance(statement, ast.Assign)
        and isinstance(statement.targets[0], ast.Subscript)
        and isinstance(statement.targets[0].value, ast.Call)
        and isinstance(statement.targets[0].value.func, ast.Name)
        and statement.targets[0].value.func.id == "locals"
    )


def _beginning(function: Function) -> int:
    """Where the function's own work begins: after the docstring and the mark."""
    start = 1 if ast.get_docstring(function, clean=False) is not None else 0
    if start < len(function.body) and _is_mark(function.body[start]):
        start += 1
    return start


def before_all(function: Function, inserted: list[ast.stmt]) -> None:
    """The call comes first."""
    start = _beginning(function)
    function.body[start:start] = inserted


def instead_of_first(function: Function, inserted: list[ast.stmt]) -> None:
    """The call is made in the place of the first statement."""
    start = _beginning(function)
    function.body[start : start + 1] = inserted


def instead_of_batch(function: Function, inserted: list[ast.stmt]) -> None:
    """The call is made in the place of ``while batch:``."""
    setting, *call = inserted
    found: list[tuple[list[ast.stmt], int]] = [
        (body, number)
        for node in ast.walk(function)
        for body in (getattr(node, "body", None),)
        if isinstance(body, list)
        for number, statement in enumerate(body)
        if isinstance(statement, ast.While) and isinstance(statement.test, ast.Name) and statement.test.id == "batch"
    ]
    if len(found) != 1:
        raise CannotRewrite("its loop over a batch is not to be found")
    ((body, number),) = found
    body[number : number + 1] = call
    before_all(function, [setting])


def _source(function: types.FunctionType) -> tuple[str, int]:
    try:
        lines, first = inspect.getsourcelines(function.__code__)
    except (OSError, TypeError, SyntaxError, IndentationError) as error:
        raise CannotRewrite(f"its source is not to be had ({error})") from error
    return textwrap.dedent("".join(lines)), first


def _strip(function: Function) -> None:
    """Without annotations, which belong to the function object and not to its code."""
    function.returns = None
    arguments = function.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg):
        if argument is not None:
            argument.annotation = None


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    for value in code.co_consts:
        if isinstance(value, types.CodeType):
            yield value
            yield from _codes(value)


def _future_flags(code: types.CodeType) -> int:
    known = 0
    for name in __future__.all_feature_names:
        known |= getattr(__future__, name).compiler_flag
    return code.co_flags & known


@functools.cache
def _imported_names(file: str) -> tuple[str, ...]:
    """The names that a module imports.  Python compiles a call of an attribute of one differently (3.11 and 3.12)."""
    lines = linecache.getlines(file)
    try:
        module = ast.parse("".join(lines))
    except SyntaxError as error:
        raise CannotRewrite(f"its module is not to be understood ({error})") from error
    names: set[str] = set()
    todo: list[ast.AST] = [module]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            names.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.expr):
            todo.extend(ast.iter_child_nodes(node))
    return tuple(sorted(names - {"*"}))


def _surround(definition: Function, function: types.FunctionType) -> ast.stmt:
    """Put the definition into classes and functions like those around Trio's own.

    They decide about closures, and about the names of functions within it, which are among the constants before Python 3.11.
    """
    result: ast.stmt = definition
    around = function.__qualname__.split(".")[:-1]
    free = list(function.__code__.co_freevars)
    while around:
        name = around.pop()
        if name != "<locals>":
            (outer,) = ast.parse(f"class {name}: pass").body
            assert isinstance(outer, ast.ClassDef)
            outer.body = [result]
        else:
            (outer,) = ast.parse(f"def {around.pop()}(): pass").body
            assert isinstance(outer, ast.FunctionDef)
            names, free = free, []
            variables = ast.parse(" = ".join([*names, "None"])).body if names else []
            outer.body = [*variables, result]
        result = outer
    return result


def _compile(function: types.FunctionType, change: Change | None, inserted: str) -> types.CodeType:
    original = function.__code__
    source, first = _source(function)
    try:
        (definition,) = ast.parse(source).body
    except (SyntaxError, ValueError) as error:
        raise CannotRewrite(f"its source is not to be understood ({error})") from error
    if not isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef):
        raise CannotRewrite("its source is not that of a function")
    ast.increment_lineno(definition, first - 1)
    _strip(definition)
    if change is not None:
        statements = _parse(f'{CALL} = "{CALL}"\n' + inserted)
        anchor = definition.body[min(_beginning(definition), len(definition.body) - 1)]
        for statement in statements:
            for node in ast.walk(statement):
                ast.copy_location(node, anchor)
        change(definition, statements)
    imported = [ast.alias(name=name) for name in _imported_names(original.co_filename)]
    body = [_surround(definition, function)]
    if imported:
        body = [ast.Import(names=imported), *body]
    module = ast.fix_missing_locations(ast.Module(body=body, type_ignores=[]))
    flags = _future_flags(original)
    compiled = compile(module, original.co_filename, "exec", flags=flags, dont_inherit=True)
    return next(code for code in _codes(compiled) if code.co_name == original.co_name)


def rewrite(function: types.FunctionType, change: Change, inserted: str, called: object) -> types.CodeType:
    """New code for ``function``, in which ``inserted`` calls ``called`` by the name ``gain_trio_core``.

    Raises:
      CannotRewrite: its source is not there, or is not what is running.
    """
    original = function.__code__
    if fingerprint(_compile(function, None, "")) != fingerprint(original):
        raise CannotRewrite("its source on disk is not what is running")
    code = _compile(function, change, inserted)
    constants: list[Any] = [called if value == CALL else value for value in code.co_consts]
    others: dict[str, Any] = {"co_consts": tuple(constants), "co_name": original.co_name}
    qualified = getattr(original, "co_qualname", None)
    if qualified is not None:  # since Python 3.11
        others["co_qualname"] = qualified
    if code.co_freevars != original.co_freevars:
        raise CannotRewrite("its closure would be another one")
    return code.replace(**others)

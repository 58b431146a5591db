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
import linecache
import types
from collections.abc import Callable, Iterator
from typing import Any, Final

import attrs

from ._fingerprints import fingerprint

CALL: Final = "gain_trio_core"
"""The local variable that has the C function, and the constant that is replaced by it."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
Change = Callable[[Function, list[ast.stmt]], None]
"""Changes a function; the second argument are the statements to be put in."""


class CannotRewrite(Exception):
    """There is no new code for a function; the message says why."""


def _parse(source: str) -> list[ast.stmt]:
    return ast.parse(source).body


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


def around_first(function: Function, inserted: list[ast.stmt]) -> None:
    """The call is made before the first statement, which takes the place of ``pass`` in what is inserted."""
    start = _beginning(function)
    (choice,) = [
        node
        for statement in inserted
        if isinstance(statement, ast.If)
        for node in ast.walk(statement)
        if isinstance(node, ast.If) and isinstance(node.body[0], ast.Pass)
    ]
    choice.body = [function.body[start]]
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


@attrs.frozen
class _ParsedModule:
    """What is needed of a module's source."""

    imported: tuple[str, ...]
    """The names that it imports.  Python 3.11 and 3.12 compile a call of an attribute of one differently."""
    functions: dict[tuple[str, int], Function]
    """By name and first line, which is that of the first decorator."""


@functools.cache
def _module(file: str) -> _ParsedModule:
    """Parse it; kept until :func:`forget_sources`."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError) as error:
        raise CannotRewrite(f"its module is not to be understood ({error})") from error
    imported: set[str] = set()
    functions: dict[tuple[str, int], Function] = {}
    todo: list[tuple[ast.AST, bool]] = [(tree, True)]
    while todo:
        node, at_top = todo.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            if at_top:
                imported.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            functions[node.name, first] = node
        inside = at_top and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        todo += [
            (child, inside) for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt | ast.excepthandler)
        ]
    return _ParsedModule(tuple(sorted(imported - {"*"})), functions)


def forget_sources() -> None:
    """Give back what was parsed."""
    _module.cache_clear()
    _compile_both.cache_clear()


def _surround(definition: Function, original: types.CodeType, qualified: str) -> ast.stmt:
    """Put the definition into classes and functions like those around Trio's own.

    They decide about closures, and about the names of functions within it, which are among the constants before Python 3.11.
    """
    result: ast.stmt = definition
    around = qualified.split(".")[:-1]
    free = list(original.co_freevars)
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


def _compile(
    definition: Function, original: types.CodeType, qualified: str, imported: tuple[str, ...]
) -> types.CodeType:
    body = [_surround(definition, original, qualified)]
    if imported:
        body = [ast.Import(names=[ast.alias(name=name) for name in imported]), *body]
    module = ast.fix_missing_locations(ast.Module(body=body, type_ignores=[]))
    flags = _future_flags(original)
    compiled = compile(module, original.co_filename, "exec", flags=flags, dont_inherit=True)
    return next(code for code in _codes(compiled) if code.co_name == original.co_name)


@functools.cache
def _compile_both(original: types.CodeType, qualified: str, change: Change, inserted: str) -> types.CodeType:
    """The function's source, compiled as it is to see that it is the right one, and then with the change.

    Functions that share their code share what comes of it, and one that two pieces change has the same change for both.
    """
    module = _module(original.co_filename)
    definition = module.functions.get((original.co_name, original.co_firstlineno))
    if definition is None:
        raise CannotRewrite("its source is not available")
    _strip(definition)
    if fingerprint(_compile(definition, original, qualified, module.imported)) != fingerprint(original):
        raise CannotRewrite("its source on disk is not what is running")
    statements = _parse(f'{CALL} = "{CALL}"\n' + inserted)
    anchor = definition.body[min(_beginning(definition), len(definition.body) - 1)]
    for statement in statements:
        for node in ast.walk(statement):
            ast.copy_location(node, anchor)
    change(definition, statements)
    return _compile(definition, original, qualified, module.imported)


def rewrite(function: types.FunctionType, change: Change, inserted: str, called: object) -> types.CodeType:
    """New code for ``function``, in which ``inserted`` calls ``called`` by the name ``gain_trio_core``.

    Raises:
      CannotRewrite: its source is not there, or is not what is running.
    """
    original = function.__code__
    code = _compile_both(original, function.__qualname__, change, inserted)
    constants: list[Any] = [called if value == CALL else value for value in code.co_consts]
    others: dict[str, Any] = {"co_consts": tuple(constants), "co_name": original.co_name}
    qualified = getattr(original, "co_qualname", None)
    if qualified is not None:  # since Python 3.11
        others["co_qualname"] = qualified
    if code.co_freevars != original.co_freevars:
        raise CannotRewrite("its closure would be another one")
    return code.replace(**others)

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
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, Final

import attrs

from ._fingerprints import fingerprint, forget_fingerprints

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


def before_batch(function: Function, inserted: list[ast.stmt]) -> None:
    """The call is made before ``while batch:``, which then finds what is left."""
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
    body[number:number] = call
    before_all(function, [setting])


def before_last(function: Function, inserted: list[ast.stmt]) -> None:
    """The call is made before the last statement."""
    setting, *call = inserted
    function.body[-1:-1] = call
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
            functions[node.name, min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])] = node
        inside = at_top and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        todo += [
            (child, inside) for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt | ast.excepthandler)
        ]
    return _ParsedModule(tuple(sorted(imported - {"*"})), functions)


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip())


def _end_of(lines: list[str], first: int) -> int:
    """Where the function that begins in line ``first`` ends.

    It ends before the first line that is indented no further than its ``def``, but for the end of the list of its arguments.
    """
    margin = _indentation(lines[first])
    end = first
    while end < len(lines) and not lines[end].lstrip().startswith(("def ", "async def ")):
        end += 1
    end += 1
    while end < len(lines):
        line = lines[end].lstrip()
        if line and not line.startswith(("#", ")", "]")) and _indentation(lines[end]) <= margin:
            break
        end += 1
    return end


def _parse_alone(original: types.CodeType) -> Function | None:
    """The function's source, parsed without its module, which takes a tenth of the time; None if that is not possible."""
    lines = linecache.getlines(original.co_filename)
    first = original.co_firstlineno - 1
    if not 0 <= first < len(lines):
        return None
    text = "".join(lines[first : _end_of(lines, first)])
    try:
        tree = ast.parse("\n" * (first - 1) + "if 1:\n" + text if _indentation(text) else "\n" * first + text)
    except (SyntaxError, ValueError):
        return None
    found = tree.body[0].body if isinstance(tree.body[0], ast.If) else tree.body
    definition = found[0]
    is_it = isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef) and definition.name == original.co_name
    return definition if is_it and len(found) == 1 else None  # type: ignore[return-value]  # a function, as was seen


def _names_in(code: types.CodeType) -> Iterator[str]:
    """Every name that the code uses: its compiler takes a variable for what is imported if it is called the same."""
    for one in (code, *_codes(code)):
        yield from (*one.co_names, *one.co_varnames, *one.co_freevars, *one.co_cellvars)


def _definitions(function: types.FunctionType) -> Iterator[tuple[Function, tuple[str, ...]]]:
    """Parse the function's source, with the names that its module imports: as two guesses have it, then for certain."""
    original = function.__code__
    names = set(_names_in(original)) & function.__globals__.keys()
    modules = {name for name in names if isinstance(function.__globals__[name], types.ModuleType)}
    for imported in (modules, names):
        definition = _parse_alone(original)
        if definition is not None:
            yield definition, tuple(sorted(imported))
    module = _module(original.co_filename)
    definition = module.functions.get((original.co_name, original.co_firstlineno))
    if definition is None:
        raise CannotRewrite("its source is not available")
    yield definition, module.imported


_made: dict[tuple[types.CodeType, Change, str], types.CodeType] = {}
"""What was made of a code object with a change; until :func:`forget_sources`."""


def forget_sources() -> None:
    """Give back what was parsed."""
    _module.cache_clear()
    _made.clear()
    forget_fingerprints()


_LOCATION: Final[dict[str, Any]] = {"lineno": 1, "col_offset": 0, "end_lineno": 1, "end_col_offset": 0}
_TYPE_PARAMETERS: Final[dict[str, Any]] = {"type_params": []} if sys.version_info >= (3, 12) else {}


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
            result = ast.ClassDef(
                name=name, bases=[], keywords=[], body=[result], decorator_list=[], **_TYPE_PARAMETERS, **_LOCATION
            )
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
        names = [ast.alias(name=name, asname=None, **_LOCATION) for name in imported]
        body = [ast.Import(names=names, **_LOCATION), *body]
    module = ast.Module(body=body, type_ignores=[])
    flags = _future_flags(original)
    compiled = compile(module, original.co_filename, "exec", flags=flags, dont_inherit=True)
    return next(code for code in _codes(compiled) if code.co_name == original.co_name)


def _qualified_name(function: types.FunctionType) -> str:
    """Name the code: ``functools.wraps`` gives a function the name of another one."""
    code = function.__code__
    if function.__name__ == code.co_name:
        return function.__qualname__
    return getattr(code, "co_qualname", f"around.<locals>.{code.co_name}")  # since Python 3.11


def _find_source(function: types.FunctionType) -> tuple[Function, tuple[str, ...]]:
    """The function's source, which makes the code that is running, and the names that its module imports."""
    expected = fingerprint(function.__code__)
    for definition, imported in _definitions(function):
        _strip(definition)
        if fingerprint(_compile(definition, function.__code__, _qualified_name(function), imported)) == expected:
            return definition, imported
    raise CannotRewrite("its source on disk is not what is running")


def _make(function: types.FunctionType, change: Change, inserted: str) -> types.CodeType:
    """Compile the function's source as it is, to see that it is the right one, and then with the change."""
    definition, imported = _find_source(function)
    statements = _parse(f'{CALL} = "{CALL}"\n' + inserted)
    anchor = definition.body[min(_beginning(definition), len(definition.body) - 1)]
    for statement in statements:
        for node in ast.walk(statement):
            ast.copy_location(node, anchor)
    change(definition, statements)
    return _compile(definition, function.__code__, _qualified_name(function), imported)


def rewrite(function: types.FunctionType, change: Change, inserted: str, called: object) -> types.CodeType:
    """New code for ``function``, in which ``inserted`` calls ``called`` by the name ``gain_trio_core``.

    Functions that share their code share what comes of it, and one that two pieces change has the same change for both.

    Raises:
      CannotRewrite: its source is not there, or is not what is running.
    """
    original = function.__code__
    key = original, change, inserted
    code = _made.get(key)
    if code is None:
        code = _made[key] = _make(function, change, inserted)
    constants: list[Any] = [called if value == CALL else value for value in code.co_consts]
    others: dict[str, Any] = {"co_consts": tuple(constants), "co_name": original.co_name}
    qualified = getattr(original, "co_qualname", None)
    if qualified is not None:  # since Python 3.11
        others["co_qualname"] = qualified
    if code.co_freevars != original.co_freevars:
        raise CannotRewrite("its closure would be another one")
    return code.replace(**others)

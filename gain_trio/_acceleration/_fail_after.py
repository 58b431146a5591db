"""What ``trio.fail_after`` returns while the piece is in: contextlib's context manager, without its generator.

``trio.fail_after`` is a generator made into a context manager by ``contextlib.contextmanager``.  To make the generator and
resume it twice costs more than all else of it, and shows only when something is raised.  So ``__enter__`` and ``__exit__``
are in C (fail_after.c), enter Trio's scope and leave it.  In any other case :func:`become_plain` makes the generator, in the
state in which it would be, and contextlib's methods go on with that: it raises the exceptions, and is in their tracebacks.
"""

from __future__ import annotations

import contextlib
import operator
import types
from collections.abc import Generator
from typing import Any

import trio

_Plain: Any = contextlib._GeneratorContextManager
_ATTRIBUTES: Any = next(vars(base)["__dict__"] for base in _Plain.__mro__ if "__dict__" in vars(base))
"""What Python has for the ``__dict__`` of such an object."""


class FailAfter(_Plain):  # type: ignore[misc]  # of the standard library, whose parameters differ between versions
    """To a program that looks at it, one of contextlib's: by ``isinstance``, ``repr``, attributes, and as a decorator."""

    __slots__ = ("_arguments", "_function", "_keywords", "_scope")
    __doc__ = trio.fail_after.__doc__

    # Set by the C: Trio's generator function and its arguments, and the scope while it is entered.  When it was left there
    # are no arguments any more, and when it has become plain there is no function.
    _function: types.FunctionType | None
    _arguments: tuple[Any, ...] | None
    _keywords: dict[str, Any] | None
    _scope: trio.CancelScope | None

    def __init__(self, func: Any, args: Any, kwds: Any) -> None:
        self._function = None
        super().__init__(func, args, kwds)

    @property  # type: ignore[misc]  # isinstance() and pickle ask for it, and it is never set
    def __class__(self) -> Any:
        return _Plain

    def _recreate_cm(self) -> Any:
        return _Plain(self.func, self.args, self.kwds)

    def __getattr__(self, name: str) -> Any:
        if name in ("gen", "func", "args", "kwds"):
            become_plain(self)
        return object.__getattribute__(self, name)

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]  # vars() asks for it, and Python itself does not
        become_plain(self)
        attributes: dict[str, Any] = _ATTRIBUTES.__get__(self)
        return attributes

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle or copy it as one of contextlib's, whose generator cannot be pickled."""
        plain = object.__new__(_Plain)
        plain.gen = self.gen  # first, as contextlib sets it: the error is that of what is pickled first
        vars(plain).update(vars(self))
        return plain.__reduce_ex__(protocol)


FailAfter.__name__ = _Plain.__name__
FailAfter.__qualname__ = _Plain.__qualname__
FailAfter.__module__ = _Plain.__module__


class _Entered:
    """Stands in Trio's generator for a scope that is entered already, and adds no frame to what its exit raises."""

    def __init__(self, scope: trio.CancelScope) -> None:
        self._scope = scope

    def _same(self) -> trio.CancelScope:
        return self._scope

    __enter__ = property(operator.attrgetter("_same"))
    __exit__ = property(operator.attrgetter("_scope.__exit__"))


def _entered(
    function: types.FunctionType, args: tuple[Any, ...], kwds: dict[str, Any], scope: trio.CancelScope
) -> Generator[trio.CancelScope, None, None]:
    """Trio's generator, in its block, with this scope."""
    names = {**function.__globals__, "move_on_after": lambda *_args, **_kwds: _Entered(scope)}
    twin = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    twin.__kwdefaults__ = function.__kwdefaults__
    generator: Generator[trio.CancelScope, None, None] = twin(*args, **kwds)
    next(generator)
    return generator


def become_plain(manager: Any) -> None:
    """Give the manager what contextlib's own would have by now."""
    function = manager._function
    if function is None:
        return
    args, kwds, scope = manager._arguments, manager._keywords, manager._scope
    if args is None:
        generator = function(0)
        generator.close()
    elif scope is None:
        generator = function(*args, **kwds)
        manager.func, manager.args, manager.kwds = function, args, kwds
    else:
        generator = _entered(function, args, kwds, scope)
    # From here on the generator has the scope, and leaves it if nothing else works any more.
    manager._function = manager._arguments = manager._keywords = manager._scope = None
    manager.gen = generator
    manager.__doc__ = function.__doc__


class TimeoutSeam:
    """What the C of timeouts needs."""

    def __init__(self) -> None:
        # Where fail_after is no context manager itself, in Trio before 0.27, there is nothing that makes one of these.
        self.fail_after_function = getattr(trio.fail_after, "__wrapped__", None)
        self.fail_after_type = FailAfter
        self.become_plain = become_plain
        self.plain_enter = _Plain.__enter__
        self.plain_exit = _Plain.__exit__

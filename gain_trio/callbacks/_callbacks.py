"""The callbacks of an event handler, as they are found once, when a server starts."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final, final

import attrs

from gain_trio._server import why_not_called


@final
@attrs.frozen
class Callback:
    """One of them."""

    function: Callable[..., Any]
    is_async: bool
    is_overridden: bool

    async def __call__(self, *arguments: object) -> None:
        """Call it, and await it if it is to be awaited."""
        if self.is_async:
            await self.function(*arguments)
        else:
            self.function(*arguments)


@final
@attrs.frozen
class Callbacks:
    """All of a handler's.  Pickling makes a copy that is found anew, of the copy of the handler."""

    handler: object
    base: type
    on_start: Callback
    on_accept: Callback
    on_read: Callback
    on_write: Callback
    on_close: Callback

    def __reduce__(self) -> tuple[Any, ...]:
        return Callbacks.of, (self.handler, self.base)

    @classmethod
    def of(cls, handler: object, base: type) -> Callbacks:
        """Find out what there is.

        Args:
          handler: the event handler.
          base: the class whose callbacks do nothing: a handler that has one of those does not override it.

        Raises:
          TypeError: it is a class, it lacks a callback, or one of them is no function that can be called back, or takes
            other arguments.
        """
        if isinstance(handler, type):
            raise TypeError(
                f"the event handler is an object, and {handler.__name__} is a class: write {handler.__name__}()"
            )
        return cls(
            handler, base, *(_callback(handler, base, name, arguments) for name, arguments in _ARGUMENTS.items())
        )


_ARGUMENTS: Final = {
    "on_start": ("server",),
    "on_accept": ("conn",),
    "on_read": ("conn", "n"),
    "on_write": ("conn", "n"),
    "on_close": ("conn", "err"),
}
"""What the callbacks are called with."""


def _callback(handler: object, base: type, name: str, arguments: tuple[str, ...]) -> Callback:
    function = getattr(handler, name, None)
    if not callable(function):
        raise TypeError(f"the event handler {handler!r} has no {name}(); subclass gain_trio.callbacks.EventHandler")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise TypeError(f"{name}() of {handler!r} is a generator; a callback is a def or an async def without yield")
    why = why_not_called(function, arguments)
    if why is not None:
        raise TypeError(f"{name}() of {handler!r} must be a def {name}(self, {', '.join(arguments)}), and {why}")
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - of an object that is called it is what has to be looked at
    )
    is_overridden = getattr(function, "__func__", None) is not getattr(base, name)
    return Callback(function, is_async, is_overridden)

"""What may be wrong with an argument, found when a server is made and not with its first client.

A handler is refused if it certainly cannot work: a ``def`` that returns nothing to be awaited, or a function that cannot be
called with the arguments that it gets.  What cannot be known is accepted: a lambda, a function compiled by Cython, an
object whose ``__call__`` has no signature, a ``def`` that wraps an async function or says that it returns something.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, Final

from gain_trio._transports import checked_seconds

ELSEWHERE: Final = (
    "callbacks are served by gain_trio.callbacks.serve(MyEventHandler(), address), a class in the shape of asyncio.Protocol "
    "by gain_trio.serve(gain_trio.asyncio_bridge.ProtocolHandler(MyProtocol), address)"
)


def check_handler(handler: object) -> None:
    """Check that ``handler`` can be a handler of connections: an async function of one connection.

    Raises:
      TypeError: it cannot; says why not, and who serves callbacks.
    """
    why = _why_not(handler, ("connection",))
    if why is not None:
        raise TypeError(f"the handler must be an async function of one connection, and {why}; {ELSEWHERE}")


def check_datagram_handler(handler: object) -> None:
    """The same for a handler of datagrams."""
    why = _why_not(handler, ("data", "address", "endpoint"))
    if why is not None:
        raise TypeError(f"the handler must be an async function of data, address and endpoint, and {why}")


def _why_not(handler: object, names: tuple[str, ...]) -> str | None:
    """Why it cannot be called with these arguments and awaited; None if it can, or if that is not known."""
    if not callable(handler):
        return f"{handler!r} cannot be called"
    if is_class_of_callbacks(handler):
        return f"{handler!r} is a class, which makes nothing to be awaited"
    function = _function_of(handler)
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        return f"{handler!r} has a yield in it, so it is a generator"
    if not (inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(function) or _may_be_async(function)):
        return f"{handler!r} is not an async function: write async def"
    return why_not_called(handler, names)


def why_not_called(function: Callable[..., object], names: tuple[str, ...]) -> str | None:
    """Why it cannot be called with these arguments; None if it can, or if that is not known."""
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # a function of an extension module need not have one
        return None
    try:
        signature.bind(*names)
    except TypeError as error:
        return f"{function!r} takes {signature}, and is called with ({', '.join(names)}): {error}"
    return None


def _function_of(handler: Any) -> Any:
    """The function of Python's behind partials, methods, wrappers and objects that can be called; or what there is."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    if not isinstance(handler, types.FunctionType | types.MethodType | type):
        call = getattr(type(handler), "__call__", None)  # noqa: B004 - it is called, and this is what is run then
        if isinstance(call, types.FunctionType):
            handler = call
    return inspect.unwrap(getattr(handler, "__func__", handler))


def _may_be_async(function: Any) -> bool:
    """Whether what it returns might be awaited, of a function that is not an async one."""
    if not isinstance(function, types.FunctionType) or function.__name__ == "<lambda>":
        return True
    return function.__annotations__.get("return") not in (None, "None")


def is_class_of_callbacks(handler: object) -> bool:
    """Whether it is a class that makes nothing to be awaited, such as an asyncio.Protocol."""
    return isinstance(handler, type) and not hasattr(handler, "__await__")


def check_timeout(name: str, seconds: float) -> float:
    """``seconds``, if it is a length of time; 0 is one, and so is ``math.inf``.

    Raises:
      TypeError: it is not a number.
      ValueError: it is nan, or negative.
    """
    return checked_seconds(name, seconds)

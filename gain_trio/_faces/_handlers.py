"""Handlers by name, for the command line."""

from __future__ import annotations

import importlib
from typing import cast

from gain_trio._server._consumer import Handler
from gain_trio._transports import Connection


async def echo(connection: Connection) -> None:
    """Send back what comes."""
    while data := await connection.receive():
        await connection.send(data)


BUILT_IN: dict[str, Handler] = {"echo": echo}


def find_handler(name: str) -> Handler:
    """A built-in handler, or ``package.module:function``.

    Raises:
      ValueError: there is none by this name; says what there is.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise ValueError(f"unknown handler {name!r}: it is {', '.join(BUILT_IN)}, or package.module:function")
    try:
        target: object = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"cannot import the handler's module {module_name!r}: {error}") from error
    for part in attribute.split("."):
        try:
            target = getattr(target, part)
        except AttributeError:
            raise ValueError(f"the module {module_name!r} has no {attribute!r}") from None
    if not callable(target):
        raise ValueError(f"{name!r} is no function")
    return cast("Handler", target)

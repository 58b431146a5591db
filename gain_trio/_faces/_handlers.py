"""Handlers by name, for the command line."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterable
from typing import Any, cast

import trio

from gain_trio._server._consumer import Handler
from gain_trio._transports import Connection


async def echo(connection: Connection) -> None:
    """Send back what comes, until it ends or the server drains."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_when_draining, connection)
        with contextlib.suppress(trio.TooSlowError):
            while data := await connection.receive():
                await connection.send(data)
        nursery.cancel_scope.cancel()


async def _end_when_draining(connection: Connection) -> None:
    await connection.draining.wait()
    connection.read_deadline = trio.current_time()  # what has arrived is never too late


BUILT_IN: dict[str, Handler] = {"echo": echo}


def find_object(name: str, what: str, built_in: Iterable[str]) -> Any:
    """What ``package.module:name`` stands for.

    Args:
      name: that.
      what: what it is to be, for messages.
      built_in: what could have been said instead.

    Raises:
      ValueError: there is none by this name; says what there is.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        form = "function" if what == "handler" else "name"
        raise ValueError(f"unknown {what} {name!r}: it is {', '.join(built_in)}, or package.module:{form}")
    try:
        target: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"cannot import the {what}'s module {module_name!r}: {error}") from error
    for part in attribute.split("."):
        try:
            target = getattr(target, part)
        except AttributeError:
            raise ValueError(f"the module {module_name!r} has no {attribute!r}") from None
    return target


def find_handler(name: str) -> Handler:
    """A built-in handler, or ``package.module:function``.

    Raises:
      ValueError: there is none by this name; says what there is.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    target = find_object(name, "handler", BUILT_IN)
    if not callable(target):
        raise ValueError(f"{name!r} is no function")
    return cast("Handler", target)

"""The search for handlers by their names on the command line."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any, cast

from gain_trio._http import http
from gain_trio._server import (
    DatagramHandler,
    Handler,
    Lifespan,
    check_datagram_handler,
    check_handler,
    check_lifespan,
    check_module_name,
    has_no,
    is_class_of_callbacks,
    is_missing,
)
from gain_trio._transports import Connection, DatagramEndpoint

from ._echoing import may_echo


async def echo(connection: Connection) -> None:
    """Send back what the peer sends, until the peer ends or the server drains."""
    async for data in connection.messages():
        await connection.send(data)


async def echo_datagram(data: bytes, address: Any, endpoint: DatagramEndpoint) -> None:
    """Send a datagram back to its source, if :func:`may_echo` allows it."""
    if may_echo(address, endpoint.local_address):
        await endpoint.send(data, address)


BUILT_IN: dict[str, Handler] = {"echo": echo, "http": http}
DATAGRAM_BUILT_IN: dict[str, DatagramHandler] = {"echo": echo_datagram}


def find_object(name: str, what: str, built_in: Iterable[str]) -> Any:
    """Import and return the object that ``package.module:name`` names.

    Args:
      name: the module and the object's name in it.
      what: the kind of the object, for messages.
      built_in: the built-in names, for messages.

    Raises:
      ValueError: there is no such object; the message lists the choices.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        form = "name" if what == "balancer" else "function"
        choices = [*built_in, f"package.module:{form}"]
        separator = ", or " if len(choices) > 1 else ""
        raise ValueError(f"unknown {what} {name!r}: it is {', '.join(choices[:-1])}{separator}{choices[-1]}")
    check_module_name(module_name, attribute)
    try:
        target: Any = importlib.import_module(module_name)
    except ImportError as error:
        cure = (
            "" if not is_missing(error, module_name) else "; it is looked for in the current folder and on PYTHONPATH"
        )
        raise ValueError(f"cannot import the {what}'s module {module_name!r}: {error}{cure}") from error
    for part in attribute.split("."):
        try:
            target = getattr(target, part)
        except AttributeError:
            raise ValueError(has_no(module_name, target, attribute, part)) from None
    return target


def find_handler(name: str) -> Handler:
    """A built-in handler of connections, or ``package.module:function``.

    Raises:
      ValueError: there is no such handler; the message lists the choices.
    """
    return BUILT_IN[name] if name in BUILT_IN else cast("Handler", _find_function(name, BUILT_IN, check_handler))


def find_datagram_handler(name: str) -> DatagramHandler:
    """A built-in handler of datagrams, or ``package.module:function``.

    Raises:
      ValueError: there is no such handler, or it is one of connections; the message lists the choices.
    """
    if name in DATAGRAM_BUILT_IN:
        return DATAGRAM_BUILT_IN[name]
    if name in BUILT_IN:
        raise ValueError(f"the handler {name!r} needs connections, which a UDP address has not")
    return cast("DatagramHandler", _find_function(name, DATAGRAM_BUILT_IN, check_datagram_handler))


def find_lifespan(name: str) -> Lifespan:
    """The lifespan that ``package.module:function`` names.

    Raises:
      ValueError: there is none of this name.
    """
    found = find_object(name, "lifespan", ())
    try:
        check_lifespan(found)
    except TypeError as error:
        raise ValueError(str(error)) from error
    return cast("Lifespan", found)


def _find_function(name: str, built_in: Iterable[str], check: Callable[[object], None]) -> object:
    found = find_object(name, "handler", built_in)
    if not callable(found):
        raise ValueError(f"{name!r} is not a function")
    if is_class_of_callbacks(found):
        raise ValueError(
            f"{name!r} is a class, and neither an async function nor an EventHandler; for a class in the shape of "
            "asyncio.Protocol write handler = gain_trio.asyncio_bridge.ProtocolHandler(MyProtocol) in the module, and "
            "give that"
        )
    try:
        check(found)
    except TypeError as error:
        raise ValueError(str(error)) from error
    return found

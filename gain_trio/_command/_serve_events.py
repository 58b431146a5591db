"""Event handlers on the command line: ``gain-trio serve --handler package.module:MyEventHandler --async-handler --pool``."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from gain_trio._http import IDLE_TIMEOUT
from gain_trio.callbacks import EventHandler, serve

from ._event_handlers import BUILT_IN_DATAGRAM_EVENTS, BUILT_IN_EVENTS, HttpEvents
from ._handlers import find_datagram_handler, find_object
from ._network import is_of_datagrams


def add_options(group: argparse._ArgumentGroup) -> None:
    """The arguments of a server of callbacks."""
    group.add_argument("--async-handler", action="store_true", help="run on_read in worker threads")
    group.add_argument("--pool", action="store_true", help="of --async-handler: bound the number of threads")


def starter(
    options: argparse.Namespace, addresses: Sequence[str], **more: Any
) -> Callable[..., Awaitable[None]] | None:
    """What to start in a nursery if the handler is one of callbacks, or is asked to be; None if it is not.

    Args:
      options: the command line's.
      addresses: where to listen.
      more: options of :func:`serve` or :func:`serve_datagrams`.

    Raises:
      ValueError: it is asked to be one of callbacks, and is not; or there is none by this name.
    """
    if options.pool and not options.async_handler:
        raise ValueError("--pool bounds the threads of --async-handler, which is not given")
    event_handler = _find(options.handler, wanted=options.async_handler, of_datagrams=is_of_datagrams(addresses[0]))
    if event_handler is None:
        return None
    if len(addresses) > 1:
        raise ValueError("a server of callbacks has one address: start another gain-trio for the others")
    if isinstance(event_handler, HttpEvents):
        more.setdefault("idle_timeout", IDLE_TIMEOUT)
    return functools.partial(
        serve,
        event_handler,
        addresses[0],
        async_handler=options.async_handler,
        pool=options.pool,
        **more,
    )


def _find(name: str, *, wanted: bool, of_datagrams: bool) -> EventHandler | None:
    if name in BUILT_IN_EVENTS:
        if not wanted:
            return None
        if of_datagrams:
            find_datagram_handler(name)  # raises for one that needs connections
            return BUILT_IN_DATAGRAM_EVENTS[name]()
        return BUILT_IN_EVENTS[name]()
    if ":" not in name:
        return None  # the search for other handlers reports the names that exist
    found = find_object(name, "handler", BUILT_IN_EVENTS)
    if isinstance(found, type) and issubclass(found, EventHandler):
        found = found()
    if isinstance(found, EventHandler):
        return found
    if wanted:
        raise ValueError(f"--async-handler is for handlers of callbacks, and {name!r} is none")
    return None

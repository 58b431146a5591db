"""The line that says where a server serves."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, final

import trio

from gain_trio import Server
from gain_trio._transports import shown
from gain_trio.callbacks import EventServer

from ._network import served_text
from ._parsing import show

Starter: TypeAlias = Callable[..., Awaitable[None]]
"""Something for ``nursery.start`` that starts a server."""

logger = logging.getLogger("gain_trio")


async def serve_announced(start: Starter, name: str, address: str) -> int:
    """Serve, and print where when that is known.  Returns the exit status: 1 if the end has cut connections off.

    Args:
      start: starts the server.
      name: of what it serves.
      address: where it was asked to listen.
    """
    announcement = _Announcement(name, address)
    await start(task_status=announcement)
    server = announcement.server
    return int(isinstance(server, (Server, EventServer)) and server.cut_off > 0)


@final
class _Announcement(trio.TaskStatus[Any]):
    """Prints the addresses of a server when it has started."""

    def __init__(self, handler: str, address: str) -> None:
        self._handler = handler
        self._address = address
        self.server: Any = None

    def started(self, value: Any = None) -> None:
        self.server = value
        where = (served_text(self._address, sockaddr) for sockaddr in value.addresses)
        try:
            show("".join(f"serving {self._handler} on {address}; Ctrl-C stops it\n" for address in where))
        except OSError as error:  # a closed standard output is no reason not to serve
            logger.warning("it serves, but cannot say so: %s: %s", shown(error.filename), shown(error.strerror))

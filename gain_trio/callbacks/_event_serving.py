"""The two functions that are a server of callbacks: in a nursery, and as a whole program."""

from __future__ import annotations

import threading
from typing import Any

import trio

from ._event_config import Config
from ._event_server import EventHandler, EventServer


async def serve(
    event_handler: EventHandler,
    address: str,
    *,
    config: Config | None = None,
    task_status: trio.TaskStatus[EventServer] = trio.TASK_STATUS_IGNORED,
    **options: Any,
) -> None:
    """Serve callbacks on ``address`` until cancelled or shut down.

    Started by ``server = await nursery.start(gain_trio.callbacks.serve, event_handler, address)`` it returns an
    :class:`EventServer` that runs: ``on_start`` has returned; or one that was shut down meanwhile.  Cancelling the scope it
    runs in stops it at once, and ``on_close`` is called for every connection that is open.

    Args:
      event_handler: an :class:`EventHandler`.
      address: ``tcp://host:port``, ``unix:///path``, ``fd://systemd``, or ``udp://host:port``.
      config, options: see :class:`EventServer`.

    Raises:
      UnsupportedProtocol: the address is of another network.
      TypeError, ValueError: the event handler is none, or an option makes no sense.
      OSError, RuntimeError: see :func:`gain_trio.serve`.
      what leaves ``on_start``.
    """
    await EventServer(event_handler, config, **options)._serve_in_run(address, task_status)


def listen_and_serve(address: str, event_handler: EventHandler, **options: Any) -> None:
    """Serve callbacks on ``address``: a whole program.

    Returns when the server was shut down (``server.async_shutdown()``, with the server that ``on_start`` got), and in the
    main thread on SIGTERM and SIGINT, too: the first shuts it down, the second cancels what is
    left.

    Args:
      address: ``tcp://host:port``, ``unix:///path``, ``fd://systemd``, or ``udp://host:port``.
      event_handler: an :class:`EventHandler`.
      options: see :class:`EventServer`; ``config=`` among them.

    Raises:
      What :class:`EventServer` and :meth:`EventServer.start` raise.
    """
    is_main = threading.current_thread() is threading.main_thread()
    EventServer(event_handler, **options)._start(address, signals=is_main)

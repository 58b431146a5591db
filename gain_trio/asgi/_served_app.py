"""An app as a process serves it: what all connections share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import trio

from gain_trio._http import Limits, Memory, RequestMemory

from ._asgi_config import AsgiConfig
from ._asgi_types import AsgiApp
from ._read_only import ReadOnly
from ._request_observers import RequestObserver
from ._response_heads import HeadMemory, Stamp

_EXTENSIONS: Final = ("http.response.pathsend", "http.response.trailers", "http.response.early_hint")
SPEC_VERSION: Final = "2.5"
"""The version of ASGI's specification of HTTP and WebSocket: ``send`` raises an :exc:`OSError` when the client is gone
(2.4), and ``websocket.disconnect`` has a reason (2.5)."""


class ServedApp:
    """The app, what connections share of its configuration, and what they have learnt from requests.

    Args:
      app: the app.
      name: of the app, for the log.
      config: its options.
    """

    observer: RequestObserver | None = None
    """The object that is called for each request."""
    state: dict[str, Any] | None = None
    """What the app's lifespan has left for requests: each gets a copy as ``scope["state"]``.  None without one."""

    def __init__(self, app: AsgiApp, name: str, config: AsgiConfig) -> None:
        self.app = app
        self.config = config
        self.__qualname__ = name
        self.is_plain = not (config.task_per_request or config.cancel_on_disconnect)
        """Whether an app runs in its connection's task, with nothing around it."""
        self.sets_variables = False
        """Whether a call of the app has left a context variable changed."""
        self._clock: tuple[object, Callable[[], float]] | None = None  # of the last run, and its current_time()
        self.limits = Limits(head=config.limit_head)
        self.memory = RequestMemory()
        self.targets: Memory[tuple[bytes, bytes, int], dict[str, Any]] = Memory(256)
        """What scopes have of the method, the target and the minor version."""
        self.heads = HeadMemory()
        self.stamp = Stamp(date=config.date_header, server=config.server_header)
        self.extensions = {name: ReadOnly() for name in _EXTENSIONS}
        self.base_scope: dict[str, Any] = {
            "type": "http",
            "asgi": ReadOnly(version="3.0", spec_version=SPEC_VERSION),
            "http_version": "1.1",
            "scheme": "http",
            "root_path": config.root_path,
        }

    def clock(self) -> Callable[[], float]:
        """The method that returns the time of the current run: one object for all connections."""
        clock = trio.lowlevel.current_clock()
        found = self._clock
        if found is None or found[0] is not clock:
            found = self._clock = clock, clock.current_time
        return found[1]

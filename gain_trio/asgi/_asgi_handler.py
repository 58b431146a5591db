"""The handler of connections that serves an ASGI app: one in each process that serves."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, TypeAlias, final

import trio

from gain_trio._http import Limits, Memory, Request, RequestMemory
from gain_trio._server import (
    LivingHandler,
    RequestInProgress,
    RequestStatistics,
    check_module_name,
    has_no,
    is_missing,
    why_not_called,
)
from gain_trio._transports import Connection

from ._asgi_config import AsgiConfig
from ._asgi_types import AsgiApp
from ._exchange import HttpExchange
from ._http_connection import HttpConnection
from ._proxy_headers import TrustedProxies, proxied
from ._read_only import ReadOnly
from ._request_observers import RequestCounter, RequestLimit, RequestObserver, RequestsInProgress, serving
from ._response_heads import HeadMemory, Stamp

_EXTENSIONS: Final = ("http.response.pathsend", "http.response.trailers", "http.response.early_hint")
SPEC_VERSION: Final = "2.4"
"""The version of ASGI's HTTP specification: ``send`` raises an :exc:`OSError` when the client is gone."""

WebSocketHandler: TypeAlias = Callable[[HttpConnection, Request, dict[str, Any], HttpExchange], Awaitable[None]]
"""An async function that takes a connection over with the request that asks for it, the scope, and the exchange by which to
answer as HTTP.  The connection is over when it returns."""


@final
class AsgiHandler(LivingHandler):
    """Serves an app on a connection.

    A worker process gets the handler pickled: with the name of the app, which it imports, or with the app itself.

    Args:
      app: the app, or its name as ``"package.module:name"``.
      config: its options.
      counts: whether it counts requests, for metrics.
      notes: whether it notes the requests that are in progress, for those who look at the server.

    Raises:
      ValueError, TypeError: the name is none, or names no app.
    """

    websocket: WebSocketHandler | None = None
    """What serves WebSockets; without it a request to upgrade is an ordinary one."""
    observer: RequestObserver | None = None
    """The object that is called for each request."""
    state: dict[str, Any] | None = None
    """What the app's lifespan has left for requests: each gets a copy as ``scope["state"]``.  None without one."""

    counter: RequestCounter | None = None
    """What counts requests."""
    in_progress: RequestsInProgress | None = None
    """Where the requests in progress are noted."""
    limit: RequestLimit | None = None
    """What notices that this process has served enough."""

    def __init__(self, app: AsgiApp | str, config: AsgiConfig, *, counts: bool = False, notes: bool = False) -> None:
        self.source = app
        self.config = config
        self.counts = counts
        self.notes = notes
        self.app: AsgiApp = load_app(app, factory=config.factory)
        if config.proxy_headers is not None:
            proxies = TrustedProxies(config.forwarded_allow_ips, fields=config.proxy_headers, host=config.proxy_host)
            self.app = proxied(self.app, proxies)
        self.__qualname__ = app if isinstance(app, str) else getattr(app, "__qualname__", type(app).__qualname__)
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
        if config.websockets is not False:
            self.websocket = _websockets(config)
        self.extensions = {name: ReadOnly() for name in _EXTENSIONS}
        self.base_scope: dict[str, Any] = {
            "type": "http",
            "asgi": ReadOnly(version="3.0", spec_version=SPEC_VERSION),
            "http_version": "1.1",
            "scheme": "http",
            "root_path": config.root_path,
        }

    def __repr__(self) -> str:
        return f"<ASGI app {self.__qualname__}>"

    def __reduce__(self) -> tuple[Callable[..., AsgiHandler], tuple[AsgiApp | str, AsgiConfig]]:
        return functools.partial(AsgiHandler, counts=self.counts, notes=self.notes), (self.source, self.config)

    def lifespan(self) -> AbstractAsyncContextManager[object]:
        """See :meth:`LivingHandler.lifespan`: the app's, and what looks on while it serves."""
        return serving(self)

    async def until_retired(self) -> None:
        """See :meth:`LivingHandler.until_retired`: ``max_requests``."""
        if self.limit is None:
            await trio.sleep_forever()
        else:
            await self.limit.reached.wait()

    def request_statistics(self) -> RequestStatistics | None:
        """See :meth:`LivingHandler.request_statistics`."""
        return None if self.counter is None else self.counter.statistics()

    def request_in_progress(self, task: trio.lowlevel.Task) -> RequestInProgress | None:
        """See :meth:`LivingHandler.request_in_progress`."""
        return None if self.in_progress is None else self.in_progress.of_task(task)

    def clock(self) -> Callable[[], float]:
        """The method that returns the time of the current run: one object for all connections."""
        clock = trio.lowlevel.current_clock()
        found = self._clock
        if found is None or found[0] is not clock:
            found = self._clock = clock, clock.current_time
        return found[1]

    def __call__(self, connection: Connection) -> Coroutine[Any, Any, None]:
        """Serve a connection until it is over."""
        return HttpConnection(self, connection).run()


def _websockets(config: AsgiConfig) -> WebSocketHandler | None:
    """What serves WebSockets; None without the package that this takes, where it may be missing."""
    try:
        from ._websockets import WebSockets  # noqa: PLC0415 - it needs a package that the server does not
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "websockets":
            raise
        if config.websockets is None:
            return None
        raise ModuleNotFoundError(
            "WebSockets need the package websockets: pip install 'gain-trio[asgi]', or serve with websockets=False",
            name=error.name,
        ) from error
    return WebSockets(config)


def load_app(source: AsgiApp | str, *, factory: bool) -> AsgiApp:
    """Return the app of this name, or what the function of this name returns.

    Raises:
      ValueError: there is none of this name.
      TypeError: it cannot be called.

    And what importing its module raises, if that is more than that there is none.
    """
    app: Any = _imported(source) if isinstance(source, str) else source
    name = repr(source)
    if factory:
        if not callable(app):
            raise TypeError(f"factory=True wants a function that returns the app, and {name} cannot be called")
        why_not = why_not_called(app, ())
        if why_not is not None:
            raise TypeError(f"factory=True calls a function without arguments, which returns the app, and {why_not}")
        app = app()
    if not callable(app) or (isinstance(app, type) and not hasattr(app, "__await__")):
        raise TypeError(f"an ASGI app is an async function of scope, receive and send, and {name} is {app!r}")
    why_not = why_not_called(app, ("scope", "receive", "send"))
    if why_not is not None:
        cure = "" if factory or why_not_called(app, ()) is not None else "; if it returns the app, give factory=True"
        raise TypeError(f"an ASGI app is an async function of scope, receive and send, and {why_not}{cure}")
    return app  # type: ignore[no-any-return]  # what it returns is seen when it is called


def _imported(name: str) -> Any:
    module_name, colon, attribute = name.partition(":")
    if not module_name or not colon or not attribute:
        raise ValueError(f"the name of an app has the form package.module:name, not {name!r}")
    check_module_name(module_name, attribute)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not is_missing(error, module_name):
            raise
        raise ValueError(
            f"there is no module {module_name!r} for the app {name!r}: it is looked for in --app-dir, "
            "the current folder, and on PYTHONPATH"
        ) from error
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ValueError(has_no(module_name, found, attribute, part)) from None
    return found

"""The handler of connections that serves an ASGI app: one in each process that serves."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, final

import trio

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

from ._access_log import AccessLog, log_access
from ._asgi_config import AsgiConfig
from ._asgi_types import AsgiApp
from ._http_connection import HttpConnection, WebSocketHandler
from ._lifespan import app_lifespan
from ._proxy_headers import TrustedProxies, proxied
from ._request_observers import (
    AccessLines,
    RequestCounter,
    RequestLimit,
    RequestObserver,
    RequestsInProgress,
    joined,
)
from ._served_app import ServedApp


@final
class AsgiHandler(ServedApp, LivingHandler):
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
    counter: RequestCounter | None = None
    """What counts requests."""
    in_progress: RequestsInProgress | None = None
    """Where the requests in progress are noted."""
    limit: RequestLimit | None = None
    """What notices that this process has served enough."""

    def __init__(self, app: AsgiApp | str, config: AsgiConfig, *, counts: bool = False, notes: bool = False) -> None:
        self.source = app
        self.counts = counts
        self.notes = notes
        loaded = load_app(app, factory=config.factory)
        if config.proxy_headers is not None:
            proxies = TrustedProxies(config.forwarded_allow_ips, fields=config.proxy_headers, host=config.proxy_host)
            loaded = proxied(loaded, proxies)
        name = app if isinstance(app, str) else getattr(app, "__qualname__", type(app).__qualname__)
        super().__init__(loaded, name, config)
        if config.websockets is not False:
            self.websocket = _websockets(config)

    def __repr__(self) -> str:
        return f"<ASGI app {self.__qualname__}>"

    def __reduce__(self) -> tuple[Callable[..., AsgiHandler], tuple[AsgiApp | str, AsgiConfig]]:
        return functools.partial(AsgiHandler, counts=self.counts, notes=self.notes), (self.source, self.config)

    def lifespan(self) -> AbstractAsyncContextManager[object]:
        """See :meth:`LivingHandler.lifespan`: the app's, and what looks on while it serves."""
        return self._lifespan()

    @asynccontextmanager
    async def _lifespan(self) -> AsyncIterator[None]:
        lines = self._make_observers()
        if lines is None:
            async with self._app_lifespan():
                yield
        else:
            async with lines.flushed(), self._app_lifespan():
                yield

    def _make_observers(self) -> AccessLines | None:
        """Those of one process, from its start to its end; returns the lines of the access log that are to be flushed."""
        config = self.config
        observers: list[RequestObserver] = []
        lines: AccessLines | None = None
        self.counter = self.limit = self.in_progress = None
        if self.counts:
            self.counter = RequestCounter()
            observers.append(self.counter)
        if self.notes:
            self.in_progress = RequestsInProgress()
            observers.append(self.in_progress)
        if config.max_requests is not None:
            self.limit = RequestLimit(config.max_requests, config.max_requests_jitter)
            observers.append(self.limit)
        if config.access_log is not None:
            descriptor = config.access_log_descriptor
            lines = None if descriptor is None else AccessLines(descriptor)
            observers.append(AccessLog(log_access if lines is None else lines.write, form=config.access_log))
        if observers:
            self.observer = joined(observers)
        return lines

    @asynccontextmanager
    async def _app_lifespan(self) -> AsyncIterator[None]:
        async with app_lifespan(self.app, self.__qualname__, self.config.app_lifespan) as state:
            if state is None:
                yield
                return
            self.state = state
            try:
                yield
            finally:
                self.state = None

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

    def __call__(self, connection: Connection) -> Coroutine[Any, Any, None]:
        """Serve a connection until it is over."""
        return HttpConnection(self, connection, self.websocket).run()


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
        raise TypeError(f"{_WANTED}, and {name} is {app!r}{_cure(app, factory=factory)}")
    why_not = why_not_called(app, ("scope", "receive", "send"))
    if why_not is not None:
        raise TypeError(f"{_WANTED}, and {why_not}{_cure(app, factory=factory)}")
    return app  # type: ignore[no-any-return]  # what it returns is seen when it is called


_WANTED: Final = "an ASGI app is an async function of scope, receive and send"


def _cure(app: Any, *, factory: bool) -> str:
    """What may help with an object that is no app."""
    if not callable(app):
        return ""
    parameters = _parameters(app)
    if parameters == ["environ", "start_response"]:
        return "; if it is a WSGI app, wrap it in asgiref.wsgi.WsgiToAsgi or a2wsgi.WSGIMiddleware"
    if parameters in (["scope"], ["receive", "send"]):
        return "; if it is an app of ASGI 2, wrap it in asgiref.compatibility.guarantee_single_callable"
    if isinstance(app, type):
        return "; if an object of this class is the app, give the object"
    if not factory and why_not_called(app, ()) is None:
        return "; if it returns the app, give factory=True"
    return ""


def _parameters(app: Any) -> list[str]:
    """The names of those without defaults."""
    try:
        signature = inspect.signature(app)
    except (ValueError, TypeError):  # a function of an extension module need not have one
        return []
    return [name for name, found in signature.parameters.items() if found.default is found.empty]


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

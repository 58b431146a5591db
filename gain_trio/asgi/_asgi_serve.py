"""serve(): a server of an ASGI app."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from gain_trio._server import Server, ServerConfig
from gain_trio._server import serve as serve_connections
from gain_trio._transports import shown

from ._asgi_config import AsgiConfig, parted
from ._asgi_handler import AsgiHandler
from ._asgi_types import AsgiApp

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._asgi_config import AsgiOptions


logger = logging.getLogger("gain_trio")


async def serve(
    app: AsgiApp | str,
    address: str | Sequence[str],
    *,
    config: ServerConfig | None = None,
    asgi: AsgiConfig | None = None,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
    **options: Unpack[AsgiOptions],
) -> None:
    """Serve an ASGI 3 app on ``address`` until cancelled or drained.

    Started by ``server = await nursery.start(gain_trio.asgi.serve, app, address)`` it returns a
    :class:`gain_trio.Server`, as :func:`gain_trio.serve` does, which describes cancelling, draining, worker processes,
    TLS and the other options of every server.

    For each request ``await app(scope, receive, send)`` runs in the task of its connection, in a context of its own
    (``contextvars``).  An exception of the app is logged once with its traceback and closes the connection; a client that
    has got nothing of the response gets a 500.  A client that sends a malformed request gets an answer that says so.

    ``receive`` returns the request's body in pieces, as they arrive, and ``http.disconnect`` after it when the client
    is gone, or the response complete, without waiting if that is known.  ``send`` waits while the client reads too slowly,
    and raises :exc:`ClientDisconnected`, an :exc:`OSError`, when the client is gone.  A client that ends its side of the
    connection counts as gone as soon as the app looks.

    Cancelling the server cancels the app.  A drain lets requests in progress end, says ``Connection: close`` in their
    responses, and ends connections that wait for their next request at once.

    Args:
      app: an ASGI 3 application, or its name, ``"package.module:app"``.  With ``processes`` each process imports it by this
        name; an app that is given itself is pickled.
      address: ``tcp://host:port``, ``unix:///path`` or ``fd://systemd``, see :func:`gain_trio.open_listeners`; or several.
      config: a :class:`gain_trio.ServerConfig`, whose values are taken but for those given here.
      asgi: an :class:`AsgiConfig`, likewise.
      options: the fields of :class:`gain_trio.ServerConfig` and :class:`AsgiConfig`.

    Raises:
      ValueError, TypeError: an option makes no sense, or ``app`` is none; and what importing its module raises.
      ModuleNotFoundError: ``websockets=True`` without the package websockets.

    And what :func:`gain_trio.serve` raises.
    """
    own, others = parted(config, asgi, **options)
    metrics = others.get("metrics", None if config is None else config.metrics)
    control = others.get("control", None if config is None else config.control)
    watched = control is not None
    handler = AsgiHandler(app, own, counts=metrics is not None or watched, notes=watched)
    if own.websockets is None and handler.websocket is None:
        logger.info(
            "%s is served without WebSockets, which need the package websockets: pip install 'gain-trio[asgi]'",
            shown(repr(handler)),
        )
    processes = others.get("processes", None if config is None else config.processes)
    if processes is not None and not isinstance(app, str):
        _check_pickled(app)
    await serve_connections(handler, address, config=config, task_status=task_status, **others)


def _check_pickled(app: AsgiApp) -> None:
    try:
        pickle.dumps(app)
    except Exception as error:  # pickle raises what it likes, and so do objects that are pickled
        raise ValueError(
            f"the app {app!r} cannot be sent to worker processes ({type(error).__name__}: {error}): with processes= "
            'give its name, "package.module:app"'
        ) from error

"""The built-in handlers of ``gain-trio serve`` as callbacks, for ``--async-handler``."""

from __future__ import annotations

from typing import final

from gain_trio._http import SITE, Exchange, Phase
from gain_trio.callbacks import Conn, EventHandler

from ._echoing import may_echo


@final
class EchoEvents(EventHandler):
    """A handler that sends back what it receives."""

    def on_read(self, conn: Conn, n: int) -> None:
        """See :meth:`EventHandler.on_read`."""
        conn.write(conn.next(n))


@final
class EchoDatagrams(EventHandler):
    """A handler that sends back each datagram that :func:`may_echo` allows."""

    def on_read(self, conn: Conn, n: int) -> None:
        """See :meth:`EventHandler.on_read`."""
        data = conn.next(n)
        if may_echo(conn.remote_addr, conn.local_addr):
            conn.write(data)


@final
class HttpEvents(EventHandler):
    """A handler that answers HTTP requests, in the order of each connection; see :mod:`._http`.

    It may run in worker threads, where Trio's clock cannot be read, so a request has no deadline here.
    """

    def on_accept(self, conn: Conn) -> None:
        """See :meth:`EventHandler.on_accept`."""
        conn.set_context(Exchange(SITE))

    def on_read(self, conn: Conn, n: int) -> None:
        """See :meth:`EventHandler.on_read`."""
        exchange: Exchange = conn.context
        if answers := exchange.feed(conn.next(n)):
            conn.write(answers)
        if exchange.phase is Phase.OVER:
            conn.close()


BUILT_IN_EVENTS: dict[str, type[EventHandler]] = {"echo": EchoEvents, "http": HttpEvents}
BUILT_IN_DATAGRAM_EVENTS: dict[str, type[EventHandler]] = {"echo": EchoDatagrams}

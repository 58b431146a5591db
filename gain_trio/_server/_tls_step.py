"""The TLS handshake before a handler, with a context that can be replaced while the server runs.

A certificate lasts for weeks, and a server for longer.  A function that makes the context loads the files of the moment, so
calling it again is all that a renewal takes: connections that are open keep the context that they began with, and the next
handshake uses the new one.
"""

from __future__ import annotations

import logging
import ssl
from typing import final

from gain_trio._transports import Connection, Marks, check_server_context, server_handshake, shown

from ._server_config import ContextSource

logger = logging.getLogger("gain_trio")


@final
class TlsStep:
    """A step before the handler.

    Raises:
      TypeError, ValueError: the source makes no context for a server; and what the source raises.
    """

    def __init__(self, source: ContextSource, marks: Marks, timeout: float) -> None:
        self._source = source
        self._marks = marks
        self._timeout = timeout
        self._context = self._made()

    def _made(self) -> ssl.SSLContext:
        source = self._source
        return check_server_context(source if isinstance(source, ssl.SSLContext) else source())

    async def prepare(self, connection: Connection) -> Connection:
        """Perform the handshake.

        Raises what :func:`server_handshake` raises.
        """
        return await server_handshake(connection, self._context, self._marks, self._timeout)

    def renew(self, server: object) -> None:
        """Make the context again, for the handshakes to come.  When that fails the server keeps the one that it has.

        Args:
          server: for the log.
        """
        if isinstance(self._source, ssl.SSLContext):
            logger.info(
                "SIGHUP loads a certificate again where ssl_context is a function, and that of %s is a context: nothing "
                "is done",
                shown(server),
            )
            return
        try:
            self._context = self._made()
        except Exception as error:  # the function is the program's, and can raise anything
            logger.error(
                "the TLS context of %s cannot be made again, and it goes on with the one that it has: %s",
                shown(server),
                shown(error),
                exc_info=error,
            )
        else:
            logger.info("SIGHUP: %s uses a new TLS context from now on", shown(server))

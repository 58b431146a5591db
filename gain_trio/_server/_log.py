"""Lines about connections in the log.

Each has its facts in words, and once more in attributes of its LogRecord, for formatters that show them (JSON):

    connection       its number, counted by the server in each process
    peer             the other end, ``127.0.0.1:5000``
    consumer         the number of its consumer, from 0
    cause            when it is over: a :data:`CloseCause`
    bytes_received, bytes_sent    when it is closed
"""

from __future__ import annotations

import logging

from gain_trio._transports import UNKNOWN, Connection, shown, shown_traceback

from ._statistics import CloseCause

logger = logging.getLogger("gain_trio")


def _show_traceback(record: logging.LogRecord) -> bool:
    """A filter that drops nothing: the traceback of a record as a formatter finds it made.

    A handler's exception often quotes what its peer has sent.  ``exc_info`` stays for formatters that do better.
    """
    if record.exc_info and not record.exc_text:
        error = record.exc_info[1]
        record.exc_text = None if error is None else shown_traceback(error)
    return True


logger.addFilter(_show_traceback)


def peer_text(connection: Connection) -> str:
    """The other end, for a log; what is gone may not have an address any more."""
    return connection._peer_text() or UNKNOWN


class ConnectionLog:
    """The log of one connection."""

    __slots__ = ("_consumer", "number")

    def __init__(self, number: int, consumer: int) -> None:
        self.number = number
        """What the log calls the connection."""
        self._consumer = consumer

    def opened(self, connection: Connection) -> None:
        """At level debug, which the caller has asked about: it makes this object where there is a line to log."""
        peer = peer_text(connection)
        extra = self._extra(peer)
        logger.debug("connection %d from %s is open", self.number, shown(peer), extra=extra)

    def closed(self, connection: Connection, cause: CloseCause) -> None:
        """Likewise."""
        peer, received, sent = peer_text(connection), connection.bytes_received, connection.bytes_sent
        extra = {**self._extra(peer), "cause": cause, "bytes_received": received, "bytes_sent": sent}
        logger.debug(
            "connection %d from %s is closed (%s): %d bytes received, %d sent",
            self.number,
            shown(peer),
            shown(cause),
            received,
            sent,
            extra=extra,
        )

    def over(
        self,
        level: int,
        connection: Connection,
        cause: CloseCause,
        text: str,
        *arguments: object,
        exc_info: BaseException | None = None,
    ) -> None:
        """The reason of its end, in words.  The peer's address costs a system call, which is made only for a line.

        The arguments are shown: the text has ``%s`` for each of them.
        """
        if logger.isEnabledFor(level):
            extra = {**self._extra(peer_text(connection)), "cause": cause}
            logger.log(level, text, *map(shown, arguments), exc_info=exc_info, extra=extra, stacklevel=2)

    def _extra(self, peer: str) -> dict[str, object]:
        return {"connection": self.number, "peer": peer, "consumer": self._consumer}

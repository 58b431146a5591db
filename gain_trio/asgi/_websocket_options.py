"""The options of WebSocket connections; this module needs no other package, so the command line can read it."""

from __future__ import annotations

from typing import Any, final

import attrs

from gain_trio._transports import checked_seconds


def _whole(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{attribute.name} is a whole number, not {value!r}")
    if value < 1:
        raise ValueError(f"{attribute.name} is at least 1, not {value}")


def _flag(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{attribute.name} is True or False, not {value!r}")


def _positive(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    checked_seconds(attribute.name, value, positive=True)


def _time(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    checked_seconds(attribute.name, value)


@final
@attrs.frozen(kw_only=True)
class WebSocketOptions:
    """Limits and times of the WebSocket connections of an app.

    Raises:
      TypeError: a number is none, or a flag is none.
      ValueError: a number is too small.
    """

    max_size: int = attrs.field(default=16 * 1024 * 1024, validator=_whole)
    """The most bytes of a message from the client, after it is put together and decompressed.  A longer one ends the
    connection with close code 1009."""
    max_queue: int = attrs.field(default=32, validator=_whole)
    """The most messages that the server reads ahead while the app does not receive.  After that it stops reading, and TCP
    slows the client down."""
    ping_interval: float = attrs.field(default=20.0, validator=_positive)
    """Seconds between two pings to the client; ``math.inf`` for none."""
    ping_timeout: float = attrs.field(default=20.0, validator=_positive)
    """Seconds after a ping in which a client that is there sends something, be it the pong.  One that sends nothing has
    vanished: the connection ends with 1006.  ``math.inf`` waits for ever."""
    close_timeout: float = attrs.field(default=10.0, validator=_time)
    """Seconds that the client has to answer a close frame before the server closes the connection."""
    per_message_deflate: bool = attrs.field(default=True, validator=_flag)
    """Compress messages in both directions if the client offers it (RFC 7692).  A connection then needs some 64 KiB more."""

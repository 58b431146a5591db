"""What may be wrong with an argument."""

from __future__ import annotations

from gain_trio._transports import checked_seconds


def check_handler(handler: object) -> None:
    """A handler of connections is called, and what it returns is awaited.

    Raises:
      TypeError: it cannot be called, or it is a class, whose instances cannot be awaited; says who serves
        callbacks.
    """
    if callable(handler) and not is_class_of_callbacks(handler):
        return
    raise TypeError(
        f"the handler must be an async function of one connection, not {handler!r}; callbacks are served by "
        "gain_trio.serve_events(MyEventHandler(), address), a class in the shape of asyncio.Protocol by "
        "gain_trio.serve(gain_trio.ProtocolHandler(MyProtocol), address)"
    )


def is_class_of_callbacks(handler: object) -> bool:
    """Whether it is a class that makes nothing to be awaited, such as an asyncio.Protocol."""
    return isinstance(handler, type) and not hasattr(handler, "__await__")


def check_timeout(name: str, seconds: float) -> float:
    """``seconds``, if it is a length of time; 0 is one, and so is ``math.inf``.

    Raises:
      TypeError: it is no number.
      ValueError: it is nan, or negative.
    """
    return checked_seconds(name, seconds)

"""The exceptions that the calls of a server of callbacks raise.

They are Gain's errors, as far as they can happen here.  The base of each is the Python exception that a program most
likely catches already.
"""

from __future__ import annotations

from typing import final

import trio


@final
class ShortBuffer(BufferError):
    """The caller requested more bytes than have arrived, and all of them stay unread."""


@final
class BufferEmpty(BlockingIOError):
    """No data has arrived."""


class ConnectionClosed(trio.ClosedResourceError):
    """This program has closed the connection, or the connection is over and the server has called ``on_close``."""


@final
class ConnectionAlreadyClosed(ConnectionClosed):
    """The program called ``close()`` on a connection that is closed."""


@final
class SlowReader(trio.TooSlowError):
    """The peer reads more slowly than the program writes: more than ``Config.write_limit`` bytes are unsent.

    With ``Config.write_policy`` ``"close"`` the server closes the connection and ``on_close`` gets this exception; with
    ``"raise"`` the call that would have written more raises it, and has written nothing.
    """


@final
class UnsupportedProtocol(ValueError):
    """The address is of a network that a server of callbacks does not serve."""


@final
class NotSupported(NotImplementedError):
    """The socket of this connection has no such property."""


@final
class InvalidDuration(ValueError):
    """A duration is out of range, or is not a number."""


class InvalidState(RuntimeError):
    """The server cannot do that in its present state."""


@final
class AlreadyRunning(InvalidState):
    """The server was started and has not ended."""

"""What the calls of a server of callbacks raise.

Gain's errors, as far as they can happen here, each with the Python exception for its base that a program is most likely to
catch already.
"""

from __future__ import annotations

from typing import final

import trio


@final
class ShortBuffer(BufferError):
    """More bytes were asked for than have arrived.  None of them was taken."""


@final
class BufferEmpty(BlockingIOError):
    """Nothing has arrived that could be read."""


class ConnectionClosed(trio.ClosedResourceError):
    """The connection was closed by this program, or is over and ``on_close`` has been called."""


@final
class ConnectionAlreadyClosed(ConnectionClosed):
    """``close()`` was called on a connection that is closed."""


@final
class SlowReader(trio.TooSlowError):
    """The peer takes what is written more slowly than it is written: more than ``Config.write_limit`` bytes are unsent.

    With ``Config.write_policy`` ``"close"`` the connection is closed and ``on_close`` gets this, with ``"raise"`` the call
    that would have written more raises it, and has written nothing.
    """


@final
class UnsupportedProtocol(ValueError):
    """The address is of a network that a server of callbacks does not serve."""


@final
class NotSupported(NotImplementedError):
    """The socket of this connection has no such property."""


@final
class InvalidDuration(ValueError):
    """A duration is not what it can be."""


class InvalidState(RuntimeError):
    """The server cannot do that now."""


@final
class AlreadyRunning(InvalidState):
    """The server was started and has not ended."""

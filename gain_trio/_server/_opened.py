"""What a server may get in place of an address: a listener or an endpoint that is open already, without a socket.

:mod:`gain_trio.testing` has them, in memory, so that a test runs what a program runs: the same functions, from their first
line on.
"""

from __future__ import annotations

from typing import final

import attrs

from gain_trio._transports import DatagramEndpoint, Listener


@final
@attrs.frozen
class OpenedListener:
    """In place of the address of a server of connections, which closes it."""

    listener: Listener


@final
@attrs.frozen
class OpenedEndpoint:
    """In place of the address of a server of datagrams, which closes it."""

    endpoint: DatagramEndpoint

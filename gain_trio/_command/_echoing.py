"""Which datagrams the built-in echo answers."""

from __future__ import annotations

from typing import Any, Final

FIRST_PORT_OF_CLIENTS: Final = 1024
"""Ports below are services' (RFC 6335, 6), which send to nobody on their own."""


def may_echo(source: Any, own: Any) -> bool:
    """Whether a datagram from ``source`` is answered, which a forger can have chosen.

    An answer to another service may be answered in turn, and so on for ever: a datagram with a forged source would set two
    machines to work on each other.  So no port of a service is answered, and nor is the server's own port, on this machine
    or any other, where the same echo may listen.
    """
    if isinstance(source, tuple):
        return bool(source[1] >= FIRST_PORT_OF_CLIENTS and source[1] != own[1])
    return bool(source != own)

"""The choice of the datagrams that the built-in echo answers."""

from __future__ import annotations

from typing import Any, Final

FIRST_PORT_OF_CLIENTS: Final = 1024
"""Ports below belong to services (RFC 6335, 6), which only answer."""


def may_echo(source: Any, own: Any) -> bool:
    """Whether the echo answers a datagram from ``source``, an address that an attacker can forge.

    Another service may answer an answer, and so on for ever: one datagram with a forged source would make two machines
    send to each other.  So the echo answers neither the port of a service nor the server's own port, on this machine or
    any other, where the same echo may listen.
    """
    if isinstance(source, tuple):
        return bool(source[1] >= FIRST_PORT_OF_CLIENTS and source[1] != own[1])
    return bool(source != own)

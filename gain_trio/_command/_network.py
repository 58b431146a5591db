"""``gain-trio serve --network``: the kind of an address that has no scheme."""

from __future__ import annotations

import argparse
from typing import Any

from gain_trio._transports import Scheme, address_text

NETWORKS: tuple[Scheme, ...] = ("tcp", "udp", "unix")
SERVED: tuple[Scheme, ...] = (*NETWORKS, "fd")


def add_options(serve: argparse.ArgumentParser) -> None:
    """Add the argument ``--network``."""
    serve.add_argument(
        "--network", choices=NETWORKS, help="what an address without a scheme is of: HOST:PORT, or for unix a /PATH"
    )


def full_address(address: str, network: str | None) -> str:
    """The address with its scheme.

    Raises:
      ValueError: the address has another scheme than ``network``.
    """
    if network is None:
        return address
    scheme, separator, _rest = address.partition("://")
    if not separator:
        return f"{network}://{address}"
    if scheme != network:
        raise ValueError(f"{address} is not of --network {network}: leave one of the two out")
    return address


def is_of_datagrams(address: str) -> bool:
    """Whether the server serves the address datagram by datagram, without connections."""
    return address.startswith("udp://")


def served_text(address: str, sockaddr: Any) -> str:
    """The address that a server started on ``address`` serves, as text; ``sockaddr`` is from ``getsockname()``."""
    text = address_text(sockaddr)
    return "udp" + text.removeprefix("tcp") if is_of_datagrams(address) else text

"""The PROXY protocol in front of a handler: who may say who the client is, and what it says.

A header decides what ``remote_address`` is, so it decides whom the program trusts.  Only the peers that were named may send
one, and they must: if a proxy could leave the header out, its client could write one in its place.  The specification
requires the same: a receiver is configured with the peers that speak the protocol, and never guesses.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any, Final, TypeAlias, final

import trio

from gain_trio._transports import (
    MAX_LENGTH,
    Connection,
    NeedMore,
    ProxyHeader,
    ProxyProtocolError,
    checked_seconds,
    parse_proxy_header,
)

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


_LOCAL: Final = (ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1"))
"""What a peer on this machine, over a Unix socket, counts as."""


@final
class ProxyStep:
    """What is done with a connection before its handler gets it.

    Args:
      senders: True for all peers, or addresses and networks such as ``"127.0.0.1"`` and ``"10.0.0.0/8"``.
      timeout: seconds that a header may take.

    Raises:
      ValueError: one of them is not a network, there are none, or the timeout is not positive.
      TypeError: ``senders`` is neither.
    """

    def __init__(self, senders: Iterable[str] | bool, timeout: float) -> None:
        self._networks = None if senders is True else parse_networks(senders)
        self._timeout = check_proxy_timeout(timeout)

    async def prepare(self, connection: Connection) -> Connection:
        """Receive the header, and set its addresses on the connection.

        Raises:
          ProxyProtocolError: the peer may not send one, or has not sent one, or not in time.
          trio.BrokenResourceError: the connection broke.
        """
        peer = connection.direct_remote_address  # looked up now, as long as there is a peer
        if not self._may_send(peer):
            raise ProxyProtocolError(f"{_text(peer)} is not among those who may send a PROXY protocol header")
        with trio.move_on_after(self._timeout):
            header = await _receive_header(connection)
            connection.discard(header.length)
            connection._told_by_a_proxy(header)
            return connection
        raise ProxyProtocolError("no PROXY protocol header came in time")

    def _may_send(self, peer: Any) -> bool:
        if self._networks is None:
            return True
        return any(address in network for address in _addresses(peer) for network in self._networks)


def check_proxy_timeout(seconds: float) -> float:
    """``seconds``, if it is a valid time limit for a header."""
    return checked_seconds("proxy_timeout", seconds, positive=True)


def parse_networks(senders: Iterable[str] | bool) -> tuple[Network, ...]:
    """The networks that ``senders`` stand for.

    Raises:
      ValueError: one of them is not a network, or there are none.
      TypeError: it is not a collection.
    """
    if isinstance(senders, str | bytes | bool) or not isinstance(senders, Iterable):
        raise TypeError(f'proxy_protocol is True or a collection such as ("127.0.0.1", "10.0.0.0/8"), not {senders!r}')
    try:
        networks = tuple(map(_network, senders))
    except ValueError as error:
        raise ValueError(f"proxy_protocol names who may send a header, by address or network: {error}") from error
    if not networks:
        raise ValueError("proxy_protocol names no peer that may send a header, so every connection would be refused")
    return networks


def _network(sender: object) -> Network:
    if not isinstance(sender, str | ipaddress.IPv4Network | ipaddress.IPv6Network):  # a number would be an address, too
        raise TypeError(f'proxy_protocol has addresses and networks such as "10.0.0.0/8", not {sender!r}')
    try:
        return ipaddress.ip_network(sender)
    except ValueError as error:
        if "host bits set" in str(error):
            raise ValueError(f"{error}: write {ipaddress.ip_network(sender, strict=False)}") from None
        raise ValueError(f"{error}; write 10.0.0.1 or 10.0.0.0/8 for example") from None


def _addresses(peer: Any) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...]:
    """What a peer counts as."""
    if not isinstance(peer, tuple):  # of a Unix socket: a path, a name, or nothing
        return _LOCAL
    address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    return (address,)


def _text(peer: Any) -> str:
    return str(peer[0]) if isinstance(peer, tuple) else "a peer on a Unix socket"


async def _receive_header(connection: Connection) -> ProxyHeader:
    found: ProxyHeader | NeedMore = parse_proxy_header(b"")
    while isinstance(found, NeedMore):
        queued = await connection._fill(found.count)
        data = connection.peek(MAX_LENGTH)
        known = parse_proxy_header(data)  # raises as soon as the bytes cannot be the beginning of a header
        if isinstance(known, NeedMore) and queued < found.count:
            raise ProxyProtocolError(f"the connection ended after {queued} bytes of a PROXY protocol header")
        if isinstance(known, NeedMore) and known.count <= len(data):
            # A fault of the parser's.  _fill() would return at once, for ever, and never let another task run.
            raise ProxyProtocolError(
                f"the parser wants {known.count} bytes of a PROXY protocol header, and has {queued}"
            )
        found = known
    return found

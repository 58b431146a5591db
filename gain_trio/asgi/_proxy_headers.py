"""What a proxy in front of the server says about its client, in the fields of a request.

Every client can send these fields, so they count only if the peer is a trusted proxy.  Three decisions follow:

*The list is read from its end.*  Each proxy appends the address that it received the request from.  What stands left of a
proxy's entry may have come from the client.  So the last entry, which the peer has appended, is what the peer saw; if that
address is a trusted proxy's, too, the entry before it is what that proxy saw, and so on.  The first address that is not
trusted is the client.  Nothing left of it is looked at, and nothing a client puts there changes the result.

*One family of fields.*  A proxy sets ``X-Forwarded-For``, or it sets ``Forwarded`` (RFC 7239), and passes the other one on
as the client sent it.  So the server reads the family that it was configured for, and never the other.

*Strict, and closed where it fails.*  A proxy's entry that is not what the grammar allows is not guessed at: the scope has
no client then.  It does not keep the proxy's address, with which a client would appear as the proxy.  ``unknown`` and names
such as ``_hidden`` are allowed: they mean no address, too.  A scheme or a host that is malformed is ignored by itself.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Final, Literal, TypeAlias, final, get_args

import attrs

AsgiApp: TypeAlias = Callable[[Any, Any, Any], Awaitable[object]]
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
ProxyFields: TypeAlias = Literal["x-forwarded", "forwarded"]
"""``"x-forwarded"``: X-Forwarded-For, X-Forwarded-Proto and X-Forwarded-Host.  ``"forwarded"``: Forwarded."""

LOOPBACK: Final = ("127.0.0.0/8", "::1")
UNIX: Final = "unix"
"""Among the trusted: peers that have connected to a Unix socket."""
MAX_HOPS: Final = 32
"""Proxies in a row.  Behind more of them no client is looked for."""

MAX_KNOWN: Final = 1024
"""Addresses of peers that are remembered."""

_SCHEMES: Final = {b"http": "http", b"https": "https", b"ws": "http", b"wss": "https"}
_PORT: Final = rb"(?::(?P<port>[0-9]{1,5}|_[0-9A-Za-z._-]+))?"
_NODE: Final = re.compile(
    rb"(?:(?P<v4>[0-9.]+)|\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>unknown|_[0-9A-Za-z._-]+))" + _PORT, re.IGNORECASE
)
"""An address as in RFC 7239, 6."""
_BARE_V6: Final = re.compile(rb"[0-9A-Fa-f]*:[0-9A-Fa-f:.]+")
"""X-Forwarded-For has addresses of IPv6 without brackets, too."""
_HOST: Final = re.compile(rb"(?:[0-9A-Za-z._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_PAIR: Final = re.compile(
    rb'(?:"(?P<quoted>(?:[\t\x20-\x7e]\\|[\t \x21\x23-\x5b\x5d-\x7e])*)"|'
    rb"(?P<token>" + _TOKEN + rb"))=(?P<name>" + _TOKEN + rb")"
)
"""``name=value`` (RFC 7239, 4), backwards."""
_SEPARATOR: Final = re.compile(rb"[ \t]*([,;])[ \t]*")


class _MalformedError(Exception):
    """An entry is not what the grammar allows."""


@final
@attrs.frozen
class _Hop:
    """What one proxy says about where the request came from."""

    address: Address | None
    """None: the proxy does not say."""
    port: int
    is_named: bool
    """Whether there was an address or a name at all."""
    scheme: bytes | None
    host: bytes | None


@final
class TrustedProxies:
    """Who is believed, and which fields.

    Args:
      trusted: addresses and networks such as ``"10.0.0.0/8"``, and ``"unix"`` for all peers on Unix sockets; or True for
        every peer, where no other than one proxy can connect: its own entry is the client then.
      fields: the family of fields that the proxies set.
      host: whether the field Host becomes what the proxy says, too.  Only for proxies that set X-Forwarded-Host or
        ``host=`` in every request: others pass on what the client has sent, and apps make links of it.

    Raises:
      ValueError: a network is not one, or there are none, or ``fields`` is not a family.
      TypeError: ``trusted`` is not a collection of strings.
    """

    __slots__ = ("_fields", "_host", "_known", "_networks", "_unix")

    def __init__(
        self,
        trusted: Iterable[str] | Literal[True] = LOOPBACK,
        *,
        fields: ProxyFields = "x-forwarded",
        host: bool = False,
    ) -> None:
        if fields not in get_args(ProxyFields):
            raise ValueError(f"the fields of proxies are 'x-forwarded' or 'forwarded', not {fields!r}")
        self._fields = fields
        self._host = host
        self._networks: tuple[Network, ...] | None = None
        self._unix = True
        self._known: dict[str, bool] = {}  # peers that were asked for, so that a proxy's address is parsed once
        if trusted is not True:
            self._networks, self._unix = _networks(trusted)

    def trusts(self, peer: Any) -> bool:
        """Whether the fields count in requests of this peer.

        Args:
          peer: a :attr:`Connection.remote_address`, or the ``client`` of a scope: of a Unix socket it is not a tuple.
        """
        if not isinstance(peer, tuple):
            return self._unix
        if self._networks is None:
            return True
        host = str(peer[0])
        known = self._known.get(host)
        if known is None:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            known = self._known[host] = self._is_proxy(_address(host.partition("%")[0]))
        return known

    def apply(self, scope: dict[str, Any]) -> None:
        """Put into a scope what the proxy says.  Call it for requests of a peer that :meth:`trusts` has accepted.

        ``client`` becomes ``(address, port)``, with port 0 where the proxy does not say it, or None if the proxy knows no
        address.  ``scheme`` becomes ``http`` or ``https`` (``ws`` or ``wss`` of a WebSocket's scope).  With ``host`` the
        field Host in ``headers``, which becomes another list, has the proxy's value.

        ``client`` becomes None, too, and the rest stays as it is, where a proxy's entry is malformed, or there are more than
        :data:`MAX_HOPS` proxies.  A scheme or a host that is malformed changes nothing.
        """
        hops = _x_forwarded(scope["headers"]) if self._fields == "x-forwarded" else _forwarded(scope["headers"])
        try:
            hop = self._first_untrusted(hops)
        except _MalformedError:
            scope["client"] = None
            return
        if hop is None:
            return
        if hop.is_named:
            scope["client"] = None if hop.address is None else (str(hop.address), hop.port)
        scheme = None if hop.scheme is None else _SCHEMES.get(hop.scheme.lower())
        if scheme is not None:
            is_websocket = scope["type"] == "websocket"
            scope["scheme"] = {"http": "ws", "https": "wss"}[scheme] if is_websocket else scheme
        if self._host and hop.host is not None and _HOST.fullmatch(hop.host):
            others = [pair for pair in scope["headers"] if pair[0] != b"host"]
            scope["headers"] = [(b"host", hop.host), *others]

    def _first_untrusted(self, hops: Iterator[_Hop]) -> _Hop | None:
        """The hop of the client: the first one from the server that is not of a trusted proxy, or else the last."""
        last = None
        for count, hop in enumerate(hops):
            if count == MAX_HOPS:
                raise _MalformedError
            last = hop
            if hop.address is None or not self._is_proxy(hop.address):
                break
        return last

    def _is_proxy(self, address: Address) -> bool:
        return self._networks is not None and any(address in network for network in self._networks)


def proxied(app: AsgiApp, proxies: TrustedProxies) -> AsgiApp:
    """The app, called with scopes in which the fields of trusted proxies count.  It costs no coroutine of its own."""

    def call(scope: Any, receive: Any, send: Any) -> Awaitable[object]:
        if scope["type"] != "lifespan" and proxies.trusts(scope["client"]):
            proxies.apply(scope)
        return app(scope, receive, send)

    return call


def _networks(trusted: Iterable[str]) -> tuple[tuple[Network, ...], bool]:
    if isinstance(trusted, str | bytes | bool) or not isinstance(trusted, Iterable):
        raise TypeError(f'trusted proxies are a collection such as ("127.0.0.1", "10.0.0.0/8"), not {trusted!r}')
    names = list(trusted)
    for name in names:
        if not isinstance(
            name, str | ipaddress.IPv4Network | ipaddress.IPv6Network
        ):  # a number would be an address, too
            raise TypeError(f'trusted proxies are named as "127.0.0.1" or "10.0.0.0/8", not {name!r}')
    try:
        networks = tuple(ipaddress.ip_network(name) for name in names if name != UNIX)
    except ValueError as error:
        raise ValueError(
            f"trusted proxies are named by address or network such as 10.0.0.0/8, or as 'unix': {error}"
        ) from error
    if not names:
        raise ValueError("no proxy is trusted, so no field would count")
    return networks, UNIX in names


def _address(text: str) -> Address:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise _MalformedError from None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _node(text: bytes, *, bare: bool) -> tuple[Address | None, int]:
    """The address and the port of an entry; None for one without an address, and 0 for no port."""
    if bare and _BARE_V6.fullmatch(text):
        return _address(text.decode("ascii")), 0
    match = _NODE.fullmatch(text)
    if match is None:
        raise _MalformedError
    port = match["port"] or b"0"
    number = int(port) if port.isdigit() else 0
    if number > 65535:
        raise _MalformedError
    if match["name"] is not None:
        return None, 0
    if match["v6"] is not None:
        if b":" not in match["v6"]:
            raise _MalformedError
        return _address(match["v6"].decode("ascii")), number
    return _address(match["v4"].decode("ascii")), number


# --- X-Forwarded-* ---


def _x_forwarded(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[_Hop]:
    """The hops from the server to the client.

    The lists of schemes and hosts are aligned with that of addresses at their ends.  Where a list is shorter, because a
    proxy has passed it on as it was, its first entry holds for the hops before it, too.
    """
    names, schemes, hosts = (_entries(headers, b"x-forwarded-" + kind) for kind in (b"for", b"proto", b"host"))
    for count in range(max(len(names), 1 if schemes or hosts else 0)):
        scheme = schemes[min(count, len(schemes) - 1)] if schemes else None
        host = hosts[min(count, len(hosts) - 1)] if hosts else None
        if names:
            address, port = _node(names[count], bare=True)
            yield _Hop(address, port, True, scheme, host)
        else:
            yield _Hop(None, 0, False, scheme, host)


def _entries(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> list[bytes]:
    """The entries of a list, which several fields may form, from the last one to the first."""
    values = [value for name, value in headers if name == wanted]
    return [entry.strip(b" \t") for value in reversed(values) for entry in reversed(value.split(b","))]


# --- Forwarded ---


def _forwarded(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[_Hop]:
    """The hops from the server to the client."""
    for value in reversed([value for name, value in headers if name == b"forwarded"]):
        for pairs in _elements(value):
            node = pairs.get(b"for")
            address, port = (None, 0) if node is None else _node(node, bare=False)
            yield _Hop(address, port, node is not None, pairs.get(b"proto"), pairs.get(b"host"))


def _elements(value: bytes) -> Iterator[dict[bytes, bytes]]:
    """The elements of one field (RFC 7239, 4), from the last one to the first: pairs by name in lower case.

    It reads the field backwards, so that a quotation mark which a client leaves open cannot enclose what a proxy appends.
    Backwards, too, the grammar allows one reading only: a quoted string begins at the last quotation mark that is not
    escaped.
    """
    backwards = value[::-1]
    element: dict[bytes, bytes] = {}
    position = 0
    while True:
        pair = _PAIR.match(backwards, position)
        if pair is None:
            raise _MalformedError
        name = pair["name"][::-1].lower()
        if name in element:
            raise _MalformedError
        quoted = pair["quoted"]
        element[name] = pair["token"][::-1] if quoted is None else re.sub(rb"\\(.)", rb"\1", quoted[::-1])
        position = pair.end()
        if position == len(backwards):
            yield element
            return
        separator = _SEPARATOR.match(backwards, position)
        if separator is None:
            raise _MalformedError
        if separator[1] == b",":
            yield element
            element = {}
        position = separator.end()

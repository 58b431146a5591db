"""Addresses as text.

    tcp://host:port                  a name, 127.0.0.1, [::1] or [fe80::1%eth0]; an empty host: all addresses
    udp://host:port                  the same
    unix:///run/app.sock             a path from the root; three slashes, because the host between two of them is empty
    unix://@name                     an abstract name (Linux), without a file; unix(7)
    fd://3                           a descriptor that the process was started with
    fd://systemd, fd://systemd/web   those that systemd passed, all of them or those of this FileDescriptorName=

A Unix socket's path is never relative: the kernel looks it up at each bind, connect and removal, and all of these must
mean the same file, whatever the working directory is by then.  In a shell, ``unix://$PWD/app.sock``.

An address has none of the other parts of a URL: no user name, no path after a port, no query (options are keyword
arguments, which a type checker sees), no fragment.  In Unix paths and systemd's names some bytes are written as ``%`` and
two hexadecimal digits: a space, ``%``, ``?``, ``#`` and everything unprintable.

The classes validate their arguments, so every instance has a text, and ``parse_address(str(address), ...)`` returns an
equal address.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final, Literal, TypeAlias, TypeVar, final, overload
from urllib.parse import quote_from_bytes, unquote_to_bytes

import attrs

Scheme: TypeAlias = Literal["tcp", "udp", "unix", "fd"]

_EXAMPLES: Final[dict[Scheme, tuple[str, ...]]] = {
    "tcp": ("tcp://127.0.0.1:8080", "tcp://[::1]:8080", "tcp://localhost:0"),
    "udp": ("udp://127.0.0.1:8080", "udp://[::1]:8080", "udp://localhost:0"),
    "unix": ("unix:///run/app.sock", "unix://@name"),
    "fd": ("fd://3", "fd://systemd", "fd://systemd/NAME"),
}

SUN_PATH: Final = 108 if sys.platform == "linux" else 104
"""Bytes that the kernel has for the path of a Unix socket, with the NUL at its end; unix(7)."""
_HAS_ABSTRACT_NAMES: Final[bool] = sys.platform == "linux"

_MAX_PORT: Final = 65535
_MAX_DESCRIPTOR: Final = 2**31 - 1
_SYSTEMD: Final = "systemd"
_MAX_NAME: Final = 255  # sd_listen_fds_with_names(3)

_HOST_PORT = re.compile(r"(?:\[(?P<bracketed>[^\[\]]*)\]|(?P<plain>[^\[\]:]*)):(?P<port>[^:]*)")
_NUMBERS = re.compile(r"[0-9.]+")
_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_UNQUOTED: Final = "/!$&'()*+,;=:@"  # beside letters, digits and _.-~ (RFC 3986, pchar)


# --- what the classes check ---


def _check_host(_instance: object, _attribute: attrs.Attribute[str], host: str) -> None:
    if not isinstance(host, str):
        raise TypeError(f"a host is a string, not {host!r}")
    if any(character.isspace() or not character.isprintable() for character in host):
        raise ValueError(f"the host {host!r} has whitespace or an unprintable character in it")
    if ":" in host:
        _check_ipv6(host)
    elif not set(host).isdisjoint("[]/\\?#@%"):
        raise ValueError(f"the host {host!r} is neither a name nor an IP address; a host is not percent-encoded")
    elif _NUMBERS.fullmatch(host):
        try:
            ipaddress.IPv4Address(host)
        except ValueError as error:
            reason = "write four numbers of 0 to 255, without leading zeros"
            raise ValueError(f"the host {host!r} is not an IPv4 address; {reason}") from error


def _check_ipv6(host: str) -> None:
    try:
        ipaddress.IPv6Address(host)
    except ValueError as error:
        raise ValueError(f"the host {host!r} is not an IPv6 address ({error})") from error
    scope = host.partition("%")[2]
    if not set(scope).isdisjoint("[]/\\?#@") or re.match(r"25[^0-9]", scope):
        raise ValueError(f"the scope of {host!r} is not the name of an interface; write it as in fe80::1%eth0")


def _check_int(what: str, largest: int) -> Callable[[object, attrs.Attribute[Any], Any], None]:
    def check(_instance: object, _attribute: attrs.Attribute[Any], value: Any) -> None:
        if not isinstance(value, int):
            raise TypeError(f"a {what} is a number, not {value!r}")
        if not 0 <= value <= largest:
            raise ValueError(f"a {what} is at least 0 and at most {largest}, not {value}")

    return check


def _check_name(_instance: object, _attribute: attrs.Attribute[str], name: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"a name is a string, not {name!r}")
    fine = 1 <= len(name) <= _MAX_NAME and name.isascii() and name.isprintable() and ":" not in name
    if not fine:
        reason = f"systemd's have 1 to {_MAX_NAME} printable ASCII characters, and no colon"
        raise ValueError(f"{name!r} is not a name of a descriptor: {reason}")


def _encode(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> bytes:
    try:
        return os.fsencode(path)
    except UnicodeEncodeError as error:
        raise ValueError(f"{path!r} has a character in it that no file name can have") from error


def _decode_path(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> str:
    """The path as :func:`os.fsdecode` returns it, so that one path has one form."""
    return os.fsdecode(_encode(path))


# --- the classes ---


@attrs.frozen
class _InternetAddress:
    scheme: ClassVar[Scheme]

    host: str = attrs.field(validator=_check_host)
    """A name, an IPv4 address, or an IPv6 address without brackets; empty for all addresses of this machine."""
    port: int = attrs.field(validator=_check_int("port", _MAX_PORT))
    """0 to 65535."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


@final
@attrs.frozen
class TcpAddress(_InternetAddress):
    """A host and a TCP port, not looked up.

    Raises:
      ValueError: the host is invalid, or the port is out of range; the message says what is wrong.
    """

    scheme: ClassVar[Scheme] = "tcp"


@final
@attrs.frozen
class UdpAddress(_InternetAddress):
    """A host and a UDP port, not looked up.

    Raises:
      ValueError: the host is invalid, or the port is out of range; the message says what is wrong.
    """

    scheme: ClassVar[Scheme] = "udp"


@final
@attrs.frozen
class UnixAddress:
    """The path of a Unix socket, or an abstract name.

    Raises:
      ValueError: the path is empty, too long, relative, or has a NUL in it; the message says what is wrong.
    """

    scheme: ClassVar[Scheme] = "unix"

    path: str = attrs.field(converter=_decode_path)
    """An absolute path, as :func:`os.fsdecode` returns it; the constructor accepts bytes and path objects, too.  If
    abstract, the name without the NUL before it."""
    abstract: bool = False

    def __attrs_post_init__(self) -> None:
        what = "abstract name" if self.abstract else "path"
        size = len(os.fsencode(self.path))
        if not size:
            raise ValueError(f"the {what} of a Unix socket is empty")
        if size > SUN_PATH - 1:
            hint = "choose a shorter one" if self.abstract else "choose a shorter one, in /run or /tmp perhaps"
            limit = f"at most {SUN_PATH - 1}, which is sizeof(sun_path) less its NUL"
            raise ValueError(f"the {what} {self.path!r} has {size} bytes; a Unix socket's has {limit}: {hint}")
        if self.abstract:
            if not _HAS_ABSTRACT_NAMES:
                raise ValueError(
                    f"the abstract name {self.path!r} cannot be used here: only Linux has them; use a path"
                )
            return
        if "\0" in self.path:
            raise ValueError(
                f"the path {self.path!r} has a NUL in it, which ends a path; an abstract name may have one"
            )
        if not self.path.startswith("/"):
            hint = f"write all of it, unix:///run/{quote_from_bytes(os.fsencode(self.path), _UNQUOTED)} for example"
            raise ValueError(f"the path {self.path!r} does not begin at the root: {hint}")
        if self.path.endswith("/"):
            raise ValueError(f"the path {self.path!r} names a directory; add the name of the socket")

    def __str__(self) -> str:
        at = "@" if self.abstract else ""
        return f"unix://{at}{quote_from_bytes(os.fsencode(self.path), _UNQUOTED)}"

    @property
    def sockaddr(self) -> bytes:
        """The argument for :meth:`socket.socket.bind` and ``connect``."""
        return (b"\0" if self.abstract else b"") + os.fsencode(self.path)


@final
@attrs.frozen
class FdAddress:
    """Sockets that the process was started with: a descriptor, or those that systemd has passed.

    With neither a descriptor nor a name it means all sockets that systemd has passed (sd_listen_fds(3)).  Several sockets
    may have one name, as the sockets of one unit have by default.

    Raises:
      ValueError: the descriptor is out of range, the name is invalid, or both are given.
    """

    scheme: ClassVar[Scheme] = "fd"

    descriptor: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(_check_int("descriptor", _MAX_DESCRIPTOR))
    )
    """The number of the descriptor."""
    name: str | None = attrs.field(default=None, validator=attrs.validators.optional(_check_name))
    """``FileDescriptorName=`` of the socket's unit (systemd.socket(5)); by default that is the name of the unit."""

    def __attrs_post_init__(self) -> None:
        if self.descriptor is not None and self.name is not None:
            raise ValueError(f"a descriptor has a number or a name, not both: {self.descriptor} and {self.name!r}")

    def __str__(self) -> str:
        if self.descriptor is not None:
            return f"fd://{self.descriptor}"
        return f"fd://{_SYSTEMD}" + (f"/{quote_from_bytes(self.name.encode(), _UNQUOTED)}" if self.name else "")


Address: TypeAlias = TcpAddress | UdpAddress | UnixAddress | FdAddress


def address_text(sockaddr: Any) -> str:
    """The text, ``tcp://...`` or ``unix://...``, for a listener's address as from :meth:`socket.socket.getsockname`."""
    if isinstance(sockaddr, tuple):
        return str(TcpAddress(*sockaddr[:2]))
    name = os.fsencode(sockaddr)
    return str(UnixAddress(name.removeprefix(b"\0"), abstract=name.startswith(b"\0")))


def reachable_address(address: Any, scheme: Scheme) -> Any:
    """The address by which a client on the same machine reaches a server; text is returned unchanged.

    Args:
      address: text, or an address as from :meth:`socket.socket.getsockname`: ``(host, port)``, with flow and scope for
        IPv6, a path, or bytes of an abstract name.  The loopback address replaces a host that means all addresses of the
        machine.
      scheme: the scheme for a host and a port.

    Raises:
      ValueError: the address is of neither kind; the message says what is wrong.
    """
    if isinstance(address, bytes) or (isinstance(address, str) and address.startswith("/")):
        return str(UnixAddress(_name_of(address), abstract=os.fsencode(address).startswith(b"\0")))
    if not isinstance(address, tuple):
        return address
    if len(address) not in (2, 4):
        raise ValueError(
            f"an address of a socket is (host, port), or of IPv6 (host, port, flow, scope), not {address!r}"
        )
    host, port, *more = address
    host = _LOOPBACK.get(host, host)
    if more and more[1] and isinstance(host, str) and "%" not in host:
        host = f"{host}%{more[1]}"
    kind = UdpAddress if scheme == "udp" else TcpAddress
    return str(kind(host, port))


_LOOPBACK: Final = {"": "localhost", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing is bound to it here


def _name_of(sockaddr: str | bytes) -> bytes:
    return os.fsencode(sockaddr).removeprefix(b"\0")


# --- parsing ---


@overload
def parse_address(address: str) -> TcpAddress: ...


@overload
def parse_address(address: str, *, schemes: Sequence[Scheme]) -> Address: ...


def parse_address(address: str, *, schemes: Sequence[Scheme] = ("tcp",)) -> Address:
    """Parse an address that has one of the given schemes.

    Args:
      address: see the top of this module.
      schemes: the schemes that the caller supports.

    Raises:
      TypeError: ``address`` is not a string.
      ValueError: the text is no such address; the message says what is wrong, and has an example.
    """
    if not isinstance(address, str):
        raise TypeError(f"an address is a string such as {_examples(schemes)}, not {address!r}")
    scheme, separator, rest = address.partition("://")
    if not separator:
        meant = [known for known in schemes if address.startswith(f"{known}:")]
        raise ValueError(f"{address!r} is not an address: it has no scheme; write {_examples(meant or schemes)}")
    for known in schemes:
        if scheme == known:
            break
    else:
        wanted = _join(schemes)
        if scheme in _EXAMPLES:
            what = f"is not an address that can be used here: the scheme must be {wanted}"
            cure = "; UDP is for serve_datagrams() and open_datagram_endpoint()" if scheme == "udp" else ""
            raise ValueError(f"{address!r} {what}; write {_examples(schemes)}{cure}")
        lower = ", in lower case" if scheme.lower() in schemes else ""
        what = f"is not an address gain_trio can use: the scheme must be {wanted}{lower}"
        raise ValueError(f"{address!r} {what}; write {_examples(schemes)}")
    try:
        return _PARSERS[known](rest)
    except ValueError as error:
        raise ValueError(f"{address!r} is not an address: {error}; write {_examples([known])}") from error


def _examples(schemes: Sequence[Scheme]) -> str:
    """All examples of a single scheme, or the first example of each of several."""
    return _join(_EXAMPLES[schemes[0]] if len(schemes) == 1 else [_EXAMPLES[scheme][0] for scheme in schemes])


def _join(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


_Internet = TypeVar("_Internet", TcpAddress, UdpAddress)


def _parse_internet(kind: type[_Internet], rest: str) -> _Internet:
    for character, what in (("@", "a user name"), ("/", "a path"), ("?", "a query"), ("#", "a fragment")):
        if character in rest:
            raise ValueError(f"after {kind.scheme}:// come a host and a port, and not {what} ({character!r})")
    match = _HOST_PORT.fullmatch(rest)
    if match is None:
        if rest.count(":") > 1 and "[" not in rest:
            raise ValueError("an IPv6 address stands in brackets, so that its colons are not taken for the port's")
        missing = ", and the port is missing" if rest.endswith("]") or ":" not in rest else ""
        raise ValueError(f"after {kind.scheme}:// come a host and a port{missing}")
    host = match["bracketed"] if match["plain"] is None else match["plain"]
    if match["bracketed"] is not None and ":" not in host:
        raise ValueError("brackets are for IPv6 addresses")
    return kind(host, _parse_number("port", match["port"], _MAX_PORT))


def _parse_number(what: str, text: str, largest: int) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"the {what} must be a number, and not {text!r}" if text else f"the {what} is missing")
    number = int(text) if len(text) <= len(str(largest)) else largest + 1
    if number > largest:
        raise ValueError(f"a {what} is at most {largest}")
    return number


def _unquote(text: str) -> bytes:
    for character in text:
        if character in "?#" or character.isspace() or not character.isprintable():
            code = "".join(f"%{byte:02X}" for byte in _encode(character))
            raise ValueError(f"{character!r} cannot stand for itself: write {code}")
    if _PERCENT.search(text):
        raise ValueError("after a % come two hexadecimal digits, and the character itself is written %25")
    return unquote_to_bytes(_encode(text))


def _parse_unix(rest: str) -> UnixAddress:
    if rest.startswith("@"):
        return UnixAddress(_unquote(rest[1:]), abstract=True)
    path = _unquote(rest)
    if path and not path.startswith(b"/"):
        raise ValueError(f"a path begins at the root, so there are three slashes: unix:///{rest} perhaps")
    return UnixAddress(path)


def _parse_fd(rest: str) -> FdAddress:
    if rest == _SYSTEMD:
        return FdAddress()
    if rest.startswith(f"{_SYSTEMD}/"):
        return FdAddress(name=_unquote(rest[len(_SYSTEMD) + 1 :]).decode("ascii", "surrogateescape"))
    return FdAddress(_parse_number("descriptor", rest, _MAX_DESCRIPTOR))


_PARSERS: Final[dict[Scheme, Callable[[str], Address]]] = {
    "tcp": lambda rest: _parse_internet(TcpAddress, rest),
    "udp": lambda rest: _parse_internet(UdpAddress, rest),
    "unix": _parse_unix,
    "fd": _parse_fd,
}

"""The options of listening sockets, and the kinds of address that each applies to."""

from __future__ import annotations

import math
import socket
from collections.abc import Sequence
from typing import Any, Final, final

import attrs

from ._address import Address, FdAddress, TcpAddress, UnixAddress
from ._unix import Access, check_access

LARGEST_BACKLOG: Final = 65535
"""The backlog for listen(2).  The kernel reduces it to net.core.somaxconn; some systems refuse a larger number than this."""
LARGEST_KEEP_ALIVE: Final = 32767
"""The longest period of Linux in seconds: MAX_TCP_KEEPIDLE."""
MOST_PROBES: Final = 127
"""Linux's MAX_TCP_KEEPCNT."""
LARGEST_USER_TIMEOUT: Final = 2**31 // 1000
"""Seconds: the kernel counts milliseconds in an int."""
LARGEST_BUFFER: Final = 2**31 - 1


def _check_backlog(_instance: object, _attribute: object, backlog: Any) -> None:
    if backlog is None:
        return
    if not isinstance(backlog, int) or isinstance(backlog, bool):
        raise TypeError(f"backlog is a number of connections, or None, not {backlog!r}")
    if backlog < 1:
        raise ValueError(f"backlog must be at least 1, or None, not {backlog}")


def _check_buffer(_instance: object, attribute: attrs.Attribute[Any], size: Any) -> None:
    if size is None:
        return
    if not isinstance(size, int) or isinstance(size, bool):
        raise TypeError(f"{attribute.name} is a number of bytes, or None, not {size!r}")
    if not 1 <= size <= LARGEST_BUFFER:
        raise ValueError(f"{attribute.name} is at least 1 byte and at most {LARGEST_BUFFER}, not {size}")


def _check_keep_alive(_instance: object, attribute: attrs.Attribute[Any], seconds: Any) -> None:
    _check_seconds(attribute.name, seconds, 1, LARGEST_KEEP_ALIVE)


def _check_user_timeout(_instance: object, attribute: attrs.Attribute[Any], seconds: Any) -> None:
    _check_seconds(attribute.name, seconds, 0.001, LARGEST_USER_TIMEOUT)


def _check_seconds(name: str, seconds: Any, least: float, most: float) -> None:
    if seconds is None:
        return
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"{name} is a number of seconds, or None, not {seconds!r}")
    if not least <= seconds <= most:
        raise ValueError(f"{name} is {least} to {most} seconds, or None, not {seconds}")


def _check_probes(_instance: object, attribute: attrs.Attribute[Any], count: Any) -> None:
    if count is None:
        return
    if not isinstance(count, int) or isinstance(count, bool):
        raise TypeError(f"{attribute.name} is a number of probes, or None, not {count!r}")
    if not 1 <= count <= MOST_PROBES:
        raise ValueError(f"{attribute.name} is 1 to {MOST_PROBES} probes, or None, not {count}")


@final
@attrs.frozen(kw_only=True)
class SocketOptions:
    """Options of listening sockets, which :class:`gain_trio.ServerConfig` describes.

    Raises:
      ValueError, TypeError: an option has a value that is invalid for every address.
    """

    backlog: int | None = attrs.field(default=None, validator=_check_backlog)
    reuse_port: bool = False
    receive_buffer: int | None = attrs.field(default=None, validator=_check_buffer)
    send_buffer: int | None = attrs.field(default=None, validator=_check_buffer)
    keep_alive: float | None = attrs.field(default=None, validator=_check_keep_alive)
    keep_alive_interval: float | None = attrs.field(default=None, validator=_check_keep_alive)
    keep_alive_count: int | None = attrs.field(default=None, validator=_check_probes)
    tcp_user_timeout: float | None = attrs.field(default=None, validator=_check_user_timeout)
    mode: int | None = None
    owner: int | str | None = None
    group: int | str | None = None
    pass_fds: bool = False
    owner_of_files: tuple[int, int] | None = None
    """The user and the group of the files of Unix sockets, where ``owner`` and ``group`` name none.  It is no option: an
    address without a file ignores it."""

    def __attrs_post_init__(self) -> None:
        _ = self.access  # the property checks the mode
        for name in ("reuse_port", "pass_fds"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} is True or False, not {getattr(self, name)!r}")
        for name in ("keep_alive_interval", "keep_alive_count"):
            if getattr(self, name) is not None and self.keep_alive is None:
                raise ValueError(f"{name} is of the probes that keep_alive asks for: give keep_alive=, too")

    @property
    def access(self) -> Access:
        """The mode, owner and group of a Unix socket's file."""
        return Access(mode=self.mode, owner=self.owner, group=self.group)

    @property
    def places(self) -> int:
        """The backlog for listen(2)."""
        return min(self.backlog or LARGEST_BACKLOG, LARGEST_BACKLOG)

    def given(self) -> dict[str, Any]:
        """The options that differ from their defaults."""
        options = attrs.asdict(self, filter=lambda attribute, _value: attribute.name != "owner_of_files")
        return {name: value for name, value in options.items() if value is not None and value is not False}


def _refusal(name: str, address: Address) -> str | None:
    """Why an option does not apply to an address, or None if it does."""
    reason = None
    if name == "pass_fds":
        if isinstance(address, TcpAddress):
            reason = "pass_fds=True is for Unix sockets: descriptors do not go through TCP"
    elif name in {"mode", "owner", "group"}:
        if not isinstance(address, UnixAddress):
            reason = f"mode, owner and group are for the file of a Unix socket, and {address} has none"
    elif name == "reuse_port":
        if not isinstance(address, TcpAddress):
            reason = f"reuse_port=True is for TCP, and {address} has no port"
    elif isinstance(address, FdAddress) and name == "tcp_user_timeout":
        reason = f"tcp_user_timeout is for sockets that the server opens, and another process has opened {address}"
    elif isinstance(address, FdAddress):
        setting = {
            "backlog": "Backlog=",
            "receive_buffer": "ReceiveBuffer=",
            "send_buffer": "SendBuffer=",
            "keep_alive": "KeepAlive=",
            "keep_alive_interval": "KeepAliveIntervalSec=",
            "keep_alive_count": "KeepAliveProbes=",
        }[name]
        reason = f"the {name} of {address} was set by the process that opened the socket ({setting}, systemd.socket(5))"
    elif name != "backlog" and isinstance(address, UnixAddress):
        reason = f"{name} is for TCP, and {address} is a Unix socket"
    return reason


def options_for(addresses: Sequence[Address], options: SocketOptions) -> list[SocketOptions]:
    """For each address, the options that apply to it.

    Raises:
      ValueError: an option applies to none of the addresses; the message says why.
    """
    given = options.given()
    for name in given:
        refusals = [_refusal(name, address) for address in addresses]
        if all(refusals):
            raise ValueError(f"{refusals[0]}: leave {name}= out")
    fitting = [
        SocketOptions(**{name: value for name, value in given.items() if _refusal(name, address) is None})
        for address in addresses
    ]
    for address, fit in zip(addresses, fitting, strict=True):
        if isinstance(address, UnixAddress):
            check_access(address, fit.access)
    return [_with_owner(address, fit, options.owner_of_files) for address, fit in zip(addresses, fitting, strict=True)]


def _with_owner(address: Address, options: SocketOptions, ids: tuple[int, int] | None) -> SocketOptions:
    """The options, with the owner and the group of the address's file where they name none."""
    if ids is None or not isinstance(address, UnixAddress) or address.abstract:
        return options
    user, group = ids
    return attrs.evolve(
        options,
        owner=user if options.owner is None else options.owner,
        group=group if options.group is None else options.group,
    )


def apply_tcp_options(sock: socket.socket, options: SocketOptions) -> None:
    """Set the options of TCP on a socket that does not listen yet; its connections inherit them (tcp(7)).

    The kernel needs the receive buffer before listen(2), because the handshake negotiates the window that TCP can offer.

    Raises:
      ValueError: the system lacks an option.
    """
    if options.receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, options.receive_buffer)
    if options.send_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, options.send_buffer)
    if options.keep_alive is not None:
        interval = options.keep_alive if options.keep_alive_interval is None else options.keep_alive_interval
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # macOS has another name for the first one.
        _set_tcp(sock, "keep_alive", ("TCP_KEEPIDLE", "TCP_KEEPALIVE"), math.ceil(options.keep_alive))
        _set_tcp(sock, "keep_alive", ("TCP_KEEPINTVL",), math.ceil(interval))
        if options.keep_alive_count is not None:
            _set_tcp(sock, "keep_alive_count", ("TCP_KEEPCNT",), options.keep_alive_count)
    if options.tcp_user_timeout is not None:
        _set_tcp(sock, "tcp_user_timeout", ("TCP_USER_TIMEOUT",), math.ceil(options.tcp_user_timeout * 1000))


def _set_tcp(sock: socket.socket, name: str, constants: Sequence[str], value: int) -> None:
    for constant in constants:
        option = getattr(socket, constant, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
            return
    raise ValueError(f"{name} needs {constants[0]}, which this system does not have: leave it out")

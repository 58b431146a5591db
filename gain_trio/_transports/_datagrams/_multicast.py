"""The multicast options of a socket, by IP version."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
import sys

_IP_MULTICAST_ALL = 49  # <linux/in.h>; Python has no name for them
_IPV6_MULTICAST_ALL = 29  # <linux/in6.h>
_MREQN = struct.Struct("=4s4si")  # struct ip_mreqn: group, address of the interface, index of the interface
_MREQ6 = struct.Struct("=16sI")  # struct ipv6_mreq: group, index of the interface


def _interface_index(interface: str | int | None) -> int:
    if interface is None:
        return 0
    if isinstance(interface, int):
        return interface
    try:
        return socket.if_nametoindex(interface)
    except OSError as error:
        raise ValueError(f"there is no network interface {interface!r}; see socket.if_nameindex()") from error


def _ipv4_interface(interface: str | int | None) -> tuple[bytes, int]:
    """The address and the index of an interface; the one that the caller did not give is zero."""
    if isinstance(interface, str):
        try:
            return ipaddress.IPv4Address(interface).packed, 0
        except ValueError:
            pass  # the string is a name
    return bytes(4), _interface_index(interface)


def _group_address(sock: socket.socket, group: str) -> bytes:
    version = 4 if sock.family == socket.AF_INET else 6
    try:
        address = ipaddress.ip_address(group)
    except ValueError as error:
        raise ValueError(f"{group!r} is not an IP address of a multicast group") from error
    if address.version != version or not address.is_multicast:
        raise ValueError(f"{group!r} is not an IPv{version} multicast group, which this endpoint can receive")
    return address.packed


def change_membership(sock: socket.socket, group: str, interface: str | int | None, *, member: bool) -> None:
    """Join or leave a group."""
    address = _group_address(sock, group)
    if sock.family == socket.AF_INET:
        request = _MREQN.pack(address, *_ipv4_interface(interface))
        option = socket.IP_ADD_MEMBERSHIP if member else socket.IP_DROP_MEMBERSHIP
        sock.setsockopt(socket.IPPROTO_IP, option, request)
    else:
        request = _MREQ6.pack(address, _interface_index(interface))
        option = socket.IPV6_JOIN_GROUP if member else socket.IPV6_LEAVE_GROUP
        sock.setsockopt(socket.IPPROTO_IPV6, option, request)


def set_multicast_options(
    sock: socket.socket, *, interface: str | int | None, loop: bool | None, ttl: int | None
) -> None:
    """Set the options of datagrams to groups; None keeps the system's default."""
    is_ipv4 = sock.family == socket.AF_INET
    level = socket.IPPROTO_IP if is_ipv4 else socket.IPPROTO_IPV6
    if interface is not None:
        if is_ipv4:
            request = _MREQN.pack(bytes(4), *_ipv4_interface(interface))
            sock.setsockopt(level, socket.IP_MULTICAST_IF, request)
        else:
            sock.setsockopt(level, socket.IPV6_MULTICAST_IF, _interface_index(interface))
    if loop is not None:
        sock.setsockopt(level, socket.IP_MULTICAST_LOOP if is_ipv4 else socket.IPV6_MULTICAST_LOOP, int(loop))
    if ttl is not None:
        sock.setsockopt(level, socket.IP_MULTICAST_TTL if is_ipv4 else socket.IPV6_MULTICAST_HOPS, ttl)
    if sys.platform == "linux":
        # By default a socket bound to all addresses receives the groups that any socket of the machine has joined (ip(7)).
        try:
            sock.setsockopt(level, _IP_MULTICAST_ALL if is_ipv4 else _IPV6_MULTICAST_ALL, 0)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:  # Linux before 4.20 lacks it for IPv6, and has no substitute
                raise

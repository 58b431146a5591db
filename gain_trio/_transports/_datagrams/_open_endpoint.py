"""Opening of datagram endpoints by address."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import socket
from collections.abc import Iterable
from typing import Any, Final

import trio

from gain_trio._io_manager import UringIOManager, current_manager
from gain_trio._transports._addresses import (
    Access,
    UdpAddress,
    UnixAddress,
    bind_with_retries,
    parse_address,
    reachable_address,
    share_port,
)

from ._endpoint import MAX_SIZE, QUEUE_BYTES, QUEUE_SIZE, DatagramEndpoint
from ._multicast import change_membership, set_multicast_options
from ._ring_endpoint import RingEndpoint
from ._socket_endpoint import SocketEndpoint
from ._unix_endpoint import check_options, open_unix_endpoint

_UNUSABLE: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.ENETUNREACH, errno.EHOSTUNREACH})
"""The errnos for an address that this machine lacks or has no route to; the name may have other addresses."""


async def open_datagram_endpoint(
    address: str,
    *,
    remote_address: str | bytes | tuple[Any, ...] | None = None,
    reuse_port: bool = False,
    multicast_groups: Iterable[str] = (),
    multicast_interface: str | int | None = None,
    multicast_loop: bool | None = None,
    multicast_ttl: int | None = None,
    queue_size: int = QUEUE_SIZE,
    queue_bytes: int = QUEUE_BYTES,
    max_size: int = MAX_SIZE,
    receive_buffer: int | None = None,
    send_buffer: int | None = None,
    mode: int | None = None,
    owner: int | str | None = None,
    group: int | str | None = None,
) -> DatagramEndpoint:
    """Open a UDP socket on ``udp://host:port``, or a Unix datagram socket on ``unix:///path`` or ``unix://@abstract-name``.

    An endpoint has one socket, and so one address: the first usable one of a name that has several.  An empty host means
    all IPv4 addresses of this machine (``udp://[::]:port`` means all IPv6 addresses, and those only).
    With port 0 the kernel chooses one; read it from :attr:`DatagramEndpoint.local_address`.

    A Unix endpoint always has a name of its own, so that receivers can answer it.  It treats its file as
    :func:`open_listeners` does: it replaces a left-over file, raises ``EADDRINUSE`` for the file of a live socket and for
    anything else than a socket, and removes its file when it is closed.  It goes over the socket itself also in a run on
    the ring, whose endpoints are for IP.

    Args:
      address: as above; IPv6 addresses stand in brackets.
      remote_address: such an address, or that of a :class:`DatagramServer` or an endpoint, as from
        :meth:`socket.socket.getsockname`; the loopback address replaces one that means all addresses of the machine.
        The endpoint is connected to it: it sends to this address only, and receives from it only.  The local address must
        have the same IP version; an empty host has both.  A Unix socket of this name must exist already; if another
        socket is bound to the name later, datagrams go to that one.
      reuse_port: set ``SO_REUSEPORT``, so that several sockets share the port.  A datagram to one of the machine's
        addresses goes to one of them, chosen by source address; a multicast datagram to each that has joined.
      multicast_groups: IP addresses of the groups to join; :meth:`DatagramEndpoint.join` does so later.
      multicast_interface: the interface on which to join groups, and to send to them: a name or an index, or for IPv4 an
        address of the interface.  None: the system chooses.
      multicast_loop: whether sockets of this machine receive what the endpoint sends to groups; None: yes.
      multicast_ttl: the number of networks that such a datagram may cross; None: 1, this one only.
      queue_size: the most datagrams queued for receiving.
      queue_bytes: the most bytes in them.
      max_size: the endpoint drops and counts larger datagrams.  For a Unix socket up to 16 MiB.
      receive_buffer, send_buffer: the sizes of the kernel's buffers in bytes (``SO_RCVBUF``, ``SO_SNDBUF``); None: the
        system's defaults.
      mode, owner, group: those of a Unix socket's file, see :func:`open_listeners`: a user who may write to it may send.
        Only Linux keeps other users out at every moment.

    Raises:
      ValueError: an address or a number is invalid, or an option does not apply to this kind of address.
      OSError: the address cannot be used, for example because it is in use (``EADDRINUSE``); the message names it.
      socket.gaierror: a host has no address (a subclass of OSError).
      RuntimeError: the caller is not a Trio task.
    """
    local = parse_address(address, schemes=("udp", "unix"))
    assert isinstance(local, UdpAddress | UnixAddress)
    remote = None
    if remote_address is not None:
        remote = parse_address(reachable_address(remote_address, local.scheme), schemes=(local.scheme,))
    access = Access(mode=mode, owner=owner, group=group)
    multicast_groups = list(multicast_groups)
    multicast = bool(multicast_groups) or (multicast_interface, multicast_loop, multicast_ttl) != (None, None, None)
    check_options(local, access=access, reuse_port=reuse_port, multicast=multicast)
    manager = current_manager("gain_trio.open_datagram_endpoint()")
    _check_numbers(queue_size=queue_size, queue_bytes=queue_bytes, max_size=max_size)
    limits = {"queue_size": queue_size, "queue_bytes": queue_bytes, "max_size": max_size}

    def set_buffers(sock: socket.socket) -> None:
        for option, size in ((socket.SO_RCVBUF, receive_buffer), (socket.SO_SNDBUF, send_buffer)):
            if size is not None:
                sock.setsockopt(socket.SOL_SOCKET, option, size)

    if isinstance(local, UnixAddress):
        assert remote is None or isinstance(remote, UnixAddress)
        return await open_unix_endpoint(local, remote, access, set_buffers, **limits)
    assert remote is None or isinstance(remote, UdpAddress)
    pairs = await _look_up(local, remote)

    def configure(sock: socket.socket) -> None:
        if reuse_port:
            share_port(sock)
        set_buffers(sock)
        set_multicast_options(sock, interface=multicast_interface, loop=multicast_loop, ttl=multicast_ttl)

    with contextlib.ExitStack() as stack:
        sock = await _open_socket(pairs, configure, f"{local}" if remote is None else f"{local} to {remote}")
        stack.callback(sock.close)
        for multicast_group in multicast_groups:
            change_membership(sock, multicast_group, multicast_interface, member=True)
        peer = None if remote is None else sock.getpeername()
        endpoint = make_endpoint(manager, sock, peer, **limits)
        stack.pop_all()
        return endpoint


@trio.lowlevel.enable_ki_protection  # because a descriptor has two owners for a moment
def make_endpoint(manager: UringIOManager | None, sock: socket.socket, remote: Any, **limits: int) -> DatagramEndpoint:
    """Make an endpoint of a non-blocking datagram socket, which the endpoint owns from then on.

    A socket of another family than UDP's works if it is connected: :meth:`DatagramEndpoint.receive` returns ``remote`` as
    the source then.
    """
    limits = {"queue_size": QUEUE_SIZE, "queue_bytes": QUEUE_BYTES, "max_size": MAX_SIZE, **limits}
    if manager is None:
        return SocketEndpoint(sock, remote, **limits)
    return RingEndpoint(manager, sock, remote, **limits)


def _check_numbers(*, queue_size: int, queue_bytes: int, max_size: int) -> None:
    for name, number, least, most in (
        ("queue_size", queue_size, 1, 1 << 24),
        ("queue_bytes", queue_bytes, 1, 1 << 40),
        ("max_size", max_size, 0, 1 << 40),
    ):
        if not isinstance(number, int):
            raise TypeError(f"{name} must be a number, not {number!r}")
        if not least <= number <= most:
            raise ValueError(f"{name} must be {least} to {most}, not {number}")


async def _look_up(local: UdpAddress, remote: UdpAddress | None) -> list[tuple[int, Any, Any]]:
    """Look up the candidates: family, local and remote socket address."""
    found = [
        (family, sockaddr)
        for family, _kind, _protocol, _name, sockaddr in await trio.socket.getaddrinfo(
            local.host or None, local.port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE
        )
    ]
    if remote is None:
        return [(family, sockaddr, None) for family, sockaddr in found]
    peers = [
        (family, sockaddr)
        for family, _kind, _protocol, _name, sockaddr in await trio.socket.getaddrinfo(
            remote.host or "localhost", remote.port, type=socket.SOCK_DGRAM
        )
    ]
    pairs: list[tuple[int, Any, Any]] = [
        (family, here, there) for (family, there), (own, here) in itertools.product(peers, found) if family == own
    ]
    if not pairs:
        raise OSError(errno.EAFNOSUPPORT, f"{local} and {remote} are not of the same IP version")
    return pairs


async def _open_socket(pairs: list[tuple[int, Any, Any]], configure: Any, what: str) -> socket.socket:
    """Open a socket on the first candidate that works."""
    for number, (family, here, there) in enumerate(pairs, 1):
        sock = None
        try:
            sock = socket.socket(family, socket.SOCK_DGRAM)
            sock.setblocking(False)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as listeners do
            configure(sock)
            await bind_with_retries(functools.partial(sock.bind, here))
            if there is not None:
                sock.connect(there)
        except BaseException as error:
            if sock is not None:
                sock.close()
            if not isinstance(error, OSError):
                raise
            if number < len(pairs) and error.errno in _UNUSABLE:
                continue
            code = error.errno or 0
            raise OSError(code, f"cannot open an endpoint on {what}: {os.strerror(code)}") from error
        return sock
    raise AssertionError("getaddrinfo() returns at least one address")

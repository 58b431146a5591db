"""Opening plain listening sockets by address.

The package opens each socket once and uses it in several ways: this run makes listeners of it, and worker processes get it
passed.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import trio

from ._address import Address, FdAddress, TcpAddress, UnixAddress, parse_address
from ._bind_retry import bind_with_retries
from ._listen_errors import cannot_listen
from ._open_local import open_passed, open_unix
from ._reuse_port import steer_by_cpu
from ._socket_options import SocketOptions, apply_tcp_options, options_for
from ._sockets import share_address, share_port

SocketAddress: TypeAlias = "tuple[object, ...]"


def close_sockets(groups: Iterable[Iterable[socket.socket]]) -> None:
    """Close all sockets of all groups."""
    for sockets in groups:
        for sock in sockets:
            sock.close()


async def open_sockets(
    addresses: Sequence[str], options: SocketOptions, *, shards: int | None = None, by_cpu: bool = False
) -> list[list[socket.socket]]:
    """Listen on all of the addresses, or on none, and return non-blocking sockets, which the caller owns.

    Args:
      addresses: see :func:`open_listeners`.
      options: an address ignores an option that applies to other kinds of address only.
      shards: None for one group of sockets, or the number of groups that listen on the same ports by ``SO_REUSEPORT``.
        For port 0 the kernel chooses one port for all of them.
      by_cpu: whether the kernel chooses the shard by the CPU that a connection arrives on, instead of by a hash.

    Returns:
      One group for each shard, or a single one; in each a socket for every address that was found, in the same order.

    Raises: see :func:`open_listeners`.
    """
    parsed = [parse_address(address, schemes=("tcp", "unix", "fd")) for address in addresses]
    fitting = options_for(parsed, options)
    if shards is not None:
        _check_shards(parsed)
    groups: list[list[socket.socket]] = [[] for _ in range(shards or 1)]
    await trio.lowlevel.checkpoint()
    try:
        for address, fit in zip(parsed, fitting, strict=True):
            if isinstance(address, UnixAddress):
                groups[0].append(await open_unix(address, fit))
            elif isinstance(address, FdAddress):
                groups[0] += open_passed(address, pass_fds=fit.pass_fds)
            else:
                assert isinstance(address, TcpAddress)
                await _open_tcp(address, fit, groups, shared=shards is not None, by_cpu=by_cpu)
    except BaseException:
        close_sockets(groups)
        raise
    return groups


def _check_shards(addresses: Sequence[Address]) -> None:
    for address in addresses:
        if not isinstance(address, TcpAddress):
            raise ValueError(
                f"socket sharding is for TCP: {address} cannot have several listeners; use architecture='reactor'"
            )


async def _open_tcp(
    address: TcpAddress, options: SocketOptions, groups: list[list[socket.socket]], *, shared: bool, by_cpu: bool
) -> None:
    """Add to each group a socket for each address that the host has."""
    try:
        found = await trio.socket.getaddrinfo(
            address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise cannot_listen(address, error) from error
    unsupported: list[OSError] = []
    before = len(groups[0])  # at least one more must come of this address
    for family, kind, protocol, _name, sockaddr in found:
        where: SocketAddress = sockaddr
        for number, group in enumerate(groups):
            try:
                sock = socket.socket(family, kind, protocol)
            except OSError as error:
                if error.errno != errno.EAFNOSUPPORT:  # a name may have addresses of a family that this machine lacks
                    raise
                unsupported.append(error)
                break
            group.append(sock)  # the caller closes the sockets of the group after an error
            try:
                await _listen(sock, where, options, shared=shared)
            except OSError as error:
                text = TcpAddress(str(where[0]), int(str(where[1])))
                raise cannot_listen(text, error) from error
            if number == 0:
                where = (where[0], sock.getsockname()[1], *where[2:])  # the port that the kernel chose, for the others
        else:
            if by_cpu:
                steer_by_cpu(groups[0][-1], len(groups))
    if len(groups[0]) == before:
        reason = f"this machine supports none of the addresses of {address}"
        raise OSError(errno.EAFNOSUPPORT, reason) from (unsupported[0] if unsupported else None)


async def _listen(sock: socket.socket, where: SocketAddress, options: SocketOptions, *, shared: bool) -> None:
    sock.setblocking(False)
    share_address(sock)
    if options.reuse_port or shared:
        share_port(sock)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has a listener of its own
    # Without TCP_NODELAY a message larger than a segment waits for the peer's delayed acknowledgement: 40 ms (tcp(7)).
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    apply_tcp_options(sock, options)
    await bind_with_retries(lambda: sock.bind(where))
    await bind_with_retries(lambda: sock.listen(options.places))

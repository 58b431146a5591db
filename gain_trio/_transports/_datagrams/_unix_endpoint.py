"""A datagram endpoint of a Unix socket (unix(7)), which goes over the socket in every run.

The ring's endpoint is for IP: its addresses are a host and a port, and it waits for room by poll(2), which does not work
here.

*Waiting for room.*  A datagram goes straight into the receiver's queue, and the kernel refuses it while that is full
(``EAGAIN``; the queue's length is net.unix.max_dgram_qlen, 10 by default).  On Linux poll(2) reports when there is room
again if the socket is connected.  Otherwise the kernel knows no receiver, and poll(2) always reports at once that the
socket is writable: a task that waits by it would spin.  So the endpoint tries again after a pause, which grows to 50 ms.
Each receiver has a queue of its own, so that a receiver that does not read delays only the tasks that send to it.

*Being connected.*  A Unix socket is connected to a socket, not to a name.  Once the other socket is gone, the kernel
reports it (``ECONNREFUSED``), drops the connection (``ENOTCONN`` from then on), and lets any socket send.  The endpoint
connects to the name again then, and ignores datagrams from other names meanwhile, as the kernel did before.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn, final

import attrs
import trio

from gain_trio._transports._addresses import (
    NO_SIGNAL,
    SUN_PATH,
    Access,
    UdpAddress,
    UnixAddress,
    bind_unix,
    check_access,
    check_unix,
)

from ._socket_endpoint import DatagramInbox, SocketEndpoint

if TYPE_CHECKING:
    from typing_extensions import Buffer

_SHARED_SCRATCH: Final = 65535
"""The largest ``max_size`` for the buffer that all endpoints of the run share: one byte more detects larger datagrams."""
_LARGEST: Final = 1 << 24
_SHORTEST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 0.05
_IS_LINUX: Final[bool] = sys.platform == "linux"
_NO_ROOM: Final = frozenset({errno.EAGAIN} if _IS_LINUX else {errno.EAGAIN, errno.ENOBUFS})
"""The errnos of a full queue.  BSD reports ``ENOBUFS`` for it; on Linux that means that the machine lacks memory."""
_DISCONNECTED: Final = frozenset({errno.ECONNREFUSED, errno.ENOTCONN})


def check_options(address: UdpAddress | UnixAddress, *, access: Access, reuse_port: bool, multicast: bool) -> None:
    """Raise a :exc:`ValueError` if a given option does not apply to this kind of address."""
    if isinstance(address, UdpAddress):
        if access:
            raise ValueError(
                f"mode, owner and group are for the file of a Unix socket, and {address} has none: leave them out"
            )
        return
    check_unix("udp://127.0.0.1:PORT")
    check_access(address, access)
    if reuse_port:
        raise ValueError(f"reuse_port=True is for UDP, and {address} has no port: leave it out")
    if multicast:
        raise ValueError(f"multicast is for UDP, and {address} is a Unix socket: leave out the multicast options")


async def open_unix_endpoint(
    address: UnixAddress,
    remote: UnixAddress | None,
    access: Access,
    configure: Callable[[socket.socket], None],
    *,
    queue_size: int,
    queue_bytes: int,
    max_size: int,
) -> UnixEndpoint:
    """Open an endpoint, connected to ``remote`` if that is given."""
    if max_size > _LARGEST:
        raise ValueError(f"max_size must be at most {_LARGEST} for a Unix socket, not {max_size}")
    try:
        sock = await bind_unix(address, remote, access, configure)
    except OSError as error:
        what = f"{address}" if remote is None else f"{address} to {remote}"
        raise OSError(error.errno, f"cannot open an endpoint on {what}: {error.strerror}") from error
    try:
        peer = None if remote is None else sock.getpeername()
        return UnixEndpoint(
            sock, peer, remote=remote, queue_size=queue_size, queue_bytes=queue_bytes, max_size=max_size
        )
    except BaseException:
        sock.close()
        raise


@final
class _UnixDatagramInbox(DatagramInbox):
    def __init__(self, sock: socket.socket, remote: Any, queue_size: int, queue_bytes: int, max_size: int) -> None:
        super().__init__(sock, remote, queue_size, queue_bytes, max_size)
        if max_size > _SHARED_SCRATCH:
            self._scratch = bytearray(max_size + 1)

    def _put(self, length: int, address: Any) -> None:
        if self.remote is None or address == self.remote:
            super()._put(length, address or None)  # some systems return "" for a sender without a name


@final
@attrs.define
class _SendQueue:
    """The tasks that wait to send to one receiver."""

    lock: trio.StrictFIFOLock = attrs.field(factory=trio.StrictFIFOLock)
    length: int = 0


@final
class UnixEndpoint(SocketEndpoint):
    """See :class:`DatagramEndpoint`."""

    _make_inbox: ClassVar[type[DatagramInbox]] = _UnixDatagramInbox

    def __init__(
        self,
        sock: socket.socket,
        remote_address: Any,
        *,
        remote: UnixAddress | None,
        queue_size: int,
        queue_bytes: int,
        max_size: int,
    ) -> None:
        super().__init__(sock, remote_address, queue_size=queue_size, queue_bytes=queue_bytes, max_size=max_size)
        self._remote = remote
        self._lines: dict[Any, _SendQueue] = {}

    def _line_is_empty(self, address: Any) -> bool:
        return (self._inbox.remote if address is None else address) not in self._lines

    async def _stand_in_line(self, data: Buffer, address: Any) -> None:
        receiver = self._inbox.remote if address is None else address
        line = self._lines.setdefault(receiver, _SendQueue())
        line.length += 1
        try:
            async with line.lock:
                pause = _SHORTEST_PAUSE
                while not self._send_now(data, address):
                    if self._remote is not None and _IS_LINUX:
                        await trio.lowlevel.wait_writable(self._inbox.sock)
                        continue
                    with trio.move_on_after(pause):
                        await self._inbox.ended.wait()
                    pause = min(2 * pause, _LONGEST_PAUSE)
        finally:
            line.length -= 1
            if not line.length:
                del self._lines[receiver]

    def _transmit(self, data: Buffer, address: Any) -> int:
        inbox = self._inbox
        try:
            if self._remote is None:
                return inbox.sock.sendto(data, NO_SIGNAL, address)
            try:
                return inbox.sock.send(data, NO_SIGNAL)
            except OSError as error:
                if error.errno not in _DISCONNECTED:
                    raise
            inbox.sock.connect(self._remote.sockaddr)
            inbox.remote = inbox.sock.getpeername()  # the receiver may have bound the name in another spelling
            return inbox.sock.send(data, NO_SIGNAL)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise BlockingIOError(error.errno, error.strerror) from error
            raise OSError(error.errno, error.strerror, address if self._remote is None else inbox.remote) from error

    def _check_destination(self, address: Any) -> None:
        """Raise an :exc:`OSError`, not a mistake of the program, for an address that a sender may have bound on purpose."""
        if address is None:
            raise OSError(
                errno.EDESTADDRREQ,
                "there is no address to send to: this endpoint is not connected to one, and a sender without a name "
                "(None) cannot be answered unless it binds one",
            )
        if not isinstance(address, str | bytes):
            raise TypeError(f"an address here is a path (str) or an abstract name (bytes), not {address!r}")
        name = os.fsencode(address)
        if isinstance(address, bytes) and name.startswith(b"\0"):
            if len(name) > SUN_PATH:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), address)
            return
        if not name.startswith(b"/"):
            raise OSError(
                errno.EDESTADDRREQ,
                "it is neither a path from the root, such as '/run/app.sock', nor an abstract name, such as b'\\0app'",
                address,
            )
        if b"\0" in name:
            raise ValueError(f"the path {address!r} has a NUL in it, which ends a path")
        if len(name) >= SUN_PATH:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), address)

    def join(self, group: str, interface: str | int | None = None) -> NoReturn:
        """Raise a :exc:`ValueError`: multicast is for UDP."""
        raise ValueError(f"{group!r} cannot be joined: multicast is for UDP, and this is a Unix socket ({interface=})")

    leave = join

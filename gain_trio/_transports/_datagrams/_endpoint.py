"""The contract of a datagram endpoint, whatever it runs on."""

from __future__ import annotations

import abc
import contextlib
import errno
import socket
import struct
import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, NoReturn, SupportsIndex, TypeAlias, final

import attrs
import trio

from gain_trio._transports._peer import endpoint_text

from ._multicast import change_membership

if TYPE_CHECKING:
    from typing_extensions import Buffer, Self

Datagram: TypeAlias = "tuple[bytes, Any]"
"""The data, and the address it came from: ``(host, port)``, or ``(host, port, flow information, scope)`` for IPv6.

Of a Unix socket it is a path (str), an abstract name (bytes that begin with a NUL), or None if the sender has no name.
"""

QUEUE_SIZE = 1024
QUEUE_BYTES = 4 << 20
MAX_SIZE = 65535

_SO_MEMINFO = 55  # <asm-generic/socket.h>; nine numbers, the last of which are the drops (<linux/sock_diag.h>)
_MEMINFO = struct.Struct("9I")


@final
@attrs.frozen
class DatagramStatistics:
    """A snapshot of an endpoint's counters.  A datagram that arrived is in exactly one of ``received``, ``dropped``,
    ``oversized`` and ``dropped_by_kernel``.
    """

    received: int
    """Datagrams that went to the queue."""
    received_bytes: int
    """Bytes in them."""
    sent: int
    """Datagrams that the kernel has taken."""
    sent_bytes: int
    """Bytes in them."""
    failed: int
    """Datagrams that the kernel has refused to send, or that were left when the endpoint was closed."""
    dropped: int
    """Datagrams dropped here because the queue was full."""
    oversized: int
    """Datagrams dropped here because they were larger than ``max_size``."""
    dropped_by_kernel: int | None
    """Datagrams that the kernel has dropped because its own buffer was full, or because they were damaged.  None where
    it does not tell: elsewhere than on Linux, and when the endpoint is closed."""
    queued: int
    """Datagrams received and not yet taken."""
    unsent: int
    """Datagrams sent and not yet taken by the kernel."""


class DatagramEndpoint(trio.abc.AsyncResource):
    """A UDP socket, or a Unix datagram socket.

    :meth:`receive` and :meth:`send` are always cancellation points.  They are schedule points when they have to wait.
    What can be answered from memory is answered at once, but not for ever: receiving, until the queue is empty, for it
    is filled while the run waits; sending, for 256 datagrams.

    Any number of tasks may receive and send at a time.  Each datagram goes to one of them; those that wait stand in
    line.  An endpoint that was closed raises :exc:`trio.ClosedResourceError`.

    The endpoint always reads, whether or not somebody receives, and keeps what arrives in a queue.  The queue is
    bounded in datagrams and in bytes (it holds one datagram whatever its size).  What arrives when it is full is
    dropped and counted, as the network does with what it cannot carry: the oldest datagrams are kept.
    """

    __slots__ = ()

    context: Any
    """The program's own: anything, None at first."""

    def __reduce_ex__(self, _protocol: SupportsIndex, /) -> NoReturn:
        # A copy would be a second owner of the descriptor: the first to close it closes the other's, or a stranger's.
        raise TypeError("a datagram endpoint cannot be copied or pickled")

    # --- datagrams ---

    @abc.abstractmethod
    def receive(self) -> Coroutine[Any, Any, Datagram]:
        """Wait for a datagram and return it whole, with the address it came from.  It may be empty.

        Raises:
          trio.ClosedResourceError: the endpoint is, or meanwhile was, closed.
          OSError: the socket has told of an error, which is raised once, and the endpoint goes on.  A connected endpoint
            gets :exc:`ConnectionRefusedError` when the host out there has answered that nobody listens on that port (an
            ICMP message, which may be about any datagram sent before).  It is raised by this or by :meth:`send`.  Of a
            Unix socket, :meth:`send` raises it.

        Cancelling it loses nothing: a datagram is taken from the queue only when the task runs.
        """

    @abc.abstractmethod
    def send(self, data: Buffer, /, address: Any = None) -> Coroutine[Any, Any, None]:
        """Send a datagram: whole, and after those sent before.  Waits while the socket has no room.

        A small datagram to an address that datagrams have gone to leaves, together with others, before the run waits
        next.  Any other leaves at once.  ``data`` may be changed afterwards.

        Through a Unix socket nothing is lost on the way: a receiver who does not keep up makes senders wait, for ever if
        he never reads.  So give the answers of a server a time limit (:func:`trio.move_on_after`).  One who is waited
        for does not hold up what goes to others.

        Args:
          data: up to 65507 bytes (65527 by IPv6; to a Unix socket a little less than ``SO_SNDBUF``), or none.
          address: ``(host, port)`` as :meth:`receive` returns it.  The host is an IP address: names are not looked up
            here.  Of a Unix socket, a path or abstract name as :meth:`receive` returns it.  May be left out if the
            endpoint is connected.

        Raises:
          trio.ClosedResourceError: the endpoint is, or meanwhile was, closed.
          OSError: the kernel refuses this datagram: it is too large (``EMSGSIZE``), there is no way to the address
            (``ENETUNREACH``), it is not allowed (``EACCES``, ``EPERM``).  To a Unix socket: nobody has that name
            (``ENOENT``, ``ECONNREFUSED``), or it is none that can be sent to (``EDESTADDRREQ``), as that of a sender
            without a name; ``filename`` of these errors is the address.  Or see :meth:`receive`; this datagram is not
            sent then.  Should the kernel refuse one after ``send`` has returned, it counts as ``failed`` in the
            statistics, and the next one to that address leaves at once.
          ValueError, TypeError: the address is none, or not the one that the endpoint is connected to.

        Cancelled, nothing is sent.
        """

    @property
    @abc.abstractmethod
    def dropped(self) -> int:
        """How many datagrams were dropped here because the queue was full."""

    @abc.abstractmethod
    def statistics(self) -> DatagramStatistics:
        """A snapshot of the counters."""

    # --- ending ---

    @abc.abstractmethod
    def close(self) -> None:
        """Close the endpoint at once.

        Calls in progress raise :exc:`trio.ClosedResourceError`.  What was sent leaves now, as far as the kernel takes
        it; what was received and not taken is dropped.  Closing twice is fine.
        """

    async def aclose(self) -> None:
        """:meth:`close`, and a checkpoint."""
        self.close()
        await trio.lowlevel.checkpoint()

    # --- the socket ---

    @property
    @abc.abstractmethod
    def local_address(self) -> Any:
        """This end, as from :meth:`socket.socket.getsockname`."""

    def _described(self, *, closed: bool) -> str:
        """What :func:`repr` returns."""
        remote = self.remote_address
        connected = "" if remote is None else f" to {endpoint_text(remote)}"
        where = f"{'closed on' if closed else 'on'} {endpoint_text(self.local_address)}{connected}"
        return f"<gain_trio.DatagramEndpoint {where} at {id(self):#x}>"

    @property
    @abc.abstractmethod
    def remote_address(self) -> Any:
        """The address that the endpoint is connected to, or None."""

    @abc.abstractmethod
    def fileno(self) -> int:
        """The file descriptor; -1 when closed.  It stays the endpoint's."""

    @abc.abstractmethod
    def _borrowed_socket(self) -> contextlib.AbstractContextManager[socket.socket]:
        """The socket, for the length of a with statement.  Raises :exc:`trio.ClosedResourceError` when closed."""

    def setsockopt(self, level: int, option: int, value: int | Buffer) -> None:
        """:meth:`socket.socket.setsockopt`."""
        with self._borrowed_socket() as sock:
            sock.setsockopt(level, option, value)

    def getsockopt(self, level: int, option: int, buffersize: int = 0) -> int | bytes:
        """:meth:`socket.socket.getsockopt`."""
        with self._borrowed_socket() as sock:
            return sock.getsockopt(level, option, buffersize) if buffersize else sock.getsockopt(level, option)

    def join(self, group: str, interface: str | int | None = None) -> None:
        """Receive what is sent to a multicast group.

        Args:
          group: its IP address.
          interface: where; by name or index, or for IPv4 by an address of it.  None: the system chooses.

        Raises:
          ValueError: the group or the interface is none.
          OSError: the kernel refuses it.
        """
        with self._borrowed_socket() as sock:
            change_membership(sock, group, interface, member=True)

    def leave(self, group: str, interface: str | int | None = None) -> None:
        """Undo a :meth:`join` with the same arguments."""
        with self._borrowed_socket() as sock:
            change_membership(sock, group, interface, member=False)

    # --- iteration ---

    def __aiter__(self) -> Self:
        return self

    @abc.abstractmethod
    def __anext__(self) -> Coroutine[Any, Any, Datagram]:
        """:meth:`receive`: there is no end to it but the endpoint's."""


def dropped_by_kernel(sock: socket.socket) -> int | None:
    """How many datagrams the kernel has dropped on their way to this socket."""
    if sys.platform != "linux":
        return None
    try:
        found = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:  # what calls itself Linux is not always one
            raise
        return None
    return int(_MEMINFO.unpack(found)[8]) if len(found) == _MEMINFO.size else None

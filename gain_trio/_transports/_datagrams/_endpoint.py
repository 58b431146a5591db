"""The contract of a datagram endpoint, which all implementations share."""

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
"""The data, and its source address: ``(host, port)``, or ``(host, port, flow information, scope)`` for IPv6.

The address of a Unix socket is a path (str), an abstract name (bytes that begin with a NUL), or None if the sender has no
name.
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
    """Datagrams that the endpoint has queued."""
    received_bytes: int
    """Bytes in them."""
    sent: int
    """Datagrams that the kernel has accepted."""
    sent_bytes: int
    """Bytes in them."""
    failed: int
    """Datagrams that the kernel has refused to send, or that were still queued when the endpoint was closed."""
    dropped: int
    """Datagrams that the endpoint has dropped because its queue was full."""
    oversized: int
    """Datagrams that the endpoint has dropped because they were larger than ``max_size``."""
    dropped_by_kernel: int | None
    """Datagrams that the kernel has dropped because its own buffer was full, or because they were damaged.  None if the
    system does not report it (only Linux does), or the endpoint is closed."""
    queued: int
    """Datagrams queued for receiving."""
    unsent: int
    """Datagrams queued for sending, which the kernel has not accepted yet."""


class DatagramEndpoint(trio.abc.AsyncResource):
    """A UDP socket, or a Unix datagram socket.

    :meth:`receive` and :meth:`send` are always cancellation points.  They are schedule points when they have to wait.
    A call that need not wait returns at once, within limits: receiving until the queue is empty, because the endpoint
    fills it while the run waits; sending for 256 datagrams.

    Any number of tasks may receive and send at a time.  Each datagram goes to one of them; waiting tasks are served in
    order.  A closed endpoint raises :exc:`trio.ClosedResourceError`.

    The endpoint always reads, even while no task receives, and queues what arrives.  The queue is bounded in datagrams
    and in bytes (it holds one datagram of any size).  When it is full, the endpoint drops and counts new datagrams and
    keeps the oldest, as a network does that is overloaded.
    """

    __slots__ = ()

    context: Any
    """An object of the program's choice; None at first."""

    def __reduce_ex__(self, _protocol: SupportsIndex, /) -> NoReturn:
        # A copy would be a second owner of the descriptor: when both close it, one closes another file's descriptor.
        raise TypeError("a datagram endpoint cannot be copied or pickled")

    # --- datagrams ---

    @abc.abstractmethod
    def receive(self) -> Coroutine[Any, Any, Datagram]:
        """Wait for a datagram and return it whole, with its source address.  It may be empty.

        Raises:
          trio.ClosedResourceError: the endpoint is closed, or another task closes it meanwhile.
          OSError: the kernel has reported an error of the socket.  The endpoint raises it once and goes on.  A connected
            endpoint raises :exc:`ConnectionRefusedError` if the remote host has answered that the port is closed (an
            ICMP message, which may be about any datagram sent before), from this call or from :meth:`send`.  For a Unix
            socket, :meth:`send` raises it.

        Cancelling it loses nothing: a datagram leaves the queue only when the task runs.
        """

    @abc.abstractmethod
    def send(self, data: Buffer, /, address: Any = None) -> Coroutine[Any, Any, None]:
        """Send a datagram whole, and after those sent before.  Waits while the socket has no room.

        The endpoint sends a small datagram to an address that it has sent to before together with others, before the run
        waits next.  It sends any other at once.  The caller may change ``data`` afterwards.

        A Unix socket loses no datagram: a slow receiver makes senders wait, for ever if it never reads.  So a server
        gives its answers a time limit (:func:`trio.move_on_after`).  A receiver with a full queue does not delay
        datagrams to other receivers.

        Args:
          data: up to 65507 bytes (65527 by IPv6; to a Unix socket a little less than ``SO_SNDBUF``), or none.
          address: ``(host, port)`` as :meth:`receive` returns it.  The host is an IP address: this method looks no names
            up.  For a Unix socket it is a path or abstract name as :meth:`receive` returns it.  A caller may omit it if
            the endpoint is connected.

        Raises:
          trio.ClosedResourceError: the endpoint is closed, or another task closes it meanwhile.
          OSError: the kernel refuses this datagram: it is too large (``EMSGSIZE``), there is no route to the address
            (``ENETUNREACH``), or it is not allowed (``EACCES``, ``EPERM``).  For a Unix socket: no socket has that name
            (``ENOENT``, ``ECONNREFUSED``), or it is not a name of a receiver (``EDESTADDRREQ``), like that of a sender
            without a name; ``filename`` of these errors is the address.  Or an error as :meth:`receive` describes it;
            this datagram is not sent then.  If the kernel refuses a datagram after ``send`` has returned, it counts as
            ``failed`` in the statistics, and the endpoint sends the next one to that address at once.
          ValueError, TypeError: the address is invalid, or differs from the one that the endpoint is connected to.

        A cancelled call sends nothing.
        """

    @property
    @abc.abstractmethod
    def dropped(self) -> int:
        """The number of datagrams that the endpoint has dropped because its queue was full."""

    @abc.abstractmethod
    def statistics(self) -> DatagramStatistics:
        """A snapshot of the counters."""

    # --- ending ---

    @abc.abstractmethod
    def close(self) -> None:
        """Close the endpoint at once.

        Calls in progress raise :exc:`trio.ClosedResourceError`.  Datagrams queued for sending leave now, as far as the
        kernel accepts them; those queued for receiving are dropped.  Closing twice is fine.
        """

    async def aclose(self) -> None:
        """:meth:`close`, and a checkpoint."""
        self.close()
        await trio.lowlevel.checkpoint()

    # --- the socket ---

    @property
    @abc.abstractmethod
    def local_address(self) -> Any:
        """This end's address, as from :meth:`socket.socket.getsockname`."""

    def _described(self, *, closed: bool) -> str:
        """The text for :func:`repr`."""
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
        """Return the file descriptor, which the endpoint owns; -1 when closed."""

    @abc.abstractmethod
    def _borrowed_socket(self) -> contextlib.AbstractContextManager[socket.socket]:
        """The socket, for the duration of a with statement.  Raises :exc:`trio.ClosedResourceError` when closed."""

    def setsockopt(self, level: int, option: int, value: int | Buffer) -> None:
        """See :meth:`socket.socket.setsockopt`."""
        with self._borrowed_socket() as sock:
            sock.setsockopt(level, option, value)

    def getsockopt(self, level: int, option: int, buffersize: int = 0) -> int | bytes:
        """See :meth:`socket.socket.getsockopt`."""
        with self._borrowed_socket() as sock:
            return sock.getsockopt(level, option, buffersize) if buffersize else sock.getsockopt(level, option)

    def join(self, group: str, interface: str | int | None = None) -> None:
        """Receive the datagrams of a multicast group.

        Args:
          group: the group's IP address.
          interface: the interface's name or index, or for IPv4 one of its addresses.  None: the system chooses.

        Raises:
          ValueError: the group or the interface is invalid.
          OSError: the kernel refuses to join.
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
        """Receive a datagram, as :meth:`receive` does; the iteration ends with the endpoint only."""


def dropped_by_kernel(sock: socket.socket) -> int | None:
    """The number of datagrams that the kernel has dropped on their way to this socket."""
    if sys.platform != "linux":
        return None
    try:
        found = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:  # an emulation of Linux may lack the option
            raise
        return None
    return int(_MEMINFO.unpack(found)[8]) if len(found) == _MEMINFO.size else None

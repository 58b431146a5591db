"""A datagram endpoint over a socket and Trio's own waits, for runs without a ring, or with a ring that can only wait.

A system task reads for as long as the endpoint lives, as the ring does for its endpoints: it fills the queue even while
no task receives, and keeps the oldest datagrams.  The task has a reference to a :class:`DatagramInbox` and none to the
endpoint, so that Python can finalize an endpoint that the program has dropped.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import warnings
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Final

import trio

from gain_trio._transports._addresses import NO_SIGNAL
from gain_trio._transports._time_slices import TimeSlice

from ._endpoint import Datagram, DatagramEndpoint, DatagramStatistics, dropped_by_kernel

if TYPE_CHECKING:
    from typing_extensions import Buffer

_BATCH: Final = 64
"""The most datagrams that the task reads before other tasks get their turn."""
_SENDS_A_TURN: Final = 256
"""The most datagrams that a task sends before other tasks get their turn."""
_MOST_CHECKED: Final = 4096
"""Addresses whose hosts have been checked to be IP addresses."""

_scratch: trio.lowlevel.RunVar[bytearray] = trio.lowlevel.RunVar("gain_trio datagram scratch")


def _shared_scratch() -> bytearray:
    """The buffer that every endpoint of this run receives into.

    No other task of the run runs between receiving and copying; runs in other threads go on meanwhile.
    """
    try:
        return _scratch.get()
    except LookupError:
        scratch = bytearray(65536)
        _scratch.set(scratch)
        return scratch


class DatagramInbox:
    """The queue of what has arrived, and the task that fills it."""

    def __init__(self, sock: socket.socket, remote: Any, queue_size: int, queue_bytes: int, max_size: int) -> None:
        self.sock = sock
        self.remote = remote
        self.queue: deque[Datagram] = deque()
        self.waiting = trio.lowlevel.ParkingLot()
        self.error: OSError | None = None
        self.received = self.received_bytes = self.queued_bytes = self.dropped = self.oversized = 0
        self._queue_size = queue_size
        self._queue_bytes = queue_bytes
        self._max_size = max_size
        self._scratch = _shared_scratch()
        self._error_told = trio.Event()
        self._scope = trio.CancelScope()
        self.closed = False
        self.ended = trio.Event()

    async def run(self) -> None:
        """Read until the inbox is closed.  The end of the run closes it, too."""
        try:
            with self._scope, contextlib.suppress(trio.ClosedResourceError):
                while not self.closed:
                    try:
                        await trio.lowlevel.wait_readable(self.sock)
                        self._read()
                    except OSError as error:
                        self._failed(error)
                    except trio.BusyResourceError:
                        self._failed(OSError(errno.EBUSY, "another task waits for this endpoint's descriptor"))
                    if self.error is not None:  # the error may be permanent
                        self._error_told = trio.Event()
                        await self._error_told.wait()
        finally:
            self.close()

    def _failed(self, error: OSError) -> None:
        self.error = error
        self.waiting.unpark_all()

    def _read(self) -> None:
        for _ in range(_BATCH):
            try:
                length, address = self.sock.recvfrom_into(self._scratch)
            except (BlockingIOError, InterruptedError):
                return
            self._put(length, address)

    def _put(self, length: int, address: Any) -> None:
        """Queue the datagram in the scratch buffer, or drop it."""
        if length > self._max_size:
            self.oversized += 1
        elif len(self.queue) >= self._queue_size or (self.queue and self.queued_bytes + length > self._queue_bytes):
            self.dropped += 1
        else:
            data = bytes(memoryview(self._scratch)[:length])
            self.queue.append((data, address if self.remote is None else self.remote))
            self.received += 1
            self.received_bytes += length
            self.queued_bytes += length
            self.waiting.unpark()

    def take(self) -> Datagram | None:
        """Remove and return the oldest datagram, or None.  Raises what :meth:`DatagramEndpoint.receive` raises."""
        if self.closed:
            raise trio.ClosedResourceError("this endpoint was closed")
        if self.queue:
            data, address = self.queue.popleft()
            self.queued_bytes -= len(data)
            return data, address
        self.tell_error()
        return None

    def tell_error(self) -> None:
        """Raise the error that the kernel has reported, once."""
        if self.error is not None:
            error, self.error = self.error, None
            self._error_told.set()
            raise error

    @trio.lowlevel.enable_ki_protection
    def close(self) -> None:
        """Close the socket and wake all waiting tasks."""
        if self.closed:
            return
        self.closed = True
        self._scope.cancel()
        trio.lowlevel.notify_closing(self.sock)
        self.sock.close()
        self.queue.clear()
        self.queued_bytes = 0
        self.waiting.unpark_all()
        self.ended.set()


class SocketEndpoint(DatagramEndpoint):
    """See :class:`DatagramEndpoint`."""

    _make_inbox: ClassVar[type[DatagramInbox]] = DatagramInbox

    def __init__(
        self, sock: socket.socket, remote_address: Any, *, queue_size: int, queue_bytes: int, max_size: int
    ) -> None:
        self.context: Any = None
        self._inbox = inbox = self._make_inbox(sock, remote_address, queue_size, queue_bytes, max_size)
        self._local_address = sock.getsockname()
        self._token = trio.lowlevel.current_trio_token()
        self._room = trio.StrictFIFOLock()  # the task that waits for room to send owns it
        self._checked: OrderedDict[Any, None] = OrderedDict()
        self._time_slice = 0  # datagrams sent since the last schedule point
        self._answers = TimeSlice()
        self._sent = self._sent_bytes = self._failed = 0
        trio.lowlevel.spawn_system_task(inbox.run, name=f"gain_trio endpoint {self._local_address}")

    def __del__(self) -> None:
        inbox = getattr(self, "_inbox", None)
        if inbox is not None and not inbox.closed:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=1)
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(inbox.close)  # this may be any thread

    def __repr__(self) -> str:
        return self._described(closed=self._inbox.closed)

    # --- datagrams ---

    async def receive(self) -> Datagram:
        """See :meth:`DatagramEndpoint.receive`."""
        await self._pass()
        while True:
            datagram = self._inbox.take()
            if datagram is not None:
                return datagram
            await self._inbox.waiting.park()
            self._answers.begin()

    async def _pass(self) -> None:
        """Pass a cancellation point, and a schedule point, too, if it is the turn of other tasks."""
        if self._answers.is_over():
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()

    __anext__ = receive

    async def send(self, data: Buffer, /, address: Any = None) -> None:
        """See :meth:`DatagramEndpoint.send`."""
        self._check_address(address)
        await self._pass()
        self._time_slice += 1
        if self._time_slice == _SENDS_A_TURN:
            self._time_slice = 0
            await trio.lowlevel.checkpoint()
        if self._line_is_empty(address) and self._send_now(data, address):
            return
        await self._stand_in_line(data, address)

    def _line_is_empty(self, _address: Any) -> bool:
        return not self._room.locked()

    async def _stand_in_line(self, data: Buffer, address: Any) -> None:
        async with self._room:
            while not self._send_now(data, address):
                await trio.lowlevel.wait_writable(self._inbox.sock)

    def _send_now(self, data: Buffer, address: Any) -> bool:
        """Send the datagram if the socket has room, and return whether it had."""
        inbox = self._inbox
        if inbox.closed:
            raise trio.ClosedResourceError("this endpoint was closed")
        if inbox.remote is not None:
            inbox.tell_error()
        try:
            sent = self._transmit(data, address)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            self._failed += 1
            raise
        self._sent += 1
        self._sent_bytes += sent
        return True

    def _transmit(self, data: Buffer, address: Any) -> int:
        inbox = self._inbox
        return (
            inbox.sock.send(data, NO_SIGNAL)
            if inbox.remote is not None
            else inbox.sock.sendto(data, NO_SIGNAL, address)
        )

    def _check_address(self, address: Any) -> None:
        """Raise an exception if no datagram can be sent to this address."""
        remote = self._inbox.remote
        if remote is None:
            self._check_destination(address)
        elif address is not None and address != remote:
            raise ValueError(f"this endpoint is connected to {remote!r}, and sends nowhere else")

    def _check_destination(self, address: Any) -> None:
        """Check the address before the socket module looks up a name, which would block the run."""
        if address is None:
            raise TypeError("send() needs an address: this endpoint is not connected to one")
        if not isinstance(address, tuple):
            raise TypeError(f"an address here is a tuple as receive() returns it, not {address!r}")
        if address in self._checked:
            return
        check_address(address, self._inbox.sock.family)
        self._checked[address] = None
        if len(self._checked) > _MOST_CHECKED:
            self._checked.popitem(last=False)

    @property
    def dropped(self) -> int:
        """See :attr:`DatagramEndpoint.dropped`."""
        return self._inbox.dropped

    def statistics(self) -> DatagramStatistics:
        """See :meth:`DatagramEndpoint.statistics`."""
        inbox = self._inbox
        return DatagramStatistics(
            received=inbox.received,
            received_bytes=inbox.received_bytes,
            sent=self._sent,
            sent_bytes=self._sent_bytes,
            failed=self._failed,
            dropped=inbox.dropped,
            oversized=inbox.oversized,
            dropped_by_kernel=None if inbox.closed else dropped_by_kernel(inbox.sock),
            queued=len(inbox.queue),
            unsent=0,
        )

    # --- the rest ---

    @trio.lowlevel.enable_ki_protection
    def close(self) -> None:
        """See :meth:`DatagramEndpoint.close`."""
        self._inbox.close()

    @property
    def local_address(self) -> Any:
        """See :attr:`DatagramEndpoint.local_address`."""
        return self._local_address

    @property
    def remote_address(self) -> Any:
        """See :attr:`DatagramEndpoint.remote_address`."""
        return self._inbox.remote

    def fileno(self) -> int:
        """See :meth:`DatagramEndpoint.fileno`."""
        return self._inbox.sock.fileno()

    @contextlib.contextmanager
    def _borrowed_socket(self) -> Iterator[socket.socket]:
        if self._inbox.closed:
            raise trio.ClosedResourceError("this endpoint was closed")
        yield self._inbox.sock


def check_address(address: tuple[Any, ...], family: int) -> None:
    """Check an address as the C of the other implementation does.

    Raises:
      TypeError: the address has the wrong type.
      ValueError: the host is not an IP address of this family, or a number is out of range.
    """
    is_ipv4 = family == socket.AF_INET
    if not 2 <= len(address) <= (2 if is_ipv4 else 4) or not isinstance(address[0], str):
        more = "" if is_ipv4 else "[, flow information[, scope]]"
        raise TypeError(f"an address here is a tuple (host, port{more}) as receive() returns it, not {address!r}")
    for number, what, limit in zip(
        address[1:], ("port", "flow information", "scope"), (65535, 0xFFFFF, 0xFFFFFFFF), strict=False
    ):
        if not isinstance(number, int):
            raise TypeError(f"the {what} of an address must be a number, not {number!r}")
        if not 0 <= number <= limit:
            raise ValueError(f"the {what} of an address must be 0 to {limit}, not {number}")
    try:
        if "\0" in address[0]:
            raise UnicodeError("it contains a null character")  # noqa: TRY301 - where getaddrinfo(3) sees its end
        socket.getaddrinfo(address[0], address[1], family, socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError) as error:
        raise ValueError(
            f"{address[0]!r} is not an IPv{4 if is_ipv4 else 6} address, which this endpoint sends to; names are not "
            "looked up for every datagram: do it once, with trio.socket.getaddrinfo()"
        ) from error

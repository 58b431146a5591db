"""Datagrams by callbacks: each gets a view of the peer it came from, for as long as it is being handled.

There are as many views as datagrams are handled at once, which ``serve_datagrams`` bounds, and no table of peers behind
them: source addresses can be forged, so any sender could fill one.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, final

import trio

from gain_trio._transports import DatagramEndpoint, Inbound, shown, whole_of

from ._activity import Activity
from ._callbacks import Callbacks
from ._event_config import Config
from ._event_errors import ConnectionClosed, NotSupported
from ._inbox import InboxReading
from ._stream_driver import WorkerThreads

if TYPE_CHECKING:
    from typing_extensions import Buffer

LARGEST = 65535
"""Bytes; the kernel takes a few less, and says so."""


@final
class DatagramConn(InboxReading):
    """See :class:`Conn`.  What is written while a callback runs is one datagram."""

    __slots__ = ("_endpoint", "_inbox", "_is_released", "_lock", "_outbox", "_peer")

    def __init__(self, data: bytes, peer: Any, endpoint: DatagramEndpoint) -> None:
        super().__init__()
        self._inbox: Inbound = data
        self._lock = threading.Lock()
        self._peer = peer
        self._endpoint = endpoint
        self._outbox = b""
        self._is_released = False

    def __repr__(self) -> str:
        return f"<gain_trio.callbacks.Conn of a datagram from {shown(self._peer)}>"

    def _check_readable(self) -> None:
        self._check_held()

    def _check_held(self) -> None:
        if self._is_released:
            raise ConnectionClosed("this datagram was handled; a Conn of a datagram lasts as long as its callbacks")

    def _taken(self, left: int) -> None:
        """Does nothing: no task waits for room."""

    def write(self, data: Buffer, /) -> int:
        """See :meth:`Conn.write`.  Raises a :exc:`ValueError` when it is more than a datagram holds."""
        piece = whole_of(data)
        with self._lock:
            self._check_held()
            if len(self._outbox) + len(piece) > LARGEST:
                raise ValueError(f"a datagram holds less than {LARGEST} bytes, and all that a callback writes is one")
            self._outbox += piece
        return len(piece)

    @property
    def outbound_buffered(self) -> int:
        """See :attr:`Conn.outbound_buffered`."""
        return len(self._outbox)

    async def _send(self) -> int:
        """Send what was written, if anything was; how much that was."""
        with self._lock:
            data, self._outbox = self._outbox, b""
        if data:
            await self._endpoint.send(data, self._peer)
        return len(data)

    def _end_wait(self) -> None:
        """Does nothing: no task waits for more of a datagram."""

    def _release(self) -> None:
        with self._lock:
            self._is_released = True
            self._inbox = self._outbox = b""

    @property
    def local_addr(self) -> Any:
        """See :attr:`Conn.local_addr`."""
        return self._endpoint.local_address

    @property
    def remote_addr(self) -> Any:
        """See :attr:`Conn.remote_addr`."""
        return self._peer

    def close(self) -> None:
        """See :meth:`Conn.close`."""

    @property
    def fd(self) -> int:
        """See :attr:`Conn.fd`.  All datagrams have the same."""
        return self._endpoint.fileno()

    @property
    def _is_tcp(self) -> bool:
        return False

    def _set_option(self, level: int, option: int, value: int | bytes) -> None:
        self._check_held()
        try:
            self._endpoint.setsockopt(level, option, value)
        except trio.ClosedResourceError:
            raise ConnectionClosed("the server is closed") from None

    def set_read_deadline(self, when: float | None, /) -> None:  # noqa: ARG002 - of the contract
        """See :meth:`Conn.set_read_deadline`."""
        raise NotSupported("a datagram has arrived, or it has not: there is nothing to wait for")

    def set_write_deadline(self, when: float | None, /) -> None:
        """See :meth:`Conn.set_write_deadline`."""
        self.set_read_deadline(when)


@final
class DatagramDriver:
    """The handler of :func:`serve_datagrams` for an event handler."""

    def __init__(self, callbacks: Callbacks, config: Config) -> None:
        self.callbacks = callbacks
        self._config = config
        self._is_threaded = config.async_handler and not callbacks.on_read.is_async
        self.activity = Activity()
        self._threads: WorkerThreads | None = None

    def __repr__(self) -> str:
        return type(self.callbacks.handler).__qualname__

    @property
    def at_once(self) -> int:
        """How many datagrams are to be handled at the same time, by each socket."""
        workers = 1 if self.shards is not None else self._config.workers
        return max(self._config.pool_size, workers) if self._is_threaded else workers

    @property
    def shards(self) -> int | None:
        """How many sockets share the port; None for one that has it for itself."""
        return self._config.workers if self._config.architecture == "socket_sharding" else None

    def is_in_callback_thread(self) -> bool:
        """Whether this is called from an ``on_read`` in a worker thread."""
        return self._threads is not None and self._threads.has_current()

    async def __call__(self, data: bytes, address: Any, endpoint: DatagramEndpoint) -> None:
        """Handle one datagram."""
        if self.activity.is_ending:
            return
        callbacks = self.callbacks
        conn = DatagramConn(data, address, endpoint)
        self.activity.begin(conn)
        try:
            if self._is_threaded:
                if self._threads is None:
                    self._threads = WorkerThreads(self.at_once)
                await self._threads.run(callbacks.on_read.function, conn, len(data))
            else:
                await callbacks.on_read(conn, len(data))
            while sent := await conn._send():
                await callbacks.on_write(conn, sent)
        finally:
            conn._release()
            self.activity.end(conn)

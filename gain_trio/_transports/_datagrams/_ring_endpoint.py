"""A datagram endpoint on the ring: the rarely used half, in Python, of ``gain_trio._fastpath.Endpoint``."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, final

import trio

from gain_trio._io_manager import UringIOManager
from gain_trio._kernel import fastpath

from ._endpoint import DatagramEndpoint, DatagramStatistics, dropped_by_kernel

if TYPE_CHECKING:
    from gain_trio._fastpath import Endpoint as _Endpoint
elif fastpath is not None:
    _Endpoint = fastpath.Endpoint
else:

    class _Endpoint:
        """A base without methods: without the compiled modules, no run makes an endpoint on a ring."""

        __slots__ = ()


@final
class RingEndpoint(_Endpoint, DatagramEndpoint):
    """See :class:`DatagramEndpoint`."""

    __slots__ = ("_local_address", "_remote_address")

    def __init__(
        self,
        manager: UringIOManager,
        sock: socket.socket,
        remote_address: Any,
        *,
        queue_size: int,
        queue_bytes: int,
        max_size: int,
    ) -> None:
        self._local_address = sock.getsockname()
        self._remote_address = remote_address
        buffers = manager.ring.options.datagram_buffer_count
        super().__init__(
            manager.proactor, sock.fileno(), sock.family, remote_address, queue_size, queue_bytes, max_size, buffers
        )
        sock.detach()  # the endpoint owns the descriptor from here on

    def __repr__(self) -> str:
        return self._described(closed=self._is_closed)

    def statistics(self) -> DatagramStatistics:
        """See :meth:`DatagramEndpoint.statistics`."""
        received, received_bytes, sent, sent_bytes, failed, dropped, oversized, queued, unsent = self._counters
        by_kernel = None
        if not self._is_closed:
            with self._borrowed_socket() as sock:
                by_kernel = dropped_by_kernel(sock)
        return DatagramStatistics(
            received=received,
            received_bytes=received_bytes,
            sent=sent,
            sent_bytes=sent_bytes,
            failed=failed,
            dropped=dropped,
            oversized=oversized,
            dropped_by_kernel=by_kernel,
            queued=queued,
            unsent=unsent,
        )

    @trio.lowlevel.enable_ki_protection
    def close(self) -> None:
        """See :meth:`DatagramEndpoint.close`."""
        self._close()

    @property
    def local_address(self) -> Any:
        """See :attr:`DatagramEndpoint.local_address`."""
        return self._local_address

    @property
    def remote_address(self) -> Any:
        """See :attr:`DatagramEndpoint.remote_address`."""
        return self._remote_address

    def fileno(self) -> int:
        """See :meth:`DatagramEndpoint.fileno`."""
        return self._descriptor

    @contextlib.contextmanager
    @trio.lowlevel.enable_ki_protection  # a socket object that is dropped closes its descriptor
    def _borrowed_socket(self) -> Iterator[socket.socket]:
        descriptor = self._descriptor
        if descriptor < 0:
            raise trio.ClosedResourceError("this endpoint was closed")
        sock = socket.socket(fileno=descriptor)
        try:
            yield sock
        finally:
            sock.detach()


if fastpath is not None:
    fastpath.adopt_methods(RingEndpoint)

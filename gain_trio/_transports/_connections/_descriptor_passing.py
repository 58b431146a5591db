"""Descriptors that go with bytes: the contract, and the refusal of connections that were not opened for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from ._has_fileno import HasFileno

if TYPE_CHECKING:
    from typing_extensions import Buffer


class DescriptorPassing(Protocol):
    """The calls that pass descriptors: a connection has them by their names."""

    __slots__ = ()

    async def send_fds(self, data: Buffer, fds: Sequence[int | HasFileno]) -> None:
        """Send ``data`` as :meth:`Connection.send` does, and pass descriptors with its first byte (``SCM_RIGHTS``).

        The receiver has descriptors of its own for the same open files afterwards.  Those here stay the caller's, who
        can close them when this has returned.

        Args:
          data: at least one byte.
          fds: descriptors, or objects with a ``fileno()``; at most 253.

        Raises:
          ValueError: there is no data, or more descriptors than go with one.
          OSError: one of them is closed (``EBADF``), or too many are in flight (``ETOOMANYREFS``); nothing was sent.
          RuntimeError: the connection was not opened with ``pass_fds=True``.

        And what :meth:`Connection.send` raises.  Cancelled while it waits, it has sent nothing.
        """
        await self._send_fds(data, fds)

    async def receive_fds(self, max_bytes: int, max_fds: int) -> tuple[bytes, list[int]]:
        """:meth:`Connection.receive` at most ``max_bytes``, and the descriptors that came with them.

        Descriptors arrive with the first byte of what they were sent with.  In one call the kernel may put bytes that
        were sent before in front of those, but none behind that were sent afterwards.  More than ``max_fds`` wait, in
        order, for the next call, as do those that came with bytes that another call has taken: then ``data`` may be
        ``b""`` though the stream has not ended.  ``peek``, ``next``, ``discard`` and ``inbound_buffered`` look ahead,
        so after them descriptors may be returned before their bytes.

        Closing a descriptor that a peer has passed may wait: for ``SO_LINGER`` seconds if it is a TCP socket with unsent
        data and the peer has closed its own copies, for a file server if it is a file of FUSE or NFS, for a terminal to
        drain.  A handler that does not trust its peer closes it in a thread,
        ``await trio.to_thread.run_sync(os.close, fd)``.  Descriptors that no call has taken are closed in threads, with
        the connection at the latest.

        Returns:
          The bytes, and the descriptors: close-on-exec, and the caller's to close.  ``(b"", [])`` at the end of the
          stream.

        Raises:
          ValueError: ``max_bytes`` or ``max_fds`` is less than 1.
          trio.BrokenResourceError: the connection broke; also when descriptors came that could not be had, because the
            process has too many open files, or because too many wait already: a quarter of RLIMIT_NOFILE, at most
            1,024, for a connection, and half of RLIMIT_NOFILE for all of them.  They are closed.
          RuntimeError: the connection was not opened with ``pass_fds=True``.

        And what :meth:`Connection.receive` raises.  Cancelling it loses nothing.
        """
        return await self._receive_fds(max_bytes, max_fds)

    # --- what a connection brings that was opened for it ---

    async def _send_fds(self, _data: Buffer, _fds: Sequence[int | HasFileno], /) -> None:
        """:meth:`send_fds`, refused here."""
        raise _refused("send_fds()")

    async def _receive_fds(self, _max_bytes: int, _max_fds: int, /) -> tuple[bytes, list[int]]:
        """:meth:`receive_fds`, refused here."""
        raise _refused("receive_fds()")


def _refused(call: str) -> RuntimeError:
    return RuntimeError(
        f"{call} needs a Unix connection that was opened for it: pass_fds=True in connect(), open_listeners(), "
        "serve() or Connection.from_socket()"
    )

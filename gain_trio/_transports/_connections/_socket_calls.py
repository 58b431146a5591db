"""The calls of a connection that are about its socket: wrapping one, giving it back, what goes over it beside bytes.

What is said here about a connection that cannot do a thing is said for all that do not say otherwise.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Protocol

from gain_trio._transports._addresses import PeerCredentials, peer_credentials

from ._proxy_protocol import ProxyHeader

if TYPE_CHECKING:
    import trio
    from typing_extensions import Buffer

    from ._connection import Connection, Marks


class HasDescriptor(Protocol):
    """What can be passed to another process."""

    def fileno(self) -> int:
        """The file descriptor."""
        ...


class SocketCalls:
    """See :class:`Connection`."""

    __slots__ = ()

    _wrap: ClassVar[Callable[[socket.socket | trio.socket.SocketType, Marks | None, bool], Connection]]
    """Set by ``_wrapping.py``, which knows the implementations."""

    @classmethod
    def from_socket(
        cls,
        sock: socket.socket | trio.socket.SocketType,
        *,
        marks: Marks | None = None,
        pass_fds: bool = False,
    ) -> Connection:
        """Make a connection of a connected stream socket, whatever its family.

        The descriptor is the connection's from then on, and ``sock`` is left closed, without the descriptor.  When this
        raises, ``sock`` is as it was.  A blocking socket is made non-blocking.  As with :func:`connect`, ``TCP_NODELAY`` is
        set.  What was received through ``sock`` before, into a buffer of somebody's (``sock.makefile()``, an
        ``SSLSocket``), does not come along.

        Args:
          sock: a :class:`socket.socket` or one of :mod:`trio.socket`.
          marks: of the connection.
          pass_fds: see :func:`connect`.

        Raises:
          TypeError: it is no socket.
          ValueError: it is one of another kind, or is closed, or listens.
          OSError: it is not connected (``ENOTCONN``), or there is no room for another connection.
          RuntimeError: not called from a task of a Trio run.
        """
        return cls._wrap(sock, marks, pass_fds)

    async def detach(self) -> tuple[socket.socket, bytes]:
        """Give the socket back: flush what was sent, stop receiving, and let go.

        Returns:
          The socket, in blocking mode as a new one is, and the bytes that were received from it and not taken.
          Whatever else arrives is the socket's.  The connection is closed afterwards, and the socket is the caller's
          to close.

        Raises:
          trio.BusyResourceError: another task is receiving or sending.
          trio.ClosedResourceError: the connection is, or meanwhile was, closed here.
          trio.BrokenResourceError: it broke.
          RuntimeError: descriptors have been received and not taken (:meth:`receive_fds`); or the connection is not one
            over a socket alone: TLS is between.

        Cancelled, it changes nothing: the connection goes on.
        """
        raise RuntimeError(
            "what goes over this connection's socket is not what this connection sends: it cannot be detached"
        )

    def peer_credentials(self) -> PeerCredentials:
        """Process, user and group of the other end of a Unix connection (``SO_PEERCRED``, unix(7)).

        They are those of when the peer connected (or, asked by a client, began to listen); the process may be another
        by now, and its number another process's.

        Raises:
          ValueError: this is no Unix connection.
          OSError: the system does not tell.
          trio.ClosedResourceError: the connection is closed here.
        """
        return peer_credentials(self)  # type: ignore[arg-type]  # a connection has getsockopt()

    async def send_fds(self, data: Buffer, fds: Sequence[int | HasDescriptor]) -> None:  # noqa: ARG002 - refused here
        """Send ``data`` as :meth:`Connection.send` does, and pass descriptors with its first byte (``SCM_RIGHTS``).

        The receiver has descriptors of its own for the same open files afterwards.  Those here stay the caller's, who
        can close them when this has returned.

        Args:
          data: at least one byte.
          fds: descriptors, or objects with a ``fileno()``; at most 253.

        Raises:
          ValueError: there is no data, or more descriptors than go with one.
          OSError: one of them is none (``EBADF``), or too many are on their way (``ETOOMANYREFS``); nothing was sent.
          RuntimeError: the connection was not opened with ``pass_fds=True``.

        And what :meth:`Connection.send` raises.  Cancelled while it waits, it has sent nothing.
        """
        self._refuse_descriptors("send_fds()")

    async def receive_fds(self, max_bytes: int, max_fds: int) -> tuple[bytes, list[int]]:  # noqa: ARG002 - the same
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
        self._refuse_descriptors("receive_fds()")

    def _refuse_descriptors(self, call: str) -> NoReturn:
        raise RuntimeError(
            f"{call} needs a Unix connection that was opened for it: pass_fds=True in connect(), open_listeners(), "
            "serve() or Connection.from_socket()"
        )

    # --- behind a proxy ---

    @property
    def proxy_header(self) -> ProxyHeader | None:
        """What the proxy said in front of the client's bytes (``serve(proxy_protocol=...)``), or None."""
        return None

    @property
    def direct_local_address(self) -> Any:
        """:attr:`Connection.local_address` of the socket itself, whatever a proxy said."""
        return self.local_address  # type: ignore[attr-defined]  # a connection has one

    @property
    def direct_remote_address(self) -> Any:
        """:attr:`Connection.remote_address` of the socket itself, whatever a proxy said: the proxy's."""
        return self.remote_address  # type: ignore[attr-defined]  # a connection has one

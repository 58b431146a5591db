"""The contract of a listener, whatever it runs on, and what accept(2) may say.

Errors of accept(2), surveyed in the man page and in what Trio, asyncio and Twisted make of them:

- of the connection, which is gone before it was taken (``ECONNABORTED``, ``EPROTO``, and on Linux any pending network error
  of the new socket): none of the server's business; accepting goes on.  ``EPERM`` (a firewall rule) and ``ECONNRESET``
  (what Windows says of a client that has given up) count here.
- of resources (``EMFILE``, ``ENFILE``, ``ENOBUFS``, ``ENOMEM``; ``ENOSPC`` is our own table of connections): raised from
  :meth:`Listener.accept`, once; the next call tries again.  What to do meanwhile is the caller's policy;
  ``gain_trio.serve`` logs it and waits 0.1 seconds, as Trio does.
- all others are errors of the program and are raised too.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NoReturn, SupportsIndex

import trio

from gain_trio._transports._addresses import errnos
from gain_trio._transports._peer import endpoint_text

from ._connection import Connection
from ._marks import Marks
from ._read_only_socket import PlainSocket, ReadOnlySocket

RESOURCE_ERRNOS = errnos("EMFILE", "WSAEMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "ENOSPC")
"""The machine or the process is out of something, and may have it again soon."""

CONNECTION_ERRNOS = errnos(
    "ECONNABORTED",
    "ECONNRESET",
    "EPROTO",
    "EPERM",
    "ENETDOWN",
    "ENOPROTOOPT",
    "EHOSTDOWN",
    "ENONET",
    "EHOSTUNREACH",
    "EOPNOTSUPP",
    "ENETUNREACH",
    "ETIMEDOUT",
)
"""The connection was gone before it could be accepted."""


class Listener(trio.abc.Listener[Connection]):
    """A listening socket that brings :class:`Connection` objects.

    Several tasks may be in :meth:`accept` at once; each connection goes to one of them.
    """

    __slots__ = ()

    _socket: PlainSocket
    _closed: bool
    """Whether calls are refused.  Both are attributes of the implementation."""

    def __repr__(self) -> str:
        state = "closed on" if self._closed else "on"
        return f"<gain_trio.Listener {state} {endpoint_text(self.local_address)} at {id(self):#x}>"

    def __reduce_ex__(self, _protocol: SupportsIndex, /) -> NoReturn:
        # A copy would be a second owner of the descriptor: the first to close it closes the other's, or a stranger's.
        raise TypeError("a listener cannot be copied or pickled")

    @abc.abstractmethod
    async def accept(self) -> Connection:
        """Wait for a connection and return it.

        Raises:
          trio.ClosedResourceError: the listener is, or meanwhile was, closed.
          OSError: accept(2) failed, and not because of the peer: with ``EMFILE`` for example; call again to go on.

        Cancelling it loses no connection: the next call returns it.
        """

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Close the listener.  Connections that were not accepted yet are reset.  Closing twice is fine."""

    @property
    @abc.abstractmethod
    def local_address(self) -> Any:
        """Where it listens, as from :meth:`socket.socket.getsockname`, with the port that the kernel chose for 0."""

    def fileno(self) -> int:
        """The file descriptor; -1 when closed."""
        return self._socket.fileno()

    @property
    def socket(self) -> ReadOnlySocket:
        """The socket, to be read by code that was written for :class:`trio.SocketListener`."""
        return ReadOnlySocket(
            lambda: contextlib.nullcontext(self._socket), self._socket.getsockname, self._socket.getpeername
        )

    _wrap: ClassVar[Callable[[PlainSocket | trio.socket.SocketType, Marks | None, bool], Listener]]
    """Set by ``_wrapping.py``, which knows the implementations."""

    @classmethod
    def from_socket(
        cls,
        sock: PlainSocket | trio.socket.SocketType,
        *,
        marks: Marks | None = None,
        pass_fds: bool = False,
    ) -> Listener:
        """Make a listener of a stream socket that listens, whatever its family.

        The descriptor is the listener's from then on, and ``sock`` is left closed, without the descriptor.  When this
        raises, ``sock`` is as it was.  A blocking socket is made non-blocking.  As with :func:`open_listeners`,
        ``TCP_NODELAY`` is set.  The file of a Unix socket is left alone, also at close.

        Args:
          sock: a :class:`socket.socket` or one of :mod:`trio.socket`.
          marks: of the connections.
          pass_fds: see :func:`open_listeners`.

        Raises:
          TypeError: it is not a socket.
          ValueError: it is one of another kind, or is closed, or does not listen.
          RuntimeError: not called from a task of a Trio run.
        """
        return cls._wrap(sock, marks, pass_fds)

    # --- for the server ---

    @abc.abstractmethod
    def _accept_ready(self) -> Connection | None:
        """A connection that is here already, or None.  Raises what :meth:`accept` raises.

        None comes between the connections, too, when there are many: the caller then goes back to :meth:`accept`, and
        other tasks get their turn.
        """

    @abc.abstractmethod
    async def _wait_acceptable(self) -> None:
        """Wait until :meth:`_accept_ready` probably has a connection, without taking one from the kernel: full checkpoint.

        For a listener that takes nothing ahead, and one task at a time, which does not mix it with :meth:`accept`.
        """

    @abc.abstractmethod
    def _stop(self) -> None:
        """Stop listening, at once.  :meth:`accept` still returns connections that were accepted already; when that is
        done, it raises :exc:`trio.ClosedResourceError`.  Without a checkpoint; again: nothing.
        """

    @abc.abstractmethod
    def _close(self) -> None:
        """:meth:`aclose` without a checkpoint."""

    @property
    @abc.abstractmethod
    def _is_released(self) -> bool:
        """Whether nothing is in flight on it: for a closed listener, a few ticks of the loop later."""


def close_all(listeners: Iterable[Listener]) -> None:
    """Close several listeners without a checkpoint."""
    for listener in listeners:
        listener._close()

"""The contract of a connection for callbacks, and the code that is common to every transport."""

from __future__ import annotations

import abc
import io
import math
import socket
import struct
from typing import TYPE_CHECKING, Any, Protocol

from ._event_errors import BufferEmpty, InvalidDuration, NotSupported

if TYPE_CHECKING:
    from typing_extensions import Buffer

LINGER = struct.Struct("ii")

PIECE = 65536
"""Bytes that :meth:`Conn.read_from` reads at a time."""


class Writer(Protocol):
    """An object that :meth:`Conn.write_to` writes to: a binary file, for example."""

    def write(self, data: bytes, /) -> int | None:
        """Write ``data``, and return how many bytes were written; None if a raw file would have to wait."""
        ...


class Reader(Protocol):
    """An object that :meth:`Conn.read_from` reads from: a binary file, for example."""

    def read(self, count: int, /) -> bytes | None:
        """Return up to ``count`` bytes; none at the end."""
        ...


class Conn(abc.ABC):
    """A connection, or the source of a datagram, as the callbacks of an :class:`EventHandler` get it.

    Its calls never wait.  The connection queues what arrives until the callbacks read it, and what the callbacks write
    until the kernel accepts it, both within limits (``Marks.receive_high``, ``Config.write_limit``).

    Writing, closing and setting properties work from any thread and any task, also of another connection's callback.
    Reading belongs to the callbacks of this connection.
    """

    __slots__ = ("__weakref__", "context")

    context: Any
    """An object of the program's choice; None at first."""

    def __init__(self) -> None:
        self.context = None

    # --- what has arrived ---

    @abc.abstractmethod
    def next(self, n: int = -1, /) -> bytes:
        """Read ``n`` bytes of what has arrived; all of it for ``n`` of 0 or less.

        Raises:
          ShortBuffer: fewer than ``n`` bytes have arrived.  They stay unread.
          ConnectionClosed: the connection is closed.
        """

    @abc.abstractmethod
    def peek(self, n: int = -1, /) -> bytes:
        """Return up to ``n`` bytes of what has arrived, or all of it for ``n`` of 0 or less, and leave them unread.

        Raises:
          ConnectionClosed: the connection is closed.
        """

    @abc.abstractmethod
    def discard(self, n: int, /) -> int:
        """Drop up to ``n`` unread bytes: none for 0, all for less than 0.  Returns how many.

        Raises:
          ConnectionClosed: the connection is closed.
        """

    @property
    @abc.abstractmethod
    def inbound_buffered(self) -> int:
        """How many bytes have arrived and are unread; 0 when closed."""

    def read(self, buffer: Buffer, /) -> int:
        """Read into a writable buffer as many bytes as have arrived and fit.  Returns how many; 0 for a buffer of 0 bytes.

        Raises:
          BufferEmpty: nothing has arrived.
          ConnectionClosed: the connection is closed.
          BufferError: the buffer is read-only, or is not in one piece.
        """
        with memoryview(buffer) as view:
            if view.readonly or not view.c_contiguous:
                raise BufferError("read() needs a writable buffer, in one piece")
            with view.cast("B") as target:
                data = self.peek(len(target)) if target.nbytes else b""
                if target.nbytes and not data:
                    raise BufferEmpty("nothing has arrived")
                target[: len(data)] = data
        return self.discard(len(data))

    def write_to(self, writer: Writer, /) -> int:
        """Write what has arrived to a binary file, or an object with such a ``write``.

        Returns:
          How many bytes ``writer.write`` reports.  After a short write the rest stays unread.

        Raises:
          BufferEmpty: nothing has arrived.
          ConnectionClosed: the connection is closed.
          and what ``writer.write`` raises; all bytes stay unread then.
        """
        data = self.peek()
        if not data:
            raise BufferEmpty("nothing has arrived")
        count = writer.write(data)
        if count is None:  # a raw file would have to wait; another writer reports no count
            count = 0 if isinstance(writer, io.RawIOBase) else len(data)
        if not 0 <= count <= len(data):
            raise ValueError(f"write() of {writer!r} reports a write of {count} of {len(data)} bytes")
        return self.discard(count)

    # --- sending ---

    @abc.abstractmethod
    def write(self, data: Buffer, /) -> int:
        """Send ``data``, after what was written before, without waiting.  The caller may change it afterwards.

        Returns:
          The length of ``data`` in bytes.  0 when the connection is broken, or is being closed as too slow: ``on_close``
          gets the error.

        Raises:
          ConnectionClosed: the connection was closed by this program, or ``on_close`` has been called.
          SlowReader: more than ``Config.write_limit`` bytes are unsent, and ``Config.write_policy`` is ``"raise"``.
        """

    def read_from(self, reader: Reader, /) -> int:
        """:meth:`write` all that a binary file has, or an object with such a ``read``.

        It writes piece by piece, and each piece counts against ``Config.write_limit`` like a write: with
        ``write_policy`` ``"raise"``, the pieces before the limit are written.

        Returns:
          How many bytes were written.

        Raises:
          What :meth:`write` raises, and what ``reader.read`` raises.
        """
        total = 0
        while data := reader.read(PIECE):
            written = self.write(data)
            total += written
            if written < len(data):
                break
        return total

    @property
    @abc.abstractmethod
    def outbound_buffered(self) -> int:
        """How many written bytes are queued, because the kernel has not accepted them yet; 0 when closed."""

    # --- the rest ---

    def set_context(self, context: Any, /) -> None:
        """Set :attr:`context`, as an assignment does."""
        self.context = context

    @property
    @abc.abstractmethod
    def local_addr(self) -> Any:
        """This end's address, as from :meth:`socket.socket.getsockname`."""

    @property
    @abc.abstractmethod
    def remote_addr(self) -> Any:
        """The other end's address, as from :meth:`socket.socket.getpeername`.

        It is None if the peer was gone before the server could read the address.  Both addresses stay readable in
        ``on_close``.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Close the connection when what was written is sent.

        The server waits for a peer that goes on reading, for ``close_timeout`` at most (an option of
        :func:`gain_trio.serve`, 60 seconds), and 5 seconds for a peer that reads nothing; or for the time of
        :meth:`set_linger`, whether bytes move or not.

        The callbacks can read and write nothing any more, and the server does not call ``on_read`` again; it may call
        ``on_write``, and then calls ``on_close``.  The source of a datagram has nothing to close, and nothing happens.

        Raises:
          ConnectionAlreadyClosed: it was closed before.
        """

    @property
    @abc.abstractmethod
    def fd(self) -> int:
        """The file descriptor, which the connection owns; -1 when closed."""

    # --- deadlines ---

    @abc.abstractmethod
    def set_read_deadline(self, when: float | None, /) -> None:
        """Close the connection if nothing has arrived by ``when``.  Another call moves the deadline.

        ``on_close`` gets a :exc:`trio.TooSlowError`.

        Args:
          when: seconds on Trio's clock (:func:`trio.current_time`); None or ``math.inf`` for never.

        Raises:
          ValueError: ``when`` is not a number.
          NotSupported: this is a datagram's source.
          ConnectionClosed: the connection is closed.
        """

    @abc.abstractmethod
    def set_write_deadline(self, when: float | None, /) -> None:
        """Close the connection likewise if something that was written is still unsent by ``when``."""

    def set_deadline(self, when: float | None, /) -> None:
        """Set both deadlines, as :meth:`set_read_deadline` and :meth:`set_write_deadline` do."""
        self.set_read_deadline(when)
        self.set_write_deadline(when)

    # --- the socket's properties ---

    @abc.abstractmethod
    def _set_option(self, level: int, option: int, value: int | bytes) -> None:
        """Set a socket option in the run's thread.  Raises :exc:`ConnectionClosed`."""

    @property
    @abc.abstractmethod
    def _is_tcp(self) -> bool: ...

    def set_read_buffer(self, size: int, /) -> None:
        """Set the kernel's receive buffer (``SO_RCVBUF``): bytes.

        Raises:
          ConnectionClosed: the connection is closed.  The other setters raise it, too.
          OSError: the kernel refuses it.
        """
        self._set_option(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    def set_write_buffer(self, size: int, /) -> None:
        """Set the kernel's send buffer (``SO_SNDBUF``): bytes."""
        self._set_option(socket.SOL_SOCKET, socket.SO_SNDBUF, size)

    def set_linger(self, seconds: int, /) -> None:
        """Set what closing does with data that the peer has not received (``SO_LINGER``, socket(7)).

        Args:
          seconds: less than 0, as at first: the kernel sends the data in the background, and what the kernel has not
            accepted yet has the time that :meth:`close` describes.  0: the data is dropped, and the peer gets a reset.
            More than 0: as at first, for that number of seconds.  The server does not wait meanwhile.
        """
        self._set_option(socket.SOL_SOCKET, socket.SO_LINGER, linger_value(seconds))

    def set_keep_alive_period(self, seconds: float, /) -> None:
        """Have the kernel send a keep-alive probe (tcp(7)) each time the peer has been silent for ``seconds``.

        Args:
          seconds: at least 1; the kernel counts whole seconds.

        Raises:
          InvalidDuration: less than a second, or not a number.
          NotSupported: the connection is not TCP.
        """
        if not 1 <= seconds < math.inf:
            raise InvalidDuration(f"a keep-alive period is a number of seconds of at least 1, not {seconds}")
        self._require_tcp("a keep-alive period")
        self._set_option(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name in ("TCP_KEEPIDLE", "TCP_KEEPALIVE", "TCP_KEEPINTVL"):  # the second is what macOS calls the first
            option = getattr(socket, name, None)
            if option is not None:
                self._set_option(socket.IPPROTO_TCP, option, int(seconds))

    def set_no_delay(self, no_delay: bool, /) -> None:
        """Send small writes at once (True, as at first), or let the kernel collect them (``TCP_NODELAY``, tcp(7)).

        Raises:
          NotSupported: the connection is not TCP.
        """
        self._require_tcp("TCP_NODELAY")
        self._set_option(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(no_delay))

    def _require_tcp(self, what: str) -> None:
        if not self._is_tcp:
            raise NotSupported(f"{what} is a property of TCP connections, and this is none")


def linger_value(seconds: int) -> bytes:
    """A struct linger."""
    return LINGER.pack(seconds >= 0, max(seconds, 0))

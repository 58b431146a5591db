"""A connection as callbacks see it: the contract, and what it has in common whatever it goes over."""

from __future__ import annotations

import abc
import io
import math
import socket
import struct
from typing import TYPE_CHECKING, Any, Protocol

from ._errors import BufferEmpty, InvalidDuration, NotSupported

if TYPE_CHECKING:
    from typing_extensions import Buffer

LINGER = struct.Struct("ii")

PIECE = 65536
"""Bytes that :meth:`Conn.read_from` reads at a time."""


class Writer(Protocol):
    """What :meth:`Conn.write_to` writes to: a binary file, for example."""

    def write(self, data: bytes, /) -> int | None:
        """Take ``data``, and return how much of it was taken."""
        ...


class Reader(Protocol):
    """What :meth:`Conn.read_from` reads from: a binary file, for example."""

    def read(self, count: int, /) -> bytes | None:
        """Up to ``count`` bytes; none at the end."""
        ...


class Conn(abc.ABC):
    """A connection, or the source of a datagram, as the callbacks of an :class:`EventHandler` get it.

    Its calls never wait.  What arrives is kept until it is taken, what is written is kept until the kernel takes it; both
    within limits (``Marks.receive_high``, ``Config.write_limit``).

    Writing, closing and setting properties work from any thread and any task, also of another connection's callback.
    Reading belongs to the callbacks of this connection.
    """

    __slots__ = ("__weakref__", "_context")

    def __init__(self) -> None:
        self._context: Any = None

    # --- what has arrived ---

    @abc.abstractmethod
    def next(self, n: int = -1, /) -> bytes:
        """Take ``n`` bytes of what has arrived; all of it for ``n`` of 0 or less.

        Raises:
          ShortBuffer: fewer than ``n`` bytes are there.  None was taken.
          ConnectionClosed: the connection is closed.
        """

    @abc.abstractmethod
    def peek(self, n: int = -1, /) -> bytes:
        """Up to ``n`` bytes of what has arrived, or all of it for ``n`` of 0 or less, without taking them.

        Raises:
          ConnectionClosed: the connection is closed.
        """

    @abc.abstractmethod
    def discard(self, n: int, /) -> int:
        """Drop up to ``n`` bytes of what has arrived: none for 0, all for less than 0.  Returns how many.

        Raises:
          ConnectionClosed: the connection is closed.
        """

    @property
    @abc.abstractmethod
    def inbound_buffered(self) -> int:
        """How many bytes have arrived and were not taken; 0 when closed."""

    def read(self, buffer: Buffer, /) -> int:
        """Take as many bytes as have arrived and fit, into a writable buffer.  Returns how many; 0 for a buffer of 0 bytes.

        Raises:
          BufferEmpty: nothing is there.
          ConnectionClosed: the connection is closed.
          BufferError: the buffer cannot be written to, or is not in one piece.
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
        """Write what has arrived to a binary file, or whatever has such a ``write``, and take as much as that took.

        Returns:
          How many bytes.  If that is less than there were, the rest is still here.

        Raises:
          BufferEmpty: nothing is there.
          ConnectionClosed: the connection is closed.
          and what ``writer.write`` raises; nothing was taken then.
        """
        data = self.peek()
        if not data:
            raise BufferEmpty("nothing has arrived")
        count = writer.write(data)
        if count is None:  # of a raw file: it would have to wait.  Of anything else: it does not count.
            count = 0 if isinstance(writer, io.RawIOBase) else len(data)
        if not 0 <= count <= len(data):
            raise ValueError(f"write() of {writer!r} claims to have taken {count} of {len(data)} bytes")
        return self.discard(count)

    # --- what is to be sent ---

    @abc.abstractmethod
    def write(self, data: Buffer, /) -> int:
        """Send ``data``, after what was written before, without waiting; it may be changed afterwards.

        Returns:
          How many bytes that are: all of them.  0 when the connection is broken, or is being closed as too slow:
          ``on_close`` will say so.

        Raises:
          ConnectionClosed: the connection was closed by this program, or ``on_close`` has been called.
          SlowReader: more than ``Config.write_limit`` bytes are unsent, and ``Config.write_policy`` is ``"raise"``.
        """

    def read_from(self, reader: Reader, /) -> int:
        """:meth:`write` all that a binary file has, or whatever has such a ``read``.

        It writes piece by piece, and so counts against ``Config.write_limit`` like as many writes: with
        ``write_policy`` ``"raise"``, what came before the limit is written.

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
        """How many bytes were written and not yet taken by the kernel; 0 when closed."""

    # --- the rest ---

    @property
    def context(self) -> Any:
        """The program's own: anything, None at first."""
        return self._context

    @context.setter
    def context(self, context: Any) -> None:
        self._context = context

    def set_context(self, context: Any, /) -> None:
        """Set :attr:`context`, as an assignment does."""
        self._context = context

    @property
    @abc.abstractmethod
    def local_addr(self) -> Any:
        """This end, as from :meth:`socket.socket.getsockname`."""

    @property
    @abc.abstractmethod
    def remote_addr(self) -> Any:
        """The other end, as from :meth:`socket.socket.getpeername`; None if it was gone before anybody could ask.

        Both addresses are there in ``on_close``, too.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Close the connection when what was written is sent.

        It waits for a peer that goes on taking it, for ``close_timeout`` at most (an option of :func:`gain_trio.serve`,
        60 seconds), and 5 seconds for one that takes nothing; or for the time of :meth:`set_linger`, whether bytes move or
        not.

        Nothing can be read or written any more, and ``on_read`` is not called again; ``on_write`` may be, and then
        ``on_close`` is.  Of a datagram's source there is nothing to close, and nothing happens.

        Raises:
          ConnectionAlreadyClosed: it was closed before.
        """

    @property
    @abc.abstractmethod
    def fd(self) -> int:
        """The file descriptor; -1 when closed.  It stays the connection's."""

    # --- deadlines ---

    @abc.abstractmethod
    def set_read_deadline(self, when: float | None, /) -> None:
        """Close the connection if nothing has arrived by then; move it as often as you like.

        ``on_close`` gets a :exc:`trio.TooSlowError`.

        Args:
          when: seconds on Trio's clock (:func:`trio.current_time`); None or ``math.inf`` for never.

        Raises:
          ValueError: it is not a number.
          NotSupported: of a datagram's source.
          ConnectionClosed: the connection is closed.
        """

    @abc.abstractmethod
    def set_write_deadline(self, when: float | None, /) -> None:
        """The same if something that was written is still unsent by then."""

    def set_deadline(self, when: float | None, /) -> None:
        """:meth:`set_read_deadline` and :meth:`set_write_deadline`."""
        self.set_read_deadline(when)
        self.set_write_deadline(when)

    # --- the socket's properties ---

    @abc.abstractmethod
    def _set_option(self, level: int, option: int, value: int | bytes) -> None:
        """Set it, in the run's thread.  Raises :exc:`ConnectionClosed`."""

    @property
    @abc.abstractmethod
    def _is_tcp(self) -> bool: ...

    def set_read_buffer(self, size: int, /) -> None:
        """Set the kernel's receive buffer (``SO_RCVBUF``): bytes.

        Raises:
          ConnectionClosed: the connection is closed.  So do the others.
          OSError: the kernel refuses it.
        """
        self._set_option(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    def set_write_buffer(self, size: int, /) -> None:
        """Set the kernel's send buffer (``SO_SNDBUF``): bytes."""
        self._set_option(socket.SOL_SOCKET, socket.SO_SNDBUF, size)

    def set_linger(self, seconds: int, /) -> None:
        """Set what closing does with what the peer has not received (``SO_LINGER``, socket(7)).

        Args:
          seconds: less than 0, as at first: it is sent in the background, and what the kernel has not taken has the time
            that :meth:`close` says.  0: it is dropped, and the peer gets a reset.  More than 0: the same as at first, with
            so many seconds.  The server does not wait meanwhile.
        """
        self._set_option(socket.SOL_SOCKET, socket.SO_LINGER, linger_value(seconds))

    def set_keep_alive_period(self, seconds: float, /) -> None:
        """Have the kernel send keep-alive probes when the peer is silent for so long, and as often from then on; tcp(7).

        Args:
          seconds: at least 1; the kernel counts whole ones.

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

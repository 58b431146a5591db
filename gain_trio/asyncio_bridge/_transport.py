"""An asyncio transport on a connection, and the loop that calls its protocol.

What asyncio's event loop does for a transport, one task does here: it waits for changes of the connection and calls back.
The methods of the transport wait for nothing.  They change what is kept here, queue bytes, and have the task look
again.

*Where the task waits.* In the plain case it waits in the loop that callbacks have, too (``deliver_by()``), which delivers
messages up to a size and returns everything else.  Otherwise it waits in ``Changes.next()``, which reports bytes, errors,
the end, and (while that is wanted) bytes that the kernel has accepted.  While reading is paused it waits there in a cancel
scope: bytes stay in the connection's queue, errors and room for writing are still reported, and ``resume_reading()``
cancels the scope, which loses nothing.  After the peer's end that call would return at once for ever.  If the protocol
keeps the connection open, the task waits in a scope for unsent bytes to leave, or for a method to be called.

*Order.*  Bytes that arrived come before the end, the end before the loss.  After ``close()`` or ``abort()`` no byte is
delivered any more, also if they were called in the middle of a callback.  Only the task, at its end, calls
``connection_lost``, so it is called once and never from within a method of the transport.

*Flow control* is asyncio's: ``pause_writing()`` is called from within the write that brings more than the high mark to
be unsent, ``resume_writing()`` when no more than the low mark is left.

*What ended it.*  ``connection_lost`` gets a reset as the :exc:`OSError` of asyncio, since protocols look at that;
the server gets the :exc:`trio.BrokenResourceError` that it counts.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast, final

import trio

from gain_trio._callback_base import END, WRITTEN, Changes, Pace, PacedDelivery, deliver_by, sleep_until_idle
from gain_trio._transports import CloseWait, Connection, TimeSlice, TlsConnection, shown
from gain_trio.callbacks import SlowReader

from ._idle_detection import IdleDetector
from ._views import SocketView, SslView

if TYPE_CHECKING:
    from typing_extensions import Buffer

HIGH = 64 * 1024
"""asyncio's default for the most bytes that may be unsent before ``pause_writing()``."""

logger = logging.getLogger("gain_trio")


@final
class ProtocolTransport(asyncio.Transport):
    """See :class:`asyncio.Transport`."""

    __slots__ = (
        "_changes",
        "_connection",
        "_data_received",
        "_delivery",
        "_ended",
        "_ends_when_idle",
        "_eof_sent",
        "_eof_written",
        "_error",
        "_has_heard",
        "_high",
        "_is_aborted",
        "_is_closing",
        "_is_tls",
        "_low",
        "_made_at",
        "_owes",
        "_protocol",
        "_protocol_paused",
        "_quiet",
        "_reading_paused",
        "_scope",
        "_time_slice",
        "_whole",
        "_write_limit",
    )

    def __init__(self, connection: Connection, protocol: asyncio.BaseProtocol, write_limit: int, pace: Pace) -> None:
        super().__init__()
        self._connection = connection
        self._changes = Changes(connection)
        self._write_limit = write_limit
        self._high, self._low = _limits(None, None)
        self._is_tls = isinstance(connection, TlsConnection)
        self._protocol_paused = False
        self._reading_paused = False
        self._is_closing = False
        self._is_aborted = False
        self._ended = False  # the peer has ended its side, and all that came before has been delivered
        self._eof_written = False  # write_eof() was called
        self._eof_sent = False  # and has taken effect
        self._error: Exception | None = None  # the argument of connection_lost()
        self._owes = False  # bytes were delivered, and nothing was written since
        self._has_heard = False  # bytes were delivered
        self._made_at = trio.current_time()
        self._quiet: IdleDetector | None = None  # the server drains
        self._ends_when_idle = False  # and the task has seen it
        self._time_slice = TimeSlice()
        self._delivery = PacedDelivery(pace)
        self._whole = PacedDelivery.WHOLE  # bytes that are delivered in one piece, untimed
        self._scope: trio.CancelScope | None = None  # that the task waits in, to be cancelled for it to look again
        self.set_protocol(protocol)

    def __repr__(self) -> str:
        state = "closing" if self._is_closing else "paused" if self._reading_paused else "open"
        return f"<gain_trio.asyncio_bridge.ProtocolTransport {state} on {self._connection!r}>"

    # --- the task ---

    async def run(self) -> None:
        """Call the protocol until the connection is lost, and then its ``connection_lost()``."""
        try:
            self._protocol.connection_made(self)
            await self._serve()
            await self._finish()
        except Exception as error:
            self._error = error
            raise
        finally:
            self._is_closing = True
            if self._error is not None or self._is_aborted:
                self._connection.abort()
            else:
                self._connection._close_now()
            self._protocol.connection_lost(_error_of_loss(self._error))

    async def _serve(self) -> None:
        deliver = deliver_by(self._connection)
        while not self._is_closing and self._quiet is None:
            if self._ended:
                await self._wait_for_room()
            elif self._reading_paused:
                told_paused = await self._wait_paused()
                if self.is_reading():  # it was resumed, maybe in the moment in which the connection changed as well
                    await self._deliver()
                if told_paused is not None:
                    await self._look(told_paused)
            else:
                delivery = self._delivery
                change = await deliver(
                    ProtocolTransport._deliver_whole,
                    self,
                    self._changes.watched,
                    self._whole,
                    delivery.quick_size,
                    delivery.learn,
                )
                found = self._changes.meaning(change)
                # A piece may have paused reading, which was resumed before this task has run.
                if self.is_reading() and (change > 0 or self._connection.inbound_buffered):
                    await self._deliver()
                if found is not None and found <= 0:
                    await self._look(found)
        if self._quiet is not None and not self._is_closing:
            self._ends_when_idle = True
            self._changes.resume()
            self._changes.watch_written(True)
            await self._serve_until_idle(self._quiet)

    async def _serve_until_idle(self, quiet: IdleDetector) -> None:
        """The server drains."""
        connection = self._connection
        while not self._is_closing:
            end = quiet.ends_at(owes=self._owes, has_heard=self._has_heard)
            if end <= trio.current_time():
                self.close()
                return
            change = WRITTEN
            with trio.CancelScope(deadline=end) as self._scope:
                if not self._ended:
                    change = await self._changes.next()
                elif connection.outbound_buffered:
                    await connection.flush()
                else:
                    await sleep_until_idle(connection)
            if self.is_reading() and connection.inbound_buffered:
                await self._deliver()
            if change <= 0:
                await self._look(change)

    def drains_with(self, draining: trio.Event) -> bool:
        """Whether this is the event of its server."""
        return self._connection.draining is draining

    def _drain(self) -> None:
        """The server drains: end the connection when it is idle, unless the protocol does so itself."""
        if self._is_closing or self._quiet is not None:
            return
        ask = getattr(self._protocol, "server_draining", None)
        try:
            if ask is not None and ask():
                return
        except Exception as error:  # noqa: BLE001 - raised by the connection's own task
            self._lose(error)
            return
        if not self._is_closing:
            self._quiet = IdleDetector(self._connection, self._made_at)
            self._changes.end()  # until the task has seen that
            self._look_again()

    async def _look(self, change: int) -> None:
        """Something else than bytes that can be delivered."""
        if self._is_closing:
            return
        if change == END and self._quiet is not None and not self._ends_when_idle:
            return  # that is no end, but _drain()
        if change == WRITTEN:
            self._look_at_room()
        elif change == END:
            await self._look_at_end()

    async def _wait_paused(self) -> int | None:
        """The connection's next change; None when something here has changed."""
        with trio.CancelScope() as self._scope:
            return await self._changes.next()
        return None

    async def _look_at_end(self) -> None:
        if self._reading_paused:  # the end would be reported again at once: wait for anything else
            await self._wait_for_room()
            if not self.is_reading():
                return
            await self._deliver()
            if not self.is_reading():
                return
        self._ended = True
        keep_open = cast("asyncio.Protocol", self._protocol).eof_received()
        if keep_open and self._is_tls:
            logger.warning(
                "returning true from eof_received() has no effect with TLS, which has no half-closed connections"
            )
            keep_open = False
        if not keep_open:
            self.close()

    async def _wait_for_room(self) -> None:
        """Wait until what is unsent has left, if that is of interest, or until a method is called."""
        if self._is_closing:
            return
        end = math.inf if self._quiet is None else self._quiet.ends_at(owes=self._owes, has_heard=self._has_heard)
        with trio.CancelScope(deadline=end) as self._scope:
            if self._watches_room():
                await self._connection.flush()
            else:
                await sleep_until_idle(self._connection)
        if not self._is_closing:
            self._look_at_room()

    def _look_again(self) -> None:
        """Have the task leave the scope that it waits in."""
        if self._scope is not None:
            self._scope.cancel()

    async def _finish(self) -> None:
        """What was written before close() is sent, if the peer takes it in time, and then TLS's own end of it.

        Without that one the peer would have to take the end for a part that is missing.
        """
        if self._error is not None:
            raise self._error
        if self._is_aborted:
            return
        flushed = False
        with trio.CancelScope() as self._scope:
            flushed = await CloseWait(self._connection).wait(self._connection.flush)
            if flushed and self._protocol_paused:  # it was closed while it was to write no more
                self._protocol_paused = False
                self._call_flow_control(self._protocol.resume_writing, "resume_writing")
            if flushed and not self._connection._close_soon():
                flushed = await self._connection._close_flushing()
        if not flushed and not self._is_aborted:
            reason = OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            raise trio.BrokenResourceError("the peer did not take the rest in time, or takes nothing") from reason

    # --- calling the protocol ---

    async def _deliver(self) -> None:
        """What has arrived, in pieces, between which others have a turn."""
        self._time_slice.begin()
        left = self._connection.inbound_buffered  # what comes meanwhile has its own turn, after other changes
        while left > 0 and self.is_reading():
            left -= self._delivery.deliver(self._deliver_piece, left)
            if left > 0 and self._time_slice.is_over():
                await trio.lowlevel.checkpoint()
        self._whole = min(self._delivery.size, PacedDelivery.WHOLE)

    def _deliver_whole(self, count: int) -> None:
        """Deliver ``count`` bytes, which are queued, for as long as the protocol reads."""
        count -= self._deliver_piece(count)
        while count > 0 and self.is_reading():
            count -= self._deliver_piece(count)

    def _deliver_piece(self, size: int) -> int:
        """Deliver at most ``size`` bytes, which are queued.  Returns how many it was."""
        if self._data_received is None:
            protocol = cast("asyncio.BufferedProtocol", self._protocol)
            with memoryview(protocol.get_buffer(size)) as buffer, buffer.cast("B") as room:
                if not room.nbytes:
                    raise RuntimeError("get_buffer() returned an empty buffer")
                data = self._connection.next(min(size, room.nbytes))
                room[: len(data)] = data
            self._owes = self._has_heard = True
            protocol.buffer_updated(len(data))
        else:
            data = self._connection.next(size)
            self._owes = self._has_heard = True
            self._data_received(data)
        return len(data)

    def _call_flow_control(self, call: Callable[[], None], name: str) -> None:
        try:
            call()
        except Exception:
            logger.exception("%s() of the protocol %s failed", shown(name), shown(self._protocol))

    def _watches_room(self) -> bool:
        """Whether the protocol, or ``write_eof()``, waits for unsent bytes to leave."""
        return self._protocol_paused or (self._eof_written and not self._eof_sent)

    def _look_at_room(self) -> None:
        """Some of what was unsent has left."""
        unsent = self._connection.outbound_buffered
        if self._eof_written and not self._eof_sent and not unsent:
            self._eof_sent = True
            try:
                self._connection._end_sending()
            except trio.BrokenResourceError as error:
                self._lose(error)
                return
        if self._protocol_paused and unsent <= self._low:
            self._protocol_paused = False
            self._call_flow_control(self._protocol.resume_writing, "resume_writing")
        if not self._watches_room() and not self._is_closing and self._quiet is None:
            self._changes.watch_written(False)

    def _pause_protocol_over(self, unsent: int) -> None:
        if unsent > self._high and not self._protocol_paused:
            self._protocol_paused = True
            self._changes.watch_written(True)
            self._look_again()
            self._call_flow_control(self._protocol.pause_writing, "pause_writing")

    # --- asyncio.BaseTransport ---

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """``peername``, ``sockname``, ``socket``, and of TLS ``cipher``, ``peercert``, ``ssl_object``, ``sslcontext``,
        ...

        Looked up at the call; ``default`` also for what is not available any more on a lost connection.
        """
        connection: Connection = self._connection
        lookups: dict[str, Callable[[], Any]] = {
            "peername": lambda: connection.remote_address,
            "sockname": lambda: connection.local_address,
            "socket": lambda: SocketView(connection),
        }
        if isinstance(connection, TlsConnection):
            tls = SslView(connection)
            lookups |= {
                "cipher": connection.cipher,
                "compression": lambda: tls.compression(),
                "peercert": connection.getpeercert,
                "ssl_object": lambda: tls,
                "sslcontext": lambda: tls.context,
            }
        lookup = lookups.get(name)
        if lookup is None:
            return default
        try:
            return lookup()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return default

    def is_closing(self) -> bool:
        """Whether it is closing, or closed."""
        return self._is_closing

    def close(self) -> None:
        """Deliver nothing more, send what was written, and close; ``connection_lost(None)`` is called then."""
        if not self._is_closing:
            self._is_closing = True
            self._changes.end()
            self._look_again()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Call another protocol from now on."""
        self._protocol = protocol
        buffered = isinstance(protocol, asyncio.BufferedProtocol) or not hasattr(protocol, "data_received")
        self._data_received = None if buffered else cast("asyncio.Protocol", protocol).data_received

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The protocol that is called."""
        return self._protocol

    # --- asyncio.ReadTransport ---

    def is_reading(self) -> bool:
        """Whether bytes are delivered."""
        return not self._is_closing and not self._reading_paused

    def pause_reading(self) -> None:
        """Deliver nothing until :meth:`resume_reading`.  Twice is once."""
        if not self._is_closing:
            self._reading_paused = True
            self._connection._note_change()  # the task delivers without a look at this

    def resume_reading(self) -> None:
        """Deliver again.  Twice is once."""
        if self._reading_paused and not self._is_closing:
            self._reading_paused = False
            self._look_again()

    # --- asyncio.WriteTransport ---

    def write(self, data: Buffer) -> None:
        """Send it after what was written before, without waiting; when it is lost or closing, drop it.

        Raises:
          RuntimeError: :meth:`write_eof` was called.
          TypeError: it is not bytes-like.
        """
        if self._eof_written:
            raise RuntimeError("Cannot call write() after write_eof()")
        if type(data) is not bytes:
            data = memoryview(data)  # a TypeError for anything but a buffer
        if not data or self._is_closing:
            return
        if self._owes:
            self._owes = False
            if self._quiet is not None:
                self._look_again()
        connection = self._connection
        if connection.outbound_buffered > self._write_limit and self._push() > self._write_limit:
            self._lose(SlowReader(f"more than {self._write_limit} bytes are unsent: the peer does not take them"))
            return
        try:
            unsent = connection._send_nowait(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._lose(error)
            return
        if unsent > self._high and not self._protocol_paused:
            self._pause_protocol_over(self._push())

    def _push(self) -> int:
        """How much the kernel does not take at the moment."""
        try:
            return self._connection._push()
        except trio.ClosedResourceError:
            return 0  # the write that follows finds out

    def _lose(self, error: Exception) -> None:
        """The connection is of no more use; its task will say so."""
        self._error = error
        self.close()

    def writelines(self, list_of_data: Iterable[Buffer]) -> None:
        """Send all of them, in order."""
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        """Whether :meth:`write_eof` works: not with TLS."""
        return not self._is_tls

    def write_eof(self) -> None:
        """End the stream to the peer, after what was written.  Receiving goes on.

        Raises:
          NotImplementedError: with TLS.
        """
        if self._is_tls:
            raise NotImplementedError("TLS cannot end one direction only: close() the transport")
        if self._is_closing or self._eof_written:
            return
        self._eof_written = True
        self._changes.watch_written(True)
        self._look_again()
        self._look_at_room()

    def abort(self) -> None:
        """Close with a reset as soon as the task runs, and call ``connection_lost(None)``."""
        self._is_aborted = True
        self.close()
        self._look_again()  # also if it was closing, and waits for what is unsent

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """With more than ``high`` bytes unsent ``pause_writing()`` is called, with ``low`` or less
        ``resume_writing()``.

        The defaults are 64 KiB for ``high``, or four times ``low``; and a quarter of ``high`` for ``low``.

        Raises:
          ValueError: not ``high >= low >= 0``.
        """
        self._high, self._low = _limits(high, low)
        if not self._is_closing:
            self._pause_protocol_over(self._connection.outbound_buffered)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """The low and the high mark."""
        return self._low, self._high

    def get_write_buffer_size(self) -> int:
        """How many bytes are unsent."""
        return 0 if self._is_aborted or self._connection._is_closed else self._connection.outbound_buffered


def _limits(high: int | None, low: int | None) -> tuple[int, int]:
    if high is None:
        high = HIGH if low is None else 4 * low
    if low is None:
        low = high // 4
    if not high >= low >= 0:
        raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
    return high, low


def _error_of_loss(error: Exception | None) -> Exception | None:
    """The exception with which asyncio would call ``connection_lost()``."""
    cause = error.__cause__ if isinstance(error, trio.BrokenResourceError) else None
    return cause if isinstance(cause, OSError) else error

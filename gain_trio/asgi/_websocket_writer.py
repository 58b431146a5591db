"""The sending side of a WebSocket: turns of its senders, and frames that must not be lost.

*Senders take turns*: the app's tasks, pongs, pings and the close frame.  A control frame that finds a sender under way is
left to that sender, so that a reader does not wait for a peer which does not read.

*A compressed frame that was made must be sent*, because the frames after it refer to it.  When the call that made it is
cancelled before the connection has queued it, it is kept, and goes first when something is sent next.
"""

from __future__ import annotations

from typing import final

import trio

from gain_trio._transports import Connection

from ._websocket_codec import WebSocketCodec


@final
class WebSocketWriter:
    """Sends frames on a connection.  What its calls raise is what :meth:`Connection.send` raises."""

    __slots__ = ("_codec", "_connection", "_line", "_unsent", "is_sending")

    def __init__(self, connection: Connection, codec: WebSocketCodec) -> None:
        self._connection = connection
        self._codec = codec
        self.is_sending = False
        """Whether a task is sending."""
        self._line: trio.lowlevel.ParkingLot | None = None  # of tasks that wait for their turn
        self._unsent = b""  # what goes first: its sender was cancelled

    async def send(self, kind: int, payload: bytes) -> None:
        """Send a message, when the senders before have sent theirs.

        Raises:
          trio.ClosedResourceError: the WebSocket was closed meanwhile, too.
        """
        codec = self._codec
        if self.is_sending or self._unsent or codec.control or codec.compresses:
            await self._send_in_turn(kind, payload)
            return
        self.is_sending = True
        try:
            await self._connection.send(codec.message(kind, payload))
            if self._codec.control:  # came meanwhile
                await self._send_control()
        finally:
            self._end_turn()

    async def _send_in_turn(self, kind: int, payload: bytes) -> None:
        await self._begin_turn()
        try:
            await self._send_control()
            codec = self._codec
            if not codec.is_open:
                raise trio.ClosedResourceError("the WebSocket was closed")
            frame = codec.message(kind, payload)
            if codec.compresses:
                assert isinstance(frame, bytes)
                self._unsent = frame
            else:
                await self._connection.send(frame)
            await self._send_control()
        finally:
            self._end_turn()

    async def flush(self) -> None:
        """Send control frames, or leave them to the task that is sending."""
        if not self.is_sending:
            await self.finish()

    async def finish(self) -> None:
        """Send control frames, when the senders before have sent theirs."""
        await self._begin_turn()
        try:
            await self._send_control()
        finally:
            self._end_turn()

    async def _begin_turn(self) -> None:
        if not self.is_sending:
            self.is_sending = True
            return
        if self._line is None:
            self._line = trio.lowlevel.ParkingLot()
        await self._line.park()  # the task that ends its turn leaves is_sending set

    def _end_turn(self) -> None:
        if self._line:
            self._line.unpark()
        else:
            self.is_sending = False

    async def _send_control(self) -> None:
        """Send what goes before anything else.  Cancelled, it keeps what the connection has not queued."""
        connection, codec = self._connection, self._codec
        while True:
            if not self._unsent:
                self._unsent, codec.control = codec.control, b""
            if not self._unsent:
                return
            before = connection.bytes_sent + connection.outbound_buffered
            try:
                await connection.send(self._unsent)
            except BaseException:
                if connection.bytes_sent + connection.outbound_buffered != before:
                    self._unsent = b""
                raise
            self._unsent = b""
